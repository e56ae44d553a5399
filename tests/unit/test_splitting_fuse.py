"""The graph that a network writes down is rewritten once: less work, the same result."""

import torch
import torch.nn.functional as F
from torch import Tensor

from maisi.splitting import SlabTensor
from maisi.splitting.fuse import fuse
from maisi.splitting.graph import MomentsOf, Node, Normalised, Pointwise
from maisi.splitting.schedule import reachable


def slabs(dtype: torch.dtype = torch.float32) -> SlabTensor:
    return SlabTensor.split(torch.zeros(1, 4, 6, 5, 4, dtype=dtype), 2)


def fused(*results: Tensor) -> list[Node]:
    return reachable(fuse([result.node for result in results]))


def names(nodes: list[Node]) -> list[str]:
    return [node.name for node in nodes]


def test_norms_of_one_tensor_in_the_same_groups_share_its_moments() -> None:
    x = slabs() * 2
    nodes = fused(F.group_norm(x, 2), F.group_norm(x, 2), F.group_norm(x, 4))
    assert [node.groups for node in nodes if isinstance(node, MomentsOf)] == [2, 4]


def test_silu_joins_the_norm_before_it_and_another_reader_still_gets_the_norm() -> None:
    norm = F.group_norm(slabs(), 2)
    nodes = fused(F.silu(norm), norm + 1, F.silu(F.silu(norm)))
    assert [node.silu for node in nodes if isinstance(node, Normalised)] == [False, True, True]
    assert names(nodes).count("silu") == 1


def test_what_is_asked_for_in_float32_is_not_rounded_before() -> None:
    x, weight = slabs(), torch.zeros(4, 4, 3, 3, 3)
    assert names(fused(x.bfloat16().float())) == ["input"]
    converted = fused(F.conv3d(x.bfloat16(), weight).float())
    assert [(node.name, node.dtype) for node in converted] == [("input", torch.float32), ("conv3d", torch.float32)]
    read = fused(F.conv3d(F.group_norm(slabs(torch.bfloat16), 2), weight))
    assert [node.dtype for node in read if isinstance(node, Normalised)] == [torch.float32]


def test_what_a_network_asks_for_in_half_precision_is_rounded() -> None:
    nodes = fused((slabs().bfloat16() * 2).float())
    assert [node.dtype for node in nodes if isinstance(node, Pointwise)] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    ]


def test_rewriting_leaves_what_was_written_down_as_it_was() -> None:
    result = F.silu(F.group_norm(slabs(), 2))
    before = reachable([result.node])
    fuse([result.node])
    assert reachable([result.node]) == before
    assert names(before) == ["input", "moments", "group_norm", "silu"]
