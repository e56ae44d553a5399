"""Voxels that were not scanned: air before anything is computed, and never mixed with tissue."""

import numpy as np
import pytest
from made_scans import AFFINE, SHAPE, outside_circle, save_scan, trunk, world_of

from maisi.space.files import read_image
from maisi.space.grid import Grid
from maisi.space.reading import ReadOptions
from maisi.space.resample import crop, fit, pad, resample, with_spacing
from maisi.space.volume import Volume


@pytest.mark.parametrize("value", [-2000, -3024, -32768, -1500, 63536, 62512, 0, 300, -500])
def test_padding_becomes_air_and_nothing_else_changes(tmp_path, value):
    array = trunk().astype(np.int32)
    array[outside_circle()] = value
    volume, findings = read_image(save_scan(tmp_path / "ct.nii.gz", array), ReadOptions())
    np.testing.assert_array_equal(volume.array, np.where(outside_circle(), -1024, trunk()))
    finding = next(f for f in findings if f.topic == "padding")
    assert f"{value:g}" in finding.found
    assert finding.is_warning == (-1000 < value < 20000)  # could have been measured


def test_63536_in_unsigned_values_is_padding(tmp_path):
    array = (trunk() + 1024).astype(np.uint16)
    array[outside_circle()] = 63536
    volume, _ = read_image(save_scan(tmp_path / "ct.nii.gz", array), ReadOptions(hu_offset=-1024))
    np.testing.assert_array_equal(volume.array, np.where(outside_circle(), -1024, trunk()))


def test_real_air_beside_padding_stays_as_it_was_measured(tmp_path):
    array = trunk()
    assert (array[~outside_circle()] < -1000).any()
    array[outside_circle()] = -2000
    volume, _ = read_image(save_scan(tmp_path / "ct.nii.gz", array), ReadOptions())
    np.testing.assert_array_equal(volume.array[~outside_circle()], trunk()[~outside_circle()])


def test_tissue_of_the_value_of_padding_is_kept_where_it_does_not_reach_a_corner(tmp_path):
    array = np.where(outside_circle(), 0, trunk())
    array[17, 16, 10] = 0
    volume, _ = read_image(save_scan(tmp_path / "ct.nii.gz", array), ReadOptions())
    assert volume.array[17, 16, 10] == 0
    assert volume.array[0, 0, 10] == -1024


def through_tissue() -> np.ndarray:
    """A circle that cuts the body: tissue lies beside what was not scanned."""
    cut = outside_circle(radius=7)
    assert (trunk()[~cut & np.roll(cut, 1, 0)] > 0).any()
    return cut


def soft_tissue() -> np.ndarray:
    """Soft tissue of 40 HU all over with a little air, so that whatever is darker beside padding was mixed with it."""
    array = np.full(SHAPE, 40, np.int16)
    array[:, :, 0] = -1000
    return array + np.random.default_rng(0).integers(-3, 4, SHAPE).astype(np.int16)


@pytest.mark.parametrize("value", [-2000, -3024, -32768, 63536])
@pytest.mark.parametrize("degrees", [7.0, 25.0, -60.0])
def test_an_oblique_scan_has_no_darker_tissue_along_its_padding(tmp_path, value, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = AFFINE.copy()
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ AFFINE[:3, :3]
    array = soft_tissue().astype(np.int32)
    array[through_tissue()] = value
    volume, _ = read_image(save_scan(tmp_path / "ct.nii.gz", array, affine), ReadOptions())
    above_air = volume.array[:, :, 2:]
    assert ((above_air == -1024) | ((above_air > 36) & (above_air < 44))).all()
    scanned = (above_air > 0).sum() / above_air.shape[2] * 100  # mm2
    np.testing.assert_allclose(scanned, (~through_tissue())[:, :, 0].sum() * 100, rtol=0.08)


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (7.0, 13.0, 10.0), (25.0, 25.0, 25.0)])
def test_a_resampled_scan_has_no_darker_tissue_along_its_padding(tmp_path, spacing):
    array = soft_tissue()
    array[:, :, 0] = 40
    array[through_tissue()] = -2000
    array[18, 16, 10] = -1000
    volume, _ = read_image(save_scan(tmp_path / "ct.nii.gz", array), ReadOptions(trust_hu=True))
    without_gas = Volume(np.where(volume.array == -1000, 40, volume.array), volume.grid, "ct", volume.padding)
    found = resample(without_gas, with_spacing(volume.grid, spacing))
    assert found.padding is not None
    assert (found.array[found.padding] == -1024).all()
    assert ((found.array[~found.padding] > 36) & (found.array[~found.padding] < 44)).all()


def test_where_nothing_is_padding_air_is_mixed_with_tissue_as_ever():
    volume = Volume(trunk().astype(np.float32), Grid(SHAPE, AFFINE))
    padded = Volume(volume.array, volume.grid, "ct", np.zeros(SHAPE, bool))
    finer = with_spacing(volume.grid, (6.0, 6.0, 14.0))
    np.testing.assert_allclose(resample(padded, finer).array, resample(volume, finer).array, atol=1e-2)


def test_padding_stays_with_its_voxels_through_crop_pad_and_fit():
    volume = Volume(trunk().astype(np.float32), Grid(SHAPE, AFFINE), "ct", outside_circle())
    inside = crop(volume, (3, 2, 1), (30, 31, 18))
    np.testing.assert_array_equal(inside.padding, outside_circle()[3:30, 2:31, 1:18])
    around = pad(volume, (1, 2, 0), (0, 3, 1))
    assert around.padding is not None
    assert around.padding[0].all()
    assert fit(volume, (40, 20, 20)).padding.shape == (40, 20, 20)


def test_a_scan_without_padding_has_none(tmp_path):
    volume, findings = read_image(save_scan(tmp_path / "ct.nii.gz", trunk()), ReadOptions())
    assert volume.padding is None
    assert findings == []
    assert world_of().shape == (*SHAPE, 3)
