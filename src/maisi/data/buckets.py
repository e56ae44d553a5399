"""Which cases make a batch: those whose latents, or crops of them, have one shape."""

from collections.abc import Sequence

import numpy as np

from maisi.errors import InvalidRequestError
from maisi.shapes import Size3

_ORDERS, _CHOICES = 1, 2  # streams of random numbers


class Buckets:
    """Batches of one shape from cases of many, each drawn from (seed, its number) alone.

    `extents` are the sizes of the cases in latent voxels, `shares` how often each leads a batch; without them the cases
    lead in turn, in an order that is drawn anew for every round, so that n batches reach each of n cases. The others
    of a batch come from those of the leader's shape, each once as long as there are enough.
    """

    def __init__(self, extents: Sequence[Size3], shares: np.ndarray | None = None, multiple: int = 1) -> None:
        self.extents, self.multiple = tuple(extents), multiple
        self.shares = np.full(len(extents), 1 / max(1, len(extents))) if shares is None else shares
        self.in_turn = shares is None
        used = [extent for extent, share in zip(self.extents, self.shares, strict=True) if share > 0]
        small = [extent for extent in used if min(extent) < multiple]
        if small or not used:
            told = f"one of {small[0]}" if small else "none"
            raise InvalidRequestError(
                f"training needs latents of at least {multiple} voxels on every axis; found {told}"
            )
        self._alike: dict[Size3 | None, dict[Size3, list[int]]] = {}

    def shape(self, case: int, size: Size3 | None = None) -> Size3:
        """What a crop of at most `size` of a case has: whole multiples on every axis; without `size` the most."""
        wanted = self.extents[case] if size is None else size
        x, y, z = (min(n, w) // self.multiple * self.multiple for n, w in zip(self.extents[case], wanted, strict=True))
        return x, y, z

    def chosen(self, seed: int, number: int, count: int, sizes: Sequence[Size3] = ()) -> tuple[Size3, tuple[int, ...]]:
        """The shape of batch `number` and its `count` cases, crops of one of `sizes` that is drawn, or whole ones."""
        rng = np.random.default_rng([seed, _CHOICES, number])
        size = sizes[int(rng.integers(len(sizes)))] if sizes else None
        leader = self._leader(seed, number, rng)
        shape = self.shape(leader, size)
        others = [case for case in self._cases_of(shape, size) if case != leader] if count > 1 else []
        chosen = [leader]
        while len(chosen) < count:
            among = others or [leader]
            chances = self.shares[among] / self.shares[among].sum()
            some = rng.choice(among, min(count - len(chosen), len(among)), replace=False, p=chances)
            chosen += [int(case) for case in some]
        return shape, tuple(chosen)

    def _leader(self, seed: int, number: int, rng: np.random.Generator) -> int:
        if not self.in_turn:
            return int(rng.choice(len(self.extents), p=self.shares))
        around, place = divmod(number, len(self.extents))
        return int(np.random.default_rng([seed, _ORDERS, around]).permutation(len(self.extents))[place])

    def _cases_of(self, shape: Size3, size: Size3 | None) -> list[int]:
        if size not in self._alike:
            found: dict[Size3, list[int]] = {}
            for case in np.flatnonzero(self.shares):
                found.setdefault(self.shape(int(case), size), []).append(int(case))
            self._alike[size] = found
        return self._alike[size][shape]
