"""itk_infer through its command line: volumes, datasets, DICOM, every output, bad cases, resume, kill, and tune-post."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dicom_phantom import write_series
from tiny_model import CLASSES, make_trained

from itkit.deploy import Predictor, Recipe
from itkit.io.orientation import reorient
from itkit.io.volumes import Volume, read_volume, write_volume

MODEL = ("--experiment", "0.1", "--model", "unet")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, an experiment and a run whose weights were drawn."""
    root = tmp_path_factory.mktemp("infer")
    os.environ["ITKIT_DATA"] = str(root)
    make_trained(root)
    yield root
    del os.environ["ITKIT_DATA"]


@pytest.fixture
def infer(tool, world, monkeypatch):
    """Run itk_infer on this machine's CPU with the world's model, or with the words given instead."""
    monkeypatch.setenv("mm_configdir", str(world / "configs"))
    monkeypatch.setenv("mm_workdir", str(world / "work"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(source, destination, *words, model=MODEL):
        return tool("itk_infer", "-i", source, "-o", destination, *model, "--gpus", 0, *words)

    return run


@pytest.fixture(scope="module")
def predictor(world):
    from itkit.experiment.names import Roots

    return Predictor.from_experiment(
        "0.1", roots=Roots(world / "configs", world / "work", world / "test"), device="cpu"
    )


def table(folder: Path) -> list[dict]:
    with open(folder / "confidence.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_dataset_gives_what_the_predictor_gives_and_a_table(infer, world, predictor, tmp_path):
    code, out, err = infer(world / "Tiny", tmp_path / "out")
    assert code == 0, err
    cases = sorted(path.stem for path in (world / "Tiny" / "image").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mha")) == [f"{case}.mha" for case in cases]
    for case in cases[:3]:
        image = world / "Tiny" / "image" / f"{case}.mha"
        expected, found = predictor(image), read_volume(tmp_path / "out" / f"{case}.mha")
        assert np.array_equal(found.array, expected.labels.array)
        assert found.geometry == read_volume(image).geometry
        assert found.array.dtype == np.uint8
        rows = [row for row in table(tmp_path / "out") if row["case"] == case]
        assert [row["class"] for row in rows] == ["foreground", *CLASSES]
        assert [float(row["confidence"]) for row in rows[1:]] == pytest.approx(expected.confidence.classes, abs=1e-6)
        assert [int(row["voxels"]) for row in rows[1:]] == [int((found.array == k).sum()) for k in range(3)]
        assert float(rows[2]["volume_ml"]) == pytest.approx((found.array == 1).sum() * 2 / 1000)
    recipe = Recipe.from_json((tmp_path / "out" / "recipe.json").read_text())
    assert recipe == predictor.recipe
    assert "time " in out
    assert "network" in out
    assert err.splitlines()[-1] == f"itk_infer: 8 done, 0 up to date, 0 failed; {tmp_path / 'out'}"


def test_all_outputs_and_every_place_they_can_be_asked_for(infer, world, predictor, tmp_path):
    zarr = pytest.importorskip("zarr")
    image = read_volume(world / "Tiny" / "image" / "case_00.mha")
    write_volume(tmp_path / "in" / "sub" / "a.nii.gz", reorient(image, "RAS"))
    code, _, err = infer(
        tmp_path / "in", tmp_path / "out", "-r", "--save-conf", "--save-logits", "--format", "nrrd", "--post", "largest@small",
    )  # fmt: skip
    assert code == 0, err
    turned = read_volume(tmp_path / "in" / "sub" / "a.nii.gz")
    expected = predictor.changed(post=["largest@small"])(turned, confidence_map=True, probabilities=True)
    found = read_volume(tmp_path / "out" / "sub" / "a.nrrd")
    assert np.array_equal(found.array, expected.labels.array)
    assert found.spacing_zyx == pytest.approx(turned.spacing_zyx)
    sure = read_volume(tmp_path / "out" / "confidence" / "sub" / "a.nrrd")
    np.testing.assert_allclose(sure.array, expected.confidence_map.array, atol=1e-6)
    logits = zarr.open_array(tmp_path / "out" / "logits" / "sub" / "a.zarr", mode="r")
    assert np.array_equal(logits[:].argmax(0), expected.probabilities.argmax(0))
    again = infer(
        tmp_path / "in", tmp_path / "out", "-r", "--save-conf", "--save-logits", "--format", "nrrd", "--post", "largest@small",
    )  # fmt: skip
    assert "0 done, 1 up to date" in again[2]
    stale = infer(tmp_path / "in", tmp_path / "out", "-r", "--save-conf", "--format", "nrrd", "--json")
    why = json.loads(stale[1])["why"]["sub/a"]
    assert "save_logits was True, is False" in why
    assert "post was ['largest@small'], is None" in why
    assert not (tmp_path / "out" / "logits" / "sub" / "a.zarr" / "zarr.json").exists(), (
        "what is no result any more goes"
    )


def test_bad_cases_never_stop_the_others(infer, world, tmp_path):
    image = read_volume(world / "Tiny" / "image" / "case_00.mha")
    source = tmp_path / "in"
    write_volume(source / "good.mha", image)
    write_volume(source / "two.mha", Volume(np.stack([image.array] * 2)))
    broken = image.array.copy()
    broken[0, 0, 0] = np.nan
    write_volume(source / "nan.mha", Volume(broken))
    (source / "cut.mha").write_bytes((source / "good.mha").read_bytes()[:-9])
    write_volume(source / "small.mha", Volume(image.array[:4, :4, :4]))
    (source / "slice.dcm").write_bytes(b"")
    code, _, err = infer(source, tmp_path / "out")
    assert code == 1
    assert f"  FAILED  two: {source / 'two.mha'}: has 2 channels, the model takes 1." in err
    assert f"  FAILED  nan: {source / 'nan.mha'}: 1 voxels are NaN or infinite" in err
    assert "  FAILED  cut: " in err
    assert "2 done, 0 up to date, 3 failed" in err
    assert "1 DICOM files lie beside the volumes and are not predicted; give their folder alone." in err
    assert {row["case"] for row in table(tmp_path / "out")} == {"good", "small"}
    broken[0, 0, 0] = 0
    write_volume(source / "nan.mha", Volume(broken))
    code, _, err = infer(source, tmp_path / "out")
    assert "1 done, 2 up to date, 2 failed" in err


def test_what_is_wrong_with_the_whole_run_is_said_before_any_case(infer, world, tmp_path):
    source = world / "Tiny" / "image"
    checkpoint = next((world / "work" / "0.1.Tiny" / "unet" / "checkpoints").iterdir())
    config = world / "configs" / "0.1.Tiny" / "unet.py"
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(checkpoint.read_bytes()[:-100])
    for model, words, code, message in [
        ((), (), 2, "which model? Give one of --experiment EXP"),
        (("--experiment", "0.1", "--onnx", "x"), (), 2, "found --experiment and --onnx"),
        (("-cfg", config), (), 2, "--config and --checkpoint belong together"),
        (("--backend", "onnx", *MODEL), (), 2, "--backend onnx takes its model from --onnx FILE; found --experiment"),
        (("--experiment", "0.9"), (), 2, 'no experiment matches "0.9"'),
        (("--experiment", "0.1", "--model", "unett"), (), 2, 'no model "unett"; found unet. Did you mean unet?'),
        (("-cfg", config, "-ckpt", damaged), (), 1, "damaged.pth: is damaged"),
        (MODEL, ("--wl", 40), 2, "no step Window whose level and width could be changed"),
        (MODEL, ("--post", "largst"), 2, "there is no step 'largst'. Did you mean largest?"),
        (MODEL, ("--format", "dicom-seg"), 2, "the source holds volumes"),
        (MODEL, ("--orientation", "LLS"), 2, "orientation 'LLS' is none of the 48"),
        (MODEL, ("--patch-stride", 2, 2, 2), 2, "has no effect without patch_size_zyx"),
    ]:  # fmt: skip
        got, _, err = infer(source, tmp_path / "out", *words, model=model)
        assert (got, message in err) == (code, True), (model, words, err)
    assert infer(source, source / "out")[0] == 2
    assert not list((tmp_path / "out").glob("*.mha"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "confidence.csv").write_text("mine")
    got, _, err = infer(source, tmp_path / "foreign")
    assert (got, "was not written by this tool; choose another destination" in err) == (2, True)


def test_config_and_checkpoints_and_an_ensemble(infer, world, tmp_path):
    checkpoint = next((world / "work" / "0.1.Tiny" / "unet" / "checkpoints").iterdir())
    config = world / "configs" / "0.1.Tiny" / "unet.py"
    source = world / "Tiny" / "image" / "case_00.mha"
    assert infer(source, tmp_path / "one", model=("-cfg", config, "-ckpt", checkpoint))[0] == 0
    assert infer(source, tmp_path / "exp")[0] == 0
    code, _, err = infer(source, tmp_path / "both", "--tta", model=("-cfg", config, "-ckpt", checkpoint, checkpoint))
    assert code == 0, err
    first = read_volume(tmp_path / "one" / "case_00.mha").array
    assert np.array_equal(first, read_volume(tmp_path / "exp" / "case_00.mha").array)
    recipe = Recipe.from_json((tmp_path / "both" / "recipe.json").read_text())
    assert len(recipe.provenance["ensemble"]) == 2
    assert recipe.flip_axes == (0, 1, 2)


def test_a_dry_run_loads_nothing(infer, world, tmp_path):
    code, out, _ = infer(world / "Tiny", tmp_path / "dry", "--dry-run")
    assert (code, out.count("to do   case_0")) == (0, 8)
    assert not (tmp_path / "dry").exists()


@pytest.mark.slow
def test_several_processes_give_the_same(infer, world, tmp_path):
    source = tmp_path / "in"
    for case in ("case_00", "case_01", "case_02"):
        write_volume(source / f"{case}.mha", read_volume(world / "Tiny" / "image" / f"{case}.mha"))
    assert infer(source, tmp_path / "one")[0] == 0
    code, _, err = infer(source, tmp_path / "two", "--num-proc", 2)
    assert code == 0, err
    for case in source.iterdir():
        assert (tmp_path / "two" / case.name).read_bytes() == (tmp_path / "one" / case.name).read_bytes()
    assert table(tmp_path / "two") == table(tmp_path / "one")


def test_dicom_in_and_out(infer, world, predictor, tmp_path):
    pytest.importorskip("pydicom")
    array = (np.random.default_rng(0).normal(size=(8, 12, 12)) * 60 + 200).astype(np.int16)
    write_series(tmp_path / "dicom" / "a", array)
    write_series(tmp_path / "dicom" / "b", array[:, ::-1].copy())
    code, _, err = infer(tmp_path / "dicom", tmp_path / "out")
    assert code == 0, err
    labels = sorted((tmp_path / "out").glob("*.mha"))
    assert len(labels) == 2
    from itkit.io.dicom import find_series, read_series

    volumes = [read_series(series) for series in find_series(tmp_path / "dicom")]
    expected = [predictor(volume).labels for volume in volumes]
    found = [read_volume(path) for path in labels]
    assert {v.array.tobytes() for v in found} == {v.array.tobytes() for v in expected}
    assert found[0].geometry in [v.geometry for v in volumes]
    pytest.importorskip("highdicom")
    code, _, err = infer(tmp_path / "dicom" / "a", tmp_path / "seg", "--format", "dicom-seg")
    assert code == 0, err
    from itkit.io.dicom_seg import read_dicom_seg

    (file,) = (tmp_path / "seg").glob("*.dcm")
    series = find_series(tmp_path / "dicom" / "a")[0]
    volume, names = read_dicom_seg(file, series)
    assert names == CLASSES
    assert np.array_equal(volume.array, predictor(read_series(series)).labels.array)
    one = infer(next((tmp_path / "dicom" / "a").iterdir()), tmp_path / "x")
    assert "is one file of a DICOM series; give its folder" in one[2]
    (tmp_path / "empty").mkdir()
    assert "and no DICOM series either" in infer(tmp_path / "empty", tmp_path / "y")[2]


def test_each_worker_takes_the_next_gpu(monkeypatch):
    import multiprocessing
    from types import SimpleNamespace

    from itkit.deploy.infer import Infer

    words = {"source": "a", "destination": "b", "experiment": "0.1"}
    assert Infer(**words).processes == 1
    assert Infer(**words)._device() is None
    assert Infer(**words, gpus=0)._device() == "cpu"
    two = Infer(**words, gpus=2)
    assert two.processes == 2
    for name, device in (("ForkServerProcess-1", "cuda:0"), ("ForkServerProcess-2", "cuda:1"), ("ForkServerProcess-5", "cuda:0"),
                         ("MainProcess", "cuda:0")):  # fmt: skip
        monkeypatch.setattr(multiprocessing, "current_process", lambda name=name: SimpleNamespace(name=name))
        assert two._device() == device


KILLED = """
import sys
from itkit.cli.main import run_tool
sys.exit(run_tool("itk_infer"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed(infer, world, tmp_path, sign):
    source, out = tmp_path / "in", tmp_path / "out"
    image = read_volume(world / "Tiny" / "image" / "case_00.mha")
    large = Volume(np.tile(image.array, (4, 4, 4)))
    for number in range(6):
        write_volume(source / f"c{number}.mha", large, compress=False)
    how = ("--patch-size", 8, 12, 12, "--save-conf")
    words = [str(word) for word in ("-i", source, "-o", out, *MODEL, "--gpus", 0, *how)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("*.mha")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sign)
    said = process.communicate(timeout=30)[1]
    if sign == signal.SIGTERM:
        assert process.returncode == 143, said
        assert not (out / ".itkit-staging").exists()
    done = {path.name for path in out.glob("*.mha")}
    for name in done:
        assert (read_volume(out / name).size_zyx, (out / "confidence" / name).exists()) == (large.size_zyx, True)
    code, _, err = infer(source, out, *how)
    assert code == 0, err
    assert len(list(out.glob("*.mha"))) == len(list((out / "confidence").glob("*.mha"))) == 6
    assert len({path.read_bytes() for path in out.glob("*.mha")}) == 1
    assert not (out / ".itkit-staging").exists()


# ------------------------------------------------------------------- tune-post


@pytest.fixture
def tune(tool, world, monkeypatch):
    monkeypatch.setenv("mm_configdir", str(world / "configs"))
    monkeypatch.setenv("mm_workdir", str(world / "work"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield lambda out, *words: tool("itk_infer", "tune-post", "-o", out, *MODEL, "--gpus", 0, *words)
    (world / "work" / "0.1.Tiny" / "unet" / "post.json").unlink(missing_ok=True)


def test_tune_post_takes_what_helps_and_stores_it_with_the_model(tune, infer, world, tmp_path, monkeypatch):
    import itkit.deploy.tuning as tuning

    run_dir = world / "work" / "0.1.Tiny" / "unet"
    code, out, err = tune(tmp_path / "a", "--candidates", "small=100", "--no-store")
    assert code == 0, err
    document = json.loads((tmp_path / "a" / "post.json").read_text())
    assert [(row["step"], row["class"], row["cases"]) for row in document["tried"]] == [
        ("small=100", "small", 2), ("small=100", "large", 2),
    ]  # fmt: skip
    assert not (run_dir / "post.json").exists()
    # Truths beside which a small piece of each prediction is wrong: removing it must be taken.
    read = tuning._Case.read.__func__

    def with_a_speck(cls, task):
        case = read(cls, task)
        truth = np.zeros_like(case.truth)
        truth[1:5, 1:5, 1:5] = 1
        prediction = truth.copy()
        prediction[6, 9, 9] = 1
        return cls(truth, prediction, case.spacing_zyx)

    monkeypatch.setattr(tuning._Case, "read", classmethod(with_a_speck))
    code, out, err = tune(tmp_path / "a", "--candidates", "holes", "small=5")
    assert code == 0, err
    assert "0 done, 2 up to date" in err, "the predictions are not made again"
    assert "taken" in out
    document = json.loads((run_dir / "post.json").read_text())
    assert document["steps"] == [{"type": "small", "min_volume_mm3": 5.0, "classes": [1]}]
    assert document["words"] == ["small=5@small"]
    taken = next(row for row in document["tried"] if row["taken"])
    assert (taken["better"], taken["worse"]) == (2, 0)
    assert taken["mean"] == pytest.approx(1 - 2 * 64 / 129)
    infer(world / "Tiny" / "image" / "case_00.mha", tmp_path / "b")
    used = Recipe.from_json((tmp_path / "b" / "recipe.json").read_text()).postprocessing
    assert used == tuple(document["steps"])


def test_the_rule_by_hand():
    from itkit.deploy.tuning import judge_pairs, merged

    assert not judge_pairs([(0.5, 0.5)] * 8)["taken"]
    assert judge_pairs([(0.5, 0.6)] * 8)["taken"]
    assert not judge_pairs([(0.5, 0.6)])["taken"], "one case decides nothing"
    assert not judge_pairs([(0.5, 0.6)] * 3 + [(0.5, 0.3)] * 3)["taken"]
    rare = judge_pairs([(0.5, 0.9), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)])
    assert (rare["mean"] > 0, rare["taken"]) == (True, False), "the interval reaches zero"
    steps = [
        {"type": "largest", "classes": [1]},
        {"type": "largest", "classes": [3]},
        {"type": "holes", "classes": [1]},
    ]
    assert merged(steps) == [{"type": "largest", "classes": [1, 3]}, {"type": "holes", "classes": [1]}]


def test_candidates_that_cannot_be_tried(tune, tmp_path):
    code, _, err = tune(tmp_path / "a", "--candidates", "box=1:2,:,:")
    assert (code, "candidates are largest, small, holes, without classes" in err) == (2, True)
