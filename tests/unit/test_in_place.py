"""Files whose voxels are changed in place."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made_clinical import made_provenance

from maisi.space.files import read_image
from maisi.space.in_place import open_original, write_changed, write_labels_like
from maisi.space.label_files import read_labels
from maisi.space.origin import read_provenance
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap, Volume

TRUST = ReadOptions(trust_hu=True)
TURNED = np.array([[0, -2.0, 0, 3], [0, 0, 3.0, 4], [-1.5, 0, 0, 5], [0, 0, 0, 1]])


def stored(path: Path, dtype: str = "int16", scale: tuple[float, float] = (1, 0)) -> Path:
    """A file of axes in another order and direction, with an extension in its header."""
    array = np.random.default_rng(0).integers(0, 1000, (7, 9, 11)).astype(dtype)
    image = nib.Nifti1Image(array, TURNED)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    image.header.set_slope_inter(*scale)
    image.header["descrip"] = b"of a scanner"
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("dtype", ["int16", ">i2", "uint16", "float32", "uint8"])
def test_only_the_bytes_of_changed_voxels_change(tmp_path: Path, dtype: str) -> None:
    source = stored(tmp_path / "ct.nii", dtype)
    before, _ = read_image(source, TRUST)
    after = before.array.copy()
    after[2, 3, 4] += 5
    write_changed(before, Volume(after, before.grid), open_original(source, before, TRUST), tmp_path / "new.nii")

    old, new = (np.frombuffer((tmp_path / name).read_bytes(), np.uint8) for name in ("ct.nii", "new.nii"))
    assert old.size == new.size
    assert 1 <= (old != new).sum() <= np.dtype(dtype).itemsize
    again, _ = read_image(tmp_path / "new.nii", TRUST)
    np.testing.assert_array_equal(again.array, after)


@pytest.mark.parametrize("dtype", ["int16", ">i2"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_what_made_it_is_one_extension_more(tmp_path: Path, kind: type, dtype: str) -> None:
    plain = nib.load(stored(tmp_path / "plain.nii", dtype))
    header = kind.header_class.from_header(plain.header)
    header.extensions.append(nib.nifti1.Nifti1Extension(4, b"<xml of another program>"))
    image = kind(np.asarray(plain.dataobj), plain.affine, header)
    image.to_filename(tmp_path / "ct.nii")
    before, _ = read_image(tmp_path / "ct.nii", TRUST)
    changed = Volume(before.array + 0, before.grid)
    original = open_original(tmp_path / "ct.nii", before, TRUST)
    write_changed(before, changed, original, tmp_path / "new.nii", provenance=made_provenance())
    again, findings = read_image(tmp_path / "new.nii", TRUST)
    np.testing.assert_array_equal(again.array, before.array)
    assert findings == read_image(tmp_path / "ct.nii", TRUST)[1]
    assert read_provenance(tmp_path / "new.nii") == made_provenance()
    codes = [each.get_code() for each in nib.load(tmp_path / "ct.nii").header.extensions]
    assert [each.get_code() for each in nib.load(tmp_path / "new.nii").header.extensions] == [*codes, 6]
    later = made_provenance(command="inpaint")
    original = open_original(tmp_path / "new.nii", before, TRUST)
    write_changed(before, changed, original, tmp_path / "twice.nii", provenance=later)
    assert read_provenance(tmp_path / "twice.nii") == later
    labels = LabelMap(np.ones(before.grid.shape, np.uint8), before.grid)
    write_labels_like(labels, original, tmp_path / "l.nii", made_provenance())
    assert read_provenance(tmp_path / "l.nii") == made_provenance()


def test_the_scale_of_the_header_stays_and_values_fit_into_it(tmp_path: Path) -> None:
    source = stored(tmp_path / "ct.nii.gz", scale=(2.0, -1024.0))
    before, _ = read_image(source, TRUST)
    after = before.array.copy()
    after[0, 0, 0], after[1, 1, 1] = 100.0, 1e6
    write_changed(before, Volume(after, before.grid), open_original(source, before, TRUST), tmp_path / "new.nii.gz")
    image = nib.load(tmp_path / "new.nii.gz")
    assert (image.dataobj.slope, image.dataobj.inter) == (2.0, -1024.0)
    again, _ = read_image(tmp_path / "new.nii.gz", TRUST)
    assert again.array[0, 0, 0] == 100
    assert again.array[1, 1, 1] == 2 * 32767 - 1024


def test_labels_lie_on_the_axes_of_the_original(tmp_path: Path) -> None:
    source = stored(tmp_path / "ct.nii.gz")
    volume, _ = read_image(source, TRUST)
    ids = (volume.array > 500).astype(np.uint8)
    write_labels_like(LabelMap(ids, volume.grid), open_original(source, volume, TRUST), tmp_path / "labels.nii.gz")
    image, ct = nib.load(tmp_path / "labels.nii.gz"), nib.load(source)
    np.testing.assert_array_equal(image.affine, ct.affine)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(ct.dataobj) > 500)
    assert image.get_data_dtype() == np.uint8
    assert read_labels(tmp_path / "labels.nii.gz").grid.is_close(volume.grid)


def test_an_oblique_file_has_no_voxels_to_change(tmp_path: Path) -> None:
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    nib.save(nib.Nifti1Image(np.arange(7 * 9 * 11, dtype=np.int16).reshape(7, 9, 11), turned), tmp_path / "ct.nii")
    volume, _ = read_image(tmp_path / "ct.nii", TRUST)
    original = open_original(tmp_path / "ct.nii", volume, TRUST)
    assert original is None
    write_changed(volume, volume, original, tmp_path / "new.nii")
    again, _ = read_image(tmp_path / "new.nii", TRUST)
    assert again.grid.is_close(volume.grid)


def test_bytes_before_the_voxels_that_are_of_no_extension_are_left_out(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 1000, (7, 9, 11)).astype(np.int16)
    content = bytearray(nib.Nifti1Image(array, TURNED).to_bytes())
    content[108:112] = np.float32(352 + 640).tobytes()  # vox_offset
    (tmp_path / "ct.nii").write_bytes(bytes(content[:352]) + b"junk" * 160 + bytes(content[352:]))
    before, _ = read_image(tmp_path / "ct.nii", TRUST)
    after = before.array.copy()
    after[2, 3, 4] += 5
    original = open_original(tmp_path / "ct.nii", before, TRUST)
    write_changed(before, Volume(after, before.grid), original, tmp_path / "new.nii", 0, made_provenance())
    again, _ = read_image(tmp_path / "new.nii", TRUST)
    np.testing.assert_array_equal(again.array, after)
    assert read_provenance(tmp_path / "new.nii") == made_provenance()
