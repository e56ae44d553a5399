"""Settings in upstream's JSON files as settings of ours: what was taken, what was corrected, what was left out.

Nothing in these files is ever carried out: `$` and `@` expressions are text.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidConfigError


@dataclass
class Translation:
    """Settings of ours, of which command or recipe, and a line for all that did not come over as it stood."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


SPELT = {"contrasive": "contrastive"}
PATHS = {
    "trained_autoencoder_path": "autoencoder",
    "trained_diffusion_path": "diffusion U-Net",
    "trained_controlnet_path": "ControlNet",
    "trained_mask_generation_autoencoder_path": "label autoencoder",
    "trained_mask_generation_diffusion_path": "label diffusion U-Net",
    "existing_ckpt_filepath": "checkpoint to go on from",
}


def translated(path: Path) -> Translation:
    """What an upstream JSON file means here; raises `InvalidConfigError` for a file that is none of theirs."""
    content = _content(path)
    for has, translate in _KINDS:
        if has(content):
            return translate(content)
    raise InvalidConfigError(
        f"{path} is none of upstream's settings that are known here (inference, environment, training of the VAE, the "
        f"diffusion model or the ControlNet); it has {', '.join(list(content)[:6])}"
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidConfigError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise InvalidConfigError(f"{path} holds a {type(content).__name__}; expected a mapping of settings")
    return content


def _plain(found: Translation, name: str, value: Any) -> Any:
    """A value, unless it is an expression, which is left out by name."""
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        found.notes.append(f"{name}: left out, an expression ({value[:40]})")
        return None
    return value


def _take(found: Translation, content: Mapping[str, Any], names: Mapping[str, str], into: dict[str, Any]) -> None:
    for theirs, ours in names.items():
        value = _plain(found, theirs, content.get(theirs))
        if value is not None:
            _put(into, ours.split("."), value)


def _put(into: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        into = into.setdefault(name, {})
    into[path[-1]] = value


def _rest(found: Translation, content: Mapping[str, Any], taken: Mapping[str, str] | set[str], why: str) -> None:
    left = [name for name in content if name not in taken]
    if left:
        found.notes.append(f"left out, {why}: {', '.join(sorted(left))}")


_REGIONS = {"chest": "chest", "thorax": "chest", "chest/thorax": "chest", "abdomen": "abdomen", "head": "head"}
_REGIONS |= {"pelvis": "lower", "lower": "lower", "pelvis/lower": "lower"}
_INFERENCE = {
    "num_output_samples": "count",
    "output_size": "size",
    "dim": "size",
    "spacing": "spacing",
    "num_inference_steps": "steps",
    "random_seed": "seed",
}


def _of_inference(content: Mapping[str, Any]) -> Translation:
    found = Translation("generate")
    own = content.get("diffusion_unet_inference", content)
    _take(found, own, _INFERENCE, found.settings)
    seed = found.settings.get("seed")
    if isinstance(seed, str):
        found.settings["seed"] = int(seed)
        found.notes.append(f"random_seed: the text {seed!r} became the number")
    regions = own.get("body_region") or []
    if regions:
        named = [_REGIONS.get(str(each).lower()) for each in regions]
        found.settings["region"] = named[0]
        if len(named) > 1 or named[0] is None:
            found.notes.append(
                f"body_region {regions}: one region is drawn here, {named[0] or 'none of these is known'}"
            )
            found.settings = {key: value for key, value in found.settings.items() if value is not None}
    if own.get("cfg_guidance_scale"):
        found.notes.append(
            f"cfg_guidance_scale {own['cfg_guidance_scale']}: not taken, guidance is no setting here yet"
        )
    if own.get("anatomy_list"):
        found.notes.append(
            f"anatomy_list {own['anatomy_list']}: not taken; labels come by --labels or from the phantom"
        )
    if own.get("modality", 1) not in (1, 2, 3) and any(
        name in own for name in ("top_region_index", "bottom_region_index")
    ):
        found.notes.append("top_region_index, bottom_region_index: unused by models of MR")
    known = {*_INFERENCE, "body_region", "cfg_guidance_scale", "anatomy_list"}
    _rest(found, own, known, "they are no settings of a request here")
    return found


def _of_vae(content: Mapping[str, Any]) -> Translation:
    found = Translation("train autoencoder")
    own = content["autoencoder_train"]
    names = {
        "batch_size": "batch_size",
        "patch_size": "patch",
        "lr": "optimization.learning_rate",
        "n_epochs": "loop.epochs",
        "perceptual_weight": "perceptual_weight",
        "adv_weight": "adversarial_weight",
        "recon_loss": "reconstruction",
    }
    part: dict[str, Any] = {"optimization": {"optimizer": "adam"}}
    _take(found, own, names, part)
    if "kl_weight" in own:
        patch = part.get("patch", [64, 64, 64])
        numbers = 4 * (patch[0] // 4) * (patch[1] // 4) * (patch[2] // 4)
        part["kl_weight"] = own["kl_weight"] * numbers
        found.notes.append(f"kl_weight: of the sum over {numbers} numbers of a patch's latent, here of their mean")
    _rest(found, own, {*names, "kl_weight"}, "they are no settings here")
    found.settings = {"name": "from-upstream", "licence": "that of the scans", "autoencoder": part}
    return found


def _of_diffusion(content: Mapping[str, Any]) -> Translation:
    found = Translation("train diffusion")
    own = content["diffusion_unet_train"]
    names = {"batch_size": "batch_size", "lr": "optimization.learning_rate", "n_epochs": "loop.epochs"}
    part: dict[str, Any] = {"optimization": {"optimizer": "adam", "schedule": "polynomial", "power": 2.0, "warmup": 0}}
    _take(found, own, names, part)
    _rest(found, own, names, "they are no settings here")
    found.settings = {"name": "from-upstream", "licence": "that of the scans", "diffusion": part}
    return found


def _of_controlnet(content: Mapping[str, Any]) -> Translation:
    found = Translation("train controlnet")
    own = {_spelt(found, name): value for name, value in content["controlnet_train"].items()}
    names = {"batch_size": "batch_size", "lr": "optimization.learning_rate", "n_epochs": "loop.epochs"}
    part: dict[str, Any] = {"optimization": {"schedule": "polynomial", "power": 2.0, "warmup": 0, "weight_decay": 0.01}}
    _take(found, own, names, part)
    weight, ids = own.get("weighted_loss", 1), own.get("weighted_loss_label") or []
    vocabulary = load_vocabulary()
    for id in ids if weight > 1 else []:
        if id in vocabulary.ids and not vocabulary.name(id).startswith("dummy"):
            part.setdefault("structure_weights", {})[vocabulary.name(id)] = float(weight)
        else:
            found.notes.append(f"weighted_loss_label {id}: no structure of the vocabulary, left out")
    if part.get("structure_weights"):
        found.notes.append("weighted_loss: the mean is weighted here, so that the loss does not grow with a tumour")
    contrast = {name: value for name, value in own.items() if "contrastive" in name}
    if any(value is True for value in contrast.values()):
        ends = {"weight": "weight", "delta": "delta"}
        part["contrast"] = {
            ours: value for name, value in contrast.items() for end, ours in ends.items() if name.endswith(end)
        }
    known = {*names, "weighted_loss", "weighted_loss_label"} | set(contrast)
    _rest(found, own, known, "they are no settings here")
    found.settings = {"name": "from-upstream", "licence": "that of the scans", "controlnet": part}
    return found


def _spelt(found: Translation, name: str) -> str:
    for wrong, right in SPELT.items():
        if wrong in name:
            found.notes.append(f"{name}: spelt {right} here")
            return name.replace(wrong, right)
    return name


def _of_environment(content: Mapping[str, Any]) -> Translation:
    found = Translation("convert")
    there = {name: content[name] for name in PATHS if content.get(name)}
    found.settings = {"checkpoints": list(dict.fromkeys(there.values()))}
    for name, what in PATHS.items():
        if name in content and not content[name]:
            found.notes.append(f"{name}: none given, no {what}")
    sizes = content.get("all_anatomy_size_conditions_json", "")
    if "datasets/configs/" in str(sizes):
        right = str(sizes).replace("datasets/configs/", "datasets/")
        found.notes.append(f"all_anatomy_size_conditions_json: {sizes} is where nothing is put; it lies at {right}")
    model = content.get("model_filename")
    if model and model in str(content.get("existing_ckpt_filepath", "")):
        found.notes.append(f"model_filename: {model} would be written over by upstream's training; runs here never are")
    _rest(found, content, set(PATHS), "paths of upstream's own layout")
    return found


_KINDS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any]], Translation]], ...] = (
    (lambda c: isinstance(c.get("autoencoder_train"), dict), _of_vae),
    (lambda c: isinstance(c.get("controlnet_train"), dict), _of_controlnet),
    (lambda c: isinstance(c.get("diffusion_unet_train"), dict), _of_diffusion),
    (lambda c: isinstance(c.get("diffusion_unet_inference"), dict) or "num_output_samples" in c, _of_inference),
    (lambda c: any(name in c for name in PATHS), _of_environment),
)
