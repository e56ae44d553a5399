"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): a trained network learns a little more, its weights unchanged.

They are put on from outside, as parametrizations of the weights of linear layers and convolutions: networks know
nothing of them, and `merge_adapters` leaves plain networks behind.
"""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maisi.bundle.digest import weights_digest
from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.shapes import Frozen
from maisi.storage.atomic import write_atomically


class LoraConfig(Frozen):
    """Adapters of layers whose name matches one of `targets` (`*` is any part of a name): "*.attention.*", "up.0.*"."""

    rank: int = Field(default=8, ge=1)
    alpha: float | None = Field(default=None, gt=0)  # the change is alpha / rank times the product; `rank` without
    targets: tuple[str, ...] = Field(default=("*",), min_length=1)

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LowRank(nn.Module):
    """weight -> weight + scale * up @ down, on the weight seen as a matrix of its outputs and all else.

    `up` starts at zero, so that nothing changes at first. The product is in float32 whatever autocast says: it is what
    a merge adds.
    """

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        rank = min(config.rank, outputs, inputs)
        self.scale = config.scale
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        nn.init.normal_(self.down, std=inputs**-0.5)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.scale * (self.up @ self.down)).view_as(weight)


def add_adapters(network: nn.Module, config: LoraConfig) -> list[str]:
    """Give a network adapters, drawn from torch's generator, and the names of their layers; nothing else learns now.

    Raises `InvalidConfigError` for a target that matches no layer.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv3d))}
    for target in config.targets:
        if not any(fnmatchcase(name, target) for name in layers):
            some = ", ".join(list(layers)[:6])
            raise InvalidConfigError(f"no layer is called {target!r}; there are {len(layers)}, such as {some}")
    network.requires_grad_(False)
    chosen = [name for name in layers if any(fnmatchcase(name, target) for target in config.targets)]
    for name in chosen:
        layer = layers[name]
        assert isinstance(layer.weight, Tensor)
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, config))
        layer.get_parameter("parametrizations.weight.original").requires_grad_(False)
    return chosen


def merge_adapters(network: nn.Module) -> None:
    """Make the weights what the adapters make of them, and the network plain again."""
    for _, layer in _adapted(network):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of the adapters: LAYER.up and LAYER.down."""
    return {
        f"{name}.{part}": getattr(_adapter(layer), part).detach()
        for name, layer in _adapted(network)
        for part in ("up", "down")
    }


def save_adapters(network: nn.Module, config: LoraConfig, path: Path) -> None:
    """Write the adapters of a network as safetensors, with their settings and a digest of the weights under them."""
    facts = {"lora": json.dumps(config.model_dump(mode="json")), "base": base_digest(network)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_state(network).items()}
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata=facts)


def load_adapters(network: nn.Module, path: Path) -> LoraConfig:
    """Put the adapters of a file on a plain network, and give their settings.

    Raises `InvalidRequestError` for a file that holds none, or those of a network with other weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, FileNotFoundError) as error:
        raise InvalidRequestError(f"{path} holds no adapters: {error}") from error
    if not {"lora", "base"} <= facts.keys():
        raise InvalidRequestError(f"{path} holds no adapters: it does not say of which network")
    if facts["base"] != base_digest(network):
        raise InvalidRequestError(f"the adapters in {path} were trained on a network with other weights than this one")
    config = LoraConfig.model_validate_json(facts["lora"])
    add_adapters(network, config)
    own = adapter_state(network)
    if own.keys() != tensors.keys() or any(own[name].shape != tensor.shape for name, tensor in tensors.items()):
        raise InvalidRequestError(f"{path} is damaged: its adapters are not those that its settings name")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
    return config


def base_digest(network: nn.Module) -> str:
    """The digest of a network's weights, those under adapters as they were before."""
    return weights_digest(_base_state(network))


def _base_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of the plain network, without adapters."""
    state = {}
    for name, tensor in network.state_dict().items():
        if ".parametrizations.weight.0." not in f".{name}":
            state[name.replace("parametrizations.weight.original", "weight")] = tensor
    return state


def _adapted(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in list(network.named_modules()):
        if parametrize.is_parametrized(module, "weight") and isinstance(_adapter(module), LowRank):
            yield name, module


def _adapter(layer: nn.Module) -> nn.Module:
    return layer.get_submodule("parametrizations.weight.0")
