"""MetaImage files (`.mha`, `.mhd`), as ITK writes them; positions are LPS."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maisi.space.checks import Refusal
from maisi.space.grid import Grid
from maisi.space.raster import (
    GZIP,
    LPS,
    ZLIB,
    Raster,
    check_millimetres,
    checked_shape,
    content_of,
    decimal,
    grid_of,
    numbers,
    packed_zlib,
    placed_layers,
    unpacked,
    whole_numbers,
)
from maisi.storage.atomic import write_atomically

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NAMES = {code: name for name, code in _TYPES.items()}
_LAST = "ElementDataFile"
_OF_FORMAT = {  # entries that speak of voxels and place
    *("ObjectType", "ObjectSubType", "NDims", "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
    *("CompressedData", "CompressedDataSize", "TransformMatrix", "Rotation", "Orientation", "Offset", "Position"),
    *("Origin", "CenterOfRotation", "AnatomicalOrientation", "ElementSpacing", "ElementSize", "DimSize"),
    *("HeaderSize", "ElementNumberOfChannels", "ElementType", "ElementMin", "ElementMax", _LAST),
}


def read_metaimage(path: Path, refuse: Refusal) -> Raster:
    """The image of an `.mha` or `.mhd` file; raises the refusal of what is none, is cut short or has no place."""
    fields, rest = _header(content_of(path, refuse), path, refuse)
    if fields.get("ObjectType", "Image") != "Image" or "NDims" not in fields:
        raise refuse(path, "a file that is not a MetaImage", "a MetaImage with ObjectType = Image")
    if fields["NDims"] != "3":
        raise refuse(path, f"a {fields['NDims'][:10]}-D image", "3-D")
    channels = fields.get("ElementNumberOfChannels", "1")
    if channels != "1":
        raise refuse(path, f"{channels[:10]} values a voxel", "one real number a voxel")
    shape = whole_numbers(fields.get("DimSize", ""), 3, "DimSize", path, refuse)
    dtype = _dtype(fields, path, refuse)
    voxels = _voxels(fields, rest, checked_shape(shape, dtype, path, refuse), path, refuse)
    check_millimetres([fields.get("DistanceUnits", "")], path, refuse)
    grid = grid_of(shape, _axes(fields, path, refuse), _origin(fields, path, refuse), LPS, path, refuse)
    told = {key: value for key, value in fields.items() if key not in _OF_FORMAT}
    return Raster(placed_layers(voxels, shape, None, dtype, path, refuse), grid, told, "MetaImage")


def _header(content: bytes, path: Path, refuse: Refusal) -> tuple[dict[str, str], bytes]:
    """The entries, of which ElementDataFile is the last, and what follows."""
    fields: dict[str, str] = {}
    start = 0
    while _LAST not in fields:
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        name, equals, value = content[start:end].decode("utf-8", "replace").partition("=")
        if not equals:
            raise refuse(path, f"a header without {_LAST}", "a MetaImage (.mha, .mhd)")
        fields[name.strip()] = value.strip()
        start = end + 1
    return fields, content[start:]


def _dtype(fields: Mapping[str, str], path: Path, refuse: Refusal) -> np.dtype:
    said = fields.get("ElementType", "")
    if said not in _TYPES:
        raise refuse(path, f"voxels of the type {said or '(none)'}", f"one of {', '.join(_TYPES)}")
    is_big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    return np.dtype((">" if is_big else "<") + _TYPES[said])


def _voxels(fields: Mapping[str, str], rest: bytes, num_bytes: int, path: Path, refuse: Refusal) -> bytes:
    """The raw bytes of the voxels, from this file or from the one that it names."""
    if fields.get("BinaryData", "True").lower() != "true":
        raise refuse(path, "voxels written as text", "binary voxels")
    if fields.get("HeaderSize", "0") != "0":
        raise refuse(path, f"a header of {fields['HeaderSize'][:20]} bytes in its data file", "no HeaderSize")
    named = fields[_LAST]
    if named.upper() != "LOCAL":
        if Path(named).name != named or named.upper().startswith("LIST") or "%" in named:
            raise refuse(path, f"voxels in {named[:60]!r}", "LOCAL, or one data file beside the header")
        rest = content_of(path.with_name(named), refuse)
    if fields.get("CompressedData", "False").lower() != "true":
        return rest
    return unpacked(rest, num_bytes, GZIP if rest[:2] == b"\x1f\x8b" else ZLIB, path, refuse)


def _axes(fields: Mapping[str, str], path: Path, refuse: Refusal) -> np.ndarray:
    """The three axes (3, 3), one a row, mm in LPS."""
    said = next((fields[n] for n in ("TransformMatrix", "Rotation", "Orientation") if n in fields), "1 0 0 0 1 0 0 0 1")
    directions = np.array(numbers(said, 9, "TransformMatrix", path, refuse)).reshape(3, 3)
    name = "ElementSpacing" if "ElementSpacing" in fields else "ElementSize"
    if name not in fields:
        raise refuse(path, "no ElementSpacing", "a MetaImage with ElementSpacing in mm")
    return directions * np.array(numbers(fields[name], 3, name, path, refuse))[:, None]


def _origin(fields: Mapping[str, str], path: Path, refuse: Refusal) -> list[float]:
    said = next((fields[n] for n in ("Offset", "Position", "Origin") if n in fields), None)
    if said is None:
        raise refuse(path, "no Offset: it tells no place", "a MetaImage with an Offset")
    return numbers(said, 3, "Offset", path, refuse)


def write_metaimage(array: np.ndarray, grid: Grid, path: Path, keys: Mapping[str, str]) -> None:
    """An `.mha` of whole numbers `[x y z]` along RAS; it appears whole or not at all."""
    affine = LPS @ grid.affine
    directions = affine[:3, :3] / np.array(grid.spacing)
    voxels = packed_zlib(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F"))
    entries = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(voxels)),
        "TransformMatrix": _listed(directions.T.ravel()),
        "Offset": _listed(affine[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _listed(np.array(grid.spacing)),
        "DimSize": " ".join(map(str, array.shape)),
        **{key: value.replace("\n", " ") for key, value in keys.items()},
        "ElementType": _NAMES[array.dtype.str[1:]],
        _LAST: "LOCAL",
    }
    head = "".join(f"{name} = {value}\n" for name, value in entries.items()).encode("utf-8")
    with write_atomically(path, num_bytes=len(head) + len(voxels)) as temporary:
        temporary.write_bytes(head + voxels)


def _listed(values: np.ndarray) -> str:
    return " ".join(decimal(value) for value in values + 0.0)
