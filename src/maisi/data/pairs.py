"""Folders of pairs: `NAME_ct.nii.gz` and `NAME_labels.nii.gz`, as `maisi generate` leaves them."""

from collections.abc import Iterator
from pathlib import Path

from maisi.data.manifest import STORED, Case, check_ids
from maisi.space.endings import ending_of, name_of, stem_of
from maisi.storage.folders import FAILED

IMAGE, LABELS = "_ct", "_labels"


def is_of_files(path: Path) -> bool:
    """Whether it is a folder without a manifest."""
    return path.is_dir() and not (path / STORED).is_file()


def files_in(folder: Path) -> Iterator[Path]:
    """The image files of a folder and those below, in the order of paths, but none that failed its check."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if ending_of(path) and FAILED not in parts[:-1] and not any(part.startswith(".") for part in parts):
            yield path


def pairs_in(folder: Path) -> list[Case]:
    """A case for each CT with labels beside it, the latter in our ids or with names of its own.

    Raises `InvalidConfigError` where two of them would have one id or one file name.
    """
    files = list(files_in(folder))
    labels = {path.with_name(name_of(path)): path for path in files}
    cases = []
    for image in files:
        stem = stem_of(image)
        beside = labels.get(image.with_name(stem.removesuffix(IMAGE) + LABELS)) if stem.endswith(IMAGE) else None
        if beside is not None:
            name = (image.parent.relative_to(folder) / stem.removesuffix(IMAGE)).as_posix()
            cases.append(Case(id=name, image=image, labels_maisi=beside))
    check_ids(folder, [case.id for case in cases])
    return sorted(cases, key=lambda case: case.id)
