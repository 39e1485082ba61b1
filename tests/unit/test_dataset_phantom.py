"""The phantoms: the same for the same seed, not solved by a threshold, and made once whoever comes first."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest

from itkit.dataset import PhantomDataset
from itkit.dataset.Phantom import meta
from itkit.dataset.Phantom.generate import generate_case, generate_dataset, main
from itkit.errors import DataError
from itkit.io.volumes import read_volume
from itkit.process.cases import find_cases
from itkit.registry import DATASETS


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "Phantom"
    generate_dataset(root)
    return root


def arrays(root, part):
    names = json.loads((root / "split.json").read_text())[part]
    return [
        np.stack([read_volume(root / folder / f"{name}.mha").array for name in names]) for folder in ("image", "label")
    ]


def test_dataset_is_complete(phantoms):
    assert {p.name for p in phantoms.iterdir()} == {"image", "label", "meta.json", "series_meta.json", "split.json"}
    split = json.loads((phantoms / "split.json").read_text())
    assert {part: len(names) for part, names in split.items()} == meta.COUNTS
    assert {case.case_id for case in find_cases(phantoms).cases} == {name for part in split.values() for name in part}
    image, label = arrays(phantoms, "test")
    assert (image.dtype, label.dtype) == (np.int16, np.uint8)
    assert image.shape[1:] == label.shape[1:] == meta.SIZE_ZYX
    for one in label:
        assert np.unique(one).tolist() == [0, 1, 2, 3, 4], "every class is in every case"
    for k in range(2):
        image, label = generate_case(0, k)
        stored = read_volume(phantoms / "image" / f"phantom_{k:03d}.mha")
        np.testing.assert_array_equal(stored.array, image.array)
        assert stored.geometry == image.geometry == label.geometry
        assert stored.spacing_zyx == meta.SPACING_ZYX


def test_seed_and_number_decide():
    first = generate_case(3, 5)
    for again, other in zip(generate_case(3, 5), generate_case(3, 6), strict=True):
        kept = first[0] if again.array.dtype == np.int16 else first[1]
        np.testing.assert_array_equal(again.array, kept.array)
        assert (other.array != kept.array).any()
    assert (generate_case(4, 5)[0].array != first[0].array).any()


def test_a_threshold_does_not_solve_them(phantoms):
    """Dice of the best interval of densities for each class, found on the training cases."""
    (image, label), (test_image, test_label) = arrays(phantoms, "train"), arrays(phantoms, "test")
    edges = np.arange(-200, 500, 10)
    scores = []
    for value in range(1, len(meta.CLASSES)):
        hits = np.append(0, np.cumsum(np.histogram(image[label == value], edges)[0]))
        all_ = np.append(0, np.cumsum(np.histogram(image, edges)[0]))
        dice = 2 * (hits[None] - hits[:, None]) / (np.maximum(all_[None] - all_[:, None], 0) + hits[-1])
        low, high = np.unravel_index(dice.argmax(), dice.shape)
        found = (test_image >= edges[low]) & (test_image < edges[high])
        truth = test_label == value
        scores.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert np.mean(scores) < 0.7
    assert scores[-1] < 0.2, "the lesion is hard"


def test_lesions_are_small_and_in_the_liver(phantoms):
    _, label = arrays(phantoms, "train")
    volumes = [(one == 4).sum() for one in label]
    assert 60 < np.mean(volumes) < 400
    from scipy import ndimage

    for one in label:
        around = ndimage.binary_dilation(one == 4) & (one != 4)
        assert (one[around] == 1).mean() > 0.9


def test_it_makes_itself_under_the_data_folder_or_the_cache(tmp_path, monkeypatch, phantoms):
    monkeypatch.setenv("ITKIT_DATA", str(phantoms.parent))
    data = DATASETS.build({"type": "PhantomDataset", "split": "val"})
    assert data.root == phantoms
    assert (len(data), data.metainfo["classes"]) == (meta.COUNTS["val"], meta.CLASSES)
    monkeypatch.delenv("ITKIT_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("itkit.dataset.Phantom.generate.COUNTS", {"train": 2, "val": 1, "test": 1})
    assert len(PhantomDataset(split="all")) == 4
    assert (tmp_path / "itkit" / "Phantom" / "meta.json").is_file()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert PhantomDataset(lazy_init=True).root == tmp_path / "home" / ".cache" / "itkit" / "Phantom"


def generate_after(barrier, root):
    barrier.wait()
    generate_dataset(root)


def test_two_processes_may_start_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("itkit.dataset.Phantom.generate.COUNTS", {"train": 3})
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    running = [fork.Process(target=generate_after, args=(barrier, tmp_path / "P")) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["P"]
    assert len(find_cases(tmp_path / "P").cases) == 3


def test_other_things_in_the_place_are_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("itkit.dataset.Phantom.generate.COUNTS", {"train": 1})
    (tmp_path / "P").mkdir()
    (tmp_path / "P" / "precious").write_text("")
    with pytest.raises(DataError, match="P: holds no phantoms of this version .found None None, need Phantom 1"):
        PhantomDataset(tmp_path / "P")
    assert main([str(tmp_path / "P")]) == 1
    assert "the folder holds something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["P", "precious"]
    assert main([str(tmp_path / "P" / "precious" / "below")]) == 1
    assert "the phantoms cannot be written" in capsys.readouterr().err
    assert main([str(tmp_path / "Q"), "--seed", "4"]) == 0
    assert json.loads((tmp_path / "Q" / "meta.json").read_text())["seed"] == 4
