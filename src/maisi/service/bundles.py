"""What the configured bundles are, told from their settings alone: nothing here imports torch or loads a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maisi.bundle.places import BUNDLE_INFO, find_bundle, lasting_name_of
from maisi.errors import InvalidBundleError

CONFIG, LICENCE = "config.yaml", "LICENSE"


def configured(names: Sequence[str]) -> dict[str, str]:
    """Bundles by their own names: what the program finds each by. Raises `InvalidBundleError`."""
    found: dict[str, str] = {}
    for said in names:
        folder = find_bundle(said)
        name = str(_settings(folder)["name"])
        if name in found:
            raise InvalidBundleError(f"two bundles are called {name!r}; accepted: one of each name")
        found[name] = lasting_name_of(said)
    return found


def describe(bundles: Mapping[str, str]) -> list[dict[str, Any]]:
    """All that clients need to know of each bundle, the default first."""
    return [_described(name, find_bundle(said), index == 0) for index, (name, said) in enumerate(bundles.items())]


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
    folder = find_bundle(said)
    path = folder / LICENCE
    return path.read_text(encoding="utf-8") if path.is_file() else str(_settings(folder).get("licence", ""))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / BUNDLE_INFO
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InvalidBundleError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or "name" not in settings:
        raise InvalidBundleError(f"{path} does not name a bundle; accepted: the bundle.yaml of a bundle")
    return settings
