"""From a trained experiment to ONNX files, by mmrun and by itk_infer, and what is said where that cannot be."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import pytest

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tiny_experiment import make_experiment

from itkit.cli.main import run_tool
from itkit.deploy import Predictor
from itkit.deploy.export import TOLERANCE
from itkit.experiment.names import Roots


def export(world, *words) -> tuple[int, str, str]:
    world.capture.readouterr()
    roots = ["--config-root", str(world.root / "configs"), "--work-dir-root", str(world.root / "work")]
    code = run_tool("itk_infer", ["export", *map(str, words), *roots])
    return code, *world.capture.readouterr()


def test_a_trained_experiment_becomes_files_that_predict_alike(tiny):
    code, _, err = tiny.mmrun("0.1", "--export", "onnx")
    assert code == 1
    assert "0.1.Tiny/unet: failed: no best checkpoint is recorded" in err
    assert "Train it first." in err
    assert not list(tiny.folder().glob("*.onnx"))

    code, _, err = tiny.mmrun("0.1")
    assert code == 0, err
    assert tiny.state()["exports"] == {}
    code, _, err = tiny.mmrun("0.1", "--export", "onnx")
    assert code == 0, err
    path, state = tiny.folder() / "unet.onnx", tiny.state()
    record = state["exports"]["onnx"]
    assert f"0.1.Tiny/unet: exported step {state['best']['step']} to {path}: ONNX Runtime and PyTorch differ" in err
    assert record["file"] == "unet.onnx"
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (record["step"], record["checkpoint"]) == (state["best"]["step"], state["best"]["checkpoint"].split("/")[1])
    best = tiny.folder() / state["best"]["checkpoint"]
    assert record["checkpoint_sha256"] == hashlib.sha256(best.read_bytes()).hexdigest()
    assert record["case"] == "case_06.mha"
    assert record["real_windows"] == 1
    assert record["largest_difference"] <= TOLERANCE * max(1, record["largest_logit"])
    assert (state["state"], state["step"]) == ("trained", 8)

    # the tool writes the same file, and says the same as a document
    out = tiny.root / "tool.onnx"
    code, said, err = export(tiny, "--experiment", "0.1", "-o", out, "--json")
    assert code == 0, err
    assert out.read_bytes() == path.read_bytes()
    document = json.loads(said)
    assert {key: document[key] for key in record} == {**record, "file": "tool.onnx"}
    assert (document["tool"], document["path"], document["exit_code"]) == ("itk_infer export", str(out), 0)
    code, said, err = export(tiny, "--experiment", "0.1", "-o", out)
    assert code == 2
    assert err == f"itk_infer: {out}: is there already. Choose another name, or replace it with --overwrite.\n"

    # config and checkpoint do too, and without data it is compared on random windows, and says so
    (tiny.root / "data").rename(tiny.root / "elsewhere")
    config = tiny.root / "configs" / "0.1.Tiny" / "unet.py"
    code, said, err = export(tiny, "-cfg", config, "-ckpt", best, "-o", out, "--overwrite", "--dynamic-size")
    assert code == 0, err
    assert said.splitlines()[0] == str(out)
    assert "itk_infer export: compared on random windows alone: " in err
    assert "Tiny" in err
    (tiny.root / "elsewhere").rename(tiny.root / "data")

    # and files and network predict alike
    roots = Roots.resolve(*(str(tiny.root / name) for name in ("configs", "work", "test")))
    by_torch = Predictor.from_experiment("0.1", roots=roots, device="cpu")
    for file in (path, out):
        by_onnx = Predictor.from_onnx(file, device="cpu")
        for case in ("case_06", "case_07"):
            image = tiny.root / "data" / "Tiny" / "image" / f"{case}.mha"
            one, other = (p(image, probabilities=True) for p in (by_torch, by_onnx))
            np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-5)
            best_two = np.sort(one.probabilities, axis=0)[-2:]
            clear = best_two[1] - best_two[0] > 1e-4
            assert clear.mean() > 0.99
            np.testing.assert_array_equal(one.labels.array[clear], other.labels.array[clear])
            assert one.labels.geometry == other.labels.geometry


def test_all_trains_tests_exports_and_reports(world):
    make_experiment(world.root, iterations=4)
    code, _, err = world.mmrun("0.1", "--all", "--export", "onnx")
    assert code == 0, err
    assert world.state()["exports"]["onnx"]["step"] == world.state()["best"]["step"]
    assert (world.root / "test/0.1.Tiny/unet/result.json").is_file()
    assert (world.folder() / "unet.onnx").is_file()
    metadata = {entry.key: entry.value for entry in onnx.load(world.folder() / "unet.onnx").metadata_props}
    assert (metadata["itkit_experiment"], metadata["itkit_model"]) == ("0.1.Tiny", "unet")
    assert metadata["itkit_classes"] == "background, small, large"


def test_what_is_missing_is_said_before_anything_is_trained(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = tiny.mmrun("0.1", "--all", "--export", "onnx")
    assert code == 1
    assert "onnxscript is needed for exporting networks and is not installed. Install it with: pip install" in err
    assert "trains on" not in err
    assert not list(tiny.folder().rglob("*.pth"))


def test_a_model_that_cannot_be_exported_does_not_stop_the_next(world):
    folder = make_experiment(world.root, iterations=4, models=("broken", "unet"))
    text = (folder / "broken.py").read_text()
    (folder / "broken.py").write_text(
        "import torch\n" + text.replace("import UNet", "import UNet as Base").replace("type=UNet", "type=Stubborn").replace(
            "model = dict(", "from stubborn_network import Stubborn\nmodel = dict("
        )
    )  # fmt: skip
    (world.root / "stubborn_network.py").write_text(
        "import torch\nfrom monai.networks.nets import UNet\n\n"
        "class Stubborn(UNet):\n    def forward(self, x):\n        if torch.compiler.is_exporting():\n"
        '            raise RuntimeError("not me")\n        return super().forward(x)\n'
    )
    code, _, err = world.mmrun("0.1", "--all", "--export", "onnx")
    assert code == 1
    assert (
        "torch cannot export Stubborn with a batch and sizes that vary (RuntimeError: not me). Nothing was written."
        in err
    )
    assert (world.folder("unet") / "unet.onnx").is_file()
    assert not list(world.folder("broken").glob("*.onnx"))
    assert world.state("broken")["exports"] == {}
    assert world.state("broken")["failure"]["message"].endswith("Nothing was written.")
    assert world.state("broken")["state"] == "trained"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name either --experiment (and --model), or both -cfg and -ckpt."),
        (["-cfg", "a.py"], "name either --experiment (and --model), or both -cfg and -ckpt."),
        (["--experiment", "0.1", "-cfg", "a.py", "-ckpt", "b.pth"], "name either --experiment"),
        (["-cfg", "a.py", "-ckpt", "b.pth", "--last"], "--model and --last choose within an --experiment"),
        (["-cfg", "a.py", "-ckpt", "b.pth"], "a.py: there is no such config."),
    ],
)
def test_words_that_name_no_model(tiny, words, message):
    code, _, err = export(tiny, *words, "-o", tiny.root / "n.onnx")
    assert code == 2
    assert message in err
