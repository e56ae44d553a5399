"""Transformed weights: made once a sweep, or once for all the calls of a loop."""

import torch
from torch import nn

from maisi.splitting import SlabTensor, kept_between_calls
from maisi.splitting.cpu.weights import TransformedWeight, kept_weights, transformed_weight
from maisi.splitting.cpu.winograd import transformed_bytes


def test_weights_are_transformed_once() -> None:
    weights = TransformedWeight(torch.randn(40, 40, 3, 3, 3))
    first = weights.transformed()
    assert weights.transformed() is first
    assert transformed_bytes(weights.weight) == first.numel() * first.element_size()


def test_calls_of_a_loop_share_transformed_weights_and_those_outside_do_not() -> None:
    weight, made_anew = nn.Parameter(torch.randn(32, 32, 3, 3, 3)), torch.randn(32, 32, 3, 3, 3)
    with kept_weights():
        first = transformed_weight(weight)
        made = first.transformed()
        assert transformed_weight(weight) is first
        assert transformed_weight(weight).transformed() is made
        assert transformed_weight(nn.Parameter(weight.detach().clone())) is not first
        assert transformed_weight(made_anew) is not transformed_weight(made_anew)
    assert transformed_weight(weight) is not first


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
