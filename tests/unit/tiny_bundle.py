"""A bundle with random weights in files."""

from pathlib import Path

from made_bundle import SMALL, random_bundle

from maisi.bundle.bundle import save_bundle


def save_tiny_bundle(folder: Path) -> Path:
    """A bundle that takes sizes of multiples of 4 up to 32 at 2 to 20 mm."""
    return save_bundle(random_bundle(SMALL), folder / "tiny")
