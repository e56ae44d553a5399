"""The vocabulary of anatomy: every structure that a label map may hold, read from `vocabulary.yaml`."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from maisi.errors import InvalidLabelsError
from maisi.shapes import Frozen

BACKGROUND = 0
DUMMIES = "dummies"


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


class Vocabulary(Frozen):
    """All structures and the rules of the body; names are looked up in it, never written as numbers elsewhere."""

    version: str
    regions: dict[str, Region]
    tissues: dict[str, tuple[float, float]]
    body: BodyRules
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
                    names.setdefault(_folded(name), structure.id)
        return names

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
            raise InvalidLabelsError(f"label id {key} is not in the vocabulary; ids are {_ranges(self.ids)}")
        return self._by_id[int(key)]

    def id(self, name: str) -> int:
        """The id of a structure by its exact name here; raises InvalidLabelsError."""
        return self.structure(name).id

    def name(self, id: int) -> str:
        """The name of a structure by its id; raises InvalidLabelsError."""
        return self.structure(int(id)).name

    def find(self, name: str) -> int:
        """The id of a structure by any of its names (TotalSegmentator, VISTA-3D, OpenKBP, ...), in any case."""
        found = self._by_alias.get(_folded(name))
        if found is None:
            raise InvalidLabelsError(_unknown_name(name, self._by_alias))
        return found

    def knows(self, name: str) -> bool:
        """Whether `find` has an answer."""
        return _folded(name) in self._by_alias

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

    def check_ids(self, labels: np.ndarray | Iterable[int]) -> tuple[int, ...]:
        """The ids present besides 0, ascending; raises InvalidLabelsError on an id that is not in the vocabulary."""
        present = np.unique(labels if isinstance(labels, np.ndarray) else np.array(list(labels)))
        if present.dtype.kind == "f" and not np.array_equal(present, np.round(present)):
            fraction = present[present != np.round(present)][0]
            raise InvalidLabelsError(f"labels must be whole numbers; found {fraction}")
        unknown = [int(id) for id in present if id != BACKGROUND and int(id) not in self._by_id]
        if unknown:
            shown = ", ".join(map(str, unknown[:12])) + (f" and {len(unknown) - 12} more" if len(unknown) > 12 else "")
            raise InvalidLabelsError(
                f"label ids {shown} are not in the vocabulary; accepted are 0 (background) and {_ranges(self.ids)}"
            )
        return tuple(int(id) for id in present if id != BACKGROUND)

    def translate(self, labels: np.ndarray, names: Mapping[int, str], *, drop: Collection[str] = ()) -> np.ndarray:
        """Labels numbered by someone else in our ids, uint8.

        `names` says what each foreign id is; those named in `drop` become background. Raises InvalidLabelsError on
        a foreign id without a name and on a name that `find` does not know.
        """
        present, where = np.unique(labels, return_inverse=True)
        ours = np.zeros(len(present), np.uint8)
        for k, id in enumerate(present):
            if int(id) == BACKGROUND:
                continue
            if int(id) not in names:
                raise InvalidLabelsError(f"label id {id} has no name; named are {_ranges(sorted(names))}")
            name = names[int(id)]
            ours[k] = BACKGROUND if name in drop else self.find(name)
        return ours[where].reshape(labels.shape)


@lru_cache(maxsize=1)
def load_vocabulary() -> Vocabulary:
    """The vocabulary that ships with the package."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = files("maisi.anatomy").joinpath("vocabulary.yaml").read_text(encoding="utf-8")
    return Vocabulary.model_validate(yaml.load(text, Loader=loader))


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _unknown_name(name: str, known: Iterable[str], kind: str = "structure") -> str:
    close = get_close_matches(_folded(name), list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see vocabulary.yaml"
    return f"unknown {kind} {name!r}; {hint}"


def _ranges(ids: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for id in ids:
        if spans and id == spans[-1][1] + 1:
            spans[-1][1] = id
        else:
            spans.append([id, id])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
