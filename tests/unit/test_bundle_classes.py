"""A recipe that goes on from a bundle knows the classes of that bundle."""

from pathlib import Path
from typing import Any

import pytest

from maisi.bundle.bundle import Bundle, BundleInfo, save_bundle
from maisi.errors import InvalidConfigError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.recipes.load import with_classes
from maisi.recipes.recipe import BundleRecipe
from maisi.storage.settings import check_settings
from maisi.training.new_classes import numbered


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    info = BundleInfo(name="base", licence="none", vocabulary_version="1.0", classes={154: "my tumour"})
    network = Autoencoder(AutoencoderConfig(channels=(4, 4), num_res_blocks=(1, 1), norm_groups=2))
    return str(save_bundle(Bundle.of(info, {"autoencoder": network}), tmp_path_factory.mktemp("bundle") / "base"))


def settings(**part: Any) -> dict[str, Any]:
    return {"name": "r", "licence": "none", "controlnet": {"loop": {"num_steps": 1}, **part}}


@pytest.mark.parametrize("how", ["start_from", "beside"])
def test_classes_of_a_bundle_are_known_and_new_ones_get_other_ids(bundle: str, how: str) -> None:
    new = {"my cyst": {"like": "hepatic tumor"}}  # alone it would have the id 154
    part = settings(structure_weights={"my tumour": 4.0}, occupancy=["my tumour"], classes=new)
    if how == "start_from":
        part["controlnet"]["start_from"] = bundle
    recipe = check_settings(BundleRecipe, with_classes(part, bundle if how == "beside" else None))
    ids = {name: id for id, name in numbered(recipe.classes).items()}
    assert ids["my tumour"] == 154
    assert ids["my cyst"] != 154
    assert recipe.vocabulary.id("my tumour") == 154
    again = with_classes(recipe.model_dump(mode="json"), bundle)
    assert check_settings(BundleRecipe, again) == recipe


def test_a_class_may_be_told_more_of_but_not_moved(bundle: str) -> None:
    more = settings(classes={"my tumour": {"like": "hepatic tumor"}})
    recipe = check_settings(BundleRecipe, with_classes(more, bundle))
    assert recipe.vocabulary.structure(154).host == recipe.vocabulary.structure(26).host
    with pytest.raises(InvalidConfigError, match="'my tumour' has the id 154 in bundle base; the recipe says 150"):
        with_classes(settings(classes={"my tumour": {"id": 150}}), bundle)
    for wrong in (["my tumour"], {"my tumour": 3}):
        with pytest.raises(InvalidConfigError, match="classes"):
            check_settings(BundleRecipe, with_classes(settings(classes=wrong), bundle))


def test_without_a_bundle_nothing_changes(tmp_path: Path) -> None:
    assert with_classes(settings()) == settings()
