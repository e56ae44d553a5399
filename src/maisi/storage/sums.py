"""Checksums of files and folders."""

import hashlib
from collections.abc import Mapping
from pathlib import Path


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tree(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of the list of its files and their sums."""
    if path.is_file():
        return sha256(path)
    return sha256_of_list({f.relative_to(path).as_posix(): sha256(f) for f in sorted(path.rglob("*")) if f.is_file()})


def sha256_of_list(sums: Mapping[str, str]) -> str:
    """That of a folder, by the sums of its files in their order."""
    return hashlib.sha256("".join(f"{name} {each}\n" for name, each in sums.items()).encode()).hexdigest()
