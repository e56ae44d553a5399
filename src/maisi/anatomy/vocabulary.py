"""The vocabulary of anatomy: every structure that a label map may hold, read from `vocabulary.yaml`."""

from collections.abc import Collection, Iterable, Mapping
from colorsys import hsv_to_rgb
from difflib import get_close_matches
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from maisi.errors import InvalidConfigError, InvalidLabelsError
from maisi.shapes import Frozen
from maisi.space.volume import id_counts

BACKGROUND = 0
DUMMIES = "dummies"
DECLARED = "declared"  # the group of classes that a bundle adds
MIN_ID, MAX_ID = 1, 255  # ids are shown to the network as 8 bits
GOLDEN_RATIO = 0.618034  # its multiples spread over the circle of hues


class Structure(Frozen):
    """One anatomical structure: its id in a label map, its names elsewhere, and how it looks."""

    id: int
    name: str
    groups: tuple[str, ...]
    region: str
    host: str | None = None
    colour: tuple[int, int, int]
    totalseg: str | None = None
    vista: str | None = None
    hu: tuple[float, float] | None = None
    aliases: tuple[str, ...] = ()

    @property
    def is_dummy(self) -> bool:
        """Whether MAISI reserves the id without ever filling it."""
        return DUMMIES in self.groups


class Region(Frozen):
    """What tells a body region from a label map, and its other names."""

    markers: tuple[str, ...]
    aliases: tuple[str, ...] = ()


class BodyRules(Frozen):
    """Lengths (mm), volumes (ml) and Hounsfield units by which the body is found in a CT."""

    air_hu: float
    table_mm: float
    gap_mm: float
    piece_ml: float
    piece_hu: float
    lung_hu: tuple[float, float]
    lung_spread_hu: float
    lung_texture_hu: float
    lung_depth_mm: float
    lung_ml: float
    cut_lung_ml: float
    airway_hu: float
    airway_ml: float
    cancellous_hu: float
    marrow_cm2: float
    marrow_hu: tuple[float, float]
    contrast_sd_hu: float
    mixing_sd_hu: float
    contrast_ratio: float
    contrast_hu: float
    contrast_ml: float
    enclosed_gap_mm: float
    enclosed_rim_mm: float
    enclosed_round_mm: float
    speck_ml: float


class Place(Frozen):
    """Where the middle of a structure lies in an adult (mm, RAS, from the first lumbar vertebra), and its size."""

    x: tuple[float, float]
    y: tuple[float, float]
    z: tuple[float, float]
    half: tuple[float, float, float]  # how far the structure reaches from its middle
    ml: tuple[float, float]  # usual volume, largest believable one

    @property
    def mirrored(self) -> "Place":
        """The place of the same structure on the other side."""
        return self.model_copy(update={"x": (-self.x[1], -self.x[0])})


class PlaceRules(Frozen):
    """How far the structures of a label map may differ from their places; see `vocabulary.yaml`."""

    part: float
    turned: float
    fragment: float
    tiny: float
    near: float
    far: float
    slack_mm: float


class Vocabulary(Frozen):
    """All structures and the rules of the body; names are looked up in it, never written as numbers elsewhere."""

    version: str
    regions: dict[str, Region]
    tissues: dict[str, tuple[float, float]]
    body: BodyRules
    place_rules: PlaceRules
    places: dict[str, Place]
    structures: tuple[Structure, ...]

    @cached_property
    def _by_id(self) -> dict[int, Structure]:
        return {structure.id: structure for structure in self.structures}

    @cached_property
    def _by_name(self) -> dict[str, Structure]:
        return {structure.name: structure for structure in self.structures}

    @cached_property
    def _by_alias(self) -> dict[str, int]:
        names: dict[str, int] = {}
        for structure in self.structures:
            elsewhere = () if structure.is_dummy else (structure.totalseg, structure.vista, *structure.aliases)
            for name in (structure.name, *elsewhere):
                if name is not None:
                    names.setdefault(folded(name), structure.id)
        return names

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every structure, by ascending id."""
        return tuple(self._by_id[id].name for id in self.ids)

    @cached_property
    def places_by_id(self) -> dict[int, Place]:
        """Where structures lie; a left one without a row of its own mirrors the right one."""
        found = {}
        for structure in self.structures:
            side, _, rest = structure.name.partition(" ")
            opposite = self.places.get(f"right {rest}") if side == "left" else None
            place = self.places.get(structure.name) or (opposite.mirrored if opposite else None)
            if place is not None:
                found[structure.id] = place
        return found

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Every id that a label map may hold besides 0, ascending."""
        return tuple(sorted(self._by_id))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The names of all groups."""
        return tuple(sorted({group for structure in self.structures for group in structure.groups}))

    @cached_property
    def palette(self) -> np.ndarray:
        """Colours by id, uint8 (256, 3); black where there is no structure."""
        colours = np.zeros((256, 3), np.uint8)
        for structure in self.structures:
            colours[structure.id] = structure.colour
        return colours

    def structure(self, key: int | str) -> Structure:
        """The structure with this id or this exact name; raises InvalidLabelsError."""
        if isinstance(key, str):
            if key not in self._by_name:
                raise InvalidLabelsError(_unknown_name(key, self._by_name))
            return self._by_name[key]
        if int(key) not in self._by_id:
            raise InvalidLabelsError(f"label id {key} is not in the vocabulary; ids are {id_ranges(self.ids)}")
        return self._by_id[int(key)]

    def id(self, name: str) -> int:
        """The id of a structure by its exact name here; raises InvalidLabelsError."""
        return self.structure(name).id

    def name(self, id: int) -> str:
        """The name of a structure by its id; raises InvalidLabelsError."""
        return self.structure(int(id)).name

    def find(self, name: str) -> int:
        """The id of a structure by any of its names (TotalSegmentator, VISTA-3D, OpenKBP, ...), in any case."""
        found = self._by_alias.get(folded(name))
        if found is None:
            raise InvalidLabelsError(_unknown_name(name, self._by_alias))
        return found

    def knows(self, name: str) -> bool:
        """Whether `find` has an answer."""
        return folded(name) in self._by_alias

    def group(self, name: str) -> tuple[int, ...]:
        """The ids of a group, ascending; raises InvalidLabelsError."""
        if name not in self.groups:
            raise InvalidLabelsError(_unknown_name(name, self.groups, kind="group"))
        return tuple(sorted(structure.id for structure in self.structures if name in structure.groups))

    def members(self, name: str) -> tuple[int, ...]:
        """The ids of the group of this name, or else of the one structure; raises InvalidLabelsError."""
        if name not in self.groups and name not in self._by_name:
            raise InvalidLabelsError(_unknown_name(name, [*self._by_name, *self.groups], kind="structure or group"))
        return self.group(name) if name in self.groups else (self.id(name),)

    def check_ids(self, labels: np.ndarray) -> tuple[int, ...]:
        """The ids present besides 0, ascending; raises InvalidLabelsError on an id that is not in the vocabulary."""
        present = np.flatnonzero(id_counts(labels)) if labels.dtype in (np.uint8, np.uint16) else np.unique(labels)
        if present.dtype.kind == "f" and not np.array_equal(present, np.round(present)):
            fraction = present[present != np.round(present)][0]
            raise InvalidLabelsError(f"labels must be whole numbers; found {fraction}")
        unknown = [int(id) for id in present if id != BACKGROUND and int(id) not in self._by_id]
        if unknown:
            shown = ", ".join(map(str, unknown[:12])) + (f" and {len(unknown) - 12} more" if len(unknown) > 12 else "")
            raise InvalidLabelsError(
                f"label ids {shown} are not in the vocabulary; accepted are 0 (background) and {id_ranges(self.ids)}"
            )
        return tuple(int(id) for id in present if id != BACKGROUND)


class ClassDeclaration(Frozen):
    """A class that a bundle adds to the vocabulary: its name, and what is known of how it looks."""

    name: str
    region: str = "any"
    groups: tuple[str, ...] = (DECLARED,)
    host: str | None = None  # the structure or group that it grows in
    colour: tuple[int, int, int] | None = None  # derived from the id where none is given
    hu: tuple[float, float] | None = None  # mean and standard deviation; those of the body where none are given


def extended(vocabulary: Vocabulary, classes: Mapping[int, str | ClassDeclaration]) -> Vocabulary:
    """The vocabulary with the classes of a bundle, on ids from 1 to 255 that are free or that MAISI never fills.

    Raises InvalidConfigError for an id that is taken or does not fit 8 bits, for a name that the vocabulary knows
    already, by whatever spelling, and for a host, group or region that there is not.
    """
    structures = {structure.id: structure for structure in vocabulary.structures}
    names = {folded(structure.name) for structure in vocabulary.structures}
    for id, declared in sorted(classes.items()):
        declaration = ClassDeclaration(name=declared) if isinstance(declared, str) else declared
        name = declaration.name.strip()
        taken = structures.get(id)
        if not MIN_ID <= id <= MAX_ID or (taken is not None and not taken.is_dummy):
            by = f"is {taken.name}" if taken is not None else f"does not fit {MAX_ID.bit_length()} bits"
            free = [k for k in range(MIN_ID, MAX_ID + 1) if k not in structures or structures[k].is_dummy]
            raise InvalidConfigError(f"class {name!r} cannot have the id {id}, which {by}; free: {id_ranges(free)}")
        if not name or folded(name) in names or vocabulary.knows(name):
            raise InvalidConfigError(f"class {id} cannot be called {name!r}: the vocabulary knows that name already")
        names.add(folded(name))
        colour = declaration.colour or _derived_colour(id, {each.colour for each in structures.values()})
        structures[id] = _declared(vocabulary, id, name, declaration, colour)
    kept = {field: getattr(vocabulary, field) for field in Vocabulary.model_fields}
    return Vocabulary(**{**kept, "structures": tuple(structures[id] for id in sorted(structures))})


def _declared(
    vocabulary: Vocabulary, id: int, name: str, declaration: ClassDeclaration, colour: tuple[int, int, int]
) -> Structure:
    unknown = [f"group {g!r}" for g in declaration.groups if g not in {*vocabulary.groups, DECLARED} - {DUMMIES}]
    if declaration.region not in {*vocabulary.regions, "any"}:
        unknown.append(f"region {declaration.region!r}")
    if declaration.host is not None and declaration.host not in {*vocabulary.groups, *vocabulary.names}:
        unknown.append(f"host {declaration.host!r}")
    if unknown:
        raise InvalidConfigError(f"class {name!r} names the {unknown[0]}, which is not in the vocabulary")
    return Structure(
        id=id,
        name=name,
        groups=declaration.groups,
        region=declaration.region,
        host=declaration.host,
        colour=colour,
        hu=declaration.hu or vocabulary.structure("body").hu,
    )


def _derived_colour(id: int, taken: Collection[tuple[int, int, int]]) -> tuple[int, int, int]:
    """A bright colour that only this id gives and no structure of the vocabulary has."""
    hue, shade = (id * GOLDEN_RATIO) % 1.0, 0
    while True:
        red, green, blue = (round(255 * c) for c in hsv_to_rgb(hue, 0.75, 1.0 - 0.02 * shade))
        if (red, green, blue) not in taken:
            return red, green, blue
        shade += 1


@lru_cache(maxsize=1)
def load_vocabulary() -> Vocabulary:
    """The vocabulary that ships with the package."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = files("maisi.anatomy").joinpath("vocabulary.yaml").read_text(encoding="utf-8")
    return Vocabulary.model_validate(yaml.load(text, Loader=loader))


def folded(name: str) -> str:
    """A name as names are compared: in small letters, with spaces for underscores."""
    return " ".join(name.replace("_", " ").lower().split())


def _unknown_name(name: str, known: Iterable[str], kind: str = "structure") -> str:
    close = get_close_matches(folded(name), list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see vocabulary.yaml"
    return f"unknown {kind} {name!r}; {hint}"


def id_ranges(ids: Iterable[int]) -> str:
    """Ascending ids in words: 1-153, 200-206."""
    spans: list[list[int]] = []
    for id in ids:
        if spans and id == spans[-1][1] + 1:
            spans[-1][1] = id
        else:
            spans.append([id, id])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
