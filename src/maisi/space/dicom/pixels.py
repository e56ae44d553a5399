"""The HU of planes: decoded, freed of unused bits and padding, rescaled slice by slice."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID

from maisi.errors import InvalidVolumeError
from maisi.space.checks import bad_volume
from maisi.space.dicom.alike import names
from maisi.space.dicom.opening import ACCEPTED, broken_refused, plain, read_whole
from maisi.space.dicom.padding import AIR, declared
from maisi.space.dicom.plane import Plane

INSTALL = "pip install 'maisi[dicom]'"

_BLOCK = 16  # planes turned at once: float32 of 16 slices fill a line of the cache
_OFF_NEIGHBOURS, _TIMES_BETTER = 100.0, 3.0  # HU; by how much a slice must fit worse by its own rescale
_PLUG_INS = {  # by transfer syntax: what decodes it, all in the extra `dicom`
    **dict.fromkeys(
        ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
        "pylibjpeg and pylibjpeg-libjpeg",
    ),
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "pylibjpeg and pylibjpeg-libjpeg"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"), "pylibjpeg and pylibjpeg-openjpeg"),
    **dict.fromkeys(
        ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"),
        "pylibjpeg and pylibjpeg-openjpeg",
    ),
}


def check_decodable(planes: Iterable[Plane]) -> None:
    """Nothing, or an `InvalidVolumeError` that names the packages which a coding of the pixels needs."""
    first: dict[str, Path] = {}
    for plane in planes:
        first.setdefault(plane.syntax, plane.path)
    for syntax, path in first.items():
        uid = UID(syntax)
        if not uid.is_transfer_syntax:
            raise bad_volume(path, f"the unknown coding of pixels {syntax}", ACCEPTED)
        if not uid.is_compressed or uid.is_deflated:
            continue
        try:
            is_available = get_decoder(uid).is_available
        except NotImplementedError:
            raise bad_volume(path, f"pixels coded as {uid.name} ({syntax})", ACCEPTED) from None
        if not is_available:
            raise _lacks_plug_in(path, uid)


def _lacks_plug_in(path: Path, uid: UID, reason: str = "") -> InvalidVolumeError:
    packages = _PLUG_INS.get(uid, "a plug-in of pydicom")
    found = f"pixels coded as {uid.name} ({uid}), which need {packages}{reason}"
    return bad_volume(path, found, f"uncompressed or RLE pixels, or this coding after: {INSTALL}")


def hounsfield(planes: Sequence[Plane]) -> tuple[np.ndarray, np.ndarray | None]:
    """HU `[column row slice]`, float32, of planes of one size, with padding as air, and where padding is declared.

    Without a rescale the stored values count as they are. The mask is None where no pixel is declared as padding.
    """
    columns, rows = planes[0].size
    array = np.empty((columns, rows, len(planes)), dtype=np.float32)
    masks: dict[int, np.ndarray] = {}
    opened: tuple[Path | None, np.ndarray, Any] = (None, array, None)  # the last file, which may hold all planes
    for start in range(0, len(planes), _BLOCK):
        few = planes[start : start + _BLOCK]
        block = np.empty((len(few), rows, columns), dtype=np.float32)
        for k, plane in enumerate(few):
            with broken_refused(plane.path):
                if opened[0] != plane.path:
                    opened = plane.path, *_stored(plane)
                is_padding = _put_hu(block[k], plane, *opened[1:])
            if is_padding is not None and is_padding.any():
                masks[start + k] = is_padding
        array[:, :, start : start + len(few)] = block.T
    if not masks:
        return array, None
    nothing = np.zeros((rows, columns), bool)
    return array, np.stack([masks.get(k, nothing) for k in range(len(planes))]).T


def _put_hu(hu: np.ndarray, plane: Plane, stored: np.ndarray, dataset: Any) -> np.ndarray | None:
    """Writes a plane's HU `[row column]`, and gives which of its pixels are declared as padding."""
    if plane.frame >= len(stored):
        raise bad_volume(plane.path, f"{len(stored)} frames of pixels", f"at least {plane.frame + 1}")
    slope, intercept = plane.rescale or (1.0, 0.0)
    pixels = stored[plane.frame]
    is_padding = declared(dataset, pixels, slope, intercept)
    np.multiply(_used_bits(pixels, dataset, is_padding, plane.path), np.float32(slope), out=hu, casting="unsafe")
    hu += np.float32(intercept)
    if is_padding is not None:
        hu[is_padding] = AIR
    return is_padding


def check_rescales(array: np.ndarray, planes: Sequence[Plane], folder: Path) -> None:
    """Nothing, or the refusal of a slice that fits its neighbours by the rescale of all others and not by its own.

    `array` is HU `[column row slice]` of the planes in their order along the normal.
    """
    counts = Counter(plane.rescale for plane in planes)
    (common, count), *others = counts.most_common()
    if not others or common is None or count <= len(planes) / 2:
        return
    for k, plane in enumerate(planes):
        beside = [j for j in (k - 1, k + 1) if 0 <= j < len(planes) and planes[j].rescale == common]
        if plane.rescale in (None, common) or not beside:
            continue
        slope, intercept = plane.rescale
        own, neighbour = array[:, :, k], array[:, :, beside[0]]
        as_others = (own - intercept) / slope * common[0] + common[1]
        off, fitting = (float(np.median(np.abs(hu - neighbour))) for hu in (own, as_others))
        if off > _OFF_NEIGHBOURS + _TIMES_BETTER * fitting:
            found = (
                f"{names([plane], folder)[0]} with slope and intercept {slope:g} and {intercept:g}, by which it lies"
            )
            found += f" {off:.0f} HU off the slice beside it, where the others have {common[0]:g} and {common[1]:g}"
            raise bad_volume(folder, found, "slices that follow each other in HU")


def _stored(plane: Plane) -> tuple[np.ndarray, Any]:
    """The stored values (frames, rows, columns) of the file of a plane with all their bits, and its data set."""
    path, uid = plane.path, UID(plane.syntax)
    columns, rows = plane.size
    dataset = read_whole(path)
    _check_amount(dataset, path, uid)
    try:
        stored = pixel_array(dataset, correct_unused_bits=uid.is_compressed)
    except (RuntimeError, NotImplementedError) as error:
        if uid in _PLUG_INS and not _has_plug_in(uid):
            raise _lacks_plug_in(path, uid, f" ({plain(error)})") from error
        raise
    if stored.dtype.kind not in "iu":
        raise bad_volume(path, f"pixels of type {stored.dtype}", "whole numbers")
    stored = stored[None] if stored.ndim == 2 else stored
    if stored.shape[1:] != (rows, columns):
        raise bad_volume(path, f"pixels of shape {stored.shape}", f"{rows} rows of {columns} columns")
    return stored, dataset


def _has_plug_in(uid: UID) -> bool:
    """Whether one of the plug-ins that the extra installs is among the decoders at hand."""
    return "pylibjpeg" in get_decoder(uid)._available


def _check_amount(dataset: Any, path: Path, uid: UID) -> None:
    """Nothing, or the refusal of uncompressed pixels that are fewer or more than rows, columns and frames tell."""
    if uid.is_encapsulated:
        return
    bits = int(dataset.BitsAllocated)
    frames = int(dataset.get("NumberOfFrames") or 1)
    expected = int(dataset.Rows) * int(dataset.Columns) * frames * bits // 8
    found = len(dataset.PixelData) if "PixelData" in dataset else 0
    if found not in (expected, expected + expected % 2):
        size = f"{dataset.Rows} rows of {dataset.Columns} columns of {bits} bits"
        raise bad_volume(path, f"{found} bytes of pixels where {size} are {expected}", ACCEPTED)


def _used_bits(pixels: np.ndarray, dataset: Any, is_padding: np.ndarray | None, path: Path) -> np.ndarray:
    """The values of the stored bits alone: those above may hold an overlay, or the sign."""
    bits = int(dataset.BitsStored)
    spare = 8 * pixels.dtype.itemsize - bits
    if spare <= 0:
        return pixels
    used = (pixels << spare) >> spare
    if int(dataset.get("HighBit", bits - 1)) != bits - 1:
        differs = used != pixels if is_padding is None else (used != pixels) & ~is_padding
        if differs.any():
            found = f"pixels of {bits} stored bits whose highest is {dataset.HighBit}"
            raise bad_volume(path, found, f"the highest bit {bits - 1}")
    return used
