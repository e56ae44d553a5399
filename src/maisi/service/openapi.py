"""The description of the REST: its bodies are the requests of the command line, from the same models."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from maisi.service.job import Problem
from maisi.service.kinds import KINDS
from maisi.service.nim_request import NimRequest

REF = "#/components/schemas/{model}"
PUBLIC = ("/v1/health/",)


def describer(app: FastAPI, has_token: bool) -> Callable[[], dict[str, Any]]:
    """What gives the description of an application, made at its first call."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, has_token)
        return app.openapi_schema

    return describe


def _described(app: FastAPI, has_token: bool) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    models: list[type[BaseModel]] = [*dict.fromkeys(KINDS.values()), NimRequest, Problem]
    names, definitions = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas |= definitions["$defs"]
    schemas["JobRequest"] = {
        "title": "JobRequest",
        "description": "A kind of job, and the settings of the command of that name.",
        "oneOf": [_job(kind, names[model, "validation"]["$ref"]) for kind, model in KINDS.items()],
        "discriminator": {"propertyName": "kind"},
    }
    if has_token:
        _close(found)
    return found


def _job(kind: str, reference: str) -> dict[str, Any]:
    return {
        "title": kind,
        "type": "object",
        "properties": {"kind": {"const": kind, "type": "string"}, "request": {"$ref": reference}},
        "required": ["kind", "request"],
        "additionalProperties": False,
    }


def _close(found: dict[str, Any]) -> None:
    """Say of every operation that is closed that it asks for a token."""
    found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            if not path.startswith(PUBLIC):
                operation["security"] = [{"token": []}]
