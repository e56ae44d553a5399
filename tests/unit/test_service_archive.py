"""Results fetched from the service in every format: what comes back is read, and is what was made."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from fastapi.testclient import TestClient
from made_clinical import made_labels, made_provenance, made_volume
from made_service import client_of, made_service

from maisi.data.door import open_labels, open_volume
from maisi.errors import StoppedError
from maisi.service.archive import FORMATS, write_zip
from maisi.service.service import Service
from maisi.space.files import write_labels, write_volume
from maisi.space.origin import read_provenance
from maisi.space.reading import ReadOptions

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:highdicom.*")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A service without workers."""
    return made_service(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with client_of(service) as client:
        yield client


@pytest.fixture(scope="module")
def place(service: Service) -> str:
    """The place of a job that is done: two samples, each a CT with labels."""
    store, job = service.jobs, service.jobs.submit("generate", {"count": 2})
    store.claim("worker")
    folder = store.folder_of(job.id)
    folder.mkdir()
    for stem in ("sample_000", "sample_001"):
        write_volume(made_volume(), folder / f"{stem}_ct.nii.gz", made_provenance(f"{stem}_ct.nii.gz"))
        write_labels(made_labels(), folder / f"{stem}_labels.nii.gz", made_provenance(f"{stem}_labels.nii.gz"))
    (folder / "run.json").write_text("{}")
    store.finish(job.id, "worker", "done", files=sorted(folder.iterdir()))
    return f"/v1/jobs/{job.id}"


def fetched(client: TestClient, place: str, format: str, folder: Path) -> list[str]:
    """The names of all files of an archive, which is unpacked to a folder."""
    answer = client.get(f"{place}/archive", params={"format": format})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip"), answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
        return archive.namelist()


def check_volume(path: Path) -> None:
    """The CT in a file or folder is the one that was made, and says so."""
    volume, _ = open_volume(path, ReadOptions(trust_hu=True))
    assert np.array_equal(volume.array, made_volume().array)
    assert np.allclose(volume.grid.affine, made_volume().grid.affine, atol=1e-3)
    assert read_provenance(path).request == made_provenance().request


def check_labels(path: Path) -> None:
    """The label map in a file, likewise."""
    labels, _ = open_labels(path)
    assert np.array_equal(labels.array, made_labels().array)
    assert np.allclose(labels.grid.affine, made_labels().grid.affine, atol=1e-3)
    assert read_provenance(path).request == made_provenance().request


FILES = {  # what of a sample is in the archive of each format: its volume and its labels
    "zip": ("{}_ct.nii.gz", "{}_labels.nii.gz"),
    "dicom": ("{}/ct", "{}/seg.dcm"),
    "seg": ("{}/ct", "{}/seg.dcm"),
    "rtstruct": ("{}/ct", None),  # contours are read back below
    "nrrd": ("{}_ct.nrrd", "{}_labels.seg.nrrd"),
    "mha": ("{}_ct.mha", "{}_labels.mha"),
    "seg.nrrd": (None, "{}_labels.seg.nrrd"),
}


@pytest.mark.parametrize("format", FORMATS)
def test_an_archive_of_every_format_holds_what_was_made(
    client: TestClient, place: str, tmp_path: Path, format: str
) -> None:
    names = fetched(client, place, format, tmp_path)
    for stem in ("sample_000", "sample_001"):
        volume, labels = FILES[format]
        if volume is not None:
            check_volume(tmp_path / volume.format(stem))
        if labels is not None:
            check_labels(tmp_path / labels.format(stem))
    assert ("run.json" in names) == (format == "zip")
    assert not list((client.app.state.service.settings.data / "archives").iterdir())  # type: ignore[attr-defined]


def test_contours_of_an_archive_lie_on_its_slices(client: TestClient, place: str, tmp_path: Path) -> None:
    fetched(client, place, "rtstruct", tmp_path)
    contours = pydicom.dcmread(tmp_path / "sample_000" / "rtstruct.dcm")
    slices = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "sample_000" / "ct").iterdir()}
    assert {each.ROIName for each in contours.StructureSetROISequence} >= {"liver", "hepatic tumor"}
    named = {
        image.ReferencedSOPInstanceUID
        for roi in contours.ROIContourSequence
        for contour in roi.ContourSequence
        for image in contour.ContourImageSequence
    }
    assert named <= slices


def test_an_independent_reader_reads_the_same(client: TestClient, place: str, tmp_path: Path) -> None:
    fetched(client, place, "mha", tmp_path)
    fetched(client, place, "nrrd", tmp_path)
    values = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"sample_000_ct.{end}"))) for end in ("mha", "nrrd")]
    assert np.array_equal(values[0], values[1])
    assert sorted(np.unique(values[0])) == sorted(np.unique(made_volume().array))


def test_formats_of_nobody_and_jobs_without_volumes_are_told(client: TestClient, place: str, service: Service) -> None:
    unknown = client.get(f"{place}/archive?format=png")
    assert (unknown.status_code, unknown.json()["errors"][0]["where"]) == (422, "format")
    job = service.jobs.submit("evaluate-images", {})
    waiting = client.get(f"/v1/jobs/{job.id}/archive")
    assert (waiting.status_code, waiting.json()["accepted"]) == (409, "a job with artifacts")
    service.jobs.claim("worker")
    folder = service.jobs.folder_of(job.id)
    folder.mkdir()
    (folder / "report.json").write_text("{}")
    service.jobs.finish(job.id, "worker", "done", files=[folder / "report.json"])
    assert client.get(f"/v1/jobs/{job.id}/archive").status_code == 200
    nothing = client.get(f"/v1/jobs/{job.id}/archive?format=dicom")
    assert (nothing.status_code, "no case in" in nothing.json()["detail"]) == (422, True)
    assert str(folder.parent) not in nothing.text


def test_what_a_killed_service_has_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maisi.service.supervisor.Supervisor._start", lambda *arguments: None)
    monkeypatch.setattr("maisi.service.supervisor.Supervisor._look", lambda *arguments: None)
    service = made_service(tmp_path)
    left = [tmp_path / "data" / "archives" / "0123", tmp_path / "data" / "uploads" / ".new-0123"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "half.zip").touch()
    with service.working():
        assert not any(folder.exists() for folder in left)


def test_an_archive_goes_whatever_is_asked_of_it(client: TestClient, place: str, service: Service) -> None:
    for asked in ("bytes=0-9", "bytes=999999999-", "bytes=x"):
        client.get(f"{place}/archive", headers={"Range": asked})
        assert list((service.settings.data / "archives").iterdir()) == []


def test_an_archive_that_is_packed_while_the_service_ends_is_not_waited_for(tmp_path: Path) -> None:
    service = made_service(tmp_path)
    (tmp_path / "large").write_bytes(bytes(5 << 20))
    service.ending.set()
    with pytest.raises(StoppedError):
        write_zip(tmp_path / "x.zip", [("large", tmp_path / "large")], service.ending)
    assert not (tmp_path / "x.zip").exists()
