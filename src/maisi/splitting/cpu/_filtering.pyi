"""The extension module of `native/filtering.c`."""

from collections.abc import Sequence

def instruction_sets() -> dict[str, int]: ...
def workspace_numbers(channels: int, width: int, tiles: int, pairs: int, /) -> int: ...
def filter_blocks(
    instruction_set: str,
    addresses: Sequence[int],
    size: Sequence[int],
    size_after: Sequence[int],
    padding: Sequence[int],
    channels: Sequence[int],
    block: Sequence[int],
    blocks: Sequence[int],
    /,
) -> None: ...
