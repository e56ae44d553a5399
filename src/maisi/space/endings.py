"""What the names of image files end in."""

from pathlib import Path

IMAGES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of files that are read as images and label maps; in folders these are looked for."""

SEGMENTS = ".seg"
"""What 3D Slicer puts before `.nrrd` where a file holds segments."""


def ending_of(path: Path) -> str | None:
    """The ending of an image file's name as it is written, `.nii.gz` as one; None for other files."""
    name = path.name.lower()
    found = next((ending for ending in IMAGES if name.endswith(ending)), None)
    return None if found is None else path.name[-len(found) :]


def stem_of(path: Path) -> str:
    """The name of an image file without its ending; of any other file or folder without its last suffix."""
    ending = ending_of(path)
    return path.name[: -len(ending)] if ending else path.stem


def name_of(path: Path) -> str:
    """What an image file is called: its name without its ending, `.seg.nrrd` as one."""
    return stem_of(path).removesuffix(SEGMENTS)


def mask_files(folder: Path) -> list[Path]:
    """The files of a folder of masks: its NIfTI files, and where it has none its other image files."""
    files = image_files(folder)
    nifti = [path for path in files if str(ending_of(path)).lower().startswith(".nii")]
    return nifti or files


def image_files(folder: Path) -> list[Path]:
    """The image files right in a folder, hidden ones not, in the order of names."""
    return sorted(p for p in folder.iterdir() if ending_of(p) and not p.name.startswith(".") and p.is_file())
