"""`maisi evaluate demographics`: who was generated, and the numbers of a report by group of patients."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from maisi.bundle.bundle import Bundle, load_bundle
from maisi.data.manifest import Case, read_manifest
from maisi.evaluation.demographics import (
    DemographicsReport,
    Grouping,
    by_group,
    chosen_figures,
    group_cases,
    read_numbers,
    without_report,
)
from maisi.evaluation.demographics_page import demographics_page
from maisi.evaluation.representation import Asked, Representation, counted, representation
from maisi.evaluation.requests import EvaluateDemographicsRequest
from maisi.networks.unet import UNetConfig
from maisi.runs.pieces import write_report
from maisi.runs.task import Checked, Run, Task

REPORT, PAGE = "demographics.json", "demographics.html"
_LIKE = "like/"  # before the ids of the manifest that was to be like


def check(request: EvaluateDemographicsRequest) -> Checked[EvaluateDemographicsRequest]:
    """The request with what it asks for, which takes no longer than to check it."""
    cases = read_manifest(request.manifest)
    others = () if request.like is None else read_manifest(request.like)
    groups = group_cases([*cases, *map(_of_others, others)], request.by, request.bands)
    own = {id: group for id, group in groups.items() if not id.startswith(_LIKE)}
    grouping = Grouping(request.by, own, request.least, request.seed)
    found = _figures(request, cases, grouping)
    bundle = None if request.bundle is None else load_bundle(request.bundle)
    update = {
        "representation": _represented(request, cases, own, (others, groups)),
        "conditions": None if bundle is None else conditions(bundle),
        "notes": (*found.notes, *_unconditioned(request, bundle)),
    }
    return Checked(request, found.model_copy(update=update), bundle)


def _of_others(case: Case) -> Case:
    return case.model_copy(update={"id": f"{_LIKE}{case.id}"})


def _figures(request: EvaluateDemographicsRequest, cases: Sequence[Case], grouping: Grouping) -> DemographicsReport:
    if request.report is None:
        return without_report(cases, grouping)
    numbers = chosen_figures(read_numbers(request.report), request.figures)
    return by_group(request.report.name, numbers, cases, grouping)


def _represented(
    request: EvaluateDemographicsRequest,
    cases: Sequence[Case],
    groups: Mapping[str, str],
    others: tuple[Sequence[Case], Mapping[str, str]],
) -> Representation | None:
    if not request.asked and request.like is None:
        return None
    if request.like is None:
        asked = Asked.of_words(request.asked, sorted(set(groups.values())))
    else:
        theirs = {f"{_LIKE}{case.id}": case.patient or case.id for case in others[0]}
        named = {id: group for id, group in others[1].items() if id.startswith(_LIKE)}
        asked = Asked.of_cases(request.like.name, named, theirs)
    counts = counted(groups, {case.id: case.patient or case.id for case in cases})
    return representation(counts, asked, request.least, np.random.default_rng(request.seed))


def conditions(bundle: Bundle) -> tuple[str, ...]:
    """What a bundle can be asked for when it generates, in words."""
    found = ["label map"] if "controlnet" in bundle.kinds else []
    config = getattr(bundle.unet, "config", None) if "unet" in bundle.kinds else None
    if isinstance(config, UNetConfig):
        told = {"region": config.regions, "spacing": config.spacing, "modality": config.num_modalities}
        found += [name for name, is_there in told.items() if is_there]
    return tuple(found)


def _unconditioned(request: EvaluateDemographicsRequest, bundle: Bundle | None) -> list[str]:
    if bundle is None or request.by in conditions(bundle):
        return []
    return [f"bundle {bundle.name} is not conditioned on {request.by}: its groups are those of its label maps"]


def inputs(request: EvaluateDemographicsRequest) -> tuple[Path, ...]:
    """The manifests, where they are files, and the report."""
    paths = (request.manifest, request.report, request.like)
    return tuple(path for path in paths if path is not None and path.is_file())


def work(checked: Checked[EvaluateDemographicsRequest], run: Run) -> None:
    """Write the report and its page."""
    found: DemographicsReport = checked.subject
    write_report(run, {REPORT: found, PAGE: demographics_page(found)})
    run.warnings += found.notes
    run.publish()


EVALUATE_DEMOGRAPHICS = Task("evaluate demographics", EvaluateDemographicsRequest, check, work, inputs)
