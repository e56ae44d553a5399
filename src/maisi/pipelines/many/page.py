"""The page of a folder of generated samples: what they are, how their settings are spread, what went wrong."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.manifest import Case
from maisi.pipelines.many.facts import SUMMARY, SampleFacts
from maisi.pipelines.many.requests import ManyRequest
from maisi.pipelines.page import bars, histogram, number, page, pictures, table
from maisi.shapes import in_words
from maisi.storage.atomic import write_atomically

MOST_PICTURES = 120
MOST_BARS = 8
MOST_STRUCTURES = 12
_LEFT_OUT = ("seed", "region", "size", "spacing", "anatomy", "reading", "compute")  # told apart, or telling nothing
_COLUMNS = ("sample", "group", "shows", "voxels", "mm", "structures", "seed", "problems")


def write_page(facts: Sequence[SampleFacts], request: ManyRequest, folder: Path) -> Path:
    """Write the page and give its path; it opens without a network, and the same samples give the same bytes."""
    made = [each for each in facts if each.case is not None]
    apart = [(each.stem, folder / each.preview) for each in facts if each.failed and each.preview]
    figures = "".join(_figures(made))
    parts = [
        f"<h1>{len(made)} of {request.count} samples</h1>",
        f"<p>{_summary(facts, request)}</p>",
        f'<h2>How they are spread</h2><div class="figures">{figures}</div>' if figures else "",
        table("Failed", ("sample", "why"), ((e.stem, e.failed) for e in facts if e.failed), mark="bad"),
        pictures(apart, MOST_PICTURES, "Pictures of what failed") if apart else "",
        table("Problems", ("sample", "what"), ((e.stem, problem) for e in facts for problem in e.problems), mark="bad"),
        table("Sizes asked for", _SIZE_COLUMNS, _sizes(made)),
        pictures([(each.stem, folder / each.preview) for each in made if each.preview], MOST_PICTURES),
        table("Samples", _COLUMNS, (_row(each, each.case) for each in made if each.case is not None)),
    ]
    with write_atomically(folder / SUMMARY) as temporary:
        temporary.write_text(page("Generated samples", parts), encoding="utf-8")
    return folder / SUMMARY


def _summary(facts: Sequence[SampleFacts], request: ManyRequest) -> str:
    wrong = sum(bool(each.problems) for each in facts)
    failed = sum(bool(each.failed) for each in facts)
    told = [f"bundle {escape(Path(request.bundle).name)}", f"seed {request.seed}"]
    told += [f'<span class="bad">{failed} failed</span>'] if failed else []
    told += [f'<span class="bad">{wrong} with problems</span>'] if wrong else ["no problems found"]
    return "; ".join(told) + "."


def _row(facts: SampleFacts, case: Case) -> tuple[str, ...]:
    return (
        facts.stem,
        case.group,
        " to ".join(dict.fromkeys(case.span or ())),
        in_words(case.shape or (), 4),
        in_words(case.spacing_mm or (), 4),
        str(len(case.labels_present)),
        str(facts.request["seed"]),
        "; ".join(facts.problems),
    )


# Figures --------------------------------------------------------------------------------------------------------------


def _figures(made: Sequence[SampleFacts]) -> Iterable[str]:
    """A figure for each setting that differs from sample to sample, and for volumes of what was asked for."""
    cases = [each.case for each in made if each.case is not None]
    shapes = [case.shape for case in cases if case.shape]
    spacings = [case.spacing_mm for case in cases if case.spacing_mm]
    yield _counted("group", [case.group for case in cases])
    yield _counted("shows", [" to ".join(dict.fromkeys(case.span or ())) for case in cases])
    for name, values in _settings(made).items():
        yield _spread(name.replace("_", " "), values)
    for k, axis in ((0, "x"), (2, "z")):
        yield _spread(f"voxels in {axis}", [shape[k] for shape in shapes])
        yield _spread(f"spacing in {axis}, mm", [spacing[k] for spacing in spacings])
    for name in _told_structures(made):
        yield histogram(f"{name}, ml", [each.volumes_ml[name] for each in made if name in each.volumes_ml])


_SIZE_COLUMNS = ("structure", "samples", "asked, ml", "obtained, ml", "obtained / asked")


def _sizes(made: Sequence[SampleFacts]) -> Iterable[tuple[str, ...]]:
    """Of each structure whose size was asked for: medians of what was asked and obtained, and of their ratio."""
    for name in sorted({name for each in made for name in each.asked_ml}):
        pairs = [
            (each.asked_ml[name], each.obtained_ml.get(name, each.volumes_ml.get(name, 0.0)))
            for each in made
            if name in each.asked_ml
        ]
        asked, got = zip(*pairs, strict=True)
        told = (median(asked), median(got), median(b / a for a, b in pairs))
        yield (name, str(len(pairs)), *map(number, told))


def _settings(made: Sequence[SampleFacts]) -> dict[str, list[Any]]:
    """The values of settings that are not the same in all samples."""
    values: dict[str, list[Any]] = defaultdict(list)
    for each in made:
        for name, value in each.request.items():
            values[name].append(value)
    return {name: each for name, each in values.items() if name not in _LEFT_OUT and len(set(map(str, each))) > 1}


def _spread(title: str, values: Sequence[Any]) -> str:
    """How numbers are spread, or how often each of a few values is; nothing where all are the same."""
    if len(set(map(str, values))) < 2:
        return ""
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not is_number:
        return _counted(title, [Path(str(value)).name if value is not None else "none" for value in values])
    if len(set(values)) > MOST_BARS:
        return histogram(title, [float(value) for value in values])
    return bars(title, [(f"{value:g}", count) for value, count in sorted(Counter(values).items())])


def _counted(title: str, values: Sequence[str]) -> str:
    """A bar for each of the most frequent values; nothing where all have one."""
    counts = Counter(values).most_common()
    if len(counts) < 2:
        return ""
    shown, rest = counts[:MOST_BARS], counts[MOST_BARS:]
    others = [(f"{len(rest)} others", sum(count for _, count in rest))] if rest else []
    return bars(title, [*shown, *others])


def _told_structures(made: Sequence[SampleFacts]) -> list[str]:
    """Structures that requests size, and tumours that samples show, the most frequent first."""
    vocabulary = load_vocabulary()
    found = Counter(name for each in made for name in each.volumes_ml)
    asked = {name for each in made for name in _asked_names(each)}
    tumours = {vocabulary.name(id) for id in vocabulary.group("tumours")}
    return [name for name, _ in found.most_common() if name in asked | tumours][:MOST_STRUCTURES]


def _asked_names(facts: SampleFacts) -> list[str]:
    return [str(size).partition("=")[0] for size in facts.request.get("anatomy") or ()]
