"""Convolutions and products of bfloat16 slabs where the processor does not multiply in bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maisi.splitting.arithmetic import Where
from maisi.splitting.cpu import kernels
from maisi.splitting.cpu.weights import TransformedWeight


@pytest.fixture(autouse=True)
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "multiplies_bfloat16", lambda: False)


def halved(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    at_once=st.sampled_from([1, 1 << 20]),
)
def test_a_convolution_is_the_float32_one_rounded_once(
    size, kernel, padding, stride, dilation, groups, at_once
) -> None:
    reach = [dilation * (k - 1) for k in kernel]
    assume(all(n + 2 * p > r for n, p, r in zip(size, padding, reach, strict=True)))
    x, weight, bias = halved(2, 4, *size), halved(6, 4 // groups, *kernel), halved(6)
    exact = F.conv3d(x.double(), weight.double(), bias.double(), stride, padding, dilation, groups)
    before, kernels.WIDENED_BYTES = kernels.WIDENED_BYTES, at_once  # a row at a time, or all
    try:
        with torch.no_grad():
            where = Where([stride] * 3, padding, [dilation] * 3, groups)
            found = kernels.convolve(x, TransformedWeight(weight), bias, where, x.dtype)
    finally:
        kernels.WIDENED_BYTES = before
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    assert (found.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("channels", [(80, 80), (128, 64), (84, 84)])
def test_a_wide_convolution_loses_no_more_than_the_rounding_of_its_result(channels: tuple[int, int]) -> None:
    x = halved(1, channels[0], 17, 16, 17).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = halved(channels[1], channels[0], 3, 3, 3) / 30, halved(channels[1])
    assert kernels.takes_winograd((17, 16, 17), weight, x.dtype)
    exact = F.conv3d(x.double(), weight.double(), bias.double(), padding=1)
    found = kernels.convolve(x, TransformedWeight(weight), bias, Where((1, 1, 1), (1, 1, 1), (1, 1, 1), 1), x.dtype)
    assert found.dtype == torch.bfloat16
    error = (found.double() - exact).abs()
    assert (error <= 2**-7 * exact.abs() + 1e-4 * exact.abs().max()).all()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(7, 16), (2, 5, 16), (1, 300, 16), (0, 16)])
def test_a_linear_layer_is_the_float32_one_rounded_once(shape: tuple[int, ...]) -> None:
    x, weight, bias = halved(*shape), halved(24, 16), halved(24)
    exact = F.linear(x.double(), weight.double(), bias.double())
    found = kernels.linear(x, weight, bias, x.dtype)
    assert (found.dtype, found.shape) == (torch.bfloat16, exact.shape)
    assert ((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()


def test_float32_is_left_alone() -> None:
    assert not kernels.is_widened(torch.float32)
    assert kernels.is_widened(torch.bfloat16)
