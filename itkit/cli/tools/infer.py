"""The declaration of `itk_infer`."""

from itkit.cli.parameters import FIX_GEOMETRY, RECURSIVE, Parameter
from itkit.cli.table import Tool
from itkit.cli.tools.infer_export import EXPORT

MODEL = (
    Parameter(("--backend",), "mmengine (PyTorch) or onnx (no torch needed); follows from the other words",
              choices=("mmengine", "onnx")),
    Parameter(("--experiment",), "experiment as mmrun takes it, e.g. 1.0; the best checkpoint is used", metavar="EXP"),
    Parameter(("--model",), "its model; several are averaged", count="+", metavar="M"),
    Parameter(("-cfg", "--config"), "config file, instead of an experiment", "file", metavar="CFG"),
    Parameter(("-ckpt", "--checkpoint"), "checkpoint that belongs to the config; several are averaged", "file", "+",
              metavar="CKPT"),
    Parameter(("--onnx",), "file that itk_infer export has written; several are averaged", "file", "+", metavar="FILE"),
    Parameter(("--last",), "the experiment's last checkpoint instead of the best", "flag"),
    Parameter(("--config-root",), "folder of experiments (else mm_configdir, else configs)", "folder", metavar="D"),
    Parameter(("--work-dir-root",), "folder of runs (else mm_workdir, else work_dirs)", "folder", metavar="D"),
    Parameter(("--trust-checkpoint",), "load a checkpoint that holds Python objects, which can run code", "flag"),
)  # fmt: skip
COMPUTING = (
    Parameter(("--patch-size",), "voxels of a window, instead of the model's own", "positive", 3, metavar=("Z", "Y", "X")),
    Parameter(("--patch-stride",), "voxels between windows (default with --patch-size: half of it)", "positive", 3,
              metavar=("Z", "Y", "X")),
    Parameter(("--batch-windows",), "most windows in one call of the network, instead of the model's own", "positive",
              metavar="N"),
    Parameter(("--wl",), "centre of the intensity window, instead of that of the model's preprocessing", "number", metavar="L",
              field="window_level"),
    Parameter(("--ww",), "its width", "number", metavar="W", field="window_width"),
    Parameter(("--orientation",), "orientation of the training data, e.g. LPS, where the test pipeline does not turn images "
              "(transform Orient)", metavar="CODE"),
    Parameter(("--tta",), "average over mirror images along all axes, unless the model mirrors already", "flag"),
    Parameter(("--gpus",), "use so many GPUs, a process on each; 0: the CPU (default: one GPU where there is one)", "count",
              metavar="N"),
    Parameter(("--threads",), "threads of a process on the CPU (default: OMP_NUM_THREADS, else all cores; with several "
              "processes 1)", "positive", metavar="N"),
    Parameter(("--fp16",), "compute in half precision on a GPU", "flag"),
)  # fmt: skip
TUNE_POST = Tool(
    name="tune-post",
    summary="decide on the validation cases which steps of post-processing help, and store them with the model",
    operation="itkit.deploy.tuning:TunePost",
    description="The validation cases of the experiment are predicted without post-processing. Then each candidate step is "
    "tried, one class after the other, on top of those that were taken before: it is taken if the mean of the paired "
    "differences of Dice over the cases is positive and the lower end of its 95 % bootstrap interval is too.\n\n"
    "What was taken is written to post.json of the run's folder, with the figures; itk_infer --experiment and itk_infer export "
    "use it from then on. --dry-run lists the cases only.",
    parameters=(
        Parameter(("-o", "--out"), "folder of the predictions and of ledger.jsonl; made if missing", "folder", required=True,
                  metavar="OUT", field="destination"),
        Parameter(("--experiment",), "experiment as mmrun takes it, e.g. 1.0", required=True, metavar="EXP"),
        Parameter(("--model",), "its model, where it has several", count=1, metavar="M"),
        Parameter(("--candidates",), "steps to try, in this order, each class by class (default: largest small=10 small=50 "
                  "small=200 holes)", count="+", metavar="STEP"),
        Parameter(("--no-store",), "write post.json to OUT alone, not to the run's folder", "flag"),
        *(parameter for parameter in MODEL if parameter.name in (
            "last", "config_root", "work_dir_root", "trust_checkpoint")),
        *(parameter for parameter in COMPUTING if parameter.name in (
            "patch_size", "patch_stride", "batch_windows", "orientation", "tta", "gpus", "threads", "fp16")),
        Parameter(("--seed",), "of the bootstrap (default 0)", "count", default=0, metavar="N"),
    ),
    examples=(
        ("itk_infer tune-post --experiment 1.0 --model unet_small -o tuned", "what helps this model"),
        ("itk_infer tune-post --experiment 1.0 -o tuned --candidates largest small=30", "other candidates"),
    ),
    documents=(("post.json", "the steps that were taken, and the figures of all that were tried"),),
)  # fmt: skip

TOOL = Tool(
    name="itk_infer",
    summary="predict label maps with a trained model",
    operation="itkit.deploy.infer:Infer",
    description="IN is a volume, a folder of volumes (or a dataset, of which image/ is taken), or a folder of DICOM files, each "
    "series a case. What was done to images before the network in the experiment's own test pipeline is done here too, and "
    "every label map lies on exactly its image's grid: size, spacing, origin and direction.\n\n"
    "The model is loaded once a process; while the network works, the next case is read and the one before is written. Memory "
    "is that of a slab of windows, whatever the number of classes. Of --model, --checkpoint and --onnx several may be given: "
    "their probabilities are averaged.\n\n"
    "Steps of --post, done in their order: largest (each class keeps its largest piece), small=MM3 (pieces below so many mm3 "
    "go), holes, box=Z:Z,Y:Y,X:X, body=LEVEL; largest@liver,spleen treats these classes only; --post none does nothing. "
    "Without --post those that itk_infer tune-post stored with the model are done.\n\n"
    "itk_infer export --help: write an ONNX file. itk_infer tune-post --help: choose the post-processing.",
    parameters=(
        Parameter(("-i", "--input"), "volume, folder of volumes, or folder of DICOM series; never written to", "folder",
                  required=True, metavar="IN", field="source"),
        Parameter(("-o", "--output"), "folder of the label maps and of ledger.jsonl; made if missing", "folder", required=True,
                  metavar="OUT", field="destination"),
        *MODEL,
        *COMPUTING,
        Parameter(("--post",), "steps of post-processing, instead of those stored with the model, or none", count="+",
                  metavar="STEP"),
        Parameter(("--save-conf",), "write the confidence of each voxel to confidence/ too", "flag"),
        Parameter(("--save-logits",), "write the logits to logits/<case>.zarr too (needs itkit[zarr])", "flag"),
        Parameter(("--format",), "format of the label maps: mha, nii.gz, nrrd, mhd, nii, or dicom-seg (default: that of the "
                  "input, mha for DICOM)",
                  choices=("mha", "nii.gz", "nrrd", "mhd", "nii", "dicom-seg")),
        Parameter(("--segment-codes",), "JSON file with the codes of the classes, for dicom-seg (see docs/dicom-seg.md)", "file",
                  metavar="FILE"),
        RECURSIVE,
        FIX_GEOMETRY,
    ),
    examples=(
        ("itk_infer -i scans -o labels --experiment 1.0 --model unet_small", "a folder of volumes"),
        ("itk_infer -i scan.nii.gz -o labels -cfg unet.py -ckpt best.pth --tta", "one volume, any config and checkpoint"),
        ("itk_infer -i dicom -o seg --onnx unet.onnx --format dicom-seg", "DICOM in and out, without torch"),
        ("itk_infer -i scans -o labels --experiment 1.0 --model a b c --post largest small=50@liver", "three models averaged"),
    ),
    documents=(
        ("confidence.csv", "voxels, ml and confidence of every case and class"),
        ("recipe.json", "what was done before and after the network, and where the model comes from"),
    ),
    variants=(EXPORT, TUNE_POST),
)  # fmt: skip
