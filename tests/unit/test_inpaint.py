"""Lesions put into a CT and taken out of it, by networks of random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_abdomen import BODY, GRID, LIMITS, LIVER, TUMOUR, VOCABULARY, write_abdomen
from made_bundle import random_bundle
from scipy import ndimage

from maisi.anatomy.lesions import healthy_ids
from maisi.bundle.bundle import Bundle
from maisi.diffusion.scheduler import RectifiedFlow
from maisi.errors import InvalidGridError, InvalidPlanError, InvalidRequestError
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.blend import measure_seam, soft_edge
from maisi.pipelines.generate import Locked
from maisi.pipelines.inpaint import Inpainted, inpaint, scene_of, validate_inpaint
from maisi.pipelines.inpaint_request import InpaintRequest
from maisi.pipelines.lesion_masks import find_lesion
from maisi.pipelines.redraw import free_latent
from maisi.pipelines.windows import windows_of
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap, Volume


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return random_bundle(LIMITS)


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_abdomen(tmp_path_factory.mktemp("abdomen"))


def asked(folder: Path, **more: object) -> InpaintRequest:
    files = {name: folder / str(more.pop(name)) for name in ("source", "labels", "mask") if name in more}
    compute = {"precision": "float32", **({"memory": more.pop("memory")} if "memory" in more else {})}
    place = {} if {"mask", "random", "at", "remove"} & {*more, *files} else {"at": (0.0, 0.0, 0.0), "diameter": 24.0}
    tumour = {} if "remove" in more else {"tumor": "hepatic tumor"}
    fields = {"source": folder / "ct.nii", "labels": folder / "labels.nii", "steps": 2, "compute": compute}
    return InpaintRequest.model_validate({**fields, **tumour, **place, **files, **more})


@pytest.fixture(scope="module")
def result(bundle: Bundle, abdomen: Path) -> Inpainted:
    return inpaint(asked(abdomen), bundle)


def before(folder: Path, bundle: Bundle, **more: object) -> Volume:
    return validate_inpaint(asked(folder, **more), bundle).scene.volume


def test_every_voxel_away_from_the_lesion_is_bit_for_bit_as_it_was(
    result: Inpainted, abdomen: Path, bundle: Bundle
) -> None:
    ct, mask = before(abdomen, bundle), result.mask.array > 0
    away = ~ndimage.binary_dilation(mask, iterations=3)
    np.testing.assert_array_equal(result.volume.array[away], ct.array[away])
    assert (result.volume.array[mask] != ct.array[mask]).mean() > 0.9
    assert ct.array.min() <= result.volume.array.min() < result.volume.array.max() <= ct.array.max()
    np.testing.assert_array_equal(result.volume.array, np.rint(result.volume.array))


def test_labels_and_mask_say_where_the_lesion_is(result: Inpainted, abdomen: Path) -> None:
    mask = result.mask.array > 0
    np.testing.assert_array_equal(result.labels.array == TUMOUR, mask)
    assert set(np.unique(result.labels.array)) == {0, BODY, LIVER, TUMOUR}
    volume_ml = mask.sum() * 4.0**3 / 1000
    assert volume_ml == pytest.approx(np.pi / 6 * 2.4**3, rel=0.15)


def test_a_lesion_that_the_network_misses_has_the_contrast_of_the_table(result: Inpainted) -> None:
    (lesion,) = result.lesions
    liver, tumour = (VOCABULARY.structure(id).hu[0] for id in (LIVER, TUMOUR))
    assert lesion.contrast.made_by == "reference"
    assert lesion.contrast.host_hu == pytest.approx(110, abs=5)
    assert lesion.contrast.expected_hu == pytest.approx(lesion.contrast.host_hu * tumour / liver, abs=0.2)
    assert lesion.hu_after == pytest.approx(lesion.contrast.expected_hu, abs=10)


def test_no_seam_shows_at_the_border(result: Inpainted) -> None:
    seam = result.lesions[0].seam
    assert seam.border <= max(seam.border_before, seam.inside, seam.outside) + 2


def test_what_the_network_has_drawn_stays_where_it_is_asked_for(bundle: Bundle, abdomen: Path) -> None:
    (lesion,) = inpaint(asked(abdomen, contrast="network"), bundle).lesions
    assert lesion.contrast.made_by == "network"
    assert abs(lesion.contrast.network_hu - lesion.contrast.expected_hu) > lesion.contrast.tolerance_hu


def test_the_same_seed_gives_the_same_lesion_and_another_one_another(bundle: Bundle, abdomen: Path) -> None:
    one, two, other = (
        inpaint(asked(abdomen, random=1, diameter=20, seed=seed), bundle).volume.array for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_mask_is_filled_as_it_is(bundle: Bundle, abdomen: Path) -> None:
    made = inpaint(asked(abdomen, mask="mask.nii"), bundle)
    assert made.mask.array.sum() == 5 * 5 * 4
    assert made.lesions[0].hu_after < made.lesions[0].hu_before - 10


def test_a_removed_lesion_leaves_its_host(bundle: Bundle, abdomen: Path) -> None:
    made = inpaint(asked(abdomen, source="diseased_ct.nii", labels="diseased.nii", remove=True), bundle)
    assert set(np.unique(made.labels.array)) == {0, BODY, LIVER}
    assert made.lesions[0].hu_before == pytest.approx(50, abs=60)
    assert np.median(made.volume.array[made.mask.array > 0]) == pytest.approx(110, abs=8)


def test_a_mask_can_be_healed_without_labels(bundle: Bundle, abdomen: Path) -> None:
    made = inpaint(asked(abdomen, source="diseased_ct.nii", labels="labels.nii", mask="mask.nii", remove=True), bundle)
    assert np.median(made.volume.array[made.mask.array > 0]) == pytest.approx(110, abs=8)


def test_without_labels_coarse_tissues_stand_for_them(bundle: Bundle, abdomen: Path) -> None:
    request = asked(abdomen, at=(0.0, 0.0, 0.0), diameter=24.0).model_copy(update={"labels": None})
    made = inpaint(request, bundle)
    assert TUMOUR in made.labels.array
    assert BODY in made.labels.array


@pytest.mark.parametrize("place", [{"random": 1}, {"at": (116.0, -4.0, -44.0)}])
def test_partial_labels_that_do_not_name_the_host_are_filled_to_find_it(place: dict) -> None:
    rng, heart = np.random.default_rng(0), VOCABULARY.id("heart")
    whole = draw_phantom("chest", Grid.centered((48, 40, 32), (8, 8, 8)), rng)
    partial = LabelMap(np.where(whole.array == heart, whole.array, 0), whole.grid)
    request = InpaintRequest.model_validate({"source": "ct.nii", "tumor": "lung tumor", "diameter": 40, **place})
    lesion = find_lesion(request, scene_of(render_phantom(whole, rng), partial, "ct.nii"), rng, VOCABULARY)
    lungs = np.isin(whole.array, healthy_ids(VOCABULARY, VOCABULARY.id("lung tumor")))
    assert lungs[lesion.mask].mean() > 0.9


def test_memory_that_is_too_little_is_refused_with_the_least_that_would_do(bundle: Bundle, abdomen: Path) -> None:
    with pytest.raises(InvalidPlanError) as refused:
        validate_inpaint(asked(abdomen, memory="1MB"), bundle)
    enough = inpaint(asked(abdomen, memory=refused.value.least_bytes), bundle)
    assert enough.lesions[0].contrast.made_by == "reference"


def test_a_refused_mask_is_named_as_it_is_called(bundle: Bundle, abdomen: Path) -> None:
    named = abdomen / "my_labels.nii"
    named.write_bytes((abdomen / "elsewhere.nii").read_bytes())
    with pytest.raises(InvalidRequestError, match=r"my_labels\.nii: the mask is not on the grid"):
        validate_inpaint(asked(abdomen, mask="my_labels.nii"), bundle)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mask": "elsewhere.nii"}, "mask is not on the grid"),
        ({"mask": "nothing.nii"}, "empty"),
        ({"mask": "outside.nii"}, "outside the body|lies in the liver"),
        ({"at": (0.0, 0.0, 900.0), "diameter": 20.0}, "outside the volume"),
        ({"at": (78.0, 70.0, 0.0), "diameter": 8.0}, "background|outside"),
        ({"at": (0.0, 0.0, 0.0), "diameter": 150.0}, "larger than its organ"),
        ({"tumor": "hepatic tumr"}, "did you mean 'hepatic tumor'"),
        ({"tumor": "liver"}, "liver"),
        ({"tumor": "lung tumor", "random": 1}, "which the labels do not name"),
        ({"random": 1, "within": "spleen"}, "grows in the liver, not in the spleen"),
        ({"remove": True}, "nothing to remove"),
        ({"remove": True, "labels": "elsewhere.nii"}, "not on the grid"),
    ],
)
def test_what_cannot_be_is_refused(bundle: Bundle, abdomen: Path, more: dict, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        validate_inpaint(asked(abdomen, **more), bundle)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tumor": "hepatic tumor"}, "one place"),
        ({"tumor": "hepatic tumor", "at": (0, 0, 0)}, "how large"),
        ({"tumor": "hepatic tumor", "random": 1, "at": (0, 0, 0), "diameter": 9}, "one place"),
        ({"random": 1}, "--tumor NAME"),
        ({"remove": True}, "needs to know the lesion"),
        ({"remove": True, "random": 1}, "--random is for a new lesion"),
        ({"tumor": "hepatic tumor", "random": 1, "manifest": "m.jsonl", "labels": "l.nii"}, "manifest"),
    ],
)
def test_a_request_that_says_too_little_or_too_much_is_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        InpaintRequest.model_validate(fields)


# Parts of the road ----------------------------------------------------------------------------------------------------


def test_a_latent_that_is_not_free_walks_from_its_own_noise_to_itself() -> None:
    scheduler = RectifiedFlow()
    clean, noise, drawn = (torch.randn((1, 4, 2, 2, 2)) for _ in range(3))
    free = torch.zeros((2, 2, 2), dtype=torch.bool)
    free[0] = True
    locked = Locked(clean, free)
    end, middle = (locked.kept(noise, scheduler, drawn, t) for t in (0.0, 500.0))
    torch.testing.assert_close(end[..., 1, :, :], clean[..., 1, :, :])
    torch.testing.assert_close(middle[..., 1, :, :], (clean + noise)[..., 1, :, :] / 2)
    torch.testing.assert_close(middle[..., 0, :, :], drawn[..., 0, :, :])


def test_the_free_latent_covers_the_lesion_and_what_lies_beside_it() -> None:
    mask = np.zeros(GRID.shape, bool)
    mask[16:20, 16:20, 12:16] = True
    free = free_latent(mask, GRID, GRID, 4).numpy()
    assert free.shape == (10, 9, 7)
    assert free[4, 4, 3]
    assert free.sum() == 7  # a block, and its six neighbours


def test_windows_lie_within_the_volume_and_fit_the_networks() -> None:
    mask = np.zeros(GRID.shape, bool)
    mask[2:5, 30:33, 4:8] = True
    mask[36:38, 2:5, 20:23] = True
    windows = windows_of(mask, GRID, LIMITS, 4)
    assert len(windows) == 2
    assert sum(window.mask.sum() for window in windows) == mask.sum()
    for window in windows:
        assert all(n % 4 == 0 for n in window.grid.shape)
        assert window.grid.spacing == pytest.approx((4.0, 4.0, 4.0))
        assert (window.inner(window.mask)).sum() == window.mask.sum()
        starts = GRID.index(window.grid.corners()[0])
        np.testing.assert_allclose(starts, np.rint(starts), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(24, 40), st.integers(24, 40), st.integers(100, 220)),
    spacing=st.tuples(*[st.floats(0.5, 5.0)] * 3),
    ends=st.tuples(*[st.booleans()] * 3),
)
def test_a_lesion_that_the_border_cuts_lies_in_its_window_whole(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], ends: tuple[bool, bool, bool]
) -> None:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(n - 3, n) if last else slice(0, 3) for n, last in zip(shape, ends, strict=True))] = True
    grid = Grid.centered(shape, spacing)
    (window,) = windows_of(mask, grid, LIMITS, 4)
    assert window.inner(window.mask).sum() == mask.sum()
    low, high = window.grid.world(np.array([[-0.5] * 3, np.subtract(window.grid.shape, 0.5)]))
    shown = grid.world(np.argwhere(mask))
    assert (shown >= low - 1e-6).all()
    assert (shown <= high + 1e-6).all()


def test_a_lesion_larger_than_the_bundle_makes_is_refused() -> None:
    grid = Grid.centered((100, 10, 10), (8.0, 8.0, 8.0))
    with pytest.raises(InvalidGridError, match="does not fit into what the bundle makes"):
        windows_of(np.ones(grid.shape, bool), grid, LIMITS, 4)


def test_an_edge_is_soft_and_ends() -> None:
    mask = np.zeros((16, 16, 16), bool)
    mask[5:11, 5:11, 5:11] = True
    weight = soft_edge(mask)
    assert weight[8, 8, 8] == 1
    assert 0.4 < weight[5, 8, 8] < 1
    assert 0 < weight[4, 8, 8] < 0.5
    assert weight[2, 8, 8] == 0


def test_a_hard_edge_is_a_seam_and_a_soft_one_is_none() -> None:
    changed = np.zeros((16, 16, 16), bool)
    changed[4:12, 4:12, 4:12] = True
    before = np.zeros(changed.shape, np.float32)
    hard, soft = measure_seam(before, 100.0 * changed, changed), measure_seam(before, before, changed)
    assert hard.border == 100
    assert hard.inside == hard.outside == soft.border == 0
