"""Sets of volumes to compare: the images of a manifest, or of a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from maisi.data.cases import case_volume
from maisi.data.door import open_volume
from maisi.data.manifest import STORED, read_manifest
from maisi.errors import InvalidRequestError
from maisi.space.nifti import SUFFIXES
from maisi.space.reading import ReadOptions
from maisi.space.volume import Volume

_NO_IMAGES = ("_labels", "_mask", "_seg")


@dataclass(frozen=True)
class NamedImage:
    """A volume that is read when it is needed; those of one patient belong together."""

    name: str
    patient: str
    read: Callable[[], Volume]


def image_set(path: Path, split: str | None = None, modality: str = "ct", least: int = 2) -> list[NamedImage]:
    """The images of a manifest (of one split, if named), of a folder of `maisi prepare`, or of a folder of files.

    Of files those that end in `_labels`, `_mask` or `_seg` are no images. Raises `InvalidRequestError` for fewer than
    `least` images.
    """
    if path.is_dir() and not (path / STORED).is_file():
        found = _files(path, modality)
        if split is not None:
            raise InvalidRequestError(
                f"{path} is a folder of files, which knows no split {split}; accepted: a manifest"
            )
    else:
        found = [
            NamedImage(case.id, case.patient or case.id, partial(case_volume, case))
            for case in read_manifest(path)
            if case.image is not None and split in (None, case.split)
        ]
    if len(found) < least:
        of_split = f" of split {split}" if split else ""
        raise InvalidRequestError(f"{path} has {len(found)} images{of_split}; a comparison needs at least {least}")
    return found


def _volume(path: Path, options: ReadOptions) -> Volume:
    return open_volume(path, options)[0]


def _files(folder: Path, modality: str) -> list[NamedImage]:
    options = ReadOptions.model_validate({"modality": modality})
    paths = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))
    stems = [(path, path.name[: path.name.lower().rindex(".nii")]) for path in paths]
    return [
        NamedImage(str(path.relative_to(folder)), stem, partial(_volume, path, options))
        for path, stem in stems
        if not stem.endswith(_NO_IMAGES)
    ]
