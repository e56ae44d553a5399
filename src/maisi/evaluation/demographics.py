"""Figures of a report by group of patients: is one group served worse, and can that be said at all?

Groups come from a column of the manifest. The largest of several differences is never 0 by itself: the gap between the
best and the worst group is tested by permutation, and its interval is one of all differences at once.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from scipy import stats

from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError
from maisi.evaluation.representation import LEVEL, Representation, Verdict
from maisi.evaluation.segmentation import Interval, interval, of_patients
from maisi.shapes import Frozen

FIELDS = ("group", "region", "split", "modality", "source")  # of a case, besides its attributes
HIGHER, LOWER = ("dice", "surface_dice", "psnr_db", "ssim"), ("hd95_mm", "mae_hu", "lpips", "edges")
PERMUTATIONS = 999
ROUNDING = 1e-12  # differences of means up to it are none
MOST_VALUES = 6  # that are groups by themselves; of more numbers thirds are made
YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 1 / 52.18, "D": 1 / 365.25}  # units of a DICOM age

Numbers = dict[str, dict[str, float]]
"""Values of cases (by id) of each figure (by name)."""


class GroupFigure(Frozen):
    """A figure in one group: its mean over patients, None where they are too few."""

    patients: int
    mean: Interval | None


class Gap(Frozen):
    """Best less worst mean, its 95 % interval, and how often chance makes one as large (permutation).

    The interval holds for the differences of all pairs of groups at once (Tamhane's T2, 1977).
    """

    best: str | None = Field(description="None where all means are the same.")
    worst: str | None
    difference: float
    low: float
    high: float
    p: float


class FigureByGroup(Frozen):
    """A figure in all groups; `best` and `worst` are by its meaning, of one without a direction highest and lowest."""

    name: str
    better: Literal["higher", "lower"] | None
    groups: dict[str, GroupFigure]
    gap: Gap | None
    verdict: Verdict


class Share(Frozen):
    """How many cases a group has, in the manifest and in the report."""

    manifest: int
    report: int


class DemographicsReport(Frozen):
    """A report by groups of patients."""

    version: int = 3
    report: str | None = None
    by: str
    least: int
    groups: dict[str, Share]
    figures: tuple[FigureByGroup, ...] = ()
    representation: Representation | None = None
    conditions: tuple[str, ...] | None = Field(
        default=None, description="What the bundle can be asked for when it generates; None without a bundle."
    )
    notes: tuple[str, ...] = ()


def read_numbers(path: Path) -> Numbers:
    """The numbers of each case in a report, by figure: a list `cases` (or `generated`) of objects with `id` or `name`.

    Numbers within objects have names with dots; where cases are of a `set`, that comes first. NaN and infinity are
    among them. Raises `InvalidRequestError` for a file without any.
    """
    accepted = "accepted: labels.json, autoencoder.json or memorization.json of `maisi evaluate`, or JSON with a list "
    accepted += "'cases' of objects with 'id' and numbers"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidRequestError(f"no report at {path}; {accepted}") from error
    except (IsADirectoryError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidRequestError(f"{path} is no report in JSON; {accepted}") from error
    entries = _entries(content) if isinstance(content, dict) else None
    found: Numbers = {}
    for entry in entries if isinstance(entries, list) else []:
        id = (entry.get("id") or entry.get("name")) if isinstance(entry, dict) else None
        if not isinstance(id, str):
            continue
        prefix = (entry["set"],) if isinstance(entry.get("set"), str) else ()
        for name, value in _numbers_in(entry, prefix):
            found.setdefault(name, {})[id] = value
    if not found:
        raise InvalidRequestError(f"{path} has no numbers of cases; {accepted}")
    return found


def _entries(content: dict[str, Any]) -> Any:
    """The cases of a report; of copies, those of volumes or else of label maps."""
    parts = [content.get("images"), content.get("labels")]
    generated = [part["generated"] for part in parts if isinstance(part, dict) and "generated" in part]
    return content.get("cases") or next(iter(generated), None)


def _numbers_in(value: Any, path: tuple[str, ...]) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [each for key, inner in value.items() for each in _numbers_in(inner, (*path, key))]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [(".".join(path), float(value))] if is_number else []


def chosen_figures(numbers: Numbers, patterns: Sequence[str]) -> Numbers:
    """The figures whose names fit a pattern, without any those of which it is known what is better.

    Raises `InvalidRequestError` where none is left.
    """
    found = {
        name: values
        for name, values in numbers.items()
        if (any(fnmatchcase(name, pattern) for pattern in patterns) if patterns else _better(name) is not None)
    }
    if not found:
        wanted = f"none fits {', '.join(patterns)}" if patterns else "of none it is known what is better"
        raise InvalidRequestError(
            f"{wanted}; accepted: --figures with names of them, such as {', '.join(list(numbers)[:8])}"
        )
    return found


def _better(name: str) -> Literal["higher", "lower"] | None:
    last = name.rpartition(".")[2]
    return "higher" if last in HIGHER else "lower" if last in LOWER else None


def group_cases(cases: Sequence[Case], by: str, edges: Sequence[float] = ()) -> dict[str, str]:
    """The group of each case that the column tells, by id; numbers (and ages as DICOM writes them) go into bands.

    Without `edges` numbers of more than six values are divided into thirds. Raises `InvalidRequestError` for a column
    that no case has, and for edges and values that are no numbers.
    """
    values = {case.id: value for case in cases if (value := _value(case, by))}
    if not values:
        columns = sorted({*FIELDS, *(name for case in cases for name in case.attributes)})
        close = get_close_matches(by, columns, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InvalidRequestError(f"no case has the column {by!r}; {hint}columns: {', '.join(columns)}")
    numbers = {id: _number(value) for id, value in values.items()}
    strange = [values[id] for id, number in numbers.items() if number is None]
    if edges and strange:
        raise InvalidRequestError(f"bands are of numbers, and {by!r} has {strange[0]!r}")
    told = {id: number for id, number in numbers.items() if number is not None}
    if edges:
        return _bands(told, sorted(edges))
    if strange or len(set(told.values())) <= MOST_VALUES:
        return values
    return _bands(told, [float(f"{edge:.3g}") for edge in np.quantile(list(told.values()), [1 / 3, 2 / 3])])


def _value(case: Case, by: str) -> str:
    return case.attributes.get(by, "") or (str(getattr(case, by)) if by in FIELDS else "")


def _number(value: str) -> float | None:
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*([YMWD]?)", value.strip().upper())
    return None if match is None else float(match[1]) * YEARS[match[2]]


def _bands(numbers: Mapping[str, float], edges: Sequence[float]) -> dict[str, str]:
    names = [f"under {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(edges))]
    names.append(f"{edges[-1]:g} and over")
    return {id: names[int(np.searchsorted(edges, number, side="right"))] for id, number in numbers.items()}


@dataclass(frozen=True)
class Grouping:
    """The column, the group of each case, and how many patients a statement needs."""

    by: str
    groups: Mapping[str, str]
    least: int = 5
    seed: int = 0


def by_group(name: str, numbers: Numbers, cases: Sequence[Case], grouping: Grouping) -> DemographicsReport:
    """The figures of the report `name` by group. Patients count: values of one patient in a group are averaged.

    Values that are not finite are left out, which a note says.
    Raises `InvalidRequestError` where no case of the report is in the manifest.
    """
    patients, told = {case.id: case.patient or case.id for case in cases}, grouping.groups
    reported = list(dict.fromkeys(id for values in numbers.values() for id in values))
    if not set(reported) & set(patients):
        raise InvalidRequestError(
            f"no case of {name} is in the manifest: the one has {reported[0]!r}, the other {next(iter(patients))!r}"
        )
    rng = np.random.default_rng(grouping.seed)
    groups = {
        group: Share(
            manifest=sum(each == group for each in told.values()), report=sum(told.get(i) == group for i in reported)
        )
        for group in sorted(set(told.values()))
    }
    figures = []
    for figure, values in numbers.items():
        found = {
            group: of_patients([patients[i] for i in ids], [values[i] for i in ids])
            for group in groups
            if (ids := [i for i, value in values.items() if told.get(i) == group and math.isfinite(value)])
        }
        figures.append(_figure(figure, found, grouping.least, rng))
    return DemographicsReport(
        report=name,
        by=grouping.by,
        least=grouping.least,
        groups=groups,
        figures=tuple(figures),
        notes=(*_notes(reported, patients, grouping, figures), *_not_finite(numbers)),
    )


def without_report(cases: Sequence[Case], grouping: Grouping) -> DemographicsReport:
    """The report on cases of which there are no figures: who they are."""
    told = grouping.groups
    groups = {g: Share(manifest=sum(each == g for each in told.values()), report=0) for g in sorted(set(told.values()))}
    silent = len(cases) - len(told)
    notes = (f"{silent} cases have no {grouping.by}",) if silent else ()
    return DemographicsReport(by=grouping.by, least=grouping.least, groups=groups, notes=notes)


def _figure(name: str, values: Mapping[str, Sequence[float]], least: int, rng: np.random.Generator) -> FigureByGroup:
    enough = {group: np.asarray(each) for group, each in values.items() if len(each) >= least}
    gap = _gap(enough, _better(name) == "lower", rng) if len(enough) > 1 else None
    verdict: Verdict = "too few to say"
    if gap is not None:
        verdict = "differ" if gap.p < LEVEL else "no difference found"
    means = {group: interval(each, rng) if len(each) >= least else None for group, each in values.items()}
    return FigureByGroup(
        name=name,
        better=_better(name),
        groups={group: GroupFigure(patients=len(values[group]), mean=mean) for group, mean in means.items()},
        gap=gap,
        verdict=verdict,
    )


def _gap(values: Mapping[str, np.ndarray], lower_is_better: bool, rng: np.random.Generator) -> Gap:
    means = {group: float(each.mean()) for group, each in values.items()}
    worst, *_, best = sorted(means, key=means.__getitem__, reverse=lower_is_better)
    difference = means[best] - means[worst]
    reach = _reach(values[best], values[worst], math.comb(len(values), 2))
    together = np.concatenate(list(values.values()))
    cuts = np.cumsum([len(each) for each in values.values()])[:-1]
    shuffled = rng.permuted(np.tile(together, (PERMUTATIONS, 1)), axis=1)
    ranges = np.ptp([part.mean(1) for part in np.split(shuffled, cuts, axis=1)], axis=0)
    p = (1 + int((ranges >= abs(difference) - ROUNDING).sum())) / (1 + PERMUTATIONS)
    tied = abs(difference) < ROUNDING
    return Gap(
        best=None if tied else best,
        worst=None if tied else worst,
        difference=difference,
        low=difference - reach,
        high=difference + reach,
        p=p,
    )


def _reach(first: np.ndarray, second: np.ndarray, num_pairs: int) -> float:
    """How far the interval of a difference of means reaches to either side, where those of all pairs hold at once.

    Tamhane's T2 (1977): Welch's degrees of freedom, and the level of one pair by Sidak's inequality.
    """
    spreads = [float(each.var(ddof=1)) / len(each) for each in (first, second)]
    if not any(spreads):
        return 0.0
    own = [spread**2 / (len(each) - 1) for spread, each in zip(spreads, (first, second), strict=True)]
    level = (1 - LEVEL) ** (1 / num_pairs)
    return float(stats.t.ppf((1 + level) / 2, sum(spreads) ** 2 / sum(own))) * math.sqrt(sum(spreads))


def _notes(
    reported: Sequence[str], patients: Mapping[str, str], grouping: Grouping, figures: Sequence[FigureByGroup]
) -> list[str]:
    notes, absent = [], [id for id in reported if id not in patients]
    if absent:
        notes.append(f"{len(absent)} cases of the report are not in the manifest, such as {absent[0]}")
    silent = [id for id in reported if id in patients and id not in grouping.groups]
    if silent:
        notes.append(f"{len(silent)} cases have no {grouping.by}, such as {silent[0]}")
    few = sorted({g for each in figures for g, found in each.groups.items() if found.mean is None})
    if few:
        notes.append(f"fewer than {grouping.least} patients, of which nothing is said: {', '.join(few)}")
    tested = sum(each.gap is not None for each in figures)
    if tested > 1:
        notes.append(f"{tested} figures were tested; about {tested * LEVEL:.1f} would differ by chance alone")
    return notes


def _not_finite(numbers: Numbers) -> list[str]:
    counts = {name: sum(not math.isfinite(value) for value in values.values()) for name, values in numbers.items()}
    return [
        f"{count} of {len(numbers[name])} values of {name} are not finite, and left out"
        for name, count in counts.items()
        if count
    ]
