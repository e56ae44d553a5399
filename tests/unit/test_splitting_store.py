"""Slabs come back as they were put, and files go away whatever happens."""

import resource

import pytest
import torch

from maisi.errors import StorageError
from maisi.splitting.layout import Layout
from maisi.splitting.store import PREFIX, DiskStore, HostStore, MemoryStore, Store, run_folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dim", [2, 3, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_range_comes_back_from_memory_and_from_disk(tmp_path, dtype, dim: int, channels_last: bool) -> None:
    x = torch.randn(2, 3, 6, 7, 5).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x
    layout = Layout(tuple(x.shape), dim, x.shape[dim])
    disk = DiskStore(tmp_path, "x", layout, dtype, torch.device("cpu"))
    stores: list[Store] = [MemoryStore(layout), HostStore(layout, torch.device("cpu")), disk]
    for store in stores:
        assert isinstance(store, Store)
        for start, stop in ((0, 2), (2, 3), (3, layout.rows)):
            store.put(start, stop, layout.take(x, start, stop))
        for start, stop in ((0, layout.rows), (1, 4), (2, 3), (3, 3)):
            pieces = store.pieces(start, stop)
            want = layout.take(x, start, stop)
            assert torch.equal(layout.join(pieces), want) if start < stop else not pieces
    disk.drop_below(3)
    assert len(list(tmp_path.iterdir())) == 1
    disk.close()
    assert not list(tmp_path.iterdir())


def test_what_a_host_keeps_comes_back_on_the_device() -> None:
    x = torch.randn(1, 1, 4, 2, 2)
    store = HostStore(Layout(tuple(x.shape), 2, 4), torch.device("meta"))
    store.put(0, 4, x)
    (piece,) = store.pieces(1, 3)
    assert piece.device.type == "meta"
    assert piece.shape == (1, 1, 2, 2, 2)


def test_memory_forgets_rows_that_are_read_no_more() -> None:
    x = torch.randn(1, 1, 6, 2, 2)
    store = MemoryStore(Layout(tuple(x.shape), 2, 6))
    for start in (0, 2, 4):
        store.put(start, start + 2, x[:, :, start : start + 2])
    store.drop_below(3)
    assert not store.pieces(0, 2)
    assert torch.equal(torch.cat(store.pieces(3, 6), 2), x[:, :, 3:])


def test_a_full_disk_says_how_much_is_needed(tmp_path) -> None:
    x = torch.zeros(1, 4, 8, 16, 16)
    store = DiskStore(tmp_path, "x", Layout(tuple(x.shape), 2, 8), x.dtype, x.device)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageError, match="needs 32,768 bytes"):
            store.put(0, 8, x)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.close()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make a folder"), run_folder(tmp_path / "file"):
        pass


def test_a_run_folder_is_removed_after_an_error(tmp_path) -> None:
    def fail() -> None:
        with run_folder(tmp_path) as folder:
            (folder / "slabs").write_bytes(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_the_next_run_cleans_up_after_one_that_was_killed(tmp_path, dead_mark: str) -> None:
    (tmp_path / f"{PREFIX}{dead_mark}").mkdir()
    (tmp_path / f"{PREFIX}{dead_mark}" / "0").write_bytes(b"x")
    with run_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
        with run_folder(tmp_path):
            assert folder.exists()
