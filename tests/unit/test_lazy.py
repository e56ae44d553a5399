"""What is loaded, and what stays in memory."""

from maisi.data.lazy import LazySequence


def sequence(sizes: list[int], kept_bytes: int) -> tuple[LazySequence[bytes], list[int]]:
    """Items of those sizes, and the indices that are loaded."""
    loaded: list[int] = []

    def load(index: int) -> bytes:
        loaded.append(index)
        return bytes([index]) * sizes[index]

    return LazySequence([lambda i=i: load(i) for i in range(len(sizes))], len, kept_bytes), loaded


def test_an_item_is_loaded_when_it_is_asked_for_and_then_kept() -> None:
    items, loaded = sequence([3, 3, 3], 100)
    assert (items[1], items[1], items[-1]) == (b"\1" * 3, b"\1" * 3, b"\2" * 3)
    assert loaded == [1, 2]
    assert len(items) == 3
    assert list(items[0:2]) == [b"\0" * 3, b"\1" * 3]


def test_the_last_used_items_stay_within_the_bytes_allowed() -> None:
    items, loaded = sequence([4, 4, 4], 8)
    _ = items[0], items[1], items[0], items[2], items[0], items[1]
    assert loaded == [0, 1, 2, 1]


def test_what_is_larger_than_all_that_may_be_kept_is_loaded_every_time() -> None:
    items, loaded = sequence([4, 9], 8)
    _ = items[0], items[1], items[1], items[0]
    assert loaded == [0, 1, 1]


def test_a_pass_over_all_items_keeps_none() -> None:
    items, loaded = sequence([4, 4], 100)
    _ = items[1], list(items), items[0]
    assert loaded == [1, 0, 0]
