"""Request files: what each sample is drawn from, and what is refused before any is made."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi.compute.across import Across
from maisi.errors import InvalidConfigError
from maisi.pipelines.many.requests import ManyRequest, absolute, draw_request, paths_of, read_requests, request_of
from maisi.storage.settings import check_settings


def many(**settings: Any) -> ManyRequest:
    return check_settings(ManyRequest, {"count": 10, **settings})


def drawn(request: ManyRequest, name: str, count: int = 40) -> list[Any]:
    return [draw_request(request, index).settings.get(name) for index in range(count)]


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    few, more = many(count=1, steps={"whole": [1, 99]}), many(count=1000, steps={"whole": [1, 99]})
    assert draw_request(few, 7) == draw_request(more, 7)
    assert draw_request(few, 7) != draw_request(more, 8)
    assert draw_request(few, 7) != draw_request(many(seed=1, steps={"whole": [1, 99]}), 7)


def test_another_distribution_of_one_setting_moves_no_other() -> None:
    one = many(steps={"whole": [1, 99]}, spacing={"uniform": [2, 5]})
    other = many(steps={"whole": [1, 99]}, spacing={"choice": [3, 4]}, region={"choice": ["head", "chest"]})
    assert drawn(one, "steps") == drawn(other, "steps")
    assert drawn(one, "seed") == drawn(other, "seed")


@pytest.mark.parametrize(
    ("distribution", "low", "high"),
    [
        ({"uniform": [0.12345, 0.2]}, 0.12345, 0.2),
        ({"log_uniform": [0.001, 1000]}, 0.001, 1000),
        ({"normal": [0.5, 10.0], "within": [0.4, 0.6]}, 0.4, 0.6),
        ({"whole": [3, 5]}, 3, 5),
    ],
)
def test_numbers_are_drawn_between_their_ends_in_few_digits(distribution: dict, low: float, high: float) -> None:
    values = drawn(many(controlnet_scale=distribution), "controlnet_scale", 200)
    assert min(values) >= low
    assert max(values) <= high
    assert len(set(values)) > 2
    assert all(len(f"{value!r}".replace(".", "").strip("0")) <= 5 for value in values)


def test_a_choice_follows_its_weights_and_may_hold_distributions() -> None:
    regions = drawn(many(region={"choice": {"chest": 3, "head": 1, "lower": 0}}), "region", 400)
    assert 0.65 < regions.count("chest") / 400 < 0.85
    assert regions.count("lower") == 0
    steps = drawn(many(steps={"choice": [10, {"whole": [20, 29]}]}), "steps", 100)
    assert 30 < steps.count(10) < 70
    assert all(20 <= step <= 29 for step in steps if step != 10)


def test_one_number_is_for_all_axes_and_two_are_for_the_plane_and_z() -> None:
    assert draw_request(many(spacing=4), 0).settings["spacing"] == [4, 4, 4]
    assert draw_request(many(spacing=[1, {"choice": [5]}]), 0).settings["spacing"] == [1, 1, 5]
    assert draw_request(many(size=[32, 48, 64]), 0).settings["size"] == [32, 48, 64]


def test_a_group_has_settings_of_its_own_that_go_before_those_of_all() -> None:
    request = many(
        steps=5,
        region="chest",
        groups={"far": {"weight": 3, "region": "lower"}, "near": {"region": "head", "steps": 9}},
    )
    found = [draw_request(request, index) for index in range(400)]
    assert 0.65 < sum(each.group == "far" for each in found) / 400 < 0.85
    assert {(e.group, e.settings["region"], e.settings["steps"]) for e in found} == {
        ("far", "lower", 5),
        ("near", "head", 9),
    }


def test_label_maps_are_drawn_from_a_folder_or_left_to_the_phantom(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii", ".hidden.nii", "notes.txt"):
        (tmp_path / name).touch()
    request = many(labels={"choice": ["phantom", {"file_of": str(tmp_path)}]})
    assert set(drawn(request, "labels")) == {None, str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii")}
    for index in range(20):
        asked = request_of(draw_request(request, index))
        assert asked.phantom == (asked.labels is None)
    assert paths_of(request) == (tmp_path,)


def test_paths_are_made_absolute_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.nii").touch()
    monkeypatch.chdir(tmp_path)
    request = many(
        labels={"choice": {"phantom": 1, "a.nii": 2}}, groups={"g": {"labels": {"file_of": "maps"}}}, region="head"
    )
    found = absolute(request)
    assert found.drawn == {"labels": {"choice": {"phantom": 1, str(tmp_path / "a.nii"): 2}}, "region": "head"}
    assert found.groups == {"g": {"labels": {"file_of": str(tmp_path / "maps")}}}


def test_bundles_of_label_generators_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "bundle.yaml").touch()
    monkeypatch.chdir(tmp_path)
    asked = many(label_bundle="drawn", groups={"g": {"label_bundle": {"choice": ["./drawn", "ct-small"]}}})
    found = absolute(asked)
    assert found.drawn == {"label_bundle": str(tmp_path / "drawn")}
    assert found.groups == {"g": {"label_bundle": {"choice": [str(tmp_path / "drawn"), "ct-small"]}}}
    monkeypatch.chdir(tmp_path.parent)
    assert tmp_path / "drawn" in paths_of(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regions": "chest"}, r"unknown setting 'regions'; did you mean 'region'\?"),
        ({"region": {"chioce": ["chest"]}}, r"region: unknown distribution 'chioce'; did you mean 'choice'\?"),
        (
            {"spacing": {"uniform": [5, 4]}},
            r"spacing: uniform: \[5, 4\] is not accepted: \[5.0, 4.0\] are not the least",
        ),
        ({"spacing": {"log_uniform": [0, 4]}}, r"spacing: log_uniform: .* are not above 0"),
        ({"spacing": {"uniform": [4, 5], "whole": [4, 5]}}, "two distributions in one"),
        ({"spacing": {"uniform": [4, 5], "with_in": [4, 5]}}, "unknown setting 'with_in' of uniform"),
        ({"steps": {"normal": [10, 2]}}, "steps: within"),
        ({"region": {"choice": {"chest": 0}}}, "not all 0, and they sum to 0"),
        ({"region": {"choice": {"chest": 2, "head": -1}}}, "'head' has -1"),
        ({"region": {"choice": []}}, "region: choice"),
        ({"steps": {"choice": [1, {"hole": [1, 2]}]}}, r"steps: unknown distribution 'hole'; did you mean 'whole'\?"),
        ({"region": {"choice": ["chest", "bely"]}}, "region: unknown body region 'bely'"),
        ({"groups": {"a": {"region": {"choice": {"chest": 1, "bely": 1}}}}}, "groups.a.region: unknown body region"),
        ({"steps": {"choice": [1, {"choice": [0]}]}}, "steps: 0 is not accepted"),
        ({"quality": {"on_failure": {"choice": ["keep", "drop"]}}}, "quality.on_failure: 'drop' is not accepted"),
        ({"spacing": {"choice": [4, -1]}}, "spacing"),
        ({"groups": {"a": {"regoin": "chest"}}}, r"unknown setting 'groups.a.regoin'; did you mean 'region'\?"),
        ({"groups": {"a": {"weight": 0}}}, "groups.a.weight: 0 is not accepted"),
        ({"count": 0}, "count"),
        ({"count": 10**12}, "count: 1000000000000 is not accepted; it should be less than or equal to 1000000"),
        ({"labels": {"file_of": "/nowhere"}}, "no label map in /nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_place(settings: dict, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        many(**settings)


def test_a_drawn_request_that_is_none_is_told_with_its_index() -> None:
    request = many(steps={"choice": [{"whole": [1, 3]}, {"whole": [-1, -1]}]})
    bad = next(index for index, steps in enumerate(drawn(request, "steps")) if steps == -1)
    with pytest.raises(InvalidConfigError, match=rf"request {bad}: steps: -1 is not accepted"):
        request_of(draw_request(request, bad))


def test_a_request_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    request = many(steps={"choice": {4: 1, 8: 2}}, groups={"a": {"region": "chest"}}, compute={"memory": "8GB"})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"command": "generate many", **request.model_dump(mode="json")}))
    assert read_requests(tmp_path / "run.yaml", {}, Across()) == request


def test_options_of_the_command_line_hold_for_every_sample(tmp_path: Path) -> None:
    file = tmp_path / "requests.yaml"
    file.write_text("count: 5\nsteps: {whole: [1, 50]}\ngroups: {a: {steps: 7, region: head}}\ncompute: {threads: 1}\n")
    request = read_requests(file, {"steps": 2, "count": 3, "compute": {"memory": 10**9}}, Across(workers=2))
    assert (request.count, request.compute.threads, request.compute.memory, request.across.workers) == (3, 1, 10**9, 2)
    assert draw_request(request, 0).settings["steps"] == 2
    file.write_text("command: prepare\n")
    with pytest.raises(InvalidConfigError, match="settings of `maisi prepare`, not a request file"):
        read_requests(file, {}, Across())
    file.write_text("groups: [1]\n")
    with pytest.raises(InvalidConfigError, match="accepted: a mapping of settings for each name"):
        read_requests(file, {}, Across())
