"""Labels from a command that the user names: it reads a CT file and writes a label map."""

import shlex
import subprocess
import tempfile
from pathlib import Path

from maisi.data.door import open_labels
from maisi.errors import InvalidLabelsError, RunError
from maisi.pipelines.prepare.settings import PrepareSettings
from maisi.space.files import write_volume
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap, Volume

_SHOWN = 300  # characters of what a command that failed has said


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
        command = [part.format(image=image, labels=labels) for part in shlex.split(settings.segmenter)]
        _run(command, settings.segmenter_minutes * 60)
        if not labels.exists():
            raise InvalidLabelsError(f"{command[0]} ended well, but wrote nothing to {{labels}}")
        found, _ = open_labels(labels, ReadOptions(numbering=settings.segmenter_numbering))
    if not found.grid.is_close(volume.grid):
        raise InvalidLabelsError(f"{command[0]} wrote labels on another grid: {found.grid}, not {volume.grid}")
    return LabelMap(found.array, volume.grid)


def _run(command: list[str], seconds: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise RunError(f"there is no command {command[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{command[0]} took longer than {seconds / 60:g} minutes") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[-_SHOWN:]
        raise RunError(f"{command[0]} ended with {done.returncode}: {said or 'it said nothing'}")
