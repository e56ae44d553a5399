"""A `maisi serve` of its own process, and a client of it."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENDED = ("done", "failed", "cancelled")
SMALL: dict[str, Any] = {
    "region": "abdomen", "phantom": True, "size": [48, 48, 48], "spacing": [5, 5, 5], "steps": 2, "seed": 7,
}  # fmt: skip
LONG: dict[str, Any] = {**SMALL, "size": [96, 96, 96], "steps": 1000}


@dataclass
class Running:
    """A service at a port that stays the same over its restarts."""

    data: Path
    token: str | None = None
    options: tuple[str, ...] = ()
    port: int = field(default_factory=lambda: free_port())
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> "Running":
        """Start it and wait until it answers."""
        options = ["--port", str(self.port), "--data", str(self.data), *self.options]
        options += ["--token", self.token] if self.token else []
        log = self.data.with_suffix(".log")
        with log.open("a") as talk:
            command = [sys.executable, "-m", "maisi", "serve", *options]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=talk, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("http"), log.read_text()
        return self

    def stop(self) -> None:
        """End it as a terminal does; kill it where a busy machine takes long over that."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What the service answers, as JSON."""
        text = self.bytes_of(method, path, None if body is None else json.dumps(body).encode())
        return json.loads(text) if text else None

    def bytes_of(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """What the service answers, as it is."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.url}v1/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text: bytes = answer.read()
        return text

    def submit(self, kind: str, request: dict[str, Any]) -> str:
        id: str = self.ask("POST", "jobs", {"kind": kind, "request": request})["id"]
        return id

    def made(self, kind: str, request: dict[str, Any], seconds: float = 300) -> str:
        """The id of a job that is done."""
        id = self.submit(kind, request)
        job = self.until(id, ENDED, seconds)
        assert job["state"] == "done", job
        return id

    def until(self, id: str, states: tuple[str, ...], seconds: float = 300) -> dict[str, Any]:
        """A job, once it is in one of some states."""
        end = time.monotonic() + seconds
        while True:
            job: dict[str, Any] = self.ask("GET", f"jobs/{id}")
            if job["state"] in states:
                return job
            assert time.monotonic() < end, job
            time.sleep(0.2)

    def newest(self) -> dict[str, Any]:
        """The job that was asked for last."""
        job: dict[str, Any] = self.ask("GET", "jobs?limit=1")["jobs"][0]
        return job

    def cancel_all(self) -> None:
        """No job waits or runs any more."""
        for job in self.ask("GET", "jobs")["jobs"]:
            if job["state"] not in ENDED:
                self.ask("DELETE", f"jobs/{job['id']}")
                self.until(job["id"], ENDED)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
