"""A window of a CT drawn anew by the networks, held to the CT everywhere but where it is to change."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from maisi.anatomy import morphology
from maisi.anatomy.regions import RegionSpan
from maisi.bundle.bundle import Bundle
from maisi.compute.compute import format_bytes
from maisi.compute.fit import fit
from maisi.errors import InvalidPlanError
from maisi.pipelines.blend import Drawn
from maisi.pipelines.codec import decode_tensor, encode_tensor, rehearse_both, volume_of_unit
from maisi.pipelines.conditioning import shown_labels
from maisi.pipelines.generate import Locked, OnStage, decode_latent, draw_latent, rehearse
from maisi.pipelines.inpaint_request import InpaintRequest
from maisi.pipelines.labels import Anatomy, NoLabels
from maisi.pipelines.refine_request import RefineRequest
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.windows import Window
from maisi.shapes import in_words
from maisi.space.grid import Grid
from maisi.space.intensity import to_unit
from maisi.space.resample import resample
from maisi.space.volume import LabelMap, Volume

TOUCHED = 0.05
"""A network's voxel that a change fills by more than this is free."""


@dataclass(frozen=True)
class Redraw:
    """What draws windows anew: how the sampler runs, the networks, and the regions that the CT shows.

    `strength` below 1 keeps the outline of what is there.
    """

    how: GenerateRequest
    bundle: Bundle
    span: RegionSpan
    strength: float = 1.0

    def window(
        self,
        window: Window,
        volume: Volume,
        labels: LabelMap,
        free: np.ndarray,
        generator: torch.Generator,
        on_stage: OnStage,
    ) -> Drawn:
        """The window's box of the CT with all that `free` (bool, of the volume) covers drawn anew.

        `volume` is what the window shows of the CT; `labels` are what is to be drawn, on its grid or the window's own.
        """
        grid, bundle = window.grid, self.bundle
        on_stage("encode", 0, 1)
        unit = torch.from_numpy(to_unit(resample(volume, grid).array))[None, None]
        mean, _ = encode_tensor(bundle.autoencoder, unit)
        as_it_was = decode_tensor(bundle.autoencoder, mean, grid)
        on_stage("encode", 1, 1)
        touched = free_latent(free, volume.grid, grid, bundle.autoencoder.factor)
        locked = Locked(mean * bundle.scale_factor, touched, self.strength)
        seen = torch.from_numpy(shown_labels(resample(labels, grid).array, bundle.info.shown_as))
        anatomy = Anatomy(grid, self.span, None)
        latent = draw_latent(self.how, bundle, anatomy, seen, generator, on_stage, locked)
        drawn = volume_of_unit(decode_latent(bundle, latent, on_stage), grid)
        target = window.inner_grid(volume.grid)
        return Drawn(resample(drawn, target).array, resample(as_it_was, target).array, max(grid.spacing))


def free_latent(mask: np.ndarray, grid: Grid, window: Grid, factor: int) -> Tensor:
    """Which voxels (u, v, w) of a window's latent a mask on `grid` touches, and those beside them."""
    soft: np.ndarray = resample(Volume(mask.astype(np.float32), grid), window).array > TOUCHED
    x, y, z = (n // factor for n in window.shape)
    blocks = np.asarray(soft.reshape(x, factor, y, factor, z, factor).any(axis=(1, 3, 5)))
    return torch.from_numpy(morphology.dilate(blocks, 1.0, (1.0, 1.0, 1.0)))


def fitted_to(grid: Grid, bundle: Bundle, how: GenerateRequest, held_bytes: int) -> Bundle:
    """The bundle fitted to a window, within the memory that a CT leaves, of which `held_bytes` are taken.

    Raises `InvalidPlanError` with the least memory that would do.
    """
    work, memory = partial(rehearse_redraw, how, grid), how.compute.memory
    if memory is None:
        return fit(bundle, how.compute, work)
    left = how.compute.model_copy(update={"memory": max(1, memory - held_bytes)})
    try:
        return fit(bundle, left, work)
    except InvalidPlanError as error:
        if error.least_bytes is None:
            raise
        megabytes = -(-(error.least_bytes + held_bytes) // 10**6)
        size = in_words(grid.shape)
        raise InvalidPlanError(
            f"drawing {size} voxels does not fit into {format_bytes(memory)}, of which {format_bytes(held_bytes)} go "
            f"to the CT and its labels; accepted: --memory {megabytes}MB or more",
            megabytes * 10**6,
        ) from error


def sampling(request: InpaintRequest | RefineRequest) -> GenerateRequest:
    """How the sampler is to run, as the pipeline that samples is asked."""
    names = ("steps", "solver", "controlnet_scale", "seed", "compute", "force")
    told = {name: getattr(request, name) for name in names}
    named = {"bundle": request.bundle} if "bundle" in request.model_fields_set else {}
    return GenerateRequest.model_validate({**told, **named})


def rehearse_redraw(how: GenerateRequest, grid: Grid, bundle: Bundle) -> None:
    """All that is done with the networks in one window, on the meta device."""
    rehearse_both(grid.shape, bundle)
    rehearse(how, NoLabels("chest", grid), bundle)
