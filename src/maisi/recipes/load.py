"""Recipes by packaged name or from a YAML file, and with the classes of the bundles that they go on from."""

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from maisi.bundle.bundle import BundleInfo, load_bundle
from maisi.errors import InvalidConfigError
from maisi.recipes.recipe import BundleRecipe
from maisi.storage.settings import check_settings, read_settings

CLASSED = ("diffusion", "controlnet")  # parts of a recipe that have classes


def load_recipe(name_or_path: str | Path) -> BundleRecipe:
    """The recipe of that packaged name or file; raises `InvalidConfigError` naming the setting that is wrong."""
    return check_settings(BundleRecipe, read_recipe(name_or_path))


def read_recipe(name_or_path: str | Path) -> dict[str, Any]:
    """The settings of that recipe as they are written down."""
    packaged = {p.name.removesuffix(".yaml"): p for p in files("maisi.recipes").joinpath("presets").iterdir()}
    if str(name_or_path) in packaged:
        with as_file(packaged[str(name_or_path)]) as path:
            return read_settings(path)
    if not Path(name_or_path).is_file():
        raise InvalidConfigError(
            f"no recipe {str(name_or_path)!r}; accepted: {', '.join(sorted(packaged))}, or a YAML file"
        )
    return read_settings(Path(name_or_path))


def with_classes(settings: Mapping[str, Any], bundle: str | None = None) -> dict[str, Any]:
    """The settings of a recipe whose parts know the classes of their bundles: that which they start from, and `bundle`.

    Raises `InvalidConfigError` where the recipe gives a class another id than a bundle does.
    """
    parts = {name: dict(part) for name in CLASSED if isinstance(part := settings.get(name), Mapping)}
    for part in parts.values():
        for each in dict.fromkeys((bundle, part.get("start_from"))):
            if isinstance(each, str):
                part["classes"] = _joined(part.get("classes") or {}, load_bundle(each).info)
    return {**settings, **parts}


def _joined(classes: Any, info: BundleInfo) -> Any:
    """The classes of a part with those of a bundle; what is no mapping is refused later, as any wrong setting."""
    if not isinstance(classes, Mapping):
        return classes
    joined = dict(classes)
    for id, name in info.classes.items():
        said = classes.get(name) or {}
        if not isinstance(said, Mapping):
            continue
        if said.get("id") not in (None, id):
            raise InvalidConfigError(
                f"class {name!r} has the id {id} in bundle {info.name}; the recipe says {said['id']}"
            )
        joined[name] = {**said, "id": id}
    return joined
