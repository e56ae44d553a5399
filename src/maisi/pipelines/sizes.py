"""Amounts of memory as people write them."""

import re
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"^\s*(?P<number>\d+(\.\d+)?|\.\d+)\s*(?P<unit>[KMGT]?I?)B?\s*$", re.IGNORECASE)


def parse_bytes(text: str | int) -> int:
    """The bytes of an amount such as 8GB (10^9), 2GiB (2^30), 500 MB or a plain number; ValueError for another text."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ValueError(f"{text!r} is no amount of memory; write 8GB, 500MB or 2GiB")
    match = _SIZE.match(str(text))
    if match is None or match["unit"].upper() not in _UNITS:
        raise ValueError(f"{text!r} is no amount of memory; write 8GB, 500MB or 2GiB")
    num_bytes = round(float(match["number"]) * _UNITS[match["unit"].upper()])
    if num_bytes < 1:
        raise ValueError(f"{text!r} is no memory at all; write 8GB, 500MB or 2GiB")
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """An amount to be read by people, in units of 10^3: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


Bytes = Annotated[int, BeforeValidator(parse_bytes)]
"""A setting in bytes that may be written as 8GB."""
