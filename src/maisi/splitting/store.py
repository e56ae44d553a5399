"""Where stored slabs live: in memory, in that of a GPU's host, or in files of a run folder that is removed when done.

A run folder carries the mark of its process, so that a later run can clean up after one that was killed.
"""

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from maisi.errors import StorageError
from maisi.splitting.layout import Layout
from maisi.storage.owners import owner_mark, remove_abandoned

PREFIX = "maisi-slabs-"


@runtime_checkable
class Store(Protocol):
    """Rows of one tensor, written in pieces and read in any ranges."""

    def put(self, start: int, stop: int, slab: Tensor) -> None:
        """Keep rows start..stop."""

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        """Rows start..stop, as adjoining slabs."""

    def drop_below(self, row: int) -> None:
        """Forget rows before `row`."""

    def close(self) -> None:
        """Forget everything."""


class MemoryStore:
    """Slabs in memory, where they are."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._slabs: list[tuple[int, int, Tensor]] = []

    def put(self, start: int, stop: int, slab: Tensor) -> None:
        if stop == start:
            return
        self._slabs.append((start, stop, slab))
        self._slabs.sort(key=lambda entry: entry[0])

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        found = []
        for low, high, slab in self._slabs:
            first, last = max(low, start), min(high, stop)
            if first < last:
                found.append(slab if (first, last) == (low, high) else self.layout.take(slab, first, last, low))
        return found

    def drop_below(self, row: int) -> None:
        self._slabs = [entry for entry in self._slabs if entry[1] > row]

    def close(self) -> None:
        self._slabs = []


class HostStore(MemoryStore):
    """Slabs of a GPU in the memory of its host; what is read is copied back."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        super().__init__(layout)
        self.device = device

    def put(self, start: int, stop: int, slab: Tensor) -> None:
        super().put(start, stop, slab.cpu())

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        return [piece.to(self.device) for piece in super().pieces(start, stop)]


class DiskStore:
    """Slabs in a file each, a row after the other, read and written without mapping them (so they cost no memory)."""

    def __init__(self, folder: Path, name: str, layout: Layout, dtype: torch.dtype, device: torch.device) -> None:
        self.layout, self.dtype, self.device = layout, dtype, device
        self._folder, self._name = folder, name
        self._row_bytes = layout.row_numel * dtype.itemsize
        self._order: tuple[int, ...] | None = None
        self._files: list[tuple[int, int, Path]] = []

    @property
    def total_bytes(self) -> int:
        """Size of all rows together."""
        return self._row_bytes * self.layout.rows

    def put(self, start: int, stop: int, slab: Tensor) -> None:
        if stop == start:
            return
        apart = slab.reshape(self.layout.unfolded(stop - start)).movedim(self.layout.dim + 1, 0)
        if self._order is None:
            strides = apart.stride()
            self._order = (0, *sorted(range(1, apart.dim()), key=lambda dim: (-strides[dim], dim)))
        flat = apart.permute(self._order).contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        path = self._folder / f"{self._name}-{start}"
        self._files.append((start, stop, path))
        self._files.sort()
        try:
            path.write_bytes(flat.data)
        except OSError as error:
            free = shutil.disk_usage(self._folder).free
            raise StorageError(
                f"{self._folder}: {error.strerror}; this tensor needs {self.total_bytes:,} bytes there, "
                f"{free:,} are free. Choose another folder or a larger memory budget"
            ) from error

    def pieces(self, start: int, stop: int) -> list[Tensor]:
        found = []
        for low, high, path in self._files:
            first, last = max(low, start), min(high, stop)
            if first < last:
                found.append(self._read(path, first - low, last - first))
        return found

    def _read(self, path: Path, first: int, rows: int) -> Tensor:
        """Rows of one file, lying in memory as they were when they were put."""
        assert self._order is not None
        raw = torch.empty(rows * self._row_bytes, dtype=torch.uint8)
        with path.open("rb", buffering=0) as file:
            file.seek(first * self._row_bytes)
            data, filled = raw.numpy().data, 0
            while filled < len(data):
                got = file.readinto(data[filled:])
                if not got:
                    raise StorageError(f"{path} is shorter than what was written to it")
                filled += got
        unfolded = self.layout.unfolded(1)
        shape = (rows, *unfolded[: self.layout.dim + 1], *unfolded[self.layout.dim + 2 :])
        ordered = raw.view(self.dtype).reshape([shape[dim] for dim in self._order])
        back = [self._order.index(dim) for dim in range(len(self._order))]
        apart = ordered.permute(back).movedim(0, self.layout.dim + 1)
        return apart.reshape(self.layout.local_shape(rows)).to(self.device)

    def drop_below(self, row: int) -> None:
        for _, _, path in [entry for entry in self._files if entry[1] <= row]:
            path.unlink(missing_ok=True)
        self._files = [entry for entry in self._files if entry[1] > row]

    def close(self) -> None:
        self.drop_below(self.layout.rows)


@contextlib.contextmanager
def run_folder(parent: Path | None) -> Iterator[Path]:
    """A folder for this run's files, removed at the end whatever happens; stale ones of dead processes go first."""
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    remove_abandoned(parent, PREFIX)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = parent / f"{PREFIX}{owner_mark()}"
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(f"cannot make a folder for slabs in {parent}: {error.strerror}") from error
    remove = atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        atexit.unregister(remove)
