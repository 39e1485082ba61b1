"""The metric by hand: rows, summary, slices, repetitions, unnamed and unlabelled samples, two processes, refusals."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from itkit.errors import ConfigError, DataError, UsageError
from itkit.metrics import SegmentationMetric
from itkit.registry import METRICS

META = {"classes": ("background", "liver", "tumour")}
ALL = ("Dice", "IoU", "Precision", "Recall", "HD95", "NSD")


def sample(truth, prediction, case_id=None, **meta):
    wrapped = {"pred_sem_seg": {"data": torch.as_tensor(prediction)[None]}}
    if truth is not None:
        wrapped["gt_sem_seg"] = {"data": torch.as_tensor(truth)[None]}
    return wrapped | ({} if case_id is None else {"case_id": case_id}) | meta


def volumes(count, seed=0, shape=(5, 9, 8)):
    generator = np.random.default_rng(seed)
    for number in range(count):
        truth = (generator.random(shape) * 3).astype(np.uint8)
        truth[truth == 2] = 2 if number % 3 else 0  # every third case has no tumour
        yield truth, np.where(generator.random(shape) < 0.8, truth, 1).astype(np.uint8)


def run(samples, *, size=None, **options):
    metric = SegmentationMetric(**options)
    metric.dataset_meta = META
    for one in samples:
        metric.process({}, [one])
    return metric, metric.evaluate(len(samples) if size is None else size)


def test_rows_summary_and_flat_values_agree():
    pair = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 1, 0, 1]])
    metric, flat = run([sample(*pair, "b"), sample(torch.ones(1, 4, dtype=int), torch.ones(1, 4, dtype=int), "a")])
    assert metric.case_rows == [
        {"case_id": "a", "Dice/liver": 1.0, "Dice/tumour": None},
        {"case_id": "b", "Dice/liver": 0.5, "Dice/tumour": 0.0},
    ]
    assert flat == {"Dice": 0.375, "Dice/liver": 0.75, "Dice/tumour": 0.0}
    assert metric.summary["Dice"]["mean"] == 0.375
    assert metric.summary["Dice"]["per_class"] == {"liver": 0.75, "tumour": 0.0}
    assert metric.summary["Dice"]["ci95"] == [0.25, 1.0]  # case b alone, case a alone (it knows no tumour)
    json.dumps([metric.case_rows, metric.summary])


def test_every_measure_of_a_volume():
    cube = np.zeros((6, 8, 8), np.uint8)
    cube[1:5, 2:6, 2:6] = 1
    metric, flat = run([sample(cube, np.roll(cube, 1, 0), "a", spacing_zyx=(2.0, 1.0, 1.0))], measures=ALL)
    assert flat["Dice"] == flat["Precision"] == flat["Recall"] == 0.75
    assert flat["IoU"] == 0.6
    assert flat["HD95"] == 2.0
    assert 0 < flat["NSD"] < 1
    assert flat["NSD/tumour"] is not None
    assert math.isnan(flat["NSD/tumour"])
    assert metric.case_rows[0]["HD95/tumour"] is None
    _, tolerant = run(
        [sample(cube, np.roll(cube, 1, 0), "a", spacing_zyx=(2.0, 1.0, 1.0))], measures=ALL, nsd_tolerance_mm=2
    )
    assert tolerant["NSD"] == 1.0


def test_a_missed_structure_costs_the_diagonal():
    truth = np.zeros((3, 4, 5), np.uint8)
    truth[1, 1, 1] = 2
    _, flat = run([sample(truth, 0 * truth, "a", spacing_zyx=(1.0, 1.0, 1.0))], measures=("HD95", "NSD"))
    assert flat["HD95"] == pytest.approx(math.sqrt(50))
    assert flat["NSD"] == 0


def test_slices_give_the_measures_of_their_volume():
    whole, parts = [], []
    for number, (truth, prediction) in enumerate(volumes(3)):
        spacing = {"spacing_zyx": (2.5, 1.0, 0.7)}
        whole.append(sample(truth, prediction, f"case{number}", **spacing))
        parts += [sample(truth[z], prediction[z], f"case{number}", z_index=z, **spacing) for z in (2, 0, 1, 4, 3)]
    expected, flat = run(whole, measures=ALL)
    found, flat_of_slices = run(parts, measures=ALL)
    assert found.case_rows == expected.case_rows
    np.testing.assert_equal(flat_of_slices, flat)


def test_missing_slices_stop_surface_measures_only():
    truth, prediction = next(volumes(1))
    parts = [sample(truth[z], prediction[z], "a", z_index=z, spacing_zyx=(1, 1, 1)) for z in (0, 3)]
    assert run(parts)[1]["Dice"] > 0
    with pytest.raises(DataError, match=r"case a: surface measures need all slices.*slice 1 is missing \(2 in all\)"):
        run(parts, measures=("HD95",))


def test_slices_of_different_sizes_are_refused():
    parts = [sample(np.ones((4, n), int), np.ones((4, n), int), "a", z_index=n, spacing_zyx=(1, 1, 1)) for n in (3, 4)]
    with pytest.raises(DataError, match="case a: its slices have different sizes"):
        run(parts, measures=("NSD",))


def test_repeated_samples_count_once_and_namesakes_are_refused():
    (truth, prediction), other = volumes(2)
    once, _ = run([sample(truth, prediction, "a")])
    twice, _ = run([sample(truth, prediction, "a"), sample(truth, prediction, "a")])
    assert twice.case_rows == once.case_rows
    with pytest.raises(DataError, match="two different samples are called case a;"):
        run([sample(truth, prediction, "a"), sample(*other, "a")])
    with pytest.raises(DataError, match="two different samples are called case a, slice 3;"):
        run([sample(truth, prediction, "a", z_index=3), sample(*other, "a", z_index=3)])
    with pytest.raises(DataError, match="arrived as a whole volume and as slices"):
        run([sample(truth, prediction, "a", z_index=3), sample(truth, prediction, "a")])


def test_samples_without_a_name_are_called_by_their_place():
    metric, _ = run([sample(*pair) for pair in volumes(3)], size=2)
    assert [row["case_id"] for row in metric.case_rows] == ["sample_0000", "sample_0001"]


def test_unlabelled_samples_are_skipped_and_counted():
    (truth, prediction), (_, guess) = volumes(2)
    metric, _ = run([sample(truth, prediction, "a"), sample(None, guess, "b"), sample(None, guess)])
    assert [row["case_id"] for row in metric.case_rows] == ["a"]
    assert metric.unlabelled == 2
    metric, flat = run([sample(None, guess, "b")])
    assert metric.case_rows == []
    assert math.isnan(flat["Dice"])
    assert metric.summary["Dice"]["ci95"] is None


def test_a_second_evaluation_starts_anew():
    pairs = list(volumes(2))
    metric = SegmentationMetric(classes=META["classes"])
    for pair in pairs:
        metric.process({}, [sample(*pair)])
        metric.evaluate(1)
        assert [row["case_id"] for row in metric.case_rows] == ["sample_0000"]


def test_options_for_background_ignored_label_and_prefix():
    truth = np.array([[0, 1, 255, 255]], np.uint8)
    metric, flat = run(
        [sample(truth, np.array([[0, 1, 1, 2]], np.uint8), "a")],
        ignore_background=False,
        ignore_index=255,
        prefix="val",
    )
    assert metric.case_rows == [{"case_id": "a", "Dice/background": 1.0, "Dice/liver": 1.0, "Dice/tumour": None}]
    np.testing.assert_equal(
        flat, {"val/Dice": 1.0, "val/Dice/background": 1.0, "val/Dice/liver": 1.0, "val/Dice/tumour": math.nan}
    )


def test_ignored_label_survives_packed_slices():
    truth, prediction = next(volumes(1))
    truth, prediction = truth.astype(np.int16), prediction.astype(np.int64)
    truth[2, :4] = -1
    spacing = {"spacing_zyx": (1, 1, 1)}
    whole, _ = run([sample(truth, prediction, "a", **spacing)], measures=("HD95", "Dice"), ignore_index=-1)
    parts = [sample(truth[z], prediction[z], "a", z_index=z, **spacing) for z in range(5)]
    assert run(parts, measures=("HD95", "Dice"), ignore_index=-1)[0].case_rows == whole.case_rows


def test_it_is_registered_and_works_behind_mmengines_evaluator():
    from mmengine.evaluator import Evaluator
    from mmengine.structures import BaseDataElement, PixelData

    evaluator = Evaluator(METRICS.build({"type": "SegmentationMetric", "measures": ["Dice"]}))
    evaluator.dataset_meta = META
    truth, prediction = (torch.from_numpy(volume) for volume in next(volumes(1, shape=(9, 8))))
    element = BaseDataElement(metainfo={"case_id": "a"})
    element.gt_sem_seg, element.pred_sem_seg = PixelData(data=truth), PixelData(data=prediction)
    evaluator.process([element], {})
    assert 0 < evaluator.evaluate(1)["Dice"] < 1


def test_refusals_name_the_case_and_what_to_do():
    truth, prediction = next(volumes(1))
    with pytest.raises(UsageError, match="unknown measure 'Dicee'.*Did you mean Dice"):
        SegmentationMetric(measures=("Dicee",))
    with pytest.raises(UsageError, match="nsd_tolerance_mm must be 0 or more; found -1"):
        SegmentationMetric(nsd_tolerance_mm=-1)
    with pytest.raises(ConfigError, match="SegmentationMetric does not know the classes"):
        SegmentationMetric().process({}, [sample(truth, prediction)])
    with pytest.raises(DataError, match="case a: truth holds label 9, but there are 3 classes"):
        run([sample(truth + 9 * (truth == 2), prediction, "a"), sample(truth * 0 + 9, prediction, "a")])
    with pytest.raises(DataError, match="case sample_0000: truth has shape"):
        run([sample(truth[1:], prediction)])
    with pytest.raises(DataError, match="case a: surface measures are in mm and the sample has no spacing_zyx"):
        run([sample(truth, prediction, "a")], measures=("NSD",))


def evaluate_share(rank: int, world: int) -> dict:
    """Evaluate what a sampler deals to one of `world` processes: in turn, filled up from the start."""
    samples = []
    for number, (truth, prediction) in enumerate(volumes(5)):
        meta = {"spacing_zyx": (2.5, 1.0, 0.7)}
        name = None if number == 4 else f"case{number}"
        if number == 1:
            samples += [sample(truth[z], prediction[z], name, z_index=z, **meta) for z in range(len(truth))]
        else:
            samples.append(sample(None if number == 2 else truth, prediction, name, **meta))
    size = len(samples)
    filled = samples + samples[: -size % world]
    metric = SegmentationMetric(measures=ALL, classes=META["classes"])
    for one in filled[rank::world]:
        metric.process({}, [one])
    flat = metric.evaluate(size)
    return {"flat": flat, "rows": metric.case_rows, "summary": metric.summary, "unlabelled": metric.unlabelled}


def test_two_processes_equal_one_to_the_bit(tmp_path):
    expected = json.dumps(evaluate_share(0, 1))
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), "2", str(tmp_path)], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        for rank in range(2)
    ]
    try:
        assert [child.wait(timeout=120) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    assert [(tmp_path / f"{rank}.json").read_text() for rank in range(2)] == [expected, expected]
    assert json.loads(expected)["unlabelled"] == 1
    assert len(json.loads(expected)["rows"]) == 4


if __name__ == "__main__":  # one of the processes of the test above
    own_rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=own_rank, world_size=world_size
    )
    with open(f"{folder}/{own_rank}.json", "w") as stream:
        json.dump(evaluate_share(own_rank, world_size), stream)
    torch.distributed.destroy_process_group()
