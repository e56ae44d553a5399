"""`maisi prepare`: raw scans to a folder of training cases, with a manifest and a report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from maisi.data.manifest import STORED
from maisi.data.sources.find import find_cases
from maisi.data.sources.raw import PassedOver, RawCase
from maisi.errors import InvalidRequestError
from maisi.pipelines.prepare.case import CaseFacts, CaseWork, is_done, prepare_case
from maisi.pipelines.prepare.report import write_report
from maisi.pipelines.prepare.settings import PrepareRequest
from maisi.pipelines.prepare.store import check_can_train, write_content
from maisi.runs.spread import spread
from maisi.runs.task import Checked, Output, Run, Task


@dataclass(frozen=True)
class Sources:
    """What the sources hold: cases with ids that differ, and what was passed over."""

    cases: tuple[RawCase, ...]
    passed_over: tuple[PassedOver, ...]


def check(request: PrepareRequest) -> Checked[PrepareRequest]:
    """The request with its sources looked through: no scan is opened, but for the heads of DICOM files."""
    if not request.sources:
        raise InvalidRequestError("nothing to prepare; accepted: folders of scans, datalists, manifests")
    resolved = tuple(source.expanduser().resolve() for source in request.sources)
    found = [find_cases(source, request.layout) for source in resolved]
    cases = _apart([case for each in found for case in each.cases])
    passed = tuple(over for each in found for over in each.passed_over)
    return Checked(request.model_copy(update={"sources": resolved}), Sources(cases, passed))


def _apart(cases: Sequence[RawCase]) -> tuple[RawCase, ...]:
    """The cases with ids that differ: where two have one, the name of the data set goes before."""
    ids = [case.id for case in cases]
    twice = {id for id in ids if ids.count(id) > 1}
    apart = [replace(case, id=f"{case.dataset}_{case.id}") if case.id in twice else case for case in cases]
    left = [case.id for case in apart]
    still = sorted({id for id in left if left.count(id) > 1})
    if still:
        images = [str(case.image) for case in apart if case.id == still[0]]
        raise InvalidRequestError(
            f"two scans would be called {still[0]}: {' and '.join(images[:2])}; accepted: files of different names, or "
            "a manifest that names them"
        )
    return tuple(sorted(apart, key=lambda case: case.id))


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
    content = replace(write_content(store, request.prepare, failed), passed_over=sources.passed_over)
    report = write_report(store, content)
    run.on_stage("report", 1, 1)
    run.outputs |= {store / STORED, report}
    run.warnings += [f"{each.id}: {each.refused}" for each in content.refused]
    if not content.count("validation"):
        run.warnings.append("no case for validation; a larger --validation or another --split-seed gives some")
    check_can_train(content, store)


def shard_of(request: PrepareRequest) -> str | None:
    """The part of an array job that a request is for."""
    return request.across.shard


PREPARE = Task("prepare", PrepareRequest, check, work, output=Output.SHARED, shard=shard_of)
