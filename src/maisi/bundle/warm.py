"""Bundles that stay loaded from one piece of work to the next, in a process that does many."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from maisi.bundle.contents import CHECKSUMS
from maisi.storage.sums import sha256

Loaded = TypeVar("Loaded")

_warm: ContextVar["WarmBundles | None"] = ContextVar("warm bundles", default=None)


class WarmBundles:
    """Bundles that work has loaded; those that the next work does not use go before it loads another."""

    def __init__(self) -> None:
        self._bundles: dict[Hashable, Any] = {}
        self._used: set[Hashable] = set()

    @contextmanager
    def for_work(self) -> Iterator[None]:
        """Within, `load_bundle` gives a bundle that was loaded before, unless its folder holds another one by now."""
        self._used.clear()
        token = _warm.set(self)
        try:
            yield
        finally:
            _warm.reset(token)

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """What is known by this key, else what `load` gives."""
        if key not in self._bundles:
            self._bundles = {other: bundle for other, bundle in self._bundles.items() if other in self._used}
            self._bundles[key] = load()
        self._used.add(key)
        return self._bundles[key]


def warm_or(folder: Path, settings: Hashable, load: Callable[[], Loaded]) -> Loaded:
    """The bundle of a folder, loaded with these settings, where work keeps bundles; else what `load` gives."""
    warm, sums = _warm.get(), folder / CHECKSUMS
    if warm is None or not sums.is_file():
        return load()
    found: Loaded = warm.get((folder.resolve(), sha256(sums), settings), load)
    return found
