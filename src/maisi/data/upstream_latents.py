"""Embeddings of upstream's scripts (`X_emb.nii.gz` with `X_emb.nii.gz.json`) as latents of ours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.data.latents import FIRST_MR_CODE, Latent
from maisi.errors import InvalidRequestError
from maisi.space.grid import Grid

SUFFIX, SIDECAR = "_emb.nii.gz", ".json"
FACTOR = 4
FROZEN = -30.0  # log-variance of a latent of which only one draw was kept: the least that networks give
MODALITIES = {
    "unknown": 0,
    "ct": 1,
    "ct_wo_contrast": 2,
    "ct_contrast": 3,
    "mri": 8,
    "mri_t1": 9,
    "mri_t2": 10,
    "mri_flair": 11,
    "mri_pd": 12,
    "mri_dwi": 13,
    "mri_adc": 14,
    "mri_ssfp": 15,
    "mri_mra": 16,
    "mri_t1c": 17,
    "mri_swi": 20,
    "mri_t1_skull_stripped": 29,
    "mri_t2_skull_stripped": 30,
    "mri_flair_skull_stripped": 31,
    "mri_swi_skull_stripped": 32,
    "mri_mra_skull_stripped": 33,
}
"""Codes of `modality_mapping.json`; the names of that file count where it is given."""


@dataclass(frozen=True)
class Embedding:
    """A latent, and what of its files was not as they say."""

    latent: Latent
    notes: tuple[str, ...]


def embeddings_in(folder: Path) -> list[Path]:
    """The embedding files of a folder and those below, in order."""
    return sorted(path for path in folder.rglob(f"*{SUFFIX}") if not path.name.startswith("."))


def read_embedding(path: Path, codes: Mapping[str, int] = MODALITIES) -> Embedding:
    """The latent of an embedding; its one draw is the mean, with a log-variance of -30, which says that it is frozen.

    The voxel size in its header is that of the image, four times too small for the latent, which is what our grid
    means. Raises `InvalidRequestError` for an array that is no latent, a side-car that is missing, or disagrees with
    the header in spacing, and for a modality without a code.
    """
    try:
        image: Any = nib.load(path)
        array = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InvalidRequestError(f"{path} is no readable embedding: {error}") from error
    if array.ndim != 4 or not np.isfinite(array).all():
        raise InvalidRequestError(f"{path} is no embedding: {array.ndim}-D; expected finite (x, y, z, channels)")
    about, notes = _sidecar(path), []
    size = tuple(n * FACTOR for n in array.shape[:3])
    grid = Grid((size[0], size[1], size[2]), np.array(image.affine, dtype=np.float64))
    if not grid.is_ras:
        raise InvalidRequestError(f"{path} does not lie along RAS, as upstream writes embeddings: {grid}")
    said = about.get("spacing")
    if said is not None and not np.allclose(said, grid.spacing, rtol=1e-3):
        raise InvalidRequestError(f"{path}: the side-car says {said} mm, the header {list(grid.spacing)} mm")
    dim = about.get("dim")
    if dim is not None and list(dim)[:3] not in (list(size), list(array.shape[:3])):
        is_turned = sorted(dim[:3]) in (sorted(size), sorted(array.shape[:3]))
        notes.append(f"dim {list(dim)} is {'in the order of the file' if is_turned else 'another size'}; not taken")
    modality = about.get("modality", "unknown")
    if modality not in codes:
        raise InvalidRequestError(f"{path}: modality {modality!r} has no code; accepted: {', '.join(sorted(codes))}")
    mean = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0)))[None]
    notes.append("one frozen draw of the posterior: no noise of the latent is left to draw")
    latent = Latent(
        mean,
        torch.full_like(mean, FROZEN),
        grid,
        "ct" if codes[modality] < FIRST_MR_CODE else "mr",
        made_from=f"upstream's embedding {path.name}",
        span=_span(about, path),
        modality_code=codes[modality],
        group="upstream",
    )
    return Embedding(latent, tuple(notes))


def _sidecar(path: Path) -> dict[str, Any]:
    file = path.with_name(path.name + SIDECAR)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidRequestError(f"{path} has no side-car {file.name}, which says spacing and modality") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidRequestError(f"{file} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"{file} holds a {type(content).__name__}; expected spacing, modality and regions")
    return content


def _span(about: Mapping[str, Any], path: Path) -> RegionSpan | None:
    """The regions of the one-hot vectors; None where the side-car has none."""
    ends = []
    for key in ("top_region_index", "bottom_region_index"):
        vector = about.get(key)
        if vector is None:
            return None
        if not isinstance(vector, list) or len(vector) != len(BodyRegion) or sorted(vector) != [0, 0, 0, 1]:
            raise InvalidRequestError(f"{path}: {key} is {vector}; accepted: one 1 among {len(BodyRegion)} numbers")
        ends.append(BodyRegion(vector.index(1)))
    return RegionSpan(ends[0], ends[1])
