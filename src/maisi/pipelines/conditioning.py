"""What a generated scan is told: region span, spacing, modality; the one place where they become tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maisi.anatomy.regions import BodyRegion, RegionSpan
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.errors import InvalidRequestError
from maisi.networks.unet import UNetConfig
from maisi.shapes import Modality, Spacing3

MODALITIES = {"unknown": 0, "ct": 1, "ct without contrast": 2, "ct with contrast": 3, "phantom": 7, "mr": 8}
"""Codes of the class embedding. As in the released models up to 7 is CT; 7 is ours, for rendered phantoms."""

UNKNOWN_MODALITY = 0

GENERAL_CODES = {"ct": (range(2, 7), 1), "mr": (range(9, 128), 8)}
"""Codes of kinds of CT and of MR, as upstream numbers them, and of the modality alone; phantoms are of no kind."""

INPUT_SCALE = 100.0
"""Spacing in mm and one-hot regions enter the networks times 100, as in training of the released models."""


@dataclass(frozen=True)
class Conditioning:
    """What is known of a scan besides its labels."""

    span: RegionSpan
    spacing: Spacing3
    modality: str = "ct"
    sizes: tuple[float, ...] = ()  # of structures, see `anatomy.slots`; what a label generator is told besides


def modality_code(name: str) -> int:
    """The code of a modality; raises `InvalidRequestError` for an unknown one."""
    if name not in MODALITIES:
        raise InvalidRequestError(f"unknown modality {name!r}; known: {', '.join(MODALITIES)}")
    return MODALITIES[name]


def general_code(code: int) -> int:
    """The code of CT or MR for one of a kind of it (with contrast, T1, ...); any other code as it is."""
    return next((general for kinds, general in GENERAL_CODES.values() if code in kinds), code)


def modality_of(name: str) -> Modality:
    """Whether images of a modality are in HU ("ct") or without a unit ("mr")."""
    return "mr" if name.partition(" ")[0] == "mr" else "ct"


def encode_conditioning(conditioning: Conditioning, config: UNetConfig) -> dict[str, Tensor]:
    """Keyword tensors of a U-Net for a batch of one: only what its configuration takes.

    `top_region` and `bottom_region` (1, 4), one-hot x 100; `spacing` (1, 3), mm x 100; `modality` (1,), its code;
    `context` (1, 1, n), the sizes.
    Raises `InvalidRequestError` for a modality that is unknown, or beyond those that the network tells apart.
    """
    modality = modality_code(conditioning.modality)
    return condition_tensors(conditioning.span, conditioning.spacing, modality, config, conditioning.sizes)


def condition_tensors(
    span: RegionSpan | None,
    spacing: Spacing3 | None,
    modality: int,
    config: UNetConfig,
    sizes: Sequence[float] = (),
) -> dict[str, Tensor]:
    """As `encode_conditioning`, with the modality as a code; `InvalidRequestError` for one beyond the network's.

    None is a span or a spacing of which the network is told nothing: zeros, which no region and no spacing has, so that
    what their embeddings make of it (their biases) is free to learn. Of a modality, code 0 says the same.
    """
    tensors: dict[str, Tensor] = {}
    if config.regions:
        top, bottom = (np.zeros(len(BodyRegion)),) * 2 if span is None else span.one_hots()
        tensors["top_region"] = INPUT_SCALE * torch.as_tensor(top, dtype=torch.float32)[None]
        tensors["bottom_region"] = INPUT_SCALE * torch.as_tensor(bottom, dtype=torch.float32)[None]
    if config.spacing:
        tensors["spacing"] = INPUT_SCALE * torch.tensor([spacing or (0.0, 0.0, 0.0)], dtype=torch.float32)
    if config.num_modalities is not None:
        if modality >= config.num_modalities:
            known = [name for name, code in MODALITIES.items() if code < config.num_modalities]
            raise InvalidRequestError(
                f"modality code {modality} is beyond the {config.num_modalities} that the networks of this bundle tell "
                f"apart; accepted: {', '.join(known)}"
            )
        tensors["modality"] = torch.tensor([modality])
    if config.context_channels is not None:
        if len(sizes) != config.context_channels:
            raise InvalidRequestError(
                f"this network draws label maps and is told {config.context_channels} sizes of structures, not "
                f"{len(sizes)}"
            )
        tensors["context"] = torch.tensor(sizes, dtype=torch.float32)[None, None]
    return tensors


def shown_labels(labels: np.ndarray, shown_as: Mapping[str, str]) -> np.ndarray:
    """The ids as a ControlNet is to see them: each group of structures as the one structure that stands for it.

    A small bundle knows "skeleton" well and the fourth rib hardly; the label map that is written keeps the rib.
    """
    vocabulary, shown = load_vocabulary(), labels.copy()
    for group, structure in shown_as.items():
        shown[np.isin(labels, vocabulary.group(group))] = vocabulary.id(structure)
    return shown
