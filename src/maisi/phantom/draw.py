"""A procedural adult: labels of about a hundred structures drawn at random, and a CT that shows them.

`phantom.yaml` is the template. A person is drawn from it by stature, fat, the place and size of each organ, and a
smooth bending of space that makes every outline organic; painting is then a function of position alone, so one person
looks the same on any grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.phantom.organs import (
    BODY,
    EVERYTHING,
    OUTSIDE,
    SPECIAL,
    Painter,
    Template,
    inside_wall,
    labels_named,
    structure_id,
)
from maisi.phantom.sculpt import (
    Canvas,
    along,
    depth_inside,
    paint_ellipsoid,
    paint_sheet,
    paint_tube,
    smooth,
    turn_matrix,
)
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

CHUNK_VOXELS = 2**23  # a large grid is painted in slabs of at most about this many voxels
LATTICE_MM = 8.0
ONE_LEG_FOV_MM = 260.0  # a narrower view of the limbs shows one of them
# Bending of space: wavelength (mm) and amplitude (mm) of the waves along each axis.
WAVES = ((260.0, 3.0), (130.0, 2.2), (70.0, 1.2), (38.0, 0.7))
WAVES_PER_BAND = 4


def draw_phantom(region: str, grid: Grid, generator: np.random.Generator) -> LabelMap:
    """Labels (uint8) of a random adult, the field of view centred on `region`.

    Regions are head, neck, head-neck, chest, abdomen, lower, limbs and their aliases. What of the field of view lies
    beyond the region shows the neighbouring one, or nothing. Two grids with the same generator state and region show
    the same person. Raises InvalidRequestError on an unknown region.
    """
    template = _template()
    name = _region(template, region)
    person = _Person.drawn(template, name, np.array(grid.fov_mm), generator)
    labels = np.zeros(grid.shape, np.uint8)
    painters = list(_painters(template, person))
    for planes in _chunks(grid.shape):
        canvas = _canvas(grid, labels, planes, person)
        for paint in painters:
            paint(canvas)
    return LabelMap(labels, grid)


def region_centre(region: str) -> tuple[float, float, float]:
    """Where the field of view of a region has its centre, mm from the first lumbar vertebra, RAS."""
    template = _template()
    x, y, z = template["regions"][_region(template, region)]
    return float(x), float(y), float(z)


@lru_cache(maxsize=1)
def _template() -> Template:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = files("maisi.phantom").joinpath("phantom.yaml").read_text(encoding="utf-8")
    template: Template = yaml.load(text, Loader=loader)
    return template


def _region(template: Template, region: str) -> str:
    folded = region.strip().lower()
    name: str = template["aliases"].get(folded, folded)
    if name not in template["regions"]:
        accepted = sorted([*template["regions"], *template["aliases"]])
        raise InvalidRequestError(f"the phantom has no region {region!r}; accepted: {', '.join(accepted)}")
    return name


# The person -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Person:
    """What differs between people, drawn once."""

    centre: np.ndarray  # canonical position of the centre of the field of view
    scale: np.ndarray  # world mm per canonical mm
    fat_mm: float
    belly: float
    sex: str
    arms: str
    waves: np.ndarray  # (n, 3 + 1 + 3): wave vector, phase, amplitude
    generator: np.random.Generator

    @classmethod
    def drawn(cls, template: Template, region: str, fov_mm: np.ndarray, rng: np.random.Generator) -> "_Person":
        people = template["people"]
        size, width, depth = (rng.normal(*people[key]) for key in ("size", "width", "depth"))
        fat = float(np.clip(rng.normal(*people["fat_mm"]), *people["fat_range_mm"]))
        centre = np.array(template["regions"][region], float) + rng.normal(0, (3, 3, 10))
        leg = float(rng.choice([-1, 1])) * template["leg"][0][1]
        if region == "limbs" and fov_mm[0] < ONE_LEG_FOV_MM:
            centre[0] += leg
        return cls(
            centre=centre,
            scale=np.array([size * width, size * depth, size]),
            fat_mm=fat,
            belly=float(rng.uniform(0.6, 1.5)),
            sex=str(rng.choice(["female", "male"])),
            arms="down" if region in ("head", "neck", "head-neck") else "up",
            waves=_drawn_waves(rng),
            generator=rng,
        )


def _drawn_waves(rng: np.random.Generator) -> np.ndarray:
    rows = []
    for wavelength, amplitude in WAVES:
        for _ in range(WAVES_PER_BAND):
            direction = rng.normal(size=3)
            direction *= 2 * np.pi / (wavelength * np.linalg.norm(direction))
            rows.append(
                [*direction, rng.uniform(0, 2 * np.pi), *(rng.normal(size=3) * amplitude / WAVES_PER_BAND**0.5)]
            )
    return np.array(rows)


# The canvas -----------------------------------------------------------------------------------------------------------


def _chunks(shape: tuple[int, int, int]) -> Iterator[slice]:
    depth = max(1, CHUNK_VOXELS // (shape[0] * shape[1]))
    for start in range(0, shape[2], depth):
        yield slice(start, min(shape[2], start + depth))


def _canvas(grid: Grid, labels: np.ndarray, planes: slice, person: _Person) -> Canvas:
    middle = grid.world((np.array(grid.shape) - 1) / 2)
    indices = (np.arange(labels.shape[0]), np.arange(labels.shape[1]), np.arange(labels.shape[2])[planes])
    axes = []
    for k, index in enumerate(indices):
        world = grid.affine[k, 3] + grid.affine[k, k] * index - middle[k]
        axes.append(world / person.scale[k] + person.centre[k])
    bent, reach = _bent(axes, person.waves)
    x, y, z = axes
    shape = tuple(map(len, axes))
    return Canvas(
        labels=labels[:, :, planes],
        axes=(x, y, z),
        x=(bent[0] + x[:, None, None]).astype(np.float32).reshape(shape),
        y=(bent[1] + y[None, :, None]).astype(np.float32).reshape(shape),
        z=(bent[2] + z[None, None, :]).astype(np.float32).reshape(shape),
        reach=reach,
    )


def _bent(axes: list[np.ndarray], waves: np.ndarray) -> tuple[np.ndarray, float]:
    """The displacement (3, x, y, z) in mm and its largest size: sums of sines on a lattice, interpolated linearly."""
    nodes = [LATTICE_MM * np.arange(np.floor(a[0] / LATTICE_MM), np.ceil(a[-1] / LATTICE_MM) + 1) for a in axes]
    field = np.zeros((3, *map(len, nodes)))
    for kx, ky, kz, phase, *amplitude in waves:
        ex, ey, ez = (np.exp(1j * k * n) for k, n in zip((kx, ky, kz), nodes, strict=True))
        wave = (ex[:, None, None] * ey[:, None] * (ez * np.exp(1j * phase))).imag
        field += np.array(amplitude)[:, None, None, None] * wave
    mx, my, mz = (_interpolation(a, n) for a, n in zip(axes, nodes, strict=True))
    bent = np.einsum("kabc,zc->kabz", field.astype(np.float32), mz, optimize=True)
    bent = np.einsum("kabz,yb->kayz", bent, my, optimize=True)
    return np.einsum("kayz,xa->kxyz", bent, mx, optimize=True), float(np.abs(field).max())


def _interpolation(positions: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    at = np.clip((positions - nodes[0]) / LATTICE_MM, 0, len(nodes) - 1)
    low = np.minimum(at.astype(int), max(len(nodes) - 2, 0))
    matrix = np.zeros((len(positions), len(nodes)), np.float32)
    rows = np.arange(len(positions))
    matrix[rows, low] = 1 - (at - low)
    matrix[rows, np.minimum(low + 1, len(nodes) - 1)] += at - low
    return matrix


# Painters: each returns a function of the canvas alone ----------------------------------------------------------------


def _painters(template: Template, person: _Person) -> Iterator[Painter]:
    yield partial(_paint_outline, template, person)
    for row in template["outgrowths"]:
        yield from _row_painters(template, person, row, beyond=True)
    yield from _arms(template, person)
    yield partial(_paint_cavity, template)
    for row in template["shapes"]:
        if "special" in row:
            yield from SPECIAL[row["special"]](template, person.generator)
        else:
            yield from _row_painters(template, person, row)


def _row_painters(template: Template, person: _Person, row: Template, beyond: bool = False) -> Iterator[Painter]:
    shift, scale = row.get("vary", (0, 0) if _is_bone(row["name"]) else (1.5, 0.05))
    moved, factor = person.generator.normal(0, shift, 3), 1 + person.generator.normal(0, scale)
    factor = float(np.clip(factor, 1 - 2.5 * scale, 1 + 2.5 * scale))
    if row.get("sex", person.sex) != person.sex:
        return
    over = EVERYTHING if beyond else _replaceable(row.get("over"))
    for side in (1, -1) if row.get("mirror") else (1,):
        name = row["name"] if side > 0 else row["name"].replace("right", "left")
        yield _shape(row, structure_id(name), over, moved * (side, 1, 1), factor, side, person)


def _replaceable(names: str | list[str] | None) -> np.ndarray:
    return BODY if names is None else labels_named(*([names] if isinstance(names, str) else names))


def _is_bone(name: str) -> bool:
    return "bones" in load_vocabulary().structure(name).groups


def _shape(
    row: Template, id: int, over: np.ndarray, moved: np.ndarray, factor: float, side: int, person: _Person
) -> Painter:
    mirror = np.array([side, 1, 1])
    if "ellipsoid" in row:
        e = row["ellipsoid"]
        about_x, about_y, about_z = e["turn"]
        turn = turn_matrix((about_x, side * about_y, side * about_z))
        return partial(
            paint_ellipsoid,
            centre=np.array(e["centre"]) * mirror + moved,
            radii=np.array(e["radii"]) * factor,
            turn=turn,
            id=id,
            over=over,
        )
    place = partial(_placed, mirror=mirror, moved=moved, factor=factor)
    if "sheet" in row:
        a, b = (place(smooth(np.array(row["sheet"][key], float), 10)) for key in "ab")
        return partial(paint_sheet, a=a, b=b, id=id, over=over)
    points = smooth(np.array(row["tube"], float))
    if "haustra" in row:
        points = _with_haustra(points, *row["haustra"])
    return partial(paint_tube, points=place(points), id=id, over=over)


def _placed(points: np.ndarray, mirror: np.ndarray, moved: np.ndarray, factor: float) -> np.ndarray:
    middle = points[:, :3].mean(0)
    placed = points * factor
    placed[:, :3] = (points[:, :3] - middle) * (1 + (factor - 1) / 3) + middle  # calibre varies more than length
    placed[:, :3] = placed[:, :3] * mirror + moved
    return placed


def _with_haustra(points: np.ndarray, strength: float, period_mm: float) -> np.ndarray:
    fine = along(points, max(2, int(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1).sum() / 6)))
    position = 6.0 * np.arange(len(fine))
    fine[:, 3] *= 1 + strength * np.sin(2 * np.pi * position / period_mm)
    return fine


def _paint_outline(template: Template, person: _Person, canvas: Canvas) -> None:
    fat, body = structure_id("fat"), structure_id("body")
    labels = canvas.labels
    legs = [[[r[0], side * r[1], *r[2:]] for r in template["leg"]] for side in (1, -1)]
    for rows, lean in ((template["torso"], 1.0), (template["head"], 0.25), (legs[0], 0.8), (legs[1], 0.8)):
        table = np.array(rows, float)
        low = [(table[:, 1] - table[:, 2]).min() - 50, table[:, 3].min() - 50, table[0, 0]]
        high = [(table[:, 1] + table[:, 2]).max() + 50, table[:, 5].max() + 60, table[-1, 0]]
        box = canvas.box(low, high)
        if box is None:
            continue
        x, y, z = canvas.at(box)
        depth = depth_inside(rows, x, y, z)
        thickness = lean * _fat_thickness(person, x, y, z)
        view = labels[box]
        view[(depth > -thickness) & (view == 0)] = fat
        view[depth > 0] = body


def _fat_thickness(person: _Person, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Subcutaneous fat in mm: thick on the belly and behind the hips, thin on neck and chest."""
    belly = np.exp(-(((z + 70) / 110) ** 2)) * np.clip((y - 10) / 90, 0, 1)
    hips = np.exp(-(((z + 210) / 90) ** 2)) * np.clip((40 - y) / 80, 0, 1)
    neck = np.interp(z, [230, 300], [0.75, 0.3])
    return person.fat_mm * (neck + 0.7 * person.belly * belly + 0.8 * hips)


def _paint_cavity(template: Template, canvas: Canvas) -> None:
    """Fat in the abdominal and pelvic cavity, where the organs will lie."""
    box = canvas.box([-140, -70, template["cavity"][0][0]], [140, 150, 90])
    if box is None:
        return
    x, y, z = canvas.at(box)
    inside = inside_wall(template, x, y, z) > 0
    canvas.paint(box, inside, structure_id("fat"), labels_named("body"))


def _arms(template: Template, person: _Person) -> Iterator[Painter]:
    arm = {key: np.array(points, float) for key, points in template["arms"][person.arms].items()}
    skin = arm["flesh"].copy()
    skin[:, 3] += 0.6 * person.fat_mm
    for side, name in ((1, "right"), (-1, "left")):
        mirror = np.array([side, 1, 1, 1])
        yield partial(
            paint_tube, points=smooth(skin) * mirror, id=structure_id("fat"), over=labels_named("fat") | OUTSIDE
        )
        yield partial(paint_tube, points=smooth(arm["flesh"]) * mirror, id=structure_id("body"), over=EVERYTHING)
        for bone in ("humerus", "radius", "ulna"):
            yield partial(
                paint_tube, points=smooth(arm[bone]) * mirror, id=structure_id(f"{name} {bone}"), over=EVERYTHING
            )
