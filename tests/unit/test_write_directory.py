"""Folders that appear whole, whoever else writes them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from maisi.storage.atomic import write_directory


def test_of_two_that_replace_a_folder_at_once_one_stays_whole_and_none_fails(tmp_path: Path) -> None:
    def replace_often(name: str) -> None:
        for _ in range(30):
            with write_directory(tmp_path / "case", overwrite=True) as folder:
                (folder / "first").write_text(name)
                (folder / "second").write_text(name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(replace_often, ("a", "b")))
    assert [entry.name for entry in tmp_path.iterdir()] == ["case"]
    assert len({(tmp_path / "case" / name).read_text() for name in ("first", "second")}) == 1


def test_what_a_kill_left_of_a_replaced_folder_goes_when_the_folder_is_there_again(
    tmp_path: Path, dead_mark: str
) -> None:
    (tmp_path / f".case.replaced-{dead_mark}").mkdir()
    for _ in range(2):
        with write_directory(tmp_path / "case", overwrite=True) as folder:
            (folder / "file").touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["case"]
