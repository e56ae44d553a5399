"""Labels from a command that the user names: it reads a CT file and writes a label map."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from maisi.data.door import open_labels
from maisi.errors import InvalidLabelsError, InvalidRequestError, RunError
from maisi.pipelines.prepare.settings import PrepareSettings
from maisi.space.files import write_volume
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap, Volume

_SHOWN = 300  # characters of what a command that failed has said


def check_installed(command: str) -> None:
    """Nothing, or an `InvalidRequestError` where the program that a segmenter's command calls is not there."""
    program = shlex.split(command)[0]
    if shutil.which(program) is None:
        raise InvalidRequestError(
            f"segmenter: there is no command {program}; accepted: a program on the path, or the path of one"
        )


def segmented(volume: Volume, settings: PrepareSettings) -> LabelMap:
    """The label map, in our ids and on the volume's grid, that `settings.segmenter` makes of a volume.

    `{image}` in the command is a `.nii.gz` file, `{labels}` what it is to write: a `.nii.gz` file of that name, or a
    folder of masks in its place. No shell is involved. Raises `RunError` where the command fails or takes too long,
    `InvalidLabelsError` where it leaves no label map on the grid of the image.
    """
    assert settings.segmenter is not None
    with tempfile.TemporaryDirectory(prefix="maisi-") as name:
        image, labels = Path(name) / "image.nii.gz", Path(name) / "labels.nii.gz"
        write_volume(volume, image)
        places = {"{image}": str(image), "{labels}": str(labels)}
        command = [_put_in(part, places) for part in shlex.split(settings.segmenter)]
        run_command(command, settings.segmenter_minutes * 60)
        if not labels.exists():
            raise InvalidLabelsError(f"{command[0]} ended well, but wrote nothing to {{labels}}")
        found, _ = open_labels(labels, ReadOptions(numbering=settings.segmenter_numbering))
    if not found.grid.is_close(volume.grid):
        raise InvalidLabelsError(f"{command[0]} wrote labels on another grid: {found.grid}, not {volume.grid}")
    return LabelMap(found.array, volume.grid)


def _put_in(part: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        part = part.replace(name, path)
    return part


def run_command(command: list[str], seconds: float | None = None, environment: Mapping[str, str] | None = None) -> None:
    """Run a command without input; what it started and left running ends with it. Raises `RunError` where it fails.

    `environment` are variables besides those of this process.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        except FileNotFoundError as error:
            raise RunError(f"there is no command {command[0]}") from error
        except OSError as error:
            raise RunError(f"{command[0]} cannot be run: {error.strerror}") from error
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise RunError(f"{command[0]} took longer than {(seconds or 0) / 60:g} minutes") from error
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code != 0:
            said.seek(0)
            words = " ".join(said.read().decode(errors="replace").split())[-_SHOWN:]
            raise RunError(f"{command[0]} ended with {code}: {words or 'it said nothing'}")
