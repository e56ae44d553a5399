"""A whole recipe at tiny size, on phantoms written as if they were scans."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import Maisi

from maisi.anatomy.regions import RegionSpan
from maisi.bundle.bundle import Bundle, BundleInfo, DDPMSpec, load_bundle, save_bundle
from maisi.bundle.upstream import RELEASED
from maisi.compute.compute import Compute
from maisi.data.latents import read_entries, read_latent
from maisi.errors import InvalidConfigError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.unet import DenoisingUNet
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.generate import generate
from maisi.pipelines.requests import GenerateRequest
from maisi.recipes.load import load_recipe
from maisi.recipes.recipe import BundleRecipe
from maisi.recipes.stages import Lesson, build_bundle
from maisi.space.files import write_volume
from maisi.space.grid import Grid
from maisi.training.controlnet import controlnet_like, starting_controlnet
from maisi.training.diffusion import starting_unet

BACKBONE = {
    "channels": [8, 16],
    "num_res_blocks": [1, 1],
    "attention_levels": [False, False],
    "head_channels": 8,
    "norm_groups": 4,
    "num_modalities": 8,
}


def tiny() -> BundleRecipe:
    loop = {"num_steps": 3, "save_every": 1, "validate_every": 3}
    diffusion = {
        "network": {**BACKBONE, "regions": True, "spacing": True},
        "loop": loop,
        "sizes": [[8, 8, 8]],
        "optimization": {"precision": "float32"},
    }
    return BundleRecipe.model_validate(
        {
            "name": "tiny",
            "licence": "CC BY 4.0",
            "measured_samples": 1,
            "groups": {"made": 1.0},
            "spacings_mm": [16.0],
            "limits": {"min_spacing_mm": [2, 2, 2], "max_spacing_mm": [16, 16, 16], "max_size": [32, 32, 32]},
            "autoencoder": {
                "network": {"channels": [8, 8], "num_res_blocks": [1, 1], "norm_groups": 2},
                "loop": loop,
                "batch_size": 1,
                "patch": [16, 16, 16],
                "optimization": {"precision": "float32"},
            },
            "latents": {
                "variations": {"made": 2},
                "spacing_mm": [10, 16],
                "max_size": [32, 32, 32],
                "num_phantoms": 1,
                "weights": {"made": 0.5, "phantom": 0.5},
            },
            "diffusion": diffusion,
            "controlnet": {**diffusion, "controlnet": {**BACKBONE, "embedding_widths": [4, 8]}, "train_unet": True},
        }
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    cases = []
    for i, split in enumerate(("training", "validation")):
        rng = np.random.default_rng(i)
        labels = draw_phantom("chest", Grid.centered((32, 24, 24), (12.0, 12.0, 12.0)), rng)
        write_volume(render_phantom(labels, rng), folder / f"{i}.nii.gz")
        cases.append({"id": str(i), "group": "made", "image": f"{i}.nii.gz", "region": "chest", "split": split})
    (folder / "manifest.json").write_text(json.dumps({"cases": cases}))
    return folder / "manifest.json"


def test_a_recipe_makes_a_bundle_that_generates_and_says_how_good_it_is(manifest: Path, tmp_path: Path) -> None:
    path = build_bundle(Lesson.of(tiny(), manifest), tmp_path)
    bundle = load_bundle(path)
    bundle.verify()
    assert set(bundle.names) == {"autoencoder", "unet", "controlnet"}
    assert "Not for diagnosis" in bundle.model_card
    assert "| made | 1 |" in bundle.model_card
    assert "| (chest, rendered phantom) |" in bundle.model_card
    assert (tmp_path / "quality.json").exists()
    request = GenerateRequest(size=(16, 16, 16), spacing=(16.0, 16.0, 16.0), steps=1)
    (sample,) = generate(request, bundle)
    assert np.isfinite(sample.volume.array).all()

    checksums = (path / "checksums.json").read_text()
    again = build_bundle(Lesson.of(tiny(), manifest), tmp_path)
    assert (again / "checksums.json").read_text() == checksums


def test_the_packaged_recipe_is_valid() -> None:
    recipe = load_recipe("ct-small")
    assert recipe.name == "ct-small"
    assert recipe.for_controlnet().train_unet


@pytest.mark.parametrize("size", ["paper", "small", "tiny"])
def test_the_presets_of_the_diffusion_networks_fit_each_other(size: str) -> None:
    recipe = load_recipe(size)
    unet, steering = recipe.for_unet().network, recipe.for_controlnet()
    assert unet is not None
    with torch.device("meta"):
        controlnet = starting_controlnet(steering, DenoisingUNet(unet), None)
    assert controlnet.config.channels == unet.channels
    assert bool(controlnet.config.occupancy_ids) == (size == "small")


def test_the_paper_trains_the_released_networks_as_it_says() -> None:
    recipe = load_recipe("paper")
    config, steering = recipe.for_unet(), recipe.for_controlnet()
    assert config.loop.epochs == 200
    for how, batches in ((config.optimization, 1), (steering.optimization, 8)):
        assert (how.optimizer, how.betas, how.learning_rate) == ("adam", (0.9, 0.999), 1e-4)
        assert (how.schedule, how.accumulate) == ("polynomial", batches)
    assert config.network == RELEASED["ddpm-ct"].unet
    assert recipe.scheduler == DDPMSpec()
    assert (config.loss, config.batch_size, config.sizes) == ("l1", 1, ())
    assert controlnet_like(config.network, 4) == RELEASED["ddpm-ct"].controlnet
    assert steering.structure_weights == {"tumours": 100}
    assert steering.loop.num_steps == 10_000
    volumes = recipe.for_autoencoder()
    assert (volumes.loop.epochs, volumes.early_patch, volumes.patch) == (300, (64, 64, 64), (128, 128, 128))
    assert volumes.patch_at(99, 300) == (64, 64, 64)
    assert volumes.patch_at(100, 300) == (128, 128, 128)


def fresh() -> Bundle:
    """A bundle of the recipe's networks, untrained."""
    torch.manual_seed(0)
    recipe = tiny()
    unet = starting_unet(recipe.for_unet().network, None)
    networks = {
        "autoencoder": Autoencoder(recipe.for_autoencoder().network),
        "unet": unet,
        "controlnet": starting_controlnet(recipe.for_controlnet(), unet, None),
    }
    about = {"scheduler": DDPMSpec(), "scale_factor": 1.25, "limits": recipe.limits}
    return Bundle.of(BundleInfo(name="fresh", licence="none", vocabulary_version="1.0", **about), networks)


def written(recipe: BundleRecipe, path: Path, **parts: dict) -> Path:
    """The file of a recipe with other settings in some of its parts."""
    settings = recipe.model_dump(mode="json")
    path.write_text(yaml.safe_dump({**settings, **{name: settings[name] | more for name, more in parts.items()}}))
    return path


def test_a_training_that_is_written_over_begins_anew(maisi: Maisi, manifest: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", written(tiny(), tmp_path / "r.yaml")
    trained = ("train", "autoencoder", recipe, "--manifest", manifest, "--out", out, "-s")
    assert maisi(*trained, "autoencoder.loop.num_steps=2").code == 0
    refused = maisi(*trained, "autoencoder.loop.num_steps=3")
    assert (refused.code, "or --overwrite" in refused.err) == (2, True)
    done = maisi(*trained, "autoencoder.loop.num_steps=3", "--overwrite")
    assert done.code == 0, done.err
    steps = [json.loads(line) for line in (out / "autoencoder" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "split" not in line] == [1, 2, 3]
    fresh = maisi(*(tmp_path / "fresh" if part is out else part for part in trained), "autoencoder.loop.num_steps=3")
    assert fresh.code == 0, fresh.err
    again, first = (load_bundle(folder / "bundle").autoencoder.state_dict() for folder in (out, tmp_path / "fresh"))
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_what_another_command_has_left_stays_where_its_folder_is_written_over(maisi: Maisi, tmp_path: Path) -> None:
    save_bundle(fresh(), tmp_path / "run" / "bundle")
    files = {path.relative_to(tmp_path / "run").as_posix(): "" for path in (tmp_path / "run").rglob("*.safetensors")}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"command": "train recipe", "outputs": files}))
    asked = ("generate", "--bundle", tmp_path / "run" / "bundle", "--size", 16, 16, 16, "--spacing", 16, 16, 16)
    done = maisi(*asked, "--steps", 1, "--force", "--out", tmp_path / "run", "--overwrite")
    assert done.code == 0, done.err
    assert files
    assert all((tmp_path / "run" / name).is_file() for name in files)


def test_a_bundle_is_trained_on_with_adapters_and_gains_classes(maisi: Maisi, manifest: Path, tmp_path: Path) -> None:
    base = save_bundle(fresh(), tmp_path / "base")
    before = load_bundle(base)
    on = {"start_from": str(base), "lora": {"rank": 2}, "network": None, "controlnet": None}
    classes = {"my tumour": {"like": "hepatic tumor"}}
    recipe = written(
        tiny().model_copy(update={"scheduler": None}),
        tmp_path / "r.yaml",
        diffusion={name: on[name] for name in ("start_from", "lora", "network")},
        controlnet={**on, "train_unet": False, "classes": classes, "occupancy": ["my tumour"]},
    )
    given = ("--manifest", manifest, "--bundle", base)
    for part in ("diffusion", "controlnet"):
        done = maisi("train", part, recipe, *given, "--out", tmp_path / part)
        assert done.code == 0, done.err
        assert (tmp_path / part / part / "adapters.safetensors").exists()
        losses = (tmp_path / part / part / "metrics.jsonl").read_text()
        assert losses.count('"loss_t4"') == 1
    unet = load_bundle(tmp_path / "diffusion" / "bundle")
    assert unet.info.scheduler == before.info.scheduler
    assert unet.scale_factor == 1.25
    assert set(unet.names) == set(before.names)
    after = load_bundle(tmp_path / "controlnet" / "bundle")
    assert after.info.classes == {154: "my tumour"}
    assert after.controlnet.config.occupancy_ids == (154,)
    assert all(torch.equal(w, before.unet.state_dict()[n]) for n, w in after.unet.state_dict().items())
    request = GenerateRequest(size=(16, 16, 16), spacing=(16.0, 16.0, 16.0), steps=1)
    half = load_bundle(after.path, dtype=torch.bfloat16, narrow_in_float32=True)
    for compute, bundle in (
        (Compute(), after),
        (Compute(memory="1GB"), after),
        (Compute(precision="bfloat16"), half),
    ):
        (sample,) = generate(request.model_copy(update={"compute": compute}), bundle)
        assert np.isfinite(sample.volume.array).all()


def test_a_bundle_that_does_not_match_the_recipe_is_refused_before_anything_is_trained(
    maisi: Maisi, manifest: Path, tmp_path: Path
) -> None:
    given = ("--manifest", manifest, "--bundle", "ct-small", "--out", tmp_path / "out")
    recipe = written(tiny(), tmp_path / "network.yaml", diffusion={"start_from": "ct-small"})
    refused = maisi("train", "diffusion", recipe, *given)
    assert refused.code == 2
    assert "channels of the U-Net to start from is (32, 64, 128); the recipe says (8, 16)" in refused.err
    ddpm = tiny().model_copy(update={"scheduler": DDPMSpec()})
    recipe = written(ddpm, tmp_path / "schedule.yaml", diffusion={"start_from": "ct-small", "network": None})
    refused = maisi("train", "diffusion", recipe, *given)
    assert refused.code == 2
    assert "bundle ct-small was trained by another schedule than the recipe's" in refused.err
    assert not (tmp_path / "out").exists()


def test_a_recipe_with_a_setting_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: x\nlicence: y\nlerning_rate: 1\n")
    with pytest.raises(InvalidConfigError, match="lerning_rate"):
        load_recipe(tmp_path / "r.yaml")


def test_networks_trained_one_after_the_other_make_a_bundle_that_generates(
    maisi: Maisi, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny().model_dump(mode="json")))
    for part, before in (("autoencoder", None), ("diffusion", "autoencoder"), ("controlnet", "diffusion")):
        given = [] if before is None else ["--bundle", tmp_path / before / "bundle"]
        done = maisi("train", part, tmp_path / "r.yaml", "--manifest", manifest, *given, "--out", tmp_path / part)
        assert done.code == 0, done.err
    bundle = load_bundle(tmp_path / "controlnet" / "bundle")
    assert set(bundle.names) == {"autoencoder", "unet", "controlnet"}
    first = load_bundle(tmp_path / "autoencoder" / "bundle").autoencoder.state_dict()
    assert all(torch.equal(weight, first[name]) for name, weight in bundle.autoencoder.state_dict().items())
    request = GenerateRequest(size=(16, 16, 16), spacing=(16.0, 16.0, 16.0), steps=1)
    (sample,) = generate(request, bundle)
    assert np.isfinite(sample.volume.array).all()


def test_a_training_that_lacks_what_goes_before_is_refused(maisi: Maisi, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny().model_dump(mode="json")))
    given = ("--manifest", manifest, "--out", tmp_path / "out")
    autoencoder_alone = save_bundle(
        Bundle.of(
            BundleInfo(name="alone", licence="none", vocabulary_version="1.0"),
            {"autoencoder": Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2))},
        ),
        tmp_path / "alone",
    )
    refused = maisi("train", "controlnet", tmp_path / "r.yaml", "--bundle", autoencoder_alone, *given)
    assert refused.code == 2
    assert "bundle alone has no unet, which goes before; it has autoencoder" in refused.err
    (tmp_path / "part.yaml").write_text("name: part\nlicence: none\n")
    refused = maisi("train", "autoencoder", tmp_path / "part.yaml", *given)
    assert refused.code == 2
    assert "recipe part says nothing of autoencoder; it has nothing" in refused.err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an autoencoder alone."""
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2))
    info = BundleInfo(name="alone", licence="none", vocabulary_version="1.0")
    return save_bundle(Bundle.of(info, {"autoencoder": network}), tmp_path_factory.mktemp("bundle") / "alone")


def encoded(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("is_there", [False, True])
def test_a_case_that_cannot_be_read_ends_a_training_and_nothing_is_left(
    is_there: bool, maisi: Maisi, manifest: Path, tmp_path: Path
) -> None:
    cases = json.loads(manifest.read_text())["cases"]
    (tmp_path / "cut.nii.gz").write_bytes((manifest.parent / cases[0]["image"]).read_bytes()[:200])
    listed = [{**case, "image": str(manifest.parent / case["image"])} for case in cases[1:]]
    (tmp_path / "cut.json").write_text(json.dumps({"cases": [{**cases[0], "image": "cut.nii.gz"}, *listed]}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny().model_dump(mode="json")))
    if is_there:
        (tmp_path / "out").mkdir()
    asked = ("train", "autoencoder", tmp_path / "recipe.yaml", "--manifest", tmp_path / "cut.json")
    answer = maisi(*asked, "--out", tmp_path / "out")
    assert answer.code == 2
    assert f"case {cases[0]['id']}: " in answer.err
    assert (tmp_path / "out").exists() == is_there
    assert not is_there or not list((tmp_path / "out").iterdir())


def test_latents_of_a_manifest_are_the_same_however_the_work_is_spread(
    maisi: Maisi, manifest: Path, autoencoder: Path, tmp_path: Path
) -> None:
    given = ("encode", "--manifest", manifest, "--bundle", autoencoder, "--precision", "float32", "--threads", "1")
    before = torch.get_num_threads()
    ways = {"one": (), "two": ("--workers", "2")}  # over Ray it is the same road: tests/unit/test_spread.py
    for name, more in ways.items():
        done = maisi(*given, *more, "--out", tmp_path / name)
        assert done.code == 0, done.err
    torch.set_num_threads(before)
    whole = encoded(tmp_path / "one")
    assert sorted(whole) == ["0.safetensors", "1.safetensors"]
    for name in ways:
        latents = {file: read_latent(tmp_path / name / file) for file in whole}
        for file, latent in latents.items():
            first = read_latent(tmp_path / "one" / file)
            assert torch.equal(latent.mean, first.mean)
            assert torch.equal(latent.log_variance, first.log_variance)
            assert latent.labels is not None
            assert latent.span == RegionSpan.named("chest")
    told = [(entry.id, entry.split) for entry in read_entries(tmp_path / "two")]
    assert told == [("0", "training"), ("1", "validation")]


def test_a_bad_case_stops_no_other_and_what_is_encoded_stays(
    maisi: Maisi, manifest: Path, autoencoder: Path, tmp_path: Path
) -> None:
    cases = json.loads(manifest.read_text())["cases"]
    whole = [case | {"image": str(manifest.parent / case["image"])} for case in cases]
    bad = {"id": "gone", "image": "gone.nii.gz", "region": "chest"}
    (tmp_path / "m.json").write_text(json.dumps({"cases": [*whole, bad]}))
    given = ("encode", "--manifest", tmp_path / "m.json", "--bundle", autoencoder, "--out", tmp_path / "out")
    done = maisi(*given)
    assert done.code == 0, done.err
    assert "gone: " in done.err
    assert "no such file" in done.err
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    assert maisi(*given).code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")} == times

    other = load_bundle(autoencoder)  # trained on, and saved in the same place: its latents are others
    next(other.autoencoder.parameters()).data += 0.01
    moved = save_bundle(other, tmp_path / "moved")
    first = read_entries(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    settings = (tmp_path / "again" / "run.yaml").read_text().replace(str(autoencoder), str(moved))
    (tmp_path / "again" / "run.yaml").write_text(settings)
    given = ("encode", "--manifest", tmp_path / "m.json", "--bundle", moved, "--out", tmp_path / "again")
    assert maisi(*given).code == 0
    later = read_entries(tmp_path / "again")
    assert all(a.sha256 != b.sha256 and a.autoencoder != b.autoencoder for a, b in zip(first, later, strict=True))


def test_options_of_one_file_are_refused_for_a_manifest_and_those_of_many_for_one_file(
    maisi: Maisi, manifest: Path, autoencoder: Path, tmp_path: Path
) -> None:
    many = ("encode", "--manifest", manifest, "--bundle", autoencoder, "--out", tmp_path / "out")
    for more in (("--spacing", 2, 2, 2), ("--hu-offset", -1024), ("--overwrite",)):
        answer = maisi(*many, *more)
        assert (answer.code, "encoded as they are stored" in answer.err) == (2, True), answer.err
    one = ("encode", manifest.parent / "0.nii.gz", "--bundle", autoencoder, "--out", tmp_path / "one.safetensors")
    answer = maisi(*one, "--workers", 2)
    assert (answer.code, "share out the cases of a --manifest" in answer.err) == (2, True)
    assert not list(tmp_path.iterdir())


def test_networks_learn_from_stored_latents_of_their_own_autoencoder_only(
    maisi: Maisi, manifest: Path, autoencoder: Path, tmp_path: Path
) -> None:
    recipe = tiny().model_dump(mode="json") | {"latents": {}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert maisi("encode", "--manifest", manifest, "--bundle", autoencoder, "--out", tmp_path / "latents").code == 0
    given = ("--latents", tmp_path / "latents", "--bundle")
    done = maisi("train", "diffusion", tmp_path / "r.yaml", *given, autoencoder, "--out", tmp_path / "unet")
    assert done.code == 0, done.err
    done = maisi(
        "train", "controlnet", tmp_path / "r.yaml", *given, tmp_path / "unet/bundle", "--out", tmp_path / "net"
    )
    assert done.code == 0, done.err
    assert set(load_bundle(tmp_path / "net" / "bundle").names) == {"autoencoder", "unet", "controlnet"}
    done = maisi("train", "diffusion", tmp_path / "r.yaml", *given, "ct-small", "--out", tmp_path / "other")
    assert done.code == 2
    assert "latents of another autoencoder than that of bundle ct-small" in done.err
    done = maisi("train", "diffusion", tmp_path / "r.yaml", "--bundle", autoencoder, "--out", tmp_path / "none")
    assert "give either --manifest or --latents" in done.err
