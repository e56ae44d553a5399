"""NRRD files (http://teem.sourceforge.net/nrrd/format.html), attached or with a header of their own (`.nhdr`)."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from isal import igzip

from maisi.space.checks import Refusal
from maisi.space.grid import Grid
from maisi.space.raster import (
    GZIP,
    LPS,
    Raster,
    check_millimetres,
    checked_shape,
    content_of,
    decimal,
    grid_of,
    numbers,
    placed_layers,
    unpacked,
    whole_numbers,
)
from maisi.storage.atomic import write_atomically

_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_NAMES = {"i1": "signed char", "u1": "uint8", "i2": "short", "u2": "uint16", "i4": "int", "u4": "uint", "f4": "float"}
_SPACES = {  # signs that take a space to RAS
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}
_LAYER_KINDS = {"list", "vector", "point", "complex", "2-vector", "3-vector", "4-vector", "3-color", "rgb-color"}
_MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")
_BROKEN_UP = re.compile(r"\(([^()]*)\)|none")


def read_nrrd(path: Path, refuse: Refusal) -> Raster:
    """The image of an `.nrrd` or `.nhdr` file; raises the refusal of what is none, is cut short or has no place."""
    content = content_of(path, refuse)
    if not _MAGIC.match(content):
        raise refuse(path, "a file that is not NRRD", "NRRD0001 to NRRD0005")
    fields, keys, rest = _header(content, path, refuse)
    dimension = whole_numbers(_field(fields, "dimension", path, refuse), 1, "dimension", path, refuse)[0]
    if dimension not in (3, 4):
        raise refuse(path, f"a {dimension}-D image", "3-D, or 4-D with a list of layers")
    shape = whole_numbers(_field(fields, "sizes", path, refuse), dimension, "sizes", path, refuse)
    layer_axis, axes = _axes(fields, dimension, path, refuse)
    dtype = _dtype(fields, path, refuse)
    voxels = _voxels(fields, rest, checked_shape(shape, dtype, path, refuse), path, refuse)
    check_millimetres(re.findall(r'"([^"]*)"', fields.get("space units", "")), path, refuse)
    sizes = [n for axis, n in enumerate(shape) if axis != layer_axis]
    grid = grid_of(sizes, axes, _origin(fields, path, refuse), _to_ras(fields, path, refuse), path, refuse)
    return Raster(placed_layers(voxels, shape, layer_axis, dtype, path, refuse), grid, keys, "NRRD")


def _header(content: bytes, path: Path, refuse: Refusal) -> tuple[dict[str, str], dict[str, str], bytes]:
    """The fields in small letters, the keys with their values, and what follows the header."""
    end = re.search(rb"\r?\n\r?\n", content)
    if end is None and path.suffix.lower() != ".nhdr":
        raise refuse(path, "an NRRD header without an end", "a whole file")
    head, rest = (content, b"") if end is None else (content[: end.start()], content[end.end() :])
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    for line in re.split(r"\r?\n", head.decode("utf-8", "replace"))[1:]:
        if line.startswith("#") or not line.strip():
            continue
        key, assigned, value = line.partition(":=")
        name, colon, said = line.partition(":")
        if assigned and len(key) <= len(name):
            keys[key.strip()] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value)
        elif colon:
            fields[name.strip().lower()] = said.strip()
        else:
            raise refuse(path, f"the header line {line[:60]!r}", "lines of `field: value` or `key:=value`")
    return fields, keys, rest


def _field(fields: Mapping[str, str], name: str, path: Path, refuse: Refusal) -> str:
    if name not in fields:
        raise refuse(path, f"no {name} in its header", f"an NRRD with {name}")
    return fields[name]


def _axes(fields: Mapping[str, str], dimension: int, path: Path, refuse: Refusal) -> tuple[int | None, np.ndarray]:
    """Which axis is a list of layers, if one is, and the three others (3, 3), one a row, mm."""
    said = fields.get("space directions")
    if said is None:
        raise refuse(path, "no space directions: it tells no place", "an NRRD with space, directions and origin")
    vectors = [match[1] for match in _BROKEN_UP.finditer(said)]
    kinds = fields.get("kinds", "").lower().split()
    layers = [axis for axis, vector in enumerate(vectors) if vector is None]
    if len(vectors) != dimension or len(layers) != dimension - 3:
        raise refuse(path, f"the space directions {said[:80]!r}", f"three vectors{' and one none' * (dimension - 3)}")
    if layers and len(kinds) == dimension and kinds[layers[0]] not in _LAYER_KINDS:
        raise refuse(path, f"a fourth axis of the kind {kinds[layers[0]]}", "one image, or a list of layers")
    axes = [numbers(v.replace(",", " "), 3, "space directions", path, refuse) for v in vectors if v is not None]
    return layers[0] if layers else None, np.array(axes)


def _origin(fields: Mapping[str, str], path: Path, refuse: Refusal) -> list[float]:
    said = _field(fields, "space origin", path, refuse)
    return numbers(said.strip("() ").replace(",", " "), 3, "space origin", path, refuse)


def _to_ras(fields: Mapping[str, str], path: Path, refuse: Refusal) -> np.ndarray:
    said = _field(fields, "space", path, refuse).lower()
    if said not in _SPACES:
        accepted = "left-posterior-superior, right-anterior-superior or left-anterior-superior"
        raise refuse(path, f"the space {said!r}", accepted)
    return np.diag([*map(float, _SPACES[said]), 1.0])


def _dtype(fields: Mapping[str, str], path: Path, refuse: Refusal) -> np.dtype:
    said = _field(fields, "type", path, refuse).lower()
    if said not in _TYPES:
        raise refuse(path, f"voxels of the type {said}", "whole or floating-point numbers")
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    return np.dtype(order + _TYPES[said])


def _voxels(fields: Mapping[str, str], rest: bytes, num_bytes: int, path: Path, refuse: Refusal) -> bytes:
    """The raw bytes of the voxels, from this file or from the one that it names."""
    if any(fields.get(f"{unit} skip", fields.get(f"{unit}skip", "0")) != "0" for unit in ("line", "byte")):
        raise refuse(path, "voxels after lines or bytes to skip", "an NRRD whose voxels follow its header")
    named = fields.get("data file", fields.get("datafile"))
    if named is not None:
        if Path(named).name != named or named.split()[:1] == ["LIST"] or "%" in named:
            raise refuse(path, f"voxels in {named[:60]!r}", "one data file beside the header")
        rest = content_of(path.with_name(named), refuse)
    encoding = _field(fields, "encoding", path, refuse).lower()
    if encoding == "raw":
        return rest
    if encoding in ("gzip", "gz"):
        return unpacked(rest, num_bytes, GZIP, path, refuse)
    raise refuse(path, f"voxels encoded as {encoding}", "raw or gzip")


def write_nrrd(array: np.ndarray, grid: Grid, path: Path, keys: Mapping[str, str]) -> None:
    """An NRRD of whole numbers `[x y z]` along RAS, in LPS as 3D Slicer writes it; it appears whole or not at all."""
    affine = LPS @ grid.affine
    directions = " ".join(_vector(affine[:3, axis]) for axis in range(3))
    lines = [
        "NRRD0005",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {_NAMES[array.dtype.str[1:]]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape))}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        'space units: "mm" "mm" "mm"',
        f"space origin: {_vector(affine[:3, 3])}",
        *(f"{key}:={_escaped(value)}" for key, value in keys.items()),
    ]
    head = "\n".join(lines).encode("utf-8") + b"\n\n"
    voxels = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    content = head + igzip.compress(voxels, compresslevel=2, mtime=0)
    with write_atomically(path, num_bytes=len(content)) as temporary:
        temporary.write_bytes(content)


def _vector(values: np.ndarray) -> str:
    return f"({','.join(decimal(value) for value in values + 0.0)})"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
