"""MONAI's Auto3DSeg as a backend, by its own command line: what the paper's downstream table was made with."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

from maisi.downstream.backends.backend import Exercise, OnStep
from maisi.downstream.backends.outside import command_in, complete_cases, found_in, link, same_threads
from maisi.downstream.experiment import TrainingSettings
from maisi.downstream.store import StoredCase
from maisi.errors import InvalidRequestError
from maisi.pipelines.prepare.segmenter import run_command
from maisi.space.volume import LabelMap

INSTALL = "pip install 'monai[fire,pyyaml,psutil,tensorboard,tqdm,nibabel]'"
_NEEDED = ("monai", "fire")
SEEDED = {"dints", "swinunetr", "segresnet2d"}
"""Algorithms whose templates have a `random_seed`; segresnet has none."""

OF_GPUS = {"dints", "swinunetr"}
"""Algorithms whose templates call CUDA as they start."""


@dataclass(frozen=True)
class Auto3DSeg:
    """Analyses, trains one fold of one algorithm or several, and predicts by their ensemble."""

    settings: TrainingSettings

    def check(self) -> None:
        if self.settings.environment is not None:
            command_in(self.settings.environment, "python", "Auto3DSeg", INSTALL)
        else:
            missing = [name for name in _NEEDED if find_spec(name) is None]
            if missing:
                raise InvalidRequestError(f"Auto3DSeg is not installed: no {missing[0]}; install it by: {INSTALL}")
            self._check_device()
        templates = self.settings.templates
        if templates is not None and not templates.is_dir():
            raise InvalidRequestError(
                f"there are no algorithm templates at {templates}; accepted: the folder algorithm_templates of MONAI's "
                "research contributions, or none, to let MONAI download them"
            )

    @property
    def algorithms(self) -> set[str]:
        """The names of the algorithms."""
        return {name.strip() for name in self.settings.algorithms.split(",")}

    def _check_device(self) -> None:
        lacking = sorted(self.algorithms & OF_GPUS)
        if lacking and not torch.cuda.is_available():
            raise InvalidRequestError(
                f"training.algorithms: {' and '.join(lacking)} of Auto3DSeg train on a CUDA GPU alone, and torch finds "
                "none here; accepted: segresnet, segresnet2d, or a machine with one"
            )

    def segment(self, exercise: Exercise, scratch: Path, on_step: OnStep) -> Iterator[tuple[StoredCase, LabelMap]]:
        training = write_input(exercise, scratch)
        with TemporaryDirectory() as elsewhere:  # it splits its own command lines at spaces, those of paths too
            link(scratch, Path(elsewhere) / "scratch")
            command = self.command(Path(elsewhere) / "scratch", self.epochs(training), exercise.seed)
            beside = Path(command[0]).parent  # its scripts look for `python` on the path
            run_command(command, environment={"PATH": f"{beside}:/usr/bin:/bin", **same_threads()})
        on_step(1, 1)
        yield from found_in(scratch / "work" / "ensemble_output", exercise, "_ct_ensemble.nii.gz")

    def epochs(self, training: list[StoredCase]) -> int | None:
        """Over all cases, of as many steps as those that are asked for take over the real ones; None: it chooses."""
        asked, real = self.settings.epochs, sum(not case.synthetic for case in training)
        return None if asked is None else max(1, round(asked * real / len(training)))

    def command(self, scratch: Path, epochs: int | None, seed: int) -> list[str]:
        """What is called; a lone dash ends the arguments of a part. The seed is for algorithms that take one."""
        environment, templates = self.settings.environment, self.settings.templates
        python = sys.executable if environment is None else command_in(environment, "python", "Auto3DSeg", INSTALL)
        takes_seed = self.algorithms <= SEEDED
        told = ({} if epochs is None else {"num_epochs": epochs}) | ({"random_seed": seed} if takes_seed else {})
        params = ["set_training_params", f"--params={told}", "-"] if told else []
        return [
            python,
            *("-m", "monai.apps.auto3dseg", "AutoRunner"),
            f"--input={scratch / 'input.yaml'}",
            f"--work_dir={scratch / 'work'}",
            f"--algos={self.settings.algorithms}",
            *([] if templates is None else [f"--templates_path_or_url={templates}"]),
            *("-", *params, "run"),
        ]


def write_input(exercise: Exercise, scratch: Path) -> list[StoredCase]:
    """The task and the datalist, of which fold 0 validates; returns the cases that are trained on."""
    validation = [case for case in exercise.validation if set(exercise.classes) <= set(case.known)]
    training = complete_cases(exercise.training, exercise)
    listed = [(1, case) for case in training] + [(0, case) for case in validation or training[:1]]
    files = {
        "training": [
            {"image": f"{case.id}_ct.nii.gz", "label": f"{case.id}_labels.nii.gz", "fold": fold}
            for fold, case in listed
        ],
        "testing": [{"image": f"{case.id}_ct.nii.gz"} for case in exercise.test],
    }
    (scratch / "datalist.json").write_text(json.dumps(files, indent=1), encoding="utf-8")
    task = {
        "modality": "CT",
        "datalist": str(scratch / "datalist.json"),
        "dataroot": str(exercise.folder.resolve()),
        "class_names": list(exercise.classes),
        "num_fold": 1,
        "output_classes": len(exercise.classes) + 1,  # it counts those that it sees, and one may be in no case
    }
    (scratch / "input.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return training
