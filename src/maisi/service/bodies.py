"""Bodies in JSON, read with the care that a document of a stranger needs, and their schemas in OpenAPI."""

import json
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException

from maisi.errors import InvalidConfigError
from maisi.storage.settings import close_to


def json_body(schema: str) -> dict[str, Any]:
    """What OpenAPI says of an operation that reads its body itself."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


def read_json(body: bytes, content_type: str | None) -> Any:
    """The value in a body; an `HTTPException` of 415 or 400 for what is no JSON."""
    if (content_type or "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, f"a body of {content_type!r}; accepted: application/json")
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON ({error}); accepted: JSON in UTF-8") from error


def object_of(body: bytes, content_type: str | None, names: Sequence[str]) -> dict[str, Any]:
    """The object in a body, with these names and no others."""
    found = read_json(body, content_type)
    if not isinstance(found, dict):
        raise InvalidConfigError(f"the body is no object; accepted: one with {', '.join(names)}")
    problems = [f"setting {name!r} is missing" for name in names if name not in found]
    problems += [f"unknown setting {name!r}; {close_to(name, names)}" for name in found if name not in names]
    if problems:
        raise InvalidConfigError("\n".join(problems))
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
