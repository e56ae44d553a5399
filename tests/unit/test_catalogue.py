"""The catalogue of the paper's data: its numbers are those of the tables, its labels become ours, its layouts exist."""

import json
import re
from pathlib import Path

import pytest

from maisi.anatomy.numberings import numbering_names
from maisi.cli import main
from maisi.data.catalogue import NETWORKS, Catalogue, Counts, Row, becomes, load_catalogue, total
from maisi.data.sources.find import LAYOUTS
from maisi.errors import InvalidRequestError

catalogue = load_catalogue()


def test_the_rows_of_every_table_add_up_to_its_printed_total() -> None:
    assert total(catalogue.rows("autoencoder", "ct")) == Counts(training=37243, validation=1963)
    assert total(catalogue.rows("autoencoder", "mr")) == Counts(training=17887, validation=940)
    assert total(catalogue.rows("diffusion")) == Counts(volumes=10277)
    assert total(catalogue.rows("controlnet")) == Counts(volumes=6330)
    for table in catalogue.networks.values():
        assert table.datasets in (
            None,
            len(catalogue.rows(next(n for n, t in catalogue.networks.items() if t is table))),
        )
    split = catalogue.networks["controlnet"].split
    assert split is not None
    assert split.all == 6330


def test_the_tables_have_as_many_rows_as_the_paper_and_each_name_once() -> None:
    assert {network: len(catalogue.rows(network)) for network in NETWORKS} == {
        "autoencoder": 13,
        "diffusion": 24,
        "controlnet": 20,
    }
    for network in NETWORKS:
        names = [row.printed for row in catalogue.rows(network)]
        assert len(set(names)) == len(names)


def test_the_remarks_tell_copies_testing_data_and_where_two_tables_differ() -> None:
    said = catalogue.remarks("autoencoder")
    assert said == (
        "S1: the rows of CT add up to the printed total, 37243 + 1963",
        "S1: the rows of MR add up to the printed total, 17887 + 940",
        "S1: 3905 + 205 of MR are skull-stripped copies of other rows; 13982 + 735 are different scans",
    )
    assert "S2: autoPET23 (testing only) counts 200 of the total; 10077 volumes are left to train on" in (
        catalogue.remarks("diffusion")
    )
    assert catalogue.remarks("controlnet")[-1] == (
        "S3: more volumes than in S2 of bone-lesion (237, 223), msd-task03 (105, 88), msd-task07 (225, 224), "
        "msd-task10 (101, 87)"
    )


def test_a_total_that_the_rows_do_not_reach_is_told() -> None:
    content = catalogue.model_dump()
    content["networks"]["diffusion"]["printed"]["ct"] = {"volumes": 10000}
    assert Catalogue.model_validate(content).remarks("diffusion")[0] == (
        "S2: the rows of CT add up to 10277, and the printed total is 10000"
    )


@pytest.mark.parametrize("name", catalogue.datasets)
def test_labels_layout_and_numbering_of_every_data_set_are_known_here(name: str) -> None:
    dataset = catalogue.datasets[name]
    assert [label for _, label, ours in becomes(dataset) if ours == "unknown"] == []
    assert dataset.layout is None or dataset.layout in LAYOUTS
    assert dataset.numbering is None or dataset.numbering in numbering_names()
    assert dataset.layout is not None or not dataset.as_downloaded
    assert dataset.where or dataset.notes  # what is not known is said


def test_counts_are_divided_or_not() -> None:
    assert (Row(printed="x", training=3, validation=0).all, Row(printed="x", volumes=4).all) == (3, 4)
    for wrong in ({}, {"training": 1}, {"training": 1, "validation": 1, "volumes": 2}):
        with pytest.raises(ValueError, match="either training and validation, or volumes"):
            Counts(**wrong)


def test_a_data_set_is_found_by_its_name_and_by_the_printed_one() -> None:
    assert catalogue.dataset("MSD Task03") is catalogue.dataset("msd-task03")
    with pytest.raises(InvalidRequestError, match="no data set 'msd-task3'; did you mean msd-task03"):
        catalogue.dataset("msd-task3")


def test_the_command_lists_the_data_of_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "--network", "diffusion"]) == 0
    told = capsys.readouterr().out
    assert "autoPET23 (testing only) counts 200" in told
    assert "tcia-colon" in told
    assert "upenn-gbm" not in told
    assert main(["datasets", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["datasets"]) == 29
    assert answer["datasets"]["aomic"]["rows"]["autoencoder"][1]["is_copy"] is True
    assert main(["datasets", "--network", "unet"]) == 2


def test_the_command_shows_what_becomes_of_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "msd-task08"]) == 0
    told = capsys.readouterr().out
    assert "235 (MSD Task08)" in told
    assert [line.split(maxsplit=2) for line in told.splitlines()[-2:]] == [
        ["1", "Vessel", "hepatic vessel"],
        ["2", "Tumour", "hepatic tumor"],
    ]
    assert main(["datasets", "ct-org", "--json"]) == 0
    labels = json.loads(capsys.readouterr().out)["labels"]
    assert labels[3] == {"id": 4, "name": "kidneys", "becomes": "no place"}
    assert main(["datasets", "nowhere"]) == 2


def test_every_test_that_the_guide_names_exists() -> None:
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "guides" / "datasets.md").read_text()))
    written = "".join(path.read_text() for path in (root / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in written} == set()
    assert len(named) == 8
