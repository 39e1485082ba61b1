"""Small ONNX files made by hand with onnx's own tools: a network of one convolution that anybody can compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from itkit.deploy.onnx_backend import CHECKSUM_KEY, RECIPE_KEY, with_checksum
from itkit.deploy.recipe import Recipe

CLASSES = ("background", "low", "high")
RECIPE = Recipe(1, CLASSES, patch_size_zyx=(4, 4, 4))
WEIGHT = np.array([0.5, -1.0, 2.0], np.float32)
BIAS = np.array([0.25, 0.0, -1.0], np.float32)


def logits_of(windows: np.ndarray) -> np.ndarray:
    """What the network of `write_graph` answers: logit k is ``WEIGHT[k] * (sum of the channels) + BIAS[k]``."""
    ends = (slice(None),) + (None,) * (windows.ndim - 2)
    return windows.sum(1, keepdims=True) * WEIGHT[ends] + BIAS[ends]


def write_graph(
    path: Path,
    *,
    batch: int | str = "batch",
    channels: int = 1,
    size: tuple[int | str, ...] = (4, 4, 4),
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    ir_version: int = 8,
    recipe: Recipe | None = RECIPE,
    checksum: bool = True,
    inputs: tuple[str, ...] = ("image",),
    outputs: tuple[str, ...] = ("logits",),
) -> Path:
    """Write a convolution with a kernel of one voxel; without `recipe` all of itkit's metadata is left away."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = np.broadcast_to(WEIGHT.reshape(3, *(1,) * (len(size) + 1)), (3, channels, *(1,) * len(size)))
    initializers = [
        numpy_helper.from_array(weight.astype(dtype), "w"),
        numpy_helper.from_array(BIAS.astype(dtype), "b"),
    ]
    nodes = [helper.make_node("Conv", [inputs[0], "w", "b"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "one convolution",
        [helper.make_tensor_value_info(name, kind, (batch, channels, *size)) for name in inputs],
        [helper.make_tensor_value_info(name, kind, (batch, 3, *size)) for name in outputs],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="by hand")
    model.ir_version = ir_version
    if recipe is not None:
        model.metadata_props.add(key=RECIPE_KEY, value=recipe.to_json())
    if recipe is not None and checksum:
        model.metadata_props.add(key=CHECKSUM_KEY, value="0" * 64)
    content = model.SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(with_checksum(content) if recipe is not None and checksum else content)
    onnx.checker.check_model(str(path))
    return path
