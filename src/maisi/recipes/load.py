"""Recipes by packaged name or from a YAML file."""

from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import ValidationError

from maisi.errors import InvalidConfigError
from maisi.recipes.bundle import BundleRecipe


def load_recipe(name_or_path: str | Path) -> BundleRecipe:
    """The recipe of that packaged name or file; raises `InvalidConfigError` naming the setting that is wrong."""
    packaged = {p.name.removesuffix(".yaml"): p for p in files("maisi.recipes").joinpath("presets").iterdir()}
    text = _text(name_or_path, packaged)
    try:
        return BundleRecipe.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InvalidConfigError(f"recipe {name_or_path} is not YAML: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InvalidConfigError(f"recipe {name_or_path}: " + "; ".join(lines)) from error


def _text(name_or_path: str | Path, packaged: dict[str, object]) -> str:
    found = packaged.get(str(name_or_path))
    if found is not None:
        return found.read_text()  # type: ignore[attr-defined]
    path = Path(name_or_path)
    if not path.is_file():
        raise InvalidConfigError(f"no recipe {str(name_or_path)!r}; accepted: {', '.join(packaged)}, or a YAML file")
    return path.read_text()
