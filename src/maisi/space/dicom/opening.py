"""One DICOM file opened: with or without preamble and prefix, whole or cut short, and never with a raw message."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from maisi.errors import InvalidVolumeError
from maisi.space.checks import bad_volume

ACCEPTED = "whole CT files with geometry, rescale and pixels, in a coding pydicom knows"

BROKEN = (  # what pydicom lets through on damaged bytes
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(TypeError, ValueError, BytesLengthException, InvalidDicomError, struct.error, zlib.error),
)
_PREFIX = b"DICM"
_PREAMBLE = 128
_HEAD = _PREAMBLE + len(_PREFIX) + 8  # as far as the first element may begin, with its tag, VR or length
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # of file meta or of the data set, little or big endian
_PIXELS = {(0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)}
_UNDEFINED = 0xFFFFFFFF
_SHOWN = 200  # characters of what pydicom says


@contextmanager
def broken_refused(path: Path) -> Iterator[None]:
    """Turns what pydicom raises on a damaged file into an `InvalidVolumeError` that names the file."""
    try:
        yield
    except InvalidVolumeError:
        raise
    except BROKEN as error:
        found = f"a DICOM file that cannot be decoded ({plain(error)})"
        raise bad_volume(path, found, ACCEPTED) from error


def plain(error: BaseException) -> str:
    """What an exception says, in one line that speaks of the file and not of Python."""
    said = " ".join(str(error).split())[:_SHOWN]
    about_python = any(
        words in said for words in ("object", "attribute", "argument", "NoneType", "index out of", "<class")
    )
    return "its bytes are damaged" if about_python or not said else said


def is_dicom(path: str | Path) -> bool:
    """Whether the first bytes of a file are those of a DICOM file, with or without preamble and prefix."""
    try:
        with Path(path).open("rb") as file:
            return _start(file.read(_HEAD)) is not None
    except OSError:
        return False


def read_header(path: Path, tags: list[str]) -> tuple[Any, str | None]:
    """The data set up to its pixels, of which only `tags` are kept, and what is wrong with the pixels, if anything.

    Raises `InvalidDicomError` where the first bytes are not DICOM, and what pydicom raises on damaged ones.
    """
    with path.open("rb") as file:
        source = _at_data_set(file)
        dataset = pydicom.dcmread(source, stop_before_pixels=True, specific_tags=tags, force=True)
        return dataset, _fault_of_pixels(source, dataset)


def read_whole(path: Path) -> Any:
    """The whole data set with a transfer syntax, which files without file meta do not name."""
    with path.open("rb") as file:
        dataset = pydicom.dcmread(_at_data_set(file), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _native_syntax(dataset)
    return dataset


def syntax_of(dataset: Any) -> Any:
    """The transfer syntax of a data set; the uncompressed one that its bytes are in where the file names none."""
    return dataset.file_meta.get("TransferSyntaxUID") or _native_syntax(dataset)


def _native_syntax(dataset: Any) -> Any:
    is_implicit, is_little_endian = dataset.original_encoding
    if not is_little_endian:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian


def _at_data_set(file: BinaryIO) -> BinaryIO:
    """The file at its preamble, or its rest from where file meta or data set begin without one."""
    start = _start(file.read(_HEAD))
    if start is None:
        raise InvalidDicomError("its first bytes are not DICOM")
    file.seek(start)
    return file if start == 0 else BytesIO(file.read())


def _start(head: bytes) -> int | None:
    """Where pydicom is to begin to read; None where nothing there looks like DICOM."""
    if head[_PREAMBLE : _PREAMBLE + len(_PREFIX)] == _PREFIX:
        return 0
    places = (len(_PREFIX) if head.startswith(_PREFIX) else 0, _PREAMBLE, _PREAMBLE + len(_PREFIX))
    return next((place for place in places if _is_first_element(head[place : place + 8])), None)


def _is_first_element(data: bytes) -> bool:
    """Whether eight bytes are the tag of a first element with its VR or with a length that such an element can have."""
    if len(data) < 8 or data[:2] not in _FIRST_GROUPS:
        return False
    order = ">" if data[:2] == b"\x00\x08" else "<"
    (element,) = struct.unpack(order + "H", data[2:4])
    (length,) = struct.unpack(order + "I", data[4:8])
    has_vr = data[4:6].isalpha() and data[4:6].isupper()
    return element <= 0x0020 and (has_vr or length <= 0x400)


def _fault_of_pixels(source: BinaryIO, dataset: Any) -> str | None:
    """What is wrong with the pixels that begin where the source stands."""
    if dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return None  # known when they are read
    order = "<" if dataset.original_encoding[1] else ">"
    head = source.read(12)
    if len(head) < 8 or struct.unpack(order + "HH", head[:4]) not in _PIXELS:
        return "no pixels: it is cut short, or no image"
    is_implicit = dataset.original_encoding[0]
    start = 4 if is_implicit else 8
    if len(head) < start + 4:
        return "no pixels: it is cut short"
    (length,) = struct.unpack(order + "I", head[start : start + 4])
    if length == _UNDEFINED:
        return None
    here = source.tell() - len(head) + start + 4
    available = source.seek(0, 2) - here
    return f"{available} of {length} bytes of pixels: it is cut short" if available < length else None
