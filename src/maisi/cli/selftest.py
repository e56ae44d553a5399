"""`maisi selftest`: whether a bundle does what it should."""

from pathlib import Path
from typing import Annotated

import typer

from maisi.cli.console import give, give_json, give_table, tell
from maisi.cli.options import AsJson


def selftest(
    bundle: Annotated[str, typer.Argument(help="Packaged bundle, or folder of one.")] = "ct-small",
    image: Annotated[
        Path | None, typer.Option(metavar="CT", help="A CT of yours to encode and decode besides the phantom.")
    ] = None,
    region: Annotated[str, typer.Option(help="Of the phantom.")] = "chest",
    size: Annotated[tuple[int, int, int] | None, typer.Option(metavar="X Y Z", help="Voxels of the phantom.")] = None,
    spacing: Annotated[tuple[float, float, float] | None, typer.Option(metavar="X Y Z", help="Its voxels, mm.")] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Try a bundle: splitting without seams, labels that are followed, volumes that come back; exit 1 where it fails.

    Looks for a checkerboard at the latent's period, for labels that steer too strongly, and for blur by too large a KL
    weight. Nothing is written.
    """
    from maisi.bundle.bundle import load_bundle
    from maisi.cli.process import process_for
    from maisi.compute.compute import Compute
    from maisi.data.door import open_volume
    from maisi.evaluation.selftest import Trial
    from maisi.evaluation.selftest import selftest as checks_of
    from maisi.pipelines.requests import GenerateRequest

    compute = Compute(precision="float32")
    grid = {"size": size, "spacing": spacing}
    with process_for(compute):
        loaded = load_bundle(bundle)
        asked = {
            "region": region,
            "compute": compute,
            "force": True,
            "phantom": True,
            **{k: v for k, v in grid.items() if v},
        }
        trial = Trial.of(loaded, GenerateRequest.model_validate(asked))
        given = None if image is None else open_volume(image)[0]
        checks = []
        for check in checks_of(trial, given, steps):
            checks.append(check)
            if not as_json:
                tell(f"{check.name}: {'skipped' if check.passed is None else 'passed' if check.passed else 'FAILED'}")
    if as_json:
        give_json([{**check.model_dump(), "passed": check.passed} for check in checks])
    else:
        give_table(
            [
                (
                    {True: "pass", False: "FAIL", None: "skip"}[check.passed],
                    check.name,
                    "" if check.number is None else f"{check.number:.3g}",
                    f"{'at least' if check.at_least else 'at most'} {check.bound:g}",
                    check.reason or check.question,
                )
                for check in checks
            ],
            ("", "check", "number", "bound", "what it is"),
        )
    failed = [check.name for check in checks if check.passed is False]
    if failed:
        give(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}") if not as_json else None
        raise typer.Exit(1)
