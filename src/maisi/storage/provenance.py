"""What a file says of how it was made: enough to make it again. Every format that maisi writes has a place for it."""

import json
from typing import Any

from pydantic import Field, ValidationError

from maisi.errors import InvalidRequestError
from maisi.shapes import Frozen

KEY = "maisi_provenance"
"""The name of the entry in formats of keys and values."""

NOTICE = "Synthetic, not for diagnosis"
SYNTHESIZING = frozenset(
    {
        *("generate", "generate many", "inpaint", "refine", "decode", "reconstruct"),
        *("labels generate", "labels augment", "labels library draw"),
    }
)
"""Commands whose files show, in whole or in part, what no scanner has seen."""

_VALUES_DEPEND_ON = ("device", "precision", "threads")
_MARK = '{"maisi":'


class BundleIdentity(Frozen):
    """Which bundle a run used; the sum is that of its `checksums.json`, which holds the sums of all its files."""

    name: str
    version: str
    sha256: str | None


class Provenance(Frozen):
    """Program version, command and request, bundle and inputs by their sums (SHA-256), and the file's name in the run.

    Holds no time and nothing of the machine: equal requests give equal files.
    """

    maisi: str
    command: str
    request: dict[str, Any]
    seed: int | None = None
    bundle: BundleIdentity | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    file: str = ""

    @property
    def is_synthetic(self) -> bool:
        """Whether some of what the file shows was made artificially."""
        return self.command in SYNTHESIZING

    @property
    def text(self) -> str:
        """One line of JSON in ASCII."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"))

    @property
    def summary(self) -> str:
        """What made the file, for people to read."""
        parts = [f"maisi {self.maisi}", f"maisi {self.command}"]
        parts += [f"seed {self.seed}"] if self.seed is not None else []
        if self.bundle is not None:
            parts.append(f"bundle {self.bundle.name} {self.bundle.version} (SHA-256 {self.bundle.sha256})")
        return ", ".join(parts)

    def of(self, file: str) -> "Provenance":
        """The same of one file of the run."""
        return self.model_copy(update={"file": file})


def lasting(request: dict[str, Any]) -> dict[str, Any]:
    """The settings of a request without those that change no value: memory, scratch folder, ranks."""
    compute = request.get("compute")
    if not isinstance(compute, dict):
        return request
    return {**request, "compute": {name: compute[name] for name in _VALUES_DEPEND_ON if name in compute}}


def is_provenance(text: str) -> bool:
    """Whether a text from a file begins as a provenance does."""
    return text.startswith(_MARK)


def parse_provenance(text: str, where: object) -> Provenance:
    """The provenance in a text; raises `InvalidRequestError` where it is damaged."""
    try:
        return Provenance.model_validate_json(text)
    except ValidationError as error:
        raise InvalidRequestError(
            f"what {where} says of its making is damaged ({error.errors()[0]['msg']}); accepted: a file of maisi as "
            "it was written"
        ) from error
