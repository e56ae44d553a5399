"""`maisi serve` as a process: where it listens, what it refuses, a job from the request to the archive."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import Maisi

TOKEN = "0123456789abcdef0123"
LONGEST_S = 400.0


@contextmanager
def serving(tiny_bundle: Path, tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A service of the tiny bundle, with a token: its address and its process, which ends well."""
    (tmp_path / "token").write_text(TOKEN)
    options = ["--port", "0", "--data", "data", "--bundle", str(tiny_bundle), "--token-file", "token", "--workers", "1"]
    command = [sys.executable, "-m", "maisi", "serve", *options]
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONGEST_S) == 143  # as every command that is ended by a SIGTERM


@pytest.fixture
def service(tiny_bundle: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a service."""
    with serving(tiny_bundle, tmp_path) as (address, _):
        yield address


def asked(address: str, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, bytes]:
    """The status and the body of an answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=LONGEST_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def waited(address: str, path: str) -> dict[str, Any]:
    """A job once it has ended."""
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        job: dict[str, Any] = json.loads(asked(address, path)[1])
        if job["state"] in ("done", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise AssertionError(f"{path} did not end in {LONGEST_S} s")


def test_a_job_is_asked_for_carried_out_and_fetched(service: str) -> None:
    assert asked(service, "/v1/jobs", token="wrong" * 4)[0] == 401
    request = {"region": "abdomen", "size": [24, 24, 24], "spacing": [14, 14, 14], "steps": 1, "phantom": True}
    code, body = asked(service, "/v1/jobs", {"kind": "generate", "request": request})
    assert code == 202, body
    place = f"/v1/jobs/{json.loads(body)['id']}"
    job = waited(service, place)
    assert job["state"] == "done", job["problem"]
    assert job["request"]["bundle"] == "tiny"
    with zipfile.ZipFile(io.BytesIO(asked(service, f"{place}/archive")[1])) as archive:
        assert sorted(archive.namelist()) == sorted(job["artifacts"])
        assert {"sample_000_ct.nii.gz", "sample_000_labels.nii.gz", "run.json"} <= set(job["artifacts"])
        assert archive.testzip() is None
    again = {"source": f"job:{job['id']}/sample_000_ct.nii.gz"}
    code, body = asked(service, "/v1/jobs", {"kind": "encode", "request": {**again, "reading": {"trust_hu": True}}})
    second = waited(service, f"/v1/jobs/{json.loads(body)['id']}")
    assert (second["state"], second["request"]["source"]) == ("done", again["source"]), second["problem"]
    assert asked(service, "/v1/health/ready")[0] == 200


def test_a_request_that_only_the_worker_can_refuse_fails_with_the_words_of_the_command_line(service: str) -> None:
    request = {"size": [25, 24, 24], "spacing": [14, 14, 14], "phantom": True}
    code, body = asked(service, "/v1/jobs", {"kind": "generate", "request": request})
    assert code == 202
    job = waited(service, f"/v1/jobs/{json.loads(body)['id']}")
    assert (job["state"], job["problem"]["status"]) == ("failed", 422)
    assert "multiple of 4" in job["problem"]["detail"]


def sent(address: str, method: str, path: str, body: Any = None) -> HTTPConnection:
    """A connection over which a request was sent whose answer nobody has read yet."""
    connection = HTTPConnection(address.removeprefix("http://"), timeout=LONGEST_S)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    connection.request(method, path, json.dumps(body), headers)
    return connection


def test_a_service_that_ends_leaves_no_process_and_lets_no_client_wait(tiny_bundle: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle, tmp_path) as (address, process):
        assert asked(address, "/v1/plan")[0] == 200
        (planner,) = (each for each in process.children() if "maisi.service.planning" in each.cmdline())
        planner.suspend()  # its next question takes for ever
        plan = sent(address, "GET", "/v1/plan")
        run = sent(address, "POST", "/v1/maisi/run", {"num_output_samples": 10**6, "body_region": []})
        while not (jobs := json.loads(asked(address, "/v1/jobs")[1])["jobs"]):
            time.sleep(0.1)
        events = sent(address, "GET", f"/v1/jobs/{jobs[0]['id']}/events")
        told = events.getresponse()
        assert told.readline() == b": watching\n"
        children = process.children(recursive=True)
        process.terminate()
        for waiting in (plan, run):
            answer = waiting.getresponse()
            assert (answer.status, json.load(answer)["title"]) == (503, "The service is ending")
            waiting.close()
        told.read()  # comes to its end
        events.close()
    assert psutil.wait_procs(children, timeout=LONGEST_S)[1] == []


def test_a_port_in_use_is_one_clear_error(maisi: Maisi, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = maisi("serve", "--port", port, "--data", tmp_path / "data")
    assert answer.code == 2
    assert answer.err == f"error: port {port} is in use; accepted: --port with a free one, or 0 to take any\n"
    assert not (tmp_path / "data").exists()


def test_other_machines_are_let_in_with_a_token_only(maisi: Maisi, tmp_path: Path) -> None:
    answer = maisi("serve", "--host", "0.0.0.0", "--data", tmp_path / "data")
    assert answer.code == 2
    assert "accepted: --token-file FILE, or --host 127.0.0.1" in answer.err
