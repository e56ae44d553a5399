"""What trains and tests: a backend gets cases in files, and gives a map of classes of each case to test on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from maisi.downstream.experiment import TrainingSettings
from maisi.downstream.store import StoredCase
from maisi.space.volume import LabelMap

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Exercise:
    """Cases to train on, to choose by, and to test on, all in `folder`; classes by name, numbered from 1."""

    training: tuple[StoredCase, ...]
    validation: tuple[StoredCase, ...]
    test: tuple[StoredCase, ...]
    folder: Path
    classes: tuple[str, ...]
    settings: TrainingSettings
    seed: int
    spacing_mm: float


@runtime_checkable
class Backend(Protocol):
    """A way to learn a segmentation."""

    def check(self) -> None:
        """Nothing, or an `InvalidRequestError` with the line that installs what is missing."""

    def segment(self, exercise: Exercise, scratch: Path, on_step: OnStep) -> Iterator[tuple[StoredCase, LabelMap]]:
        """Train, then each case to test on with the map of classes that was found."""


def backend_of(settings: TrainingSettings) -> Backend:
    """The backend that the settings name."""
    if settings.backend == "builtin":
        from maisi.downstream.backends.builtin import Builtin

        return Builtin()
    if settings.backend == "auto3dseg":
        from maisi.downstream.backends.auto3dseg import Auto3DSeg

        return Auto3DSeg(settings)
    from maisi.downstream.backends.nnunet import NNUNet

    return NNUNet(settings)
