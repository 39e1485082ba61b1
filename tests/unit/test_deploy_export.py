"""An exported network computes what the network computes, says how it is used, and is no file where either fails."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import onnx_graphs

from itkit.deploy import export as export_module
from itkit.deploy.export import TOLERANCE, export_onnx, readable
from itkit.deploy.onnx_backend import OnnxBackend
from itkit.deploy.recipe import Recipe
from itkit.errors import DataError, ExportError, MissingDependency, UsageError

RECIPE = Recipe(
    1,
    ("background", "liver", "Tümör"),
    preprocessing=({"type": "Orient", "orientation": "LPS"}, {"type": "Window", "level": 40.0, "width": 400.0}),
    patch_size_zyx=(8, 6, 10),
    spacing_zyx=(2.5, None, 1.0),
    orientation="LPS",
    postprocessing=({"type": "LargestComponent", "classes": [1]},),
    provenance={"experiment": "1.0.X", "model": "tiny", "step": 7, "checkpoint_sha256": "ab" * 32},
)


class Tiny(nn.Module):
    """A network that has what may go wrong: batch statistics, dropout, two resolutions."""

    def __init__(self, channels: int = 1, classes: int = 3):
        super().__init__()
        self.inner = nn.Conv3d(channels, 4, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm3d(4), nn.Dropout(0.5)
        self.down, self.up = nn.Conv3d(4, 4, 2, stride=2), nn.ConvTranspose3d(4, 4, 2, stride=2)
        self.head = nn.Conv3d(4, classes, 1)

    def forward(self, x):
        x = self.drop(torch.relu(self.norm(self.inner(x))))
        return self.head(x + self.up(self.down(x)))


class Slices(nn.Conv2d):
    """A network of slices with one neighbour at each side."""

    def __init__(self):
        super().__init__(3, 3, 3, padding=1)


class Foreign(nn.Module):
    """Answers what `answer` makes of windows."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.answer(x) * self.weight[:, None, None, None]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = Tiny()
    made.norm.running_mean.uniform_(-1, 1)
    made.norm.running_var.uniform_(0.5, 2)
    return made.train()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "deep" / "tiny.onnx"
    real = [np.random.default_rng(5).normal(3, 2, (2, 1, 8, 6, 10)).astype(np.float32)]
    lines = []
    return export_onnx(network, RECIPE, path, real_windows=real, say=lines.append), lines


def compare(network: nn.Module, path: Path, shape: tuple[int, ...]) -> float:
    x = np.random.default_rng(9).standard_normal(shape).astype(np.float32)
    backend = OnnxBackend(path, device="cpu")
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(x)).numpy()
    return float(np.abs(backend.forward(backend.asarray(x)) - expected).max())


class TestFile:
    def test_any_batch_computes_what_the_network_computes(self, network, exported):
        for count in (1, 2, 5, 9):
            assert compare(network, exported[0].path, (count, 1, 8, 6, 10)) < 1e-5
        network.train()

    def test_how_it_was_verified_is_told(self, exported):
        found, lines = exported
        assert (found.random_windows, found.real_windows) == (6, 2)
        assert 0 <= found.largest_difference < 1e-5 < found.largest_logit
        assert found.opset == onnx.load(found.path).opset_import[0].version
        assert lines == [
            "tracing the network with windows (1, 8, 6, 10) (channels, then size)",
            "comparing ONNX Runtime with PyTorch",
        ]

    def test_the_network_itself_is_as_before(self, network, exported):
        assert network.training
        assert network.norm.training

    def test_the_recipe_travels_with_it(self, exported):
        found = OnnxBackend(exported[0].path, device="cpu").recipe
        assert found == RECIPE.replaced(onnx_input="image", onnx_output="logits")

    def test_people_can_read_its_metadata(self, exported):
        model = onnx.load(exported[0].path)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["itkit_classes"] == "background, liver, Tümör"
        assert metadata["itkit_patch_size_zyx"] == "8 6 10"
        assert metadata["itkit_spacing_zyx"] == "2.5 - 1"
        assert metadata["itkit_orientation"] == "LPS"
        assert metadata["itkit_preprocessing"] == "Orient, Window"
        assert metadata["itkit_postprocessing"] == "LargestComponent"
        assert (metadata["itkit_experiment"], metadata["itkit_model"], metadata["itkit_step"]) == ("1.0.X", "tiny", "7")
        assert metadata["itkit_checkpoint_sha256"] == "ab" * 32
        assert "itkit_threshold" not in metadata

    def test_only_the_batch_varies(self, exported):
        (source,), (target,) = (getattr(onnx.load(exported[0].path).graph, end) for end in ("input", "output"))
        shapes = [[d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim] for end in (source, target)]
        assert shapes == [["batch", 1, 8, 6, 10], ["batch", 3, 8, 6, 10]]

    def test_nothing_of_this_machine_is_in_it(self, exported):
        content = exported[0].path.read_bytes()
        assert b".py" not in content
        assert str(Path(__file__).parent.parent).encode() not in content
        assert [file.name for file in exported[0].path.parent.iterdir()] == ["tiny.onnx"]

    def test_the_same_network_makes_the_same_bytes(self, network, exported, tmp_path):
        again = export_onnx(network, RECIPE, tmp_path / "again.onnx")
        assert again.path.read_bytes() == exported[0].path.read_bytes()


class TestSizes:
    def test_whole_images_have_sizes_that_vary(self, network, tmp_path):
        recipe = RECIPE.replaced(patch_size_zyx=None)
        found = export_onnx(network, recipe, tmp_path / "n.onnx")
        assert found.random_windows == 8
        for shape in ((1, 1, 4, 8, 6), (3, 1, 10, 2, 12)):
            assert compare(network, tmp_path / "n.onnx", shape) < 1e-5
        network.train()

    def test_a_network_of_slices(self, tmp_path):
        torch.manual_seed(1)
        recipe = RECIPE.replaced(slice_neighbours=1, patch_size_zyx=(1, 6, 10))
        assert export_onnx(Slices(), recipe, tmp_path / "n.onnx", opset=18).opset == 18
        torch.manual_seed(1)
        assert compare(Slices(), tmp_path / "n.onnx", (5, 3, 6, 10)) < 1e-5


class ByHand(nn.Module):
    """Computes what the graph of `onnx_graphs` computes, but for what `change` makes of windows and logits."""

    def __init__(self, change=lambda x, logits: logits):
        super().__init__()
        self.change, self.weight = change, nn.Parameter(torch.from_numpy(onnx_graphs.WEIGHT)[:, None, None, None])

    def forward(self, x):
        logits = x * self.weight + torch.from_numpy(onnx_graphs.BIAS)[:, None, None, None]
        return self.change(x, logits)


class TestRefused:
    @pytest.fixture
    def traced(self, monkeypatch, tmp_path):
        """Let tracing give the graph of `onnx_graphs`, whatever the network is: what is tested is what happens then."""

        def graph_of(network, shape, dynamic_size, opset, path):
            size = ("z", "y", "x") if dynamic_size else (4, 4, 4)
            recipe = onnx_graphs.RECIPE.replaced(patch_size_zyx=None) if dynamic_size else onnx_graphs.RECIPE
            return onnx.load(onnx_graphs.write_graph(tmp_path / "by_hand" / "n.onnx", size=size, recipe=recipe))

        monkeypatch.setattr(export_module, "_graph_of", graph_of)

    def refuses(self, error, message, path, network, recipe=RECIPE, **options):
        with pytest.raises(error, match=message):
            export_onnx(network, recipe, path, **options)
        assert not path.exists()
        assert [file for file in path.parent.iterdir() if file.name != "by_hand"] == []

    def test_the_graph_by_hand_is_right(self, traced, tmp_path):
        real = [np.full((1, 1, 4, 4, 4), 100, np.float32)]
        found = export_onnx(ByHand(), onnx_graphs.RECIPE, tmp_path / "n.onnx", real_windows=real)
        assert found.largest_difference < 1e-4
        assert (found.largest_logit, found.real_windows) == (199, 1)
        export_onnx(ByHand(), onnx_graphs.RECIPE, tmp_path / "m.onnx", dynamic_size=True)

    def test_other_numbers_than_the_networks(self, traced, tmp_path):
        """A file whose numbers differ by more than is allowed must never get its name; one by less does."""
        path = tmp_path / "n.onnx"
        near, far = (ByHand(lambda x, y, far=far: y + far * (len(x) == 3)) for far in (TOLERANCE, 0.01))
        found = export_onnx(near, onnx_graphs.RECIPE, path)
        assert found.largest_difference == pytest.approx(TOLERANCE, rel=0.1)
        path.unlink()
        message = r"ONNX Runtime and PyTorch differ by 0\.01 on a batch of 3 random windows, where .* is allowed"
        self.refuses(ExportError, message + r"\. Nothing was written", path, far, onnx_graphs.RECIPE)

    def test_other_numbers_on_a_real_window_alone(self, traced, tmp_path):
        """What random windows cannot show: the network decides something that its trace does not."""
        network = ByHand(lambda x, logits: logits.clamp(-150, 150))
        real = [np.full((1, 1, 4, 4, 4), 100, np.float32)]
        message = r"differ by 49 on a batch of 1 real windows, where the largest logit is 150 and 0\.015 is allowed"
        self.refuses(ExportError, message, tmp_path / "n.onnx", network, onnx_graphs.RECIPE, real_windows=real)

    def test_not_a_number(self, traced, tmp_path):
        network = ByHand(lambda x, logits: logits / 0 - logits / 0)
        self.refuses(
            ExportError, "differ by nan on a batch of 1 random", tmp_path / "n.onnx", network, onnx_graphs.RECIPE
        )

    def test_a_batch_that_the_network_cannot_compute(self, traced, tmp_path):
        def change(x, logits):
            if len(x) == 3:
                raise RuntimeError("three are too many")
            return logits

        message = (
            r"a batch of 3 random windows \(1, 4, 4, 4\) .* cannot be computed \(RuntimeError: three are too many\)"
        )
        self.refuses(ExportError, message, tmp_path / "n.onnx", ByHand(change), onnx_graphs.RECIPE)

    @pytest.mark.parametrize("axis", [2, 4])
    def test_another_size_that_gives_other_numbers(self, traced, tmp_path, axis):
        network = ByHand(lambda x, logits: logits if x.shape[axis] == 4 else 2 * logits)
        message = "differ by .* on a batch of 1 random windows"
        self.refuses(ExportError, message, tmp_path / "n.onnx", network, onnx_graphs.RECIPE, dynamic_size=True)

    def test_another_size_that_the_graph_cannot_compute(self, traced, tmp_path):
        network = ByHand(lambda x, logits: logits[..., :4])
        message = r"differ by inf on a batch of 1 random windows"
        self.refuses(ExportError, message, tmp_path / "n.onnx", network, onnx_graphs.RECIPE, dynamic_size=True)

    def test_a_graph_that_is_wrong(self, traced, tmp_path, monkeypatch):
        def fails(*_, **__):
            raise onnx.checker.ValidationError("on purpose")

        path = tmp_path / "n.onnx"
        onnx_graphs.write_graph(tmp_path / "by_hand" / "n.onnx")
        monkeypatch.setattr(onnx_graphs.onnx.checker, "check_model", lambda *a, **k: fails() if k else None)
        message = r"n\.onnx: onnx finds the graph wrong \(ValidationError: on purpose\)"
        self.refuses(ExportError, message, path, ByHand(), onnx_graphs.RECIPE)

    def test_a_batch_that_cannot_vary(self, tmp_path):
        def answer(x):
            return x.reshape(2, 1, 8, 6, 10).expand(-1, 3, -1, -1, -1)

        message = r"n\.onnx: Foreign works for one size alone along batch, so that cannot vary\. Nothing was written"
        self.refuses(ExportError, message, tmp_path / "n.onnx", Foreign(answer))

    def test_operators_that_torch_does_not_write(self, tmp_path):
        message = (
            r"torch cannot write Sequential with operators of version 7; it gave version \d+\. Ask for another --opset"
        )
        network = nn.Sequential(nn.Conv3d(1, 3, 1), nn.GELU())
        self.refuses(ExportError, message, tmp_path / "n.onnx", network, opset=7)

    def test_sizes_that_cannot_vary(self, tmp_path):
        def answer(x):
            return x.reshape(-1, 1, 8, 6, 10).expand(-1, 3, -1, -1, -1)

        message = r"windows \(1, 16, 6, 10\) .* cannot be computed \(ConfigError: n\.onnx: the network answers \(2, 3, 8, 6, 10\)"
        self.refuses(ExportError, message, tmp_path / "n.onnx", Foreign(answer), dynamic_size=True)

    def test_code_that_cannot_be_traced(self, tmp_path):
        def answer(x):
            raise RuntimeError("on purpose")

        message = (
            r"n\.onnx: torch cannot export Foreign with a batch \(RuntimeError: on purpose\)\. Nothing was written"
        )
        self.refuses(ExportError, message, tmp_path / "n.onnx", Foreign(answer))
        message = r"torch cannot export Foreign with a batch and sizes that vary \("
        self.refuses(ExportError, message, tmp_path / "n.onnx", Foreign(answer), dynamic_size=True)

    def test_more_weights_than_a_file_holds(self, network, tmp_path, monkeypatch):
        monkeypatch.setattr(export_module, "MOST_BYTES", 100)
        self.refuses(ExportError, "GiB of weights; one ONNX file holds less than 2", tmp_path / "n.onnx", network)

    def test_a_name_that_is_taken_or_none(self, network, exported, tmp_path):
        before = exported[0].path.read_bytes()
        with pytest.raises(UsageError, match=r"tiny\.onnx: is there already\. Choose another name, or .* --overwrite"):
            export_onnx(network, RECIPE, exported[0].path)
        assert exported[0].path.read_bytes() == before
        self.refuses(
            UsageError, r"n\.pth: the name of an exported network ends with \.onnx", tmp_path / "n.pth", network
        )

    def test_an_earlier_file_stays_where_the_new_one_fails(self, traced, exported, tmp_path):
        path = tmp_path / "n.onnx"
        path.write_bytes(exported[0].path.read_bytes())
        with pytest.raises(ExportError, match="differ by inf"):
            export_onnx(ByHand(lambda x, logits: logits[:, :2]), onnx_graphs.RECIPE, path, overwrite=True)
        assert path.read_bytes() == exported[0].path.read_bytes()
        assert sorted(file.name for file in tmp_path.iterdir()) == ["by_hand", "n.onnx"]
        export_onnx(ByHand(), onnx_graphs.RECIPE.replaced(blending="gaussian"), path, overwrite=True)
        assert OnnxBackend(path, device="cpu").recipe.blending == "gaussian"

    def test_a_disk_that_refuses(self, traced, tmp_path, monkeypatch):
        real = Path.write_bytes

        def fails(path, content):
            if "part" in path.name:
                raise OSError(28, "No space left on device")
            return real(path, content)

        monkeypatch.setattr(Path, "write_bytes", fails)
        message = r"n\.onnx: cannot be written \(No space left on device\)"
        self.refuses(DataError, message, tmp_path / "n.onnx", ByHand(), onnx_graphs.RECIPE)

    @pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
    def test_a_package_that_is_not_there(self, network, tmp_path, monkeypatch, package):
        monkeypatch.setitem(sys.modules, package, None)
        extra = "onnx" if package == "onnxruntime" else "export"
        message = rf"{package} is needed for .* 'itkit\[{extra}\]'"
        self.refuses(MissingDependency, message, tmp_path / "n.onnx", network)


def test_readable_metadata_leave_out_what_is_not_said():
    assert readable(Recipe(2, ("a", "b"), provenance={"step": None, "more": {"x": 1}})) == {
        "itkit_version": export_module.__version__,
        "itkit_channels": "2",
        "itkit_classes": "a, b",
        "itkit_activation": "softmax",
    }
