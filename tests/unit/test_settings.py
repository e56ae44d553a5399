from pathlib import Path

import pytest

from maisi.compute.compute import Compute, format_bytes
from maisi.errors import InvalidConfigError
from maisi.pipelines.requests import DecodeRequest, GenerateRequest
from maisi.shapes import Frozen
from maisi.storage.settings import check_settings, merged, read_settings, with_assignments, write_settings


class Inner(Frozen):
    width: int = 3


class Outer(Frozen):
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * 10**9),
        ("8gb", 8 * 10**9),
        ("500 MB", 500 * 10**6),
        ("2GiB", 2 * 2**30),
        ("1.5G", 1_500_000_000),
        ("64k", 64000),
        ("1024", 1024),
        (1024, 1024),
        ("1TiB", 2**40),
    ],
)
def test_amounts_of_memory_are_read(text: str | int, expected: int) -> None:
    assert check_settings(Compute, {"memory": text}).memory == expected


@pytest.mark.parametrize("text", ["", "GB", "8 bananas", "-3GB", "1e9", "8iB", "nan", 1.5])
def test_what_is_no_amount_of_memory_is_refused(text: object) -> None:
    with pytest.raises(InvalidConfigError, match=r"memory: .* is not accepted; .* write 8GB, 500MB or 2GiB"):
        check_settings(Compute, {"memory": text})


def test_no_memory_at_all_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="memory: '0' is not accepted; it should be greater than or equal to"):
        check_settings(Compute, {"memory": "0"})


def test_amounts_are_written_for_people() -> None:
    amounts = (0, 999, 1200, 25_300_000, 474_431_488, 25.3e9)
    assert [format_bytes(n) for n in amounts] == ["0 B", "999 B", "1.2 KB", "25.3 MB", "474.4 MB", "25.3 GB"]


def test_settings_that_count_more_replace_others_group_by_group() -> None:
    both = merged({"a": 1, "compute": {"threads": 2, "memory": 5}}, {"compute": {"memory": 7}, "b": 3})
    assert both == {"a": 1, "b": 3, "compute": {"threads": 2, "memory": 7}}


def test_a_setting_of_a_group_that_is_given_outside_is_told_where_it_belongs() -> None:
    with pytest.raises(InvalidConfigError, match=r"unknown setting 'memory'; did you mean 'compute\.memory'\?"):
        check_settings(GenerateRequest, {"memory": "8GB"})


def test_assignments_reach_inside_and_are_yaml() -> None:
    settings = with_assignments({"a": 1, "inner": {"b": 2}}, ["inner.c=[1, 2.5]", "x.y.z=null", "a=text"])
    assert settings == {"a": "text", "inner": {"b": 2, "c": [1, 2.5]}, "x": {"y": {"z": None}}}


def test_an_assignment_inside_a_plain_value_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="a is 1, which has no settings inside"):
        with_assignments({"a": 1}, ["a.b=2"])


def test_an_unknown_setting_inside_is_told_with_the_nearest() -> None:
    with pytest.raises(InvalidConfigError, match=r"unknown setting 'inner\.witdh'; did you mean 'width'\?"):
        check_settings(Outer, {"inner": {"witdh": 4}})
    with pytest.raises(InvalidConfigError, match=r"unknown setting 'many\.0\.witdh'"):
        check_settings(Outer, {"many": [{"witdh": 4}]})


@pytest.mark.parametrize("value", ["64", "64 64 64", {"x": 1}])
def test_what_is_no_list_is_told_how_a_list_is_written(value: object) -> None:
    with pytest.raises(InvalidConfigError, match=r"size: .* is not accepted; it should be a list such as \[.*\]"):
        check_settings(GenerateRequest, {"size": value})


def test_a_missing_setting_is_told() -> None:
    with pytest.raises(InvalidConfigError, match="setting 'source' is missing"):
        check_settings(DecodeRequest, {})


def test_a_request_written_and_read_is_the_same(tmp_path: Path) -> None:
    size, spacing, labels = (16, 16, 16), (1.1, 2.3, 0.7), Path("a b.nii")
    request = GenerateRequest(size=size, spacing=spacing, compute=Compute(memory="2GiB"), labels=labels)
    write_settings(tmp_path / "run.yaml", request.model_dump(mode="json"))
    assert check_settings(GenerateRequest, read_settings(tmp_path / "run.yaml")) == request


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_settings(tmp_path / "empty.yaml") == {}


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("bundle: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(InvalidConfigError, match="no YAML"):
        read_settings(tmp_path / "evil.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("count: 2\nsteps: 3\ncount: 3\n", "'count' twice, again in line 3"),
        ("anatomy: {liver: 0.5, spleen: 0.5, liver: 0.7}\n", "'liver' twice"),
        ("a: &a {b: 1, b: 2}\nc: *a\n", "'b' twice"),
    ],
)
def test_a_setting_that_is_said_twice_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(InvalidConfigError, match=said):
        read_settings(tmp_path / "twice.yaml")
    with pytest.raises(InvalidConfigError, match="'a' twice"):
        with_assignments({}, ["x={a: 1, a: 2}"])


def test_a_setting_may_say_again_what_it_takes_from_another(tmp_path: Path) -> None:
    (tmp_path / "merged.yaml").write_text("a: &a {b: 1, c: 2}\nd: {<<: *a, b: 3}\n")
    assert read_settings(tmp_path / "merged.yaml")["d"] == {"b": 3, "c": 2}
