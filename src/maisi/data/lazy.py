"""Sequences of more than fits in memory."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class LazySequence(Sequence[T], Generic[T]):
    """Items that are loaded when they are asked for, of which the last used stay in memory, up to `kept_bytes`.

    `num_bytes` tells the size of one; what is larger than `kept_bytes` alone is loaded every time.
    """

    def __init__(self, loads: Sequence[Callable[[], T]], num_bytes: Callable[[T], int], kept_bytes: int) -> None:
        self._loads, self._num_bytes, self._kept_bytes = tuple(loads), num_bytes, kept_bytes
        self._kept: OrderedDict[int, T] = OrderedDict()  # the last used at the end
        self._used_bytes = 0

    def __len__(self) -> int:
        return len(self._loads)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return LazySequence(self._loads[index], self._num_bytes, self._kept_bytes)
        index = range(len(self))[index]
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        item = self._loads[index]()
        self._keep(index, item)
        return item

    def __iter__(self) -> Iterator[T]:
        """All items in order; a pass over all keeps none, for it would drop what draws come back to."""
        for index, load in enumerate(self._loads):
            yield self._kept[index] if index in self._kept else load()

    def _keep(self, index: int, item: T) -> None:
        needed = self._num_bytes(item)
        if needed > self._kept_bytes:
            return
        while self._used_bytes + needed > self._kept_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._used_bytes -= self._num_bytes(dropped)
        self._kept[index] = item
        self._used_bytes += needed
