"""Calls as data: nests of arguments with their leaves replaced."""

from collections import OrderedDict
from typing import Any, NamedTuple

import torch

from maisi.splitting.ops import mapped


class Pair(NamedTuple):
    left: Any
    right: Any


def test_nests_of_a_call_keep_their_types() -> None:
    call = [Pair(1, (2, [3])), OrderedDict(a=4), torch.Size([5, 6])]
    changed = mapped(lambda value: value if isinstance(value, torch.Size) else -value, call)
    assert changed == [Pair(-1, (-2, [-3])), OrderedDict(a=-4), torch.Size([5, 6])]
    assert isinstance(changed[0], Pair)
