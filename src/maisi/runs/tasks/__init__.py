"""Every task by the name of its command."""

from importlib import import_module
from typing import Any

from maisi.errors import InvalidRequestError
from maisi.runs.task import Task

HOMES = {
    "generate": "generate.GENERATE",
    "encode": "codec.ENCODE",
    "encode cases": "encode_cases.ENCODE_CASES",
    "decode": "codec.DECODE",
    "reconstruct": "codec.RECONSTRUCT",
    "convert": "convert.CONVERT",
    "convert latents": "convert.CONVERT_LATENTS",
    "labels augment": "augment_labels.AUGMENT_LABELS",
    "labels register": "register.REGISTER",
    "prepare": "prepare.PREPARE",
    "train autoencoder": "train.AUTOENCODER",
    "train diffusion": "train.DIFFUSION",
    "train controlnet": "train.CONTROLNET",
    "train recipe": "train.RECIPE",
}


def task_named(name: str) -> Task[Any]:
    """The task of a command; raises `InvalidRequestError` listing those that there are."""
    if name not in HOMES:
        raise InvalidRequestError(
            f"`maisi {name}` leaves no run that can be repeated; those that do: {', '.join(HOMES)}"
        )
    module, _, attribute = HOMES[name].partition(".")
    task: Task[Any] = getattr(import_module(f"maisi.runs.tasks.{module}"), attribute)
    return task
