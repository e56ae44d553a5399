"""What names of files and folders tell: which are images and labels, of which case, of which patient."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from maisi.space.endings import ending_of, stem_of

LABEL_WORD = r"(segmentations?|segs?|labels?|masks?|msk|gt|annotations?|labels?_maisi)"
_LABEL_SUFFIX = re.compile(rf"^(.*?)[_\-. ]{LABEL_WORD}$", re.IGNORECASE)
_LABEL_PREFIX = re.compile(rf"^{LABEL_WORD}[_\-. ]?(\d.*)$", re.IGNORECASE)  # segmentation-12 of volume-12
_IMAGE_PREFIX = re.compile(r"^(images?|imgs?|volumes?|scans?|cts?)[_\-. ]?(\d.*)$", re.IGNORECASE)
_LABEL_NAME = re.compile(rf"^{LABEL_WORD}$", re.IGNORECASE)
_LABEL_FOLDER = re.compile(rf"^{LABEL_WORD}(tr|ts|val)?$", re.IGNORECASE)
_IMAGE_SUFFIX = re.compile(r"^(.*?)[_\-. ](image|img|volume|scan|ct|mri?)$", re.IGNORECASE)
_GENERIC = re.compile(r"^(ct|cta|mri?|image|img|volume|scan|data|t1w?|t2w?|flair)$", re.IGNORECASE)
_IMAGE_FOLDER = re.compile(r"^(images?|imgs?|volumes?|scans?|cts?|anat)(tr|ts|val)?$", re.IGNORECASE)
MOST_OF_A_PATIENT = 12  # scans in a folder; more are a collection
_BIDS = re.compile(r"^sub-[A-Za-z0-9]+")


def images_below(folder: Path) -> Iterator[Path]:
    """The NIfTI, NRRD and MetaImage files in a folder and those below, see `files_below`."""
    return files_below(folder, lambda name: ending_of(Path(name)) is not None)


def files_below(folder: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """The files of some names in a folder and those below, in order; hidden ones and droppings of macOS are not seen.

    Links to folders are followed; a folder that is reached twice is looked at once.
    """
    seen, files = set(), []
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not (name.startswith(".") or name == "__MACOSX"))
        paths = [Path(root) / name for name in names if wanted(name) and not name.startswith(".")]
        files += [path for path in paths if path.is_file()]
    yield from sorted(files)


def is_label(path: Path, root: Path) -> bool:
    """Whether a file's name, or that of a folder between it and `root`, says that it holds labels."""
    stem = stem_of(path)
    folders = path.relative_to(root).parts[:-1]
    named = any(pattern.match(stem) for pattern in (_LABEL_NAME, _LABEL_SUFFIX, _LABEL_PREFIX))
    return named or any(map(_LABEL_FOLDER.match, folders))


def case_key(path: Path, root: Path) -> str:
    """What a file's image and labels have in common as an id, parts joined by "_", see `case_parts`."""
    folders, own = case_parts(path, root)
    return safe_id("_".join([*folders, own] if own else folders)) or safe_id(_plain(stem_of(path)))


def case_parts(path: Path, root: Path) -> tuple[tuple[str, ...], str]:
    """What a file's image and labels have in common: the folders and the name, without what tells the two apart."""
    stem = _plain(stem_of(path))
    own = "" if _LABEL_NAME.match(stem) or _GENERIC.match(stem) else stem
    folders = (p for p in path.relative_to(root).parts[:-1] if not (_LABEL_FOLDER.match(p) or _IMAGE_FOLDER.match(p)))
    return tuple(folders), own


def _plain(stem: str) -> str:
    """A name without the words that tell images from labels."""
    for pattern in (_LABEL_SUFFIX, _IMAGE_SUFFIX):
        matched = pattern.match(stem)
        stem = matched[1] if matched and matched[1] else stem
    for pattern in (_LABEL_PREFIX, _IMAGE_PREFIX):
        matched = pattern.match(stem)
        stem = matched[2] if matched else stem
    return stem


def safe_id(text: str) -> str:
    """A text as a case id: letters of any script, digits, ".", "-" and "_", no dot in front; may leave nothing."""
    return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).strip("._")


def patient_of(path: Path, root: Path, key: str, beside: int = 1) -> str:
    """The patient that a path tells: a `sub-...` in it (BIDS), else the folder of the scan, with those around it.

    A folder of images (imagesTr), the root itself, and one with more than `MOST_OF_A_PATIENT` scans are of many
    patients, a scan each: `beside` says how many scans its folder holds.
    """
    folders = path.relative_to(root).parts[:-1]
    for part in (*folders, path.name):
        matched = _BIDS.match(part)
        if matched:
            return matched[0]
    is_own = bool(folders) and not _IMAGE_FOLDER.match(folders[-1])
    if is_own and (_GENERIC.match(stem_of(path)) or beside <= MOST_OF_A_PATIENT):
        return safe_id("_".join(folders)) or key
    return key
