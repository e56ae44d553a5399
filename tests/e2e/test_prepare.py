"""Raw scans become training cases, what is wrong with one stops no other, and a kill loses nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from command_line import Maisi
from pydantic import ValidationError

from maisi.anatomy.codes import segments_of
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.data.cases import read_case
from maisi.data.manifest import read_manifest
from maisi.errors import RunError
from maisi.phantom.draw import draw_phantom
from maisi.phantom.render import render_phantom
from maisi.pipelines.prepare.case import new_grid
from maisi.pipelines.prepare.segmenter import segmented
from maisi.pipelines.prepare.settings import PrepareSettings
from maisi.pipelines.prepare.store import drawn_split
from maisi.space.files import read_volume, write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.label_files import read_labels
from maisi.space.volume import LabelMap, Volume, check_same_grid
from maisi.storage.folders import PARTIAL
from maisi.storage.owners import owner_mark

REGIONS = ("chest", "abdomen", "head")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three patients with labels, one without, and four that are wrong, each in its way."""
    folder = tmp_path_factory.mktemp("scans")
    for k, region in enumerate(REGIONS):
        rng = np.random.default_rng(k)
        grid = Grid.axis_aligned((40, 36, 30), (9.0, 9.0, 10.0), (-100.0, -90.0, 20.0 * k))
        labels = draw_phantom(region, grid, rng)
        write_volume(render_phantom(labels, rng), folder / f"{region}.nii.gz")
        write_labels(LabelMap(labels.array.astype(np.uint8), grid), folder / f"{region}_labels_maisi.nii.gz")
    shutil.copy(folder / "chest.nii.gz", folder / "unlabelled.nii.gz")
    plain = read_volume(folder / "unlabelled.nii.gz")
    write_volume(Volume(plain.array + np.float32(3.0), plain.grid), folder / "unlabelled.nii.gz")
    shutil.copy(folder / "abdomen.nii.gz", folder / "copy_of_abdomen.nii.gz")
    (folder / "cut.nii.gz").write_bytes((folder / "head.nii.gz").read_bytes()[:3000])
    shutil.copy(folder / "head.nii.gz", folder / "moved.nii.gz")
    at = read_labels(folder / "head_labels_maisi.nii.gz")
    shifted = Grid.axis_aligned(at.grid.shape, at.grid.spacing, [o + 30 for o in at.grid.origin])
    write_labels(LabelMap(at.array, shifted), folder / "moved_labels_maisi.nii.gz")
    write_volume(Volume(plain.array + np.float32(7.0), plain.grid), folder / "strange.nii.gz")
    unknown = np.where(plain.array > 0, np.uint8(199), np.uint8(0))
    write_labels(LabelMap(unknown, plain.grid), folder / "strange_labels_maisi.nii.gz")
    return folder


@pytest.fixture(scope="module")
def store(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as one undisturbed run prepares it."""
    out = tmp_path_factory.mktemp("prepared") / "store"
    done = run(scans, out)
    assert done.returncode == 0, done.stderr
    return out


def command(scans: Path, out: Path, *more: str) -> list[str]:
    given = ["--multiple", "16", "--validation", "0.4"]
    return [sys.executable, "-m", "maisi", "prepare", str(scans), "--out", str(out), *given, *more]


def run(scans: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(scans, out, *more), capture_output=True, text=True, check=False)


def content(store: Path) -> dict[str, bytes]:
    """All files but those that tell when and how a run was made."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and not re.search(r"run\.(json|yaml)$", path.name)
    }


def test_scans_become_cases_on_multiples_with_labels_region_and_sums(scans: Path, store: Path) -> None:
    cases = {case.id: case for case in read_manifest(store)}
    assert sorted(cases) == ["abdomen", "chest", "head", "unlabelled"]
    case = cases["chest"]
    assert (case.shape, case.span, case.modality) == ((32, 32, 32), ("chest", "abdomen"), "ct")
    assert case.spacing_mm == pytest.approx((40 * 9 / 32, 36 * 9 / 32, 30 * 10 / 32))
    assert case.image is not None
    volume, labels = read_case(case)
    assert volume.array.min() >= -1000
    assert volume.array.max() <= 1000
    check_same_grid(labels, volume)
    before = read_volume(scans / "chest.nii.gz")
    assert np.allclose(volume.grid.fov_mm, before.grid.fov_mm)
    centre = [grid.world((np.array(grid.shape) - 1) / 2) for grid in (volume.grid, before.grid)]
    np.testing.assert_allclose(*centre, atol=1e-3)
    assert load_vocabulary().id("body") in np.unique(labels.array)
    assert set(case.sums) == {"image", "labels_maisi"}
    assert "liver" in cases["abdomen"].labels_present
    assert cases["unlabelled"].labels_maisi is None


def test_what_is_refused_is_told_with_its_reason_in_the_report(store: Path) -> None:
    record = json.loads((store / "run.json").read_text())
    told = dict(line.split(": ", 1) for line in record["warnings"])
    assert sorted(told) == ["copy_of_abdomen", "cut", "moved", "strange"] or "no case for validation" in told
    assert "the same voxels as case abdomen" in told["copy_of_abdomen"]
    assert "cut.nii.gz" in told["cut"]
    assert "is on another grid than its image" in told["moved"]
    assert "199" in told["strange"]
    page = (store / "report.html").read_text()
    assert "Refused (4)" in page
    assert "data:image/jpeg;base64," in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_a_second_run_changes_nothing_and_a_changed_scan_is_made_again(
    scans: Path, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "store")
    shutil.copytree(scans, tmp_path / "scans", copy_function=shutil.copy2)
    before = content(store)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "cases").rglob("*")}
    assert run(scans, tmp_path / "store").returncode == 0
    assert content(tmp_path / "store") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "cases").rglob("*")} == times
    other = run(scans, tmp_path / "store", "--spacing", "12", "12", "12")
    assert other.returncode == 2
    assert "was filled with other settings (prepare, see run.yaml)" in other.stderr


def test_a_scan_that_changed_is_made_again_and_the_others_stay(maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("chest", "head"):
        shutil.copy(scans / f"{name}.nii.gz", tmp_path / "in")
    given = (tmp_path / "in", "--out", tmp_path / "store", "--multiple", "16")
    assert maisi("prepare", *given).code == 0
    before = content(tmp_path / "store")
    shutil.copy(scans / "unlabelled.nii.gz", tmp_path / "in" / "head.nii.gz")
    assert maisi("prepare", *given).code == 0
    after = content(tmp_path / "store")
    changed = {name.split("/")[1] for name in before if name.startswith("cases/") and before[name] != after[name]}
    assert changed == {"head"}


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(
    scans: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    for seconds in (2.0, 2.6, 3.2, 3.9):
        process = subprocess.Popen(command(scans, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert run(scans, out).returncode == 0
    assert content(out) == content(store)


def test_parts_of_an_array_job_and_workers_make_the_same_store(scans: Path, store: Path, tmp_path: Path) -> None:
    jobs = [
        subprocess.Popen(command(scans, tmp_path / "parts", "--shard", f"{k}/2"), stderr=subprocess.PIPE, text=True)
        for k in (1, 2)
    ]
    told = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    assert content(tmp_path / "parts") == content(store)
    assert run(scans, tmp_path / "workers", "--workers", "2").returncode == 0
    assert content(tmp_path / "workers") == content(store)


@pytest.mark.parametrize("has_staged", [False, True])
def test_parts_of_an_array_job_may_begin_in_the_same_moment(
    maisi: Maisi, scans: Path, tmp_path: Path, has_staged: bool
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(scans / "chest.nii.gz", tmp_path / "in")
    out, other = tmp_path / "store", tmp_path / "store" / f"{PARTIAL}{owner_mark()}"
    other.mkdir(parents=True)
    if has_staged:
        assert maisi("prepare", tmp_path / "in", "--out", tmp_path / "there", "--shard", "1/2").code == 0
        shutil.copy(tmp_path / "there" / "part-1-of-2.run.yaml", other)
    done = maisi("prepare", tmp_path / "in", "--out", out, "--shard", "2/2")
    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} > {other.name, "part-2-of-2.run.yaml", "part-2-of-2.run.json"}


def test_a_part_is_refused_where_one_of_other_settings_is_beginning(maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(scans / "chest.nii.gz", tmp_path / "in")
    out, other = tmp_path / "store", tmp_path / "store" / f"{PARTIAL}{owner_mark()}"
    assert maisi("prepare", tmp_path / "in", "--out", tmp_path / "there", "--shard", "1/2").code == 0
    other.mkdir(parents=True)
    shutil.copy(tmp_path / "there" / "part-1-of-2.run.yaml", other)
    done = maisi("prepare", tmp_path / "in", "--out", out, "--multiple", "16", "--shard", "2/2")
    assert done.code == 2
    assert "was filled with other settings (prepare, see part-1-of-2.run.yaml)" in done.err
    assert list(out.iterdir()) == [other]


def test_a_patient_on_both_sides_of_a_split_is_refused(maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    def case(region: str, patient: str, split: str) -> dict[str, str]:
        return {"id": region, "image": str(scans / f"{region}.nii.gz"), "patient": patient, "split": split}

    cases = [case("chest", "p1", "training"), case("abdomen", "p1", "validation"), case("head", "p2", "training")]
    (tmp_path / "m.json").write_text(json.dumps({"cases": [each | {"region": each["id"]} for each in cases]}))
    done = maisi("prepare", tmp_path / "m.json", "--out", tmp_path / "store", "--multiple", "16")
    assert done.code == 0, done.err
    assert "patient p1 is on two sides of the split: chest in training, abdomen in validation" in done.err
    assert [each.id for each in read_manifest(tmp_path / "store")] == ["head"]


def test_a_segmenter_labels_what_has_no_labels_and_one_that_fails_stops_no_other(
    maisi: Maisi, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("unlabelled", "strange"):
        shutil.copy(scans / f"{name}.nii.gz", tmp_path / "in")
    corner, other = (read_volume(scans / f"{n}.nii.gz").array[0, 0, 0] for n in ("strange", "unlabelled"))
    assert corner != other
    tool = tmp_path / "tool.py"
    tool.write_text(
        "import sys, numpy as np, nibabel as nib\n"
        "image = nib.load(sys.argv[1]); hu = np.asarray(image.dataobj)\n"
        f"if hu[0, 0, 0] == {corner}: sys.exit('no licence')\n"
        "nib.save(nib.Nifti1Image((hu > 200).astype(np.uint8) * 122, image.affine), sys.argv[2])\n"
    )
    segmenter = f"{sys.executable} {tool} {{image}} {{labels}}"
    given = ("--out", tmp_path / "store", "--multiple", "16", "--validation", "0", "--segmenter", segmenter)
    done = maisi("prepare", tmp_path / "in", *given)
    assert done.code == 0, done.err
    (case,) = read_manifest(tmp_path / "store")
    assert "sternum" in case.labels_present
    assert "ended with 1: no licence" in done.err


def test_the_cancer_of_a_decathlon_task_is_a_tumour_of_its_organ(maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    task = tmp_path / "Task06_Lung"
    for folder in ("imagesTr", "labelsTr"):
        (task / folder).mkdir(parents=True)
    shutil.copy(scans / "chest.nii.gz", task / "imagesTr" / "lung_001.nii.gz")
    ours = read_labels(scans / "chest_labels_maisi.nii.gz")
    lobe = ours.array == load_vocabulary().id("right lung upper lobe")
    write_labels(LabelMap(lobe.astype(np.uint8), ours.grid), task / "labelsTr" / "lung_001.nii.gz")
    listed = [{"image": "./imagesTr/lung_001.nii.gz", "label": "./labelsTr/lung_001.nii.gz"}]
    about = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "cancer"}, "training": listed}
    (task / "dataset.json").write_text(json.dumps(about))
    answer = maisi("prepare", task, "--out", tmp_path / "store", "--multiple", "16")
    assert answer.code == 0, answer.err
    (case,) = read_manifest(tmp_path / "store")
    assert "lung tumor" in case.labels_present
    assert "taken cancer as lung tumor" in (tmp_path / "store" / "cases" / case.id / "case.json").read_text()


def test_a_datalist_with_a_numbering_prepares_a_data_set_whose_names_do_not_pair(
    maisi: Maisi, scans: Path, tmp_path: Path
) -> None:
    shutil.copy(scans / "abdomen.nii.gz", tmp_path / "volume-1.nii.gz")
    ours = read_labels(scans / "abdomen_labels_maisi.nii.gz")
    theirs = np.zeros_like(ours.array)
    for name, id in (("liver", 1), ("left kidney", 4), ("right kidney", 4), ("vertebrae L1", 5)):
        theirs[ours.array == load_vocabulary().id(name)] = id
    write_labels(LabelMap(theirs, ours.grid), tmp_path / "labels-1.nii.gz")
    pairs = [{"image": "volume-1.nii.gz", "label": "labels-1.nii.gz"}]
    (tmp_path / "pairs.json").write_text(json.dumps({"modality": "CT", "training": pairs}))
    answer = maisi(
        "prepare", tmp_path / "pairs.json", "--numbering", "ct-org", "--out", tmp_path / "store", "--multiple", "16"
    )
    assert answer.code == 0, answer.err
    (case,) = read_manifest(tmp_path / "store")
    assert {"liver", "skeleton"} <= set(case.labels_present)
    assert not {"left kidney", "right kidney"} & set(case.labels_present)


def test_an_mr_without_labels_is_taken_where_a_manifest_names_its_region(maisi: Maisi, tmp_path: Path) -> None:
    array = np.random.default_rng(0).gamma(2.0, 100.0, (24, 24, 24)).astype(np.float32)
    write_volume(Volume(array, Grid.centered(array.shape, (8.0, 8.0, 8.0)), "mr"), tmp_path / "brain.nii.gz")
    refused = maisi(
        "prepare", tmp_path / "brain.nii.gz", "--modality", "mr", "--out", tmp_path / "no", "--multiple", "8"
    )
    assert refused.code == 2
    assert "nothing tells the body region" in refused.err
    case = {"id": "brain", "image": "brain.nii.gz", "modality": "mr", "region": "brain", "patient": "p"}
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": [case]}))
    answer = maisi("prepare", tmp_path / "manifest.json", "--out", tmp_path / "store", "--multiple", "8")
    assert answer.code == 0, answer.err
    (made,) = read_manifest(tmp_path / "store")
    assert (made.modality, made.span) == ("mr", ("head", "head"))


def test_a_folder_of_which_nothing_is_accepted_is_refused_and_keeps_its_report(
    maisi: Maisi, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(scans / "cut.nii.gz", tmp_path / "in")
    done = maisi("prepare", tmp_path / "in", "--out", tmp_path / "store")
    assert done.code == 2
    assert "no case was accepted" in done.err
    assert "cut.nii.gz" in (tmp_path / "store" / "report.html").read_text()


def test_images_of_formats_that_are_not_read_are_told_with_what_would_be(
    maisi: Maisi, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "in" / "p1").mkdir(parents=True)
    for name in ("p1/scan.mnc", "p1/other.MGZ", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"CDF")
    alone = maisi("prepare", tmp_path / "in", "--out", tmp_path / "store")
    assert alone.code == 2
    assert "other.MGZ is FreeSurfer, which is not read; accepted: NIfTI, NRRD, MetaImage or DICOM" in alone.err
    assert not (tmp_path / "store").exists()
    shutil.copy(scans / "chest.nii.gz", tmp_path / "in")
    done = maisi("prepare", tmp_path / "in", "--out", tmp_path / "store", "--multiple", "16", "--validation", "0")
    assert done.code == 0, done.err
    assert "not read: " in done.err
    assert "and 1 more such" in done.err
    page = (tmp_path / "store" / "report.html").read_text()
    assert "scan.mnc" in page
    assert "other.MGZ" in page
    assert "notes.txt" not in page


def test_sizes_become_the_nearest_multiple_and_the_field_of_view_stays() -> None:
    grid = Grid.axis_aligned((512, 190, 55), (0.7, 0.7, 5.0), (10.0, 20.0, 30.0))
    found = new_grid(grid, 128)
    assert found.shape == (512, 128, 128)
    np.testing.assert_allclose(found.fov_mm, grid.fov_mm)
    kept = new_grid(grid, 32, (1.5, 1.5, 2.0))
    assert kept.shape == (256, 96, 160)
    assert kept.spacing == (1.5, 1.5, 2.0)


def test_a_patient_keeps_its_split_whoever_else_is_there() -> None:
    settings = PrepareSettings(validation=0.2, testing=0.1)
    drawn = [drawn_split(f"patient {k}", settings) for k in range(2000)]
    assert abs(drawn.count("validation") - 400) < 80
    assert abs(drawn.count("testing") - 200) < 60
    assert drawn == [drawn_split(f"patient {k}", settings) for k in range(2000)]
    assert drawn != [drawn_split(f"patient {k}", settings.model_copy(update={"split_seed": 1})) for k in range(2000)]


def tool(path: Path, content: str) -> str:
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    return f"{path} {{image}} {{labels}}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("printf '\\377 broken' >&2; exit 3", "ended with 3"),  # no UTF-8
        ("read x && exit 5; exit 6", "ended with 6"),  # nothing to read
        ("sleep 600 & echo $! > {pid}; exit 4", "ended with 4"),  # what holds its output
        ("sleep 600 & echo $! > {pid}; wait", "took longer than"),
    ],
)
def test_a_segmenter_that_misbehaves_is_ended_with_all_that_it_started(
    content: str, said: str, scans: Path, tmp_path: Path
) -> None:
    volume = read_volume(scans / "unlabelled.nii.gz")
    segmenter = tool(tmp_path / "tool", content.format(pid=tmp_path / "pid"))
    with pytest.raises(RunError, match=said):
        segmented(volume, PrepareSettings(segmenter=segmenter, segmenter_minutes=0.03))
    if (tmp_path / "pid").exists():
        started = int((tmp_path / "pid").read_text())
        with suppress(psutil.NoSuchProcess):
            psutil.Process(started).wait(timeout=60)  # it was killed, and ends; else this raises


def test_a_segmenter_that_cannot_be_run_is_refused(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(b"\x00\x01")
    (tmp_path / "tool").chmod(0o755)
    settings = PrepareSettings(segmenter=f"{tmp_path / 'tool'} {{image}} {{labels}}")
    with pytest.raises(RunError, match="cannot be run"):
        segmented(read_volume(scans / "unlabelled.nii.gz"), settings)
    with pytest.raises(ValidationError, match="is no command"):
        PrepareSettings(segmenter="tool ' {image} {labels}")


def test_a_case_whose_segmenter_failed_is_tried_again(maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(scans / "unlabelled.nii.gz", tmp_path / "in")
    segmenter = tool(tmp_path / "tool", "exit 1")
    given = (tmp_path / "in", "--out", tmp_path / "store", "--multiple", "16", "--segmenter", segmenter)
    given += ("--validation", "0", "--segmenter-minutes")
    assert maisi("prepare", *given, "3").code == 2
    shutil.copy(scans / "chest_labels_maisi.nii.gz", tmp_path / "labels.nii.gz")
    tool(tmp_path / "tool", f"cp {tmp_path / 'labels.nii.gz'} $2")
    done = maisi("prepare", *given, "5")  # more time than before
    assert done.code == 0, done.err
    (case,) = read_manifest(tmp_path / "store")
    assert case.labels_maisi is not None


def test_a_case_that_lost_a_file_or_whose_facts_are_damaged_is_made_again(
    maisi: Maisi, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("chest", "head"):
        shutil.copy(scans / f"{name}.nii.gz", tmp_path / "in")
    given = (tmp_path / "in", "--out", tmp_path / "store", "--multiple", "16", "--validation", "0")
    assert maisi("prepare", *given).code == 0
    before = content(tmp_path / "store")
    (tmp_path / "store" / "cases" / "chest" / "image.nii.gz").unlink()
    (tmp_path / "store" / "cases" / "head" / "case.json").write_text('{"id": "he')
    assert maisi("prepare", *given).code == 0
    assert content(tmp_path / "store") == before


def test_a_refusal_that_a_kill_left_beside_the_case_does_not_count(maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(scans / "chest.nii.gz", tmp_path / "in")
    given = (tmp_path / "in", "--out", tmp_path / "store", "--multiple", "16", "--validation", "0")
    assert maisi("prepare", *given).code == 0
    (tmp_path / "store" / "refused").mkdir()
    old = {"id": "chest", "made_with": "before", "image": "chest.nii.gz", "refused": "cut short"}
    (tmp_path / "store" / "refused" / "chest.json").write_text(json.dumps(old))
    assert maisi("prepare", *given).code == 0
    assert [case.id for case in read_manifest(tmp_path / "store")] == ["chest"]


def test_names_in_any_script_of_any_length_become_cases(maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    names = ("Пациент", "患者", "Müller", "Möller", "!!!", "x" * 200)
    plain = read_volume(scans / "chest.nii.gz")
    (tmp_path / "in").mkdir()
    for k, name in enumerate(names):
        write_volume(Volume(plain.array + np.float32(k), plain.grid), tmp_path / "in" / f"{name}.nii.gz")
    given = (tmp_path / "in", "--out", tmp_path / "store", "--multiple", "16", "--validation", "0")
    done = maisi("prepare", *given)
    assert done.code == 0, done.err
    cases = read_manifest(tmp_path / "store")
    assert {"Пациент", "患者", "Müller", "Möller"} < {case.id for case in cases}
    assert len(cases) == len(names)
    assert all(case.image is not None and case.image.is_file() for case in cases)


def test_a_scan_that_is_listed_twice_is_refused_the_second_time(maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    entry = {"image": str(scans / "chest.nii.gz")}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry, entry]}))
    given = ("--out", tmp_path / "store", "--multiple", "16", "--validation", "0")
    done = maisi("prepare", tmp_path / "list.json", *given)
    assert done.code == 0, done.err
    assert "the same voxels as case" in done.err
    assert len(read_manifest(tmp_path / "store")) == 1


@pytest.mark.parametrize(("source", "out"), [("in", "in/store"), ("store/cases", "store")])
def test_a_store_within_its_source_is_refused(source: str, out: str, maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    (tmp_path / source).mkdir(parents=True)
    shutil.copy(scans / "chest.nii.gz", tmp_path / source)
    done = maisi("prepare", tmp_path / source, "--out", tmp_path / out)
    assert done.code == 2
    if out == "in/store":
        assert "lie within each other" in done.err
        assert not (tmp_path / out).exists()
    assert not list((tmp_path / out).rglob("case.json"))


def test_a_part_of_which_nothing_was_accepted_fails_only_where_all_is_done(
    maisi: Maisi, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("cut", "head"):  # in this order
        shutil.copy(scans / f"{name}.nii.gz", tmp_path / "in")
    given = (tmp_path / "in", "--out", tmp_path / "store", "--multiple", "16", "--validation", "0", "--shard")
    assert [maisi("prepare", *given, part).code for part in ("1/2", "2/2")] == [0, 0]
    assert [case.id for case in read_manifest(tmp_path / "store")] == ["head"]


def test_a_prepared_mr_is_prepared_again_with_the_region_that_its_manifest_says(
    maisi: Maisi, scans: Path, tmp_path: Path
) -> None:
    case = {"id": "a", "image": str(scans / "chest.nii.gz"), "modality": "mr", "span": ["chest", "abdomen"]}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(case) + "\n")
    done = maisi("prepare", tmp_path / "manifest.jsonl", "--out", tmp_path / "store", "--multiple", "16")
    assert done.code == 0, done.err
    assert read_manifest(tmp_path / "store")[0].span == ("chest", "abdomen")


@pytest.mark.parametrize("spacing", ["nan", "0", "-1"])
def test_an_impossible_spacing_is_refused_before_anything_is_written(
    spacing: str, maisi: Maisi, scans: Path, tmp_path: Path
) -> None:
    done = maisi("prepare", scans, "--out", tmp_path / "store", "--spacing", spacing, "1", "1")
    assert done.code == 2
    assert not (tmp_path / "store").exists()


def test_nrrd_with_segments_of_slicer_is_prepared_as_nifti_is(maisi: Maisi, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_volume(read_volume(scans / "chest.nii.gz"), tmp_path / "in" / "chest.nrrd")
    labels = read_labels(scans / "chest_labels_maisi.nii.gz")
    segments = segments_of(np.unique(labels.array[labels.array > 0]).tolist(), load_vocabulary())
    write_labels(labels, tmp_path / "in" / "chest.seg.nrrd", segments=segments)
    stores = [tmp_path / "nifti", tmp_path / "nrrd"]
    for source, store in zip((scans / "chest.nii.gz", tmp_path / "in"), stores, strict=True):
        done = maisi("prepare", source, "--out", store, "--multiple", "16", "--validation", "0")
        assert done.code == 0, done.err
    plain, nrrd = (read_manifest(store)[0] for store in stores)
    assert nrrd.labels_maisi is not None
    assert np.array_equal(read_volume(plain.image).array, read_volume(nrrd.image).array)
