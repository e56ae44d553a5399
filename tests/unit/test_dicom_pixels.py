"""From stored pixels to HU: rescale, padding, unused bits, and codings with and without their plug-in."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_slices import COLUMNS, ROWS, SLICES, expected_hu, stored_slice, write_series, write_slice
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    MPEG2MPML,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from maisi.errors import InvalidVolumeError
from maisi.space.dicom import read_series
from maisi.space.reading import Finding, ReadOptions


def told(findings: list[Finding], topic: str) -> str:
    return "; ".join(f"{f.found}: {f.decided}" for f in findings if f.topic == topic)


def hu_slices() -> list[np.ndarray]:
    """HU `[row column]`, int16: the slices of `dicom_slices`."""
    return [stored_slice(k).astype(np.int16) - 1024 for k in range(SLICES)]


def write_stored(folder: Path, stored: list[np.ndarray], change=lambda dataset: None, **options) -> None:
    folder.mkdir(exist_ok=True)
    for k, pixels in enumerate(stored):
        write_slice(folder / f"{k:02d}.dcm", k, stored=pixels, change=change, **options)


# --- padding -------------------------------------------------------------------------------------------------------

CORNERS = [(slice(0, 3), slice(0, 3)), (slice(0, 3), slice(-3, None)), (slice(-3, None), slice(0, 3))]
CORNERS.append((slice(-3, None), slice(-3, None)))  # rows, columns


def padded(value: int, dtype: type, offset: int) -> list[np.ndarray]:
    """Stored slices whose corners are padding."""
    stored = [(hu.astype(np.int32) + offset).astype(dtype) for hu in hu_slices()]
    for pixels in stored:
        for corner in CORNERS:
            pixels[corner] = np.array(value).astype(dtype)
    return stored


def expected_padded() -> np.ndarray:
    array = expected_hu().copy()
    for rows, columns in CORNERS:
        array[columns, rows] = -1024
    return array


def declare(value: int, limit: int | None = None, vr: str = "SS"):
    def change(dataset: FileDataset) -> None:
        dataset.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", vr, limit)

    return change


DECLARED = {
    "signed": (-2000, np.int16, 0, declare(-2000)),
    "63536 of signed pixels": (-2000, np.int16, 0, declare(63536, vr="US")),
    "63536 of unsigned pixels": (63536, np.uint16, 1024, declare(63536, vr="US")),
    "-2000 of unsigned pixels": (63536, np.uint16, 1024, declare(-2000)),
    "a range": (-1500, np.int16, 0, declare(-2000, -1400)),
    "a range from above": (-1500, np.int16, 0, declare(-1400, -2000)),
    "a range of another sign": (-1500, np.int16, 0, declare(63536, 64136, vr="US")),
    "zero of unsigned pixels": (0, np.uint16, 1024, declare(0, vr="US")),
}


@pytest.mark.parametrize("name", DECLARED)
def test_declared_padding_is_air(tmp_path, name):
    value, dtype, offset, change = DECLARED[name]
    write_stored(tmp_path, padded(value, dtype, offset), change, rescale=(1, -offset))
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_padded())
    assert f"{36 * SLICES} voxels of padding" in told(findings, "padding")


@pytest.mark.parametrize(
    ("value", "dtype", "offset"), [(-2000, np.int16, 0), (-3024, np.int16, 0), (63536, np.uint16, 1024)]
)
def test_padding_that_no_file_declares_is_air_too(tmp_path, value, dtype, offset):
    write_stored(tmp_path, padded(value, dtype, offset), rescale=(1, -offset))
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_padded())
    assert str(value - offset) in told(findings, "padding")


def test_nothing_beside_padding_is_darker_than_air(tmp_path):
    c, s = np.cos(0.3), np.sin(0.3)
    stored = hu_slices()
    for pixels in stored:
        pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = -2000, -2000, -2000, -2000
    write_stored(tmp_path, stored, declare(-2000), rescale=(1, 0), orientation=(1.0, 0, 0, 0, c, s))
    assert read_series(tmp_path)[0].array.min() == -1024.0


def test_a_padding_value_that_is_a_tissue_too_counts_at_the_edge_alone(tmp_path):
    stored = padded(40, np.int16, 0)
    stored[3][6, 6] = 40
    write_stored(tmp_path, stored, declare(40), rescale=(1, 0))
    array = read_series(tmp_path)[0].array
    assert array[COLUMNS - 1 - 6, ROWS - 1 - 6, 3] == 40
    assert (array[:3, :3] == -1024).all()


def test_one_voxel_of_metal_is_left_as_it_is(tmp_path):
    stored = [np.tile(hu, (6, 6)) for hu in hu_slices()]
    stored[4][6, 6] = 20000
    write_stored(tmp_path, stored, rescale=(1, 0))
    volume, findings = read_series(tmp_path)
    assert volume.array.max() == 20000
    assert not told(findings, "padding")


# --- rescale -------------------------------------------------------------------------------------------------------


def test_a_rescale_that_changes_from_slice_to_slice_is_told(tmp_path):
    for k, hu in enumerate(hu_slices()):
        write_slice(tmp_path / f"{k}", k, stored=(hu + 1000 + k).astype(np.uint16), rescale=(1, -1000 - k))
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert "change from slice to slice: 1 and -1007 (7), 1 and -1006 (6)" in told(findings, "values")


def test_a_slice_that_fits_by_the_rescale_of_the_others_alone_is_refused_by_its_name(tmp_path):
    write_series(tmp_path, slices=[k for k in range(SLICES) if k != 3])
    write_slice(tmp_path / "odd.dcm", 3, rescale=(1, 0))
    with pytest.raises(
        InvalidVolumeError, match=r"odd\.dcm with slope and intercept 1 and 0, by which it lies \d+ HU off"
    ):
        read_series(tmp_path)


def test_a_slice_with_a_rescale_of_its_own_that_fits_is_read(tmp_path):
    write_series(tmp_path, slices=[k for k in range(SLICES) if k != 3])
    write_slice(tmp_path / "own.dcm", 3, stored=(stored_slice(3) - 24) // 2, rescale=(2, -1000))
    np.testing.assert_allclose(read_series(tmp_path)[0].array, expected_hu(), atol=1)


def without_rescale(dataset: FileDataset) -> None:
    del dataset.RescaleSlope, dataset.RescaleIntercept


def test_stored_hu_without_a_rescale_are_taken_with_a_warning(tmp_path):
    write_stored(tmp_path, hu_slices(), without_rescale)
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert "without RescaleSlope and RescaleIntercept, whose stored values look like HU" in told(findings, "values")


@pytest.mark.parametrize("value", [None, -2000])
def test_stored_values_that_are_no_hu_are_refused_without_a_rescale_and_taken_with_an_offset(tmp_path, value):
    stored = [hu + np.int16(1024) for hu in hu_slices()] if value is None else padded(value, np.int16, 1024)
    write_stored(tmp_path, stored, without_rescale)
    with pytest.raises(
        InvalidVolumeError, match=r"without RescaleSlope and .* values from (24 to 1417|33 to 1408), no HU"
    ):
        read_series(tmp_path)
    volume, _ = read_series(tmp_path, ReadOptions(hu_offset=-1024))
    np.testing.assert_array_equal(volume.array, expected_hu() if value is None else expected_padded())


REFUSED = {
    "some without rescale": (without_rescale, r"1 of 8 slices without RescaleSlope and RescaleIntercept: odd\.dcm"),
    "slope of zero": (
        lambda d: setattr(d, "RescaleSlope", 0),
        r"odd\.dcm .*the RescaleSlope 0; accepted: a slope above 0",
    ),
    "effective atomic number": (lambda d: setattr(d, "RescaleType", "Z_EFF"), r"odd\.dcm .*of the type Z_EFF"),
    "fewer pixels than rows": (
        lambda d: setattr(d, "PixelData", d.PixelData[:-24]),
        r"odd\.dcm .*216 bytes of pixels where 10 rows of 12 columns of 16 bits are 240",
    ),
    "more pixels than rows": (lambda d: setattr(d, "PixelData", d.PixelData * 2), r"odd\.dcm .*480 bytes of pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_slice_whose_values_cannot_be_known_is_refused_by_its_name(tmp_path, name):
    change, words = REFUSED[name]
    write_series(tmp_path, slices=[k for k in range(SLICES) if k != 3])
    write_slice(tmp_path / "odd.dcm", 3, change=change)
    with pytest.raises(InvalidVolumeError, match=words):
        read_series(tmp_path)


def test_monochrome1_keeps_its_hu(tmp_path):
    write_series(tmp_path, change=lambda d: setattr(d, "PhotometricInterpretation", "MONOCHROME1"))
    volume, findings = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert "8 slices in MONOCHROME1" in told(findings, "values")


# --- bits ----------------------------------------------------------------------------------------------------------


def twelve_bits(dataset: FileDataset) -> None:
    dataset.BitsStored, dataset.HighBit = 12, 11


def test_an_overlay_in_the_high_bits_is_no_hu(tmp_path):
    overlay = np.zeros((ROWS, COLUMNS), np.uint16)
    overlay[2:5, 3:8] = 1 << 12 | 1 << 15
    write_stored(tmp_path, [stored_slice(k) | overlay for k in range(SLICES)], twelve_bits)
    np.testing.assert_array_equal(read_series(tmp_path)[0].array, expected_hu())


@pytest.mark.parametrize("mask", [0xFFFF, 0x0FFF], ids=["sign extended", "sign in 12 bits"])
def test_signed_pixels_of_twelve_bits_are_read(tmp_path, mask):
    stored = [(hu.astype(np.uint16) & mask).astype(np.int16) for hu in hu_slices()]
    write_stored(tmp_path, stored, twelve_bits, rescale=(1, 0))
    np.testing.assert_array_equal(read_series(tmp_path)[0].array, expected_hu())


def test_padding_beyond_the_stored_bits_is_padding_and_not_bone(tmp_path):
    def change(dataset: FileDataset) -> None:
        twelve_bits(dataset)
        declare(63536, vr="US")(dataset)

    stored = padded(63536, np.uint16, 1024)
    stored[3][6, 6] = 63536 & 0xFFF
    write_stored(tmp_path, stored, change)
    expected = expected_padded()
    expected[COLUMNS - 1 - 6, ROWS - 1 - 6, 3] = (63536 & 0xFFF) - 1024
    np.testing.assert_array_equal(read_series(tmp_path)[0].array, expected)


def test_bits_that_contradict_each_other_are_refused_where_it_matters(tmp_path):
    write_series(tmp_path, slices=[k for k in range(SLICES) if k != 3])
    write_slice(tmp_path / "odd.dcm", 3, change=lambda d: setattr(d, "BitsStored", 7))
    with pytest.raises(InvalidVolumeError, match=r"odd\.dcm .*pixels of 7 stored bits whose highest is 15"):
        read_series(tmp_path)


def test_eight_bits_are_read(tmp_path):
    def change(dataset: FileDataset) -> None:
        stored = np.frombuffer(dataset.PixelData, "<u2").reshape(ROWS, COLUMNS)
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = (stored // 8).astype(np.uint8).tobytes()

    write_series(tmp_path, change=change, rescale=(8, -1024))
    np.testing.assert_array_equal(read_series(tmp_path)[0].array, (expected_hu() + 1024) // 8 * 8 - 1024)


# --- codings -------------------------------------------------------------------------------------------------------


def coded(folder: Path, syntax: str, frames: list[bytes] | None = None) -> None:
    """The series with its pixels coded: by pydicom, or as the code streams that are given."""
    write_series(folder)
    for k, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        if frames is None:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset.PixelData = encapsulate([frames[k]])
            dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
            dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)


def streams(folder: Path, code) -> list[bytes]:
    """The pixels of each file of a plain series, coded."""
    write_series(folder)
    return [code(pydicom.dcmread(path).pixel_array) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_codings_that_are_always_at_hand_are_read(tmp_path, syntax):
    coded(tmp_path, syntax)
    np.testing.assert_array_equal(read_series(tmp_path)[0].array, expected_hu())


def jpeg_2000(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels.astype(np.uint16)).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    return stream.getvalue()


def test_jpeg_2000_is_read(tmp_path):
    coded(tmp_path / "coded", JPEG2000Lossless, streams(tmp_path / "plain", jpeg_2000))
    np.testing.assert_array_equal(read_series(tmp_path / "coded")[0].array, expected_hu())


def jpeg_lossless(pixels: np.ndarray) -> bytes:
    """A code stream of ITU-T T.81, process 14: 16 bits, each pixel as its difference from the one before.

    The code of a difference is its number of bits in five bits, then those bits (of one less where it is negative).
    """
    values = pixels.astype(int)
    before = np.roll(values, 1, axis=1)
    before[1:, 0], before[0, 0] = values[:-1, 0], 1 << 15
    bits = ""
    for difference in (values - before).ravel().tolist():
        size = abs(difference).bit_length()
        rest = difference if difference > 0 else difference + (1 << size) - 1
        bits += f"{size:05b}" + (f"{rest:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    segments = [
        (0xC3, struct.pack(">BHHBBBB", 16, *pixels.shape, 1, 1, 0x11, 0)),
        (0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])),
        (0xDA, bytes([1, 1, 0, 1, 0, 0])),
    ]
    head = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return b"\xff\xd8" + head + scan + b"\xff\xd9"


def test_jpeg_lossless_is_read_or_refused_with_the_packages_that_read_it(tmp_path):
    coded(tmp_path / "coded", JPEGLosslessSV1, streams(tmp_path / "plain", jpeg_lossless))
    if get_decoder(JPEGLosslessSV1).is_available:
        np.testing.assert_array_equal(read_series(tmp_path / "coded")[0].array, expected_hu())
    else:
        with pytest.raises(InvalidVolumeError, match=r"need pylibjpeg and pylibjpeg-libjpeg.*'maisi\[dicom\]'"):
            read_series(tmp_path / "coded")


@pytest.mark.parametrize(
    ("syntax", "packages"),
    [
        (JPEGExtended12Bit, "pylibjpeg and pylibjpeg-libjpeg"),
        (HTJ2KLossless, "pylibjpeg and pylibjpeg-openjpeg"),
        (JPEG2000Lossless, "pylibjpeg and pylibjpeg-openjpeg"),
        (JPEGLSLossless, None),
        (RLELossless, None),
        (MPEG2MPML, None),
    ],
)
def test_a_damaged_code_stream_is_refused_by_its_file_and_a_lacking_plug_in_by_its_packages(tmp_path, syntax, packages):
    coded(tmp_path, syntax, [b"no code stream at all"] * SLICES)
    with pytest.raises(InvalidVolumeError, match=r"1\.2\.3_00\.dcm") as error:
        read_series(tmp_path)
    if packages is not None and "pylibjpeg" not in get_decoder(syntax)._available:
        assert packages in str(error.value)
        assert "pip install 'maisi[dicom]'" in str(error.value)
    assert "attribute" not in str(error.value)


def test_a_truncated_code_stream_is_refused_by_its_file(tmp_path):
    coded(tmp_path, RLELossless)
    path = sorted(tmp_path.iterdir())[3]
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InvalidVolumeError, match=path.name):
        read_series(tmp_path)
