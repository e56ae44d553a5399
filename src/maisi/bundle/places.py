"""Where bundles are: packaged ones by their names, others by their paths. Imports no torch."""

from difflib import get_close_matches
from pathlib import Path

from maisi.errors import InvalidBundleError
from maisi.storage.folders import user_path

BUNDLE_INFO = "bundle.yaml"
PACKAGED = Path(__file__).parent / "packaged"


def packaged_names() -> list[str]:
    """Names of the bundles that ship with the package."""
    return sorted(path.parent.name for path in PACKAGED.glob(f"*/{BUNDLE_INFO}"))


def find_bundle(name_or_path: str | Path) -> Path:
    """The folder of a packaged bundle, by its name, or of any other, by its path.

    A packaged name comes first; write ./name for a folder of the same name. Raises `InvalidBundleError` listing what
    there is.
    """
    names = packaged_names()
    if str(name_or_path) in names:
        return PACKAGED / str(name_or_path)
    path = user_path(name_or_path)
    if (path / BUNDLE_INFO).is_file():
        return path
    if path.is_dir():
        raise InvalidBundleError(f"{path} is no bundle: it has no {BUNDLE_INFO}")
    if path.is_file():
        raise InvalidBundleError(
            f"{path} is a file, but a bundle is a folder; `maisi convert` makes one from a checkpoint"
        )
    close = get_close_matches(str(name_or_path), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    accepted = ", ".join([*names, "the path of a bundle folder"])
    raise InvalidBundleError(f"no bundle {str(name_or_path)!r}; {hint}accepted: {accepted}")


def lasting_name_of(name: str) -> str:
    """What finds the same bundle from any folder: its name where it is packaged, else its absolute path."""
    return name if name in packaged_names() else str(find_bundle(name).resolve())
