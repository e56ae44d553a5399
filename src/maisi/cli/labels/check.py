"""`maisi labels check`: whether label maps, alone or with a CT, are as anatomy has them."""

from typing import TYPE_CHECKING

import typer

from maisi.cli.console import give, give_json, give_table, tell
from maisi.cli.options import AsJson, takes
from maisi.pipelines.quality.request import CheckRequest

if TYPE_CHECKING:
    from maisi.pipelines.quality.report import QualityReport, StructureReport

FAILED = 1  # exit code


@takes(CheckRequest, arguments={"labels": "LABELS..."}, config=False)
def check(request: CheckRequest, as_json: AsJson = False) -> None:
    """Check label maps: volumes, pieces, places, hosts of tumours; with --ct also Hounsfield units.

    A line a structure: its volume, its median HU and the usual range with a CT, and the verdict. The exit code is 1
    when something fails.
    """
    from maisi.pipelines.quality.files import check_files

    reports = check_files(request)
    if as_json:
        give_json({path: report.model_dump(mode="json") for path, report in reports.items()})
    else:
        for path, report in reports.items():
            _show(path, report, len(reports) > 1)
    failed = [path for path, report in reports.items() if not report.passed]
    tell(f"{len(reports) - len(failed)} of {len(reports)} passed")
    if failed:
        raise typer.Exit(FAILED)


def _show(path: str, report: "QualityReport", is_named: bool) -> None:
    if is_named:
        give(f"{path}: {'passed' if report.passed else 'FAILED'}")
    with_hu = any(row.hu is not None for row in report.structures)
    header = ("structure", "ml", *(("HU", "usual") if with_hu else ()), "verdict")
    give_table([_row(row, with_hu) for row in report.structures], header)
    for finding in report.findings:
        give(f"{finding.level.upper() if finding.level == 'fail' else finding.level}: {finding.words}")


def _row(row: "StructureReport", with_hu: bool) -> tuple[str, ...]:
    said = "; ".join(f"{'FAIL ' if each.level == 'fail' else ''}{each.words}" for each in row.findings)
    return (row.name, f"{row.ml:.1f}", *(_hu(row) if with_hu else ()), said or "ok")


def _hu(row: "StructureReport") -> tuple[str, str]:
    if row.hu is None:
        return "", ""
    usual = row.hu.reference.usual if row.hu.reference else None
    return f"{row.hu.median:.0f}", f"{usual[0]:.0f} to {usual[1]:.0f}" if usual else ""
