"""Building blocks of the networks."""

import pytest
import torch
import torch.nn.functional as F

from maisi.networks.blocks import GroupNorm


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_a_norm_is_right_to_rounding_in_every_memory_layout(memory_format: torch.memory_format) -> None:
    x = 3.0 + torch.randn(1, 8, 72, 72, 72, generator=torch.Generator().manual_seed(0))
    expected = F.group_norm(x.double(), 2)
    with torch.no_grad():
        got = GroupNorm(2, 8)(x.to(memory_format=memory_format))
    assert float((got - expected).abs().max()) < 1e-5
