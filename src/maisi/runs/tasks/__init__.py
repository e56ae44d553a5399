"""Every task by the name of its command."""

from importlib import import_module
from typing import Any

from maisi.errors import InvalidRequestError
from maisi.runs.task import Task

HOMES = {
    "generate": "generate.GENERATE",
    "generate many": "many.MANY",
    "inpaint": "inpaint.INPAINT",
    "refine": "refine.REFINE",
    "encode": "codec.ENCODE",
    "encode cases": "encode_cases.ENCODE_CASES",
    "decode": "codec.DECODE",
    "reconstruct": "codec.RECONSTRUCT",
    "segment": "segment.SEGMENT",
    "segment file": "segment.SEGMENT_FILE",
    "convert": "convert.CONVERT",
    "convert latents": "convert.CONVERT_LATENTS",
    "evaluate images": "evaluate_images.EVALUATE_IMAGES",
    "evaluate autoencoder": "evaluate_autoencoder.EVALUATE_AUTOENCODER",
    "evaluate demographics": "evaluate_demographics.EVALUATE_DEMOGRAPHICS",
    "evaluate labels": "evaluate_labels.EVALUATE_LABELS",
    "evaluate memorization": "evaluate_memorization.EVALUATE_MEMORIZATION",
    "labels augment": "augment_labels.AUGMENT_LABELS",
    "labels register": "register.REGISTER",
    "export": "export.EXPORT",
    "downstream run": "downstream.DOWNSTREAM",
    "labels generate": "labels_generate.LABELS_GENERATE",
    "prepare": "prepare.PREPARE",
    "labels prepare": "labels_prepare.PREPARE_LABELS",
    "labels library add": "labels_library.ADD",
    "labels library draw": "labels_library.DRAW",
    "train autoencoder": "train.AUTOENCODER",
    "train diffusion": "train.DIFFUSION",
    "train controlnet": "train.CONTROLNET",
    "train segmenter": "train.SEGMENTER",
    "train recipe": "train.RECIPE",
    "train labels": "train.LABELS",
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
