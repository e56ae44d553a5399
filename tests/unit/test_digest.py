"""Weights are the same whatever they are kept in, and others are not."""

import torch
from torch import nn

from maisi.bundle.digest import weights_digest


def test_a_digest_is_of_names_and_values_alone() -> None:
    torch.manual_seed(0)
    plain = nn.Conv3d(2, 3, 3).half().state_dict()
    digest = weights_digest(plain)
    as_floats = {name: tensor.float() for name, tensor in reversed(plain.items())}
    last = {"weight": plain["weight"].to(memory_format=torch.channels_last_3d), "bias": plain["bias"]}
    assert weights_digest(as_floats) == weights_digest(last) == digest
    assert weights_digest({**plain, "bias": plain["bias"] + 1}) != digest
    assert weights_digest({"weights": plain["weight"], "bias": plain["bias"]}) != digest
