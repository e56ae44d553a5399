"""Writes what the reports of `maisi evaluate` hold: a JSON schema each, and one page for people.

python docs/reference/make.py
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from maisi.evaluation.autoencoder import AutoencoderReport
from maisi.evaluation.demographics import DemographicsReport
from maisi.evaluation.images import ImageReport
from maisi.evaluation.labels import LabelReport
from maisi.evaluation.memorization import MemorizationReport

FOLDER = Path(__file__).parent
PAGE = "evaluation.md"
REPORTS: dict[str, type[BaseModel]] = {
    "images": ImageReport,
    "labels": LabelReport,
    "autoencoder": AutoencoderReport,
    "memorization": MemorizationReport,
    "demographics": DemographicsReport,
}
INTRODUCTION = """# Reports of `maisi evaluate`

Every command writes `NAME.json` (UTF-8), the same as `--json` prints, and a page `NAME.html` that needs no network.
`version` grows when a field changes its meaning or goes away; fields may be added without. Lengths are in mm, volumes
in ml, intensities in HU. The schemas beside this page are JSON Schema 2020-12. Made by `docs/reference/make.py`.
"""


def files() -> dict[str, str]:
    """The content of every file that is made, by its name."""
    import json

    found = {f"{name}.schema.json": json.dumps(_schema(name), indent=1) + "\n" for name in REPORTS}
    return {**found, PAGE: "\n".join([INTRODUCTION, *(_section(name) for name in REPORTS)])}


def _schema(name: str) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **REPORTS[name].model_json_schema(mode="serialization"),
    }


def _section(name: str) -> str:
    schema = _schema(name)
    lines = [f"## `{name}.json`", "", _words(schema), "", *_table(schema)]
    for title, part in schema.get("$defs", {}).items():
        lines += [f"**{title}**: {_words(part)}", "", *_table(part)]
    return "\n".join(lines)


def _words(part: dict[str, Any]) -> str:
    return " ".join(part.get("description", "").split())


def _table(part: dict[str, Any]) -> list[str]:
    rows = [f"| `{name}` | {_kind(field)} | {_words(field)} |" for name, field in part.get("properties", {}).items()]
    return ["| field | type | |", "|---|---|---|", *rows, ""] if rows else []


def _kind(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_kind(each) for each in field["anyOf"])
    if field.get("type") == "array":
        inner = field.get("items") or next(iter(field.get("prefixItems", [{}])))
        return f"list of {_kind(inner)}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"{_kind(field['additionalProperties'])} by name"
    return str(field.get("type", "any"))


def main() -> None:
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
