"""nnU-Net v2 as a backend: its commands in an environment of its own, never imported."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maisi.downstream.backends.backend import Exercise, OnStep
from maisi.downstream.backends.outside import command_in, complete_cases, found_in, link, same_threads
from maisi.downstream.experiment import TrainingSettings
from maisi.downstream.store import StoredCase
from maisi.pipelines.prepare.segmenter import run_command
from maisi.space.volume import LabelMap

INSTALL = "python -m venv nnunet && nnunet/bin/pip install nnunetv2 (then: training.environment: nnunet)"
DATASET = "Dataset001_maisi"
_COMMANDS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")
_QUIET = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}  # 0 processes end the planner


@dataclass(frozen=True)
class NNUNet:
    """Plans, trains one fold in full resolution, and predicts."""

    settings: TrainingSettings

    def check(self) -> None:
        for name in _COMMANDS:
            command_in(self.settings.environment, name, "nnU-Net", INSTALL)

    def segment(self, exercise: Exercise, scratch: Path, on_step: OnStep) -> Iterator[tuple[StoredCase, LabelMap]]:
        places = {name: scratch / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        write_dataset(exercise, places["nnUNet_raw"] / DATASET)
        variables = {**_QUIET, **same_threads(), **{name: str(path) for name, path in places.items()}}
        commands = self.commands(scratch)
        for done, command in enumerate(commands):
            if done == 1:  # after planning
                write_split(exercise, places["nnUNet_preprocessed"] / DATASET)
            on_step(done, len(commands))
            run_command(command, environment=variables)
        on_step(len(commands), len(commands))
        yield from found_in(scratch / "found", exercise, ".nii.gz")

    def commands(self, scratch: Path) -> list[list[str]]:
        """What is called, in order."""
        plan, train, predict = (command_in(self.settings.environment, name, "nnU-Net", INSTALL) for name in _COMMANDS)
        trainer = ["-tr", self.settings.trainer] if self.settings.trainer else []
        device = ["-device", self.settings.device]
        images = scratch / "nnUNet_raw" / DATASET / "imagesTs"
        return [
            [plan, "-d", "1", "-c", "3d_fullres", "-np", "1", "-npfp", "1"],
            [train, "1", "3d_fullres", "0", *trainer, *device],
            [predict, "-i", str(images), "-o", str(scratch / "found"), "-d", "1", "-c", "3d_fullres", "-f", "0",
             *trainer, *device],
        ]  # fmt: skip


def write_dataset(exercise: Exercise, folder: Path) -> None:
    """The cases as nnU-Net takes them: images by channel, label maps, and `dataset.json`."""
    cases = _trained_on(exercise)
    for case in cases:
        link(exercise.folder / f"{case.id}_ct.nii.gz", folder / "imagesTr" / f"{case.id}_0000.nii.gz")
        link(exercise.folder / f"{case.id}_labels.nii.gz", folder / "labelsTr" / f"{case.id}.nii.gz")
    for case in exercise.test:
        link(exercise.folder / f"{case.id}_ct.nii.gz", folder / "imagesTs" / f"{case.id}_0000.nii.gz")
    labels = {"background": 0, **{name: k for k, name in enumerate(exercise.classes, start=1)}}
    told = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def write_split(exercise: Exercise, folder: Path) -> None:
    """Its one fold: our training and validation cases."""
    folder.mkdir(parents=True, exist_ok=True)
    training = [case.id for case in complete_cases(exercise.training, exercise)]
    validation = [case.id for case in _trained_on(exercise) if case.id not in training]
    fold = {"train": training, "val": validation or training[:1]}
    (folder / "splits_final.json").write_text(json.dumps([fold], indent=1), encoding="utf-8")


def _trained_on(exercise: Exercise) -> list[StoredCase]:
    validation = [case for case in exercise.validation if set(exercise.classes) <= set(case.known)]
    return [*complete_cases(exercise.training, exercise), *validation]
