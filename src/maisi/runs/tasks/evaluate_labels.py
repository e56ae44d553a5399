"""`maisi evaluate labels`: a segmenter on real and on synthetic volumes, in JSON and on a page."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from maisi.anatomy.vocabulary import Vocabulary, load_vocabulary
from maisi.bundle.bundle import Bundle, load_bundle
from maisi.compute.machine import device_of, fill_defaults
from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError, RunError, StorageError
from maisi.evaluation.labels import (
    CaseAgreement,
    CommandJudge,
    FailedCase,
    Judge,
    NetworkJudge,
    Protocol,
    SetName,
    check_shared,
    compare_labels,
    judged_case,
)
from maisi.evaluation.labels_page import labels_page
from maisi.evaluation.requests import EvaluateLabelsRequest
from maisi.evaluation.sets import labelled_set
from maisi.pipelines.prepare.segmenter import check_installed
from maisi.pipelines.quality.segmenter import CommandSegmenter
from maisi.pipelines.segment import segmenter_of
from maisi.pipelines.validate import bundle_vocabulary, lasting_name
from maisi.runs.pieces import case_file, piece, write_report
from maisi.runs.task import Checked, Run, Task
from maisi.shapes import Spacing3
from maisi.space.grid import checked_spacing

REPORT, PAGE = "labels.json", "labels.html"


@dataclass(frozen=True)
class ToJudge:
    """Cases of both sets, and who judges them."""

    cases: tuple[tuple[SetName, Case], ...]
    judge: Judge
    vocabulary: Vocabulary
    segmenter: str
    spacing_mm: Spacing3 | None


def check(request: EvaluateLabelsRequest) -> Checked[EvaluateLabelsRequest]:
    """The request with both sets and the segmenter."""
    real = labelled_set(request.real, request.real_split)
    synthetic = labelled_set(request.synthetic, request.synthetic_split)
    both: list[tuple[SetName, Case]] = [("real", case) for case in real]
    cases = (*both, *(("synthetic", case) for case in synthetic))
    spacing = None if request.spacing is None else checked_spacing(request.spacing)
    if request.segmenter is not None:
        check_installed(request.segmenter)
        segmenter = CommandSegmenter(request.segmenter, request.segmenter_numbering, request.segmenter_minutes)
        vocabulary = load_vocabulary()
        judge: Judge = CommandJudge(segmenter, vocabulary, request.tolerance_mm)
        return Checked(request, ToJudge(cases, judge, vocabulary, request.segmenter, spacing))
    request, bundle = _with_bundle(request)
    vocabulary = bundle_vocabulary(bundle)
    judge = NetworkJudge(segmenter_of(bundle), vocabulary, request.tolerance_mm)
    return Checked(request, ToJudge(cases, judge, vocabulary, f"bundle {bundle.name}", spacing), bundle)


def _with_bundle(request: EvaluateLabelsRequest) -> tuple[EvaluateLabelsRequest, Bundle]:
    assert request.bundle is not None
    if request.compute.memory is not None or request.compute.precision not in (None, "float32"):
        raise InvalidRequestError("a segmenter works window by window in float32; leave out memory and precision")
    compute = fill_defaults(request.compute.model_copy(update={"precision": "float32"}))
    bundle = load_bundle(request.bundle, device_of(compute))
    update = {"bundle": lasting_name(request.bundle, bundle), "compute": compute}
    return request.model_copy(update=update), bundle


def inputs(request: EvaluateLabelsRequest) -> tuple[Path, ...]:
    """Both sets, where they are files."""
    return tuple(path for path in (request.real, request.synthetic) if path.is_file())


def work(checked: Checked[EvaluateLabelsRequest], run: Run) -> None:
    """Judge case by case, each in a file of its own, then write the report and its page."""
    request, given = checked.request, checked.subject
    judged: list[CaseAgreement] = []
    failures: list[FailedCase] = []
    check_shared(given.cases, given.judge, given.vocabulary)  # before hours are spent
    for k, (which, case) in enumerate(given.cases, start=1):
        found = _judged(which, case, given, run)
        (judged if isinstance(found, CaseAgreement) else failures).append(found)  # type: ignore[arg-type]
        run.on_stage("segment", k, len(given.cases))
    _check_some_left(judged, failures)
    protocol = Protocol(given.segmenter, request.tolerance_mm, request.margin, not request.unpaired, request.seed)
    report = compare_labels(judged, failures, protocol)
    write_report(run, {REPORT: report, PAGE: labels_page(report)})
    run.warnings += [f"{each.set} case {each.id} is left out: {each.words}" for each in failures]
    run.warnings += report.notes
    run.publish()


def _judged(which: SetName, case: Case, given: ToJudge, run: Run) -> CaseAgreement | FailedCase:
    name = case_file(which, case.id)
    try:
        make = partial(judged_case, case, which, given.judge, given.vocabulary, given.spacing_mm)
        files = [path for path in (case.image, case.labels, case.labels_maisi) if path is not None]
        return piece(run, name, CaseAgreement, files, make)
    except StorageError:
        raise
    except (InvalidRequestError, RunError) as error:
        return FailedCase(id=case.id, set=which, words=str(error))


def _check_some_left(judged: list[CaseAgreement], failures: list[FailedCase]) -> None:
    for name in ("real", "synthetic"):
        left = sum(case.set == name for case in judged)
        first = next((each for each in failures if each.set == name), None)
        if left < 2 and first is not None:
            raise RunError(f"{left} {name} cases are left, 2 are needed; case {first.id} failed: {first.words}")


EVALUATE_LABELS = Task("evaluate labels", EvaluateLabelsRequest, check, work, inputs)
