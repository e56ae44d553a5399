"""Three stages of work on one item after the other, of which the first and the last run beside the middle one."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Made = TypeVar("Made")
Kept = TypeVar("Kept")


def overlapped(
    items: Iterable[Item],
    before: Callable[[Item], Ready],
    during: Callable[[Ready], Made],
    after: Callable[[Made], Kept],
    *,
    beside: bool = True,
) -> Iterator[Kept]:
    """What `after(during(before(item)))` gives for each item, in order.

    `during` has this thread. With `beside`, `before` of the next item and `after` of the last one have a thread each
    meanwhile: at most three items are held at a time. What any of them raises is raised here, once what is in work has
    come to its end; no other item is begun.
    """
    if not beside:
        yield from (after(during(before(item))) for item in items)
        return
    with ThreadPoolExecutor(1, "before") as early, ThreadPoolExecutor(1, "after") as late:
        last: Future[Kept] | None = None
        for ready in _one_ahead(items, before, early):
            made = during(ready)
            if last is not None:
                yield last.result()
            last = late.submit(after, made)
            del ready, made
        if last is not None:
            yield last.result()


def _one_ahead(items: Iterable[Item], before: Callable[[Item], Ready], early: ThreadPoolExecutor) -> Iterator[Ready]:
    coming: Future[Ready] | None = None
    for item in items:
        ready = coming
        coming = early.submit(before, item)
        if ready is not None:
            yield ready.result()
    if coming is not None:
        yield coming.result()
