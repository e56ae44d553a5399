"""`maisi send`: what a STOW-RS server receives, and what is told when it takes less."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import pydicom
import pytest
from made_clinical import made_provenance, made_volume

from maisi.cli import main
from maisi.errors import InvalidRequestError, RunError
from maisi.space.dicom import stow
from maisi.space.dicom.identity import Study
from maisi.space.dicom.write_ct import write_ct

NUM_SLICES = 12


@dataclass
class Received:
    """What came in, and how the server is to answer."""

    url: str = ""
    status: int = 200
    refuses: str = ""  # a SOPInstanceUID
    answer: bytes | None = None
    stored: dict[str, bytes] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)


class Receiver(BaseHTTPRequestHandler):
    """PS3.18 10.5: takes multipart/related of application/dicom at /dicom-web/studies."""

    received: Received

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.headers.append(dict(self.headers))
        boundary = re.search(r'type="application/dicom"; boundary=(\w+)$', self.headers["Content-Type"])
        assert boundary is not None
        parts = body.split(b"--" + boundary[1].encode())
        assert parts[-1].strip() == b"--"
        stored, failed = [], []
        for part in parts[1:-1]:
            content = part.partition(b"\r\n\r\n")[2][:-2]
            uid = pydicom.dcmread(BytesIO(content)).SOPInstanceUID
            if uid == self.received.refuses:
                failed.append({"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [272]}})
            else:
                stored.append({"00081155": {"vr": "UI", "Value": [uid]}})
                self.received.stored[uid] = content
        told = {"00081199": {"vr": "SQ", "Value": stored}}
        told |= {"00081198": {"vr": "SQ", "Value": failed}} if failed else {}
        answer = json.dumps(told).encode() if self.received.answer is None else self.received.answer
        self.send_response(self.received.status)
        if self.received.status == 307:
            self.send_header("Location", self.received.url + "/elsewhere")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def received() -> Iterator[Received]:
    told = Received()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Receiver,), {"received": told}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_ct(made_volume(), tmp_path / "ct", Study.of(made_volume(), "a", made_provenance()))
    (tmp_path / "ct" / "note.txt").write_text("a companion")
    return tmp_path / "ct"


def test_every_file_arrives_byte_by_byte(
    received: Received, series: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stow, "MOST_BYTES", 12_000)  # several requests
    assert main(["send", str(series), "--to", received.url, "--token", "secret", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored"] == NUM_SLICES
    assert len(received.headers) > 1
    assert {headers["Authorization"] for headers in received.headers} == {"Bearer secret"}
    assert sorted(received.stored.values()) == sorted(path.read_bytes() for path in series.glob("*.dcm"))


def test_a_file_that_the_server_does_not_take_is_named(
    received: Received, series: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    received.refuses = str(pydicom.dcmread(series / "0003.dcm").SOPInstanceUID)
    for status in (202, 409):
        received.status = status
        assert main(["send", str(series), "--to", received.url]) == 1
        told = capsys.readouterr().err
        assert "11 of 12 files stored" in told
        assert "0003.dcm was not stored (reason 272)" in told


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, b"who are you?", "answers 401 Unauthorized: who are you"),
        (500, b"", "answers 500"),
        (307, b"", "answers 307"),
        (200, b"<html>", "not that of STOW-RS: <html>"),
    ],
)
def test_an_answer_that_is_no_success_is_told(
    status: int, answer: bytes, message: str, received: Received, series: Path
) -> None:
    received.status, received.answer = status, answer
    with pytest.raises(RunError, match=message):
        stow.store(stow.dicom_files([series]), stow.Server(received.url))


def test_a_server_that_is_not_there_is_told(series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", str(series), "--to", "http://127.0.0.1:9/dicom-web"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "token", "message"),
    [
        ("ftp://127.0.0.1/x", None, "no address of a DICOMweb server"),
        ("127.0.0.1:8042", None, "no address of a DICOMweb server"),
        ("http://[::1/x", None, "is no address"),
        ("http://127.0.0.1/p\u00e4th", None, "not written as addresses are sent"),
        ("http://pacs.example/dicom-web", "secret", "a token sent over http"),
        ("https://me:secret@pacs.example/", None, "accepted: --token"),
        ("https://pacs.example/", "a\r\nX: y", "characters that no header may hold"),
    ],
)
def test_an_address_that_gives_something_away_is_refused(url: str, token: str | None, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        stow.Server(url, token)


def test_what_is_no_dicom_is_refused(series: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in ((series / "note.txt", "no DICOM file"), (tmp_path / "empty", "without DICOM files")):
        with pytest.raises(InvalidRequestError, match=message):
            stow.dicom_files([path])
    (tmp_path / "copy.dcm").write_bytes((series / "0001.dcm").read_bytes())
    with pytest.raises(InvalidRequestError, match="of one SOPInstanceUID"):
        stow.dicom_files([tmp_path])
    assert len(stow.dicom_files([series, series / "0001.dcm"])) == NUM_SLICES
