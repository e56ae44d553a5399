"""`maisi generate --requests`: many samples of distributions, each exactly once."""

import errno
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import Maisi, files_in

from maisi.bundle.bundle import Bundle, load_bundle, save_bundle
from maisi.cli import main
from maisi.data.cases import read_case
from maisi.data.manifest import read_manifest
from maisi.errors import RunError
from maisi.pipelines.many import stages
from maisi.pipelines.many.stages import Maker, only_source
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import validate_generate
from maisi.runs.tasks import many
from maisi.storage.sums import sha256, sha256_of_tree

THREE = {
    "seed": 5,
    "count": 3,
    "size": {"choice": [[16, 16, 16], [16, 20, 16]]},
    "spacing": {"uniform": [14, 18]},
    "steps": {"whole": [1, 3]},
    "region": {"choice": {"chest": 1, "abdomen": 1}},
    "quality": {"on_failure": "keep"},
}


@pytest.fixture(scope="module")
def asked(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A request file of three samples."""
    return request_file(tmp_path_factory.mktemp("asked"), bundle=str(tiny_bundle), **THREE)


@pytest.fixture(scope="module")
def whole(asked: Path) -> Path:
    """What an undisturbed run of it leaves."""
    threads, out = torch.get_num_threads(), asked.parent / "whole"
    assert main(["generate", "--requests", str(asked), "--threads", "1", "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    return out


def request_file(folder: Path, **settings: Any) -> Path:
    path = folder / "requests.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def ask(file: Path, out: Path) -> list[str]:
    return ["generate", "--requests", str(file), "--threads", "1", "--out", str(out)]


def samples(folder: Path) -> dict[str, str]:
    """All but the records of the run, which tell times, by their sums."""
    return {name: sha256(folder / name) for name in files_in(folder) if "run." not in name}


def test_many_samples_come_with_a_manifest_that_training_reads_and_a_page(
    maisi: Maisi, asked: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = maisi(*ask(asked, out))
    assert answer.code == 0, answer.err
    assert samples(out) == samples(whole)
    assert answer.out.split() == [str(out / "manifest.jsonl"), str(out / "summary.html")]
    of_a_sample = ("ct.nii.gz", "facts.json", "labels.nii.gz", "preview.png", "quality.json")
    expected = [f"sample_{index:05d}_{name}" for index in range(3) for name in of_a_sample]
    assert files_in(out) == sorted([*expected, "manifest.jsonl", "run.json", "run.yaml", "summary.html"])
    cases = read_manifest(out)
    assert [case.id for case in cases] == ["sample_00000", "sample_00001", "sample_00002"]
    for case in cases:
        volume, labels = read_case(case)
        assert volume.grid == labels.grid
        assert case.image is not None
        assert case.sums["image"] == sha256(case.image)
    assert len({case.spacing_mm for case in cases}) == 3
    page = (out / "summary.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    assert "http" not in page
    record = json.loads((out / "run.json").read_text())
    assert record["outputs"].keys() == set(files_in(out)) - {"run.json"}


def test_a_sample_is_what_its_own_request_makes(maisi: Maisi, whole: Path, tmp_path: Path) -> None:
    request = json.loads((whole / "sample_00001_facts.json").read_text())["request"]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(request))
    answer = maisi("generate", "--config", tmp_path / "one.yaml", "--out", tmp_path / "one")
    assert answer.code == 0, answer.err
    for name in ("ct.nii.gz", "labels.nii.gz"):
        one, of_many = tmp_path / "one" / f"sample_000_{name}", whole / f"sample_00001_{name}"
        assert one.read_bytes() == of_many.read_bytes()


def test_asked_for_again_it_makes_nothing_twice_and_more_where_more_is_asked(
    maisi: Maisi, asked: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    maisi(*ask(asked, out), "--count", 2)
    times = {path: path.stat().st_mtime_ns for path in out.glob("sample_*")}
    answer = maisi(*ask(asked, out))
    assert answer.code == 0, answer.err
    assert len(times) == 10
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert samples(out) == samples(whole)


@pytest.mark.parametrize("form", ["dicom", "nrrd", "mha"])
def test_samples_in_other_formats_are_read_from_the_manifest_and_not_made_twice(
    form: str, maisi: Maisi, asked: Path, whole: Path, tmp_path: Path
) -> None:
    again = [*ask(asked, tmp_path), "--format", form]
    for _ in range(2):
        answer = maisi(*again)
        assert answer.code == 0, answer.err
    facts = [json.loads((tmp_path / f"sample_{index:05d}_facts.json").read_text()) for index in range(3)]
    assert sorted(name for each in facts for name in each["files"]) == [
        name
        for name in files_in(tmp_path)
        if name.startswith("sample_") and "facts" not in name and (tmp_path / name).is_file()
    ]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("sample_*/*")}
    for case, usual in zip(read_manifest(tmp_path), read_manifest(whole), strict=True):
        (volume, labels), (expected, expected_labels) = read_case(case), read_case(usual)
        np.testing.assert_array_equal(volume.array, expected.array)
        np.testing.assert_array_equal(labels.array, expected_labels.array)
        np.testing.assert_allclose(labels.grid.affine, expected.grid.affine, atol=1e-4)
        assert case.image is not None
        assert case.sums["image"] == sha256_of_tree(case.image)
    next(tmp_path.glob("sample_00001_*preview*")).unlink()
    assert maisi(*again).code == 0
    changed = {path.parent.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == ({"sample_00001_ct"} if form == "dicom" else set())


@pytest.mark.parametrize("how", [("--workers", 2), ("--memory", "2GB")])
def test_however_the_work_is_done_the_voxels_are_the_same(
    how: tuple[str, object], maisi: Maisi, asked: Path, whole: Path, tmp_path: Path
) -> None:
    answer = maisi(*ask(asked, tmp_path), *how)
    assert answer.code == 0, answer.err
    found, expected = ({k: v for k, v in samples(p).items() if ".nii" in k} for p in (tmp_path, whole))
    assert found == expected


def test_samples_of_one_shape_are_planned_once_whatever_they_show(tiny_bundle: Path) -> None:
    """Plans of networks within a bound on memory take as long as a small sample itself."""
    maker = Maker(load_bundle(tiny_bundle))

    def fitted(**settings: Any) -> Bundle:
        fixed = {"bundle": str(tiny_bundle), "size": (16, 16, 16), "spacing": (16.0,) * 3, "compute": {"memory": 10**9}}
        valid = validate_generate(GenerateRequest.model_validate({**fixed, **settings}), maker.bundle)
        return maker.fit(valid, only_source(valid))

    first = fitted(region="chest", seed=1)
    assert fitted(region="abdomen", seed=2, anatomy=("liver=1200ml",), steps=3, force=True) is first
    assert fitted(region="chest", size=(16, 20, 16)) is not first
    assert fitted(region="chest", unlabelled=True) is not first


def test_a_cluster_that_is_not_there_is_told_before_anything_is_written(
    maisi: Maisi, asked: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra cluster)")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    answer = maisi(*ask(asked, tmp_path / "out"), "--ray", address)
    assert answer.code == 1
    assert f"there is no Ray cluster at '{address}' for us: [Errno" in answer.err
    assert not (tmp_path / "out").exists()


def test_parts_of_an_array_job_make_the_whole_together(maisi: Maisi, asked: Path, whole: Path, tmp_path: Path) -> None:
    for part, made in (("2/2", 1), ("1/2", 2)):
        answer = maisi(*ask(asked, tmp_path / "parts"), "--shard", part)
        assert answer.code == 0, answer.err
        assert answer.err.splitlines()[-1].startswith(f"{made} in ")
    assert samples(tmp_path / "parts") == samples(whole)


def test_a_full_disk_stops_with_one_line_and_the_next_run_goes_on(
    maisi: Maisi, asked: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = many.write_sample, []

    def full(sample: Any, request: Any, bundle: Any, files: dict[str, Path], *more: Any) -> None:
        calls.append(files)
        if len(calls) == 2:
            files["volume"].write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(sample, request, bundle, files, *more)

    monkeypatch.setattr(many, "write_sample", full)
    out = tmp_path / "out"
    answer = maisi(*ask(asked, out))
    assert answer.code == 1
    assert answer.err.splitlines(keepends=True)[-1] == f"error: cannot write to {out}: No space left on device\n"
    assert [name for name in files_in(out) if "_ct" in name] == ["sample_00000_ct.nii.gz"]
    assert "run.json" not in files_in(out)
    monkeypatch.undo()
    assert maisi(*ask(asked, out)).code == 0
    assert samples(out) == samples(whole)


def test_a_sample_that_cannot_be_made_is_told_apart_and_stops_no_other(
    maisi: Maisi, asked: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, out = stages.draw_one, tmp_path / "out"

    def impossible(request: Any, *rest: Any) -> Any:
        if request.seed == wrong:
            raise many.InvalidRequestError("this liver has no room for it")
        return real(request, *rest)

    wrong = json.loads((whole / "sample_00001_facts.json").read_text())["request"]["seed"]
    monkeypatch.setattr(stages, "draw_one", impossible)
    answer = maisi(*ask(asked, out))
    assert answer.code == 1
    assert "sample_00001: this liver has no room for it" in answer.err
    assert "error: 1 of 3 failed" in answer.err
    assert [case.id for case in read_manifest(out)] == ["sample_00000", "sample_00002"]
    assert "this liver has no room for it" in (out / "summary.html").read_text()


def test_a_kill_loses_nothing_and_doubles_nothing(maisi: Maisi, asked: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-m", "maisi", *ask(asked, out)], stdout=subprocess.DEVNULL)
    while not list(out.glob("sample_*")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "run.json").exists()
    assert maisi(*ask(asked, out)).code == 0
    assert samples(out) == samples(whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regoin": "chest"}, "unknown setting 'regoin'; did you mean 'region'?"),
        ({"region": {"choice": ["chest", "chets"]}}, "did you mean 'chest'?"),
        ({"size": {"choice": [[16, 16, 16], [17, 16, 16]]}}, "is not a multiple of 4"),
        ({"steps": {"whole": [0, 1]}}, "steps: 0 is not accepted"),
    ],
)
def test_a_bad_request_file_writes_nothing(
    settings: dict, message: str, maisi: Maisi, tiny_bundle: Path, tmp_path: Path
) -> None:
    file = request_file(tmp_path, **{**THREE, "count": 20, "bundle": str(tiny_bundle), **settings})
    answer = maisi("generate", "--requests", file, "--out", tmp_path / "out")
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    if not {"regoin", "region"} & settings.keys():  # told when the file is read
        assert "error: request " in answer.err


def test_options_of_many_samples_are_refused_without_a_request_file(maisi: Maisi, asked: Path, tmp_path: Path) -> None:
    answer = maisi("generate", "--workers", 2, "--out", tmp_path / "out")
    assert answer.code == 2
    assert "--workers spreads the samples of --requests FILE" in answer.err
    answer = maisi("generate", "--requests", asked, "--overwrite", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "takes no --overwrite" in answer.err


def test_a_folder_of_other_settings_is_refused(maisi: Maisi, asked: Path, whole: Path) -> None:
    answer = maisi(*ask(asked, whole), "--seed", 9)
    assert answer.code == 2
    assert "was filled with other settings (seed, see run.yaml)" in answer.err


def test_what_may_go_well_another_time_stops_no_other_and_is_tried_again(
    maisi: Maisi, asked: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, out, calls = stages.draw_one, tmp_path / "out", []

    def unlucky(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise RunError("the segmenter took too long")
        return real(*given)

    monkeypatch.setattr(stages, "draw_one", unlucky)
    answer = maisi(*ask(asked, out))
    assert answer.code == 1
    assert "1 of 3 samples were not made (sample_00000); first: sample_00000: the segmenter took too lo" in answer.err
    assert len(read_manifest(out)) == 2
    assert maisi(*ask(asked, out)).code == 0
    assert samples(out) == samples(whole)
    assert len(calls) == 4


def test_a_sample_that_fails_its_check_is_kept_apart(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    loose, out = load_bundle(tiny_bundle), tmp_path / "out"
    info = loose.info.model_copy(update={"limits": loose.limits.model_copy(update={"held_to": None})})
    bundle = save_bundle(Bundle.of(info, {name: loose.network(name) for name in loose.names}), tmp_path / "strict")
    strict = {**THREE, "count": 1, "bundle": str(bundle), "quality": {"max_tries": 1}}
    for _ in range(2):  # the second finds that there is nothing to do
        answer = maisi(*ask(request_file(tmp_path, **strict), out))
        assert answer.code == 1
        assert answer.err.splitlines()[-1] == f"error: 1 of 1 failed, see {out / 'summary.html'}: sample_00000"
        assert (out / "failed" / "sample_00000_ct.nii.gz").is_file()
        assert not list(out.glob("*.nii.gz"))
        assert read_manifest(out) == ()
        assert json.loads((out / "run.json").read_text())["failed"] == ["sample_00000"]
    assert "Pictures of what failed" in (out / "summary.html").read_text()


def test_anatomy_is_drawn_asked_for_and_told(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    settings = {**THREE, "count": 2, "bundle": str(tiny_bundle), "region": "abdomen", "size": 24, "spacing": 12}
    settings |= {"anatomy": {"spleen": {"uniform": [0.41, 0.49]}, "gallbladder": "none"}}
    answer = maisi(*ask(request_file(tmp_path, **settings), tmp_path / "out"))
    assert answer.code == 0, answer.err
    for index in range(2):
        facts = json.loads((tmp_path / "out" / f"sample_{index:05d}_facts.json").read_text())
        assert [size[:10] for size in sorted(facts["request"]["anatomy"])] == ["gallbladde", "spleen=0.4"]
        assert facts["volumes_ml"]["spleen"] == pytest.approx(facts["asked_ml"]["spleen"], rel=0.1)
        assert "gallbladder" not in facts["volumes_ml"]
    assert "Sizes asked for (1)" in (tmp_path / "out" / "summary.html").read_text()
    answer = maisi(*ask(request_file(tmp_path, **{**settings, "anatomy": {"livre": 0.5}}), tmp_path / "other"))
    assert answer.code == 2
    assert answer.err.startswith("error: request 0: ")
    assert "did you mean 'liver'" in answer.err
