"""A library of label maps: what its index says, what is found in it, and how far drawn maps are from its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maisi.anatomy.likeness import Likeness
from maisi.anatomy.regions import RegionSpan
from maisi.anatomy.request import AnatomyRequest
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data import library as library_of
from maisi.data.label_maps import find_maps
from maisi.data.library import INDEX, PEOPLE, Library, Wanted, add_map, entry_of, matching, sum_of, write_index
from maisi.errors import InvalidAnatomyError, InvalidConfigError, InvalidRequestError
from maisi.phantom.draw import draw_phantom
from maisi.pipelines.asked import AskedLabels, asked
from maisi.pipelines.label_requests import PrepareLabelsRequest
from maisi.pipelines.library import library_source, people_source, view_centre
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import validate_generate
from maisi.runs.tasks.labels_prepare import check
from maisi.space.files import write_labels
from maisi.space.grid import Grid
from maisi.space.volume import LabelMap

V = load_vocabulary()
GRID = Grid.centered((40, 32, 32), (9, 9, 9))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Two abdomens, one of them with a tumour, one that is kept for validation, and a head."""
    folder = tmp_path_factory.mktemp("library")
    wide, narrow = Grid.centered((52, 44, 44), (8, 8, 8)), Grid.centered((28, 32, 32), (8, 8, 8))
    for seed, (id, region) in enumerate([("a", "abdomen"), ("b", "abdomen"), ("c", "abdomen"), ("h", "head")]):
        labels = draw_phantom(region, narrow if id == "h" else wide, np.random.default_rng(seed))
        if id == "b":
            ids = labels.array.copy()
            ids.reshape(-1)[np.flatnonzero(ids == V.id("liver"))[300:340]] = V.id("hepatic tumor")
            labels = LabelMap(ids, labels.grid)
        split = "validation" if id == "c" else "training"
        add_map(folder, labels, entry_of(labels, id, RegionSpan.named(region), licence="CC0", split=split))
    write_index(folder)
    return Library.read(folder)


def test_the_index_says_what_each_map_shows(library: Library) -> None:
    entry = next(entry for entry in library.entries if entry.id == "b")
    ids = library.labels(entry).array
    assert set(entry.structures) == {V.name(int(id)) for id in np.unique(ids) if id}
    assert entry.structures["liver"] == pytest.approx((ids == V.id("liver")).sum() * 0.512, rel=0.01)
    assert entry.lesions == ("hepatic tumor",)
    assert "aorta" in entry.cut
    assert "liver" not in entry.cut
    assert (entry.licence, entry.regions) == ("CC0", ("abdomen",))


def test_maps_are_found_by_region_structures_and_field_of_view(library: Library) -> None:
    def found(**wanted: object) -> list[str]:
        return [entry.id for entry in matching(library.entries, Wanted(**wanted))]  # type: ignore[arg-type]

    assert found(region="head") == ["h"]
    assert found(structures={"pancreas": frozenset({V.id("pancreas")})}) == ["a", "b", "c"]
    assert found(split="training", region="abdomen") == ["a", "b"]
    assert found(fov_mm=(400, 340, 340)) == ["a", "b", "c", "h"]
    assert found(fov_mm=(600, 340, 340)) == ["a", "b", "c"]
    with pytest.raises(InvalidRequestError, match=r"none of the 4 maps.*1 without abdomen"):
        found(region="abdomen", structures={"left eye": frozenset({V.id("left eye")})})


def test_a_drawn_map_is_another_person_at_a_stated_distance_and_without_lesions(library: Library) -> None:
    source = asked(library_source(library, "abdomen", GRID), AnatomyRequest.parse([]))
    drawn = [source.draw(np.random.default_rng(seed), torch.Generator()) for seed in range(3)]
    assert not np.array_equal(drawn[0].labels.array, drawn[1].labels.array)
    np.testing.assert_array_equal(
        drawn[0].labels.array, source.draw(np.random.default_rng(0), torch.Generator()).labels.array
    )
    for each in drawn:
        assert each.origin.entry.id in "ab"
        assert each.origin.distance >= 0.25
        assert not (each.labels.array == V.id("hepatic tumor")).any()
    stated = drawn[0].origin
    nearest = Likeness.of(drawn[0].labels).distance(library.likeness(stated.nearest))
    assert nearest == pytest.approx(stated.distance, abs=0.02)  # measured before lesions went


def test_packaged_people_come_without_the_lesions_that_nobody_asked_for() -> None:
    (entry,) = [entry for entry in Library.read(PEOPLE).entries if entry.id == "lidc0001_totalseg"]
    assert entry.lesions == ("left kidney cyst",)
    (source,) = validate_generate(
        GenerateRequest(region="chest", size=(24, 24, 16), spacing=(14, 14, 14), force=True)
    ).sources
    assert isinstance(source, AskedLabels)
    only = replace(source, source=replace(source.source, entries=(entry,)))
    drawn = only.draw(np.random.default_rng(0), torch.Generator())
    assert drawn.origin.entry == entry
    assert not (drawn.labels.array == V.id("left kidney cyst")).any()


def test_a_distance_that_no_bending_reaches_is_refused(library: Library) -> None:
    source = library_source(library, "abdomen", GRID, min_distance=0.95)
    with pytest.raises(InvalidAnatomyError, match=r"of the library was bent to 0\.\d\d from the nearest map at most"):
        source.draw(np.random.default_rng(0), torch.Generator())


def test_organs_of_drawn_maps_get_the_sizes_asked_for(library: Library) -> None:
    request = AnatomyRequest.parse(["liver=1400ml", "hepatic tumor=25ml", "gallbladder=none"])
    drawn = asked(library_source(library, "abdomen", GRID, request), request).draw(
        np.random.default_rng(1), torch.Generator()
    )
    assert drawn.obtained[V.id("liver")] == pytest.approx(1400, rel=0.05)
    assert drawn.obtained[V.id("hepatic tumor")] == pytest.approx(25, rel=0.1)
    assert not (drawn.labels.array == V.id("gallbladder")).any()


def test_what_no_map_has_is_refused_before_anything_is_drawn(library: Library) -> None:
    with pytest.raises(InvalidRequestError, match="without prostate"):
        library_source(library, "abdomen", GRID, AnatomyRequest.parse(["prostate=any"]))
    with pytest.raises(InvalidRequestError, match="without chest"):
        library_source(library, "chest", GRID)


def test_the_view_keeps_what_is_asked_for_in_sight() -> None:
    labels = draw_phantom("abdomen", Grid.centered((40, 36, 80), (8, 8, 8)), np.random.default_rng(2))
    small = Grid.centered((40, 36, 24), (8, 8, 8))
    for name in ("bladder", "heart"):
        z = np.flatnonzero((labels.array == V.id(name)).any(axis=(0, 1))) * 8 + labels.grid.origin[2]
        centre = view_centre(labels, "abdomen", small, frozenset({V.id(name)}), np.random.default_rng(0))
        assert centre[2] - 96 <= z.min()
        assert z.max() <= centre[2] + 96


def test_a_broken_index_is_told_by_its_line(library: Library, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"no library in .*labels library add"):
        Library.read(tmp_path)
    first = json.loads((library.folder / INDEX).read_text().splitlines()[0])
    (tmp_path / INDEX).write_text(json.dumps(first) + "\n" + json.dumps({**first, "spane": 1}) + "\n")
    with pytest.raises(InvalidConfigError, match=r"line 2: spane"):
        Library.read(tmp_path)


def test_label_maps_are_found_in_files_folders_and_folders_of_folders(tmp_path: Path) -> None:
    labels = draw_phantom("head", Grid.centered((12, 12, 12), (20, 20, 20)), np.random.default_rng(0))
    for name in ("one/labels.nii.gz", "two/labels.nii", "three/brain.nii.gz", "flat/x.nrrd", "flat/y.mha"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_labels(labels, tmp_path / name)
    assert [found.id for found in find_maps(tmp_path)] == ["one", "three", "two"]
    assert [found.id for found in find_maps(tmp_path / "flat")] == ["x", "y"]
    assert [found.id for found in find_maps(tmp_path / "three")] == ["three"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequestError, match="no label map in"):
        find_maps(tmp_path / "empty")
    with pytest.raises(InvalidRequestError, match="nothing at"):
        find_maps(tmp_path / "nowhere")


def test_label_maps_of_one_name_are_named_after_the_folders_that_tell_them_apart(tmp_path: Path) -> None:
    for name in ("A/ct", "A/labels_maisi", "B/ct", "B/labels_maisi", "C/x", "p/labels/x_seg", "q/labels/x_seg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / f"{name}.nii.gz").touch()
    apart = PrepareLabelsRequest(sources=tuple(tmp_path / name for name in ("A", "B", "C", "p/labels", "q/labels")))
    assert [found.id for found in check(apart).subject] == ["A", "B", "x", "p_x", "q_x"]
    assert [found.id for found in find_maps(tmp_path)] == ["A", "B", "C"]
    for name in ("labelsTr", "labelsTs"):
        (tmp_path / "msd" / name).mkdir(parents=True)
        (tmp_path / "msd" / name / "x.nii.gz").touch()
    parts = PrepareLabelsRequest(sources=tuple(tmp_path / "msd" / name for name in ("labelsTr", "labelsTs")))
    assert [found.id for found in check(parts).subject] == ["labelsTr_x", "labelsTs_x"]
    (tmp_path / "C" / "x.nii").touch()
    with pytest.raises(InvalidRequestError, match="two label maps are called x"):
        check(PrepareLabelsRequest(sources=(tmp_path / "C",)))


def test_where_nothing_is_asked_for_the_packaged_people_are_drawn_and_else_a_phantom() -> None:
    grid = Grid.centered((24, 24, 24), (8, 8, 8))
    source = people_source("chest", grid)
    assert source is not None
    first, second = (source.draw(np.random.default_rng(seed), torch.Generator()) for seed in (0, 1))
    assert first.labels is not None
    assert second.labels is not None
    assert (first.labels.array != second.labels.array).any()
    assert people_source("lower", grid) is None  # none of the maps shows legs
    assert people_source("chest", Grid.centered((24, 24, 64), (8, 8, 8))) is None  # taller than any


def test_the_packaged_people_are_licensed_and_none_was_held_out() -> None:
    library = Library.read(PEOPLE)
    assert len(library.entries) >= 10
    assert all(entry.licence and entry.source and entry.patient for entry in library.entries)
    assert {entry.split for entry in library.entries} == {"training"}
    assert all(sum_of(library.labels(entry)) == entry.sum for entry in library.entries)


def test_a_map_whose_name_ends_in_small_is_no_likeness_of_another(tmp_path: Path) -> None:
    for name, seed in (("p_small", 0), ("p", 1)):
        labels = draw_phantom("abdomen", GRID, np.random.default_rng(seed))
        add_map(tmp_path, labels, entry_of(labels, name, RegionSpan.named("abdomen"), split="training"))
    write_index(tmp_path)
    library = Library.read(tmp_path)
    assert [sum_of(library.labels(entry)) for entry in library.entries] == [entry.sum for entry in library.entries]
    write_labels(library.labels(library.entries[0]), tmp_path / "maps" / "p_small.nii.gz")
    library_of._kept_map.cache_clear()
    with pytest.raises(InvalidConfigError, match="is not the map that the index tells of"):
        library.labels(library.entries[1])
