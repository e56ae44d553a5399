"""`maisi generate`: from a request to files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from command_line import Maisi, Patient, files_in
from PIL import Image

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.storage.sums import sha256

SMALL = ("--size", 16, 16, 16, "--spacing", 16, 16, 16, "--steps", 2)
LONG = ("--size", 48, 48, 48, "--spacing", 8, 8, 8, "--steps", 1000)  # a minute or more
SAMPLE = ["sample_000_ct.nii.gz", "sample_000_labels.nii.gz", "sample_000_preview.png", "sample_000_quality.json"]


def test_generate_writes_a_ct_its_labels_a_picture_and_what_repeats_it(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = maisi("generate", "--bundle", tiny_bundle, *SMALL, "--out", out, "--seed", 3)

    assert answer.code == 0, answer.err
    assert files_in(out) == ["run.json", "run.yaml", *SAMPLE]
    assert set(answer.out.split()) == {str(out / name) for name in [*SAMPLE, "run.yaml"]}
    ct, labels = (nib.load(out / name) for name in SAMPLE[:2])
    assert ct.shape == labels.shape == (16, 16, 16)
    assert np.array_equal(ct.affine, labels.affine)
    assert np.allclose(ct.affine[:3, :3], np.diag([16, 16, 16]))
    assert nib.aff2axcodes(ct.affine) == ("R", "A", "S")
    assert ct.get_data_dtype() == np.int16
    assert labels.get_data_dtype() == np.uint8
    present = load_vocabulary().check_ids(np.asarray(labels.dataobj))
    assert len(present) > 5
    hu = np.asarray(ct.dataobj)
    assert -1000 <= hu.min() < hu.max() <= 1000
    with Image.open(out / SAMPLE[2]) as picture:
        assert picture.size[0] > 500


def test_run_json_tells_sums_versions_seed_and_what_each_stage_took(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = maisi("generate", "-b", tiny_bundle, "--labels", patient.labels, "--steps", 1, "-o", out, "--json")

    record = json.loads((out / "run.json").read_text())
    assert answer.json == {"out": str(out), **record}
    assert record["outputs"] == {name: sha256(out / name) for name in files_in(out) if name != "run.json"}
    assert record["inputs"] == {str(patient.labels): sha256(patient.labels)}
    assert record["bundle"] == {"name": "tiny", "version": "1", "sha256": sha256(tiny_bundle / "checksums.json")}
    assert record["seed"] == 0
    assert {"python", "torch", "numpy"} <= record["versions"].keys()
    assert list(record["stages"]) == ["load", "labels", "sample", "decode", "check", "write"]
    assert all(s["seconds"] >= 0 and s["peak_bytes"] > 10**7 for s in record["stages"].values())
    assert record["seconds"] == pytest.approx(sum(s["seconds"] for s in record["stages"].values()))


def test_run_yaml_has_no_open_setting_of_size_and_is_taken_back_by_config(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    maisi("generate", "-b", tiny_bundle, "--labels", patient.labels, "--steps", 2, "-o", first)
    settings = yaml.safe_load((first / "run.yaml").read_text())
    assert settings["command"] == "generate"
    assert settings["size"] == [28, 24, 20]
    assert settings["spacing"] == [14.0, 14.0, 14.0]
    assert settings["compute"]["threads"] >= 1

    answer = maisi("generate", "-c", first / "run.yaml", "-o", second)
    assert answer.code == 0, answer.err
    assert [sha256(second / name) for name in [*SAMPLE, "run.yaml"]] == [
        sha256(first / name) for name in [*SAMPLE, "run.yaml"]
    ]


def test_labels_given_are_the_labels_of_the_sample(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    maisi("generate", "-b", tiny_bundle, "--labels", patient.labels, "--steps", 1, "-o", tmp_path / "out")
    given, written = nib.load(patient.labels), nib.load(tmp_path / "out" / SAMPLE[1])
    inside = np.asarray(written.dataobj)[1:27, 1:23, 1:19]
    assert np.array_equal(inside, np.asarray(given.dataobj))
    assert np.allclose(written.affine @ [1, 1, 1, 1], given.affine @ [0, 0, 0, 1])


def test_a_region_named_goes_before_what_the_labels_show(
    maisi: Maisi, tiny_bundle: Path, patient: Patient, tmp_path: Path
) -> None:
    ask = ("generate", "-b", tiny_bundle, "--labels", patient.labels, "--steps", 1, "--json")
    shown, named = maisi(*ask, "-o", tmp_path / "shown"), maisi(*ask, "--region", "lower", "-o", tmp_path / "named")
    assert shown.code == named.code == 0
    volumes, labels = (
        [np.asarray(nib.load(tmp_path / folder / name).dataobj) for folder in ("shown", "named")] for name in SAMPLE[:2]
    )
    assert np.array_equal(*labels)
    assert not np.array_equal(*volumes)


def test_bfloat16_gives_nearly_the_same_ct(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        ask = ("generate", "-b", tiny_bundle, *SMALL, "--precision", precision)
        assert maisi(*ask, "-o", tmp_path / precision).code == 0
    one, other = (np.asarray(nib.load(tmp_path / p / SAMPLE[0]).dataobj, float) for p in ("float32", "bfloat16"))
    assert 0 < np.abs(one - other).mean() < 60


def test_a_sample_depends_on_seed_and_index_alone(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    def sums(name: str, *arguments: object) -> dict[str, str]:
        answer = maisi("generate", "-b", tiny_bundle, *SMALL, *arguments, "-o", tmp_path / name, "--json")
        return {k: v for k, v in answer.json["outputs"].items() if k.startswith("sample")}

    one, two, other = sums("one"), sums("two", "--count", 2), sums("other", "--seed", 1)
    assert one.items() <= two.items()
    assert len(two) == 2 * len(SAMPLE)
    assert two["sample_000_ct.nii.gz"] != two["sample_001_ct.nii.gz"]
    assert all(other[name] != one[name] for name in one)


def test_options_count_more_than_assignments_and_these_more_than_the_file(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(f"bundle: {tiny_bundle}\nsize: [16, 16, 16]\nspacing: [15, 15, 15]\nsteps: 1\nseed: 5\n")
    assignments = ("-s", "seed=6", "-s", "spacing=[16, 16, 16]")
    answer = maisi("generate", "-c", config, *assignments, "--seed", 7, "-o", tmp_path / "x")
    assert answer.code == 0, answer.err
    settings = yaml.safe_load((tmp_path / "x" / "run.yaml").read_text())
    assert (settings["steps"], settings["spacing"], settings["seed"]) == (1, [16.0, 16.0, 16.0], 7)


def test_uncompressed_files_are_written_when_asked_for(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    maisi("generate", "-b", tiny_bundle, *SMALL, "--format", "nii", "-o", tmp_path / "x")
    assert nib.load(tmp_path / "x" / "sample_000_ct.nii").shape == (16, 16, 16)


def test_a_folder_with_files_is_kept_unless_overwritten_and_then_only_an_earlier_run_goes(
    maisi: Maisi, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    maisi("generate", "-b", tiny_bundle, *SMALL, "--count", 2, "-o", out)
    (out / "notes.txt").write_text("mine")
    before = {name: sha256(out / name) for name in files_in(out)}

    refused = maisi("generate", "-b", tiny_bundle, *SMALL, "-o", out)
    assert refused.code == 2
    assert "not empty" in refused.err
    assert "--overwrite" in refused.err
    assert {name: sha256(out / name) for name in files_in(out)} == before

    assert maisi("generate", "-b", tiny_bundle, *SMALL, "-o", out, "--overwrite").code == 0
    assert files_in(out) == ["notes.txt", "run.json", "run.yaml", *SAMPLE]


def test_a_run_killed_midway_leaves_whole_samples_and_no_record(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(a) for a in ("generate", "-b", tiny_bundle, *SMALL, "--count", 500, "-o", out)]
    process = subprocess.Popen([sys.executable, "-m", "maisi", *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "sample_002_ct.nii.gz").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert process.returncode == -signal.SIGKILL
    visible = [path for path in out.iterdir() if not path.name.startswith(".")]
    assert (out / "sample_002_ct.nii.gz") in visible
    assert not (out / "run.json").exists()
    for path in visible:
        if path.name.endswith(".nii.gz"):
            assert np.asarray(nib.load(path).dataobj).shape == (16, 16, 16)
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()


def test_a_stopped_run_cleans_up_behind_it(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    arguments = [str(a) for a in ("generate", "-b", tiny_bundle, *LONG, "-o", out)]
    process = subprocess.Popen([sys.executable, "-m", "maisi", *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not out.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()  # nothing goes on beside the tests that follow

    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert files_in(tmp_path) == []


LOST = """
import os, signal, sys, weakref
from maisi.cli import main
from maisi.pipelines.labels import PhantomLabels

draw = PhantomLabels.draw

def interrupted_where_python_ignores_it(self, rng, generator):
    class Module: ...
    module = Module()
    reference = weakref.ref(module, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del module  # what a callback raises is dropped; imports have such callbacks
    return draw(self, rng, generator)

PhantomLabels.draw = interrupted_where_python_ignores_it
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupt_that_python_dropped_stops_the_run_all_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    asked = [str(a) for a in ("generate", "-b", tiny_bundle, *SMALL, "--phantom", "-o", tmp_path / "deep" / "out")]
    done = subprocess.run([sys.executable, "-c", LOST, *asked], capture_output=True, text=True, check=False)
    assert "Exception ignored in" in done.stderr  # it was dropped
    assert done.returncode == 130
    assert "error: interrupted" in done.stderr
    assert files_in(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX resource limits")
@pytest.mark.parametrize(
    "command", [("generate", *SMALL, "-o", "{tmp}/out"), ("encode", "{ct}", "-o", "{tmp}/ct.safetensors")]
)
def test_a_full_disk_fails_with_one_line_and_leaves_nothing(
    tiny_bundle: Path, patient: Patient, tmp_path: Path, command: tuple[object, ...]
) -> None:
    arguments = [str(a).format(ct=patient.ct, tmp=tmp_path) for a in (*command, "-b", tiny_bundle)]
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "from maisi.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: cannot write")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    "labels",
    [
        "torso_head/lidc0001_totalseg/labels_maisi.nii.gz",
        "torso_head/totalseg_example_ct/labels_maisi.nii.gz",
        "label_maps/totalseg_s0327/labels_maisi.nii.gz",
    ],
)
def test_a_real_label_map_is_followed(
    maisi: Maisi, tiny_bundle: Path, shared_data: Path, tmp_path: Path, labels: str
) -> None:
    answer = maisi(
        "generate", "-b", tiny_bundle, "--labels", shared_data / labels, "--steps", 1, "-o", tmp_path / "out"
    )
    assert answer.code == 0, answer.err
    given, written = (np.asarray(nib.load(p).dataobj) for p in (shared_data / labels, tmp_path / "out" / SAMPLE[1]))
    assert set(np.unique(written)) <= set(np.unique(given)) | {0}
    assert len(np.unique(written)) > 0.7 * len(np.unique(given))


def test_the_packaged_bundle_makes_a_ct_that_looks_like_one(maisi: Maisi, packaged: str, tmp_path: Path) -> None:
    answer = maisi("generate", "--size", 48, 48, 48, "--spacing", 5, 5, 5, "-o", tmp_path / "out", "--force")
    assert answer.code == 0, answer.err
    hu = np.asarray(nib.load(tmp_path / "out" / SAMPLE[0]).dataobj)
    labels = np.asarray(nib.load(tmp_path / "out" / SAMPLE[1]).dataobj)
    assert hu[labels == 0].mean() < -700
    assert -300 < hu[labels == load_vocabulary().id("body")].mean() < 300


def test_a_sample_tells_whose_map_was_bent_for_it_and_how_far(maisi: Maisi, tiny_bundle: Path, tmp_path: Path) -> None:
    for name, more in (("people", ()), ("phantom", ("--phantom",))):
        assert maisi("generate", "-b", tiny_bundle, *SMALL, *more, "-o", tmp_path / name).code == 0
    told = [json.loads((tmp_path / name / "sample_000_quality.json").read_text()) for name in ("people", "phantom")]
    assert "bent" in told[0]["labels_from"]
    assert told[1]["labels_from"] == ""
