"""`maisi evaluate`: what generated volumes are worth, with an interval on every number."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from maisi.cli.console import complain, give_json, give_table, tell
from maisi.cli.options import AsJson, Out, Overwrite, takes
from maisi.cli.run import run_task
from maisi.evaluation.requests import (
    EvaluateAutoencoderRequest,
    EvaluateDemographicsRequest,
    EvaluateImagesRequest,
    EvaluateLabelsRequest,
    EvaluateMemorizationRequest,
)
from maisi.shapes import Frozen

if TYPE_CHECKING:
    from maisi.runs.record import RunRecord

Report = TypeVar("Report", bound=Frozen)

NOT_OF_FEATURES = tuple(f"compute.{name}" for name in ("memory", "scratch", "host_memory", "precision"))
NOT_OF_SEGMENTERS = (*NOT_OF_FEATURES, "compute.ranks")

evaluate = typer.Typer(help="Measure what generated volumes are worth.", no_args_is_help=True)


@evaluate.callback()
def _group(context: typer.Context) -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1" and context.invoked_subcommand != "images":
        raise typer.BadParameter(
            f"torchrun splits evaluate images; start `maisi evaluate {context.invoked_subcommand}` without it"
        )


def _measured(
    what: str, request: Frozen, out: Path, overwrite: bool, kind: type[Report], file: str
) -> "tuple[RunRecord, Report]":
    """Carry out a measurement and read the report that it wrote; ranks besides the first end here."""
    record = run_task(f"evaluate {what}", request, out, overwrite, quiet=True, lines=True)
    if record is None:
        raise typer.Exit
    return record, kind.model_validate_json((out / file).read_text(encoding="utf-8"))


@evaluate.command()
@takes(EvaluateImagesRequest, arguments={"real": "REAL", "synthetic": "SYNTHETIC"}, leave_out=NOT_OF_FEATURES)
def images(request: EvaluateImagesRequest, out: Out, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Compare two sets of volumes: 2.5-D Frechet and kernel distance, precision and recall, with intervals.

    Beside them the distance between two halves of the real set. Writes images.json and images.html.
    """
    from maisi.evaluation.images import ImageReport
    from maisi.evaluation.images_page import ROWS, told
    from maisi.runs.tasks.evaluate_images import REPORT

    record, found = _measured("images", request, out, overwrite, ImageReport, REPORT)
    if as_json:
        give_json(found.model_dump())
        return
    rows = [
        (words, told(d.frechet_mean), told(d.kernel, 4), told(d.precision, 2), told(d.recall, 2))
        for words, name in ROWS
        for d in (getattr(found, name),)
    ]
    give_table(rows, ("", "Frechet", "kernel", "precision", "recall"))
    for note in found.notes:
        tell(f"note: {note}")
    tell(f"{out}: {REPORT}, images.html, in {record.seconds:.1f} s")


@evaluate.command()
@takes(EvaluateMemorizationRequest, arguments={"generated": "GENERATED", "real": "REAL"})
def memorization(
    request: EvaluateMemorizationRequest,
    out: Out,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    gate: Annotated[bool, typer.Option("--gate", help="Exit 1 where a generated volume is a copy.")] = False,
) -> None:
    """Look for copies of training volumes or label maps: the nearest of each generated one, beside held-out ones.

    Writes memorization.json, memorization.html and pictures of the nearest pairs. A volume is close where it is nearer
    to a training volume than every held-out one is, and a copy where it is nearer than half of that.
    """
    from maisi.evaluation.memorization import MemorizationReport
    from maisi.evaluation.memorization_page import neighbour_rows
    from maisi.runs.tasks.evaluate_memorization import REPORT

    record, found = _measured("memorization", request, out, overwrite, MemorizationReport, REPORT)
    if as_json:
        give_json(found.model_dump())
    for what, each in (("volume", found.images), ("label map", found.labels)):
        if each is None or as_json:
            continue
        give_table(neighbour_rows(each, 20), ("generated", f"nearest {what}", "apart", "mirrored", "by features", ""))
        tell(
            f"{each.close} of {len(each.generated)} are nearer than every held-out {what} ({each.least:.3f}); "
            f"{each.expected_close:.1f} would be by chance"
        )
        for note in each.notes:
            tell(f"note: {note}")
    tell(f"{out}: {REPORT}, memorization.html, pictures of pairs, in {record.seconds:.1f} s")
    if gate and found.copies:
        complain(f"{len(found.copies)} copies: {', '.join(found.copies)}")
        raise typer.Exit(1)


@evaluate.command()
@takes(EvaluateLabelsRequest, arguments={"real": "REAL", "synthetic": "SYNTHETIC"}, leave_out=NOT_OF_SEGMENTERS)
def labels(request: EvaluateLabelsRequest, out: Out, overwrite: Overwrite = False, as_json: AsJson = False) -> None:
    """Let a segmenter find in synthetic volumes what their labels say, and in real ones: are they alike?

    Dice, surface Dice and HD95 of each structure with intervals, and whether the Dice is equivalent within --margin.
    A case that fails is told, the others go on. Writes labels.json and labels.html.
    """
    from maisi.evaluation.labels import LabelReport
    from maisi.runs.tasks.evaluate_labels import REPORT

    record, found = _measured("labels", request, out, overwrite, LabelReport, REPORT)
    if as_json:
        give_json(found.model_dump())
        return
    rows = [
        (
            each.name,
            f"{each.real.dice.mean:.3f}",
            f"{each.synthetic.dice.mean:.3f}",
            "" if each.test.low is None else f"{each.test.low:+.3f} to {each.test.high:+.3f}",
            f"{each.synthetic.surface_dice.mean:.3f}",
            "" if each.synthetic.hd95_mm is None else f"{each.synthetic.hd95_mm.mean:.1f}",
            each.test.verdict,
        )
        for each in found.structures
    ]
    give_table(rows, ("", "real Dice", "synthetic", "difference", "surface", "HD95 mm", "verdict"))
    for warning in record.warnings:
        tell(f"warning: {warning}")
    tell(f"{out}: {REPORT}, labels.html, in {record.seconds:.1f} s")


@evaluate.command()
@takes(EvaluateAutoencoderRequest, arguments={"source": "VOLUMES"}, leave_out=("compute.ranks",))
def autoencoder(
    request: EvaluateAutoencoderRequest, out: Out, overwrite: Overwrite = False, as_json: AsJson = False
) -> None:
    """Encode and decode many volumes and measure what is lost: PSNR, SSIM, and the error in HU by tissue.

    Over all and by group of the manifest, with intervals, beside what a 3x3x3 box blur reaches. Writes
    autoencoder.json and autoencoder.html.
    """
    from maisi.evaluation.autoencoder import AutoencoderReport
    from maisi.evaluation.autoencoder_page import figure_rows
    from maisi.runs.tasks.evaluate_autoencoder import REPORT

    record, found = _measured("autoencoder", request, out, overwrite, AutoencoderReport, REPORT)
    if as_json:
        give_json(found.model_dump())
        return
    for group in found.groups:
        give_table(figure_rows(group), (f"{group.name} ({group.num_cases})", "autoencoder", "box blur"))
    for warning in record.warnings:
        tell(f"warning: {warning}")
    tell(f"{out}: {REPORT}, autoencoder.html, in {record.seconds:.1f} s")


@evaluate.command()
@takes(EvaluateDemographicsRequest, arguments={"manifest": "MANIFEST", "report": "[REPORT]"}, required=("by",))
def demographics(
    request: EvaluateDemographicsRequest, out: Out, overwrite: Overwrite = False, as_json: AsJson = False
) -> None:
    """Divide the numbers of a report by a column of the manifest: worst group, gap, and whether chance explains it.

    REPORT is what another `maisi evaluate` wrote. With --asked or --like, also whether groups are as large in the
    manifest as was asked for, for which no report is needed. Of groups with fewer than --least patients nothing is
    said. Writes demographics.json and demographics.html.
    """
    from maisi.evaluation.demographics import DemographicsReport
    from maisi.evaluation.demographics_page import gap_rows, representation_rows, told_p
    from maisi.runs.tasks.evaluate_demographics import REPORT

    record, found = _measured("demographics", request, out, overwrite, DemographicsReport, REPORT)
    if as_json:
        give_json(found.model_dump())
        return
    if found.representation is not None:
        give_table(representation_rows(found.representation), (found.by, "patients", "share", "asked"))
        tell(f"shares: {found.representation.verdict} (p {told_p(found.representation.p)})")
    if found.conditions is not None:
        tell(f"the bundle can be asked for: {', '.join(found.conditions)}")
    if found.figures:
        give_table([(g, s.manifest, s.report) for g, s in found.groups.items()], (found.by, "in manifest", "in report"))
        give_table(gap_rows(found)[:20], ("", "worst", "best", "gap", "p", "verdict"))
    for warning in record.warnings:
        tell(f"note: {warning}")
    tell(f"{out}: {REPORT}, demographics.html, in {record.seconds:.1f} s")
