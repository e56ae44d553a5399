"""What trainings refuse before their first step."""

from pathlib import Path

import pytest

from maisi.data.manifest import Case
from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.networks.autoencoder import AutoencoderConfig
from maisi.networks.discriminator import DiscriminatorConfig
from maisi.recipes.load import load_recipe
from maisi.recipes.recipe import BundleRecipe
from maisi.recipes.variations import volumes_of
from maisi.runs.tasks import task_named
from maisi.runs.tasks.train import TrainRequest
from maisi.storage.settings import check_settings, with_assignments
from maisi.training.autoencoder import AutoencoderTraining, check_autoencoder_training
from maisi.training.loop import LoopConfig


def recipe(**more: object) -> AutoencoderTraining:
    return AutoencoderTraining.model_validate(
        {
            "network": AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2),
            "discriminator": DiscriminatorConfig(channels=4, num_layers=2),
            "loop": LoopConfig(epochs=3),
            "batch_size": 1,
            "patch": (16, 16, 16),
            **more,
        }
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"patch": (16, 8, 16), "adversarial_weight": 0.1, "adversarial_start": 7}, "patch .* at least 12 an axis"),
        ({"early_patch": (8, 8, 8), "adversarial_weight": 0.1, "adversarial_start": 2}, "early_patch .* too small"),
        ({"patch": (16, 16, 17)}, "patch .* multiples of 2"),
        ({"early_patch": (0, 8, 8)}, "early_patch .* multiples of 2"),
        ({"decoder_only_after": 0}, "an encoder that has learned nothing"),
    ],
)
def test_what_a_late_step_would_refuse_is_refused_at_once(more: dict, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        check_autoencoder_training(recipe(**more), num_cases=3, has_start=False)


@pytest.mark.parametrize(
    "more",
    [
        {"patch": (16, 8, 16), "adversarial_weight": 0.1, "adversarial_start": 9},  # after the last of 9 steps
        {"patch": (16, 8, 16)},  # without a critic
        {"early_patch": (8, 8, 8), "adversarial_weight": 0.1, "adversarial_start": 3},
        {"early_patch": (8, 8, 8), "early_share": 1.0, "patch": (4, 4, 4)},
        {"decoder_only_after": 1},
    ],
)
def test_what_every_step_can_do_is_accepted(more: dict) -> None:
    check_autoencoder_training(recipe(**more), num_cases=3, has_start=False)


def test_a_trained_encoder_may_be_frozen_from_the_start() -> None:
    check_autoencoder_training(recipe(decoder_only_after=0), num_cases=3, has_start=True)


@pytest.mark.parametrize("place", ["groups", "latents"])
@pytest.mark.parametrize(
    ("weights", "said"),
    [({"a": -1.0, "b": 2.0}, "greater than or equal to 0"), ({"a": 0.0, "b": 0.0}, "no group is ever drawn")],
)
def test_weights_that_draw_nothing_are_refused(place: str, weights: dict, said: str) -> None:
    given = weights if place == "groups" else {"weights": weights}
    with pytest.raises(InvalidConfigError, match=said):
        check_settings(BundleRecipe, {"name": "r", "licence": "none", place: given})


def test_cases_of_no_group_that_is_weighed_are_refused_and_others_seen() -> None:
    cases = [Case(id=group, group=group, image=Path(f"{group}.nii.gz")) for group in ("a", "b", "c")]
    made = BundleRecipe(name="r", licence="none", groups={"a": 0.0, "b": 2.0, "phantom": 1.0})
    assert [(weight, [each.name for each in found]) for weight, found in volumes_of(made, cases)] == [
        (2.0, ["b"]),
        (1.0, []),
    ]
    with pytest.raises(InvalidRequestError, match="weighs b, phantom and no case is of them; the cases are of a"):
        volumes_of(made, cases[:1])


@pytest.mark.parametrize("name", ["ct-small", "paper", "small", "tiny"])
def test_the_packaged_recipes_can_be_trained_to_the_end(name: str) -> None:
    config = load_recipe(name).for_autoencoder()
    check_autoencoder_training(config, num_cases=10, has_start=config.start_from is not None)


@pytest.mark.parametrize(
    ("part", "setting", "said"),
    [
        ("autoencoder", "autoencoder.device", "no device cuda:99 here to train on"),
        ("diffusion", "diffusion.device", "no device cuda:99 here to train on"),
        ("controlnet", "controlnet.device", "no device cuda:99 here to train on"),
        ("segmenter", "segmenter.device", "no device cuda:99 here to train on"),
        ("recipe", "controlnet.device", "no device cuda:99 here to train on"),
        ("labels", "labels.diffusion.device", "no device cuda:99 here to train on"),
        ("diffusion", "controlnet.device", "absent.json"),  # which is not trained
    ],
)
def test_a_device_that_is_not_there_is_refused_before_any_case_is_read(part: str, setting: str, said: str) -> None:
    settings = with_assignments(load_recipe("tiny").model_dump(mode="json"), [f"{setting}=cuda:99"])
    request = TrainRequest(recipe=check_settings(BundleRecipe, settings), manifest=Path("absent.json"))
    with pytest.raises(InvalidRequestError, match=said):
        task_named(f"train {part}").check(request)
