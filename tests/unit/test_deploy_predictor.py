"""The predictor: notes, stages, what is refused, memory that runs out, logits on the disk, ensembles, changed recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

from tiny_model import CLASSES, NumpyBackend

from itkit.deploy import Predictor, Recipe
from itkit.deploy.backends import Backend
from itkit.deploy.ensemble import EnsembleBackend
from itkit.deploy.predictor import STAGES, label_dtype
from itkit.errors import ConfigError, DataError, UsageError
from itkit.io.orientation import reorient
from itkit.io.volumes import Volume, write_volume
from itkit.measures.confidence import inverse_entropy

WINDOWS = {"patch_size_zyx": (4, 4, 4), "average": "probabilities", "blending": "gaussian"}


def volume(shape=(9, 8, 7), seed=0) -> Volume:
    array = (np.random.default_rng(seed).normal(size=shape) * 50).astype(np.float32)
    return Volume(array, (2.0, 0.7, 1.1), (-11.3, 4.7, 100.1))


def softmax(logits):
    exp = np.exp(logits - logits.max(0))
    return exp / exp.sum(0)


def test_importing_the_room_and_predicting_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['mmengine'] = None\n"
        f"sys.path.insert(0, {str(Path(__file__).resolve().parent.parent / 'support')!r})\n"
        "sys.modules['tiny_experiment'] = type(sys)('tiny_experiment')\n"
        "sys.modules['tiny_experiment'].make_data = sys.modules['tiny_experiment'].make_experiment = None\n"
        "import itkit.deploy\nassert 'numpy' not in sys.modules\n"
        "from tiny_model import NumpyBackend\nimport numpy as np\nfrom itkit.io.volumes import Volume\n"
        "p = itkit.deploy.Predictor(NumpyBackend(patch_size_zyx=(3, 3, 3)))\n"
        "print(p(Volume(np.arange(125.).reshape(5, 5, 5))).labels.array.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(5, 5, 5)", done.stderr


def test_what_a_prediction_says():
    backend = NumpyBackend()
    assert isinstance(backend, Backend)
    image = volume()
    found = Predictor(backend)(image, probabilities=True, confidence_map=True)
    shares = softmax(backend.forward(image.array[None, None])[0])
    np.testing.assert_allclose(found.probabilities, shares, atol=1e-6)
    np.testing.assert_allclose(found.confidence_map.array, inverse_entropy(shares), atol=1e-5)
    assert found.confidence_map.geometry == found.labels.geometry == image.geometry
    for number in range(3):
        inside = found.labels.array == number
        assert found.confidence.voxels[number] == inside.sum()
        assert found.confidence.classes[number] == pytest.approx(found.confidence_map.array[inside].mean(), rel=1e-5)
    assert set(found.seconds) == set(STAGES)
    assert found.notes == ()
    quiet = Predictor(backend)(image, confidence=False)
    assert (quiet.confidence, quiet.confidence_map, quiet.probabilities) == (None, None, None)
    assert np.array_equal(quiet.labels.array, found.labels.array)


def test_the_time_of_all_stages_is_the_time_of_the_whole():
    ticks = iter(range(10**6))
    predictor = Predictor(NumpyBackend(**WINDOWS), clock=lambda: float(next(ticks)))
    before = next(ticks)
    found = predictor(volume())
    assert 0.5 * (next(ticks) - before) < sum(found.seconds.values()) <= next(ticks) - before
    assert found.seconds["network"] == len(predictor.backend.batches)


def test_more_than_255_classes_have_the_type_for_it():
    class Many(NumpyBackend):
        def forward(self, windows):
            classes = np.arange(400, dtype=np.float32).reshape(1, -1, 1, 1, 1)
            return -np.abs(windows - classes).astype(np.float32)

    values = np.random.default_rng(0).integers(0, 400, (3, 5, 6)).astype(np.float32)
    recipe = Recipe(channels=1, classes=[f"c{k}" for k in range(400)], patch_size_zyx=(2, 4, 4))
    found = Predictor(Many(recipe))(Volume(values))
    assert np.array_equal(found.labels.array, values)
    assert found.labels.array.dtype == np.int16
    assert (label_dtype(255), label_dtype(256), label_dtype(40000)) == (np.uint8, np.int16, np.int32)


def test_what_is_refused(tmp_path):
    predictor = Predictor(NumpyBackend())
    write_volume(tmp_path / "two.mha", Volume(np.zeros((2, 4, 4, 4), np.float32)))
    with pytest.raises(DataError, match=r"two\.mha: has 2 channels, the model takes 1\."):
        predictor(tmp_path / "two.mha")
    with pytest.raises(DataError, match="the volume: has 3 channels"):
        predictor(Volume(np.zeros((3, 4, 4, 4), np.float32)))
    array = volume().array
    array[1, 2, 3] = np.nan
    write_volume(tmp_path / "nan.mha", Volume(array))
    with pytest.raises(DataError, match=r"nan\.mha: 1 voxels are NaN or infinite"):
        predictor(tmp_path / "nan.mha")
    (tmp_path / "cut.mha").write_bytes((tmp_path / "two.mha").read_bytes()[:-7])
    with pytest.raises(DataError, match=r"cut\.mha"):
        predictor(tmp_path / "cut.mha")
    with pytest.raises(UsageError, match="takes a path, a Volume or a SimpleITK image, found a ndarray"):
        predictor(array)
    with pytest.raises(ConfigError, match="preprocessing has no step 'Sharpen'"):
        Predictor(NumpyBackend(preprocessing=[{"type": "Sharpen"}]))


def test_memory_that_runs_out_means_smaller_batches_and_is_said():
    image = volume()
    expected = Predictor(NumpyBackend(**WINDOWS))(image)
    backend = NumpyBackend(**WINDOWS, forward_batch_windows=8)
    backend.most_windows = 3
    found = Predictor(backend)(image)
    assert np.array_equal(found.labels.array, expected.labels.array)
    assert max(backend.batches) > 3
    assert backend.batches[-1] <= 3
    assert any("memory" in note for note in found.notes), found.notes


def test_logits_on_the_disk_lie_on_the_images_grid(tmp_path):
    zarr = pytest.importorskip("zarr")
    image = reorient(volume(), "ASR")
    for average in ("logits", "probabilities"):
        recipe = {"preprocessing": [{"type": "Orient", "orientation": "LPS"}], "average": average}
        predictor = Predictor(NumpyBackend(**recipe, patch_size_zyx=(3, 4, 7)))
        found = predictor(image, probabilities=True, logits_path=tmp_path / f"{average}.zarr")
        stored = zarr.open_array(tmp_path / f"{average}.zarr", mode="r")
        assert stored.shape == (3, *image.size_zyx)
        assert stored.attrs["classes"] == list(CLASSES)
        assert stored.attrs["spacing_zyx"] == list(image.spacing_zyx)
        assert stored.attrs["direction_xyz"] == list(image.direction_xyz)
        np.testing.assert_allclose(softmax(stored[:]), found.probabilities, atol=1e-5)
        assert np.array_equal(stored[:].argmax(0), found.labels.array)


def test_post_processing_belongs_to_the_recipe():
    class Threshold(NumpyBackend):
        def forward(self, windows):
            return np.concatenate([windows * 0, windows - 0.5, windows * 0 - 9], axis=1).astype(np.float32)

    array = np.zeros((6, 6, 6), np.float32)
    array[1:4, 1:4, 1:4], array[5, 5, 5], array[2, 2, 2] = 1, 1, 0
    plain = Predictor(Threshold())(Volume(array)).labels.array
    assert np.array_equal(plain, array)
    predictor = Predictor(Threshold(postprocessing=[{"type": "largest"}, {"type": "holes", "classes": [1]}]))
    cleaned = predictor(Volume(array)).labels.array
    array[5, 5, 5], array[2, 2, 2] = 0, 1
    assert np.array_equal(cleaned, array)
    assert np.array_equal(predictor.changed(post=["none"])(Volume(array)).labels.array, array)
    assert predictor.changed(post=["small=3@large"]).recipe.postprocessing == (
        {"type": "small", "min_volume_mm3": 3.0, "classes": [2]},
    )


def test_a_recipe_can_be_changed_where_that_makes_sense():
    predictor = Predictor(
        NumpyBackend(preprocessing=[{"type": "Window", "level": 0, "width": 100}, {"type": "ZScore"}], **WINDOWS)
    )
    changed = predictor.changed(
        patch_size_zyx=(6, 6, 6), window_width=50, mirror=True, orientation="RAS", batch_windows=5
    ).recipe
    assert changed.preprocessing == (
        {"type": "Orient", "orientation": "RAS"}, {"type": "Window", "level": 0, "width": 50}, {"type": "ZScore"},
    )  # fmt: skip
    assert (changed.patch_size_zyx, changed.patch_stride_zyx, changed.flip_axes) == ((6, 6, 6), None, (0, 1, 2))
    assert (changed.orientation, changed.forward_batch_windows) == ("RAS", 5)
    assert predictor.recipe.flip_axes == (), "the one before is as it was"
    kept = Predictor(NumpyBackend(flip_axes=[[2]])).changed(mirror=True).recipe
    assert kept.flip_axes == ((2,),), "the model's own mirroring stays"
    with pytest.raises(UsageError, match="preprocessing has no step Window whose level and width .* it does nothing"):
        Predictor(NumpyBackend()).changed(window_level=40)
    with pytest.raises(ConfigError, match="has no effect without patch_size_zyx"):
        Predictor(NumpyBackend()).changed(patch_stride_zyx=(2, 2, 2))


# ------------------------------------------------------------------- ensembles


class Shifted(NumpyBackend):
    """A member that sees the image a little brighter, as a network of another fold would be."""

    def __init__(self, shift: float, **changes):
        super().__init__(**changes)
        self.shift = shift

    def forward(self, windows):
        return super().forward(windows + self.shift)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_an_ensemble_is_the_mean_of_its_members_probabilities(average):
    image = volume()
    members = [Shifted(shift, **{**WINDOWS, "average": average}) for shift in (-30.0, 0.0, 40.0)]
    ensemble = Predictor(EnsembleBackend(members))
    found = ensemble(image, probabilities=True)
    alone = [Predictor(Shifted(m.shift, **WINDOWS))(image, probabilities=True).probabilities for m in members]
    np.testing.assert_allclose(found.probabilities, np.mean(alone, axis=0), atol=2e-6)
    assert not np.array_equal(found.labels.array, alone[0].argmax(0))
    one = Predictor(EnsembleBackend(members[:1]))(image)
    assert np.array_equal(one.labels.array, Predictor(members[0])(image).labels.array)


def test_an_ensemble_of_sigmoids_is_the_mean_of_the_probabilities_too():
    image = volume()
    single = {**WINDOWS, "classes": ("no", "yes"), "activation": "sigmoid", "threshold": 0.3}
    members = [Shifted(shift, **single) for shift in (-5.0, 0.0, 8.0)]
    found = Predictor(EnsembleBackend(members))(image, probabilities=True)
    alone = [Predictor(member)(image, probabilities=True).probabilities for member in members]
    mean = np.mean(alone, axis=0)
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-5)
    clear = np.abs(mean[0] - 0.3) > 1e-5
    assert np.array_equal(found.labels.array[clear], mean[0][clear] > 0.3)


def test_members_must_see_and_say_the_same():
    with pytest.raises(ConfigError, match="at least one model"):
        EnsembleBackend([])
    with pytest.raises(
        ConfigError, match=r"model 2 of the ensemble has preprocessing .*ZScore.*, the first one has \(\)"
    ):
        EnsembleBackend([NumpyBackend(), NumpyBackend(preprocessing=[{"type": "ZScore"}])])
    with pytest.raises(ConfigError, match="model 3 of the ensemble has classes"):
        EnsembleBackend([NumpyBackend(), NumpyBackend(), NumpyBackend(classes=("a", "b", "c"))])


def test_members_of_two_kinds_meet_in_main_memory():
    import torch

    class InTorch(Shifted):
        device = "elsewhere"

        def asarray(self, windows):
            return torch.from_numpy(windows)

        def forward(self, windows):
            assert isinstance(windows, torch.Tensor)
            return torch.from_numpy(super().forward(windows.numpy()))

        def to_numpy(self, array):
            return array.numpy()

    image = volume()
    mixed = Predictor(EnsembleBackend([Shifted(0.0, **WINDOWS), InTorch(30.0, **WINDOWS)]))
    pure = Predictor(EnsembleBackend([Shifted(0.0, **WINDOWS), Shifted(30.0, **WINDOWS)]))
    both = Predictor(EnsembleBackend([InTorch(0.0, **WINDOWS), InTorch(30.0, **WINDOWS)]))
    expected = pure(image, probabilities=True).probabilities
    np.testing.assert_allclose(mixed(image, probabilities=True).probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(both(image, probabilities=True).probabilities, expected, atol=1e-6)
    assert mixed.backend.device == "cpu, elsewhere"
