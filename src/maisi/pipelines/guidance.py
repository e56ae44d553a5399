"""What the sampler is led by: labels and conditions, each with a scale of its own."""

from torch import Tensor

from maisi.anatomy.bits import label_bits
from maisi.bundle.bundle import Bundle
from maisi.compute.machine import dtype_of
from maisi.diffusion.denoiser import denoiser, guide_apart
from maisi.diffusion.sampler import Denoise
from maisi.errors import InvalidRequestError
from maisi.pipelines.conditioning import UNKNOWN_MODALITY, Conditioning, condition_tensors, modality_code
from maisi.pipelines.requests import GenerateRequest

CONDITIONS = ("region", "spacing", "modality")


def guided_denoiser(
    request: GenerateRequest, bundle: Bundle, conditioning: Conditioning, seen: Tensor | None
) -> Denoise:
    """The prediction under labels `seen` (x, y, z), ids, if any, and conditions, guided as the request says.

    Guidance by labels compares with the U-Net alone, guidance by conditions with the U-Net that is told none of those
    that its training dropped. A scale of 1 asks the networks nothing more.
    """
    told = conditions_of(request, bundle, conditioning)
    plain = denoiser(bundle.unet, conditions=told)
    unconditioned = denoiser(bundle.unet, conditions=conditions_of(request, bundle, conditioning, without=True))
    if seen is None:
        return guide_apart(plain, plain, unconditioned, labels=1.0, conditions=request.guidance_conditions)
    dtype, device = dtype_of(request.compute), next(bundle.unet.parameters()).device
    labelled = denoiser(
        bundle.unet,
        bundle.controlnet,
        conditions=told,
        bits=label_bits(seen.to(device), dtype)[None],
        controlnet_scale=controlnet_scale(request, bundle),
    )
    by_labels, by_conditions = request.guidance_labels, request.guidance_conditions
    return guide_apart(labelled, plain, unconditioned, labels=by_labels, conditions=by_conditions)


def conditions_of(
    request: GenerateRequest, bundle: Bundle, conditioning: Conditioning, without: bool = False
) -> dict[str, Tensor]:
    """The keyword tensors of the U-Net, on its device; `without` those that its training dropped."""
    dropped = bundle.info.dropped if without else ()
    tensors = condition_tensors(
        None if "region" in dropped else conditioning.span,
        None if "spacing" in dropped else conditioning.spacing,
        UNKNOWN_MODALITY if "modality" in dropped else modality_code(conditioning.modality),
        bundle.unet.config,
    )
    dtype, device = dtype_of(request.compute), next(bundle.unet.parameters()).device
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype) for name, value in tensors.items()
    }


def controlnet_scale(request: GenerateRequest, bundle: Bundle) -> float:
    """How strongly the labels steer: what the request says, else what the bundle was measured with."""
    return bundle.info.controlnet_scale if request.controlnet_scale is None else request.controlnet_scale


def check_guidance(request: GenerateRequest, bundle: Bundle) -> None:
    """Nothing, or an `InvalidRequestError` for guidance by what the bundle was never trained without."""
    dropped = bundle.info.dropped
    asked = {
        "guidance_labels": (request.guidance_labels, "labels", "labels" in dropped and "controlnet" in bundle.kinds),
        "guidance_conditions": (
            request.guidance_conditions,
            "region, spacing or modality",
            any(name in dropped for name in CONDITIONS),
        ),
    }
    for name, (scale, what, is_known) in asked.items():
        if scale != 1 and not is_known:
            raise InvalidRequestError(
                f"{name} is {scale:g}, but bundle {bundle.name!r} was not trained both with and without {what}: there "
                "is nothing to be guided away from; accepted: 1"
            )
