"""What label files hold: ids, scaled ids, floats, colours, channels, folders of masks; and what is refused."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidLabelsError
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels, read_stored_labels
from maisi.space.volume import LabelMap

AFFINE = np.array([[2.0, 0, 0, -10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])
SHAPE = (8, 7, 6)
PALETTE = load_vocabulary().palette


def some_ids() -> np.ndarray:
    ids = np.zeros(SHAPE, np.uint8)
    ids[1:4, 1:3, 1:3] = 1
    ids[4:7, 1:3, 1:3] = 3
    ids[2:6, 3:6, 3:5] = 200
    return ids


def save(array: np.ndarray, path: Path, dtype: type | None = None) -> Path:
    image = nib.Nifti1Image(array, AFFINE, dtype=array.dtype)
    if dtype is not None:
        image.header.set_data_dtype(dtype)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("dtype", [np.int16, np.int8, np.uint8, np.uint16])
def test_ids_that_were_stored_as_scaled_measurements_come_back_whole(tmp_path: Path, dtype: type) -> None:
    path = save(some_ids().astype(np.float64), tmp_path / "labels.nii.gz", dtype)
    stored = read_stored_labels(path)
    assert np.array_equal(stored.labels.array, some_ids())
    if dtype in (np.int16, np.int8):
        (finding,) = stored.findings
        assert "scale factor" in finding.found
        assert not finding.is_warning


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_ids_of_any_type_come_back_whole(tmp_path: Path, dtype: type) -> None:
    ids = some_ids().astype(dtype)
    assert np.array_equal(read_labels(save(ids, tmp_path / "labels.nii", dtype)).array, some_ids())


def test_ids_above_255_stay_what_they_are(tmp_path: Path) -> None:
    ids = some_ids().astype(np.uint16) * 300
    labels = read_labels(save(ids, tmp_path / "labels.nii.gz"))
    assert labels.array.dtype == np.uint16
    assert np.array_equal(labels.array, ids)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.4, r"not whole, such as 1\.4 at voxel \(2, 3, 4\)"),
        (-3.0, r"such as -3 at voxel \(2, 3, 4\)"),
        (70000.0, "70000"),
    ],
)
def test_values_that_are_no_ids_are_refused_with_one_of_them_and_its_place(
    tmp_path: Path, value: float, said: str
) -> None:
    values = some_ids().astype(np.float32)
    values[2, 3, 4] = value
    with pytest.raises(InvalidLabelsError, match=said):
        read_labels(save(values, tmp_path / "labels.nii.gz", np.float32))


def test_a_voxel_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    values = some_ids().astype(np.float32)
    values[2, 3, 4] = np.nan
    with pytest.raises(InvalidLabelsError, match="nan at voxel"):
        read_labels(save(values, tmp_path / "labels.nii.gz", np.float32))


def test_a_negative_id_is_refused_with_its_place(tmp_path: Path) -> None:
    ids = some_ids().astype(np.int16)
    ids[7, 6, 5] = -1
    with pytest.raises(InvalidLabelsError, match=r"-1 at voxel \(7, 6, 5\) of the file, \(4\.0, -8\.0, 20\.0\) mm"):
        read_labels(save(ids, tmp_path / "labels.nii.gz"))


@pytest.mark.filterwarnings("error")
def test_ids_that_int8_turned_negative_are_refused_without_a_warning_of_numpy(tmp_path: Path) -> None:
    with pytest.raises(InvalidLabelsError, match="such as -56 at voxel"):
        read_labels(save(some_ids().astype(np.int8), tmp_path / "labels.nii.gz", np.int8))


def rgb(ids: np.ndarray) -> np.ndarray:
    colours = PALETTE[ids]
    voxels = np.zeros(ids.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels["R"], voxels["G"], voxels["B"] = colours[..., 0], colours[..., 1], colours[..., 2]
    return voxels


def test_colours_of_our_palette_are_the_ids_they_stand_for(tmp_path: Path) -> None:
    stored = read_stored_labels(save(rgb(some_ids()), tmp_path / "labels.nii.gz"), palette=PALETTE)
    assert np.array_equal(stored.labels.array, some_ids())
    assert stored.is_coloured
    channels = save(PALETTE[some_ids()], tmp_path / "channels.nii.gz")  # the same as a fourth axis of three
    assert np.array_equal(read_stored_labels(channels, palette=PALETTE).labels.array, some_ids())


def test_other_colours_are_refused_with_one_of_them_and_its_place(tmp_path: Path) -> None:
    voxels = rgb(some_ids())
    voxels[2, 3, 4] = (1, 2, 3)
    path = save(voxels, tmp_path / "labels.nii.gz")
    with pytest.raises(InvalidLabelsError, match=r"\(1, 2, 3\) at voxel \(2, 3, 4\).*palette"):
        read_stored_labels(path, palette=PALETTE)
    with pytest.raises(InvalidLabelsError, match="colours"):
        read_labels(path)


def one_hot(ids: np.ndarray, channels: list[int]) -> np.ndarray:
    return np.stack([ids == id for id in channels], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("channels", [[1, 3, 200], [0, 1, 3, 200]])
def test_one_hot_channels_are_ids_in_order_with_or_without_background(tmp_path: Path, channels: list[int]) -> None:
    path = save(one_hot(some_ids(), channels), tmp_path / "labels.nii.gz")
    assert np.array_equal(read_stored_labels(path, channels=[1, 3, 200]).labels.array, some_ids())
    five = save(one_hot(some_ids(), channels)[:, :, :, None], tmp_path / "five.nii.gz")
    assert np.array_equal(read_stored_labels(five, channels=[1, 3, 200]).labels.array, some_ids())


def test_a_background_that_is_the_last_channel_is_refused(tmp_path: Path) -> None:
    path = save(one_hot(some_ids(), [1, 3, 200, 0]), tmp_path / "labels.nii.gz")
    with pytest.raises(InvalidLabelsError, match="4 channels of which the last looks like the background"):
        read_stored_labels(path, channels=[1, 3, 200])


def test_one_hot_channels_without_names_are_refused_with_the_option_that_gives_them(tmp_path: Path) -> None:
    path = save(one_hot(some_ids(), [1, 3, 200]), tmp_path / "labels.nii.gz")
    with pytest.raises(InvalidLabelsError, match=r"fourth axis of 3.*--numbering"):
        read_labels(path)
    with pytest.raises(InvalidLabelsError, match=r"fourth axis of 3.*\(13\)"):
        read_stored_labels(path, channels=range(1, 14))


def test_channels_that_overlap_are_refused_with_count_and_place(tmp_path: Path) -> None:
    channels = one_hot(some_ids(), [1, 3, 200])
    channels[2:4, 3, 4, 1] = 1
    path = save(channels, tmp_path / "labels.nii.gz")
    with pytest.raises(InvalidLabelsError, match=r"2 voxels that channel 2 .* voxel \(2, 3, 4\)"):
        read_stored_labels(path, channels=[1, 3, 200])


def test_channels_of_more_than_zeros_and_ones_are_refused(tmp_path: Path) -> None:
    channels = one_hot(some_ids(), [1, 3, 200]).astype(np.float32) * 0.5
    path = save(channels, tmp_path / "labels.nii.gz", np.float32)
    with pytest.raises(InvalidLabelsError, match="zeros and ones"):
        read_stored_labels(path, channels=[1, 3, 200])


def test_a_time_series_of_ids_is_refused(tmp_path: Path) -> None:
    path = save(np.stack([some_ids()] * 4, axis=-1), tmp_path / "labels.nii.gz")
    with pytest.raises(InvalidLabelsError, match="values up to 200 in channel 0"):
        read_stored_labels(path, channels=[1, 2, 3])


def masks(folder: Path, ids: np.ndarray, **names: int) -> Path:
    folder.mkdir()
    for name, id in names.items():
        save((ids == id).astype(np.uint8) * (255 if name == "spleen" else 1), folder / f"{name}.nii.gz")
    return folder


def test_a_folder_of_masks_holds_the_structures_that_its_files_name(tmp_path: Path) -> None:
    folder = masks(tmp_path / "segmentations", some_ids(), liver=1, spleen=3, stomach=77)
    (folder / "statistics.json").write_text("{}")
    stored = read_stored_labels(folder)
    found = {name: stored.labels.array == id for id, name in stored.names.items()}
    assert set(found) == {"liver", "spleen"}  # the stomach's mask is empty
    assert np.array_equal(found["liver"], some_ids() == 1)
    assert np.array_equal(found["spleen"], some_ids() == 3)
    assert "1 of them empty" in stored.findings[0].found


def test_masks_may_be_nrrd_and_metaimage(tmp_path: Path) -> None:
    grid = Grid.centered(SHAPE, (2.0, 2.0, 2.0))
    (tmp_path / "masks").mkdir()
    for name, id in (("liver.nrrd", 1), ("spleen.mha", 3)):
        write_labels(LabelMap((some_ids() == id).astype(np.uint8), grid), tmp_path / "masks" / name)
    stored = read_stored_labels(tmp_path / "masks")
    found = {name: stored.labels.array == id for id, name in stored.names.items()}
    assert np.array_equal(found["liver"], some_ids() == 1)
    assert np.array_equal(found["spleen"], some_ids() == 3)
    assert stored.labels.grid.is_close(grid)


def test_what_lies_beside_masks_in_another_format_is_no_mask(tmp_path: Path) -> None:
    folder = masks(tmp_path / "segmentations", some_ids(), liver=1)
    write_labels(LabelMap(some_ids().astype(np.uint8), Grid.centered(SHAPE, (2.0, 2.0, 2.0))), folder / "liver.nrrd")
    assert set(read_stored_labels(folder).names.values()) == {"liver"}


def test_of_masks_that_overlap_the_smaller_structure_is_kept_and_the_count_told(tmp_path: Path) -> None:
    folder = masks(tmp_path / "segmentations", some_ids(), liver=1, heart=200)
    vessel = np.zeros(SHAPE, np.uint8)
    vessel[2:4, 3, 3:5] = 1
    save(vessel, folder / "hepatic_vessel.nii.gz")
    stored = read_stored_labels(folder)
    ids = {name: id for id, name in stored.names.items()}
    assert np.array_equal(stored.labels.array == ids["hepatic_vessel"], vessel > 0)
    warning = stored.findings[-1]
    assert warning.is_warning
    assert "4 voxels" in warning.found
    assert "hepatic_vessel over heart (4)" in warning.found
    assert "smaller" in warning.decided


def test_masks_on_different_grids_are_refused_with_the_file(tmp_path: Path) -> None:
    folder = masks(tmp_path / "segmentations", some_ids(), liver=1)
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    nib.save(nib.Nifti1Image((some_ids() == 3).astype(np.uint8), shifted), folder / "spleen.nii.gz")
    with pytest.raises(InvalidLabelsError, match=r"spleen\.nii\.gz.*another grid"):
        read_stored_labels(folder)


def test_two_masks_of_one_name_are_refused_with_both(tmp_path: Path) -> None:
    folder = masks(tmp_path / "masks", some_ids(), liver=1)
    save((some_ids() == 3).astype(np.uint8), folder / "liver.nii")
    with pytest.raises(InvalidLabelsError, match=r"two masks of one name: liver\.nii and liver\.nii\.gz"):
        read_stored_labels(folder)


def test_an_image_among_masks_is_refused_with_the_file(tmp_path: Path) -> None:
    folder = masks(tmp_path / "case", some_ids(), liver=1)
    save(np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16), folder / "ct.nii.gz")
    with pytest.raises(InvalidLabelsError, match=r"ct\.nii\.gz.*mask of zeros and one other value"):
        read_stored_labels(folder)


def test_a_folder_that_holds_the_folder_of_masks_says_so(tmp_path: Path) -> None:
    masks(tmp_path / "segmentations", some_ids(), liver=1)
    with pytest.raises(InvalidLabelsError, match="its folder segmentations has some"):
        read_stored_labels(tmp_path)


def test_the_names_that_a_header_gives_its_ids_are_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(some_ids(), AFFINE)
    table = '<Label Key="1" Red="1">liver</Label><Label Key="3"><![CDATA[spleen]]></Label><Label Key="0">none</Label>'
    text = (
        f"<?xml version='1.0'?><CaretExtension><VolumeInformation><LabelTable>{table}</LabelTable></VolumeInformation>"
    )
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, f"{text}</CaretExtension>".encode()))
    nib.save(image, tmp_path / "labels.nii.gz")
    assert read_stored_labels(tmp_path / "labels.nii.gz").names == {1: "liver", 3: "spleen"}


@pytest.mark.parametrize("shape", [(8, 7), (8, 7, 1), (8, 7, 6, 2, 2)])
def test_arrays_of_other_dimensions_are_refused_with_theirs(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save(np.zeros(shape, np.uint8), tmp_path / "labels.nii.gz")
    with pytest.raises(InvalidLabelsError, match="x".join(map(str, shape))):
        read_labels(path)


def test_axes_of_one_behind_the_third_are_no_matter(tmp_path: Path) -> None:
    path = save(some_ids()[..., None, None], tmp_path / "labels.nii.gz")
    assert np.array_equal(read_labels(path).array, some_ids())
