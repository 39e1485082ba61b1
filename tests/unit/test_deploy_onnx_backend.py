"""ONNX Runtime as a backend: right numbers for any batch, no torch, and a clear word for every file it cannot use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import onnx
import onnxruntime
from onnx import TensorProto
from onnx_graphs import RECIPE, logits_of, write_graph

from itkit.deploy import onnx_backend
from itkit.deploy.backends import Backend
from itkit.deploy.onnx_backend import RECIPE_KEY, OnnxBackend, with_checksum
from itkit.deploy.recipe import Recipe
from itkit.errors import CheckpointError, ConfigError, MissingDependency, UsageError


def windows(count: int, *, channels: int = 1, size=(4, 4, 4)) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, channels, *size)).astype(np.float32)


def ask(backend: OnnxBackend, x: np.ndarray) -> np.ndarray:
    return backend.to_numpy(backend.forward(backend.asarray(x)))


class TestNumbers:
    @pytest.mark.parametrize("count", [1, 2, 7])
    def test_any_batch(self, tmp_path, count):
        backend = OnnxBackend(write_graph(tmp_path / "n.onnx"), device="cpu")
        answer = ask(backend, windows(count))
        np.testing.assert_allclose(answer, logits_of(windows(count)), rtol=1e-6, atol=1e-6)
        assert answer.dtype == np.float32
        assert isinstance(backend, Backend)
        assert (backend.name, backend.device) == ("onnx", "cpu")

    @pytest.mark.parametrize("count", [1, 3, 4, 8])
    def test_a_graph_with_a_fixed_batch_is_asked_in_parts(self, tmp_path, count):
        backend = OnnxBackend(write_graph(tmp_path / "n.onnx", batch=3), device="cpu")
        np.testing.assert_allclose(ask(backend, windows(count)), logits_of(windows(count)), rtol=1e-6, atol=1e-6)

    def test_windows_of_other_types_and_strides(self, tmp_path):
        backend = OnnxBackend(write_graph(tmp_path / "n.onnx"), device="cpu")
        x = windows(2).astype(np.float64).transpose(0, 1, 4, 3, 2)
        np.testing.assert_allclose(ask(backend, x), logits_of(x), rtol=1e-6, atol=1e-6)

    def test_a_network_of_slices(self, tmp_path):
        recipe = RECIPE.replaced(channels=2, slice_neighbours=1, patch_size_zyx=(1, 4, 5))
        path = write_graph(tmp_path / "n.onnx", channels=6, size=(4, 5), recipe=recipe)
        x = windows(3, channels=6, size=(4, 5))
        np.testing.assert_allclose(ask(OnnxBackend(path, device="cpu"), x), logits_of(x), rtol=1e-5, atol=1e-5)

    def test_sizes_that_vary_fit_every_patch(self, tmp_path):
        recipe = RECIPE.replaced(patch_size_zyx=None)
        backend = OnnxBackend(write_graph(tmp_path / "n.onnx", size=("z", "y", "x"), recipe=recipe), device="cpu")
        x = windows(1, size=(3, 5, 2))
        np.testing.assert_allclose(ask(backend, x), logits_of(x), rtol=1e-6, atol=1e-6)

    def test_the_same_without_what_memory_is_held_in_reserve(self, tmp_path):
        backend = OnnxBackend(write_graph(tmp_path / "n.onnx"), device="cpu")
        before = ask(backend, windows(2))
        backend.release_memory()
        np.testing.assert_array_equal(ask(backend, windows(2)), before)
        np.testing.assert_array_equal(ask(backend, windows(2)), before)


class TestRecipe:
    def test_the_files_own_with_the_names_of_its_ends(self, tmp_path):
        backend = OnnxBackend(write_graph(tmp_path / "n.onnx"), device="cpu")
        assert backend.recipe == RECIPE.replaced(onnx_input="image", onnx_output="logits")

    def test_a_foreign_file_needs_one(self, tmp_path):
        path = write_graph(tmp_path / "n.onnx", recipe=None, inputs=("x",), outputs=("aux", "y"))
        message = (
            r"n\.onnx: carries no recipe of itkit \(metadata key itkit_recipe\), so nobody knows what must be done before and "
            r"after the network; it was written by by hand\. Export it with itk_infer export, or give a recipe\."
        )
        with pytest.raises(CheckpointError, match=message):
            OnnxBackend(path)
        given = RECIPE.replaced(onnx_output="y")
        backend = OnnxBackend(path, recipe=given, device="cpu")
        assert (backend.recipe.onnx_input, backend.recipe.onnx_output) == ("x", "y")
        np.testing.assert_allclose(ask(backend, windows(2)), logits_of(windows(2)), rtol=1e-6, atol=1e-6)

    def test_one_that_cannot_be_understood(self, tmp_path):
        model = onnx.load(write_graph(tmp_path / "n.onnx"))
        entry, checksum = model.metadata_props
        document = json.loads(entry.value)
        entry.value, checksum.value = json.dumps({**document, "format": 99}), "0" * 64
        (tmp_path / "n.onnx").write_bytes(with_checksum(model.SerializeToString()))
        with pytest.raises(
            ConfigError, match=r"n\.onnx: the recipe of a model has the format 99, this itkit reads up to 1"
        ):
            OnnxBackend(tmp_path / "n.onnx")
        assert entry.key == RECIPE_KEY

    @pytest.mark.parametrize(
        ("graph", "recipe", "message"),
        [
            ({}, {"patch_size_zyx": (8, 4, 4)},
             r"exported for windows of \(4, 4, 4\) voxels, but windows of \(8, 4, 4\) voxels are"),
            ({}, {"patch_size_zyx": None},
             r"but whole images of any size are asked for\. Take that size, or export it with sizes"),
            ({}, {"channels": 2}, "input 'image' takes 1 channels, the recipe gives 2"),
            ({}, {"slice_neighbours": 0, "patch_size_zyx": (1, 4, 4)},
             r"has 5 axes \(batch, 1, 4, 4, 4\), the recipe asks for 4 \(batch, channels, Y, X\)"),
            ({"size": (4, 4)}, {}, r"has 4 axes \(batch, 1, 4, 4\), the recipe asks for 5 \(batch, channels, Z, Y, X\)"),
            ({}, {"onnx_input": "x"}, "the graph has no input 'x'; found 'image'"),
            ({}, {"onnx_output": "x"}, "the graph has no output 'x'; found 'logits'"),
            ({"inputs": ("image", "mask")}, {}, "the graph has 2 inputs"),
            ({"kind": TensorProto.FLOAT16}, {}, r"input 'image' is a tensor\(float16\); itkit runs graphs of tensor\(float\)"),
        ],
    )  # fmt: skip
    def test_one_that_does_not_fit_the_graph(self, tmp_path, graph, recipe, message):
        path = write_graph(tmp_path / "n.onnx", recipe=RECIPE.replaced(**recipe), **graph)
        with pytest.raises(ConfigError, match=r"n\.onnx: .*" + message):
            OnnxBackend(path, device="cpu")

    def test_logits_and_windows_of_other_shapes(self, tmp_path):
        recipe = RECIPE.replaced(classes=("a", "b", "c", "d"))
        backend = OnnxBackend(write_graph(tmp_path / "n.onnx", recipe=recipe), device="cpu")
        message = r"answers \(2, 3, 4, 4, 4\) for windows \(2, 1, 4, 4, 4\); the recipe asks for \(2, 4, 4, 4, 4\)"
        with pytest.raises(ConfigError, match=message):
            backend.forward(windows(2))
        with pytest.raises(
            ConfigError, match=r"takes windows \(B, 1, \.\.\.\) with 3 spatial axes, found \(2, 3, 4, 4, 4\)"
        ):
            backend.forward(windows(2, channels=3))


class TestFiles:
    def test_missing_empty_and_foreign(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"none\.onnx: cannot be read \(No such file or directory\)"):
            OnnxBackend(tmp_path / "none.onnx")
        (tmp_path / "empty.onnx").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"empty\.onnx: is empty"):
            OnnxBackend(tmp_path / "empty.onnx")
        (tmp_path / "text.onnx").write_text("no network")
        with pytest.raises(
            CheckpointError, match=rf"text\.onnx: ONNX Runtime {onnxruntime.__version__} cannot run it \("
        ):
            OnnxBackend(tmp_path / "text.onnx")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"opset": 9999}, "ONNX Runtime only .*Opset 9999 is"),
            ({"ir_version": 9999}, "Unsupported model IR version: 9999"),
        ],
    )
    def test_operators_or_a_format_of_the_future(self, tmp_path, change, reason, monkeypatch):
        monkeypatch.setattr(onnx.checker, "check_model", lambda path: None)
        path = write_graph(tmp_path / "n.onnx", **change)
        with pytest.raises(
            CheckpointError,
            match=rf"cannot run it \({reason}.*install a newer ONNX Runtime, or export again",
        ):
            OnnxBackend(path)

    def test_every_changed_byte_of_an_export_is_damage(self, tmp_path):
        path = write_graph(tmp_path / "n.onnx")
        OnnxBackend(path, device="cpu")
        good = path.read_bytes()
        for at in np.random.default_rng(0).choice(len(good), 60, replace=False).tolist():
            path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            with pytest.raises(CheckpointError, match=r"n\.onnx: (is damaged|carries|ONNX Runtime)"):
                OnnxBackend(path, device="cpu")
        path.write_bytes(good[:-20])
        with pytest.raises(CheckpointError, match=r"n\.onnx: (is damaged|ONNX Runtime)"):
            OnnxBackend(path, device="cpu")

    def test_a_recipe_without_the_checksum_of_an_export(self, tmp_path):
        path = write_graph(tmp_path / "n.onnx", checksum=False)
        with pytest.raises(CheckpointError, match="carries a recipe and not the checksum that every export has"):
            OnnxBackend(path)
        assert OnnxBackend(path, recipe=RECIPE).recipe.channels == 1

    def test_a_changed_weight_is_found_by_the_checksum_alone(self, tmp_path):
        """Graph and recipe stay possible: nothing else could find it."""
        path = write_graph(tmp_path / "n.onnx")
        good = path.read_bytes()
        at = good.index(np.float32(2.0).tobytes())
        path.write_bytes(good[:at] + np.float32(2.5).tobytes() + good[at + 4 :])
        with pytest.raises(CheckpointError, match="is damaged, or another program has changed it"):
            OnnxBackend(path, device="cpu")


class TestDevices:
    @pytest.fixture
    def path(self, tmp_path):
        return write_graph(tmp_path / "n.onnx")

    def test_unknown_or_absent(self, path, monkeypatch):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(UsageError, match="device 'gpu': ONNX Runtime computes on cpu, cuda or cuda:N"):
            OnnxBackend(path, device="gpu")
        message = (
            r"device 'cuda:1': this ONNX Runtime has no CUDA \(it has CPUExecutionProvider\)\. Install onnxruntime-gpu"
        )
        with pytest.raises(UsageError, match=message):
            OnnxBackend(path, device="cuda:1")
        assert OnnxBackend(path).device == "cpu"

    def test_cuda_that_does_not_start_is_said(self, path, monkeypatch):
        """ONNX Runtime itself goes on with the CPU and says so in its log alone."""
        real, asked = onnxruntime.InferenceSession, []

        def session(content, options, providers):
            asked.append(providers)
            return real(content, options, providers=["CPUExecutionProvider"])

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        with pytest.warns(UserWarning, match="ONNX Runtime could not start CUDA; computing on the CPU"):
            assert OnnxBackend(path).device == "cpu"
        with pytest.raises(UsageError, match="device 'cuda:1': ONNX Runtime could not start CUDA"):
            OnnxBackend(path, device="cuda:1")
        assert asked[0] == [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]
        assert asked[1][0] == ("CUDAExecutionProvider", {"device_id": 1})

    @pytest.mark.parametrize(
        ("value", "threads"), [("3", 3), ("2,1", 2), ("", len(os.sched_getaffinity(0))), ("x", None)]
    )
    def test_threads_come_from_the_environment(self, path, monkeypatch, value, threads):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert onnx_backend._threads() == (threads or len(os.sched_getaffinity(0)))
        session = OnnxBackend(path, device="cpu")._session
        assert session.get_session_options().intra_op_num_threads == onnx_backend._threads()

    def test_memory_errors_are_told_from_others(self, path):
        backend = OnnxBackend(path, device="cpu")
        for text in (
            "std::bad_alloc",
            "Failed to allocate memory for requested buffer of size 1",
            "CUDA out of memory",
        ):
            assert backend.is_memory_error(RuntimeError(text))
        assert backend.is_memory_error(MemoryError())
        assert not backend.is_memory_error(RuntimeError("Got invalid dimensions for input"))

    def test_onnxruntime_is_not_there(self, path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingDependency, match=r"onnxruntime is needed for running ONNX files .* 'itkit\[onnx\]'"):
            OnnxBackend(path)


TORCH_FREE = """
import json, sys
for name in ("torch", "mmengine", "mmcv", "mmseg", "monai", "onnx", "onnxscript", "SimpleITK", "einops", "yaml", "jinja2", "PIL"):
    sys.modules[name] = None  # importing it now raises
import numpy as np
from itkit.cli.main import run_tool
from itkit.deploy import Predictor
from itkit.io.volumes import Volume, read_volume, write_volume
folder, network = sys.argv[1:]
image = Volume(np.random.default_rng(0).normal(0, 1, (6, 9, 7)).astype(np.float32), (2.0, 1.0, 1.5))
write_volume(f"{folder}/in/case.mha", image)
words = ["-q", "-i", f"{folder}/in", "-o", f"{folder}/out", "--onnx", network, "--gpus", "0"]
assert run_tool("itk_infer", words) == 0
predictor = Predictor.from_onnx(network, device="cpu")
labels = predictor(image).labels
by_command = read_volume(f"{folder}/out/case.mha")
assert (by_command.array == labels.array).all() and by_command.geometry == image.geometry
backend = predictor.backend
answer = backend.forward(backend.asarray(np.ones((3, 1, 4, 4, 4))))
print("ANSWER", json.dumps([answer[:, :, 0, 0, 0].tolist(), labels.array.tolist()]))
"""


def test_python_and_command_predict_where_torch_cannot_be_imported(tmp_path):
    path = write_graph(tmp_path / "n.onnx")
    command = [sys.executable, "-c", TORCH_FREE, os.fspath(tmp_path), os.fspath(path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    logits, labels = json.loads(answer.stdout.rpartition("ANSWER")[2])
    assert logits == logits_of(np.ones((3, 1, 4, 4, 4), np.float32))[:, :, 0, 0, 0].tolist()
    image = (
        np.random.default_rng(0).normal(0, 1, (1, 1, 6, 9, 7)).astype(np.float32)
    )  # a pointwise network: no window shows
    np.testing.assert_array_equal(labels, logits_of(image)[0].argmax(0))


def test_recipes_names_of_the_ends_survive(tmp_path):
    recipe = RECIPE.replaced(onnx_input="image", onnx_output="logits", provenance={"step": 3})
    backend = OnnxBackend(write_graph(tmp_path / "n.onnx", recipe=recipe), device="cpu")
    assert backend.recipe == recipe == Recipe.from_json(recipe.to_json())
