"""Laws of an evaluation: it sees places in space, not how voxels are stored, and no class before another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.io.orientation import ORIENTATIONS, reorient
from itkit.io.volumes import Volume, write_volume
from itkit.process.evaluation.evaluate import Evaluate
from itkit.process.evaluation.table import build_table
from itkit.process.operation import Stage

LAWS = settings(max_examples=20, deadline=None, derandomize=True)
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def case(seed, shape=(7, 9, 11), classes=4):
    """A truth and a prediction of blocky regions, on one oblique grid of unequal spacings."""
    generator = np.random.default_rng(seed)
    truth = np.zeros(shape, np.uint8)
    for label in range(1, classes):
        start = generator.integers(0, 4, 3)
        truth[tuple(slice(a, a + int(size)) for a, size in zip(start, generator.integers(2, 5, 3), strict=True))] = (
            label
        )
    prediction = np.where(generator.random(shape) < 0.1, generator.integers(0, classes, shape), np.roll(truth, 1, 2))
    grid = ((2.5, 0.7, 1.3), (-12.5, 40.0, 7.0), OBLIQUE)
    return Volume(truth, *grid), Volume(prediction.astype(np.uint8), *grid)


def measured(folder: Path, truth: Volume, prediction: Volume, **options):
    """The values of one case: column -> class -> number."""
    paths = folder / "gt" / "x.nii", folder / "pred" / "x.mha"
    for path, volume in zip(paths, (truth, prediction), strict=True):
        write_volume(path, volume, compress=False)
    operation = Evaluate(str(paths[0].parent), str(paths[1].parent), str(folder / "out"), **options)
    (task,) = operation.tasks()
    product = operation.process(task, Stage((folder / "out",), "x"))
    table = build_table({"x": {"record": product.record}}, operation.parameters()["measures"], None, {})
    return {column: dict(zip(table.labels, table.values[column][0], strict=True)) for column in table.columns}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for column in expected:
        assert found[column].keys() == expected[column].keys()
        one, other = ([values[column][label] for label in sorted(expected[column])] for values in (found, expected))
        np.testing.assert_allclose(one, other, err_msg=column, **(tolerance or {"rtol": 1e-9, "atol": 1e-12}))


@LAWS
@given(st.integers(0, 10_000), st.sampled_from(ORIENTATIONS))
def test_the_order_of_axes_in_the_files_does_not_matter(tmp_path_factory, seed, code):
    folder, pair = tmp_path_factory.mktemp("law"), case(seed)
    assert_same(measured(folder, *(reorient(volume, code) for volume in pair)), measured(folder, *pair), rtol=1e-5)


@LAWS
@given(st.integers(0, 10_000), st.tuples(*(st.floats(-500, 500),) * 3))
def test_the_place_of_the_whole_case_does_not_matter(tmp_path_factory, seed, shift):
    folder, pair = tmp_path_factory.mktemp("law"), case(seed)
    moved = [Volume(v.array, v.spacing_zyx, tuple(np.add(v.origin_xyz, shift).tolist()), v.direction_xyz) for v in pair]
    assert_same(measured(folder, *moved), measured(folder, *pair))


@LAWS
@given(st.integers(0, 10_000), st.tuples(*(st.integers(-3, 3),) * 3))
def test_moving_a_prediction_in_space_is_moving_its_voxels(tmp_path_factory, seed, steps):
    folder, (truth, prediction) = tmp_path_factory.mktemp("law"), case(seed)
    wide = tuple(np.pad(volume.array, 8) for volume in (truth, prediction))
    grid = (truth.spacing_zyx, truth.origin_xyz, truth.direction_xyz)
    offset_xyz = np.reshape(OBLIQUE, (3, 3)) @ (np.multiply(steps, truth.spacing_zyx)[::-1])
    moved = Volume(wide[1], grid[0], tuple(np.add(grid[1], offset_xyz).tolist()), grid[2])
    rolled = Volume(np.roll(wide[1], steps, (0, 1, 2)), *grid)
    by_position = measured(folder, Volume(wide[0], *grid), moved, grid="resample")
    assert_same(by_position, measured(folder, Volume(wide[0], *grid), rolled))


@LAWS
@given(st.integers(0, 10_000), st.permutations([1, 2, 3]))
def test_classes_are_measured_alike(tmp_path_factory, seed, order):
    folder, pair = tmp_path_factory.mktemp("law"), case(seed)
    numbers = np.array([0, *order], np.uint8)
    plain = measured(folder, *pair)
    renamed = measured(folder, *(Volume(numbers[v.array], v.spacing_zyx, v.origin_xyz, v.direction_xyz) for v in pair))
    assert_same(
        {column: {label: renamed[column][int(numbers[label])] for label in values} for column, values in plain.items()},
        plain,
    )


@LAWS
@given(st.integers(0, 10_000))
def test_exchanging_truth_and_prediction(tmp_path_factory, seed):
    folder, pair = tmp_path_factory.mktemp("law"), case(seed)
    there, back = measured(folder, *pair), measured(folder, *reversed(pair))
    for column in ("Dice", "IoU", "HD", "HD95", "ASSD", "NSD"):
        assert_same({column: back[column]}, {column: there[column]})
    assert_same({"x": back["Recall"]}, {"x": there["Precision"]})
    assert_same({"x": back["truth_mm3"]}, {"x": there["prediction_mm3"]})


@LAWS
@given(st.integers(0, 10_000))
def test_a_case_measured_class_by_class(tmp_path_factory, seed):
    folder, pair = tmp_path_factory.mktemp("law"), case(seed)
    whole = measured(folder, *pair)
    for label in whole["Dice"]:
        alone = measured(folder, *pair, classes=(str(label),))
        assert_same(alone, {column: {label: values[label]} for column, values in whole.items()})
