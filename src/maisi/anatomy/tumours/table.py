"""`tumours.yaml`: how each tumour grows and moves."""

from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import Field

from maisi.anatomy.lesions import lesion_ids
from maisi.anatomy.vocabulary import Vocabulary, folded
from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen

Shape = Literal["elastic", "growth", "lumen"]


class Moves(Frozen):
    """How far a given tumour is varied: mm, degrees about x, y and z, and shares; see `tumours.yaml`."""

    shift: float = Field(ge=0)
    turn: tuple[float, float, float]
    scale: float = Field(ge=0, lt=1)
    bend: float = Field(ge=0)
    keep: float = Field(gt=0, le=1)


class Tumour(Frozen):
    """One row of `tumours.yaml`, lengths in mm."""

    name: str
    also: tuple[str, ...] = ()
    shape: Shape
    diameter: tuple[float, float]
    margin: float = Field(ge=0)
    bulge: float = Field(default=0.0, ge=0)
    within: Literal["structure", "side", "union"]
    moves: Moves


class _Table(Frozen):
    tumours: tuple[Tumour, ...]


@lru_cache(maxsize=1)
def tumour_rows() -> dict[str, Tumour]:
    """The rows of the table by the name that the vocabulary has for the tumour."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = files("maisi.anatomy").joinpath("tumours.yaml").read_text(encoding="utf-8")
    return {row.name: row for row in _Table.model_validate(yaml.load(text, Loader=loader)).tumours}


def tumour_named(tumour: str | int, vocabulary: Vocabulary) -> Tumour:
    """The row of a tumour by its id or any of its names; raises InvalidRequestError with the nearest that there are.

    A lesion of the vocabulary without a row, such as a cyst or a class that a bundle declares with a host, grows and
    moves like a hepatic tumour.
    """
    id = _id(tumour, vocabulary)
    name = None if id is None else vocabulary.name(id)
    if name in tumour_rows():
        return tumour_rows()[name]
    if id is not None and id in lesion_ids(vocabulary) and vocabulary.structure(id).host is not None:
        return tumour_rows()["hepatic tumor"].model_copy(update={"name": name, "also": ()})
    raise InvalidRequestError(_unknown(tumour, name))


def _id(tumour: str | int, vocabulary: Vocabulary) -> int | None:
    if not isinstance(tumour, str):
        return int(tumour) if int(tumour) in vocabulary.ids else None
    for row in tumour_rows().values():
        if _spelt(tumour) in {_spelt(name) for name in (row.name, *row.also)}:
            return vocabulary.id(row.name)
    return vocabulary.find(tumour) if vocabulary.knows(tumour) else None


def _spelt(name: str) -> str:
    return folded(name).replace("tumour", "tumor").replace("-", " ")


def _unknown(tumour: str | int, name: str | None) -> str:
    known = {_spelt(each): row.name for row in tumour_rows().values() for each in (row.name, *row.also)}
    close = [] if name else get_close_matches(_spelt(str(tumour)), known, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(repr(known[each]) for each in dict.fromkeys(close))}? " if close else ""
    wrong = f"{name} is no tumour" if name else f"unknown tumour {tumour!r}"
    return f"{wrong}; {hint}accepted: {', '.join(tumour_rows())}"
