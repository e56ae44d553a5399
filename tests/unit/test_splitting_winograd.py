"""The convolution with a quarter of the multiplications equals the convolution."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maisi.splitting.cpu.winograd import (
    minimal_filtering,
    tiles_at_once,
    transform_weight,
    winograd,
    workspace_bytes,
)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


@settings(deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 11), st.integers(1, 19), st.integers(1, 9)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    depth=st.integers(1, 4),
    biased=st.booleans(),
    batch=st.integers(1, 2),
)
def test_it_equals_the_direct_convolution_in_float64(size, padding, depth, biased, batch) -> None:
    taps = (3, 3, depth)
    assume(all(n + 2 * p >= k for n, p, k in zip(size, padding, taps, strict=True)))
    draw = torch.Generator().manual_seed(sum(size) + depth)
    x = channels_last(torch.randn(batch, 5, *size, generator=draw, dtype=torch.float64))
    weight = torch.randn(7, 5, *taps, generator=draw, dtype=torch.float64)
    bias = torch.randn(7, generator=draw, dtype=torch.float64) if biased else None
    with torch.no_grad():
        found = winograd(x, weight, bias, padding, transform_weight(weight))
    torch.testing.assert_close(found, F.conv3d(x, weight, bias, padding=padding), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("channels", [32, 256])
def test_float32_loses_few_digits(channels: int) -> None:
    """Nearer to float64 than 5e-6 of the largest value, for any width that networks here have."""
    draw = torch.Generator().manual_seed(channels)
    x = F.silu(channels_last(torch.randn(1, channels, 8, 12, 10, generator=draw)))
    weight = torch.randn(channels, channels, 3, 3, 3, generator=draw) / math.sqrt(27 * channels)
    exact = F.conv3d(x.double(), weight.double(), padding=1)
    with torch.no_grad():
        found = winograd(x, weight, None, (1, 1, 1), transform_weight(weight))
    assert (found.double() - exact).abs().max() / exact.abs().max() < 5e-6


def test_a_step_from_air_to_body_stays_exact_in_every_place() -> None:
    x = channels_last(torch.full((1, 32, 9, 9, 9), -1000.0))
    x[:, :, 4:] = 40.0
    weight = torch.randn(32, 32, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 30
    exact = F.conv3d(x.double(), weight.double(), padding=1)
    with torch.no_grad():
        found = winograd(x, weight, None, (1, 1, 1), transform_weight(weight))
    assert (found.double() - exact).abs().max() / (exact.max() - exact.min()) < 5e-6


def test_filtering_of_two_outputs_is_the_published_one() -> None:
    """F(2, 3) at 0, 1, -1 and infinity: two outputs of three taps from four products (Lavin & Gray, section 4.1)."""
    to_outputs, to_filter, to_tile = minimal_filtering((0.0, 1.0, -1.0), 2, 3)
    signal, taps = torch.tensor([2.0, -3.0, 5.0, 7.0]).double(), torch.tensor([1.0, 4.0, -2.0]).double()
    found = to_outputs @ ((to_filter @ taps) * (to_tile @ signal))
    torch.testing.assert_close(found, F.conv1d(signal[None, None], taps[None, None])[0, 0])


def test_workspace_grows_with_the_width_of_a_line_not_with_the_number_of_lines() -> None:
    weight = torch.empty(64, 64, 3, 3, 3)
    assert tiles_at_once((4, 128), weight, 1) == 1
    assert workspace_bytes((512, 768), weight, 1) == workspace_bytes((4, 768), weight, 1)
    assert workspace_bytes((512, 768), weight, 1) > workspace_bytes((512, 128), weight, 1)
