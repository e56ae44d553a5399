"""What looks like HU and what does not, by where the values lie."""

import numpy as np
import pytest
from made_scans import SHAPE, mr, outside_circle, save_scan, trunk

from maisi.errors import InvalidVolumeError
from maisi.space.files import read_image
from maisi.space.hounsfield import judge
from maisi.space.reading import ReadOptions


def stretched(low: float, high: float, top: float) -> np.ndarray:
    """The trunk with a window of HU stretched to 0..top."""
    return np.rint(np.clip((trunk() - low) / (high - low), 0, 1) * top).astype(np.int32)


def unsigned() -> np.ndarray:
    return trunk().astype(np.uint16).astype(np.int32)


def with_skull() -> np.ndarray:
    """The trunk with as much dense bone as a head has."""
    array = trunk()
    array[6:10, 10:22] += 1100
    return array


NOT_HU = {
    "HU + 1024": (lambda: trunk() + 1024, r"HU \+ 1024", "--hu-offset -1024"),
    "HU + 1000": (lambda: trunk() + 1000, r"HU \+ 1000", "--hu-offset -1000"),
    "HU + 8192": (lambda: trunk() + 8192, r"HU \+ 8192", "--hu-offset -8192"),
    "HU - 1024": (lambda: trunk() - 1024, "HU - 1024", "--hu-offset 1024"),
    "12 bits in 8": (lambda: stretched(-1024, 3071, 255), r"stretched to 0\.\.255", "--hu-window LOW HIGH"),
    "soft tissue in 8 bits": (lambda: stretched(-160, 240, 255), r"stretched to 0\.\.255", "--hu-window LOW HIGH"),
    "a window in 12 bits": (lambda: stretched(-160, 240, 4095), "was stretched", "--hu-window LOW HIGH"),
    "a window in 16 bits": (lambda: stretched(-1000, 1000, 65535), "stretched", "--hu-window LOW HIGH"),
    "an MR": (mr, "an MR", "--modality mr"),
    "an MR in 8 bits": (lambda: mr() // 4, "an MR", "--modality mr"),
    "upside down": (lambda: -trunk(), "upside down", "multiplied by -1"),
    "signed as unsigned": (unsigned, "signed values read as unsigned", "signed 16-bit"),
    "a clipped window": (lambda: np.clip(trunk(), -160, 240), "HU clipped at -160", "go down to air"),
    "HU clipped at lung": (lambda: np.clip(trunk(), -500, 1300), "HU clipped at -500", "go down to air"),
    "HU halved": (lambda: trunk() / 2 - (trunk() <= -1000) * 3, "stretched or shifted", "--hu-window LOW HIGH"),
    "an MR with values below 0": (lambda: mr() - 100, "or an MR", "--modality mr"),
    "HU in 8 bits that wrapped": (lambda: trunk().astype(np.int8), "cut down to 8 bits", "signed 16-bit"),
    "a head upside down": (lambda: -with_skull(), "upside down", "multiplied by -1"),
    "HU times 10": (lambda: with_skull().astype(np.int32) * 10, "another scale", "--hu-window LOW HIGH"),
    "a label map": (lambda: np.digitize(trunk(noise_hu=0), [-900, -200, 0, 80, 300]), "a label map", "label maps"),
}


@pytest.mark.parametrize("name", NOT_HU)
@pytest.mark.parametrize("padding", [None, -2000])
def test_what_is_no_hu_is_refused_with_what_it_looks_like_and_the_option_that_corrects_it(tmp_path, name, padding):
    make, looks, remedy = NOT_HU[name]
    array = make().astype(np.int32)
    if padding is not None and (array.min() >= -1024 or array.max() > 4000):
        array[outside_circle()] = padding
    with pytest.raises(InvalidVolumeError, match=looks) as error:
        read_image(save_scan(tmp_path / "ct.nii.gz", array), ReadOptions())
    assert remedy in str(error.value)
    assert "--trust-hu" in str(error.value)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-3.0, 4.0)])
def test_values_that_were_normalised_are_refused(tmp_path, low, high):
    array = np.interp(trunk(), [-1024, 1100], [low, high]).astype(np.float32)
    with pytest.raises(InvalidVolumeError, match=r"normalised.*--hu-window LOW HIGH"):
        read_image(save_scan(tmp_path / "ct.nii", array), ReadOptions())


def test_the_peaks_are_told_of_an_offset(tmp_path):
    path = save_scan(tmp_path / "ct.nii", trunk() + 1024)
    with pytest.raises(InvalidVolumeError, match=r"peaks lie at (1|2|3)\d and 1\d\d\d, where air is -1000"):
        read_image(path, ReadOptions())


@pytest.mark.parametrize("value", [32767, -32768, 5000, 63536])
def test_a_few_voxels_of_metal_or_padding_refuse_nothing(tmp_path, value):
    array = trunk().astype(np.int32)
    array[18, 10, 3:6] = value
    volume, findings = read_image(save_scan(tmp_path / "ct.nii.gz", array), ReadOptions())
    assert not [f for f in findings if f.is_warning]
    assert volume.array[18, 10, 4] == (-1024 if value < -1024 else value)
    others = np.ones(SHAPE, bool)
    others[18, 10, 3:6] = False
    np.testing.assert_array_equal(volume.array[others], trunk()[others])


SOUND = {
    "a trunk": trunk,
    "without a clamp at -1024": lambda: trunk() - (trunk() <= -1000) * np.random.default_rng(2).integers(0, 90, SHAPE),
    "masked by -1024": lambda: np.where(np.abs(trunk()) > 400, -1024, trunk()),
    "a strong contrast agent": lambda: np.where(trunk() > 90, trunk() + 250, trunk()),
    "a head: much bone, little fat": lambda: np.where(
        (trunk() < -50) & (trunk() > -200), np.random.default_rng(3).integers(600, 1700, SHAPE), trunk()
    ),
    "legs: two columns in air": lambda: np.concatenate([trunk(noise_hu=4)[9:27]] * 2),
    "bright metal": lambda: np.where(outside_circle(radius=1), trunk(), 3071),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_ct_in_hu_is_read_without_a_word(name):
    assert judge(SOUND[name]().astype(np.float32)) is None


def crop(low: tuple[int, int, int], high: tuple[int, int, int], shape=(72, 64, 40)) -> np.ndarray:
    """A part of the trunk at 5 mm."""
    affine = np.diag([5.0, 5, 5, 1])
    affine[:3, 3] = (-177, -157, -97)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return trunk(affine, shape)[window].astype(np.float32)


def test_a_lung_alone_is_at_most_warned_of():
    lung = crop((16, 26, 20), (28, 44, 36))
    assert np.median(lung) < -800
    verdict = judge(lung)
    assert verdict is None or not verdict.is_sure


def test_a_crop_inside_soft_tissue_is_warned_of_and_not_refused(tmp_path):
    liver = np.random.default_rng(4).normal(60, 15, (16, 16, 16)).astype(np.float32)
    volume, findings = read_image(save_scan(tmp_path / "liver.nii", liver), ReadOptions())
    assert volume.array.shape == (16, 16, 16)
    warning = next(f for f in findings if f.is_warning)
    assert "without air and fat" in warning.found
    assert "--hu-offset" in warning.decided


def test_brain_beside_bright_bone_is_not_taken_for_an_mr():
    rng = np.random.default_rng(6)
    brain, skull = rng.normal(32, 4, (20, 20, 14)), rng.normal(1300, 300, (20, 20, 6))
    verdict = judge(np.concatenate([brain, skull], 2).astype(np.float32))
    assert verdict is None or not verdict.is_sure


def test_a_water_phantom_without_air_is_not_refused():
    water = np.random.default_rng(5).normal(0, 5, (20, 20, 20)).astype(np.float32)
    verdict = judge(water)
    assert verdict is not None
    assert not verdict.is_sure


def test_so_few_voxels_that_nothing_is_sure_are_warned_of_at_most():
    verdict = judge((trunk()[16:24, 14:22, 8:12] + 1024).astype(np.float32))
    assert verdict is None or not verdict.is_sure


def test_hu_clipped_below_bone_are_warned_of(tmp_path):
    _, findings = read_image(save_scan(tmp_path / "ct.nii", np.clip(trunk(), -1024, 300)), ReadOptions())
    assert any(f.is_warning and "clipped at 300" in f.found for f in findings)


# What the options do ---------------------------------------------------------------------------------------------


def test_an_offset_asked_for_is_added_and_recorded_and_padding_stays_air(tmp_path):
    array = trunk() + 1024
    array[outside_circle()] = -2000
    volume, findings = read_image(save_scan(tmp_path / "ct.nii.gz", array), ReadOptions(hu_offset=-1024))
    np.testing.assert_array_equal(volume.array, np.where(outside_circle(), -1024, trunk()))
    assert any(f.topic == "values" and "-1024" in f.found for f in findings)


def test_an_offset_that_is_not_the_right_one_is_refused_again(tmp_path):
    with pytest.raises(InvalidVolumeError, match=r"HU \+ 1024"):
        read_image(save_scan(tmp_path / "ct.nii.gz", trunk() + 2048), ReadOptions(hu_offset=-1024))


def test_a_window_asked_for_gives_back_hu(tmp_path):
    path = save_scan(tmp_path / "ct.nii.gz", stretched(-1024, 3071, 255).astype(np.uint8))
    volume, findings = read_image(path, ReadOptions(hu_window=(-1024, 3071)))
    assert np.abs(volume.array - trunk()).max() <= 4096 / 255
    assert any("0 to 255" in f.found for f in findings)


@pytest.mark.parametrize("window", [(100.0, 100.0), (300.0, -100.0), (float("nan"), 1.0)])
def test_a_window_that_is_none_is_refused(tmp_path, window):
    path = save_scan(tmp_path / "ct.nii.gz", stretched(-160, 240, 255))
    with pytest.raises(InvalidVolumeError, match="two numbers, the lower first"):
        read_image(path, ReadOptions(hu_window=window))


def test_values_are_taken_as_hu_where_the_user_says_so(tmp_path):
    volume, _ = read_image(save_scan(tmp_path / "ct.nii.gz", mr()), ReadOptions(trust_hu=True))
    np.testing.assert_array_equal(volume.array, mr())


def test_an_mr_is_read_as_it_is_and_a_ct_read_as_mr_is_warned_of(tmp_path):
    volume, findings = read_image(save_scan(tmp_path / "mr.nii.gz", mr()), ReadOptions(modality="mr"))
    np.testing.assert_array_equal(volume.array, mr())
    assert findings == []
    _, findings = read_image(save_scan(tmp_path / "ct.nii.gz", trunk()), ReadOptions(modality="mr"))
    assert any(f.is_warning and "HU of a CT" in f.found for f in findings)


def test_no_real_ct_is_warned_of(shared_data, shared_cases):
    for case in shared_cases:
        _, findings = read_image(shared_data / case["image"], ReadOptions())
        assert [f for f in findings if f.is_warning] == [], case["id"]
