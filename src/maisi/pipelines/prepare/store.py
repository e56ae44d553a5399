"""The folder of prepared cases as a whole: which are in, which are refused, how patients are divided, the manifest."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from maisi.data.manifest import STORED, Case, write_manifest
from maisi.data.sources.raw import PassedOver
from maisi.errors import InvalidRequestError
from maisi.pipelines.prepare.case import CASES, FACTS, REFUSED, CaseFacts, read_facts
from maisi.pipelines.prepare.settings import PrepareSettings

SPLITS = ("training", "validation", "testing")


@dataclass(frozen=True)
class StoreContent:
    """What a store holds: accepted cases as its manifest lists them with their facts, and the refused ones."""

    cases: tuple[Case, ...]
    facts: dict[str, CaseFacts]
    refused: tuple[CaseFacts, ...]
    passed_over: tuple[PassedOver, ...] = ()

    def count(self, split: str) -> int:
        """How many cases are of a split."""
        return sum(case.split == split for case in self.cases)


def content_of(store: Path, settings: PrepareSettings, more: Sequence[CaseFacts] = ()) -> StoreContent:
    """What the files of a store say, in the order of ids; `more` are refusals that left no file.

    Of scans with the same voxels the first counts and the others are refused, and so are all scans of a patient whom
    sources put on two sides of a split.
    """
    facts = {each.id: each for each in _read(store)}
    refused = {each.id: each for each in (*facts.values(), *more) if each.refused is not None}
    accepted = {id: each for id, each in sorted(facts.items()) if each.case is not None and id not in refused}
    for id, why in {**_duplicates(accepted), **_torn_patients(accepted)}.items():
        refused[id] = accepted.pop(id).model_copy(update={"refused": why})
    splits = _splits(accepted.values(), settings)
    cases = tuple(each.case.model_copy(update={"split": splits[id]}) for id, each in accepted.items() if each.case)
    return StoreContent(cases, accepted, tuple(refused[id] for id in sorted(refused)))


def write_content(
    store: Path,
    settings: PrepareSettings,
    more: Sequence[CaseFacts] = (),
    and_then: Callable[[StoreContent], None] = lambda content: None,
) -> StoreContent:
    """Write the manifest of what is in a store, and give it; `and_then` writes what else is of all cases.

    Others may add cases meanwhile: all is written again until it is of all that are there.
    """
    while True:
        before = _listing(store)
        content = content_of(store, settings, more)
        write_manifest(content.cases, store / STORED)
        and_then(content)
        if _listing(store) == before:
            return content


def check_can_train(content: StoreContent, store: Path) -> None:
    """Nothing, or the refusal of a store that nothing can be trained on."""
    if not content.cases:
        first = content.refused[0].refused if content.refused else "nothing was found"
        raise InvalidRequestError(f"no case was accepted into {store}: {len(content.refused)} refused, first: {first}")
    if not content.count("training"):
        raise InvalidRequestError(
            f"{store} has no case for training, only {', '.join(s for s in SPLITS if content.count(s))}; "
            "accepted: smaller shares for --validation and --testing, another --split-seed, or more patients"
        )


def _read(store: Path) -> list[CaseFacts]:
    read = (read_facts(path) for path in _paths(store))
    return [facts for facts in read if facts is not None]


def _listing(store: Path) -> list[tuple[str, int]]:
    listed = []
    for path in _paths(store):
        with suppress(FileNotFoundError):  # another process puts a new one there
            listed.append((str(path), path.stat().st_mtime_ns))
    return listed


def _paths(store: Path) -> list[Path]:
    """The files of facts, refusals first: where a case has both, a kill came before the old refusal was removed."""
    found = [*sorted((store / REFUSED).glob("*.json")), *sorted((store / CASES).glob(f"*/{FACTS}"))]
    return [path for path in found if not (path.name.startswith(".") or path.parent.name.startswith("."))]


def _duplicates(accepted: dict[str, CaseFacts]) -> dict[str, str]:
    first: dict[str, str] = {}
    found = {}
    for id, each in accepted.items():
        same = first.setdefault(each.content, id)
        if same != id:
            found[id] = f"the same voxels as case {same} ({accepted[same].image})"
    return found


def _torn_patients(accepted: dict[str, CaseFacts]) -> dict[str, str]:
    sides: dict[str, dict[str, str]] = defaultdict(dict)  # of each patient, a case of each split
    for id, each in accepted.items():
        if each.given_split is not None:
            sides[each.patient].setdefault(each.given_split, id)
    torn = {patient: cases for patient, cases in sides.items() if len(cases) > 1}
    return {
        id: f"patient {each.patient} is on two sides of the split: "
        + ", ".join(f"{case} in {split}" for split, case in sorted(torn[each.patient].items()))
        for id, each in accepted.items()
        if each.patient in torn
    }


def _splits(facts: Collection[CaseFacts], settings: PrepareSettings) -> dict[str, str]:
    """The split of each case: that of its patient, which a source gives or a sum over patient and seed draws."""
    given = {each.patient: each.given_split for each in facts if each.given_split is not None}
    return {each.id: given.get(each.patient) or drawn_split(each.patient, settings) for each in facts}


def drawn_split(patient: str, settings: PrepareSettings) -> str:
    """The split of a patient, the same in every run, on every machine, whoever else is there."""
    drawn = int.from_bytes(hashlib.sha256(f"{settings.split_seed}:{patient}".encode()).digest()[:8], "big") / 2**64
    if drawn < settings.testing:
        return "testing"
    return "validation" if drawn < settings.testing + settings.validation else "training"
