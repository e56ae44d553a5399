"""`maisi evaluate demographics`: the numbers of a report by group of patients, in JSON and on a page."""

from pathlib import Path

from maisi.data.manifest import read_manifest
from maisi.evaluation.demographics import (
    DemographicsReport,
    Grouping,
    by_group,
    chosen_figures,
    group_cases,
    read_numbers,
)
from maisi.evaluation.demographics_page import demographics_page
from maisi.evaluation.requests import EvaluateDemographicsRequest
from maisi.runs.task import Checked, Run, Task

REPORT, PAGE = "demographics.json", "demographics.html"


def check(request: EvaluateDemographicsRequest) -> Checked[EvaluateDemographicsRequest]:
    """The request with what it asks for, which takes no longer than to check it."""
    cases, numbers = read_manifest(request.manifest), read_numbers(request.report)
    grouping = Grouping(request.by, group_cases(cases, request.by, request.bands), request.least, request.seed)
    found = by_group(request.report.name, chosen_figures(numbers, request.figures), cases, grouping)
    return Checked(request, found)


def inputs(request: EvaluateDemographicsRequest) -> tuple[Path, ...]:
    """The manifest, where it is a file, and the report."""
    return tuple(path for path in (request.manifest, request.report) if path.is_file())


def work(checked: Checked[EvaluateDemographicsRequest], run: Run) -> None:
    """Write the report and its page."""
    found: DemographicsReport = checked.subject
    (run.partial / REPORT).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (run.partial / PAGE).write_text(demographics_page(found), encoding="utf-8")
    run.warnings += found.notes
    run.publish()


EVALUATE_DEMOGRAPHICS = Task("evaluate demographics", EvaluateDemographicsRequest, check, work, inputs)
