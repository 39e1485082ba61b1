"""The declaration of `itk_infer export`."""

from itkit.cli.parameters import Parameter
from itkit.cli.table import Tool

EXPORT = Tool(
    name="export",
    summary="write a trained model as an ONNX file that carries its pre- and post-processing",
    action="itkit.deploy.trained_export:export_command",
    description="The file predicts without torch: itk_infer --backend onnx --onnx FILE. Its metadata hold the recipe (steps "
    "before and after the network, windows, classes, spacing, orientation), where the model comes from, and the checksums of "
    "the checkpoint and of the file itself.\n\n"
    "Before the file gets its name, ONNX Runtime computes with it what PyTorch computes, on random windows in batches of 1, 2 "
    "and 3, and on windows of the first test case where the data are here. A logit that differs by more than 1e-4 of the "
    "largest one means no file and exit code 1.",
    parameters=(
        Parameter(("--experiment",), "experiment as mmrun takes it, e.g. 1.0; its best checkpoint is exported",
                  metavar="EXP"),
        Parameter(("--model",), "model of the experiment, where it has several", metavar="M"),
        Parameter(("-cfg", "--config"), "config file, instead of an experiment; with -ckpt", "file", metavar="CFG"),
        Parameter(("-ckpt", "--checkpoint"), "checkpoint that belongs to the config", "file", metavar="CKPT"),
        Parameter(("--last",), "the experiment's last checkpoint instead of the best", "flag"),
        Parameter(("-o", "--out"), "file to write, ending with .onnx", "file", required=True, metavar="FILE"),
        Parameter(("--dynamic-size",), "let windows have any size that the network allows, not the patch size alone", "flag"),
        Parameter(("--opset",), "version of ONNX's operators (default: what torch prefers)", "positive", metavar="N"),
        Parameter(("--no-case",), "do not read a test case to compare on", "flag"),
        Parameter(("--trust-checkpoint",), "load a checkpoint that holds Python objects, which can run code", "flag"),
        Parameter(("--config-root",), "folder of experiments (else mm_configdir, else configs)", "folder", metavar="D"),
        Parameter(("--work-dir-root",), "folder of runs (else mm_workdir, else work_dirs)", "folder", metavar="D"),
    ),
    examples=(
        ("itk_infer export --experiment 1.0 --model unet_small -o unet.onnx", "the best checkpoint of an experiment"),
        ("itk_infer export -cfg unet.py -ckpt best.pth -o unet.onnx", "any config and checkpoint"),
        ("mmrun 1.0 --export onnx", "every trained model of an experiment, into its run folder"),
    ),
)  # fmt: skip
