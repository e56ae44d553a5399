"""The ControlNet: makes a `DenoisingUNet` obey a label map.

Zhang et al., arXiv 2302.05543; MAISI, arXiv 2409.11169, section 3.3. A trainable copy of the U-Net's way down sees the
label map's bits and adds residuals to the U-Net's skip connections through convolutions that start at zero.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from maisi.errors import InvalidGridError, InvalidRequestError
from maisi.networks.blocks import conv1, conv3
from maisi.networks.unet import (
    BackboneConfig,
    DenoisingUNet,
    Middle,
    Residuals,
    check_given,
    embed_vector,
    make_down,
    make_modality_embedding,
    time_features,
    zero_init,
)
from maisi.shapes import ContextBatch, LatentBatch, ModalityBatch, Times, VoxelBatch

logger = logging.getLogger(__name__)


class ControlNetConfig(BackboneConfig):
    """Shape of a `ControlNet`; its levels must be those of the U-Net that it steers."""

    condition_channels: int = Field(default=8, ge=1)
    embedding_widths: tuple[int, ...] = (8, 32, 64)  # one level each; every further level halves the label map
    occupancy_bits: bool = False  # also sees how much of a latent voxel each bit fills
    occupancy_ids: tuple[int, ...] = ()  # and how much of it each of these structures fills
    sees_surroundings: bool = False  # also sees the clean latent around a hole that it is to fill

    @property
    def occupancy_channels(self) -> int:
        """Fractions that the network sees of every latent voxel, besides the embedded bits."""
        return self.condition_channels * self.occupancy_bits + len(self.occupancy_ids)

    @model_validator(mode="after")
    def _ids_fit_the_bits(self) -> "ControlNetConfig":
        most = 2**self.condition_channels - 1
        wrong = [id for id in self.occupancy_ids if not 1 <= id <= most]
        if wrong or len(set(self.occupancy_ids)) < len(self.occupancy_ids):
            told = f"{wrong[0]}" if wrong else "one twice"
            raise ValueError(f"occupancy_ids are different ids from 1 to {most}; got {told}")
        return self

    @model_validator(mode="after")
    def _some_width(self) -> "ControlNetConfig":
        if not self.embedding_widths or min(self.embedding_widths) < 1:
            raise ValueError(f"embedding_widths {self.embedding_widths} needs at least one width, each at least 1")
        return self

    @property
    def condition_factor(self) -> int:
        """How many times larger the label map is than the latent, on every axis."""
        return 2 ** (len(self.embedding_widths) - 1)


class ConditionEmbedding(nn.Module):
    """Label bits (b, condition_channels, x, y, z) -> features (b, channels[0], u, v, w), u = x / condition_factor.

    Strided convolutions may lose what is smaller than a latent voxel; the occupancies, where there are some, do not.
    """

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.embedding_widths
        self.conv_in = conv3(config.condition_channels, widths[0])
        self.convs = nn.ModuleList()
        for width, next_width in pairwise(widths):
            self.convs += [conv3(width, width), conv3(width, next_width, stride=2)]
        self.conv_out = zero_init(conv3(widths[-1], config.channels[0]))
        seen = config.occupancy_channels
        self.occupancy = zero_init(conv3(seen, config.channels[0])) if seen else None

    def forward(self, bits: Tensor) -> Tensor:
        h = F.silu(self.conv_in(bits))
        for conv in self.convs:
            h = F.silu(conv(h))
        h = self.conv_out(h)
        return h if self.occupancy is None else h + self.occupancy(occupancies(bits, self.config))


def occupancies(bits: Tensor, config: ControlNetConfig) -> Tensor:
    """The fractions (b, occupancy_channels, u, v, w) of every latent voxel that bits and structures fill."""
    factor = config.condition_factor
    fractions = [F.avg_pool3d(bits, factor)] if config.occupancy_bits else []
    for id in config.occupancy_ids:  # one at a time: at the size of the label map a channel is large
        fractions.append(F.avg_pool3d(where_id(bits, id), factor))
    return torch.cat(fractions, dim=1)


def where_id(bits: Tensor, id: int) -> Tensor:
    """1 where the bits (b, n, x, y, z) spell `id`, else 0, as (b, 1, x, y, z).

    Adding the bits that the id has and subtracting the others gives the number of its bits there, and less elsewhere.
    """
    own = [(id >> k) & 1 for k in range(bits.shape[1])]
    signs = torch.tensor([1.0 if bit else -1.0 for bit in own], dtype=bits.dtype, device=bits.device)
    return F.relu(F.conv3d(bits, signs[None, :, None, None, None]) - (sum(own) - 1))


class ControlNet(nn.Module):
    """Residuals for a `DenoisingUNet` from a noisy latent, the time and an embedded label map."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embedding = embed_vector(config.channels[0], config.time_channels)
        self.modality_embedding = make_modality_embedding(config)
        self.condition_embedding = ConditionEmbedding(config)
        width = config.channels[0]
        self.surroundings = zero_init(conv3(config.in_channels + 1, width)) if config.sees_surroundings else None
        self.conv_in = conv3(config.in_channels, config.channels[0])
        self.down = make_down(config)
        self.middle = Middle(config)
        self.zero_convs = nn.ModuleList(zero_init(conv1(width, width)) for width in config.skip_channels)
        self.zero_middle = zero_init(conv1(config.channels[-1], config.channels[-1]))

    @classmethod
    def from_unet(cls, unet: DenoisingUNet, config: ControlNetConfig) -> "ControlNet":
        """A ControlNet that starts with every tensor of the U-Net that has its name and shape; its residuals are zero.

        The time projections of the blocks keep their fresh weights where the U-Net also sees regions or spacing.
        Raises `InvalidRequestError` where the levels differ, for such residuals would not fit.
        """
        check_levels(unet.config, config)
        controlnet = cls(config).to(unet.conv_in.weight)
        theirs, ours = unet.state_dict(), controlnet.state_dict()
        shared = {
            name: tensor for name, tensor in ours.items() if name in theirs and theirs[name].shape == tensor.shape
        }
        controlnet.load_state_dict(ours | {name: theirs[name] for name in shared})
        logger.info("ControlNet starts with %d of its %d tensors from the U-Net", len(shared), len(ours))
        return controlnet

    def embed_condition(self, bits: VoxelBatch) -> Tensor:
        """The label map as the network sees it, (b, channels[0], u, v, w): the same at every step, so compute it once.

        `bits` (b, condition_channels, x, y, z) are 0 or 1, the least significant first. Raises `InvalidRequestError`
        for other channels, `InvalidGridError` for a size that is not a multiple of `config.condition_factor`.
        """
        factor = self.config.condition_factor
        if bits.shape[1] != self.config.condition_channels:
            raise InvalidRequestError(f"label map has {bits.shape[1]} channels, not {self.config.condition_channels}")
        if any(n % factor for n in bits.shape[2:]):
            raise InvalidGridError(
                f"label map size {tuple(bits.shape[2:])} is not a multiple of {factor} on every axis"
            )
        return self.condition_embedding(bits)

    def embed_surroundings(self, held: VoxelBatch) -> Tensor:
        """What is around a hole as the network sees it, (b, channels[0], u, v, w), to be added to the embedded labels.

        `held` is what `around_hole` gives. Raises `InvalidRequestError` where the network sees no surroundings.
        """
        if self.surroundings is None:
            raise InvalidRequestError("this ControlNet sees no surroundings of a hole (sees_surroundings)")
        embedded: Tensor = self.surroundings(held)
        return embedded

    def forward(
        self,
        latent: LatentBatch,
        t: Times,
        embedding: Tensor,
        *,
        modality: ModalityBatch | None = None,
        context: ContextBatch | None = None,
        scale: float = 1.0,
    ) -> Residuals:
        """Residuals times `scale`, for a latent (b, c, u, v, w), times (b,) and the result of `embed_condition`.

        The embedding has b rows or 1 for the whole batch. Raises `InvalidGridError` where a size does not fit the
        levels or the embedding, `InvalidRequestError` for a condition that is missing or not the network's.
        """
        self.config.check_size(latent.shape[2:])
        check_embedding(embedding.shape[2:], latent.shape[2:], self.config.condition_factor)
        check_given("modality", modality, self.config.num_modalities is not None)
        check_given("context", context, self.config.context_channels is not None)

        time = self.time_embedding(time_features(t, self.config.channels[0]).to(latent.dtype))
        if self.modality_embedding is not None:
            time = time + self.modality_embedding(modality)

        h = self.conv_in(latent) + embedding
        skips = [h]
        for level in self.down:
            h, level_skips = level(h, time, context)
            skips += level_skips
        h = self.middle(h, time, context)

        residuals = tuple(conv(skip) * scale for conv, skip in zip(self.zero_convs, skips, strict=True))
        return Residuals(residuals, self.zero_middle(h) * scale)


def around_hole(clean: LatentBatch, hole: Tensor) -> Tensor:
    """The clean latents (b, c, u, v, w), 0 in the hole (b or 1, u, v, w), and the hole itself: (b, c + 1, u, v, w).

    It is what MAISI's ControlNet for tumour inpainting sees (arXiv 2409.11169): the masked image and its mask.
    """
    inside = hole[:, None].to(clean).expand(clean.shape[0], 1, *clean.shape[2:])
    return torch.cat([clean * (1 - inside), inside], dim=1)


def with_occupancies(controlnet: ControlNet, config: ControlNetConfig) -> ControlNet:
    """The same ControlNet with the occupancies and surroundings of `config`; to what is new it answers nothing yet.

    Raises `InvalidRequestError` where the configurations differ in anything else, or some occupancy would be lost.
    """
    ours = controlnet.config
    check_occupancies(ours, config)
    if ours == config:
        return controlnet
    wider = ControlNet(config).to(controlnet.conv_in.weight)
    state = wider.state_dict() | controlnet.state_dict()
    if ours.occupancy_channels:
        name, places = "condition_embedding.occupancy.weight", _places(ours, config)
        state[name] = wider.state_dict()[name].index_copy(1, places.to(state[name].device), state[name])
    wider.load_state_dict(state)
    return wider


def check_occupancies(ours: ControlNetConfig, config: ControlNetConfig) -> None:
    """Raise `InvalidRequestError` where a ControlNet of ours could not become one of `config` by seeing more."""
    unlike = [name for name in type(ours).model_fields if getattr(ours, name) != getattr(config, name)]
    lost = set(ours.occupancy_ids) - set(config.occupancy_ids) or (ours.occupancy_bits and not config.occupancy_bits)
    gained = {"sees_surroundings"} if config.sees_surroundings else set()
    other = [name for name in unlike if not name.startswith("occupancy_") and name not in gained]
    if other or lost:
        name = other[0] if other else "occupancy_ids"
        raise InvalidRequestError(
            f"{name} of the ControlNet to start from is {getattr(ours, name)}; the recipe says {getattr(config, name)}"
        )


def _places(ours: ControlNetConfig, theirs: ControlNetConfig) -> Tensor:
    """Where the occupancy channels of one configuration are in another that has them all."""
    before = theirs.condition_channels * theirs.occupancy_bits
    bits = list(range(ours.condition_channels)) if ours.occupancy_bits else []
    return torch.tensor([*bits, *(before + theirs.occupancy_ids.index(id) for id in ours.occupancy_ids)])


def check_levels(unet: BackboneConfig, controlnet: BackboneConfig) -> None:
    """Raise `InvalidRequestError` where the ControlNet's residuals would not fit the U-Net's skip connections."""
    for name in ("in_channels", "channels", "num_res_blocks"):
        theirs, ours = getattr(unet, name), getattr(controlnet, name)
        if theirs != ours:
            raise InvalidRequestError(f"{name} of the ControlNet is {ours}; to steer this U-Net it must be {theirs}")


def check_embedding(size: Sequence[int], latent_size: Sequence[int], factor: int) -> None:
    """Raise `InvalidGridError` where an embedded label map does not lie on the latent's grid."""
    if tuple(size) != tuple(latent_size):
        wanted, got = (tuple(n * factor for n in s) for s in (latent_size, size))
        raise InvalidGridError(
            f"label map size {got} does not belong to latent size {tuple(latent_size)}; it must be {wanted}"
        )
