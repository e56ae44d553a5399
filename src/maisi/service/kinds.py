"""The kinds of jobs, their requests, and what of a request comes from a client's text. Imports no torch."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.evaluation.requests import (
    EvaluateAutoencoderRequest,
    EvaluateDemographicsRequest,
    EvaluateImagesRequest,
    EvaluateLabelsRequest,
    EvaluateMemorizationRequest,
)
from maisi.pipelines.inpaint_request import InpaintRequest
from maisi.pipelines.label_requests import LibraryDrawRequest
from maisi.pipelines.many.requests import ManyRequest
from maisi.pipelines.refine_request import RefineRequest
from maisi.pipelines.requests import (
    AugmentLabelsRequest,
    DecodeRequest,
    EncodeRequest,
    GenerateLabelsRequest,
    GenerateRequest,
    RegisterRequest,
    SegmentRequest,
)
from maisi.runs.requests import ExportRequest
from maisi.storage.settings import check_settings

KINDS: dict[str, type[BaseModel]] = {
    "generate": GenerateRequest,
    "generate-many": ManyRequest,
    "inpaint": InpaintRequest,
    "refine": RefineRequest,
    "encode": EncodeRequest,
    "decode": DecodeRequest,
    "reconstruct": EncodeRequest,
    "segment": SegmentRequest,
    "labels-generate": GenerateLabelsRequest,
    "labels-augment": AugmentLabelsRequest,
    "labels-register": RegisterRequest,
    "labels-library-draw": LibraryDrawRequest,
    "evaluate-images": EvaluateImagesRequest,
    "evaluate-autoencoder": EvaluateAutoencoderRequest,
    "evaluate-demographics": EvaluateDemographicsRequest,
    "evaluate-labels": EvaluateLabelsRequest,
    "evaluate-memorization": EvaluateMemorizationRequest,
    "export": ExportRequest,
}
"""The request of each kind: that of the command of this name. Trainings and checkpoints (pickles) are not offered."""


def check_request(kind: str, given: Any) -> BaseModel:
    """The request of a kind of job; `InvalidConfigError` with a line for each setting that is unknown or wrong."""
    if kind not in KINDS:
        close = get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InvalidRequestError(f"unknown kind of job {kind!r}; {hint}accepted: {', '.join(KINDS)}")
    if not isinstance(given, Mapping):
        raise InvalidConfigError('request: no settings; accepted: an object such as {"seed": 7}')
    _check_folders(given, "")
    request = check_settings(KINDS[kind], given)
    texts = list(_mistyped(given, request.model_dump(), ""))
    if texts:
        raise InvalidConfigError("\n".join(texts))
    return request


def _check_folders(given: Any, where: str) -> None:
    """Nothing, or the refusal of a distribution over the files of a folder, which would be one of the server."""
    if isinstance(given, Mapping):
        for name, value in given.items():
            here = f"{where}.{name}" if where else str(name)
            if name == "file_of":
                raise InvalidConfigError(f"{here}: a folder of the server; accepted: labels: upload:ID")
            _check_folders(value, here)
    elif isinstance(given, list):
        for index, value in enumerate(given):
            _check_folders(value, f"{where}.{index}")


def _mistyped(given: Any, understood: Any, where: str) -> Any:
    """A line for each number or switch that was given as a text, as a command line gives it but JSON does not."""
    if isinstance(given, Mapping) and isinstance(understood, Mapping):
        for name in given:
            yield from _mistyped(given[name], understood.get(name), f"{where}.{name}" if where else str(name))
    elif isinstance(given, list) and isinstance(understood, list | tuple):
        for index, (inner, meant) in enumerate(zip(given, understood, strict=False)):
            yield from _mistyped(inner, meant, f"{where}.{index}")
    elif isinstance(understood, bool) != isinstance(given, bool) and isinstance(understood, bool | int | float):
        wanted = "true or false" if isinstance(understood, bool) else "a number"
        yield f"{where}: {given!r} is not accepted; it should be {wanted}"
    elif isinstance(understood, int | float) and isinstance(given, str) and not is_amount(where):
        yield f"{where}: {given!r} is not accepted; it should be a number"


def is_amount(where: str) -> bool:
    """Whether a setting is an amount of memory, which may be a text such as 8GB."""
    return where.rpartition(".")[2] in ("memory", "host_memory")
