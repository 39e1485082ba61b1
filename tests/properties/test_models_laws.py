"""Laws of the models room: folding loses nothing, and sizes are kept, whatever they are."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itkit.mm.task_models import SemSeg2D, SemSeg3D, slices_with_neighbours
from itkit.models import SubvoxelUNet
from itkit.models.unet import depth_to_space, space_to_depth

SIZES = st.integers(1, 11)
QUICK = settings(max_examples=25, deadline=None)
NETS = {
    (2, False): SubvoxelUNet(2, 1, 2, widths=(4, 8), groups=2).eval(),
    (3, False): SubvoxelUNet(3, 1, 2, widths=(4, 8), groups=2).eval(),
    (3, True): SubvoxelUNet(3, 1, 2, widths=(4, 8), groups=2, stem_stride=(1, 2, 2), strides=[(1, 2, 2)]).eval(),
}


@QUICK
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=2, max_size=3), st.integers(1, 2))
def test_unfolding_undoes_folding_and_keeps_every_value(axes, channels):
    stride = [s for s, _ in axes]
    x = torch.randn(2, channels, *(s * n for s, n in axes))
    folded = space_to_depth(x, stride)
    assert folded.shape[2:] == tuple(n for _, n in axes)
    assert torch.equal(folded.flatten(1).sort().values, x.flatten(1).sort().values)
    assert torch.equal(depth_to_space(folded, stride), x)


@QUICK
@given(st.sampled_from(sorted(NETS)), st.tuples(SIZES, SIZES, SIZES), st.integers(1, 2))
def test_logits_have_the_size_of_the_input(kind, size, batch):
    size = size[: kind[0]]
    assert NETS[kind](torch.zeros(batch, 1, *size)).shape == (batch, 2, *size)


@QUICK
@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 2))
def test_the_middle_of_the_neighbours_is_the_slice_itself(depth, neighbours, channels):
    volume = torch.randn(channels, depth, 2, 3)
    images = slices_with_neighbours(volume, torch.arange(depth), neighbours)
    assert images.shape == (depth, channels * (2 * neighbours + 1), 2, 3)
    assert torch.equal(images[:, neighbours * channels : (neighbours + 1) * channels].transpose(0, 1), volume)


@QUICK
@given(st.tuples(SIZES, SIZES, SIZES), st.integers(1, 4), st.integers(1, 5))
def test_a_pointwise_2d_network_predicts_volumes_like_the_3d_one(size, slice_batch, patch):
    torch.manual_seed(0)
    flat, deep = torch.nn.Conv2d(1, 3, 1), torch.nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        deep.weight.copy_(flat.weight[..., None])
        deep.bias.copy_(flat.bias)
    loss = torch.nn.CrossEntropyLoss()
    x = torch.randn(1, 1, *size)
    by_slice = SemSeg2D(flat, loss, 3, inference_config={"slice_batch": slice_batch, "patch_size": patch}).predict(x)
    whole = SemSeg3D(deep, loss, 3).predict(x)
    assert torch.equal(by_slice[0].pred_sem_seg.data, whole[0].pred_sem_seg.data)
