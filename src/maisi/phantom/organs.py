"""The organs of the phantom whose shape follows from their surroundings: spine, ribs, lungs, liver, bowel and skull."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.phantom.sculpt import Box, Canvas, depth_inside, paint_tube, smooth

Template: TypeAlias = Mapping[str, Any]
Painter: TypeAlias = Callable[[Canvas], None]

# What a shape may replace, as flags by label id.
EVERYTHING = np.ones(256, bool)
OUTSIDE = np.arange(256) == 0
BODY = ~OUTSIDE


def structure_id(name: str) -> int:
    return load_vocabulary().id(name)


def labels_named(*names: str) -> np.ndarray:
    """Flags (256,) of the structures and groups of these names."""
    vocabulary = load_vocabulary()
    flags = np.zeros(256, bool)
    for name in names:
        flags[list(vocabulary.members(name))] = True
    return flags


def inside_wall(template: Template, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """How far inside the thoracic and abdominal wall a point lies, mm, the spine and what lies behind it left out."""
    spine = np.array([[row[1], row[2]] for row in template["spine"]], float)  # from below upwards
    centre = np.interp(z, spine[:, 0], spine[:, 1]) - 20
    column = np.sqrt(x * x + np.maximum(y - centre, 0) ** 2) - 31
    return np.minimum(depth_inside(template["cavity"], x, y, z), column.astype(np.float32))


def _dome(template: Template, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height (mm) of the diaphragm: flat in the middle, falling to the wall, least in front."""
    d = template["diaphragm"]
    cx, cy = d["centre"]
    dx, dy = (x - cx) / d["half"][0], (y - cy) / np.where(y > cy, d["half"][2], d["half"][1])
    radius = np.sqrt(dx * dx + dy * dy) + 1e-6
    fall = (
        d["fall"]["side"]
        + np.where(dy > 0, d["fall"]["front"] - d["fall"]["side"], d["fall"]["back"] - d["fall"]["side"])
        * (dy / radius) ** 2
    )
    top = np.interp(x, [p[0] for p in d["tops"]], [p[1] for p in d["tops"]])
    return top - fall * radius**4.2


def _lungs(template: Template, rng: np.random.Generator) -> Iterator[Painter]:
    rise = rng.normal(0, 6)

    def paint(canvas: Canvas) -> None:
        box = canvas.box([-140, -70, -40], [140, 150, 292])
        if box is None:
            return
        x, y, z = canvas.at(box)
        inside = (inside_wall(template, x, y, z) > 1.5) & (z > _dome(template, x, y) + 4 + rise)
        oblique = z - (128 - 1.05 * (y - 30))  # the fissures fall to the front
        horizontal = z - 147 - 0.1 * y
        for side, names in (
            (1, (("right lung lower lobe", oblique < 0), ("right lung middle lobe", (oblique >= 0) & (horizontal < 0)),
                 ("right lung upper lobe", (oblique >= 0) & (horizontal >= 0)))),
            (-1, (("left lung lower lobe", oblique < 0), ("left lung upper lobe", oblique >= 0))),
        ):  # fmt: skip
            for name, lobe in names:
                canvas.paint(box, inside & (side * x > 0) & lobe, structure_id(name), labels_named("body", "fat"))

    yield paint


def _liver(template: Template, rng: np.random.Generator) -> Iterator[Painter]:
    t = template["liver"]
    lower, left, slope = rng.normal(0, 6), rng.normal(0, 9), t["slope"] * rng.normal(1, 0.06)

    def paint(canvas: Canvas) -> None:
        box = canvas.box([-110, -60, -90], [140, 150, 115])
        if box is None:
            return
        x, y, z = canvas.at(box)
        inside = (inside_wall(template, x, y, z) > t["wall_gap"]) & (z < _dome(template, x, y) - 1)
        # The lower surface rises to the left and towards the back; its edge is rounded where it meets the wall.
        inside &= z > t["tip_z"] + lower + slope * (128 - x) + 0.006 * (y - 98) ** 2
        inside &= x > t["left_x"] + left + 0.55 * np.clip(70 - y, 0, None)
        inside &= (x / 50) ** 2 + ((y - 4) / 44) ** 2 > 1  # room for the spine and the crura
        canvas.paint(box, inside, structure_id("liver"), labels_named("body", "fat"))

    yield paint


def _small_bowel(template: Template, rng: np.random.Generator) -> Iterator[Painter]:
    t = template["small_bowel"]
    loops = []
    (x_low, x_high), (z_top, z_low) = t["x"], t["z"]
    for k, height in enumerate(np.linspace(z_top, z_low, t["rows"])):
        x = np.linspace(x_low, x_high, 12) * (1 if k % 2 == 0 else -1)
        x = np.clip(x, x_low, x_high) * np.interp(height, [-205, -120], [0.55, 1])
        for j, y in enumerate(t["y"]):
            wobble = rng.normal(0, 6, (12, 3))
            bend = 11 * np.sin(np.arange(12) * rng.uniform(1.2, 2.2) + rng.uniform(0, 6.28))
            z = height + bend + 12 * j
            points = np.stack([x[:: 1 if j == 0 else -1], y + 0 * x, z], axis=1) + wobble
            loops.append(np.concatenate([points, t["radius"] * rng.normal(1, 0.12, (12, 1))], axis=1))
    for points in loops:
        yield partial(paint_tube, points=smooth(points, 8), id=structure_id("small bowel"), over=labels_named("fat"))


def _spine(template: Template, rng: np.random.Generator) -> Iterator[Painter]:
    rows = template["spine"]
    heights = np.array([row[1] for row in rows], float)
    depths = np.array([row[2] for row in rows], float)
    slopes = np.gradient(depths, heights)  # dy/dz of the curve of the spine
    disc = np.array([[0, y, z, 1.15 * max(w, 9)] for (_, z, y, w, *_) in rows[:-2]], float)
    yield partial(_paint_soft_column, disc)
    for (name, z, y, width, depth, height, canal, spinous, transverse), slope in zip(rows, slopes, strict=True):
        vertebra = _Vertebra(
            structure_id(f"vertebrae {name}"), z, y, width, depth, height, canal, spinous, transverse, slope
        )
        yield vertebra.paint
    cord = template["spinal_cord"]
    low, high = (next(k for k, row in enumerate(rows) if row[0] == cord[key]) for key in ("from", "to"))
    points = [[0, row[2] - row[4] - row[6] + 1, row[1], cord["radius"]] for row in rows[low : high + 1]]
    points.append([0, 66, 398, 7])
    yield partial(paint_tube, points=smooth(np.array(points, float)), id=structure_id("spinal cord"), over=BODY)


def _paint_soft_column(points: np.ndarray, canvas: Canvas) -> None:
    """Discs and ligaments around the vertebrae."""
    lobes_and_fat = labels_named("lungs", "fat")
    paint_tube(canvas, points, structure_id("body"), lobes_and_fat)


@dataclass(frozen=True)
class _Vertebra:
    id: int
    z: float
    y: float
    width: float
    depth: float
    height: float
    canal: float
    spinous: float
    transverse: float
    slope: float

    def paint(self, canvas: Canvas) -> None:
        over = BODY
        arch_y = self.y - self.depth - self.canal + 1
        reach = max(self.transverse, self.width) + 6
        low = [-reach, arch_y - self.canal - 14, self.z - self.height]
        box = canvas.box(low, [reach, self.y + self.depth + 4, self.z + self.height])
        if box is None:
            return
        x, y, z = canvas.at(box)
        along_axis = (z - self.z) + self.slope * (y - self.y)  # planes of the disc stand square to the curve
        across = y - (self.y + self.slope * (z - self.z))
        if self.width:
            waist = 1 - 0.1 * (1 - np.clip(np.abs(along_axis) / (self.height / 2), 0, 1) ** 2)
            body = (np.abs(x) / (self.width * waist)) ** 2.6 + (np.abs(across) / (self.depth * waist)) ** 2.4 < 1
            canvas.paint(box, body & (np.abs(along_axis) < self.height / 2 - 0.5), self.id, over)
        self._paint_arch(canvas, box, x, across + self.y - arch_y, along_axis, over)
        self._paint_processes(canvas, arch_y, over)

    def _paint_arch(
        self, canvas: Canvas, box: Box, x: np.ndarray, dy: np.ndarray, dz: np.ndarray, over: np.ndarray
    ) -> None:
        radius = np.sqrt(x**2 + dy**2)
        ring = (radius < self.canal + 5.5) & (radius >= self.canal) & (np.abs(dz) < self.height * 0.38)
        canvas.paint(box, ring, self.id, over)
        canvas.paint(box, (radius < self.canal) & (np.abs(dz) < self.height * 0.6), structure_id("body"), over)

    def _paint_processes(self, canvas: Canvas, arch_y: float, over: np.ndarray) -> None:
        back = arch_y - self.canal - 2
        if self.spinous:
            drop = 0.55 * self.spinous if self.transverse < 36 and self.width < 20 else 0.25 * self.spinous
            tip = [0, back - 0.8 * self.spinous, self.z - 4 - drop, 3.5]
            paint_tube(canvas, np.array([[0, back, self.z - 3, 4.5], tip]), self.id, over)
        for side in (1, -1):
            if self.transverse:
                root = [side * (self.canal + 3), arch_y, self.z, 5.5]
                end = [side * self.transverse, arch_y - (6 if self.width < 20 else 2), self.z + 2, 3.5]
                paint_tube(canvas, np.array([root, end]), self.id, over)
            joint_x, joint_y = side * (self.canal + 5), arch_y - 5
            top = [joint_x, joint_y, self.z + self.height * 0.5, 4.5]
            paint_tube(canvas, np.array([top, [joint_x, joint_y - 2, self.z - self.height * 0.5, 4.5]]), self.id, over)


def _ribs(template: Template, rng: np.random.Generator) -> Iterator[Painter]:
    spine = {row[0]: row for row in template["spine"]}
    for number, fall, end, half, back, middle, front, sternum_z in template["ribs"]:
        _, z, y, width, depth, *_ = spine[f"T{number}"]
        angle = np.radians(np.linspace(12, end, 22))
        power = 2 / 2.35
        x = half * np.sin(angle) ** power
        c = -np.cos(angle)
        dy = np.sign(c) * np.abs(c) ** power
        yy = middle + np.where(dy > 0, front - middle, middle - back) * dy
        progress = np.linspace(0, 1, 22)
        zz = z + 3 - fall * progress**1.15
        radius = np.interp(progress, [0, 0.15, 0.8, 1], [4.4, 5.2, 5.4, 5.8])
        arc = np.stack([x, yy, zz, radius], axis=1)
        head = np.array([[width + 1, y - depth + 2, z + 4, 4.2]])
        points = np.concatenate([head, arc])
        for side, name in ((1, "right"), (-1, "left")):
            mirror = np.array([side, 1, 1, 1])
            yield partial(_paint_rib, points * mirror, structure_id(f"{name} rib {number}"))
            if sternum_z:
                yield partial(
                    _paint_rib, _cartilage(arc[-1], number, sternum_z) * mirror, structure_id("costal cartilages")
                )


def _cartilage(end: np.ndarray, number: int, sternum_z: float) -> np.ndarray:
    x, y, z, _ = end
    if number <= 7:
        goal = [18 if number > 1 else 24, 128 if number > 2 else 104, sternum_z, 5.0]
        low = [0.5 * (x + goal[0]), max(y, goal[1]) + 5, min(z, goal[2]) - 2 + 0.25 * abs(z - goal[2]), 5.5]
    else:  # false ribs end on the cartilage above
        goal = [x * 0.72, 134 - 2 * (number - 8), z + 26, 4.5]
        low = [0.9 * x, y + 18, z + 4, 5.0]
    return smooth(np.array([[x, y, z, 5.8], low, goal]), 5)


def _paint_rib(points: np.ndarray, id: int, canvas: Canvas) -> None:
    """A band: tall along z, thin across; three slender tubes above each other."""
    for lift in (-3.0, 0.0, 3.0):
        raised = points.copy()
        raised[:, 2] += lift
        raised[:, 3] *= 0.72
        paint_tube(canvas, raised, id, BODY)


def _skull(template: Template, rng: np.random.Generator) -> Iterator[Painter]:
    thickness = float(np.clip(rng.normal(6.5, 0.8), 5, 8.5))

    def paint(canvas: Canvas) -> None:
        box = canvas.box([-85, -35, 385], [85, 185, 550])
        if box is None:
            return
        x, y, z = canvas.at(box)
        depth = np.minimum(depth_inside(template["head"], x, y, z), (545 - z) * 0.9)
        base = np.interp(y, [-20, 20, 60, 90, 118, 122, 160], [420, 402, 399, 414, 420, 436, 440]) + 0.05 * np.abs(x)
        shell = (depth > 4) & (z > base - 6)
        canvas.paint(box, shell, structure_id("skull"), BODY)
        canvas.paint(box, (depth > 4 + thickness) & (z > base), structure_id("brain"), labels_named("skull"))
        hole = (x**2 + (y - 64) ** 2 < 15**2) & (z < base + 4) & (z > base - 10)
        canvas.paint(box, hole, structure_id("body"), labels_named("skull"))

    yield paint


SPECIAL: dict[str, Callable[[Template, np.random.Generator], Iterator[Painter]]] = {
    "lungs": _lungs,
    "liver": _liver,
    "small bowel": _small_bowel,
    "spine": _spine,
    "ribs": _ribs,
    "skull": _skull,
}
