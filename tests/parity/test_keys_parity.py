"""Names and shapes of our tensors against upstream's."""

import ast

import pytest
import torch
from oracle_networks import SMALL, meta_oracle

from maisi.bundle.upstream import RELEASED, identify, load_upstream, to_upstream, upstream_names
from maisi.networks.build import build_network
from maisi.networks.discriminator import DiscriminatorConfig, PatchDiscriminator

# key list, model, network, tensors, parameters
LISTS = [
    ("keys_vae", "rflow-ct", "autoencoder", 130, 20_944_897),
    ("keys_unet_ddpm", "ddpm-ct", "unet", 372, 169_370_884),
    ("keys_unet_rflow", "rflow-ct", "unet", 435, 180_500_868),
    ("keys_controlnet_ddpm", "ddpm-ct", "controlnet", 196, 68_644_944),
    ("keys_controlnet_rflow", "rflow-ct", "controlnet", 231, 72_037_072),
    ("keys_mask_vae", "mask-autoencoder", "autoencoder", 114, 5_256_509),
    ("keys_mask_unet", "mask-diffusion", "unet", 558, 197_163_012),
]
NETWORKS = {
    **{f"{model}-{name}": config for model, release in RELEASED.items() for name, config in release.networks.items()},
    **SMALL,
}


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def read_keys(path):
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    return {name: ast.literal_eval(shape) for name, shape, *_ in lines}


def on_meta(config):
    with torch.device("meta"):
        return PatchDiscriminator(config) if isinstance(config, DiscriminatorConfig) else build_network(config)


@pytest.mark.parametrize("config", [*NETWORKS.values(), DiscriminatorConfig()], ids=[*NETWORKS, "discriminator"])
def test_names_map_one_to_one_onto_those_of_monai(config):
    network = on_meta(config)
    names = upstream_names(network)
    assert list(names) == list(network.state_dict())
    assert len(set(names.values())) == len(names)
    assert shapes_of(to_upstream(network)) == shapes_of(meta_oracle(config).state_dict())


@pytest.mark.parametrize(
    ("keys", "model", "name", "num_tensors", "num_parameters"), LISTS, ids=[row[0] for row in LISTS]
)
def test_names_map_one_to_one_onto_the_reference_lists(key_lists, keys, model, name, num_tensors, num_parameters):
    network = on_meta(RELEASED[model].networks[name])
    assert shapes_of(to_upstream(network)) == read_keys(key_lists / f"{keys}.txt")
    assert len(network.state_dict()) == num_tensors
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters


@pytest.mark.parametrize(("name", "num_dead"), [("unet", 22), ("controlnet", 10)])
def test_the_dead_projections_of_the_shipped_ddpm_files_are_dropped_and_nothing_else(key_lists, name, num_dead):
    shapes = read_keys(key_lists / f"keys_{name}_ddpm_AS_SHIPPED_inferred.txt")
    shipped = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    identity = identify(shipped)
    assert (identity.models, identity.network) == (("ddpm-ct",), name)

    network = on_meta(identity.config)
    load_upstream(network, shipped)
    dropped = shipped.keys() - to_upstream(network).keys()
    assert len(dropped) == num_dead
    assert all(key.endswith((".attn.out_proj.weight", ".attn.out_proj.bias")) for key in dropped)
