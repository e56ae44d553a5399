"""Upstream's checkpoints: read safely, recognised, loaded strictly."""

import pytest
import torch

from maisi.bundle.upstream import (
    RELEASED,
    identify,
    load_upstream,
    read_checkpoint,
    to_upstream,
    upstream_names,
)
from maisi.errors import InvalidBundleError
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.build import build_network
from maisi.networks.controlnet import ControlNetConfig
from maisi.networks.discriminator import DiscriminatorConfig, PatchDiscriminator
from maisi.networks.unet import UNetConfig

SMALL = {
    "channels": (16, 32),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 16,
    "norm_groups": 8,
}
PLAIN_UNET = UNetConfig(**SMALL, regions=True, attention_projection=False)
NETWORKS = {
    "autoencoder": AutoencoderConfig(channels=(8, 16), num_res_blocks=(1, 2), norm_groups=8),
    "unet": UNetConfig(**SMALL, regions=True, spacing=True, num_modalities=4),
    "updown-unet": UNetConfig(**SMALL, resblock_updown=True),
    "context-unet": UNetConfig(**SMALL, context_channels=5),
    "controlnet": ControlNetConfig(**SMALL),
}


def meta_state(model: str, name: str) -> dict[str, torch.Tensor]:
    """A released network's tensors under upstream's names, without content."""
    with torch.device("meta"):
        return to_upstream(build_network(RELEASED[model].networks[name]))


def with_dead_projections(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state as the DDPM files ship it."""
    dead = {}
    for name, tensor in state.items():
        if ".attn.to_q." in name:
            dead[name.replace("to_q", "out_proj")] = torch.ones_like(tensor)
    return state | dead


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_a_network_written_as_a_checkpoint_and_read_again_has_the_same_weights(config, tmp_path):
    network, other = build_network(config), build_network(config)
    torch.save(to_upstream(network), tmp_path / "network.pt")
    load_upstream(other, read_checkpoint(tmp_path / "network.pt").state)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_discriminator_has_names_upstream_too():
    names = upstream_names(PatchDiscriminator(DiscriminatorConfig(channels=4)))
    assert names["convs.0.weight"] == "initial_conv.conv.weight"
    assert names["convs.3.weight"] == "2.conv.weight"
    assert names["convs.4.bias"] == "final_conv.conv.bias"


def test_a_network_without_memory_takes_the_tensors_over(tmp_path):
    config = NETWORKS["unet"]
    state = to_upstream(build_network(config))
    with torch.device("meta"):
        network = build_network(config)
    load_upstream(network, state)
    assert network.get_parameter("conv_in.weight").data_ptr() == state["conv_in.conv.weight"].data_ptr()
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("wrapper", ["unet_state_dict", "controlnet_state_dict"])
def test_a_wrapped_checkpoint_gives_its_scale_factor_and_number_of_steps(wrapper, tmp_path):
    state = to_upstream(build_network(NETWORKS["controlnet"]))
    content = {"epoch": 3, "loss": 0.2, "num_train_timesteps": 1000, "scale_factor": torch.tensor(0.9), wrapper: state}
    torch.save(content, tmp_path / "wrapped.pt")
    checkpoint = read_checkpoint(tmp_path / "wrapped.pt")
    assert checkpoint.state.keys() == state.keys()
    assert checkpoint.scale_factor == pytest.approx(0.9)
    assert checkpoint.num_train_steps == 1000


def test_a_bare_checkpoint_has_no_scale_factor(tmp_path):
    torch.save(to_upstream(build_network(NETWORKS["autoencoder"])), tmp_path / "bare.pt")
    assert read_checkpoint(tmp_path / "bare.pt").scale_factor is None


def test_a_checkpoint_in_torchs_old_format_is_read_too(tmp_path):
    state = to_upstream(build_network(NETWORKS["autoencoder"]))
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pt").state.keys() == state.keys()


def test_dead_projections_are_dropped_where_the_network_has_none():
    network = build_network(PLAIN_UNET)
    state = {name: tensor + 1 for name, tensor in to_upstream(network).items()}
    load_upstream(network, with_dead_projections(state))
    assert torch.equal(network.get_parameter("conv_in.weight"), state["conv_in.conv.weight"])


def test_projections_are_loaded_where_the_network_has_them():
    network = build_network(NETWORKS["unet"])
    load_upstream(network, with_dead_projections(to_upstream(network)))
    assert torch.equal(network.get_parameter("middle.attention.attention.out.weight"), torch.ones(32, 32))


def test_a_projection_of_an_attention_that_does_not_exist_is_not_dropped():
    network = build_network(PLAIN_UNET)
    state = to_upstream(network) | {"down_blocks.0.attentions.0.attn.out_proj.weight": torch.ones(16, 16)}
    with pytest.raises(InvalidBundleError, match=r"1 unexpected \(down_blocks.0.attentions.0.attn.out_proj.weight\)"):
        load_upstream(network, state)


def test_a_checkpoint_that_does_not_fit_says_what_is_missing_unexpected_and_of_another_shape():
    network = build_network(PLAIN_UNET)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = to_upstream(network)
    del state["out.0.bias"]
    state["conv_in.conv.weight"] = torch.zeros(16, 5, 3, 3, 3)
    state["extra.weight"] = torch.zeros(1)
    with pytest.raises(InvalidBundleError) as caught:
        load_upstream(network, state)
    message = str(caught.value)
    assert "1 missing (out.0.bias)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (conv_in.conv.weight (16, 5, 3, 3, 3), expected (16, 4, 3, 3, 3))" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("model", "name", "models"),
    [
        ("ddpm-ct", "autoencoder", ("ddpm-ct", "rflow-ct")),
        ("ddpm-ct", "unet", ("ddpm-ct",)),
        ("ddpm-ct", "controlnet", ("ddpm-ct",)),
        ("rflow-ct", "unet", ("rflow-ct",)),
        ("rflow-ct", "controlnet", ("rflow-ct",)),
        ("mask-autoencoder", "autoencoder", ("mask-autoencoder",)),
        ("mask-diffusion", "unet", ("mask-diffusion",)),
    ],
)
def test_a_released_network_is_recognised(model, name, models):
    identity = identify(meta_state(model, name))
    assert (identity.models, identity.network) == (models, name)
    assert identity.config == RELEASED[model].networks[name]


@pytest.mark.parametrize("name", ["unet", "controlnet"])
def test_a_released_ddpm_network_is_recognised_with_its_dead_projections(name):
    assert identify(with_dead_projections(meta_state("ddpm-ct", name))).models == ("ddpm-ct",)


def test_a_foreign_checkpoint_is_told_which_released_network_is_nearest_and_why_it_is_not():
    state = meta_state("rflow-ct", "unet")
    del state["class_embedding.weight"]
    with pytest.raises(InvalidBundleError, match=r"nearest is the unet of rflow-ct, but: 1 missing \(class_embedding"):
        identify(state)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    files = {
        "text.pt": b"not a checkpoint",
        "empty.pt": b"",
        "zip.pt": b"PK\x03\x04 broken",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidBundleError, match=f"{name} is damaged or no file of weights only"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(InvalidBundleError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "absent.pt")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save(to_upstream(build_network(NETWORKS["autoencoder"])), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidBundleError, match="damaged"):
        read_checkpoint(path)


class Payload:
    """Something that runs when it is unpickled by a reader that trusts its file."""

    def __reduce__(self):
        return (eval, ("1/0",))


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(tmp_path):
    torch.save({"weight": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(InvalidBundleError, match="no file of weights only") as refusal:
        read_checkpoint(tmp_path / "evil.pt")
    assert "can still be loaded" not in str(refusal.value)  # torch's advice, which would run the code


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict but list"),
        ({}, "holds no state dict"),
        ({"weight": torch.ones(1), "epoch": 3}, r"no tensors \(epoch\)"),
        ({"unet_state_dict": {}}, "unet_state_dict is not a state dict"),
        ({"unet_state_dict": {"a": torch.ones(1)}, "controlnet_state_dict": {"a": torch.ones(1)}}, "2 state dicts"),
        ({"unet_state_dict": {"a": torch.ones(1)}, "scale_factor": "big"}, "scale_factor .* not a number"),
    ],
)
def test_a_checkpoint_of_an_unknown_layout_says_what_it_holds(content, message, tmp_path):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(InvalidBundleError, match=message):
        read_checkpoint(tmp_path / "odd.pt")
