"""Several stacks of slices in one series: told apart and listed, one chosen by `acquisition`; one stack stays whole."""

from pathlib import Path

import numpy as np
import pytest
from dicom_slices import FIRST, SLICES, STEP_MM, enhanced, expected_hu, stored_slice, write_slice
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from maisi.errors import InvalidVolumeError
from maisi.space.dicom import read_series
from maisi.space.reading import Finding, ReadOptions
from maisi.space.volume import Volume


def write_stack(
    folder: Path, name: str, change=lambda dataset, k: None, *, slices=range(SLICES), plus=0, **options
) -> None:
    """Slices of the one series 1.2.3, their values raised by `plus`."""
    folder.mkdir(exist_ok=True)
    for k in slices:
        options["stored"] = (stored_slice(k % 12) + plus).astype(np.uint16)
        write_slice(folder / f"{name}{k:02d}", k, change=lambda d, k=k: change(d, k), **options)


def constant(**attributes):
    def change(dataset: Dataset, k: int) -> None:
        for name, value in attributes.items():
            setattr(dataset, name, value)

    return change


def read(folder: Path, acquisition: str | None = None) -> tuple[Volume, list[Finding]]:
    return read_series(folder, ReadOptions(acquisition=acquisition))


TOLD_APART = {
    "acquisitions": ("AcquisitionNumber", 41, 42, "acquisition", "41", "42"),
    "temporal positions": ("TemporalPositionIdentifier", 1, 2, "temporal", "1", "2"),
    "cardiac phases": ("NominalPercentageOfCardiacPhase", 30, 70, "phase", "30", "70"),
    "trigger times": ("TriggerTime", 105.5, 320, "trigger", "105.5", "320"),
    "kernels": ("ConvolutionKernel", "B30f", "B60f", "kernel", "b30f", "B60f"),
    "kernels of two values": ("ConvolutionKernel", ["I31f", "3"], ["I50f", "3"], "kernel", "I31f/3", "I50f/3"),
    "thicknesses": ("SliceThickness", 3, 5, "thickness", "3", "5"),
    "voltages": ("KVP", 80, 140, "kvp", "80", "140"),
    "kinds of image": (
        *("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"], "image"),
        *("ORIGINAL/PRIMARY/AXIAL", "DERIVED/SECONDARY/AXIAL"),
    ),
    "times": ("AcquisitionTime", "101500", "101730.5", "time", "101500", "101730.5"),
    "times of the content": ("ContentTime", "101500", "101730.5", "content", "101500", "101730.5"),
}


@pytest.mark.parametrize("name", TOLD_APART)
def test_two_stacks_at_one_place_are_listed_by_what_tells_them_apart_and_one_is_chosen(tmp_path, name):
    attribute, first, second, key, one, two = TOLD_APART[name]
    write_stack(tmp_path, "a", constant(**{attribute: first}))
    write_stack(tmp_path, "b", constant(**{attribute: second}), plus=5)
    with pytest.raises(InvalidVolumeError, match="2 stacks of slices in one series: ") as error:
        read(tmp_path)
    for words in (f"{key}={one}".lower(), f"{key}={two}".lower(), "(8 slices, 3 mm apart, z from 100 to 121 mm)"):
        assert words in str(error.value).lower()
    assert f"such as --acquisition {one}".lower() in str(error.value).lower()
    for word, plus in ((one, 0), (two, 5), (f"{key}={one}", 0), (f"{key}={two}", 5)):
        volume, findings = read(tmp_path, word)
        np.testing.assert_array_equal(volume.array, expected_hu() + plus)
        assert any(f.decided.lower() == f"took {key}={two if plus else one}".lower() for f in findings)
    with pytest.raises(InvalidVolumeError, match=r"no stack named 99 in the series, which holds .*; accepted: one of"):
        read(tmp_path, "99")


def test_two_acquisitions_in_two_kernels_are_four_stacks_named_by_both(tmp_path):
    plus = {}
    for number in (1, 2):
        for kernel in ("B30f", "B60f"):
            plus[number, kernel] = len(plus)
            change = constant(AcquisitionNumber=number, ConvolutionKernel=kernel)
            write_stack(tmp_path, f"{number}{kernel}", change, plus=plus[number, kernel])
    with pytest.raises(InvalidVolumeError, match=r"4 stacks .*acquisition=1,kernel=B30f \(8 slices"):
        read(tmp_path)
    with pytest.raises(InvalidVolumeError, match="2 stacks named B60f"):
        read(tmp_path, "B60f")
    for (number, kernel), more in plus.items():
        volume, _ = read(tmp_path, f"acquisition={number},kernel={kernel}")
        np.testing.assert_array_equal(volume.array, expected_hu() + more)


def test_two_fields_of_view_are_listed_by_size_and_pixel(tmp_path):
    write_stack(tmp_path, "a")
    write_stack(tmp_path, "b", constant(PixelSpacing=[1.0, 1.0]))
    with pytest.raises(InvalidVolumeError, match=r"2 stacks .*pixel=2x1\.5 .*pixel=1x1 "):
        read(tmp_path)
    assert read(tmp_path, "pixel=1x1")[0].grid.spacing == (1.0, 1.0, 3.0)


def test_acquisitions_that_lie_between_each_other_are_not_one_stack_of_half_the_spacing(tmp_path):
    write_stack(tmp_path, "a", constant(AcquisitionNumber=1), slices=range(0, 12, 2))
    write_stack(tmp_path, "b", constant(AcquisitionNumber=2), slices=range(1, 12, 2))
    with pytest.raises(InvalidVolumeError, match=r"2 stacks .*acquisition=1 \(6 slices, 6 mm apart"):
        read(tmp_path)
    assert read(tmp_path, "2")[0].grid.spacing[2] == 6.0
    assert read(tmp_path, "all")[0].grid.spacing[2] == 3.0


@pytest.mark.parametrize("between", [20, 20.4])
def test_stations_with_a_gap_between_are_listed(tmp_path, between):
    write_stack(tmp_path, "a", constant(AcquisitionNumber=1))
    for k in range(5):
        position = FIRST + [0, 0, (SLICES + between + k) * STEP_MM]
        write_slice(tmp_path / f"b{k}", k, position=position, change=lambda d: setattr(d, "AcquisitionNumber", 2))
    with pytest.raises(InvalidVolumeError, match=r"acquisition=1 \(8 slices.*acquisition=2 \(5 slices"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, "1")[0].array, expected_hu())
    assert read(tmp_path, "2")[0].grid.shape[2] == 5


def test_phases_that_nothing_but_the_time_of_each_slice_tells_apart_are_the_first_and_the_second(tmp_path):
    def at(start: int):
        return lambda dataset, k: setattr(dataset, "AcquisitionTime", f"10{start + k // 2:02d}{k:02d}")

    write_stack(tmp_path, "b", at(30), plus=5)
    write_stack(tmp_path, "a", at(10))
    with pytest.raises(InvalidVolumeError, match=r"2 stacks .*repeat=1 \(8 slices.*repeat=2 \(8 slices"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, "repeat=1")[0].array, expected_hu())
    np.testing.assert_array_equal(read(tmp_path, "repeat=2")[0].array, expected_hu() + 5)


def test_phases_of_several_times_each_are_not_cut_at_their_times(tmp_path):
    for name, start, plus in (("a", 10, 0), ("b", 30, 5)):
        change = lambda d, k, start=start: setattr(d, "AcquisitionTime", f"10{start + k // 4:02d}00")  # noqa: E731
        write_stack(tmp_path, name, change, plus=plus)
    with pytest.raises(InvalidVolumeError, match=r"2 stacks .*repeat=1 \(8 slices.*repeat=2 \(8 slices"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, "repeat=2")[0].array, expected_hu() + 5)


def test_stations_beside_each_other_are_listed(tmp_path):
    write_stack(tmp_path, "a", constant(AcquisitionNumber=1))
    for k in range(5):
        position = FIRST + [40.0, 0, (SLICES + k) * STEP_MM]
        write_slice(tmp_path / f"b{k}", k, position=position, change=lambda d: setattr(d, "AcquisitionNumber", 2))
    with pytest.raises(InvalidVolumeError, match=r"acquisition=1 \(8 slices.*acquisition=2 \(5 slices"):
        read(tmp_path)


def test_stations_that_overlap_are_listed(tmp_path):
    write_stack(tmp_path, "a", constant(AcquisitionNumber=1))
    write_stack(tmp_path, "b", constant(AcquisitionNumber=2), slices=range(6, 12))
    with pytest.raises(InvalidVolumeError, match=r"acquisition=1 \(8 slices.*acquisition=2 \(6 slices"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, "1")[0].array, expected_hu())


def test_a_thin_and_a_thick_reconstruction_are_listed(tmp_path):
    write_stack(tmp_path, "a", constant(SliceThickness=3))
    write_stack(tmp_path, "b", constant(SliceThickness=6), slices=range(0, SLICES, 2))
    with pytest.raises(InvalidVolumeError, match=r"thickness=3 \(8 slices, 3 mm.*thickness=6 \(4 slices, 6 mm"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, "thickness=3")[0].array, expected_hu())


def test_a_series_whose_turns_are_numbered_and_timed_stays_one_stack(tmp_path):
    def turn(dataset: Dataset, k: int) -> None:
        dataset.AcquisitionNumber, dataset.AcquisitionTime = k // 4, f"1010{k // 4:02d}"
        dataset.ContentTime, dataset.TriggerTime = f"1010{k % 3:02d}", 10 * k

    write_stack(tmp_path, "a", turn)
    volume, findings = read(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert not findings


def test_what_changes_along_one_stack_is_warned_of(tmp_path):
    write_stack(tmp_path, "a", lambda d, k: setattr(d, "ConvolutionKernel", "B30f" if k < 5 else "B60f"))
    volume, findings = read(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert [f.found for f in findings if f.is_warning] == [
        "slices of one stack that differ in their kernel: B30f (5 slices), B60f (3 slices)"
    ]


def test_the_one_stack_may_be_named_and_another_name_is_refused(tmp_path):
    write_stack(tmp_path, "a", constant(AcquisitionNumber=7, ConvolutionKernel="B30f", SliceThickness=8))
    for word in ("7", "acquisition=7", "kernel=B30f", "7,b30f", "thickness=8", "all"):
        np.testing.assert_array_equal(read(tmp_path, word)[0].array, expected_hu())
    with pytest.raises(InvalidVolumeError, match=r"no stack named 8; .* one stack of 8 slices; .*acquisition=7"):
        read(tmp_path, "8")


def test_a_gap_in_the_chosen_stack_is_still_named(tmp_path):
    write_stack(tmp_path, "a", constant(AcquisitionNumber=1), slices=[0, 1, 2, 4, 5, 6, 7])
    write_stack(tmp_path, "b", constant(AcquisitionNumber=2))
    with pytest.raises(InvalidVolumeError, match=r"1 missing slice .* between a02 .* and a04 "):
        read(tmp_path, "1")


def test_phases_of_an_enhanced_file_are_told_apart_by_their_frames(tmp_path):
    path = tmp_path / "enhanced.dcm"
    dataset = enhanced(path, [*range(SLICES), *range(SLICES)])
    for k, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = Dataset()
        content.TemporalPositionIndex = 1 + k // SLICES
        groups.FrameContentSequence = Sequence([content])
    pixels = np.frombuffer(dataset.PixelData, "<u2").reshape(2, -1) + np.array([[0], [5]], np.uint16)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    with pytest.raises(InvalidVolumeError, match=r"temporal=1 \(8 slices.*temporal=2 \(8 slices"):
        read(tmp_path)
    np.testing.assert_array_equal(read(tmp_path, "temporal=2")[0].array, expected_hu() + 5)
