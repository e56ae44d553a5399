"""Figures by group of patients: who differs, who is too few, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from maisi.cli import main
from maisi.data.manifest import Case
from maisi.errors import InvalidRequestError
from maisi.evaluation.demographics import Grouping, by_group, chosen_figures, group_cases, read_numbers
from maisi.evaluation.demographics_page import gap_rows


def cases(num: int = 24) -> list[Case]:
    """Women and men in turn, of 20 years and more; the last one is of a sex that no other is."""
    sexes = ["F", "M"] * (num // 2 - 1) + ["F", "O"]
    return [Case(id=f"c{k}", attributes={"sex": s, "age": f"{20 + k:03d}Y"}) for k, s in enumerate(sexes)]


def report(path: Path, gap: float) -> Path:
    rng = np.random.default_rng(0)
    entries = [
        {
            "id": case.id,
            "set": "synthetic",
            "structures": {"liver": {"dice": 0.9 - gap * (case.attributes["sex"] == "M") + rng.normal(0, 0.01)}},
            "ml": 3.0,
        }
        for case in cases()
    ]
    path.write_text(json.dumps({"cases": entries}))
    return path


@pytest.mark.parametrize(("gap", "verdict"), [(0.1, "differ"), (0.0, "no difference found")])
def test_a_gap_is_told_from_chance_and_a_lone_patient_decides_nothing(tmp_path: Path, gap: float, verdict: str) -> None:
    numbers = chosen_figures(read_numbers(report(tmp_path / "r.json", gap)), ())
    assert list(numbers) == ["synthetic.structures.liver.dice"]
    found = by_group("r.json", numbers, cases(), Grouping("sex", group_cases(cases(), "sex")))
    (figure,) = found.figures
    assert figure.verdict == verdict
    assert figure.gap is not None
    if gap:
        assert (figure.gap.worst, figure.gap.best) == ("M", "F")
        assert figure.gap.low < gap < figure.gap.high + 0.01
    assert figure.groups["O"].mean is None
    assert (found.groups["O"].manifest, found.groups["O"].report) == (1, 1)
    assert "fewer than 5 patients, of which nothing is said: O" in found.notes


@pytest.mark.parametrize("num_groups", [2, 6])
def test_the_interval_of_the_gap_holds_0_where_groups_are_alike(num_groups: int) -> None:
    alike = [Case(id=f"c{k}", attributes={"site": f"s{k % num_groups}"}) for k in range(8 * num_groups)]
    rng = np.random.default_rng(0)
    numbers = {f"{k}.dice": {case.id: float(rng.normal()) for case in alike} for k in range(100)}
    found = by_group("r", numbers, alike, Grouping("site", group_cases(alike, "site")))
    gaps = [each.gap for each in found.figures if each.gap is not None]
    assert len(gaps) == 100
    assert sum(not gap.low <= 0 <= gap.high for gap in gaps) <= 7


def test_of_means_that_are_all_the_same_none_is_best() -> None:
    numbers = {"dice": {case.id: 0.9 for case in cases()}}
    found = by_group("r", numbers, cases(), Grouping("sex", group_cases(cases(), "sex")))
    gap = found.figures[0].gap
    assert gap is not None
    assert (gap.best, gap.worst, gap.difference) == (None, None, 0.0)
    assert gap_rows(found) == [("dice", "none", "none", "+0 (0 to 0)", "1.000", "no difference found")]


def test_lower_is_better_of_errors() -> None:
    numbers = {"mae_hu": {case.id: 10.0 + (case.attributes["sex"] == "M") for case in cases()}}
    found = by_group("r", numbers, cases(), Grouping("sex", group_cases(cases(), "sex")))
    assert found.figures[0].gap is not None
    assert found.figures[0].gap.worst == "M"


def test_ages_go_into_bands() -> None:
    ages = [Case(id=str(k), attributes={"age": age}) for k, age in enumerate(("039Y", "040Y", "70", "018M"))]
    assert group_cases(ages, "age", (40, 65)) == {"0": "under 40", "1": "40 to 65", "2": "65 and over", "3": "under 40"}
    thirds = group_cases(cases(), "age")
    assert len(set(thirds.values())) == 3
    with pytest.raises(InvalidRequestError, match="bands are of numbers, and 'sex' has 'F'"):
        group_cases(cases(), "sex", (40,))


def test_patients_count_once() -> None:
    scans = [Case(id=f"s{k}", patient=f"p{k % 4}", attributes={"sex": "FM"[k % 2]}) for k in range(40)]
    numbers = {"dice": {case.id: 0.5 for case in scans}}
    found = by_group("r", numbers, scans, Grouping("sex", group_cases(scans, "sex")))
    assert found.figures[0].verdict == "too few to say"
    assert found.figures[0].groups["F"].patients == 2


def test_the_command_writes_report_and_page_and_refuses_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(f"{case.model_dump_json(exclude_defaults=True)}\n" for case in cases()))
    given = ["evaluate", "demographics", str(manifest), str(report(tmp_path / "r.json", 0.1))]
    assert main([*given, "--by", "sex", "--out", str(tmp_path / "out")]) == 0
    assert "differ" in capfd.readouterr().out
    assert "liver" in (tmp_path / "out" / "demographics.html").read_text()
    assert main([*given, "--by", "sx", "--out", str(tmp_path / "no")]) == 2
    assert "no case has the column 'sx'; did you mean 'sex'?" in capfd.readouterr().err
    (tmp_path / "empty.json").write_text("[]")
    assert main([*given[:3], str(tmp_path / "empty.json"), "--by", "sex", "--out", str(tmp_path / "no")]) == 2
    assert "has no numbers of cases; accepted: labels.json" in capfd.readouterr().err
    (tmp_path / "other.json").write_text(json.dumps({"cases": [{"id": "x", "dice": 0.5}]}))
    assert main([*given[:3], str(tmp_path / "other.json"), "--by", "sex", "--out", str(tmp_path / "no")]) == 2
    assert "no case of other.json is in the manifest: the one has 'x', the other 'c0'" in capfd.readouterr().err
    assert not (tmp_path / "no").exists()


def test_figures_without_a_direction_are_refused_with_the_option_that_names_them() -> None:
    with pytest.raises(
        InvalidRequestError, match="known what is better; accepted: --figures with names of them, such as ml"
    ):
        chosen_figures({"ml": {"c0": 3.0}}, ())


def test_values_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    entries = [{"id": case.id, "dice": float("nan") if k < 3 else 0.5, "ssim": 1.0} for k, case in enumerate(cases())]
    (tmp_path / "r.json").write_text(json.dumps({"cases": entries}))
    numbers = chosen_figures(read_numbers(tmp_path / "r.json"), ())
    found = by_group("r.json", numbers, cases(), Grouping("sex", group_cases(cases(), "sex")))
    assert [note for note in found.notes if "not finite" in note] == [
        "3 of 24 values of dice are not finite, and left out"
    ]
    assert [each.groups["F"].patients for each in found.figures] == [10, 12]


def ask(*arguments: object) -> int:
    return main(["evaluate", "demographics", *map(str, arguments)])


def manifest(path: Path, women: int, men: int) -> Path:
    sexes = ["F"] * women + ["M"] * men
    lines = [{"id": f"{path.stem}{k}", "attributes": {"sex": sex}} for k, sex in enumerate(sexes)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("women", "men", "verdict"), [(30, 30, "no difference found"), (6, 54, "differ"), (3, 3, "too few to say")]
)
def test_groups_are_as_large_as_was_asked_or_not(tmp_path: Path, women: int, men: int, verdict: str) -> None:
    made, out = manifest(tmp_path / "made.jsonl", women, men), tmp_path / "out"
    assert ask(made, "--by", "sex", "--asked", "F=1", "--asked", "M=1", "--out", out) == 0
    found = json.loads((out / "demographics.json").read_text())["representation"]
    assert found["verdict"] == verdict
    assert found["groups"]["F"]["asked"] == 0.5
    assert found["groups"]["F"]["low"] < women / (women + men) < found["groups"]["F"]["high"]
    assert "against what was asked" in (out / "demographics.html").read_text()


def test_shares_may_be_those_of_another_manifest_and_a_group_that_nobody_asked_for_is_found(tmp_path: Path) -> None:
    made, real = manifest(tmp_path / "made.jsonl", 20, 4), manifest(tmp_path / "real.jsonl", 10, 0)
    assert ask(made, "--by", "sex", "--like", real, "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "demographics.json").read_text())["representation"]
    assert (found["groups"]["M"]["asked"], found["groups"]["M"]["patients"]) == (0.0, 4)
    assert found["verdict"] == "differ"


def test_one_group_may_be_asked_for_alone_and_a_small_p_is_no_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = manifest(tmp_path / "made.jsonl", 10, 10)
    assert ask(made, "--by", "sex", "--asked", "F=1", "--out", tmp_path / "out") == 0
    assert "shares: differ (p <0.001)" in capsys.readouterr().err
    assert "differ (p &lt;0.001)" in (tmp_path / "out" / "demographics.html").read_text()


def test_a_bundle_that_is_not_conditioned_on_the_column_is_told(tmp_path: Path) -> None:
    made = manifest(tmp_path / "made.jsonl", 10, 10)
    given = (made, "--by", "sex", "--asked", "F=1", "--asked", "M=1", "--bundle", "ct-small")
    assert ask(*given, "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "demographics.json").read_text())
    assert "label map" in found["conditions"]
    assert any("bundle ct-small is not conditioned on sex" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to compare; accepted: a REPORT, or shares by --asked or --like"),
        (("--asked", "F"), "'F' is no share of a group; accepted: NAME=SHARE"),
        (("--asked", "F=-1"), "'F=-1' is no share of a group"),
        (("--asked", "F=0"), "no group was asked for"),
        (("--asked", "f=1"), "there is no group 'f'; did you mean 'F'?"),
        (("--asked", "F=0.5"), "F=0.5 alone would ask for F and nobody else; accepted: a share of every group"),
        (("--asked", "F=0.5", "--asked", "F=0.2", "--asked", "M=0.5"), "group 'F' is asked for twice; accepted: one"),
    ],
)
def test_shares_that_are_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    made = manifest(tmp_path / "made.jsonl", 10, 10)
    assert ask(made, "--by", "sex", *arguments, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert said in err
    assert not (tmp_path / "out").exists()
