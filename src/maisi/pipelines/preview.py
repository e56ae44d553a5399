"""One picture of a volume: three planes through it at true proportions, with its labels or beside another volume.

Planes are shown as radiologists see them: the patient's right on the left, anterior on top, the head up; in the
sagittal plane anterior is on the left.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.vocabulary import Structure, Vocabulary, load_vocabulary
from maisi.errors import InvalidGridError
from maisi.shapes import Size3, in_words
from maisi.space.grid import Grid
from maisi.space.intensity import MR_PERCENTILES
from maisi.space.resample import crop
from maisi.space.volume import LabelMap, Volume
from maisi.storage.atomic import write_atomically

HU_CURVE = (
    (-1024.0, 0.0),
    (-950.0, 0.03),
    (-650.0, 0.17),
    (-200.0, 0.25),
    (-120.0, 0.33),
    (260.0, 0.83),
    (1300.0, 1.0),
)
"""HU to grey: steep where soft tissue lies (window 400, level 40, as far as it goes), with room for lungs and bone."""

DIFFERENCE_HU = 300.0
"""Difference that is shown in full colour."""

DIFFERENCE_SHARE = 0.15
"""The same of an MR, as a part of its brightest value."""

PLANES = (("axial", 2, "RLAP"), ("coronal", 1, "RLSI"), ("sagittal", 0, "APSI"))
"""Name, the axis it cuts, and the letters left, right, top, bottom."""

NEAR_MM = 75.0
"""How far around a lesion its picture goes."""

MAX_LEGEND = 24
_MARGIN, _GAP, _TITLE, _LINE = 24, 12, 46, 22
_ROW_WIDTH, _MAX_HEIGHT = 1180.0, 460.0
_PAPER, _INK, _FAINT, _LETTER = (17, 20, 26), (232, 236, 242), (140, 150, 164), (255, 214, 102)
_ALARM = (255, 112, 96)
_OVERLAY = 0.6
_FILLERS = ("body", "fat", "air")


@dataclass(frozen=True)
class Panel:
    """A plane ready to be placed: its picture, the letters at its edges, and a name for its corner."""

    image: Image.Image
    letters: str
    name: str = ""


def preview(
    volume: Volume,
    labels: LabelMap | None = None,
    title: str = "",
    point: Size3 | None = None,
    vocabulary: Vocabulary | None = None,
    mark: str = "",
) -> Image.Image:
    """Three planes of a volume; with labels a second row that shows them in colour, and a legend of the largest.

    `mark` is a warning that is written across the top. The planes go through `point` (a voxel); without it through the
    one that `telling_point` finds. `vocabulary` is that of a bundle with classes of its own. Raises `InvalidGridError`
    for volume and labels on different grids.
    """
    if labels is not None and not labels.grid.is_close(volume.grid):
        raise InvalidGridError(f"volume and labels are not on one grid: {volume.grid} and {labels.grid}")
    vocabulary = vocabulary or load_vocabulary()
    point = point or telling_point(volume, labels, vocabulary)
    scale = _row_scale(volume.grid)
    cuts = [_plane(volume.array, axis, point) for _, axis, _ in PLANES]
    curve = _curve(volume)
    greys = [_grey(cut, curve) for cut in cuts]
    rows = [[_panel(grey, volume.grid, k, scale) for k, grey in enumerate(greys)]]
    legend: list[Structure] = []
    if labels is not None:
        shown = [_plane(labels.array, axis, point) for _, axis, _ in PLANES]
        legend = _largest(shown, vocabulary)
        rows.append(
            [
                _panel(_painted(g, ids, vocabulary), volume.grid, k, scale)
                for k, (g, ids) in enumerate(zip(greys, shown, strict=True))
            ]
        )
    return _sheet(rows, title, _size_caption(volume.grid), legend, scale, mark)


def comparison(
    original: Volume,
    other: Volume,
    title: str = "",
    names: tuple[str, str] = ("original", "reconstruction"),
    point: Size3 | None = None,
) -> Image.Image:
    """A row a plane: the original, the other volume on the same grid, and their difference (blue lower, red higher).

    The planes go through `point` (a voxel), without it through the one that `telling_point` finds. Raises
    `InvalidGridError` for volumes on different grids.
    """
    if not other.grid.is_close(original.grid):
        raise InvalidGridError(f"volumes on different grids cannot be compared: {original.grid} and {other.grid}")
    point = point or telling_point(original)
    scale, curve = _column_scale(original.grid), _curve(original)
    most = DIFFERENCE_HU if original.modality == "ct" else DIFFERENCE_SHARE * curve[-1][0]
    unit = " HU" if original.modality == "ct" else ""
    rows = []
    for k, (_, axis, _) in enumerate(PLANES):
        a, b = _plane(original.array, axis, point), _plane(other.array, axis, point)
        pictures = (
            (names[0], _grey(a, curve)),
            (names[1], _grey(b, curve)),
            (f"difference ±{most:.3g}{unit}", _diverging((b - a) / most)),
        )
        rows.append([_panel(x, original.grid, k, scale, name) for name, x in pictures])
    return _sheet(rows, title, _size_caption(original.grid), [], scale)


def lesion_preview(before: Volume, after: Volume, mask: LabelMap, title: str = "") -> Image.Image:
    """A row a plane through the lesion that fills most of a plane: before, after and their difference, from near by.

    Raises `InvalidGridError` for volumes on different grids.
    """
    if not mask.grid.is_close(before.grid):
        raise InvalidGridError(f"volume and mask are not on one grid: {before.grid} and {mask.grid}")
    z = int(mask.array.astype(bool).sum((0, 1)).argmax())
    x, y = (int(np.median(found)) for found in np.nonzero(mask.array[:, :, z]))
    reach = [round(NEAR_MM / s) for s in before.grid.spacing]
    start = [max(0, at - r) for at, r in zip((x, y, z), reach, strict=True)]
    stop = [min(n, at + r + 1) for at, r, n in zip((x, y, z), reach, before.grid.shape, strict=True)]
    point = (x - start[0], y - start[1], z - start[2])
    return comparison(crop(before, start, stop), crop(after, start, stop), title, ("before", "after"), point)


def write_png(image: Image.Image, path: Path) -> None:
    """Write a picture; the same pixels give the same bytes."""
    with write_atomically(path) as temporary:
        image.save(temporary, format="PNG", compress_level=3)


def telling_point(volume: Volume, labels: LabelMap | None = None, vocabulary: Vocabulary | None = None) -> Size3:
    """The voxel that a picture goes through: in the middle of lesions, where labels name some.

    Else the one whose three planes cut the most structures, near the centre of the body; without labels, the centre.
    """
    lesions = None if labels is None else middle_of(labels, lesion_ids(vocabulary or load_vocabulary()))
    if lesions is not None:
        return lesions
    body = volume.array > -500.0 if labels is None else labels.array > 0
    if not body.any():
        body = np.ones(volume.grid.shape, bool)
    middle = [_median_index(body, axis) for axis in range(3)]
    if labels is not None:
        middle = [_telling_index(labels.array, axis, at) for axis, at in enumerate(middle)]
    return middle[0], middle[1], middle[2]


def middle_of(labels: LabelMap, ids: Sequence[int]) -> Size3 | None:
    """The voxel of these structures that is nearest to the median of all of theirs; None where there is none."""
    voxels = np.argwhere(np.isin(labels.array, ids))
    if not len(voxels):
        return None
    x, y, z = voxels[int(((voxels - np.median(voxels, axis=0)) ** 2).sum(axis=1).argmin())].tolist()
    return x, y, z


def _median_index(body: np.ndarray, axis: int) -> int:
    profile = np.cumsum(body.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.int64))
    return int(np.searchsorted(profile, profile[-1] / 2))


def _telling_index(labels: np.ndarray, axis: int, middle: int) -> int:
    """The plane within a quarter of the length from the middle that cuts the most structures."""
    num = labels.shape[axis]
    reach = max(1, num // 4)
    candidates = range(max(0, middle - reach), min(num, middle + reach + 1))
    step = max(1, labels.shape[0] // 128)

    def score(index: int) -> tuple[float, int]:
        plane = np.take(labels, index, axis=axis)[::step, ::step]
        structures = int((np.bincount(plane.ravel(), minlength=2)[1:] > 2).sum())
        return structures - 4.0 * abs(index - middle) / num, -abs(index - middle)

    return max(candidates, key=score)


# Planes ---------------------------------------------------------------------------------------------------------------


def _plane(array: np.ndarray, axis: int, point: Size3) -> np.ndarray:
    """The plane through `point` as rows and columns of a picture: every axis shown falls from the top or the left."""
    return np.take(array, point[axis], axis=axis).T[::-1, ::-1]


def _curve(volume: Volume) -> tuple[tuple[float, float], ...]:
    """Values and their greys: `HU_CURVE` for CT; for MR from its lowest to its percentile 99.5."""
    if volume.modality == "ct":
        return HU_CURVE
    low, high = np.percentile(volume.array, MR_PERCENTILES).tolist()
    return (low, 0.0), (max(high, low + 1e-6), 1.0)


def _grey(values: np.ndarray, curve: tuple[tuple[float, float], ...]) -> np.ndarray:
    levels, greys = zip(*curve, strict=True)
    grey = np.rint(255 * np.interp(values, levels, greys)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _painted(grey: np.ndarray, ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The picture with every structure in its colour; what merely fills the body is left grey."""
    fillers = [vocabulary.id(name) for name in _FILLERS]
    colours = vocabulary.palette[np.minimum(ids, 255)].astype(np.float32)
    opacity = np.where((ids == 0) | np.isin(ids, fillers), 0.0, _OVERLAY)[..., None]
    light = 0.5 + 0.8 * grey.astype(np.float32) / 255.0  # the colour keeps the shading of the tissue below
    return np.rint((1 - opacity) * grey + opacity * np.minimum(255, colours * light)).astype(np.uint8)


def _diverging(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, -1, 1)[..., None]
    low, zero, high = (np.array(c, np.float32) for c in ((70, 150, 255), (24, 27, 34), (255, 96, 72)))
    colour = np.where(share < 0, zero + (low - zero) * -share, zero + (high - zero) * share)
    return np.rint(colour).astype(np.uint8)


def _panel(picture: np.ndarray, grid: Grid, plane: int, scale: float, name: str = "") -> Panel:
    _, axis, letters = PLANES[plane]
    width_mm, height_mm = (grid.fov_mm[a] for a in range(3) if a != axis)
    size = max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
    return Panel(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC), letters, name)


def _row_scale(grid: Grid) -> float:
    """Picture pixels a mm, so that three planes fill a row."""
    x, y, z = grid.fov_mm
    return min((_ROW_WIDTH - 2 * _GAP) / (2 * x + y), _MAX_HEIGHT / max(y, z))


def _column_scale(grid: Grid) -> float:
    """Picture pixels a mm, so that the widest plane takes a third of the row."""
    x, y, z = grid.fov_mm
    return min((_ROW_WIDTH - 2 * _GAP) / (3 * max(x, y)), _MAX_HEIGHT / max(y, z))


# The sheet ------------------------------------------------------------------------------------------------------------


def _largest(planes: Sequence[np.ndarray], vocabulary: Vocabulary) -> list[Structure]:
    """The structures with the most pixels in the planes: lesions first, then the largest."""
    counts = np.bincount(np.concatenate([plane.ravel() for plane in planes]), minlength=256)
    fillers, lesions = {vocabulary.id(name) for name in _FILLERS}, set(lesion_ids(vocabulary))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda id: (id not in lesions, -counts[id]))
    return [vocabulary.structure(i) for i in order if i in vocabulary.ids and i not in fillers][:MAX_LEGEND]


def _sheet(
    rows: Sequence[Sequence[Panel]],
    title: str,
    caption: str,
    legend: Sequence[Structure],
    scale: float,
    mark: str = "",
) -> Image.Image:
    widths = [max(row[k].image.width for row in rows) for k in range(3)]
    heights = [max(panel.image.height for panel in row) for row in rows]
    width = max(sum(widths) + 2 * _GAP, 520) + 2 * _MARGIN
    columns = max(1, (width - 2 * _MARGIN) // 190)
    legend_height = _LINE * -(-len(legend) // columns) + (_GAP if legend else 0)
    top = _MARGIN + _TITLE + (_LINE if mark else 0)
    bottom = top + sum(heights) + _GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (width, bottom + legend_height + _MARGIN + _LINE), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 4), title, _INK, _font(19))
    draw.text((width - _MARGIN, _MARGIN), caption, _FAINT, _font(14), anchor="ra")

    if mark:
        draw.text((_MARGIN, _MARGIN + 24), _shortened(mark, width - 2 * _MARGIN, 15), _ALARM, _font(15))

    y = top
    for row, height in zip(rows, heights, strict=True):
        x = _MARGIN
        for panel, column in zip(row, widths, strict=True):
            _place(sheet, panel, x + (column - panel.image.width) // 2, y + (height - panel.image.height) // 2)
            x += column + _GAP
        y += height + _GAP
    for k, structure in enumerate(legend):
        _legend_entry(draw, structure, _MARGIN + k % columns * 190, y + k // columns * _LINE)
    _scale_bar(draw, width - _MARGIN, bottom + legend_height + _LINE, scale)
    return sheet


def _place(sheet: Image.Image, panel: Panel, x: int, y: int) -> None:
    """Paste a plane and write its letters inside its edges."""
    sheet.paste(panel.image, (x, y))
    draw = ImageDraw.Draw(sheet)
    width, height = panel.image.size
    places = (
        ((x + 7, y + height // 2), "lm"),
        ((x + width - 7, y + height // 2), "rm"),
        ((x + width // 2, y + 5), "mt"),
        ((x + width // 2, y + height - 5), "mb"),
    )
    for letter, (at, anchor) in zip(panel.letters, places, strict=True):
        draw.text(at, letter, _LETTER, _font(15), anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    if panel.name:
        draw.text((x + 7, y + 5), panel.name, _INK, _font(13), anchor="lt", stroke_width=2, stroke_fill=(0, 0, 0))


def _legend_entry(draw: ImageDraw.ImageDraw, structure: Structure, x: int, y: int) -> None:
    draw.rounded_rectangle((x, y + 3, x + 14, y + 15), radius=3, fill=structure.colour)
    draw.text((x + 21, y + 9), _shortened(structure.name), _INK, _font(13), anchor="lm")


def _scale_bar(draw: ImageDraw.ImageDraw, right: int, y: int, scale: float) -> None:
    length_mm = next((mm for mm in (100, 50, 20, 10, 5) if mm * scale <= 240), 1)
    left = right - round(length_mm * scale)
    draw.line((left, y, right, y), fill=_FAINT, width=2)
    for end in (left, right):
        draw.line((end, y - 4, end, y + 4), fill=_FAINT, width=2)
    draw.text((left - 8, y), f"{length_mm} mm", _FAINT, _font(13), anchor="rm")


def _size_caption(grid: Grid) -> str:
    voxels, spacing = (in_words(np.round(values, 3)) for values in (grid.shape, grid.spacing))
    return f"{voxels} voxels, {spacing} mm"


def _shortened(name: str, width: int = 164, size: int = 13) -> str:
    font = _font(size)
    if font.getlength(name) <= width:
        return name
    beginnings = [name[:count].rstrip(".") + "..." for count in range(len(name))]
    return beginnings[max(0, bisect_right(beginnings, width, key=lambda text: ceil(font.getlength(text))) - 1)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
