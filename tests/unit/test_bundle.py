import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from maisi.bundle import places
from maisi.bundle.bundle import (
    Bundle,
    BundleInfo,
    DDPMSpec,
    Limits,
    RectifiedFlowSpec,
    load_bundle,
    save_bundle,
)
from maisi.bundle.contents import write_checksums
from maisi.bundle.places import find_bundle, packaged_names
from maisi.diffusion.scheduler import DDPM, DDPMConfig, RectifiedFlow
from maisi.errors import InvalidBundleError, InvalidRequestError, StorageError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.controlnet import ControlNet, ControlNetConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig

LEVELS = {
    "channels": (8, 16),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "head_channels": 8,
    "norm_groups": 4,
}
INFO = BundleInfo(
    name="tiny",
    description="for tests",
    licence="CC0-1.0",
    vocabulary_version="1.0",
    scale_factor=1.25,
    scheduler=RectifiedFlowSpec(),
    limits=Limits(min_spacing_mm=(2, 2, 2), max_spacing_mm=(5, 5, 5), max_size=(64, 64, 64), regions=("chest",)),
)


def tiny_networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(channels=(4, 8), num_res_blocks=(1, 1), norm_groups=2))
    unet = DenoisingUNet(UNetConfig(spacing=True, **LEVELS))
    controlnet = ControlNet(ControlNetConfig(embedding_widths=(4, 8), **LEVELS))
    return {"autoencoder": autoencoder, "unet": unet, "controlnet": controlnet}


@pytest.fixture
def tiny() -> Bundle:
    return Bundle.of(INFO, tiny_networks(), model_card="# Tiny\n", licence_text="Public domain\n")


@pytest.fixture
def saved(tiny: Bundle, tmp_path: Path) -> Path:
    return save_bundle(tiny, tmp_path / "tiny")


def tree(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def rewrite(folder: Path, **changes: object) -> None:
    """Change settings of bundle.yaml and make its checksum right again."""
    path = folder / "bundle.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    write_checksums(folder)


def test_a_bundle_comes_back_from_disk_as_it_was(tiny: Bundle, saved: Path) -> None:
    loaded = load_bundle(saved)
    assert loaded.info == INFO
    assert loaded.path == saved
    assert loaded.names == ("autoencoder", "unet", "controlnet")
    assert (loaded.model_card, loaded.licence_text) == ("# Tiny\n", "Public domain\n")
    assert isinstance(loaded.scheduler, RectifiedFlow)
    assert (loaded.name, loaded.scale_factor, loaded.limits.max_size) == ("tiny", 1.25, (64, 64, 64))
    for name in loaded.names:
        ours, theirs = tiny.network(name).state_dict(), loaded.network(name).state_dict()
        assert loaded.configs[name] == tiny.configs[name]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_loaded_networks_are_ready_for_inference(saved: Path) -> None:
    autoencoder = load_bundle(saved).autoencoder
    assert not autoencoder.training
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    assert autoencoder.decode(torch.zeros(1, 4, 2, 2, 2)).shape == (1, 1, 4, 4, 4)


def test_the_same_bundle_gives_the_same_bytes(tiny: Bundle, saved: Path, tmp_path: Path) -> None:
    again = save_bundle(load_bundle(saved), tmp_path / "again")
    assert tree(again) == tree(saved)
    assert sorted(tree(saved)) == [
        "LICENSE",
        "MODEL_CARD.md",
        "autoencoder/config.yaml",
        "autoencoder/model.safetensors",
        "bundle.yaml",
        "checksums.json",
        "controlnet/config.yaml",
        "controlnet/model.safetensors",
        "unet/config.yaml",
        "unet/model.safetensors",
    ]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_the_bytes_on_disk_are_float32_in_memory(tiny: Bundle, tmp_path: Path, stored: torch.dtype) -> None:
    path = save_bundle(tiny, tmp_path / "half", dtype=stored)
    on_disk = load_file(path / "unet" / "model.safetensors")
    assert {tensor.dtype for tensor in on_disk.values()} == {stored}
    weight = load_bundle(path).unet.conv_in.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, tiny.unet.conv_in.weight.to(stored).float())
    assert load_bundle(path, dtype=stored).unet.conv_in.weight.dtype == stored


def test_a_network_is_read_when_it_is_first_used(saved: Path) -> None:
    (saved / "unet" / "model.safetensors").write_bytes(b"broken")
    loaded = load_bundle(saved)
    assert loaded.autoencoder is loaded.autoencoder
    with pytest.raises(InvalidBundleError, match="altered or damaged"):
        _ = loaded.unet


def test_changing_a_loaded_network_does_not_change_the_file(saved: Path) -> None:
    before = tree(saved)
    with torch.no_grad():
        for parameter in load_bundle(saved).autoencoder.parameters():
            parameter.fill_(7)
    assert tree(saved) == before


def test_a_part_that_is_missing_says_so(tmp_path: Path) -> None:
    info = BundleInfo(name="codec", licence="CC0-1.0", vocabulary_version="1.0")
    only = {"autoencoder": tiny_networks()["autoencoder"]}
    loaded = load_bundle(save_bundle(Bundle.of(info, only), tmp_path / "codec"))
    assert loaded.names == ("autoencoder",)
    assert loaded.size_multiple == 2
    for ask in (lambda: loaded.unet, lambda: loaded.controlnet, lambda: loaded.scheduler):
        with pytest.raises(InvalidBundleError, match=r"'codec' has no .*; it holds autoencoder"):
            ask()


def test_the_size_multiple_is_that_of_autoencoder_and_unet_together(tiny: Bundle) -> None:
    assert tiny.size_multiple == 2 * 2


def test_a_ddpm_schedule_survives_the_file(tmp_path: Path) -> None:
    info = INFO.model_copy(update={"scheduler": DDPMSpec(config=DDPMConfig(prediction="velocity"))})
    networks = tiny_networks()
    loaded = load_bundle(save_bundle(Bundle.of(info, networks), tmp_path / "ddpm"))
    assert loaded.scheduler == DDPM(DDPMConfig(prediction="velocity"))


def test_describe_is_plain_data_and_loads_nothing(tiny: Bundle, saved: Path) -> None:
    about = load_bundle(saved).describe()
    json.dumps(about)
    unet = about["networks"]["unet"]
    assert unet["num_parameters"] == sum(p.numel() for p in tiny.unet.parameters())
    assert unet["num_bytes"] == (saved / "unet" / "model.safetensors").stat().st_size
    assert unet["stored_as"] == "F32"
    assert unet["config"]["channels"] == [8, 16]
    assert about["limits"]["regions"] == ["chest"]
    assert about["size_multiple"] == 4
    assert about["scheduler"]["kind"] == "rectified_flow"
    assert Bundle.of(INFO, tiny_networks()).describe()["path"] is None


def test_an_altered_file_is_named_with_both_sums(saved: Path) -> None:
    listed = json.loads((saved / "checksums.json").read_text())["sha256"]
    with (saved / "bundle.yaml").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(
        InvalidBundleError, match=rf"bundle\.yaml was altered .* [0-9a-f]{{64}}.*{listed['bundle.yaml']}"
    ):
        load_bundle(saved)


def test_verify_reads_every_file(saved: Path) -> None:
    loaded = load_bundle(saved)
    loaded.verify()
    weights = saved / "controlnet" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InvalidBundleError, match=r"controlnet/model\.safetensors"):
        loaded.verify()


@pytest.mark.parametrize("name", ["bundle.yaml", "LICENSE", "unet/config.yaml", "unet/model.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(InvalidBundleError, match=name if name != "bundle.yaml" else "is no bundle"):
        load_bundle(saved)


def test_a_bundle_without_checksums_is_refused(saved: Path) -> None:
    (saved / "checksums.json").unlink()
    with pytest.raises(InvalidBundleError, match=r"no checksums\.json"):
        load_bundle(saved)


@pytest.mark.parametrize("text", ["", "[]", '{"sha256": 3}', "not json"])
def test_damaged_checksums_are_refused(saved: Path, text: str) -> None:
    (saved / "checksums.json").write_text(text)
    with pytest.raises(InvalidBundleError, match=r"checksums\.json is damaged"):
        load_bundle(saved)


def test_checksums_may_not_point_outside_the_bundle(saved: Path) -> None:
    (saved / "checksums.json").write_text(json.dumps({"sha256": {"../secret": "0" * 64}}))
    with pytest.raises(InvalidBundleError, match="not a file of the bundle"):
        load_bundle(saved)


def test_a_file_added_later_is_refused(saved: Path) -> None:
    listed = json.loads((saved / "checksums.json").read_text())
    del listed["sha256"]["unet/config.yaml"]
    (saved / "checksums.json").write_text(json.dumps(listed))
    with pytest.raises(InvalidBundleError, match=r"unet/config\.yaml is not listed"):
        load_bundle(saved)


def test_weights_that_do_not_fit_are_listed_by_kind(saved: Path) -> None:
    path = saved / "unet" / "model.safetensors"
    state = load_file(path)
    del state["conv_in.bias"]
    state["extra.weight"] = torch.zeros(2)
    state["conv_in.weight"] = torch.zeros(3, 3)
    save_file(state, path)
    write_checksums(saved)
    with pytest.raises(InvalidBundleError) as refused:
        _ = load_bundle(saved).unet
    message = str(refused.value)
    assert "1 missing (conv_in.bias)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (conv_in.weight (3, 3), expected (8, 4, 3, 3, 3))" in message


def test_a_truncated_weight_file_is_refused(saved: Path) -> None:
    path = saved / "unet" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    write_checksums(saved)
    with pytest.raises(InvalidBundleError, match="no readable safetensors file"):
        _ = load_bundle(saved).unet


def test_a_wrong_setting_is_named_with_what_was_meant(saved: Path) -> None:
    rewrite(saved, scale_facter=1.0)
    with pytest.raises(InvalidBundleError, match="unknown setting 'scale_facter'; did you mean 'scale_factor'"):
        load_bundle(saved)


def test_impossible_settings_are_refused(saved: Path) -> None:
    rewrite(saved, scale_factor=-1.0)
    with pytest.raises(InvalidBundleError, match=r"scale_factor: .* got -1\.0"):
        load_bundle(saved)
    rewrite(saved, scale_factor=1.0, format_version=99)
    with pytest.raises(InvalidBundleError, match="format 99 is unknown"):
        load_bundle(saved)
    (saved / "bundle.yaml").write_text("a: [1")
    write_checksums(saved)
    with pytest.raises(InvalidBundleError, match="no YAML file"):
        load_bundle(saved)


def test_networks_that_do_not_belong_together_are_refused() -> None:
    networks = tiny_networks()
    other = DenoisingUNet(UNetConfig(in_channels=3, out_channels=3, **LEVELS))
    with pytest.raises(InvalidBundleError, match="reads 3 channels"):
        Bundle.of(INFO, {**networks, "unet": other})
    coarse = ControlNet(ControlNetConfig(embedding_widths=(4, 8, 8), **LEVELS))
    with pytest.raises(InvalidBundleError, match="shrinks labels 4 times"):
        Bundle.of(INFO, {**networks, "controlnet": coarse})
    deeper = ControlNet(ControlNetConfig(embedding_widths=(4, 8), **{**LEVELS, "num_res_blocks": (2, 1)}))
    with pytest.raises(InvalidBundleError, match="num_res_blocks of the ControlNet"):
        Bundle.of(INFO, {**networks, "controlnet": deeper})
    with pytest.raises(InvalidBundleError, match="no unet for it to steer"):
        Bundle.of(INFO, {"controlnet": networks["controlnet"]})
    with pytest.raises(InvalidBundleError, match="no scheduler"):
        Bundle.of(INFO.model_copy(update={"scheduler": None}), networks)
    with pytest.raises(InvalidBundleError, match="holds no network"):
        Bundle.of(INFO, {})


def with_labels() -> dict[str, torch.nn.Module]:
    """The networks of a CT bundle and those of a label generator."""
    shape = AutoencoderConfig(in_channels=8, out_channels=125, channels=(4, 8), num_res_blocks=(1, 1), norm_groups=2)
    unet = DenoisingUNet(UNetConfig(context_channels=10, **LEVELS))
    return {**tiny_networks(), "label_autoencoder": Autoencoder(shape), "label_unet": unet}


def test_a_bundle_holds_networks_of_other_names(tmp_path: Path) -> None:
    bundle = Bundle.of(INFO, with_labels())
    assert bundle.info.networks == {"label_autoencoder": "autoencoder", "label_unet": "unet"}
    loaded = load_bundle(save_bundle(bundle, tmp_path / "both"))
    assert loaded.kinds == {
        "autoencoder": "autoencoder",
        "unet": "unet",
        "controlnet": "controlnet",
        "label_autoencoder": "autoencoder",
        "label_unet": "unet",
    }
    for name in bundle.names:
        assert loaded.configs[name] == bundle.configs[name]
        ours, theirs = bundle.network(name).state_dict(), loaded.network(name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert loaded.network(name) is loaded.network(name)
    assert loaded.autoencoder is loaded.network("autoencoder")
    assert loaded.size_multiple == 4
    assert loaded.describe()["networks"]["label_autoencoder"]["kind"] == "autoencoder"
    with pytest.raises(InvalidBundleError, match=r"no label_controlnet; it holds autoencoder, .*label_unet"):
        loaded.network("label_controlnet")


def test_only_the_networks_that_make_cts_must_fit_each_other() -> None:
    labels = with_labels()
    wider = DenoisingUNet(UNetConfig(in_channels=3, **LEVELS))
    assert Bundle.of(INFO, {**labels, "label_unet": wider}).names[-1] == "label_unet"
    with pytest.raises(InvalidBundleError, match=r"unet reads 3 channels, the autoencoder's latent has 4"):
        Bundle.of(INFO, {**labels, "unet": wider})
    alone = INFO.model_copy(update={"scheduler": None})
    assert Bundle.of(alone, {"label_unet": wider}).names == ("label_unet",)


def test_a_bundle_without_networks_for_other_names_is_read_as_before(saved: Path) -> None:
    content = yaml.safe_load((saved / "bundle.yaml").read_text())
    del content["networks"], content["classes"]
    (saved / "bundle.yaml").write_text(yaml.safe_dump(content))
    write_checksums(saved)
    assert load_bundle(saved).info == INFO


def test_a_network_whose_kind_is_not_what_its_name_or_the_bundle_says_is_refused(tmp_path: Path) -> None:
    networks = with_labels()
    configs = {name: network.config for name, network in networks.items()}
    with pytest.raises(InvalidBundleError, match="holds label_autoencoder, but does not say its kind"):
        Bundle(INFO, configs, networks.__getitem__)
    with pytest.raises(InvalidBundleError, match="unet of bundle 'tiny' is a network of kind autoencoder, not unet"):
        Bundle.of(INFO, {"unet": networks["autoencoder"]})
    with pytest.raises(InvalidBundleError, match=r"'\.\./unet' names no network"):
        Bundle.of(INFO, {"../unet": networks["unet"]})
    with pytest.raises(ValueError, match="a network named unet is of that kind"):
        BundleInfo(name="x", licence="y", vocabulary_version="1.0", networks={"unet": "autoencoder"})
    saved = save_bundle(Bundle.of(INFO, networks), tmp_path / "both")
    rewrite(saved, networks={"label_autoencoder": "unet"})
    with pytest.raises(InvalidBundleError, match=r"label_autoencoder.config\.yaml"):
        load_bundle(saved)


def test_a_network_that_is_listed_but_not_there_is_named(saved: Path) -> None:
    rewrite(saved, networks={"label_unet": "unet"})
    with pytest.raises(InvalidBundleError, match=r"incomplete; missing: label_unet/config\.yaml"):
        load_bundle(saved)
    missing = INFO.model_copy(update={"networks": {"label_unet": "unet"}})
    with pytest.raises(InvalidBundleError, match="does not hold: label_unet"):
        Bundle.of(missing, tiny_networks())


def test_a_bundle_declares_classes_that_the_vocabulary_lacks(tiny: Bundle, tmp_path: Path) -> None:
    info = BundleInfo.model_validate(INFO.model_dump() | {"classes": {250: "stent", 2: "shunt"}})
    path = save_bundle(Bundle.of(info, tiny_networks()), tmp_path / "more")
    assert load_bundle(path).info.classes == {250: "stent", 2: "shunt"}
    assert load_bundle(path).describe()["classes"] == {"250": "stent", "2": "shunt"}


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({0: "stent"}, "accepted: 1 to 255"),
        ({256: "stent"}, "accepted: 1 to 255"),
        ({1: "stent"}, "the vocabulary's 'liver'"),
        ({250: "Liver"}, "in the vocabulary, as id 1"),
        ({250: " "}, "no name"),
        ({250: "stent", 251: "stent"}, "one name each"),
    ],
)
def test_classes_that_are_no_new_ones_are_refused(classes: dict[int, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BundleInfo(name="x", licence="y", vocabulary_version="1.0", classes=classes)


def test_saving_refuses_an_existing_folder_unless_told(tiny: Bundle, saved: Path) -> None:
    before = tree(saved)
    with pytest.raises(InvalidBundleError, match="exists already"):
        save_bundle(tiny, saved)
    assert tree(saved) == before
    save_bundle(tiny, saved, dtype=torch.bfloat16, overwrite=True)
    assert load_bundle(saved).describe()["networks"]["unet"]["stored_as"] == "BF16"
    assert [path.name for path in saved.parent.iterdir()] == ["tiny"]


def test_a_bundle_is_never_half_written(tmp_path: Path, saved: Path) -> None:
    def broken(kind: str) -> torch.nn.Module:
        network = tiny_networks()[kind]
        if kind == "controlnet":
            network.register_buffer("shared", network.conv_in.weight.data)  # safetensors refuses shared memory
        return network

    whole = load_bundle(saved)
    half = Bundle(INFO, whole.configs, broken)
    before = tree(saved)
    for target in (tmp_path / "new", saved):
        with pytest.raises(RuntimeError, match="shared"):
            save_bundle(half, target, overwrite=True)
    assert tree(saved) == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_what_a_killed_process_left_is_cleared_by_the_next_save(tiny: Bundle, tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\n"
        "from maisi.storage.atomic import write_directory\n"
        "with write_directory(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half')\n"
        "    os._exit(9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "tiny")], check=False)
    assert killed.returncode == 9
    assert [path.name.split("~")[0][:14] for path in tmp_path.iterdir()] == [".tiny.partial-"]
    save_bundle(tiny, tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(StorageError, match=r"\d+ bytes needed, 10 free"):
        save_bundle(tiny, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_found_by_packaged_name_or_by_path(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "PACKAGED", tmp_path)
    assert packaged_names() == ["tiny"]
    assert find_bundle("tiny") == saved
    assert find_bundle(saved) == saved
    assert load_bundle("tiny").name == "tiny"
    with pytest.raises(InvalidBundleError, match="no bundle 'tinny'; did you mean 'tiny'"):
        find_bundle("tinny")
    with pytest.raises(InvalidBundleError, match="accepted: tiny, the path of a bundle folder"):
        find_bundle("zzz")


def test_the_home_of_a_user_who_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"~nobody77/x begins with the home folder of nobody here"):
        find_bundle("~nobody77/x")


def test_what_is_no_bundle_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundleError, match=r"is no bundle: it has no bundle\.yaml"):
        find_bundle(tmp_path)
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"")
    with pytest.raises(InvalidBundleError, match="maisi convert"):
        find_bundle(checkpoint)


def test_limits_name_what_lies_outside() -> None:
    limits = Limits(
        min_spacing_mm=(2, 2, 2), max_spacing_mm=(5, 5, 5), max_size=(64, 64, 64), min_fov_mm=(100, 100, 50)
    )
    assert limits.violations((64, 64, 32), (2.0, 2.0, 5.0)) == []
    assert limits.violations((96, 64, 32), (1.5, 2.0, 5.0)) == [
        "spacing 1.5 x 2 x 5 mm is below the 2 x 2 x 2 mm that the bundle was trained for",
        "size 96 x 64 x 32 is above the 64 x 64 x 64 that the bundle was trained for",
    ]
    assert limits.violations((32, 64, 32), (2.0, 2.0, 5.0)) == [
        "field of view 64 x 128 x 160 mm is below the 100 x 100 x 50 mm that the bundle was trained for"
    ]
    with pytest.raises(ValueError, match="above the greatest"):
        Limits(min_spacing_mm=(6, 6, 6))


def test_every_packaged_bundle_is_whole() -> None:
    for name in packaged_names():
        packaged = load_bundle(name)
        packaged.verify()
        for name in packaged.names:
            assert next(packaged.network(name).parameters()).dtype == torch.float32
