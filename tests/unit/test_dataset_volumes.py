"""Datasets choose the right cases, name the case in every error, and give the same sample from any worker."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from itkit.dataset import ITKITConcatDataset, PatchedDataset, SeriesVolumeDataset, StreamIndex, multi_sample_collate
from itkit.dataset.base import ITKITBaseSegDataset
from itkit.dataset.cache import VolumeCache
from itkit.dataset.stream import sample_generator
from itkit.errors import ConfigError, DataError, GeometryError
from itkit.io.geometry import require_same_grid
from itkit.io.volumes import Volume, read_volume, write_volume
from itkit.registry import DATASETS, FUNCTIONS

CLASSES = ("background", "organ")
DRAWS = "tests.draws"


def load(results):
    """A loading transform in five lines."""
    read = results["cache"].get if "cache" in results else lambda path, read: read(path)
    volume = read(results["img_path"], read_volume)
    results["img"] = volume.array[None]
    if results["seg_map_path"]:
        label = read(results["seg_map_path"], read_volume)
        require_same_grid(volume, label, results["seg_map_path"])
        results["gt_sem_seg"] = label.array
    return results


def draw(results):
    results["draw"] = results["rng"].integers(0, 2**60, 4).tolist()
    return results


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    for number in range(6):
        array = np.full((2 + number, 4, 4), number, np.int16)
        write_volume(root / "image" / f"case_{number}.mha", Volume(array, (5.0 - number / 2, 1.0, 1.0)))
        write_volume(
            root / "label" / f"case_{number}.mha", Volume((array > 2).astype(np.uint8), (5.0 - number / 2, 1.0, 1.0))
        )
    return root


def dataset(root, split="all", pipeline=(load,), **kwargs):
    return SeriesVolumeDataset(root, split, CLASSES, pipeline, **kwargs)


def test_sample_has_the_agreed_keys(root):
    data = dataset(root)
    sample = data[3]
    assert {k: sample[k] for k in ("case_id", "num_classes", "classes", "seg_fields", "sample_idx")} == {
        "case_id": "case_3", "num_classes": 2, "classes": CLASSES, "seg_fields": [], "sample_idx": 3,
    }  # fmt: skip
    assert sample["img_path"] == str(root / "image" / "case_3.mha")
    assert sample["seg_map_path"] == str(root / "label" / "case_3.mha")
    assert isinstance(sample["rng"], np.random.Generator)
    assert data.metainfo["classes"] == CLASSES
    assert (len(data), data.case_ids) == (6, [f"case_{k}" for k in range(6)])


def test_relative_root_lies_under_the_data_folder(root, monkeypatch):
    monkeypatch.setenv("ITKIT_DATA", str(root.parent))
    assert len(dataset("data")) == 6
    monkeypatch.delenv("ITKIT_DATA")
    with pytest.raises(ConfigError, match="ITKIT_DATA"):
        dataset("data")
    with pytest.raises(ConfigError, match="SeriesVolumeDataset needs data_root"):
        dataset(None)


def test_built_by_name_and_lazily(root):
    config = {"type": "SeriesVolumeDataset", "data_root": str(root / "later"), "classes": CLASSES, "lazy_init": True}
    data = DATASETS.build(config)
    (root / "later").mkdir()
    shutil.copytree(root / "image", root / "later" / "image")
    shutil.copytree(root / "label", root / "later" / "label")
    data.split = "all"
    assert len(data.case_ids) == 6
    assert DATASETS.get("PatchedDataset") is PatchedDataset
    assert FUNCTIONS.get("multi_sample_collate") is multi_sample_collate


def test_split_file_and_selection(root):
    split = {"train": ["case_5", "case_1", "case_2"], "val": ["case_0"], "test": ["case_3"]}
    (root / "split.json").write_text(json.dumps(split))
    assert dataset(root, "train").case_ids == ["case_1", "case_2", "case_5"]
    assert dataset(root, "train", limit=2).case_ids == ["case_1", "case_2"]
    assert dataset(root, "train", cases=["case_5"]).case_ids == ["case_5"]
    assert dataset(root, "val", splits={"val": ["case_4"]}).case_ids == ["case_4"]
    assert len(dataset(root, "train", fold=0, num_folds=2)) == 2
    with pytest.raises(DataError, match="case 'case_3' is not in split 'train'"):
        dataset(root, "train", cases=["case_3"])
    with pytest.raises(DataError, match="split 'test' has no case"):
        dataset(root, "test", splits={"train": ["case_0"]})


def test_size_and_spacing_filters(root):
    assert dataset(root, min_size=(4, -1, 4)).case_ids == ["case_2", "case_3", "case_4", "case_5"]
    assert dataset(root, min_spacing=(4.0, 1, 1)).case_ids == ["case_0", "case_1", "case_2"]
    with pytest.raises(DataError, match="no case is left in split 'all': of 6 cases, 6 belong to it"):
        dataset(root, min_size=(99, 1, 1))
    with pytest.raises(ConfigError, match="min_size has three numbers"):
        dataset(root, min_size=(1, 2))


def test_case_without_label(root):
    (root / "label" / "case_4.mha").unlink()
    with pytest.raises(DataError, match="case_4.mha: case 'case_4' has no label .1 of 6 cases of split 'all'"):
        dataset(root)
    assert "case_4" not in dataset(root, unlabelled="skip").case_ids
    sample = dataset(root, unlabelled="include")[4]
    assert sample["seg_map_path"] is None
    assert "gt_sem_seg" not in sample
    split = {"train": ["case_0"], "test": ["case_4"]}
    assert dataset(root, "train", splits=split).case_ids == ["case_0"], "a label that is not needed is not missed"


def test_folder_that_does_not_fit(root, tmp_path):
    (tmp_path / "empty" / "image").mkdir(parents=True)
    with pytest.raises(DataError, match="empty/image: holds no volume"):
        dataset(tmp_path / "empty")
    shutil.copy(root / "image" / "case_0.mha", root / "image" / "case_0.nii.gz")
    with pytest.raises(DataError, match="'case_0' is there in several formats: case_0.mha, case_0.nii.gz"):
        dataset(root)


def test_senseless_arguments_are_refused(root):
    with pytest.raises(ConfigError, match="split is one of train, val, test, all; got 'trian'. Did you mean train"):
        dataset(root, "trian")
    with pytest.raises(ConfigError, match="unlabelled is one of"):
        dataset(root, unlabelled="maybe")
    with pytest.raises(ConfigError, match="cache is one of none, memory"):
        dataset(root, cache="disk")
    with pytest.raises(ConfigError, match="limit is a number of cases"):
        dataset(root, limit=0)
    for classes in ("organ", ("background",), ("a", "a"), (0, 1)):
        with pytest.raises(ConfigError, match="classes are the names"):
            SeriesVolumeDataset(root, "all", classes)
    with pytest.raises(ConfigError, match="needs classes=.*meta.json does not tell"):
        SeriesVolumeDataset(root, "all")
    (root / "meta.json").write_text('{"classes": ["background", "spleen"]}')
    assert SeriesVolumeDataset(root, "all").metainfo["classes"] == ("background", "spleen")
    with pytest.raises(NotImplementedError):
        ITKITBaseSegDataset(root, "all", CLASSES)


def broken(results):
    raise ZeroDivisionError("division by nought")


def test_errors_name_the_case_and_the_file(root):
    (root / "image" / "case_1.mha").write_bytes((root / "image" / "case_1.mha").read_bytes()[:-9])
    write_volume(root / "label" / "case_2.mha", Volume(np.zeros((4, 4, 5), np.uint8), (4.0, 1.0, 1.0)))
    data = dataset(root)
    with pytest.raises(DataError, match=r"image/case_1.mha: the header asks for"):
        data[1]
    with pytest.raises(GeometryError, match=r"case_2.mha: label has size \(4, 4, 5\), image has \(4, 4, 4\)"):
        data[2]
    with pytest.raises(DataError, match=r"case_3.mha: case case_3: ZeroDivisionError in the pipeline: division by no"):
        dataset(root, pipeline=[broken])[3]

    def anonymous(results):
        raise GeometryError("crooked")

    with pytest.raises(GeometryError, match=r"case_3.mha: case case_3: crooked"):
        dataset(root, pipeline=[anonymous])[3]


def test_nothing_is_fetched_instead_of_a_failed_sample(root):
    for nothing in (lambda results: None, lambda results: []):
        with pytest.raises(DataError, match="case case_0: the pipeline gave no sample"):
            dataset(root, pipeline=[nothing])[0]


def test_generator_depends_on_seed_and_position_alone(root):
    data = dataset(root, pipeline=[draw])
    at = StreamIndex(2, seed=7, position=40)
    expected = data[at]["draw"]
    assert data[StreamIndex(2, seed=7, position=40)]["draw"] == expected
    assert data[StreamIndex(3, seed=7, position=40)]["draw"] == expected
    assert data[StreamIndex(2, seed=7, position=41)]["draw"] != expected
    assert data[StreamIndex(2, seed=8, position=40)]["draw"] != expected
    torch.manual_seed(3)
    plain = data[2]["draw"]
    assert data[2]["draw"] == plain
    assert data[3]["draw"] != plain
    assert data[np.int64(2)]["draw"] == plain
    torch.manual_seed(4)
    assert data[2]["draw"] != plain


def test_stream_index_is_an_int_that_travels():
    index = pickle.loads(pickle.dumps(StreamIndex(5, seed=1, position=9)))
    assert (index, index.seed, index.position, [10, 11, 12, 13, 14, 15][index]) == (5, 1, 9, 15)
    assert repr(index) == "StreamIndex(5, seed=1, position=9)"
    same = [sample_generator(index).integers(0, 2**60) for _ in range(2)]
    assert same[0] == same[1]


def test_memory_cache_reads_once_and_gives_copies(root, monkeypatch):
    data = dataset(root, cache="memory", pipeline=[load])
    first = data[1]["img"]
    first[:] = 99
    shutil.rmtree(root / "image")
    again = data[1]["img"]
    assert again.tolist() == np.full((1, 3, 4, 4), 1).tolist()
    assert len(data.cache) == 2
    assert len(pickle.loads(pickle.dumps(data)).cache) == 0, "voxels do not travel to workers"


def test_memory_cache_is_bounded():
    reads = []

    def read(path):
        reads.append(path)
        return Volume(np.zeros((1, 512, 512), np.uint8))

    cache = VolumeCache(limit_mb=0.5)
    for path in ("a", "b", "c", "a", "b", "c"):
        assert cache.get(path, read).array.shape == (1, 512, 512)
    assert reads == ["a", "b", "c", "c"]
    assert (len(cache), cache.used_bytes) == (2, 2**19)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_what_the_main_process_gives(root, context):
    data = SeriesVolumeDataset(root, "all", CLASSES, [{"type": "LoadVolume"}], cache="memory")
    indices = [StreamIndex(k % 6, seed=1, position=k) for k in range(6)]
    loader = DataLoader(
        data, batch_size=2, sampler=indices, num_workers=1, collate_fn=list, multiprocessing_context=context
    )
    got = [(s["case_id"], s["img"].tolist(), s["rng"].integers(0, 2**60)) for batch in loader for s in batch]
    here = [(s["case_id"], s["img"].tolist(), s["rng"].integers(0, 2**60)) for s in (data[i] for i in indices)]
    assert got == here


def test_fingerprint_is_that_of_the_files_in_use(root):
    whole, half = dataset(root).fingerprint(), dataset(root, limit=3).fingerprint()
    assert whole != half
    assert dataset(root).fingerprint() == whole
    write_volume(root / "image" / "case_5.mha", Volume(np.zeros((7, 4, 4), np.int16)))
    assert dataset(root).fingerprint() != whole
    assert dataset(root, limit=3).fingerprint() == half


def test_patches_stay_with_their_case(tmp_path):
    for case in ("liver_1", "liver_2", "liver_3"):
        for number in (0, 2, 10):
            for folder in ("image", "label"):
                write_volume(tmp_path / folder / f"{case}_{number}.mha", Volume(np.zeros((2, 2, 2), np.uint8)))
    split = {"train": ["liver_3", "liver_1"], "val": ["liver_2"]}
    data = PatchedDataset(tmp_path, "train", CLASSES, splits=split)
    infos = [data.get_data_info(k) for k in range(len(data))]
    assert [info["case_id"] for info in infos] == [
        "liver_1_0", "liver_1_2", "liver_1_10", "liver_3_0", "liver_3_2", "liver_3_10",
    ]  # fmt: skip
    assert (infos[5]["parent_case"], infos[5]["patch_number"]) == ("liver_3", 10)
    assert data.case_ids == ["liver_1", "liver_3"]
    shutil.copy(tmp_path / "image" / "liver_1_0.mha", tmp_path / "image" / "stray.mha")
    with pytest.raises(DataError, match="stray.mha: a patch is named <case>_<number>"):
        PatchedDataset(tmp_path, "train", CLASSES, splits=split)


def test_concatenation(root):
    first, second = dataset(root, limit=4, pipeline=[draw]), dataset(root, cases=["case_4", "case_5"], pipeline=[draw])
    both = ITKITConcatDataset([first, second])
    assert [both[k]["case_id"] for k in range(len(both))] == [f"case_{k}" for k in range(6)]
    assert both[-1]["case_id"] == "case_5"
    assert both.case_ids == [f"case_{k}" for k in range(6)]
    assert both.get_data_info(4)["case_id"] == "case_4"
    at = StreamIndex(5, seed=1, position=2)
    assert both[at]["draw"] == second[StreamIndex(0, seed=1, position=2)]["draw"]
    with pytest.raises(IndexError, match="sample 6 of 6"):
        both[6]
    assert both.metainfo["classes"] == CLASSES
    assert both.fingerprint() == ITKITConcatDataset([first, second]).fingerprint() != first.fingerprint()


def test_weights_repeat_the_smaller_dataset(root):
    parts = [dataset(root, limit=4), dataset(root, cases=["case_4", "case_5"])]
    both = ITKITConcatDataset(parts, weights=[1, 2])
    names = [both.get_data_info(k)["case_id"] for k in range(len(both))]
    assert names == [f"case_{k}" for k in range(4)] + ["case_4", "case_5"] * 4
    for weights in ([1], [1, 0], [1, float("nan")]):
        with pytest.raises(ConfigError, match="weights are one positive number for each of the 2"):
            ITKITConcatDataset(parts, weights=weights)
    other = SeriesVolumeDataset(root, "all", ("background", "spleen"))
    with pytest.raises(ConfigError, match="dataset 1 has the classes .*spleen.*, dataset 0 has .*organ"):
        ITKITConcatDataset([parts[0], other])
    with pytest.raises(ConfigError, match="at least one dataset"):
        ITKITConcatDataset([])
    config = {"type": "SeriesVolumeDataset", "data_root": str(root), "split": "all", "classes": CLASSES}
    assert len(ITKITConcatDataset([config, parts[1]])) == 8


def test_collate_flattens_samples_of_one_volume():
    def sample(value):
        return {"inputs": torch.full((1,), value), "data_samples": value}

    batch = multi_sample_collate([sample(1), [sample(2), sample(3)]])
    assert batch["data_samples"] == [1, 2, 3]
    assert [int(tensor) for tensor in batch["inputs"]] == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"no 'inputs' and 'data_samples' but \['img'\]; end the pipeline"):
        multi_sample_collate([{"img": 0}])
    with pytest.raises(ConfigError, match="but Tensor"):
        multi_sample_collate([torch.zeros(1)])
