"""Recipes by packaged name or from a YAML file."""

from importlib.resources import as_file, files
from pathlib import Path

from maisi.errors import InvalidConfigError
from maisi.recipes.recipe import BundleRecipe
from maisi.storage.settings import check_settings, read_settings


def load_recipe(name_or_path: str | Path) -> BundleRecipe:
    """The recipe of that packaged name or file; raises `InvalidConfigError` naming the setting that is wrong."""
    packaged = {p.name.removesuffix(".yaml"): p for p in files("maisi.recipes").joinpath("presets").iterdir()}
    if str(name_or_path) in packaged:
        with as_file(packaged[str(name_or_path)]) as path:
            return check_settings(BundleRecipe, read_settings(path))
    if not Path(name_or_path).is_file():
        raise InvalidConfigError(
            f"no recipe {str(name_or_path)!r}; accepted: {', '.join(sorted(packaged))}, or a YAML file"
        )
    return check_settings(BundleRecipe, read_settings(Path(name_or_path)))
