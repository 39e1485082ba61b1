"""`itk_convert` to other layouts and back: the way there and back is the identity, and what does not fit is named."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tool_data import ledger, make_label, make_volume

from itkit.cli.main import run_tool
from itkit.errors import DataError, UsageError
from itkit.io.volumes import Volume, read_volume, write_volume
from itkit.process.convert import conversion
from itkit.process.convert.conversion import CONVERSION_NAME
from itkit.process.convert.description import read_described
from itkit.process.convert.monai import MONAI
from itkit.process.convert.nnunet import NnUNet
from itkit.process.convert.torchio import TorchIO
from itkit.process.splits import PARTS

LAYOUTS = ("msd", "nnunet", "monai", "torchio")
CLASSES = ["background", "liver", "tumour", "cyst"]
META = {"name": "Toy", "classes": CLASSES, "modality": ["T1", "T2"], "licence": "MIT", "ward": {"beds": 3}}
NAMES = ("a", "b_0000", "größe 7", "site/a", "e")
SPLIT = {"train": ["größe 7", "a"], "val": ["b_0000"], "test": ["site/a"]}


def place(tmp_path, layout, name="Toy"):
    """A folder that the layout accepts."""
    return tmp_path / layout / f"Dataset007_{name}"


def write_case(root, name, *, seed=0, channels=2, dtype="float32", label_dtype="uint8", values=(0, 1, 2, 3), **kwargs):
    image = make_volume(seed, dtype=dtype, size=(channels, 4, 5, 6) if channels else (4, 5, 6), **kwargs)
    write_volume(root / "image" / f"{name}.mha", image)
    if values is not None:
        write_volume(root / "label" / f"{name}.nrrd", make_label(values, seed, label_dtype, size=(4, 5, 6), **kwargs))


@pytest.fixture
def source(tmp_path):
    """Five cases of two channels, divided, one (e) in no part and unlabelled; names with all that makes trouble."""
    root = tmp_path / "raw"
    for seed, name in enumerate(NAMES):
        write_case(root, name, seed=seed, values=None if name == "e" else (0, 1, 2, 3))
    (root / "meta.json").write_text(json.dumps(META))
    (root / "split.json").write_text(json.dumps(SPLIT))
    return root


def volumes_of(root):
    """Role and case id -> volume, whatever the format."""
    found = {}
    for path in (*root.rglob("*.mha"), *root.rglob("*.nrrd"), *root.rglob("*.nii.gz")):
        found[path.relative_to(root).as_posix().removesuffix(".nii.gz").removesuffix(path.suffix)] = read_volume(path)
    return found


def require_same_dataset(before, after):
    ours, theirs = volumes_of(before), volumes_of(after)
    assert ours.keys() == theirs.keys()
    for name, volume in ours.items():
        assert theirs[name].array.dtype == volume.array.dtype
        np.testing.assert_array_equal(theirs[name].array, volume.array)
        np.testing.assert_allclose(theirs[name].spacing_zyx, volume.spacing_zyx, rtol=1e-6)
        np.testing.assert_allclose(theirs[name].origin_xyz, volume.origin_xyz, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(theirs[name].direction_xyz, volume.direction_xyz, rtol=0, atol=1e-6)
    for name in ("meta.json", "split.json"):
        assert (before / name).exists() == (after / name).exists()
        if (before / name).exists():
            assert json.loads((after / name).read_text()) == json.loads((before / name).read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_the_identity(tool, tmp_path, source, layout):
    there = place(tmp_path, layout)
    code, out, said = tool("itk_convert", layout, source, there)
    assert code == 0
    assert "5 done" in said
    assert "note    e: has no label and is not trained on" in said
    assert "5 cases, 4 with a label" in out
    code, _, said = tool("itk_convert", layout, "--back", there, tmp_path / "back")
    assert (code, "5 done" in said) == (0, True)
    require_same_dataset(source, tmp_path / "back")
    assert not (tmp_path / "back" / "dataset.json").exists()


@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(LAYOUTS),
    cases=st.dictionaries(
        st.from_regex(r"[A-Za-z0-9é-][A-Za-z0-9é _.,'\"-]{0,11}", fullmatch=True).filter(
            lambda name: not name.endswith((".mha", ".nrrd", ".nii", ".mhd"))
        ),
        st.tuples(st.sampled_from((*PARTS, None)), st.booleans(), st.integers(0, 9)), min_size=1, max_size=4,
    ),
    channels=st.sampled_from((None, 2, 3)),
    dtype=st.sampled_from(("int16", "uint16", "float32", "float64")),
    described=st.booleans(),
    divided=st.booleans(),
)  # fmt: skip
def test_law_names_splits_and_types_come_back(tmp_path, layout, cases, channels, dtype, described, divided):
    root = tmp_path / "law"
    shutil.rmtree(root, ignore_errors=True)
    split = {part: [] for part in PARTS}
    for number, (name, (part, labelled, seed)) in enumerate(cases.items()):
        labelled = labelled or (divided and part in ("train", "val")) or number == 0
        part = "train" if number == 0 else part
        write_case(
            root / "raw", name, seed=seed, channels=channels, dtype=dtype, values=(0, 1, 2) if labelled else None
        )
        if part:
            split[part].append(name)
    if described:
        (root / "raw/meta.json").write_text(json.dumps({"classes": CLASSES, "modality": ["m"] * (channels or 1)}))
    if divided:
        (root / "raw/split.json").write_text(json.dumps(split))
    there = root / "Dataset001_X"
    assert run_tool("itk_convert", [layout, str(root / "raw"), str(there)]) == 0
    assert run_tool("itk_convert", [layout, str(there), str(root / "back"), "--back"]) == 0
    if not described:  # the layout had to name the classes
        (root / "back/meta.json").unlink(missing_ok=True)
    require_same_dataset(root / "raw", root / "back")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_documents_do_not_depend_on_workers_or_reruns(tool, tmp_path, source, layout):
    """One bad case in the first run, repaired for the second, against one run over good data with two workers."""
    once, twice = place(tmp_path, layout), place(tmp_path, layout, "Again")
    assert tool("itk_convert", layout, source, once, "--workers", 2)[0] == 0
    good = (source / "image/a.mha").read_bytes()
    (source / "image/a.mha").write_bytes(good[:200])
    code, _, said = tool("itk_convert", layout, source, twice)
    assert (code, "4 done, 0 up to date, 1 failed" in said) == (1, True)
    document = "subjects.csv" if layout == "torchio" else "dataset.json"
    assert (twice / document).read_text() != (once / document).read_text()
    (source / "image/a.mha").write_bytes(good)
    assert "1 done, 4 up to date, 0 failed" in tool("itk_convert", layout, source, twice)[2]
    assert "0 done, 5 up to date, 0 failed" in tool("itk_convert", layout, source, twice)[2]
    for path in once.rglob("*"):
        if path.is_file() and path.name not in ("ledger.jsonl", "series_meta.json"):
            assert (twice / path.relative_to(once)).read_bytes() == path.read_bytes()
    shutil.rmtree(twice / ".itkit-staging", ignore_errors=True)
    assert {p.relative_to(once) for p in once.rglob("*")} == {p.relative_to(twice) for p in twice.rglob("*")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_faults_of_cases_are_named_and_the_others_done(tool, tmp_path, layout):
    source = tmp_path / "raw"
    for name in ("good", "grid", "channels", "twice", "x__y", "x/y", "fraction", "unlabelled"):
        write_case(source, name, channels=None)
    (source / "label/unlabelled.nrrd").unlink()
    write_volume(source / "label/grid.nrrd", make_label(size=(4, 5, 6), spacing=(3.0, 2.0, 1.5)))
    write_volume(source / "label/channels.nrrd", make_volume(size=(2, 4, 5, 6)))
    write_volume(source / "label/fraction.nrrd", Volume(np.full((4, 5, 6), 0.5, np.float32), *_where()))
    write_volume(source / "image/twice.nii.gz", make_volume())
    write_volume(source / "label/orphan.mha", make_volume())
    (source / "split.json").write_text(json.dumps({"train": ["good", "unlabelled", "goood"], "test": ["grid"]}))
    code, _, said = tool("itk_convert", layout, source, place(tmp_path, layout))
    assert code == 1
    assert "1 done, 0 up to date, 9 failed" in said
    for case, reason in {
        "grid": "grid.nrrd: label has spacing (3, 2, 1.5), image has (3, 2, 1) (mm, (Z, Y, X)). Remove the pair",
        "channels": "channels.nrrd: the label has 2 channels; a label map has one value a voxel.",
        "twice": "'twice' is there in several formats: twice.mha, twice.nii.gz. Keep one.",
        "x__y": "the cases x/y, x__y would both be called x__y there. Rename one.",
        "x/y": "the cases x/y, x__y would both be called x__y there. Rename one.",
        "fraction": "fraction.nrrd: the label map holds 0.5, which is no label",
        "orphan": "orphan.mha: a label without an image.",
        "unlabelled": "the case is in train and has no label. Add it, or take the case out of split.json.",
        "goood": "split.json: train names this case, and it is not there. Did you mean good?",
    }.items():
        assert any(line.startswith(f"  FAILED  {case}: ") and reason in line for line in said.splitlines()), (
            case,
            said,
        )
    there = place(tmp_path, layout)
    assert json.loads((there / "split.json").read_text()) == {"train": ["good"], "val": [], "test": []}


def _where():
    volume = make_volume()
    return volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz


@pytest.mark.parametrize("layout", LAYOUTS)
def test_documents_that_are_not_ours_stay(tool, tmp_path, source, layout):
    there = place(tmp_path, layout)
    document = there / ("subjects.csv" if layout == "torchio" else "dataset.json")
    document.parent.mkdir(parents=True)
    document.write_text("mine")
    for _ in range(2):
        code, _, said = tool("itk_convert", layout, source, there, "--overwrite")
        assert (code, document.read_text()) == (1, "mine")
        assert f"{document}: exists and is not, or no longer, as `itk_convert {layout}` wrote it. Move it away" in said
        assert [path.name for path in there.iterdir()] == [document.name]
    document.unlink()
    assert tool("itk_convert", layout, source, there)[0] == 0
    document.write_text(document.read_text() + " ")
    assert "no longer" in tool("itk_convert", layout, source, there)[2]
    other = "msd" if layout != "msd" else "monai"
    document.unlink()
    assert f"holds what `itk_convert {layout}` has written" in tool("itk_convert", other, source, there)[2]
    (there / CONVERSION_NAME).write_text("{}")
    assert f"{CONVERSION_NAME}: cannot be read" in tool("itk_convert", layout, source, there)[2]
    (there / CONVERSION_NAME).write_text('{"tool": 1, "documents": {}, "names": {}}')
    assert f"{CONVERSION_NAME}: is not what itk_convert writes" in tool("itk_convert", layout, source, there)[2]


@pytest.mark.parametrize("dies_at", ["dataset.json", "meta.json", "split.json"])
def test_documents_are_ours_also_after_a_kill_between_them(tool, tmp_path, source, monkeypatch, dies_at):
    there = place(tmp_path, "msd")
    assert tool("itk_convert", "msd", source, there)[0] == 0
    (source / "meta.json").write_text(json.dumps(META | {"name": "Other"}))
    (source / "split.json").write_text(json.dumps(SPLIT | {"train": ["a", "größe 7"]}))

    def die(path, text, *, original=conversion.write_text):
        original(path, text)
        if path.name == dies_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_text", die)
        assert tool("itk_convert", "msd", source, there)[0] == 130
    assert tool("itk_convert", "msd", source, there)[0] == 0
    assert json.loads((there / "dataset.json").read_text())["name"] == "Other"
    assert tool("itk_convert", "msd", "--back", there, tmp_path / "back")[0] == 0
    require_same_dataset(source, tmp_path / "back")


@pytest.mark.parametrize("layout", ["msd", "nnunet", "monai"])
def test_a_case_that_leaves_training_is_not_trained_on(tool, tmp_path, source, layout):
    there = place(tmp_path, layout)
    assert tool("itk_convert", layout, source, there)[0] == 0
    (source / "split.json").write_text(json.dumps({"train": ["a"], "val": ["b_0000"], "test": ["site/a", "größe 7"]}))
    code, _, said = tool("itk_convert", layout, source, there)
    assert (code, "1 done, 4 up to date" in said) == (0, True)
    assert not [path.name for path in (there / "imagesTr").iterdir() if "7" in path.name]
    assert [path.name for path in (there / "imagesTs").iterdir() if "7" in path.name]
    assert not (there / "labelsTr/größe 7.nii.gz").exists()
    assert tool("itk_convert", layout, "--back", there, tmp_path / "back")[0] == 0
    require_same_dataset(source, tmp_path / "back")


def test_what_the_layouts_look_like(tool, tmp_path, source):
    def files(root):
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*.nii.gz"))

    there = place(tmp_path, "nnunet")
    assert tool("itk_convert", "nnunet", source, there)[0] == 0
    assert files(there) == [
        *(f"imagesTr/{name}_{channel}.nii.gz" for name in ("a", "b_0000", "größe 7") for channel in ("0000", "0001")),
        *(f"imagesTs/{name}_{channel}.nii.gz" for name in ("e", "site__a") for channel in ("0000", "0001")),
        *(f"labelsTr/{name}.nii.gz" for name in ("a", "b_0000", "größe 7")), "labelsTs/site__a.nii.gz",
    ]  # fmt: skip
    assert json.loads((there / "dataset.json").read_bytes().decode("ascii")) == {
        "channel_names": {"0": "T1", "1": "T2"}, "labels": {name: value for value, name in enumerate(CLASSES)},
        "numTraining": 3, "file_ending": ".nii.gz", "name": "Toy", "licence": "MIT",
    }  # fmt: skip
    assert json.loads((there / "splits_final.json").read_bytes().decode("ascii")) == [
        {"train": ["a", "größe 7"], "val": ["b_0000"]}
    ]
    assert read_volume(there / "imagesTr/a_0001.nii.gz").array.shape == (4, 5, 6)

    for layout in ("msd", "monai"):
        there = place(tmp_path, layout)
        assert tool("itk_convert", layout, source, there)[0] == 0
        assert "imagesTr/a.nii.gz" in files(there)
        assert "labelsTs/site__a.nii.gz" in files(there)
    pairs = {name: (f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz") for name in ("a", "b_0000", "größe 7")}
    msd = json.loads((place(tmp_path, "msd") / "dataset.json").read_text())
    assert msd == {
        "name": "Toy", "description": "", "reference": "", "licence": "MIT", "release": "", "tensorImageSize": "4D",
        "modality": {"0": "T1", "1": "T2"}, "labels": {str(value): name for value, name in enumerate(CLASSES)},
        "numTraining": 3, "numTest": 2, "training": [{"image": f"./{i}", "label": f"./{l}"} for i, l in pairs.values()],
        "test": ["./imagesTs/e.nii.gz", "./imagesTs/site__a.nii.gz"],
    }  # fmt: skip
    monai = json.loads((place(tmp_path, "monai") / "dataset.json").read_bytes().decode("ascii"))
    items = {name: {"image": image, "label": label} for name, (image, label) in pairs.items()}
    assert (monai["training"], monai["validation"]) == ([items["a"], items["größe 7"]], [items["b_0000"]])
    assert monai["test"] == [{"image": "imagesTs/site__a.nii.gz", "label": "labelsTs/site__a.nii.gz"}]
    assert monai["unused"] == [{"image": "imagesTs/e.nii.gz"}]

    there = place(tmp_path, "torchio")
    assert tool("itk_convert", "torchio", source, there)[0] == 0
    with open(there / "subjects.csv", encoding="utf-8") as stream:
        rows = {row["subject"]: row for row in csv.DictReader(stream)}
    assert rows["site__a"] == {
        "subject": "site__a", "split": "test", "image": "image/site__a.nii.gz", "label": "label/site__a.nii.gz",
    }  # fmt: skip
    assert b"\r" not in (there / "subjects.csv").read_bytes()
    assert rows["e"] == {"subject": "e", "split": "", "image": "image/e.nii.gz", "label": ""}


def test_channels_lie_on_the_fourth_axis(tool, tmp_path, source):
    import nibabel

    for layout, path in (("msd", "imagesTr/a.nii.gz"), ("torchio", "image/a.nii.gz")):
        assert tool("itk_convert", layout, source, place(tmp_path, layout))[0] == 0
        theirs = np.asarray(nibabel.load(place(tmp_path, layout) / path).dataobj)
        np.testing.assert_array_equal(
            theirs, np.moveaxis(read_volume(source / "image/a.mha").array, 0, -1).transpose(2, 1, 0, 3)
        )


# What each layout asks for


def test_nnunet_wants_its_folder_called_so(tool, tmp_path, source):
    code, _, said = tool("itk_convert", "nnunet", source, tmp_path / "out")
    assert code == 2
    assert (
        f"out: nnU-Net finds a dataset by the name of its folder, a number and a name: give e.g. {tmp_path}/out/Dat"
        in said
    )
    assert not (tmp_path / "out").exists()


def test_nnunet_refuses_labels_without_a_class(tool, tmp_path):
    source = tmp_path / "raw"
    write_case(source, "good", channels=None)
    write_case(source, "seven", channels=None, values=(0, 7))
    write_case(source, "negative", channels=None, values=(-1, 0, 300), label_dtype="int16")
    (source / "meta.json").write_text(json.dumps({"classes": CLASSES}))
    code, out, said = tool("itk_convert", "nnunet", source, place(tmp_path, "nnunet"))
    assert code == 1
    assert "1 done" in said
    assert (
        "seven.nrrd: label values 7 have no class name (the dataset has 4 classes), and nnU-Net refuses them." in said
    )
    assert "negative.nrrd: label values -1, 300 have no class name" in said
    assert "modality: unknown; name it with --modality" in out
    document = json.loads((place(tmp_path, "nnunet") / "dataset.json").read_text())
    assert (document["numTraining"], document["channel_names"], document["name"]) == (1, {"0": "channel_0"}, "Toy")
    code, _, said = tool("itk_convert", "msd", source, place(tmp_path, "msd"))
    assert code == 0
    assert "note    seven: seven.nrrd: label values 7 have no class name" in said


def test_nnunet_names_gaps_in_labels_that_nobody_named(tool, tmp_path):
    source = tmp_path / "raw"
    write_case(source, "a", channels=None, values=(0, 1, 4))
    write_case(source, "b", channels=None, values=(0, 2))
    code, _, said = tool("itk_convert", "nnunet", source, place(tmp_path, "nnunet"))
    assert code == 1
    assert "the labels hold the values 0, 1, 2, 4, without 3; nnU-Net needs 0, 1, 2, ...." in said
    assert not (place(tmp_path, "nnunet") / "dataset.json").exists()
    names = ["background", "p", "q", "r", "s"]
    code, out, said = tool("itk_convert", "nnunet", source, place(tmp_path, "nnunet"), "--labels", *names)
    assert code == 0
    assert "classes that no case has: r" in out
    assert json.loads((place(tmp_path, "nnunet") / "meta.json").read_text()) == {"classes": names}


@pytest.mark.parametrize("values,words", [
    (["background", "a", "a", "b"], "several classes are called 'a'; nnU-Net tells classes by name"),
    (["background", "a", "background", "b"], "several classes are called 'background'"),
])  # fmt: skip
def test_nnunet_tells_classes_by_name(tool, tmp_path, source, values, words):
    assert words in tool("itk_convert", "nnunet", source, place(tmp_path, "nnunet"), "--labels", *values)[2]


def test_nnunet_calls_label_0_background_and_the_name_comes_back(tool, tmp_path, source):
    (source / "meta.json").write_text(json.dumps(META | {"classes": ["air", *CLASSES[1:]]}))
    there = place(tmp_path, "nnunet")
    assert tool("itk_convert", "nnunet", source, there)[0] == 0
    assert list(json.loads((there / "dataset.json").read_text())["labels"]) == CLASSES
    assert tool("itk_convert", "nnunet", "--back", there, tmp_path / "back")[0] == 0
    require_same_dataset(source, tmp_path / "back")


def test_nnunet_needs_one_number_of_channels(tool, tmp_path, source):
    write_case(source, "f", channels=3)
    code, _, said = tool("itk_convert", "nnunet", source, place(tmp_path, "nnunet"))
    assert code == 1
    assert "f.mha: has 3 channel(s), the dataset names 2; nnU-Net needs the same in every case." in said
    code, _, said = tool("itk_convert", "msd", source, place(tmp_path, "msd"))
    assert (code, "note    f: f.mha: has 3 channel(s), the dataset names 2" in said) == (0, True)
    (source / "meta.json").unlink()
    code, _, said = tool("itk_convert", "nnunet", source, place(tmp_path, "nnunet", "Other"))
    assert code == 1
    assert "the cases have 2, 3 channels, and nnU-Net needs the same in all; the odd ones are f." in said


def test_nnunet_needs_something_to_train_on(tool, tmp_path):
    write_case(tmp_path / "raw", "a", values=None)
    said = tool("itk_convert", "nnunet", tmp_path / "raw", place(tmp_path, "nnunet"))[2]
    assert "nnU-Net has nothing to train on" in said


def test_nnunet_keeps_what_only_it_knows(tool, tmp_path, source):
    there = place(tmp_path, "nnunet")
    assert tool("itk_convert", "nnunet", source, there)[0] == 0
    foreign = tmp_path / "Dataset008_Regions"
    shutil.copytree(there, foreign)
    for name in ("meta.json", "split.json", CONVERSION_NAME, "splits_final.json"):
        (foreign / name).unlink()
    document = json.loads((there / "dataset.json").read_text()) | {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2]}, "regions_class_order": [1, 2],
        "overwrite_image_reader_writer": "SimpleITKIO",
    }  # fmt: skip
    (foreign / "dataset.json").write_text(json.dumps(document))
    assert tool("itk_convert", "nnunet", "--back", foreign, tmp_path / "back")[0] == 0
    meta = json.loads((tmp_path / "back/meta.json").read_text())
    assert meta["classes"] == ["background", "class_1", "class_2", "class_3"]
    assert json.loads((tmp_path / "back/split.json").read_text()) == {
        "train": ["a", "b_0000", "größe 7"], "val": [], "test": ["e", "site__a"],
    }  # fmt: skip
    again = tmp_path / "Dataset009_Again"
    assert tool("itk_convert", "nnunet", tmp_path / "back", again)[0] == 0
    assert json.loads((again / "dataset.json").read_text()) == document


def test_nnunet_listed_files_and_folds(tool, tmp_path, source):
    there = place(tmp_path, "nnunet")
    assert tool("itk_convert", "nnunet", source, there)[0] == 0
    for name in ("split.json", "imagesTs", "labelsTs"):
        shutil.rmtree(there / name) if (there / name).is_dir() else (there / name).unlink()
    document = json.loads((there / "dataset.json").read_text())
    document["dataset"] = {
        "b": {"images": [f"imagesTr/b_0000_000{k}.nii.gz" for k in (1, 0)], "label": "labelsTr/b_0000.nii.gz"},
        "c": {"images": [f"imagesTr/a_000{k}.nii.gz" for k in (0, 1)], "label": "labelsTr/a.nii.gz"},
    }  # fmt: skip
    (there / "dataset.json").write_text(json.dumps(document))
    (there / "splits_final.json").write_text(
        json.dumps([{"train": ["b"], "val": ["c"]}, {"train": ["c"], "val": ["b"]}])
    )
    assert tool("itk_convert", "nnunet", "--back", there, tmp_path / "back", "--format", "nrrd")[0] == 0
    assert json.loads((tmp_path / "back/split.json").read_text()) == {"train": ["b"], "val": ["c"], "test": []}
    np.testing.assert_array_equal(
        read_volume(tmp_path / "back/image/b.nrrd").array, read_volume(source / "image/b_0000.mha").array[::-1]
    )
    (there / "splits_final.json").write_text(json.dumps([{"train": ["b", "gone"], "val": ["c"]}]))
    said = tool("itk_convert", "nnunet", "--back", there, tmp_path / "back", "--format", "nrrd")[2]
    assert f"FAILED  gone: {there}/splits_final.json: train names this case, and it is not there." in said
    (there / "splits_final.json").write_text("[]")
    assert "should be a list of {train, val}" in tool("itk_convert", "nnunet", "--back", there, tmp_path / "x")[2]
    for listed, words in (
        ({"b": {}}, "'dataset' should be {case: {images, label}}"),
        ({"b": {"images": ["../x"], "label": "y"}}, "names the file '../x', which leads out of the folder"),
    ):
        (there / "dataset.json").write_text(json.dumps(document | {"dataset": listed}))
        assert words in tool("itk_convert", "nnunet", "--back", there, tmp_path / "x")[2]


def test_channels_of_several_types_are_joined_without_loss_or_refused(tool, tmp_path, source):
    there = place(tmp_path, "nnunet")
    (source / "meta.json").write_text(json.dumps(META))
    assert tool("itk_convert", "nnunet", source, there)[0] == 0
    first = read_volume(there / "imagesTr/a_0000.nii.gz")
    write_volume(there / "imagesTr/a_0001.nii.gz", Volume(first.array.astype("int16"), *_of(first)))
    b = np.full(first.array.shape, 2**63 - 1, np.int64)
    write_volume(there / "imagesTr/b_0000_0001.nii.gz", Volume(b, *_of(first)))
    write_volume(there / "imagesTr/größe 7_0001.nii.gz", Volume(first.array, (3.0, 2.0, 1.2), *_of(first)[1:]))
    write_volume(there / "imagesTs/e_0001.nii.gz", Volume(np.stack([first.array] * 2), *_of(first)))
    code, _, said = tool("itk_convert", "nnunet", "--back", there, tmp_path / "back")
    assert code == 1
    assert "note    a: the channels have the types float32, int16; all are float32 now" in said
    np.testing.assert_array_equal(read_volume(tmp_path / "back/image/a.mha").array[1], first.array.astype("int16"))
    assert "FAILED  b_0000: " in said
    assert "the channels have the types float32, int64; no type holds all." in said
    assert "FAILED  größe 7: " in said
    assert "has spacing (3, 2, 1.2)" in said
    assert "e_0001.nii.gz: is one of several channels and has 2 channels itself." in said


def _of(volume):
    return volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz


def test_faults_of_a_raw_dataset_of_nnunet(tool, tmp_path, source):
    there = place(tmp_path, "nnunet")
    assert tool("itk_convert", "nnunet", source, there)[0] == 0
    (there / "labelsTr/a.nii.gz").unlink()
    (there / "imagesTr/b_0000_0001.nii.gz").unlink()
    shutil.copy(there / "imagesTr/a_0000.nii.gz", there / "imagesTr/plain.nii.gz")
    shutil.copy(there / "labelsTr/b_0000.nii.gz", there / "labelsTr/alone.nii.gz")
    code, _, said = tool("itk_convert", "nnunet", "--back", there, tmp_path / "back")
    assert code == 1
    for words in (
        "FAILED  a: ", "no label labelsTr/a.nii.gz", "FAILED  b_0000: ", "has the channels 0000, dataset.json names 2",
        "an image file of nnU-Net is called <case>_0000.nii.gz", "alone.nii.gz: a label without an image.", "3 done",
    ):  # fmt: skip
        assert words in said
    code, out, _ = tool("itk_convert", "nnunet", source, there)
    assert "holds 1 file(s) that belong to no case of this run, first plain.nii.gz; nnU-Net trains on whatever" in out


@pytest.mark.parametrize("change,words", [
    (None, "dataset.json: no such file; a raw dataset of nnU-Net has it"),
    ("{", "dataset.json: cannot be read"),
    ("[]", "dataset.json: is not a JSON object"),
    ({"file_ending": None}, "it has no 'file_ending'"),
    ({"labels": [1]}, "labels should be {name: value}"),
    ({"labels": {"background": 0, "a": 2}}, "the numbers of labels must be 0, 1, 2, ...; found [0, 2]"),
    ({"channel_names": {"x": "y"}}, "channel_names should be {number: name}"),
])  # fmt: skip
def test_damaged_descriptions_of_nnunet(tool, tmp_path, source, change, words):
    there = place(tmp_path, "nnunet")
    assert tool("itk_convert", "nnunet", source, there)[0] == 0
    path = there / "dataset.json"
    if isinstance(change, dict):
        document = json.loads(path.read_text()) | change
        path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    elif change is None:
        path.unlink()
    else:
        path.write_text(change)
    code, _, said = tool("itk_convert", "nnunet", "--back", there, tmp_path / "back")
    assert code == 1
    assert words in said


def test_the_decathlon_forgets_cases(tool, tmp_path, source):
    there = place(tmp_path, "msd")
    assert tool("itk_convert", "msd", source, there)[0] == 0
    path = there / "dataset.json"
    document = json.loads(path.read_text())
    document["training"] = document["training"][1:]
    document["test"] = []
    path.write_text(json.dumps(document))
    (there / "labelsTr/orphan.nii.gz").write_bytes(b"x")
    shutil.copy(there / "imagesTr/a.nii.gz", there / "imagesTr/new.nii.gz")
    code, _, said = tool("itk_convert", "msd", "--back", there, tmp_path / "back")
    assert code == 1
    assert "5 done, 0 up to date, 2 failed" in said
    assert "new.nii.gz: no label in labelsTr/." in said
    assert "orphan.nii.gz: a label without an image." in said
    shutil.rmtree(tmp_path / "back/image")
    for name in ("orphan", "new"):
        (there / f"{'labelsTr' if name == 'orphan' else 'imagesTr'}/{name}.nii.gz").unlink()
    document["training"].append(document["training"][0])
    path.write_text(json.dumps(document))
    said = tool("itk_convert", "msd", "--back", there, tmp_path / "back")[2]
    assert "several cases are called b_0000: imagesTr/b_0000.nii.gz, imagesTr/b_0000.nii.gz. Rename them." in said


@pytest.mark.parametrize("layout", LAYOUTS)
def test_documents_that_disagree_are_refused(tool, tmp_path, source, layout):
    there = place(tmp_path, layout)
    assert tool("itk_convert", layout, source, there)[0] == 0
    if layout != "torchio":
        (there / "meta.json").write_text(json.dumps(META | {"classes": ["background", "a", "b", "c"]}))
        said = tool("itk_convert", layout, "--back", there, tmp_path / "back")[2]
        assert "meta.json: names the classes background, a, b, c, dataset.json names background, liver" in said
        (there / "meta.json").write_text(json.dumps(META))
    (there / "split.json").write_text(json.dumps({"train": ["größe 7", "site/a"], "test": ["a"]}))
    said = tool("itk_convert", layout, "--back", there, tmp_path / "back")[2]
    assert "split.json: puts case 'a' into test, the layout into train" in said
    (there / "split.json").unlink()
    assert tool("itk_convert", layout, "--back", there, tmp_path / "back")[0] == 0
    back = json.loads((tmp_path / "back/split.json").read_text())
    assert "site/a" in back["test"]
    assert set(back["train"]) == ({"a", "größe 7", "b_0000"} if layout == "msd" else {"a", "größe 7"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_undivided_and_unnamed_datasets(tool, tmp_path, source, layout):
    (source / "meta.json").unlink()
    (source / "split.json").unlink()
    there = place(tmp_path, layout)
    code, out, _ = tool("itk_convert", layout, source, there)
    assert code == 0
    assert "class names: unknown; name them with --labels or in meta.json" in out
    assert not (there / "meta.json").exists()
    assert tool("itk_convert", layout, "--back", there, tmp_path / "back")[0] == 0
    if layout != "torchio":
        meta = json.loads((tmp_path / "back/meta.json").read_text())
        assert meta["classes"] == ["background", "class_1", "class_2", "class_3"]
        (tmp_path / "back/meta.json").unlink()
    require_same_dataset(source, tmp_path / "back")


def test_names_given_by_hand(tool, tmp_path, source):
    there = place(tmp_path, "monai")
    words = ("--name", "N", "--description", "D", "--modality", "CT", "PET", "--labels", "bg", "x", "y", "z")
    assert tool("itk_convert", "monai", source, there, *words)[0] == 0
    document = json.loads((there / "dataset.json").read_text())
    assert (document["name"], document["description"], document["modality"]) == ("N", "D", {"0": "CT", "1": "PET"})
    assert json.loads((there / "meta.json").read_text()) == META | {
        "name": "N", "description": "D", "modality": ["CT", "PET"], "classes": ["bg", "x", "y", "z"],
    }  # fmt: skip


def test_one_list_for_all(tool, tmp_path, source):
    for part, name in (("train", "training"), ("val", "validation"), ("test", "test")):
        there = tmp_path / part
        assert tool("itk_convert", "monai", source, there, "--split", part)[0] == 0
        document = json.loads((there / "dataset.json").read_text())
        assert {key: len(document.get(key, [])) for key in ("training", "validation", "test", "unused")} == {
            "training": 0, "validation": 0, "test": 0, name: 4, "unused": 1,
        }  # fmt: skip
        assert not (there / "split.json").exists()
        assert tool("itk_convert", "monai", "--back", there, tmp_path / f"back_{part}")[0] == 0
        split = json.loads((tmp_path / f"back_{part}/split.json").read_text())
        assert sorted(split[part]) == ["a", "b_0000", "größe 7", "site/a"]
    assert tool("itk_convert", "monai", source, tmp_path / "all", "--split", "all")[0] == 0
    assert (tmp_path / "all/split.json").exists()
    assert tool("itk_convert", "monai", source, tmp_path / "all", "--split", "test")[0] == 0
    assert not (tmp_path / "all/split.json").exists(), "it says something else than the lists"
    assert not list((tmp_path / "all/imagesTr").iterdir())


def test_a_foreign_data_list(tool, tmp_path):
    for number in range(3):
        write_volume(tmp_path / f"list/p{number}/t1.nii.gz", make_volume(number))
        write_volume(tmp_path / f"list/p{number}/t2_{number}.nii.gz", make_volume(number + 9))
        write_volume(tmp_path / f"list/seg_{number}.nii.gz", make_label(seed=number))
    items = [
        {"image": [f"p{k}/t2_{k}.nii.gz", f"p{k}/t1.nii.gz"], "label": f"seg_{k}.nii.gz", "fold": 0} for k in range(2)
    ]
    path = tmp_path / "list/dataset.json"
    path.write_text(json.dumps({"training": items, "test": ["p2/t1.nii.gz"]}))
    assert tool("itk_convert", "monai", "--back", tmp_path / "list", tmp_path / "back")[0] == 0
    assert sorted(volumes_of(tmp_path / "back")) == ["image/t1", "image/t2_0", "image/t2_1", "label/t2_0", "label/t2_1"]
    both = read_volume(tmp_path / "back/image/t2_1.mha").array
    np.testing.assert_array_equal(both, np.stack([make_volume(10).array, make_volume(1).array]))
    for document, words in (
        ({"training": [{"label": "x"}]}, "has an item without an image"),
        ({"training": [{"image": []}]}, "has an item without an image"),
        ({"training": {}}, "training should be a list of cases"),
        ({"training": [{"image": "/etc/x.nii.gz"}]}, "leads out of the folder"),
        ({"training": []}, "has none of the lists training, validation, test, or they are empty"),
        ({"training": [{"image": "p0/t1.nii.gz"}, {"image": "p1/t1.nii.gz"}]},
         "several cases are called t1: p0/t1.nii.gz, p1/t1.nii.gz. Rename them."),
        ({"training": [{"image": "p0/t1.nii.gz", "label": ["a", "b"]}]}, "the label is ['a', 'b'], not one file."),
        ({"training": [{"image": "p9/t1.nii.gz"}]}, "p9/t1.nii.gz: no such file"),
    ):  # fmt: skip
        path.write_text(json.dumps(document))
        code, _, said = tool("itk_convert", "monai", "--back", tmp_path / "list", tmp_path / "x")
        assert (code, words in said) == (1, True), said


@pytest.mark.parametrize("text,words", [
    (None, "subjects.csv: no such file"),
    ("subject,image\n,x.nii.gz\n", "line 2 names no subject or no image"),
    ("subject,image,split\na,x.nii.gz,valid\n", "line 2 has the split 'valid'; it is one of train, val, test, or empty."),
    ("subject,image\na,../x.nii.gz\n", "leads out of the folder"),
    ("subject,image\n../a,x.nii.gz\n", "a case cannot be called '../a'."),
    ("subject,image\na,x.nii.gz\na,y.nii.gz\n", "several cases are called a: x.nii.gz, y.nii.gz. Rename them."),
    ("subject,image\n", "holds no case"),
])  # fmt: skip
def test_damaged_subjects(tool, tmp_path, text, words):
    (tmp_path / "t").mkdir()
    if text is not None:
        (tmp_path / "t/subjects.csv").write_text(text)
    for name in "xy":
        write_volume(tmp_path / f"t/{name}.nii.gz", make_volume())
    code, _, said = tool("itk_convert", "torchio", "--back", tmp_path / "t", tmp_path / "back")
    assert code == 1
    assert words in said


def test_names_that_a_table_has_to_quote(tool, tmp_path):
    write_case(tmp_path / "raw", 'a, "b"', channels=None)
    assert tool("itk_convert", "torchio", tmp_path / "raw", tmp_path / "there")[0] == 0
    assert tool("itk_convert", "torchio", "--back", tmp_path / "there", tmp_path / "back")[0] == 0
    require_same_dataset(tmp_path / "raw", tmp_path / "back")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_without_any_foreground(tool, tmp_path, layout):
    write_case(tmp_path / "raw", "a", channels=None, values=(0,))
    there = place(tmp_path, layout)
    assert tool("itk_convert", layout, tmp_path / "raw", there)[0] == 0
    assert tool("itk_convert", layout, "--back", there, tmp_path / "back")[0] == 0
    (tmp_path / "back/meta.json").unlink(missing_ok=True)
    require_same_dataset(tmp_path / "raw", tmp_path / "back")


def test_without_csv(tool, tmp_path, source):
    assert tool("itk_convert", "torchio", source, tmp_path / "out", "--no-csv", "--format", "mha")[0] == 0
    assert not (tmp_path / "out/subjects.csv").exists()
    assert (tmp_path / "out/image/site__a.mha").exists()


@pytest.mark.parametrize("meta,words", [
    ("{", "meta.json: cannot be read"),
    ("[]", "meta.json: is not a JSON object"),
    ('{"name": 3}', "the name of the dataset is 3, which is no text"),
    ('{"classes": []}', "classes should be a list of names, it is []"),
    ('{"classes": [1]}', "classes should be a list of names"),
    ('{"labels": {"0": "a", "2": "b"}}', "the numbers of labels must be 0, 1, 2, ...; found [0, 2]"),
])  # fmt: skip
def test_damaged_meta(tmp_path, meta, words):
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(DataError, match=words.replace("[", r"\[").replace("]", r"\]")):
        read_described(tmp_path)


def test_other_ways_to_write_meta(tmp_path):
    (tmp_path / "meta.json").write_text(
        json.dumps({"dataset_name": "N", "modality": "CT", "labels": {"1": "b", "0": "a"}, "num_samples": 3})
    )
    about = read_described(tmp_path)
    assert (about.name, about.modality, about.classes, about.text("reference")) == ("N", ("CT",), ("a", "b"), "")
    (tmp_path / "split.json").write_text(json.dumps({"train": ["x"], "test": ["x"]}))
    with pytest.raises(DataError, match="case 'x' is in train and in test; remove it from one"):
        read_described(tmp_path)


def test_senseless_words_are_usage(tool, tmp_path, source):
    (tmp_path / "plain").mkdir()
    assert "has no folder image/" in tool("itk_convert", "msd", tmp_path / "plain", tmp_path / "out")[2]
    assert "no such folder" in tool("itk_convert", "msd", tmp_path / "gone", tmp_path / "out")[2]
    assert "no such folder" in tool("itk_convert", "msd", "--back", tmp_path / "gone", tmp_path / "out")[2]
    code, _, said = tool("itk_convert", "msd", source, tmp_path / "out", "--format", "nrrd")
    assert (code, "the format is one of nii.gz, not 'nrrd'" in said) == (2, True)
    with pytest.raises(UsageError, match="--split is one of train, val, test or all, not 'dev'"):
        MONAI("a", "b", split="dev")
    with pytest.raises(UsageError, match="--split has no meaning with --back"):
        MONAI("a", "b", back=True, split="val")
    with pytest.raises(UsageError, match="--no-csv has no meaning with --back"):
        TorchIO("a", "b", back=True, no_csv=True)
    with pytest.raises(UsageError, match="lies inside of it"):
        NnUNet("a", "a/Dataset001_X")


def test_an_operation_travels_without_what_it_has_read(tmp_path, source):
    import pickle

    operation = MONAI(str(source), str(tmp_path / "out"))
    assert len(operation.tasks()) == 5
    assert "about" in vars(operation)
    assert "about" not in vars(pickle.loads(pickle.dumps(operation)))
    assert pickle.loads(pickle.dumps(operation)) == operation


def test_kept_in_the_ledger(tool, tmp_path, source):
    assert tool("itk_convert", "nnunet", source, place(tmp_path, "nnunet"))[0] == 0
    entry = ledger(place(tmp_path, "nnunet"))["site/a"]
    assert entry["record"] == {
        "channels": 2, "values": [0, 1, 2, 3], "largest": 3, "name": "site__a", "place": "Ts",
        "images": ["imagesTs/site__a_0000.nii.gz", "imagesTs/site__a_0001.nii.gz"], "label": "labelsTs/site__a.nii.gz",
    }  # fmt: skip
