"""What `itk_convert` writes is loaded by the real libraries, voxel by voxel and in the right place."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from itkit.cli.main import run_tool
from itkit.io.volumes import Volume, read_volume, write_volume

CLASSES = ["background", "liver", "tumour"]
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def source(tmp_path):
    """Four cases of two channels on oblique grids, the last one unlabelled and for testing; a name beyond ASCII."""
    root, rng = tmp_path / "raw", np.random.default_rng(0)
    for name in ("a", "b", "Fall_ü", "t"):
        where = (3.0, 2.0, 1.0), tuple(rng.uniform(-50, 50, 3).astype(np.float32).tolist()), OBLIQUE
        write_volume(root / f"image/{name}.mha", Volume(rng.normal(size=(2, 4, 5, 6)).astype(np.float32), *where))
        if name != "t":
            write_volume(root / f"label/{name}.mha", Volume(rng.integers(0, 3, (4, 5, 6)).astype(np.uint8), *where))
    (root / "meta.json").write_text(json.dumps({"name": "Toy", "classes": CLASSES, "modality": ["CT", "PET"]}))
    (root / "split.json").write_text(json.dumps({"train": ["a", "Fall_ü"], "val": ["b"], "test": ["t"]}))
    return root


def affine_ras(volume):
    """Index (x, y, z) to the frame of NIfTI (x to the right, y to the front, z upwards)."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(volume.direction_xyz, (3, 3)) * volume.spacing_zyx[::-1]
    matrix[:3, 3] = volume.origin_xyz
    return np.diag([-1, -1, 1, 1]) @ matrix


def require_loaded(volume, array, affine):
    """`array` is (C, X, Y, Z), as both libraries have it."""
    expected = volume.array if volume.array.ndim == 4 else volume.array[None]
    np.testing.assert_array_equal(np.asarray(array), expected.transpose(0, 3, 2, 1))
    np.testing.assert_allclose(np.asarray(affine), affine_ras(volume), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["monai", "msd"])
def test_monai_loads_the_data_list(tmp_path, source, layout):
    from monai.data import load_decathlon_datalist
    from monai.transforms import LoadImaged

    there = tmp_path / layout
    assert run_tool("itk_convert", [layout, str(source), str(there)]) == 0
    parts = (
        {"training": ["Fall_ü", "a"], "validation": ["b"]} if layout == "monai" else {"training": ["Fall_ü", "a", "b"]}
    )
    load = LoadImaged(keys=["image", "label"], ensure_channel_first=True)
    for key, names in parts.items():
        items = load_decathlon_datalist(there / "dataset.json", is_segmentation=True, data_list_key=key)
        assert [Path(item["image"]).name for item in items] == [f"{name}.nii.gz" for name in names]
        for name, item in zip(names, map(load, items), strict=True):
            for role in ("image", "label"):
                require_loaded(read_volume(source / role / f"{name}.mha"), item[role], item[role].affine)
    (test,) = load_decathlon_datalist(there / "dataset.json", is_segmentation=True, data_list_key="test")
    require_loaded(
        read_volume(source / "image/t.mha"),
        *(lambda image: (image, image.affine))(LoadImaged(keys=["image"], ensure_channel_first=True)(test)["image"]),
    )


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_torchio_loads_the_subjects(tmp_path, source, ending):
    import torchio

    if ending == "nrrd":  # TorchIO takes one channel from other formats than NIfTI
        for path in (source / "image").iterdir():
            volume = read_volume(path)
            write_volume(path, Volume(volume.array[0], volume.spacing_zyx, volume.origin_xyz, volume.direction_xyz))
    there = tmp_path / "torchio"
    assert run_tool("itk_convert", ["torchio", str(source), str(there), "--format", ending]) == 0
    with open(there / "subjects.csv", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] in ("train", "val")]
    assert [(row["subject"], row["split"]) for row in rows] == [("Fall_ü", "train"), ("a", "train"), ("b", "val")]
    subjects = torchio.SubjectsDataset([
        torchio.Subject(
            name=row["subject"], image=torchio.ScalarImage(there / row["image"]), label=torchio.LabelMap(there / row["label"])
        )
        for row in rows
    ])  # fmt: skip
    for subject in subjects:
        for role in ("image", "label"):
            require_loaded(read_volume(source / role / f"{subject.name}.mha"), subject[role].data, subject[role].affine)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_nnunet_finds_what_its_documentation_asks_for(tmp_path, source, ending):
    """The checks that its page on the dataset format describes: names, counts, grids, labels."""
    import SimpleITK as sitk

    there = tmp_path / "Dataset042_Toy"
    assert run_tool("itk_convert", ["nnunet", str(source), str(there), "--format", ending]) == 0
    document = json.loads((there / "dataset.json").read_text(encoding="ascii"))
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= document.keys()
    assert document["labels"]["background"] == 0
    assert sorted(document["labels"].values()) == list(range(len(CLASSES)))
    ending = document["file_ending"]
    files = sorted(os.listdir(there / "imagesTr"))
    cases = sorted({name[: -len(ending) - 5] for name in files})
    assert len(cases) == document["numTraining"] == 3
    channels = len(document["channel_names"])
    assert files == sorted(f"{case}_{channel:04d}{ending}" for case in cases for channel in range(channels))
    assert sorted(os.listdir(there / "labelsTr")) == [case + ending for case in cases]
    for case in cases:
        label = sitk.ReadImage(os.fspath(there / "labelsTr" / (case + ending)))
        assert set(np.unique(sitk.GetArrayViewFromImage(label))) <= set(document["labels"].values())
        expected = read_volume(source / "image" / f"{case}.mha")
        for channel in range(channels):
            image = sitk.ReadImage(os.fspath(there / "imagesTr" / f"{case}_{channel:04d}{ending}"))
            np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), expected.array[channel])
            for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                np.testing.assert_allclose(getattr(image, part)(), getattr(label, part)(), rtol=0, atol=1e-6)


def test_the_real_hippocampus_there_and_back(shared_data, tmp_path):
    real, split = shared_data("Task04_Hippocampus"), {"train": [], "val": [], "test": []}
    task = tmp_path / "Task04_Hippocampus"
    document = json.loads((real / "dataset.json").read_text())
    document["training"] = document["training"][:6]
    for number, case in enumerate(document["training"]):
        for path in case.values():
            (task / path).parent.mkdir(parents=True, exist_ok=True)
            (task / path).write_bytes((real / path).read_bytes())
        split[("train", "val", "test")[number % 3]].append(re.sub(r".*/|\.nii\.gz", "", case["image"]))
    document["test"] = []
    (task / "dataset.json").write_text(json.dumps(document))
    last = tmp_path / "one"
    assert run_tool("itk_convert", ["msd", "--back", str(task), str(last)]) == 0
    (last / "split.json").write_text(json.dumps(split))
    for layout in ("nnunet", "monai", "torchio", "msd"):
        there, back = tmp_path / layout / "Dataset004_H", tmp_path / f"back_{layout}"
        assert run_tool("itk_convert", [layout, str(last), str(there)]) == 0
        assert run_tool("itk_convert", [layout, "--back", str(there), str(back)]) == 0
        last = back
    for case in document["training"]:
        for role, folder in (("image", "image"), ("label", "label")):
            name = Path(case[role]).name
            before, after = read_volume(task / case[role]), read_volume(last / folder / name.replace(".nii.gz", ".mha"))
            assert after.array.dtype == before.array.dtype
            np.testing.assert_array_equal(after.array, before.array)
            assert after.geometry == before.geometry
    assert json.loads((last / "split.json").read_text()) == split
    assert json.loads((last / "meta.json").read_text())["classes"] == ["background", "Anterior", "Posterior"]
