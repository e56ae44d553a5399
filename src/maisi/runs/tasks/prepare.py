"""`maisi prepare`: raw scans to a folder of training cases, with a manifest and a report."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maisi.data.manifest import STORED
from maisi.data.sources.find import find_cases
from maisi.data.sources.names import safe_id
from maisi.data.sources.raw import PassedOver, RawCase
from maisi.errors import InvalidRequestError
from maisi.pipelines.prepare.case import CaseFacts, CaseWork, is_done, prepare_case
from maisi.pipelines.prepare.report import write_report
from maisi.pipelines.prepare.settings import PrepareRequest
from maisi.pipelines.prepare.store import StoreContent, check_can_train, write_content
from maisi.runs.spread import spread
from maisi.runs.task import Checked, Output, Run, Task
from maisi.storage.folders import user_path

LONGEST_ID = 100  # bytes; names of temporary folders are longer by some hundred, and few disks take more than 255


@dataclass(frozen=True)
class Sources:
    """What the sources hold: cases with ids that differ, and what was passed over."""

    cases: tuple[RawCase, ...]
    passed_over: tuple[PassedOver, ...]


def check(request: PrepareRequest) -> Checked[PrepareRequest]:
    """The request with its sources looked through: no scan is opened, but for the heads of DICOM files."""
    if not request.sources:
        raise InvalidRequestError("nothing to prepare; accepted: folders of scans, datalists, manifests")
    resolved = tuple(user_path(source).resolve() for source in request.sources)
    found = [find_cases(source, request.layout) for source in resolved]
    cases = _apart([case for each in found for case in each.cases])
    passed = tuple(over for each in found for over in each.passed_over)
    return Checked(request.model_copy(update={"sources": resolved}), Sources(cases, passed))


def _apart(cases: Sequence[RawCase]) -> tuple[RawCase, ...]:
    """The cases with ids that differ and can be names of folders.

    Where two have one id, the name of the data set goes before; where that tells nothing apart, or an id is empty or
    too long, a sum of the image's path goes behind. A scan that is listed twice gets a number.
    """
    named = [replace(case, id=_short(case)) for case in cases]
    twice = _twice(named)
    named = [replace(c, id=safe_id(f"{c.dataset}_{c.id}")) if c.id in twice else c for c in named]
    twice = _twice(named)
    named = [replace(c, id=f"{c.id}_{_sum(c)}") if c.id in twice else c for c in named]
    seen: Counter[str] = Counter()
    apart = []
    for case in named:
        seen[case.id] += 1
        apart.append(case if seen[case.id] == 1 else replace(case, id=f"{case.id}_{seen[case.id]}"))
    return tuple(sorted(apart, key=lambda case: case.id))


def _twice(cases: Sequence[RawCase]) -> set[str]:
    counts = Counter(case.id.casefold() for case in cases)  # some disks do not tell A from a
    return {case.id for case in cases if counts[case.id.casefold()] > 1}


def _short(case: RawCase) -> str:
    if case.id and len(case.id.encode()) <= LONGEST_ID:
        return case.id
    start = case.id.encode()[: LONGEST_ID // 2].decode(errors="ignore")
    return safe_id(f"{start}_{_sum(case)}")


def _sum(case: RawCase) -> str:
    return hashlib.sha256(f"{case.image} {case.series}".encode()).hexdigest()[:8]


def check_apart(request: PrepareRequest, store: Path) -> None:
    """Nothing, or the refusal of a store in one of its sources, whose cases a later run would take for scans."""
    store = store.resolve()
    for source in request.sources:
        if store.is_relative_to(source) or source.is_relative_to(store):
            raise InvalidRequestError(
                f"the source {source} and --out {store} lie within each other; accepted: an --out beside the sources"
            )


def work(checked: Checked[PrepareRequest], run: Run) -> None:
    """Prepare the cases of this part, then write the manifest and the report of all that is in the folder."""
    run.publish()  # the settings, by which a later run knows that it goes on
    request, sources, store = checked.request, checked.subject, run.folder
    own = [CaseWork(raw, request.prepare, request.reading, store) for raw in request.across.own(sources.cases)]
    items = [item for item in own if not is_done(item)]
    failed = []
    for done, outcome in enumerate(spread(prepare_case, items, request.across), start=1 + len(own) - len(items)):
        if outcome.error is not None:
            raw = items[outcome.place].raw
            failed.append(CaseFacts(id=raw.id, made_with="", image=str(raw.image), refused=outcome.error))
        run.on_stage("prepare", done, len(own))

    def report(content: StoreContent) -> None:
        run.outputs.add(write_report(store, replace(content, passed_over=sources.passed_over)))

    content = write_content(store, request.prepare, failed, and_then=report)
    run.on_stage("report", 1, 1)
    run.outputs.add(store / STORED)
    run.warnings += [f"{each.id}: {each.refused}" for each in content.refused]
    run.warnings += unread_told(sources.passed_over)
    if not content.count("validation"):
        run.warnings.append("no case for validation; a larger --validation or another --split-seed gives some")
    if request.across.shard is None or len(content.cases) + len(content.refused) >= len(sources.cases):
        check_can_train(content, store)  # by the last part, once all are done


def unread_told(passed: Sequence[PassedOver]) -> list[str]:
    """A line on the files of formats that are not read, where there are some."""
    unread = [each for each in passed if each.is_unread]
    more = f", and {len(unread) - 1} more such" if len(unread) > 1 else ""
    return [f"not read: {unread[0].path} is {unread[0].why}{more}"] if unread else []


def shard_of(request: PrepareRequest) -> str | None:
    """The part of an array job that a request is for."""
    return request.across.shard


def cluster_of(request: PrepareRequest) -> tuple[str | None, int]:
    """The Ray cluster, and the one core of a volume."""
    return request.across.ray, 1


PREPARE = Task(
    "prepare",
    PrepareRequest,
    check,
    work,
    output=Output.SHARED,
    shard=shard_of,
    cluster=cluster_of,
    check_place=check_apart,
)
