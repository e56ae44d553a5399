import numpy as np
import pytest
from PIL import Image

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidGridError
from maisi.pipelines import preview as pictures
from maisi.pipelines.preview import comparison, preview, telling_point, write_png
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume

LIVER = load_vocabulary().id("liver")


def scene(shape: tuple[int, int, int] = (20, 16, 12), spacing: tuple[float, float, float] = (5.0, 5.0, 5.0)) -> Volume:
    return Volume(np.full(shape, -1000, np.float32), Grid.centered(shape, spacing))


def brightest(image: Image.Image) -> tuple[float, float]:
    """Where the bright spot of a picture is: from the left and from the top, as shares."""
    grey = np.asarray(image.convert("L"), float)
    rows, columns = np.where(grey > 200)
    return float(columns.mean() / grey.shape[1]), float(rows.mean() / grey.shape[0])


def planes(volume: Volume, point: tuple[int, int, int]) -> dict[str, Image.Image]:
    shown = {}
    for k, (name, axis, _) in enumerate(pictures.PLANES):
        grey = pictures._grey(pictures._plane(volume.array, axis, point), pictures.HU_CURVE)
        shown[name] = pictures._panel(grey, volume.grid, k, scale=2.0).image
    return shown


def test_right_anterior_and_superior_are_where_a_radiologist_looks_for_them() -> None:
    volume = scene()
    volume.array[17:, 13:, 9:] = 1000  # a corner: right, anterior, superior
    shown = planes(volume, (18, 14, 10))
    left, top = brightest(shown["axial"])
    assert left < 0.3
    assert top < 0.3  # anterior
    left, top = brightest(shown["coronal"])
    assert left < 0.3
    assert top < 0.3  # superior
    left, top = brightest(shown["sagittal"])
    assert left < 0.3  # anterior
    assert top < 0.3


def test_planes_have_the_proportions_of_the_body_whatever_the_spacing() -> None:
    shown = planes(scene((20, 16, 12), (2.0, 3.0, 8.0)), (5, 5, 5))
    sizes = {name: image.size for name, image in shown.items()}
    assert sizes == {"axial": (80, 96), "coronal": (80, 192), "sagittal": (96, 192)}


def test_lung_fat_muscle_and_bone_have_greys_that_the_eye_can_tell_apart() -> None:
    greys = pictures._grey(np.array([[-1000.0, -850.0, -100.0, 50.0, 150.0, 700.0]]), pictures.HU_CURVE)[
        0, :, 0
    ].astype(int)
    assert np.all(np.diff(greys) > 15)


def test_the_planes_cut_the_structures_that_there_are() -> None:
    volume = scene((40, 40, 40))
    labels = np.full((40, 40, 40), load_vocabulary().id("body"), np.uint8)
    labels[24:28, 24:28, 16:20] = LIVER
    point = telling_point(volume, LabelMap(labels, volume.grid))
    assert labels[point] == LIVER


def test_without_labels_the_planes_go_through_the_middle_of_the_body() -> None:
    volume = scene((40, 40, 40))
    volume.array[4:14, 20:30, 6:16] = 40
    assert telling_point(volume) == (8, 24, 10)


def test_a_picture_goes_through_a_lesion_and_names_it_first() -> None:
    volume = Volume(np.zeros((40, 40, 40), np.float32), Grid.centered((40, 40, 40), (2, 2, 2)))
    labels = np.full((40, 40, 40), 200, np.uint8)
    labels[8:30, 8:30, 8:30] = 1
    labels[10:13, 20:23, 26:29] = 26
    point = telling_point(volume, LabelMap(labels, volume.grid))
    assert point == (11, 21, 27)
    cuts = [np.take(labels, at, axis=axis) for axis, at in enumerate(point)]
    assert [structure.id for structure in pictures._largest(cuts, load_vocabulary())] == [26, 1]


def test_an_empty_volume_has_a_preview_too() -> None:
    volume = scene()
    empty = LabelMap(np.zeros(volume.grid.shape, np.uint8), volume.grid)
    assert preview(volume, empty).size[0] > 500


def test_a_structure_is_shown_in_its_colour_and_named_below() -> None:
    volume = scene((30, 30, 30))
    volume.array[:] = 40
    labels = np.zeros((30, 30, 30), np.uint8)
    without = preview(volume, LabelMap(labels.copy(), volume.grid))
    labels[8:22, 8:22, 8:22] = LIVER
    picture = preview(volume, LabelMap(labels, volume.grid))
    assert picture.size[1] > without.size[1]  # a row of legend
    legend = np.asarray(picture)[without.size[1] - 60 :]
    assert (legend == load_vocabulary().structure(LIVER).colour).all(axis=2).sum() > 100


def test_ids_that_nobody_knows_do_not_break_the_picture() -> None:
    volume = scene()
    assert preview(volume, LabelMap(np.full(volume.grid.shape, 60000, np.uint16), volume.grid)).size[0] > 500


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 200, 5), (200, 3, 3), (5, 5, 300)])
def test_any_shape_fits_on_a_sheet_of_bearable_size(shape: tuple[int, int, int]) -> None:
    volume = scene(shape)
    for picture in (preview(volume), comparison(volume, volume)):
        assert picture.size[0] <= 1400
        assert picture.size[1] <= 1700


def test_a_difference_is_blue_where_lower_and_red_where_higher() -> None:
    low, none, high = pictures._diverging(np.array([[-1.0, 0.0, 1.0]]))[0].astype(int)
    assert low[2] > 200 > low[0]
    assert high[0] > 200 > high[2]
    assert none.max() < 60


def test_volumes_and_labels_on_other_grids_are_refused() -> None:
    volume, other = scene(), scene(spacing=(4.0, 5.0, 5.0))
    with pytest.raises(InvalidGridError, match="not on one grid"):
        preview(volume, LabelMap(np.zeros(other.grid.shape, np.uint8), other.grid))
    with pytest.raises(InvalidGridError, match="different grids"):
        comparison(volume, other)


def test_the_same_picture_gives_the_same_bytes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("a.png", "b.png"):
        write_png(preview(scene(), title="ct"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("width", [0, 40, 164, 500])
@pytest.mark.parametrize("name", ["liver", "left brachiocephalic vein", "a warning... " * 60])
def test_of_a_long_name_the_longest_beginning_that_fits_is_shown(name: str, width: int) -> None:
    shown, length = pictures._shortened(name, width), pictures._font(13).getlength
    beginnings = [name[:count].rstrip(".") + "..." for count in range(len(name))]
    fitting = [text for text in beginnings if length(text) <= width]
    assert shown == (name if length(name) <= width else fitting[-1] if fitting else "...")
