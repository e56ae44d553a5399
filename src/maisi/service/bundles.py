"""What the configured bundles are, told from their settings alone: nothing here imports torch or loads a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import maisi.bundle
from maisi.errors import InvalidBundleError

INFO, CONFIG, LICENCE = "bundle.yaml", "config.yaml", "LICENSE"
PACKAGED = Path(maisi.bundle.__file__).parent / "packaged"


def configured(names: Sequence[str]) -> dict[str, str]:
    """Bundles by their own names: what the program finds each by. Raises `InvalidBundleError`."""
    found: dict[str, str] = {}
    for said in names:
        folder = folder_of(said)
        name = str(_settings(folder)["name"])
        if name in found:
            raise InvalidBundleError(f"two bundles are called {name!r}; accepted: one of each name")
        found[name] = said if folder.parent == PACKAGED else str(folder)
    return found


def folder_of(said: str) -> Path:
    """The folder of a bundle that a name or a path says; raises `InvalidBundleError`."""
    for folder in (PACKAGED / said, Path(said).expanduser().resolve()):
        if (folder / INFO).is_file():
            return folder
    packaged = sorted(each.name for each in PACKAGED.iterdir()) if PACKAGED.is_dir() else []
    raise InvalidBundleError(f"no bundle {said!r}; accepted: {', '.join([*packaged, 'a folder with a bundle.yaml'])}")


def describe(bundles: Mapping[str, str]) -> list[dict[str, Any]]:
    """All that clients need to know of each bundle, the default first."""
    return [_described(name, folder_of(said), index == 0) for index, (name, said) in enumerate(bundles.items())]


def _described(name: str, folder: Path, is_default: bool) -> dict[str, Any]:
    info = _settings(folder)
    limits = info.get("limits") or {}
    return {
        "name": name,
        "default": is_default,
        "version": str(info.get("version", "")),
        "description": str(info.get("description", "")),
        "networks": sorted(entry.parent.name for entry in folder.glob(f"*/{CONFIG}")),
        "limits": limits,
        "regions": limits.get("regions", []),
        "tumours": info.get("tumours", []),
        "licence": str(info.get("licence", "")),
        "draws_labels": info.get("label_generator") is not None,
    }


def licence_text(said: str) -> str:
    """The licence of a bundle's weights in full, or its name."""
    folder = folder_of(said)
    path = folder / LICENCE
    return path.read_text(encoding="utf-8") if path.is_file() else str(_settings(folder).get("licence", ""))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InvalidBundleError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or "name" not in settings:
        raise InvalidBundleError(f"{path} does not name a bundle; accepted: the bundle.yaml of a bundle")
    return settings
