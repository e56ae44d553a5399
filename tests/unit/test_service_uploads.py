"""Uploads: what they are told to be, and bombs, lies and outsiders that are refused."""

import errno
import gzip
import io
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import nibabel as nib
import numpy as np
import pytest
from dicom_slices import SLICES, write_slice
from fastapi.testclient import TestClient
from made_scans import AFFINE, SHAPE, trunk
from made_service import OCTETS, client_of, made_service

from maisi.anatomy.vocabulary import load_vocabulary
from maisi.service.app import create_app
from maisi.service.unpacking import plain_name


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    limits = {"upload_bytes": 400_000, "unpacked_bytes": 2_000_000, "upload_voxels": 100_000, "upload_files": 20}
    with client_of(made_service(tmp_path, **limits)) as client:
        yield client


def nifti(array: np.ndarray, ending: str = ".nii.gz") -> bytes:
    content: bytes = nib.Nifti1Image(array, AFFINE).to_bytes()
    return gzip.compress(content) if ending == ".nii.gz" else content


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def series(folder: Path, *uids: str) -> dict[str, bytes]:
    """The files of CT series, as a scanner exports them."""
    files = {}
    for uid in uids:
        for k in range(SLICES):
            write_slice(folder / "slice.dcm", k, uid)
            files[f"study/{uid}/{k:03}"] = (folder / "slice.dcm").read_bytes()
    return files


def sent(client: TestClient, name: str, content: bytes, **more: str) -> tuple[int, dict]:
    answer = client.post("/v1/uploads", params={"name": name, **more}, content=content, headers=OCTETS)
    return answer.status_code, answer.json()


def test_a_ct_is_told_and_shown_and_removed(client: TestClient) -> None:
    code, told = sent(client, "Some CT.nii.gz", nifti(trunk()))
    assert code == 201, told
    assert (told["name"], told["kind"], tuple(told["shape"])) == ("Some_CT.nii.gz", "image", SHAPE)
    assert told["spacing_mm"] == [10, 10, 10]
    place = f"/v1/uploads/{told['id']}"
    assert client.get(place).json() == told
    shown = nib.Nifti1Image.from_bytes(gzip.decompress(client.get(f"{place}/volume.nii.gz").content))
    assert np.array_equal(np.asarray(shown.dataobj), trunk())
    assert [client.delete(place).status_code, client.get(place).status_code] == [204, 404]


def test_a_label_map_is_known_by_its_ids_and_can_be_asked_to_be_followed(client: TestClient) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[8:28, 8:24] = load_vocabulary().id("body")
    array[10:16, 10:16, 5:10] = load_vocabulary().id("liver")
    code, told = sent(client, "labels.nii.gz", nifti(array))
    assert (code, told["kind"]) == (201, "labels")
    assert {"name": "liver", "ml": 180.0} in [{k: s[k] for k in ("name", "ml")} for s in told["structures"]]
    assert told["region"] == {"top": "abdomen", "bottom": "abdomen"}
    named = f"upload:{told['id']}"
    job = client.post("/v1/jobs", json={"kind": "generate", "request": {"labels": named}}).json()
    assert job["request"]["labels"] == named


def test_a_range_of_a_volume_is_sent_and_what_is_known_is_not_sent_again(client: TestClient) -> None:
    _, told = sent(client, "ct.nii", nifti(trunk(), ".nii"))
    place = f"/v1/uploads/{told['id']}/volume.nii.gz"
    whole = client.get(place)
    part = client.get(place, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert client.get(place, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    for asked, code in (("bytes=99999999-", 416), ("rows=1-2", 400)):
        refused = client.get(place, headers={"Range": asked})
        assert (refused.status_code, refused.headers["content-type"]) == (code, "application/problem+json")
        assert refused.json()["accepted"] == f"bytes=0-{len(whole.content) - 1}"
    assert refused.json()["detail"].startswith(f"range 'rows=1-2' of {len(whole.content)} bytes")
    none = client.get(place, headers={"Range": "bytes=99999999-"})
    assert none.headers["content-range"] == f"bytes */{len(whole.content)}"


def test_a_zip_of_a_dicom_series_is_read(client: TestClient, tmp_path: Path) -> None:
    code, told = sent(client, "study.zip", zipped(series(tmp_path, "1.2.3")))
    assert (code, told.get("kind"), told.get("shape")) == (201, "image", [12, 10, 8])


def test_lists_of_files_that_come_with_a_series_are_not_kept(client: TestClient, tmp_path: Path) -> None:
    """A manifest could name any file of the server, which a job would then read."""
    lists = {
        f"study/{name}": b'{"id": "x", "image": "/etc/scan.nii"}\n' for name in ("manifest.jsonl", "manifest.json")
    }
    code, told = sent(client, "study.zip", zipped(series(tmp_path, "1.2.3") | lists | {"manifest.jsonl": b"{}"}))
    assert code == 201, told
    kept = sorted(
        path.name for path in (tmp_path / "data" / "uploads" / told["id"] / "study").rglob("*") if path.is_file()
    )
    assert kept == [f"{k:03}" for k in range(SLICES)]


def test_slices_without_a_preamble_are_kept_and_a_zip_without_dicom_is_refused(
    client: TestClient, tmp_path: Path
) -> None:
    bare = {name: content[132:] for name, content in series(tmp_path, "1.2.3").items()}
    code, told = sent(client, "study.zip", zipped(bare))
    assert code == 201, told
    folder = tmp_path / "data" / "uploads" / told["id"] / "study"
    assert len([path for path in folder.rglob("*") if path.is_file()]) == SLICES
    masks = zipped({"segmentations/liver.nii.gz": nifti((trunk() > 0).astype(np.uint8))})
    code, told = sent(client, "masks.zip", masks, kind="labels")
    assert (code, "accepted:" in told["detail"]) == (422, True)


def test_of_two_series_in_a_zip_one_is_to_be_named(client: TestClient, tmp_path: Path) -> None:
    content = zipped(series(tmp_path, "1.2.3", "1.2.4"))
    code, told = sent(client, "study.zip", content)
    assert code == 422
    assert "1.2.3" in told["detail"]
    assert "1.2.4" in told["detail"]
    code, told = sent(client, "study.zip", content, series="1.2.4")
    assert (code, told["shape"]) == (201, [12, 10, 8])
    assert (
        client.post("/v1/jobs", json={"kind": "encode", "request": {"source": f"upload:{told['id']}"}}).status_code
        == 202
    )


@pytest.mark.parametrize(
    ("name", "content", "status", "told"),
    [
        ("ct.exe", b"x", 422, "accepted: names that end in .nii.gz"),
        ("ct.nii.gz", b"", 422, "is empty"),
        ("ct.nii.gz", nifti(trunk())[:5000], 422, "truncated"),
        ("ct.nii", b"no scan", 422, "ct.nii is not a volume"),
        ("ct.nii", b"x" * 400_001, 413, "accepted: up to 400000"),
        ("ct.nii.gz", gzip.compress(bytes(50_000_000), 9), 413, "unpacks to more than 2000000 bytes"),
        ("ct.nii.gz", nifti(np.zeros((64, 64, 64), np.int8)), 413, "has 262144 voxels; accepted: up to 100000"),
        ("a.nrrd", b"NRRD0005\ntype: short\ndimension: 3\nsizes: 4096 4096 4096\n\n", 413, "has 68719476736 voxels"),
        ("a.mha", b"ObjectType = Image\nDimSize = 4096 4096 4096\nElementDataFile = LOCAL\n", 413, "68719476736"),
        ("a.nrrd", b"NRRD0005\ntype: short\ndata file: /etc/passwd\n\n", 422, "accepted:"),
        ("a.zip", b"PK no zip", 422, "is a broken zip"),
        ("a.zip", zipped({}), 422, "is empty"),
        ("a.zip", zipped({"../../evil": b"x"}), 422, "'../../evil', which lies outside of it"),
        ("a.zip", zipped({"/etc/evil": b"x"}), 422, "lies outside of it"),
        ("a.zip", zipped({"..\\evil": b"x"}), 422, "lies outside of it"),
        ("a.zip", zipped({"bomb.dcm": bytes(50_000_000)}), 413, "unpacks to more than"),
        ("a.zip", zipped({str(k): b"x" for k in range(21)}), 413, "holds 21 files; accepted: up to 20"),
        ("a.zip", zipped({"readme.txt": b"x"}), 422, "accepted:"),
        ("a.zip", zipped({"a/" * 900 + "b.dcm": b"x"}), 422, "holds folders 901 deep; accepted: up to 20"),
        ("a.zip", zipped({"a.dcm": bytes(100_000)})[:150], 422, "is a broken zip"),
    ],
)
def test_what_is_no_scan_is_refused(client: TestClient, name: str, content: bytes, status: int, told: str) -> None:
    code, answer = sent(client, name, content)
    assert (code, told in answer["detail"]) == (status, True), answer
    assert "/data/" not in answer["detail"]


def test_links_in_a_zip_are_refused(client: TestClient) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("slice.dcm")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    code, told = sent(client, "a.zip", buffer.getvalue())
    assert (code, "the link 'slice.dcm'" in told["detail"]) == (422, True)


def test_a_refused_upload_leaves_nothing(client: TestClient, tmp_path: Path) -> None:
    sent(client, "ct.nii", b"no scan")
    assert list((tmp_path / "data" / "uploads").iterdir()) == []


def test_ids_of_no_structure_are_told_and_a_numbering_takes_them(client: TestClient) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[8:28, 8:24] = 250
    code, told = sent(client, "labels.nii.gz", nifti(array), kind="labels")
    assert (code, "250" in told["detail"], "accepted" in told) == (422, True, True), told
    array[8:28, 8:24] = 5
    code, told = sent(client, "labels.nii.gz", nifti(array), kind="labels", numbering="totalsegmentator")
    assert (code, [each["name"] for each in told["structures"]]) == (201, ["liver"]), told
    code, told = sent(client, "labels.nii.gz", nifti(array), numbering="nobody")
    assert (code, "totalsegmentator" in told["detail"]) == (422, True), told


def test_a_client_that_leaves_before_its_body_is_complete_leaves_nothing(tmp_path: Path) -> None:
    app, told = create_app(made_service(tmp_path)), []
    messages = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/octet-stream"), (b"content-length", b"99")]
    scope = {"type": "http", "method": "POST", "path": "/v1/uploads", "query_string": b"name=ct.nii"}
    anyio.run(app, {**scope, "headers": headers}, receive, send)
    assert told[0]["status"] == 400
    assert list((tmp_path / "data" / "uploads").iterdir()) == []


def test_an_upload_needs_its_media_type(client: TestClient) -> None:
    assert client.post("/v1/uploads?name=ct.nii", content=b"x").status_code == 415


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\scans\\ct.nii", "ct.nii"),
        (".hidden", "hidden"),
        ("Ärzte & Co.nii.gz", "Arzte_Co.nii.gz"),
        ("\u202e\0", "file"),
        ("x" * 300 + ".nii", "x" * 96 + ".nii"),
    ],
)
def test_names_are_made_plain(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_uploads_that_nobody_uses_go_and_those_that_a_job_will_read_stay(tmp_path: Path) -> None:
    service = made_service(tmp_path, retention=1e-9)
    with client_of(service) as client:
        ids = [sent(client, "ct.nii.gz", nifti(trunk()))[1]["id"] for _ in range(2)]
        client.post("/v1/jobs", json={"kind": "encode", "request": {"source": f"upload:{ids[0]}"}})
        assert service.expire() == [ids[1]]
        assert client.get(f"/v1/uploads/{ids[0]}").status_code == 200


def test_uploads_take_no_more_room_than_they_may(tmp_path: Path) -> None:
    with client_of(made_service(tmp_path, quota=1000)) as client:
        assert sent(client, "ct.nii.gz", nifti(trunk()))[0] == 201
        code, told = sent(client, "ct.nii.gz", nifti(trunk()))
        assert (code, "accepted: remove some" in told["detail"]) == (507, True)


def test_a_full_disk_is_told(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    code, told = sent(client, "ct.nii", b"x")
    assert (code, told["title"]) == (507, "No room")
    assert told["accepted"] == "remove jobs and uploads, or ask again later"
