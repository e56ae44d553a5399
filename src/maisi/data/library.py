"""A library of label maps: a folder of them with an index that says what each shows, and whose it is.

`library.jsonl` has a line for each map of `maps/`: what is asked of a library is answered from it alone. Beside each
map lies a small one, by which maps are compared.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pydantic import Field, ValidationError

from maisi.anatomy.likeness import Likeness
from maisi.anatomy.places import footprints
from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.variation import variation_rules
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.label_maps import Split
from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.shapes import Frozen, Size3, Spacing3
from maisi.space.files import write_labels
from maisi.space.label_files import read_labels
from maisi.space.volume import LabelMap
from maisi.storage.atomic import write_atomically

INDEX, MAPS = "library.jsonl", "maps"
SMALL = "small"  # in the folder of maps, the same as they are compared
KEPT_MAPS, KEPT_LIKENESSES = 8, 512
PEOPLE = Path(__file__).parent / "people"
"""The library that ships with the package."""


class LibraryEntry(Frozen):
    """What the index says of a map; structures by name with their volumes in ml, lengths in mm."""

    id: str
    patient: str = ""
    sum: str = Field(description="SHA-256 of the ids, the shape and the spacing.")
    span: tuple[str, str]
    structures: dict[str, float]
    cut: tuple[str, ...] = ()  # those that the border of the map cuts
    shape: Size3
    spacing_mm: Spacing3
    licence: str = ""
    source: str = ""
    split: Split = "training"

    @property
    def fov_mm(self) -> Spacing3:
        x, y, z = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def lesions(self) -> tuple[str, ...]:
        """The tumours and cysts that the map shows."""
        groups = {*load_vocabulary().group("tumours"), *load_vocabulary().group("cysts")}
        return tuple(name for name in self.structures if load_vocabulary().id(name) in groups)

    @property
    def regions(self) -> tuple[str, ...]:
        """All regions that the map shows, from top to bottom."""
        return tuple(region.name.lower() for region in RegionSpan.named(*self.span).regions)


def entry_of(
    labels: LabelMap, id: str, span: RegionSpan, *, patient: str = "", licence: str = "", source: str = "", split: Split
) -> LibraryEntry:
    """What the index is to say of a map."""
    vocabulary, found = load_vocabulary(), footprints(labels)
    return LibraryEntry(
        id=id,
        patient=patient,
        sum=sum_of(labels),
        span=(span.top.name.lower(), span.bottom.name.lower()),
        structures={vocabulary.name(each): round(footprint.ml, 3) for each, footprint in sorted(found.items())},
        cut=tuple(vocabulary.name(each) for each, footprint in sorted(found.items()) if any(footprint.is_cut)),
        shape=labels.grid.shape,
        spacing_mm=labels.grid.spacing,
        licence=licence,
        source=source,
        split=split,
    )


def sum_of(labels: LabelMap) -> str:
    """SHA-256 of what a map shows, wherever it lies."""
    told = f"{labels.grid.shape} {tuple(round(s, 4) for s in labels.grid.spacing)}".encode()
    return hashlib.sha256(told + labels.array.astype("uint8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Library:
    """The maps of a folder."""

    folder: Path
    entries: tuple[LibraryEntry, ...]

    @classmethod
    def read(cls, folder: Path) -> "Library":
        """The library of a folder; raises `InvalidRequestError` where there is none, `InvalidConfigError` for a line
        that is none of an index.
        """
        index = folder / INDEX
        if not index.is_file():
            raise InvalidRequestError(f"no library in {folder}: it has no {INDEX}; maisi labels library add makes one")
        entries = []
        for number, line in enumerate(filter(None, index.read_text(encoding="utf-8").split("\n")), start=1):
            try:
                entries.append(LibraryEntry.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise InvalidConfigError(f"{index}, line {number}: {where}: {first['msg']}") from error
        return cls(folder, tuple(entries))

    def labels(self, entry: LibraryEntry) -> LabelMap:
        """The map of an entry."""
        return _kept_map(self.folder / MAPS / f"{entry.id}.nii.gz", entry.sum)

    def likeness(self, entry: LibraryEntry) -> Likeness:
        """The map of an entry as maps are compared."""
        small = self.folder / MAPS / SMALL / f"{entry.id}.nii.gz"
        return _kept_likeness(small if small.is_file() else self.folder / MAPS / f"{entry.id}.nii.gz", entry.sum)

    def nearest(self, labels: LabelMap, own: LibraryEntry) -> tuple[float, LibraryEntry]:
        """The distance to the nearest map of the library, and that map; `own` is the one that `labels` come from.

        Compared are the maps whose volumes let them be nearest, see `variation.yaml`; for a large library that is a
        bound by what is likely, not by what is possible.
        """
        mine = Likeness.of(labels)
        best = mine.distance(self.likeness(own)), own
        others = [each for each in self.entries if each.id != own.id]
        for bound, other in sorted(((mine.least_distance(_volumes(e)), e) for e in others), key=lambda pair: pair[0])[
            : variation_rules().compared
        ]:
            if bound >= best[0]:
                break
            best = min(best, (mine.distance(self.likeness(other)), other), key=lambda pair: pair[0])
        return best


def _volumes(entry: LibraryEntry) -> dict[int, float]:
    return {load_vocabulary().id(name): ml for name, ml in entry.structures.items()}


@lru_cache(maxsize=KEPT_MAPS)
def _kept_map(path: Path, sum: str) -> LabelMap:
    labels = read_labels(path)
    if sum_of(labels) != sum:
        raise InvalidConfigError(f"{path} is not the map that the index tells of; accepted: the library as it was made")
    return labels


@lru_cache(maxsize=KEPT_LIKENESSES)
def _kept_likeness(path: Path, sum: str) -> Likeness:
    return Likeness.of(read_labels(path))


# Adding -----------------------------------------------------------------------------------------------------------


def add_map(folder: Path, labels: LabelMap, entry: LibraryEntry) -> None:
    """Write a map, the small one, and its line; the line comes last, and `write_index` makes the index of all lines."""
    maps = folder / MAPS
    (maps / SMALL).mkdir(parents=True, exist_ok=True)
    write_labels(labels, maps / f"{entry.id}.nii.gz")
    write_labels(Likeness.of(labels).labels, maps / SMALL / f"{entry.id}.nii.gz")
    with write_atomically(maps / f"{entry.id}.json") as temporary:
        temporary.write_text(entry.model_dump_json(indent=1) + "\n", encoding="utf-8")


def lines_of(folder: Path) -> tuple[LibraryEntry, ...]:
    """The entries of all maps that were added, in the order of ids."""
    lines = sorted((folder / MAPS).glob("*.json"))
    return tuple(LibraryEntry.model_validate_json(line.read_text(encoding="utf-8")) for line in lines)


def ids_of(folder: Path) -> set[str]:
    """The ids of all maps that were added, in small letters: some disks do not tell A from a."""
    return {line.name.removesuffix(".json").casefold() for line in (folder / MAPS).glob("*.json")}


def write_index(folder: Path) -> Path:
    """Write the index of all maps that were added, by another process at the same time too."""
    index, entries = folder / INDEX, None
    while entries != (entries := lines_of(folder)):
        with write_atomically(index) as temporary:
            lines = (json.dumps(entry.model_dump(mode="json"), ensure_ascii=False) for entry in entries)
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return index


# Asking -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """What maps are to show: a region, structures by name (one of these ids each), a share of a field of view (mm).

    `whole` are ids that the border of a map may not cut.
    """

    region: str | None = None
    structures: Mapping[str, frozenset[int]] = field(default_factory=dict)
    whole: frozenset[int] = frozenset()
    fov_mm: Spacing3 | None = None
    split: Split | None = None

    def lacks(self, entry: LibraryEntry) -> str:
        """Why a map is none that is wanted, in words; nothing where it is one."""
        if self.split is not None and entry.split != self.split:
            return f"for {entry.split}"
        if self.region is not None and not _shows(entry, self.region):
            return f"without {self.region}"
        for name, ids in self.structures.items():
            if not _names(ids) & entry.structures.keys():
                return f"without {name}"
        cut = sorted(_names(self.whole) & {*entry.cut})
        if cut:
            return f"with {cut[0]} cut by the border"
        if self.cover(entry) < variation_rules().covered:
            return "too small for the field of view"
        return ""

    def cover(self, entry: LibraryEntry) -> float:
        """The share of the wanted field of view that a map covers, on the axis where it covers least."""
        if self.fov_mm is None:
            return 1.0
        return min(min(1.0, have / want) for have, want in zip(entry.fov_mm, self.fov_mm, strict=True))


@dataclass(frozen=True)
class Origin:
    """Where a drawn map is from: a map of a library, and which of all its maps is nearest, how far (0 to 1)."""

    entry: LibraryEntry
    nearest: LibraryEntry
    distance: float

    def __str__(self) -> str:
        return f"{self.entry.id}, bent; {self.distance:.2f} from the nearest map, {self.nearest.id}"


def _shows(entry: LibraryEntry, region: str) -> bool:
    """Whether a map shows enough of a region: a good part of one of its markers, where it has any of them."""
    vocabulary = load_vocabulary()
    usual = {name: vocabulary.places_by_id[vocabulary.id(name)].ml[0] for name in _placed_markers(region)}
    shares = [entry.structures[name] / ml for name, ml in usual.items() if name in entry.structures]
    return region in entry.regions and (not shares or max(shares) >= variation_rules().region_share)


def _placed_markers(region: str) -> list[str]:
    vocabulary = load_vocabulary()
    return [name for name in vocabulary.regions[region].markers if vocabulary.id(name) in vocabulary.places_by_id]


def _names(ids: Iterable[int]) -> set[str]:
    return {load_vocabulary().name(id) for id in ids}


def matching(entries: Iterable[LibraryEntry], wanted: Wanted) -> tuple[LibraryEntry, ...]:
    """The maps that show what is wanted; raises `InvalidRequestError` where there is none, with why not."""
    entries = tuple(entries)
    reasons = {entry.id: wanted.lacks(entry) for entry in entries}
    found = tuple(entry for entry in entries if not reasons[entry.id])
    if not found:
        counts = Counter(reasons.values()).most_common(4)
        raise InvalidRequestError(
            f"none of the {len(entries)} maps of the library fits: "
            + ", ".join(f"{count} {reason}" for reason, count in counts)
            + "; accepted: another region, structures or field of view, or more maps"
        )
    return found
