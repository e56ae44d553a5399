"""`maisi info`: the bundles there are, or what a bundle, a scan, a label map, a latent or a run is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi.cli.console import give, give_json, give_table, tell
from maisi.cli.options import AsJson

if TYPE_CHECKING:
    from maisi.space.grid import Grid
    from maisi.space.volume import LabelMap, Volume


def info(
    subject: Annotated[
        str | None,
        typer.Argument(metavar="[BUNDLE|FILE|DIR]", help="Nothing: the packaged bundles.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what bundles there are, or what a bundle, a CT, a label map, a latent or a run holds."""
    if subject is None:
        _show_bundles(as_json)
        return
    about = _about(subject)
    if as_json:
        give_json(about)
    else:
        _show(about)


def _show_bundles(as_json: bool) -> None:
    from maisi.bundle.bundle import load_bundle, packaged_names

    bundles = [load_bundle(name) for name in packaged_names()]
    if as_json:
        give_json([bundle.describe() for bundle in bundles])
    elif bundles:
        give_table([(b.name, b.info.version, ", ".join(b.kinds), b.info.description) for b in bundles])
    else:
        tell("no bundle is packaged here; maisi convert and maisi train make some")


def _about(subject: str) -> dict[str, Any]:
    """What is known of a subject, by the kind of thing that it is."""
    from maisi.bundle.bundle import load_bundle, packaged_names

    path = Path(subject).expanduser()
    if subject in packaged_names() or (path / "bundle.yaml").is_file():
        bundle = load_bundle(subject)
        return {"kind": "bundle", **bundle.describe(), "model_card": bundle.model_card}
    if (path / "run.json").is_file() or path.name == "run.json":
        from maisi.pipelines.runs import RUN_RECORD, read_record

        record = read_record(path if path.name == RUN_RECORD else path / RUN_RECORD)
        return {"kind": "run", **record.model_dump(mode="json")}
    if path.name.endswith(".safetensors"):
        from maisi.pipelines.codec import read_latent

        latent = read_latent(path)
        return {"kind": "latent", "latent_shape": list(latent.mean.shape), **_grid(latent.grid)}
    if path.exists():
        return _about_image(path)
    from maisi.errors import InvalidRequestError

    accepted = ", ".join([*packaged_names(), "a bundle's or a run's folder", "a file of a CT, a label map or a latent"])
    raise InvalidRequestError(f"no bundle, file or folder {subject!r}; accepted: {accepted}")


def _about_image(path: Path) -> dict[str, Any]:
    """A CT, or where it is none, a label map; the refusal of both where it is neither."""
    from maisi.data.door import open_labels
    from maisi.errors import InvalidLabelsError, InvalidVolumeError
    from maisi.space.files import read_volume

    try:
        return _about_volume(read_volume(path))
    except InvalidVolumeError as no_volume:
        try:
            return _about_labels(open_labels(path)[0])
        except InvalidLabelsError as no_labels:
            if path.is_dir():
                raise no_volume from no_labels
            raise InvalidVolumeError(f"{no_volume}\n{no_labels}") from no_labels


def _about_volume(volume: "Volume") -> dict[str, Any]:
    import numpy as np

    shares = (0, 1, 50, 99, 100)
    hu = {
        f"p{share}": round(float(value), 1)
        for share, value in zip(shares, np.percentile(volume.array, shares), strict=True)
    }
    return {"kind": "volume", "modality": volume.modality, **_grid(volume.grid), "hu": hu}


def _about_labels(labels: "LabelMap") -> dict[str, Any]:
    import numpy as np

    from maisi.anatomy.regions import region_span
    from maisi.anatomy.vocabulary import load_vocabulary

    vocabulary = load_vocabulary()
    present = vocabulary.check_ids(labels.array)
    counts = np.bincount(labels.array.ravel(), minlength=max(present, default=0) + 1)
    voxel_ml = float(np.prod(labels.grid.spacing)) / 1000
    span = region_span(labels) if present else None
    return {
        "kind": "labels",
        **_grid(labels.grid),
        "regions": [region.name.lower() for region in span.regions] if span else [],
        "structures": [
            {
                "id": id,
                "name": vocabulary.name(id),
                "voxels": int(counts[id]),
                "volume_ml": round(float(counts[id]) * voxel_ml, 2),
            }
            for id in present
        ],
    }


def _grid(grid: "Grid") -> dict[str, Any]:
    return {
        "size": list(grid.shape),
        "spacing_mm": [round(s, 4) for s in grid.spacing],
        "fov_mm": [round(f, 1) for f in grid.fov_mm],
        "origin_mm": [round(o, 2) for o in grid.origin],
    }


def _show(about: dict[str, Any]) -> None:
    structures, card = about.pop("structures", None), about.pop("model_card", None)
    _show_values(about)
    if structures:
        give("")
        give_table([tuple(s.values()) for s in structures], ("id", "structure", "voxels", "ml"))
    if card:
        give(f"\n{card.strip()}")


def _show_values(values: dict[str, Any], indent: str = "") -> None:
    for name, value in values.items():
        label = f"{indent}{name if '.' in name else name.replace('_', ' ')}:"  # with a dot: the name of a file
        if isinstance(value, dict) and value:
            give(label)
            _show_values(value, indent + "  ")
        elif isinstance(value, list):
            give(f"{label} {(' x ' if _is_size(name) else ', ').join(map(str, value))}")
        elif value not in (None, "", {}):
            give(f"{label} {value}")


def _is_size(name: str) -> bool:
    return name.endswith(("size", "spacing_mm", "fov_mm"))
