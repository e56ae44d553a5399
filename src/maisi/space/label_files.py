"""What label maps are stored as: ids, scaled ids, colours, channels of zeros and ones, masks, segments, contours.

All of it comes in as one map of ids along RAS. Whose numbers these are is asked elsewhere, in `anatomy.numberings`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from maisi.space.checks import bad_labels
from maisi.space.dicom.opening import is_dicom
from maisi.space.endings import ending_of, mask_files, stem_of
from maisi.space.files import log_findings
from maisi.space.grid import Grid
from maisi.space.nifti import check_bytes, open_nifti, suffix_of
from maisi.space.placement import Form, nifti_grid
from maisi.space.raster import reader_of
from maisi.space.reading import Finding
from maisi.space.stored_labels import LARGEST_ID, StoredLabels, place_of, times, turned, whole_ids
from maisi.space.structures import Structure, boxed, painted
from maisi.space.volume import LabelMap

_TABLE_CODES = (0, 30)  # NIfTI's codes for extensions of nobody in particular and of Caret
_MASK = "a mask of zeros and one other value"


def read_labels(path: str | Path) -> LabelMap:
    """The ids of a label map file turned to RAS: uint8 where all ids are below 256, else uint16.

    Raises `InvalidLabelsError` for what is not one 3-D map of whole numbers from 0 to 65535.
    """
    stored = read_stored_labels(path)
    log_findings(path, stored.findings)
    return stored.labels


def read_stored_labels(
    path: str | Path,
    *,
    channels: Sequence[int] | None = None,
    palette: np.ndarray | None = None,
    affine: Form | None = None,
) -> StoredLabels:
    """The label map of a file or of a folder of masks, turned to RAS: uint8 where all ids are below 256, else uint16.

    A file is a NIfTI, an NRRD (`.seg.nrrd` too), a MetaImage, or a DICOM SEG or RT-STRUCT. `channels` are the ids of
    the channels of a one-hot file, in order; a first channel more is its background. `palette` says which colour is
    which id, uint8 `(ids, 3)`. `affine` says which of a file's two places counts where they disagree. In a folder each
    file is one structure, named after it, and gets a number; where structures overlap the smaller one is kept. Raises
    `InvalidLabelsError` for what is none of these, with what was found where, and what is accepted.
    """
    path = Path(path)
    if path.is_dir():
        drawn = _dicom_labels(path)
        return _read_folder(path, affine) if drawn is None else _read_dicom(drawn)
    if reader_of(path) is not None:
        from maisi.space.label_rasters import read_label_raster

        return read_label_raster(path)
    if path.is_file() and suffix_of(path) is None and is_dicom(path):
        return _read_dicom(path)
    image = open_nifti(path, bad_labels)
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or min(shape[:3]) < 2 or sum(n > 1 for n in shape[3:]) > 1:
        raise bad_labels(path, f"a {len(shape)}-D array of {times(shape)}", "3-D, at least 2 voxels on each axis")
    grid, placing = nifti_grid(image, path, bad_labels, affine)
    stored = _stored_labels(image, shape, grid, path, channels, palette)
    return replace(stored, findings=(*check_bytes(image), *placing, *stored.findings))


def _read_dicom(path: Path) -> StoredLabels:
    from maisi.space.dicom import read_dicom_labels

    return read_dicom_labels(path)


def _dicom_labels(folder: Path) -> Path | None:
    """The one SEG or RT-STRUCT of a folder without masks; None where there is none, a refusal where there are more."""
    from maisi.space.dicom.labels import is_label_file

    entries = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if any(suffix_of(path) is not None for path in entries):
        return None
    found = [path for path in entries if is_label_file(path)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise bad_labels(folder, f"{len(found)} DICOM files of labels: {names}", "one of them, by its name")
    return found[0] if found else None


def _stored_labels(
    image: Any,
    shape: tuple[int, ...],
    grid: Grid,
    path: Path,
    channels: Sequence[int] | None,
    palette: np.ndarray | None,
) -> StoredLabels:
    """The labels of an image, by what its voxels are."""
    extra = int(np.prod(shape[3:], dtype=int))
    dtype = image.get_data_dtype()
    if dtype.fields:
        return _coloured(_decoded(image, path), grid, path, palette)
    if dtype.kind not in "iuf":
        raise bad_labels(path, f"voxels of the type {dtype}", "whole numbers, or colours of our palette")
    if extra > 1:
        return _of_channels(_Channels(image, shape, path), grid, path, channels, palette)
    ids, findings = _of_ids(image, grid, path)
    return StoredLabels(turned(ids, grid), _names_in_header(image), findings)


def _of_ids(image: Any, grid: Grid, path: Path) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """The ids in file order, and the scale factor if they were stored with one."""
    slope, inter = (float(n) for n in (image.dataobj.slope, image.dataobj.inter))
    return whole_ids(_decoded(image, path, scaled=False).reshape(grid.shape), grid, path, slope, inter)


def _coloured(voxels: np.ndarray, grid: Grid, path: Path, palette: np.ndarray | None) -> StoredLabels:
    """The ids whose colours the voxels have."""
    red, green, blue = (voxels[name].reshape(grid.shape) for name in list(voxels.dtype.names or "RGB")[:3])
    return _of_colours(red, green, blue, grid, path, palette)


def _of_colours(
    red: np.ndarray, green: np.ndarray, blue: np.ndarray, grid: Grid, path: Path, palette: np.ndarray | None
) -> StoredLabels:
    accepted = "one number a voxel, or the colours of our own palette (black is background)"
    if palette is None:
        raise bad_labels(path, "colours (RGB) instead of ids", accepted)
    table = np.full(2**24, LARGEST_ID, np.uint16)
    codes = palette.astype(np.int64) @ (65536, 256, 1)
    table[codes[::-1]] = np.arange(len(palette))[::-1]  # the lowest id of a colour
    table[0] = 0
    ids = np.empty(grid.shape, np.uint16)
    for k in range(grid.shape[2]):
        code = (red[:, :, k].astype(np.int32) << 16) | (green[:, :, k].astype(np.int32) << 8) | blue[:, :, k]
        ids[:, :, k] = table[code]
        foreign = ids[:, :, k] == LARGEST_ID
        if foreign.any():
            number = int(code[foreign].flat[0])
            colour = (number >> 16, number >> 8 & 255, number & 255)
            where = place_of(foreign, grid, k)
            what = f"colours (RGB) instead of ids, such as {colour} at {where}, which is no structure's"
            raise bad_labels(path, what, accepted)
    finding = Finding(
        topic="format", found="colours (RGB) of our palette", decided="turned into the ids they stand for"
    )
    labels = turned(ids.astype(np.uint8) if ids.max() < 256 else ids, grid)
    return StoredLabels(labels, findings=(finding,), is_coloured=True)


class _Channels:
    """The channels of a file with a fourth (or fifth) axis, decoded one at a time."""

    def __init__(self, image: Any, shape: tuple[int, ...], path: Path) -> None:
        self.image, self.shape, self.path = image, shape, path
        self.num = int(np.prod(shape[3:], dtype=int))

    def __getitem__(self, channel: int) -> np.ndarray:
        place = tuple(channel if n > 1 else 0 for n in self.shape[3:])
        try:
            return np.asarray(self.image.dataobj[(slice(None), slice(None), slice(None), *place)])
        except (ImageFileError, HeaderDataError, ValueError, OSError) as error:
            raise bad_labels(self.path, f"voxels that cannot be decoded ({error})", "a valid NIfTI file") from error


def _of_channels(
    found: _Channels, grid: Grid, path: Path, channels: Sequence[int] | None, palette: np.ndarray | None
) -> StoredLabels:
    """The ids of a one-hot file; of the three colours of an RGB file where the values are more than zeros and ones."""
    if found.num == 3 and max(float(found[c].max()) for c in range(3)) > 1:
        values = [found[c] for c in range(3)]
        if all(v.min() >= 0 and v.max() <= 255 for v in values) and all((v == np.rint(v)).all() for v in values):
            red, green, blue = (v.astype(np.uint8) for v in values)
            return _of_colours(red, green, blue, grid, path, palette)
    what = f"a fourth axis of {found.num}"
    if channels is None:
        raise bad_labels(path, what, "3-D; one-hot channels together with --numbering NAME or FILE, which names them")
    if found.num - len(channels) not in (0, 1):
        raise bad_labels(
            path,
            what,
            f"as many channels as the numbering has ids ({len(channels)}), or one more, the background first",
        )
    if found.num > len(channels):
        _check_background(found, path)
    ids = [0, *channels] if found.num > len(channels) else list(channels)
    array = np.zeros(grid.shape, np.uint16)
    taken = np.zeros(grid.shape, bool)
    for channel, id in enumerate(ids):
        mask = _mask(found[channel], path, f"channel {channel}", largest=1.0)
        _refuse_overlap(mask & taken, grid, path, channel)
        taken |= mask
        array[mask] = id
    finding = Finding(
        topic="format", found=f"{found.num} one-hot channels", decided=f"ids {ids[0]} to {ids[-1]} in order"
    )
    labels = turned(array.astype(np.uint8) if array.max() < 256 else array, grid)
    return StoredLabels(labels, findings=(finding,))


def _check_background(found: _Channels, path: Path) -> None:
    """Nothing, or the refusal of a background that is the last channel: its corners say so."""
    first, last = (found[channel] for channel in (0, found.num - 1))
    corners = np.ix_(*((0, -1) for _ in range(3)))
    if last[corners].any() and not first[corners].any():
        raise bad_labels(
            path, f"{found.num} channels of which the last looks like the background", "the background first"
        )


def _refuse_overlap(both: np.ndarray, grid: Grid, path: Path, channel: int) -> None:
    if both.any():
        k = int(np.argmax(both.any(axis=(0, 1))))
        what = f"{np.count_nonzero(both)} voxels that channel {channel} and one before it claim, such as "
        raise bad_labels(path, what + place_of(both[:, :, k], grid, k), "channels that do not overlap")


def _mask(values: np.ndarray, path: Path, what: str, largest: float | None = None) -> np.ndarray:
    """Where one structure is; any other single value than 1 is as good unless `largest` says otherwise."""
    high = float(values.max())
    if largest is not None and high not in (0.0, largest):
        raise bad_labels(path, f"values up to {high:g} in {what}", "zeros and ones in each channel")
    mask = values == high if high > 0 else np.zeros(values.shape, bool)
    if not np.isfinite(high) or high < 0 or np.count_nonzero(values) != np.count_nonzero(mask):
        others = values[(values != 0) & ~mask]
        example = float(others.flat[0]) if others.size else high
        raise bad_labels(path, f"values such as {example:g} and {high:g} in {what}", _MASK)
    return mask


def _read_folder(folder: Path, affine: Form | None) -> StoredLabels:
    """The structures of a folder of masks, numbered by name; where they overlap the smaller one is kept."""
    paths = mask_files(folder)
    if not paths:
        inner = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and any(map(_stem, path.iterdir()))]
        hint = f"; its folder {inner[0]} has some" if inner else ""
        raise bad_labels(
            folder, f"a folder without masks{hint}", "a folder with one NIfTI, NRRD or MetaImage mask a structure"
        )
    _check_names(paths, folder)
    grid, first = None, paths[0]
    structures: list[Structure] = []
    findings: list[Finding] = []
    for path in paths:
        values, own, placing = _mask_file(path, affine)
        findings += [finding for finding in placing if finding not in findings]
        if grid is not None and not own.is_close(grid):
            raise bad_labels(path, f"another grid ({own}) than {first.name} has ({grid})", "masks on one grid")
        grid = own
        if values.dtype.kind not in "iuf" or values.size != np.prod(own.shape):
            raise bad_labels(path, f"a {values.ndim}-D array of {times(values.shape)}, {values.dtype}", _MASK)
        structures += boxed(str(_stem(path)), _mask(values.reshape(own.shape), path, "it"))
    assert grid is not None
    empty = len(paths) - len(structures)
    found = f"a folder of {len(paths)} masks" + (f", {empty} of them empty" if empty else "")
    stored = painted(structures, grid, found, "one structure a file, named after it")
    return replace(stored, findings=(*findings, *stored.findings))


def _mask_file(path: Path, affine: Form | None) -> tuple[np.ndarray, Grid, list[Finding]]:
    """The voxels of one mask in file order, their grid, and what its header says twice."""
    read = reader_of(path)
    if read is not None:
        raster = read(path, bad_labels)
        return raster.array(path, bad_labels), raster.grid, []
    image = open_nifti(path, bad_labels)
    grid, placing = nifti_grid(image, path, bad_labels, affine)
    return _decoded(image, path), grid, list(placing)


def _check_names(paths: Sequence[Path], folder: Path) -> None:
    """Nothing, or the refusal of two masks of one name: which of them counts is not said."""
    files: dict[str, list[str]] = {}
    for path in paths:
        files.setdefault(str(_stem(path)).casefold(), []).append(path.name)
    twice = [" and ".join(same) for same in files.values() if len(same) > 1]
    if twice:
        raise bad_labels(folder, f"two masks of one name: {', '.join(twice)}", "one file a structure")


def _names_in_header(image: Any) -> dict[int, str]:
    """What the header calls the ids, as TotalSegmentator and Connectome Workbench write it (a label table in XML)."""
    for extension in image.header.extensions:
        text = extension.get_content() if extension.get_code() in _TABLE_CODES else b""
        if not isinstance(text, bytes) or b"<LabelTable" not in text:
            continue
        try:
            root = ElementTree.fromstring(text.strip(b"\0 \r\n\t"))
        except ElementTree.ParseError:
            continue
        labels = [(label.get("Key", ""), (label.text or "").strip()) for label in root.iter("Label")]
        return {int(key): name for key, name in labels if key.isdigit() and int(key) > 0 and name}
    return {}


def _decoded(image: Any, path: Path, scaled: bool = True) -> np.ndarray:
    """The voxels in file order, with the header's scale factor or without."""
    try:
        return np.asanyarray(image.dataobj) if scaled else np.asanyarray(image.dataobj.get_unscaled())
    except (ImageFileError, HeaderDataError, ValueError, OSError) as error:
        raise bad_labels(path, f"voxels that cannot be decoded ({error})", "a valid NIfTI file") from error


def _stem(path: Path) -> str | None:
    """The name of a mask's file without its ending; None for other files."""
    return stem_of(path) if ending_of(path) and not path.name.startswith(".") else None
