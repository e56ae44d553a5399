"""Transformed weights: made once a sweep, or once for all the calls of a loop."""

import torch
from torch import nn

from maisi.splitting import SlabTensor, kept_between_calls
from maisi.splitting.cpu.filters import Filter, filter_of, kept_filters
from maisi.splitting.cpu.winograd import transformed_bytes


def test_a_filter_transforms_once_until_it_is_released() -> None:
    weights = Filter(torch.randn(40, 40, 3, 3, 3))
    first = weights.transformed()
    assert weights.transformed() is first
    assert transformed_bytes(weights.weight) == first.numel() * first.element_size()
    weights.release()
    assert weights.transformed() is not first


def test_calls_of_a_loop_share_transformed_weights_and_those_outside_do_not() -> None:
    weight, made_anew = nn.Parameter(torch.randn(32, 32, 3, 3, 3)), torch.randn(32, 32, 3, 3, 3)
    with kept_filters():
        first = filter_of(weight)
        made = first.transformed()
        first.release()
        assert filter_of(weight) is first
        assert filter_of(weight).transformed() is made
        assert filter_of(nn.Parameter(weight.detach().clone())) is not first
        assert filter_of(made_anew) is not filter_of(made_anew)
    assert filter_of(weight) is not first


def test_a_loop_gives_the_same_numbers_as_single_calls() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(4, 80, 3, padding=1), nn.GroupNorm(8, 80), nn.SiLU(), nn.Conv3d(80, 80, 3, padding=1)
    )
    x = torch.randn(1, 4, 17, 16, 16)
    with torch.inference_mode():
        alone = network(SlabTensor.split(x, 3)).gather()
        with kept_between_calls():
            calls = [network(SlabTensor.split(x, 3)).gather() for _ in range(3)]
    assert all(torch.equal(call, alone) for call in calls)
