"""Results sent by PUT: to the address that was checked, over TLS with the certificate of the host."""

import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maisi.errors import RunError
from maisi.service import sending
from maisi.service.sending import Target, send

HOST = "bucket.example.com"
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7Yx745oYHvqezrgT
6MX4gXqkcfg52bH+mePgCUubZmqhRANCAAS66FWGRC/XwCqUMvZHB3OGmntibb/3
x2uAIIFJ+RW1xCH721xg4aqasmQ2ZmDcc4xXeQV0NNTntT0p3Z9m0EtL
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBrzCCAVagAwIBAgIUX9V58p30SYi1AHlfHLk51KLvgjEwCgYIKoZIzj0EAwIw
HTEbMBkGA1UEAwwSYnVja2V0LmV4YW1wbGUuY29tMCAXDTI2MTEyOTE0MzQwOVoY
DzIxMjYxMTA1MTQzNDA5WjAdMRswGQYDVQQDDBJidWNrZXQuZXhhbXBsZS5jb20w
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAS66FWGRC/XwCqUMvZHB3OGmntibb/3
x2uAIIFJ+RW1xCH721xg4aqasmQ2ZmDcc4xXeQV0NNTntT0p3Z9m0EtLo3IwcDAd
BgNVHQ4EFgQU4nWelS/1cOLOUMAH3mSaEBh7CREwHwYDVR0jBBgwFoAU4nWelS/1
cOLOUMAH3mSaEBh7CREwDwYDVR0TAQH/BAUwAwEB/zAdBgNVHREEFjAUghJidWNr
ZXQuZXhhbXBsZS5jb20wCgYIKoZIzj0EAwIDRwAwRAIgGqZmN0umZD9IrZEffyOD
wApAiu2pmepy+pL8cccPHecCICnkcgJMMVhkX1TDiiEN5Cc3HEo9+/sBueN6HfNa
rYTY
-----END CERTIFICATE-----
"""
"""Key and certificate of a host that there is not, for this test alone."""


class Bucket(http.server.BaseHTTPRequestHandler):
    """Takes one PUT and keeps it; another path is refused, or sends elsewhere."""

    taken: dict[str, bytes]

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken[f"{self.headers['Host']} {self.path}"] = content
        self.send_response({"/refused": 403, "/moved": 307}.get(self.path, 200))
        self.send_header("Location", "https://elsewhere.example.com/")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What a bucket on this machine takes in."""
    (tmp_path / "pem").write_text(CERTIFICATE)
    handler = type("Taking", (Bucket,), {"taken": {}})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "pem"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        monkeypatch.setattr(sending, "HTTPS", server.server_port)
        monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler.taken  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def test_a_file_is_sent_to_the_address_that_was_checked(taken: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"results")
    send(tmp_path / "a.zip", Target(HOST, "127.0.0.1", "/out.zip?sig=1"))
    ((asked, content),) = taken.items()
    assert asked.startswith(HOST)
    assert asked.endswith(" /out.zip?sig=1")
    assert content == b"results"


@pytest.mark.parametrize(("path", "told"), [("/refused", "answered 403"), ("/moved", "answered 307")])
def test_a_refusal_is_told_and_no_redirection_followed(
    taken: dict[str, bytes], tmp_path: Path, path: str, told: str
) -> None:
    (tmp_path / "a.zip").write_bytes(b"results")
    with pytest.raises(RunError, match=told):
        send(tmp_path / "a.zip", Target(HOST, "127.0.0.1", path))
    assert len(taken) == 1


def test_a_host_with_another_certificate_gets_nothing(taken: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"results")
    with pytest.raises(RunError, match="could not be sent to other"):
        send(tmp_path / "a.zip", Target("other.example.com", "127.0.0.1", "/"))
    assert taken == {}
