"""NVIDIA's requests: as documented, within the limits of a bundle, and their answers on the grid that was asked for."""

import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from made_service import client_of, made_service

from maisi.data.door import open_labels, open_volume
from maisi.errors import InvalidRequestError
from maisi.service.jobs import JobStore
from maisi.service.nim_request import grid_within
from maisi.service.sending import check_target, public_address
from maisi.space.files import write_labels, write_volume
from maisi.space.grid import Grid
from maisi.space.reading import ReadOptions
from maisi.space.volume import LabelMap, Volume

LIMITS = {"min_spacing_mm": (2.0, 2.0, 2.0), "max_size": (128, 128, 144)}
DOCUMENTED = (  # the request bodies of NVIDIA's documentation, with the smallest size of it
    {"num_output_samples": 1, "body_region": ["abdomen"], "anatomy_list": ["liver", "spleen"]},
    {
        "num_output_samples": 1,
        "body_region": ["abdomen"],
        "anatomy_list": ["liver", "spleen"],
        "output_size": [512, 512, 512],
        "spacing": [0.75, 0.75, 0.75],
        "image_output_ext": ".nii.gz",
        "label_output_ext": ".nii.gz",
    },
    {
        "num_output_samples": 2,
        "body_region": ["chest", "thorax"],
        "anatomy_list": ["lung tumor"],
        "output_size": [256, 256, 128],
        "spacing": [1.5, 1.5, 2.0],
        "controllable_anatomy_size": [["lung tumor", 0.5]],
    },
    {"num_output_samples": 1, "body_region": [], "controllable_anatomy_size": [["gallbladder", -1], ["liver", 0.6]]},
)


@contextmanager
def made(store: JobStore, state: str = "done") -> Iterator[None]:
    """A worker that makes a small volume of any job, or fails it."""
    ending = threading.Event()

    def work() -> None:
        while not ending.wait(0.02):
            job = store.claim("worker")
            if job is not None:
                store.finish(job.id, "worker", state, files=_files(store.folder_of(job.id)))  # type: ignore[arg-type]
        store.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def _files(folder: Path) -> list[Path]:
    folder.mkdir()
    grid = Grid.centered((24, 24, 24), (16.0, 16.0, 16.0))
    volume = np.full(grid.shape, -1000.0, np.float32)
    volume[6:18, 6:18] = 40
    labels = np.where(volume > 0, 200, 0).astype(np.uint8)
    write_volume(Volume(volume, grid), folder / "sample_000_ct.nii.gz")
    write_labels(LabelMap(labels, grid), folder / "sample_000_labels.nii.gz")
    return sorted(folder.iterdir())


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(made_service(tmp_path, run_timeout=0.1)) as client:
        yield client


@pytest.mark.parametrize("body", DOCUMENTED)
def test_documented_requests_become_jobs(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/v1/maisi/run", json=body).status_code == 504  # nobody carries it out here
    (job,) = client.get("/v1/jobs").json()["jobs"]
    assert (job["kind"], job["request"]["count"], job["state"]) == ("generate", body["num_output_samples"], "cancelled")
    assert set(job["request"]["size"]) <= {64, 80, 96, 112, 128, 144}


def test_the_answer_is_a_zip_of_images_and_masks_on_the_grid_that_was_asked_for(tmp_path: Path) -> None:
    service = made_service(tmp_path, run_timeout=200)
    body = {**DOCUMENTED[0], "output_size": [256, 256, 128], "spacing": [1.5, 1.5, 2.0], "label_output_ext": ".nii"}
    with made(service.jobs), client_of(service) as client:
        answer = client.post("/v1/maisi/run", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["sample_000_image.nii.gz", "sample_000_label.nii"]
        archive.extractall(tmp_path)
    image, label = (nib.load(tmp_path / name) for name in ("sample_000_image.nii.gz", "sample_000_label.nii"))
    assert image.shape == label.shape == (256, 256, 128)
    assert image.header.get_zooms() == pytest.approx((1.5, 1.5, 2.0))
    middle = np.asarray(image.dataobj)[128, 128, 64], np.asarray(label.dataobj)[128, 128, 64]
    assert middle == (40, 200)


@pytest.mark.filterwarnings("ignore::UserWarning:highdicom.*")
@pytest.mark.parametrize(
    ("endings", "names"),
    [
        ((".nrrd", ".nrrd"), ("sample_000_image.nrrd", "sample_000_label.nrrd")),
        ((".nii", ".nrrd"), ("sample_000_image.nii", "sample_000_label.nrrd")),
        ((".dcm", ".dcm"), ("sample_000_image", "sample_000_label.dcm")),
        ((".dcm", ".nii.gz"), ("sample_000_image", "sample_000_label.nii.gz")),
    ],
)
def test_the_answer_has_the_endings_that_were_asked_for(
    tmp_path: Path, endings: tuple[str, str], names: tuple[str, str]
) -> None:
    service = made_service(tmp_path, run_timeout=200)
    body = {**DOCUMENTED[0], "output_size": [128, 128, 128], "spacing": [3.0, 3.0, 3.0]}
    body |= {"image_output_ext": endings[0], "label_output_ext": endings[1]}
    with made(service.jobs), client_of(service) as client:
        answer = client.post("/v1/maisi/run", json=body)
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == set(names)
        archive.extractall(tmp_path / "out")
    volume, _ = open_volume(tmp_path / "out" / names[0], ReadOptions(trust_hu=True))
    labels, _ = open_labels(tmp_path / "out" / names[1])
    assert volume.grid.shape == labels.grid.shape == (128, 128, 128)
    assert np.allclose(volume.grid.spacing, (3.0, 3.0, 3.0))
    inside, outside = (64, 64, 1), (1, 64, 64)
    assert (volume.array[inside], labels.array[inside]) == (40, 200)
    assert (volume.array[outside], labels.array[outside]) == (-1000, 0)


def test_results_are_written_below_the_folder_of_outputs_only(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    service = made_service(tmp_path, run_timeout=200, outputs=tmp_path / "out")
    with made(service.jobs), client_of(service) as client:
        refused = client.post("/v1/maisi/run", json={**DOCUMENTED[0], "local_working_dir": "../else"})
        told = client.post(
            "/v1/maisi/run", json={**DOCUMENTED[0], "output_size": [256, 256, 128], "local_working_dir": "a"}
        )
    assert (refused.status_code, told.json()["status"]) == (422, "success")
    assert {path.name for path in (tmp_path / "out" / "a").iterdir()} == set(told.json()["files"])


def test_a_job_that_fails_is_told(tmp_path: Path) -> None:
    service = made_service(tmp_path, run_timeout=60)
    with made(service.jobs, "failed"), client_of(service) as client:
        answer = client.post("/v1/maisi/run", json=DOCUMENTED[0])
    assert answer.status_code == 503
    assert answer.json()["detail"].endswith("was failed")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_output_samples": 0}, "greater than or equal to 1"),
        ({"num_output_samples": None}, "'num_output_samples' is missing"),
        ({"body_region": ["torso"]}, "body_region.0: 'torso' is not accepted"),
        ({"body_region": ["head", "lower"]}, "accepted: one region"),
        ({"output_size": [256, 384, 256]}, "x equal to y"),
        ({"output_size": [100, 100, 100]}, "output_size.0: 100 is not accepted"),
        ({"spacing": [0.4, 1, 1]}, "spacing.0"),
        ({"anatomy_list": ["livr"]}, "did you mean 'liver'?"),
        ({"controllable_anatomy_size": [["liver", 2]]}, "accepted: 0 to 1, or -1 to remove"),
        ({"controllable_anatomy_size": [["spleen", 0.5]]}, "is not accepted"),
        ({"controllable_anatomy_size": [["liver", 0.5]] * 11}, "at most 10"),
        ({"local_working_dir": "/tmp"}, "accepted: a folder below that of --outputs"),
        ({"pre_signed_url": "https://bucket.example.com/x"}, "this service sends nothing elsewhere"),
        ({"image_output_ext": ".png"}, "image_output_ext"),
        ({"label_output_ext": ".dcm"}, "accepted: image_output_ext .dcm too"),
        ({"bodyregion": []}, "did you mean 'body_region'?"),
    ],
)
def test_what_is_out_of_range_is_refused(client: TestClient, change: dict[str, Any], told: str) -> None:
    answer = client.post("/v1/maisi/run", json={**DOCUMENTED[0], **change})
    assert (answer.status_code, told in answer.json()["detail"]) == (422, True), answer.json()


def test_health_licence_and_labels_are_told(client: TestClient) -> None:
    assert client.get("/v1/health/live").json() == {"status": "live"}
    assert client.get("/v1/health/ready").status_code == 503
    assert "CC BY" in client.get("/v1/license").text
    assert client.get("/v1/maisi/info").json()["labels"]["liver"] == 1


def test_the_field_of_view_is_kept_within_the_limits_of_a_bundle() -> None:
    size, spacing = grid_within((512, 512, 768), (0.75, 0.75, 0.75), LIMITS)
    assert (size, spacing) == ((128, 128, 144), (3.0, 3.0, 4.0))
    assert grid_within((128, 128, 128), (3.0, 3.0, 3.0), LIMITS) == ((128, 128, 128), (3.0, 3.0, 3.0))


@pytest.mark.parametrize(
    "url",
    [
        "http://bucket.example.com/x",
        "https://other.example.com/x",
        "https://bucket.example.com:8443/x",
        "https://me@bucket.example.com/x",
        "https://bucket.example.com.evil.org/x",
        "https://bucket.example.com/ x",
        "https://[::1/x",
        "file:///etc/passwd",
    ],
)
def test_results_go_to_hosts_that_are_allowed_only(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="accepted: an https URL of a host that"):
        check_target(url, ["bucket.example.com"])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1"])
def test_private_addresses_are_refused(host: str) -> None:
    with pytest.raises(InvalidRequestError, match="private network"):
        public_address(host)
