"""`maisi info`: the bundles there are, or what a bundle, a scan, a label map, a latent or a run is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi.cli.console import ASKED_WRONGLY, complain, give, give_json, give_table, tell
from maisi.cli.options import AsJson, takes
from maisi.space.reading import ReadOptions

_TAKE_VOLUMES = ("encode", "reconstruct", "prepare")
_TAKE_LABELS = ("generate --labels",)

if TYPE_CHECKING:
    from maisi.space.grid import Grid
    from maisi.space.volume import LabelMap, Volume


@takes(ReadOptions, config=False)
def info(
    request: ReadOptions,
    subject: Annotated[
        str | None,
        typer.Argument(metavar="[BUNDLE|FILE|DIR]", help="Nothing: the packaged bundles.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what bundles there are, or what a bundle, a CT, a label map, a latent or a run holds.

    Of an image also: what was found in it and decided about it, and which commands would take it; exit 2 where none
    would.
    """
    if subject is None:
        _show_bundles(as_json)
        return
    about = _about(subject, request)
    if as_json:
        give_json(about)
    else:
        _show(dict(about))
    for finding in about.get("found", ()):
        if finding["is_warning"]:
            tell(f"warning: {subject}: {finding['found']}; {finding['decided']}")
    if about["kind"] == "refused":
        for reason in dict.fromkeys(use["why"] for use in about["taken_by"].values()):
            complain(reason)
        raise typer.Exit(ASKED_WRONGLY)


def _show_bundles(as_json: bool) -> None:
    from maisi.bundle.bundle import load_bundle
    from maisi.bundle.places import packaged_names

    bundles = [load_bundle(name) for name in packaged_names()]
    if as_json:
        give_json([bundle.describe() for bundle in bundles])
    elif bundles:
        give_table([(b.name, b.info.version, ", ".join(b.kinds), b.info.description) for b in bundles])
    else:
        tell("no bundle is packaged here; maisi convert and maisi train make some")


def _about(subject: str, reading: ReadOptions) -> dict[str, Any]:
    """What is known of a subject, by the kind of thing that it is."""
    from maisi.bundle.bundle import load_bundle
    from maisi.bundle.places import BUNDLE_INFO, packaged_names
    from maisi.storage.folders import RUN_RECORD, user_path

    path = user_path(subject)
    if subject in packaged_names() or (path / BUNDLE_INFO).is_file():
        bundle = load_bundle(subject)
        return {"kind": "bundle", **bundle.describe(), "model_card": bundle.model_card}
    if (path / RUN_RECORD).is_file() or path.name == RUN_RECORD:
        from maisi.runs.record import read_record

        record = read_record(path if path.name == RUN_RECORD else path / RUN_RECORD)
        return {"kind": "run", **record.model_dump(mode="json")}
    if path.name.endswith(".safetensors"):
        from maisi.data.latents import read_latent

        latent = read_latent(path)
        facts = {"content": latent.content, "modality": latent.modality, "made_from": latent.made_from}
        return {"kind": "latent", **facts, "latent_shape": list(latent.mean.shape), **_grid(latent.grid)}
    if path.exists():
        return _about_image(path, reading)
    from maisi.errors import InvalidRequestError

    accepted = ", ".join([*packaged_names(), "a bundle's or a run's folder", "a file of a CT, a label map or a latent"])
    raise InvalidRequestError(f"no bundle, file or folder {subject!r}; accepted: {accepted}")


def _about_image(path: Path, reading: ReadOptions) -> dict[str, Any]:
    """What a scan or a label map is, what was found in it, and which commands would take it."""
    from maisi.data.door import open_labels, open_volume
    from maisi.errors import InvalidLabelsError, InvalidVolumeError

    volume = labels = None
    no_volume = no_labels = ""
    try:
        volume, report = open_volume(path, reading)
    except InvalidVolumeError as error:
        no_volume = str(error)
    if volume is None or any(f.topic == "values" and f.is_warning for f in report.findings):
        try:
            labels, report = open_labels(path, reading)
        except InvalidLabelsError as error:
            no_labels = str(error)
    else:
        no_labels = f"{path} is an image, not a label map"
    if labels is not None:
        no_labels = _why_not_generated(labels)
    about = {} if labels is None else _about_labels(labels)
    if volume is not None and labels is None:
        about = _about_volume(volume)
    if not about:
        about = _about_refused(path, no_volume, no_labels)
    else:
        about["found"] = [finding.model_dump() for finding in report.findings]
    about["taken_by"] = {name: {"taken": not no_volume, "why": no_volume} for name in _TAKE_VOLUMES}
    about["taken_by"] |= {name: {"taken": not no_labels, "why": no_labels} for name in _TAKE_LABELS}
    return about


def _why_not_generated(labels: "LabelMap") -> str:
    """Why `generate` would not follow a label map that can be read; "" where it would."""
    from maisi.anatomy.regions import region_span
    from maisi.errors import InvalidLabelsError

    if not labels.array.any():
        return "no label in it: 0 in every voxel"
    try:
        region_span(labels)
    except InvalidLabelsError as error:
        return f"{error} (--region)"
    return ""


def _about_refused(path: Path, no_volume: str, no_labels: str) -> dict[str, Any]:
    """What the header says of a file that no command takes; raises both reasons where not even that can be read."""
    from maisi.errors import InvalidVolumeError
    from maisi.space.checks import bad_volume
    from maisi.space.nifti import stored_facts

    if path.is_dir():
        raise InvalidVolumeError(no_volume)
    try:
        return {"kind": "refused", **stored_facts(path, bad_volume), "found": []}
    except InvalidVolumeError as error:
        raise InvalidVolumeError(no_volume if str(error) == no_volume else f"{no_volume}\n{no_labels}") from error


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
    span = None if _why_not_generated(labels) else region_span(labels)
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
    found, taken_by = about.pop("found", []), about.pop("taken_by", {})
    _show_values(about)
    for finding in found:
        give(f"{finding['topic']}: {finding['found']}; {finding['decided']}")
    for name, use in taken_by.items():
        give(f"{name}: " + ("would take it" if use["taken"] else f"would not: {use['why']}"))
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
