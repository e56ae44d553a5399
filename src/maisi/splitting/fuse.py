"""Rewrites the graph that a network wrote down, before it is scheduled: what costs less together becomes one.

- Norms of one tensor in the same groups share its moments.
- SiLU after a norm is applied with it, a cacheful at a time.
- What is rounded to half precision and then asked for in float32 is not rounded: a conversion that is undone, a norm or
  a convolution with float32 weights whose result is converted, and what such a convolution reads.
"""

from collections.abc import Sequence

import torch

from maisi.splitting.graph import HALF, MomentsOf, Node, Normalised, Pointwise, Windowed
from maisi.splitting.norm import wide
from maisi.splitting.schedule import reachable


def fuse(outputs: Sequence[Node]) -> list[Node]:
    """The outputs of the rewritten graph, which holds nothing of the one that was written down but dense tensors."""
    rewriting = Rewriting()
    rewritten: dict[Node, Node] = {}
    for node in reachable(outputs):
        rewritten[node] = rewriting.of(node, [rewritten[source] for source in node.inputs])
    return [rewritten[node] for node in outputs]


class Rewriting:
    """What was made so far of a graph, inputs first; nodes get their numbers in the order of the program."""

    def __init__(self) -> None:
        self._moments: dict[tuple[Node, int], Node] = {}
        self._unrounded: dict[Node, Node] = {}

    def of(self, node: Node, inputs: Sequence[Node]) -> Node:
        """What a node becomes on rewritten inputs."""
        if isinstance(node, MomentsOf):
            key = inputs[0], node.groups
            if key not in self._moments:
                self._moments[key] = node.on(inputs)
            return self._moments[key]
        first = inputs[0] if inputs else None
        if is_silu(node) and isinstance(first, Normalised) and not first.silu:
            return first.giving(first.dtype, silu=True)
        if isinstance(node, Pointwise) and node.converts and first is not None and first.dtype in HALF:
            source = self.unrounded(first)
            if source.dtype == node.dtype:
                return source
        if isinstance(node, Windowed) and node.products != node.dtype and first is not None:
            return node.on([self.unrounded(first)])
        return node.on(inputs)

    def unrounded(self, node: Node) -> Node:
        """The same in a wider number format, where that needs no more work than rounding it; else itself."""
        if node not in self._unrounded:
            self._unrounded[node] = unrounded(node)
        return self._unrounded[node]


def is_silu(node: Node) -> bool:
    """True for SiLU and nothing else."""
    return isinstance(node, Pointwise) and node.name == "silu"


def unrounded(node: Node) -> Node:
    """A new node in the format that the arithmetic of another has, or the source of a conversion."""
    if isinstance(node, Pointwise) and node.converts and node.dtype in HALF and node.inputs[0].dtype == torch.float32:
        return node.inputs[0]
    if isinstance(node, Normalised) and wide(node.dtype) != node.dtype:
        return node.giving(wide(node.dtype), node.silu)
    if isinstance(node, Windowed) and node.products != node.dtype:
        return node.giving(node.products)
    return node
