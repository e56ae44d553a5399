"""Conversion of checkpoints as upstream writes them (released sizes without memory, small ones with weights)."""

from pathlib import Path

import pytest
import torch

from maisi.bundle.bundle import load_bundle
from maisi.bundle.convert import convert
from maisi.bundle.upstream import to_upstream
from maisi.diffusion.scheduler import DDPM, RectifiedFlow
from maisi.errors import InvalidBundleError
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.build import build_network
from maisi.networks.controlnet import ControlNetConfig
from maisi.networks.unet import UNetConfig

LEVELS = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 8,
    "norm_groups": 4,
}
CONFIGS = {
    "autoencoder": AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 1), norm_groups=2),
    "unet": UNetConfig(spacing=True, **LEVELS),
    "controlnet": ControlNetConfig(embedding_widths=(4, 8), **LEVELS),
}


def weights(kind: str, configs: dict = CONFIGS) -> dict[str, torch.Tensor]:
    torch.manual_seed(len(kind))
    return to_upstream(build_network(configs[kind]))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Checkpoints in the three layouts that upstream writes."""
    paths = {kind: tmp_path / f"{kind}.pt" for kind in CONFIGS}
    torch.save(weights("autoencoder"), paths["autoencoder"])
    wrapped = {"epoch": 3, "loss": 0.1, "num_train_timesteps": 1000, "scale_factor": torch.tensor(1.0625)}
    torch.save({**wrapped, "unet_state_dict": weights("unet")}, paths["unet"])
    torch.save({"epoch": 3, "loss": 0.1, "controlnet_state_dict": weights("controlnet")}, paths["controlnet"])
    return paths


def test_three_checkpoints_become_one_bundle(files: dict[str, Path], tmp_path: Path) -> None:
    order = [files["controlnet"], files["autoencoder"], files["unet"]]
    bundle = load_bundle(convert(order, tmp_path / "mine", model="rflow-ct", configs=CONFIGS))
    assert (bundle.name, bundle.names) == ("mine", ("autoencoder", "unet", "controlnet"))
    assert bundle.scale_factor == 1.0625
    assert bundle.scheduler == RectifiedFlow()
    assert bundle.limits.max_size == (512, 512, 768)
    for kind in bundle.kinds:
        back, given = to_upstream(getattr(bundle, kind)), weights(kind)
        assert back.keys() == given.keys()
        assert all(torch.equal(back[name], given[name]) for name in given)
    assert "controlnet.pt" in bundle.model_card
    assert str(tmp_path) not in bundle.model_card
    bundle.verify()


def test_a_ddpm_model_keeps_its_number_of_training_steps(files: dict[str, Path], tmp_path: Path) -> None:
    content = torch.load(files["unet"], weights_only=True) | {"num_train_timesteps": 500}
    torch.save(content, files["unet"])
    bundle = load_bundle(convert([files["unet"]], tmp_path / "mine", model="ddpm-ct", configs=CONFIGS))
    assert isinstance(bundle.scheduler, DDPM)
    assert bundle.scheduler.num_train_steps == 500


def test_a_released_autoencoder_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    released = AutoencoderConfig(
        in_channels=8, out_channels=125, channels=(32, 64, 128), num_res_blocks=(1, 2, 2), upsampling="transposed"
    )
    torch.save(weights("autoencoder", {"autoencoder": released}), tmp_path / "mask_generation_autoencoder.pt")
    path = convert([tmp_path / "mask_generation_autoencoder.pt"], tmp_path / "masks", dtype=torch.bfloat16)
    bundle = load_bundle(path)
    assert bundle.configs["autoencoder"] == released
    assert bundle.limits.max_spacing_mm == (1.5, 1.5, 1.5)
    assert bundle.describe()["networks"]["autoencoder"]["stored_as"] == "BF16"


def test_a_foreign_checkpoint_is_refused_with_its_keys(files: dict[str, Path], tmp_path: Path) -> None:
    torch.save({"model.conv.weight": torch.zeros(3)}, tmp_path / "foreign.pt")
    with pytest.raises(InvalidBundleError, match=r"foreign\.pt: checkpoint is none of .*model\.conv\.weight"):
        convert([tmp_path / "foreign.pt"], tmp_path / "out")
    state = weights("autoencoder")
    state["decoder.blocks.0.conv.conv.bias"] = torch.zeros(5)
    torch.save(state, files["autoencoder"])
    with pytest.raises(InvalidBundleError, match=r"autoencoder\.pt: .*of another shape.*decoder\.blocks\.0\.conv"):
        convert([files["autoencoder"]], tmp_path / "out", configs=CONFIGS)
    assert not (tmp_path / "out").exists()


def test_a_released_size_is_needed_where_no_configuration_is_given(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidBundleError, match=r"autoencoder\.pt: checkpoint is none of ddpm-ct autoencoder"):
        convert([files["autoencoder"]], tmp_path / "out")
    with pytest.raises(InvalidBundleError, match="looks like a unet; configurations were given for: autoencoder"):
        convert([files["unet"]], tmp_path / "out", configs={"autoencoder": CONFIGS["autoencoder"]})


def test_what_cannot_be_one_bundle_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InvalidBundleError, match="no checkpoint to convert"):
        convert([], out)
    with pytest.raises(InvalidBundleError, match="both an autoencoder"):
        convert([files["autoencoder"]] * 2, out, configs=CONFIGS)
    with pytest.raises(InvalidBundleError, match="unknown model 'ct'; accepted: ddpm-ct, rflow-ct, mask"):
        convert([files["unet"]], out, model="ct", configs=CONFIGS)
    with pytest.raises(InvalidBundleError, match="needs its model named"):
        convert([files["unet"]], out, configs=CONFIGS)
    with pytest.raises(InvalidBundleError, match="no unet for it to steer"):
        convert([files["controlnet"]], out, configs=CONFIGS)
    assert not out.exists()


def test_a_checkpoint_without_scale_factor_needs_one(files: dict[str, Path], tmp_path: Path) -> None:
    torch.save({"unet_state_dict": weights("unet")}, files["unet"])
    with pytest.raises(InvalidBundleError, match="does not say its scale_factor; accepted: --scale-factor"):
        convert([files["unet"]], tmp_path / "out", model="rflow-ct", configs=CONFIGS)
    path = convert([files["unet"]], tmp_path / "out", model="rflow-ct", configs=CONFIGS, scale_factor=0.9)
    assert load_bundle(path).scale_factor == 0.9


def test_an_existing_bundle_is_kept_unless_told(files: dict[str, Path], tmp_path: Path) -> None:
    path = convert([files["autoencoder"]], tmp_path / "out", configs=CONFIGS)
    with pytest.raises(InvalidBundleError, match="exists already"):
        convert([files["autoencoder"]], tmp_path / "out", configs=CONFIGS)
    assert convert([files["autoencoder"]], tmp_path / "out", configs=CONFIGS, overwrite=True) == path
