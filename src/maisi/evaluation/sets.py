"""Sets to compare: the images, with or without label maps, of a manifest or of a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from maisi.data.cases import case_volume, own_labels
from maisi.data.door import open_labels, open_volume
from maisi.data.manifest import Case, check_ids, read_manifest
from maisi.data.pairs import files_in, is_of_files, pairs_in
from maisi.errors import InvalidLabelsError, InvalidRequestError, MaisiError
from maisi.evaluation.features import FeatureExtractor, PlaneProtocol, plane_features
from maisi.space.endings import SEGMENTS, ending_of, name_of, stem_of
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap, Volume

_NO_IMAGES = ("_labels", "_mask", "_seg", SEGMENTS)

T = TypeVar("T")


@dataclass(frozen=True)
class NamedImage:
    """A volume that is read when it is needed, and its file or folder; those of one patient belong together."""

    name: str
    patient: str
    path: Path
    read: Callable[[], Volume]
    group: str = ""


@dataclass(frozen=True)
class NamedLabels:
    """A label map that is read when it is needed."""

    name: str
    read: Callable[[], LabelMap]


def features_of(
    name: str, volume: Volume, extractor: FeatureExtractor, protocol: PlaneProtocol
) -> dict[str, np.ndarray]:
    """The features of the planes of a volume by orientation; what is wrong with it is told with its name."""
    try:
        return plane_features([volume], extractor, protocol)[0]
    except InvalidRequestError as error:
        raise type(error)(f"{name}: {error}") from error
    except (RuntimeError, TypeError, ValueError) as error:  # of a network that is not ours
        if isinstance(error, MaisiError):
            raise
        said = str(error).strip().splitlines()
        raise InvalidRequestError(
            f"{name}: features by {extractor.name} failed: {said[-1] if said else error!r}"
        ) from error


def image_set(path: Path, split: str | None = None, modality: str = "ct", least: int = 2) -> list[NamedImage]:
    """The images of a manifest (of one split, if named), of a folder of `maisi prepare`, or of a folder of files.

    Of files those that end in `_labels`, `_mask` or `_seg` are no images. Raises `InvalidRequestError` for fewer than
    `least` images.
    """
    if not path.exists():
        raise InvalidRequestError(
            f"no volumes at {path}: found no such file or folder; accepted: a manifest, a folder of `maisi prepare`, "
            "or a folder of NIfTI, NRRD or MetaImage files"
        )
    found = (
        _files(path, modality)
        if _is_of_files(path, split)
        else [
            NamedImage(case.id, case.patient or case.id, case.image, partial(case_volume, case), case.group)
            for case in _cases(path, split, lambda case: case.image is not None)
            if case.image is not None
        ]
    )
    return _enough(found, path, split, least, "images")


def _is_of_files(path: Path, split: str | None) -> bool:
    """Whether it is a folder without a manifest.

    Raises `InvalidRequestError` for an image file, and where a split of a folder without a manifest is asked for.
    """
    if path.is_file() and ending_of(path):
        raise InvalidRequestError(f"{path} is a single file; accepted: a manifest, or a folder of files")
    without = is_of_files(path)
    if without and split is not None:
        raise InvalidRequestError(f"{path} is a folder of files, which knows no split {split}; accepted: a manifest")
    return without


def _cases(path: Path, split: str | None, suits: Callable[[Case], bool]) -> list[Case]:
    """The cases of a manifest that suit, of one split if it is named, which must be one that some of them are of."""
    cases = [case for case in read_manifest(path) if suits(case)]
    splits = {case.split for case in cases}
    if cases and split is not None and split not in splits:
        raise InvalidRequestError(f"{path} has no split {split!r}; accepted: {', '.join(sorted(splits))}")
    return [case for case in cases if split in (None, case.split)]


def _enough(found: list[T], path: Path, split: str | None, least: int, what: str, accepted: str = "") -> list[T]:
    """What was found; raises `InvalidRequestError` where it is fewer than `least`."""
    if len(found) < least:
        of_split = f" of split {split}" if split else ""
        hint = f" ({accepted})" if accepted else ""
        raise InvalidRequestError(
            f"{path} has {len(found)} {what}{of_split}; a comparison needs at least {least}{hint}"
        )
    return found


def _volume(path: Path, options: ReadOptions) -> Volume:
    return open_volume(path, options)[0]


def _files(folder: Path, modality: str) -> list[NamedImage]:
    options = ReadOptions.model_validate({"modality": modality})
    found = [
        NamedImage(path.relative_to(folder).as_posix(), _whose(path, folder), path, partial(_volume, path, options))
        for path in files_in(folder)
        if not stem_of(path).endswith(_NO_IMAGES)
    ]
    check_ids(folder, [image.name for image in found])
    return found


def _whose(path: Path, folder: Path) -> str:
    """A patient for each file: its path in the folder, without the ending."""
    return (path.parent.relative_to(folder) / name_of(path)).as_posix()


def labelled_set(path: Path, split: str | None = None, least: int = 2) -> list[Case]:
    """The CTs with label maps of a manifest (of one split, if named), of a prepared folder, or of a folder of pairs.

    A pair is `NAME_ct.nii.gz` and `NAME_labels.nii.gz`, the latter in our ids or with names of its own. Raises
    `InvalidRequestError` for fewer than `least` of them.
    """
    found = (
        pairs_in(path)
        if _is_of_files(path, split)
        else _cases(path, split, lambda case: case.image is not None and _has_labels(case))
    )
    accepted = "cases of a manifest, or files NAME_ct.nii.gz and NAME_labels.nii.gz"
    return _enough(found, path, split, least, "CTs with label maps", accepted)


def _has_labels(case: Case) -> bool:
    return bool(case.labels or case.labels_maisi)


def label_set(path: Path, split: str | None = None, least: int = 2) -> list[NamedLabels]:
    """The label maps of a manifest (of one split, if named), of a prepared folder, or of a folder of `_labels` files.

    Raises `InvalidRequestError` for fewer than `least` of them.
    """
    found = (
        [
            NamedLabels(file.relative_to(path).as_posix(), partial(_labels, file))
            for file in files_in(path)
            if name_of(file).endswith("labels")
        ]
        if _is_of_files(path, split)
        else [NamedLabels(case.id, partial(_case_labels, case)) for case in _cases(path, split, _has_labels)]
    )
    accepted = "cases of a manifest, or files that end in labels.nii.gz"
    return _enough(found, path, split, least, "label maps", accepted)


def _labels(path: Path) -> LabelMap:
    return open_labels(path)[0]


def _case_labels(case: Case) -> LabelMap:
    labels = own_labels(case)
    if labels is None:
        raise InvalidLabelsError(f"case {case.id}: its labels name no structure")
    return labels
