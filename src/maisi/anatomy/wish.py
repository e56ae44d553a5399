"""One structure as it is asked for: its name, and its size in words. Imports nothing heavy."""

import re

from maisi.errors import InvalidAnatomyError
from maisi.shapes import Frozen

ACCEPTED = "a size from 0 to 1 (0.5 is usual), a volume such as 180ml, none, or any; of a tumour also 25mm across"
_SIZE = re.compile(r"(?P<number>[0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(?P<unit>[a-zµ³]*)", re.IGNORECASE)
_UNITS = {"": 1.0, "ml": 1.0, "cm3": 1.0, "cm³": 1.0, "cc": 1.0, "l": 1000.0, "mm": 1.0, "cm": 10.0}


class Wish(Frozen):
    """One structure as it was asked for; exactly one of the four is said."""

    name: str
    size: float | None = None  # 0 to 1
    ml: float | None = None
    across_mm: float | None = None  # diameter of the ball of the same volume
    is_present: bool | None = None  # of any size, or absent

    @classmethod
    def parse(cls, text: str) -> "Wish":
        """The wish that `name=size` says; raises `InvalidAnatomyError` for anything else."""
        name, sign, said = text.rpartition("=")
        name, said = name.strip().strip("\"'").strip(), said.strip().strip("\"'").lower()
        if not sign or not name or not said:
            raise InvalidAnatomyError(
                f"anatomy {text!r} names no structure and size; accepted: liver=0.6, with {ACCEPTED}"
            )
        if said in ("none", "any"):
            return cls(name=name, is_present=said == "any")
        found = _SIZE.fullmatch(said)
        if found is None or found["unit"] not in _UNITS:
            raise InvalidAnatomyError(f"{name}: {said!r} is no size; accepted: {ACCEPTED}")
        number, unit = float(found["number"]), found["unit"]
        if not unit and number > 1:
            raise InvalidAnatomyError(f"{name}: {said} is above 1 and has no unit; accepted: {ACCEPTED}")
        if unit and number == 0:
            raise InvalidAnatomyError(f"{name}: {said} is no volume; accepted: {ACCEPTED}")
        field = "size" if not unit else "across_mm" if unit in ("mm", "cm") else "ml"
        return cls.model_validate({"name": name, field: number * _UNITS[unit]})

    @property
    def text(self) -> str:
        """What `parse` takes."""
        if self.is_present is not None:
            return f"{self.name}={'any' if self.is_present else 'none'}"
        if self.size is not None:
            return f"{self.name}={self.size:g}"
        return f"{self.name}={self.ml:g}ml" if self.ml is not None else f"{self.name}={self.across_mm:g}mm"
