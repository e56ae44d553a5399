"""Statistics of slabs merge to those of the whole, on data that defeats the shortcuts."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from maisi.splitting import norm
from maisi.splitting.cpu import norms
from maisi.splitting.norm import Moments, affine, merge

STEP = torch.where(torch.arange(13) < 6, -10.0, 0.5)[:, None, None]
CASES = {
    "noise": lambda x: x,
    "a step of air to body": lambda x: x * 0.01 + STEP,
    "a large mean with a tiny deviation": lambda x: 100 + 1e-3 * x,
    "constant": lambda x: torch.full_like(x, 3.7),
}


@pytest.fixture(params=[norm, norms], ids=["torch", "cpu"])
def kind(request: pytest.FixtureRequest) -> ModuleType:
    """What computes: torch's own operations, or those for CPUs."""
    return request.param


FORMATS = {"channels last": torch.channels_last_3d, "channels first": torch.contiguous_format}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_merged_moments_normalise_as_well_as_the_whole_does(kind: ModuleType, name: str, layout: str) -> None:
    x = CASES[name](torch.randn(2, 8, 13, 16, 15, generator=torch.Generator().manual_seed(0)))
    truth = F.group_norm(x.double(), 4)
    whole_error = (F.group_norm(x, 4) - truth).abs().max().item()
    for sizes in ([13], [1] * 13, [12, 1], [3, 7, 3]):
        slabs = [slab.contiguous(memory_format=FORMATS[layout]) for slab in x.split(sizes, 2)]
        stats = merge([kind.moments(slab, 4) for slab in slabs])
        split = kind.normalise(slabs, affine(stats, None, None, 1e-5, 8, 5), 2, silu=False)
        assert (split - truth).abs().max().item() <= max(1e-5, whole_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_slabs_that_lie_differently_are_normalised_together(kind: ModuleType, dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 9, 5, 4, generator=torch.Generator().manual_seed(3)).to(dtype)
    stats = kind.moments(x, 3)
    pieces = [
        x[:, :, :2],
        x[:, :, 2:5].contiguous(memory_format=torch.channels_last_3d),
        x[:, :, 5:8].contiguous(),
        x.transpose(3, 4).contiguous().transpose(3, 4)[:, :, 8:],
    ]
    for order in (pieces, pieces[1:], pieces[2:]):
        found = kind.normalise(order, affine(stats, None, None, 1e-5, 6, 5), 2, silu=True)
        truth = F.silu(F.group_norm(x.double(), 3))[:, :, -found.shape[2] :]
        assert (found - truth).abs().max().item() < (2e-2 if dtype == torch.bfloat16 else 2e-6)


def test_merging_is_independent_of_where_the_cuts_are(kind: ModuleType) -> None:
    x = torch.randn(1, 4, 20, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1e4
    whole = kind.moments(x, 2)
    for sizes in ([5, 15], [1] * 20, [0, 20]):
        part = merge([kind.moments(slab, 2) for slab in x.split(sizes, 2)])
        assert part.count == whole.count == 20 * 9 * 2
        torch.testing.assert_close(part.mean, whole.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(part.m2, whole.m2, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_of_many_voxels_keep_the_digits_that_float32_has(kind: ModuleType, dtype: torch.dtype) -> None:
    x = torch.randn(1, 6, 37, 41, 43, generator=torch.Generator().manual_seed(2)).mul_(2).add_(1).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    found, truth = kind.moments(x, 2), x.double().unflatten(1, (2, -1)).flatten(2)
    spread = truth.std(2, correction=0)
    assert ((found.mean - truth.mean(2)).abs() / spread).max().item() < 3e-7
    assert (found.variance / spread.square() - 1).abs().max().item() < 3e-7


def test_a_slab_without_rows_adds_nothing(kind: ModuleType) -> None:
    x = torch.randn(1, 4, 3, 2, 2)
    empty = kind.moments(x[:, :, :0], 2)
    assert empty.count == 0
    assert merge([empty, kind.moments(x, 2), empty]).count == kind.moments(x, 2).count


def test_a_normalisation_is_made_ready_without_asking_a_device_for_a_number() -> None:
    stats = Moments(10, *torch.zeros(2, 1, 4, dtype=torch.float64, device="meta").unbind())  # has no numbers to give
    ready = affine(stats, None, None, 1e-5, 8, 5)
    assert ready.centre is not None
    assert ready.scale.shape == (1, 8, 1, 1, 1)
