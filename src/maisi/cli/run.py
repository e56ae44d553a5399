"""How a command that writes is carried out: the task of its name, with a bar, and what became of it told."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from maisi.cli.console import complain, give, progress, tell
from maisi.shapes import few

if TYPE_CHECKING:
    from maisi.runs.record import RunRecord

TOLD = 5  # warnings, and names of what failed


def run_task(
    name: str, request: Any, out: Path, overwrite: bool = False, quiet: bool = False, lines: bool = False
) -> "RunRecord | None":
    """Carry out the task of a command; files are named as they come into place, unless `quiet`.

    With `lines`, what takes long is told in lines where there is no terminal. Gives None on ranks besides the first.
    """
    from maisi.cli.process import process_for
    from maisi.compute.compute import Compute
    from maisi.runs.carry_out import carry_out
    from maisi.runs.task import Watch
    from maisi.runs.tasks import task_named

    def on_files(files: list[Path]) -> None:
        for entry in dict.fromkeys(file.parent if _is_slice(file) else file for file in files):
            if not quiet and not entry.name.endswith((".run.yaml", "run.json")):
                give(str(entry))

    task = task_named(name)
    with process_for(getattr(request, "compute", Compute())) as ranks, progress(name, lines) as on_stage:
        return carry_out(task, request, out, overwrite=overwrite, watch=Watch(on_stage, on_files), ranks=ranks)


def _is_slice(file: Path) -> bool:
    """Whether a file is one of a DICOM series, which is told by its folder."""
    return file.suffix == ".dcm" and file.stem.isdigit()


def tell_cost(what: str | int, record: "RunRecord") -> None:
    """How long something, or so many samples, took, and how much memory."""
    from maisi.compute.compute import format_bytes

    tell(f"{what} in {record.seconds:.1f} s, at most {format_bytes(record.peak_bytes)}")


def tell_kept(kept: Sequence[str]) -> None:
    """Tell how many failed their check and lie among the others."""
    if kept:
        told = few(kept, TOLD)
        tell(f"warning: {len(kept)} failed the check, kept among the others, see their *_quality.json: {told}")


def exit_on_failures(failed: Sequence[str], told: str) -> None:
    """Tell which samples failed, and exit with 1 where there are some."""
    if failed:
        complain(f"{told}: {few(failed, TOLD)}")
        raise typer.Exit(1)
