"""Whose numbers a label map uses: names for the ids of other tools, data sets and files, and the way into our ids."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from maisi.anatomy.places import Footprint, misplacements, unlikeness
from maisi.anatomy.vocabulary import BACKGROUND, Vocabulary, folded, id_ranges
from maisi.errors import InvalidConfigError
from maisi.shapes import Frozen
from maisi.space.checks import bad_labels
from maisi.space.reading import Finding
from maisi.space.volume import LabelMap, id_counts
from maisi.storage.folders import user_path

OURS = "maisi"
VISTA3D = "vista3d"
LARGEST_ID = 65535
_NO_STRUCTURE = ("background", "unlabelled", "unlabeled", "ignore", "clear label", "void")
MUCH_BETTER = 0.1  # a numbering fits when it leaves at most this share of what is out of place
WITHOUT_PLACE = -1
MANY = 10  # numberings of fewer names fit many maps by chance, and are not proposed
_NUM_SHOWN = 8


class Numbering(Frozen):
    """What the ids of a label map mean: a name for each id but 0."""

    name: str
    title: str
    names: dict[int, str]

    @property
    def ids(self) -> tuple[int, ...]:
        """Every id that has a name, ascending."""
        return tuple(sorted(self.names))


class _Table(Frozen):
    """`numberings.yaml`."""

    numberings: dict[str, dict[str, Any]]
    taken_as: dict[str, str]
    of_one_organ: dict[str, dict[str, str]]
    without_place: tuple[str, ...]


def numbering_names() -> tuple[str, ...]:
    """The numberings that are known by name."""
    return (OURS, VISTA3D, *_table().numberings)


def find_numbering(said: str, vocabulary: Vocabulary) -> Numbering:
    """The numbering of that name, or of that JSON or YAML file.

    A file says `{id: name}` or `{name: id}`, alone or as `labels` of a dataset.json (MONAI, Medical Segmentation
    Decathlon, nnU-Net). Raises InvalidConfigError for anything else.
    """
    if said == OURS:
        return Numbering(name=OURS, title="MAISI", names={s.id: s.name for s in vocabulary.structures})
    if said == VISTA3D:
        names = {s.id: s.vista for s in vocabulary.structures if s.vista is not None}
        return Numbering(name=VISTA3D, title="VISTA-3D", names=names)
    if said in _table().numberings:
        row = _table().numberings[said]
        return Numbering(name=said, title=row["title"], names=dict(enumerate(row["names"], start=1)))
    path = user_path(said)
    if path.is_file():
        return Numbering(name=said, title=path.name, names=_names_in(path))
    close = get_close_matches(said.lower(), numbering_names(), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise InvalidConfigError(
        f"no numbering or file {said!r}; {hint}accepted: {', '.join(numbering_names())}, or a JSON or YAML file of "
        "{id: name}"
    )


def in_our_ids(
    labels: LabelMap, numbering: Numbering, vocabulary: Vocabulary, path: Path
) -> tuple[LabelMap, tuple[Finding, ...]]:
    """The label map in our ids, uint8, and what became of names that our vocabulary lacks.

    Raises InvalidLabelsError, with number, count and place, on an id without a name and on a name that neither the
    vocabulary nor `numberings.yaml` knows.
    """
    counts = id_counts(labels.array)
    present = [int(id) for id in np.flatnonzero(counts) if id != BACKGROUND]
    nameless = [id for id in present if id not in numbering.names]
    if nameless:
        raise bad_labels(
            path,
            f"ids without a name in the numbering {numbering.name}: {_listed(nameless, counts, labels)}",
            f"0 and {id_ranges(numbering.ids)}; --numbering NAME or FILE says what other numbers mean",
        )
    if numbering.name == OURS:
        return LabelMap(labels.array.astype(np.uint8, copy=False), labels.grid), ()
    every = meanings(numbering, vocabulary)
    found = {id: every[id] for id in present}
    unknown = [id for id, ours in found.items() if ours is None]
    if unknown:
        raise bad_labels(
            path,
            f"names that the vocabulary does not know: {_listed(unknown, counts, labels, numbering)}",
            "names of our vocabulary, TotalSegmentator or VISTA-3D; a numbering FILE may call an id by the name of "
            "another structure, 'body', or 'background' to leave it out",
        )
    return _renumbered(
        labels, counts, numbering, {id: ours for id, ours in found.items() if ours is not None}, vocabulary
    )


def meaning(name: str, vocabulary: Vocabulary) -> int | None:
    """Our id for a name from anywhere: 0 for background, -1 for what has no place here, None for a name unknown."""
    key = folded(name)
    if key in _NO_STRUCTURE:
        return BACKGROUND
    if vocabulary.knows(name):
        return vocabulary.find(name)
    if key in _taken_as():
        return vocabulary.find(_taken_as()[key])
    return WITHOUT_PLACE if key in _without_place() else None


def meanings(numbering: Numbering, vocabulary: Vocabulary) -> dict[int, int | None]:
    """What `meaning` gives for each id of a numbering, where words such as "tumor" are those of its one organ."""
    words = _words_of_one_organ(numbering)
    found = {id: meaning(name, vocabulary) for id, name in numbering.names.items()}
    return {
        id: meaning(words.get(folded(numbering.names[id]), ""), vocabulary) if ours is None else ours
        for id, ours in found.items()
    }


def _words_of_one_organ(numbering: Numbering) -> dict[str, str]:
    """What the words that name no organ mean in a numbering of one: that of its other names, else of its title."""
    table = _table().of_one_organ
    words = {word for each in table.values() for word in each}
    others = {folded(name) for name in numbering.names.values()} - words - {*_NO_STRUCTURE}
    if others:
        organs = [organ for organ in table if others <= {organ, f"{organ}s"}]
    else:
        organs = [organ for organ in table if organ in numbering.title.lower()]
    return table[organs[0]] if len(organs) == 1 else {}


def fitting_numberings(
    found: Mapping[int, Footprint], taken: Numbering, vocabulary: Vocabulary, middle: float | None = None
) -> tuple[str, ...]:
    """The numberings by which the structures lie where they can, or nearly so, when by the one taken they do not."""
    others = [find_numbering(name, vocabulary) for name in numbering_names() if name != taken.name]
    placed = {
        each.name: _footprints_in(found, each, vocabulary)
        for each in others
        if len(each.names) >= MANY and found.keys() <= each.names.keys()
    }
    wrong = {name: len(misplacements(shown, vocabulary, middle)) for name, shown in placed.items()}
    fewest = min(wrong.values(), default=0)
    allowed = 0.0
    if found.keys() <= taken.names.keys():
        allowed = MUCH_BETTER * len(misplacements(_footprints_in(found, taken, vocabulary), vocabulary, middle))
    if fewest > allowed:
        return ()
    unlike = {name: unlikeness(placed[name], vocabulary) for name, count in wrong.items() if count == fewest}
    return tuple(name for name, far in unlike.items() if far <= min(unlike.values()) + 0.5)


def _footprints_in(
    found: Mapping[int, Footprint], numbering: Numbering, vocabulary: Vocabulary
) -> dict[int, Footprint]:
    parts: dict[int, list[Footprint]] = {}
    ours = meanings(numbering, vocabulary)
    for id, footprint in found.items():
        parts.setdefault(ours[id] or 0, []).append(footprint)
    return {id: Footprint.joined(group) for id, group in parts.items() if id > 0}


def _renumbered(
    labels: LabelMap, counts: np.ndarray, numbering: Numbering, ours_of: Mapping[int, int], vocabulary: Vocabulary
) -> tuple[LabelMap, tuple[Finding, ...]]:
    body = vocabulary.id("body")
    rest = body if body in ours_of.values() else BACKGROUND
    table = np.zeros(len(counts), np.uint8)
    for id, ours in ours_of.items():
        table[id] = rest if ours == WITHOUT_PLACE else ours
    findings = [Finding(topic="numbering", found=f"the numbers of {numbering.title}", decided="turned into MAISI's")]
    lacking = [id for id, ours in ours_of.items() if ours == WITHOUT_PLACE]
    if lacking:
        what = _listed(lacking, counts, labels, numbering)
        became = "taken as body" if rest == body else "left without a label, as the map has no body"
        findings.append(
            Finding(topic="numbering", found=f"no place in the vocabulary for {what}", decided=became, is_warning=True)
        )
    approximate = [id for id in ours_of if folded(numbering.names[id]) in _taken_as()]
    if approximate:
        what = ", ".join(f"{numbering.names[id]} as {vocabulary.name(ours_of[id])}" for id in approximate)
        findings.append(Finding(topic="numbering", found="names for parts of our structures", decided=f"taken {what}"))
    words = _words_of_one_organ(numbering)
    by_organ = [id for id, ours in ours_of.items() if folded(numbering.names[id]) in words and ours > 0]
    if by_organ:
        what = ", ".join(f"{numbering.names[id]} as {vocabulary.name(ours_of[id])}" for id in by_organ)
        findings.append(
            Finding(topic="numbering", found="names that tell no organ, in a map of one", decided=f"taken {what}")
        )
    left_out = [id for id, ours in ours_of.items() if ours == BACKGROUND]
    if left_out:
        what = _listed(left_out, counts, labels, numbering)
        findings.append(Finding(topic="numbering", found=f"{what}, which is no structure", decided="left out"))
    return LabelMap(table[labels.array], labels.grid), tuple(findings)


def _listed(ids: list[int], counts: np.ndarray, labels: LabelMap, numbering: Numbering | None = None) -> str:
    """Ids with name, number of voxels and one place each."""
    shown = []
    for id in ids[:_NUM_SHOWN]:
        called = f" ({numbering.names[id]})" if numbering else ""
        where = np.unravel_index(int(np.argmax(labels.array.reshape(-1) == id)), labels.array.shape)
        x, y, z = labels.grid.world(np.array(where))
        shown.append(f"{id}{called}, {counts[id]} voxels, one at ({x:.1f}, {y:.1f}, {z:.1f}) mm")
    more = [f"and {len(ids) - _NUM_SHOWN} more ({id_ranges(ids[_NUM_SHOWN:])})"] if len(ids) > _NUM_SHOWN else []
    return "; ".join(shown + more)


def _names_in(path: Path) -> dict[int, str]:
    """The names of the ids that a file declares, without 0."""
    try:
        text = path.read_text(encoding="utf-8")
        content = _parsed(text, path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InvalidConfigError(
            f"{path} is not a numbering: no JSON or YAML ({str(error).splitlines()[0]})"
        ) from error
    labels = content.get("labels", content) if isinstance(content, dict) else content
    if not isinstance(labels, dict) or not labels:
        raise _bad_numbering(path, f"a {type(labels).__name__} where the names of the ids should be")
    pairs = [_pair(key, value, path) for key, value in labels.items()]
    ids = [id for id, _ in pairs]
    twice = sorted({id for id in ids if ids.count(id) > 1})
    if twice:
        raise _bad_numbering(path, f"more than one name for {id_ranges(twice)}")
    return {id: name for id, name in pairs if id != BACKGROUND}


def _parsed(text: str, path: Path) -> Any:
    """What a JSON or YAML text says; refused where one key stands twice, of which the parsers would drop the first."""
    if path.suffix.lower() == ".json":
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, path))
    node = yaml.compose(text, Loader=yaml.BaseLoader)
    maps = [node] if isinstance(node, yaml.MappingNode) else []
    for each in maps:
        _once([(str(key.value), None) for key, _ in each.value], path)
        maps += [value for _, value in each.value if isinstance(value, yaml.MappingNode)]
    return yaml.load(text, Loader=yaml.BaseLoader)


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise _bad_numbering(path, f"more than one entry for {', '.join(twice)}")
    return dict(pairs)


def _pair(key: Any, value: Any, path: Path) -> tuple[int, str]:
    key_id, value_id = _whole(key), _whole(value)
    if (key_id is None) == (value_id is None):
        raise _bad_numbering(path, f"the entry {_shown(key)}: {_shown(value)}")
    id, name = (key_id, value) if key_id is not None else (value_id, key)
    if id is None or not 0 <= id <= LARGEST_ID or not isinstance(name, str) or not name.strip():
        raise _bad_numbering(path, f"the entry {_shown(key)}: {_shown(value)}")
    return id, name


def _shown(said: Any) -> str:
    return repr(said)[:80] if isinstance(said, str | int | float | None) else f"a {type(said).__name__}"


def _whole(said: Any) -> int | None:
    if isinstance(said, str) and said.strip().isascii() and said.strip().isdigit() and len(said) < 10:
        return int(said)
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def _bad_numbering(path: Path, found: str) -> InvalidConfigError:
    return InvalidConfigError(
        f"{path} is not a numbering: found {found}; accepted: {{id: name}} or {{name: id}} with one whole number from "
        f"0 to {LARGEST_ID} and one name each, alone or as 'labels' of a dataset.json"
    )


@lru_cache(maxsize=1)
def _table() -> _Table:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = files("maisi.anatomy").joinpath("numberings.yaml").read_text(encoding="utf-8")
    return _Table.model_validate(yaml.load(text, Loader=loader))


@lru_cache(maxsize=1)
def _taken_as() -> dict[str, str]:
    return {folded(name): ours for name, ours in _table().taken_as.items()}


@lru_cache(maxsize=1)
def _without_place() -> frozenset[str]:
    return frozenset(folded(name) for name in _table().without_place)
