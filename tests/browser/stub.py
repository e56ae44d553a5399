"""A service that answers as `maisi serve` does, with files made before: what the page shows without waiting for networks."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from maisi.anatomy.vocabulary import load_vocabulary

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json"}


@dataclass
class Stub:
    """The state of the service, and switches for what can go wrong."""

    pages: Path
    files: Path  # of generate
    changed: Path  # of inpaint
    token: str | None = None
    is_full: bool = False
    problem: dict[str, Any] | None = None
    step_seconds: float = 0.05
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, Path] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def folder(self, job: dict[str, Any]) -> Path:
        return self.changed if job["kind"] == "inpaint" else self.files

    def submit(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append({"kind": kind, "request": request})
        job = {
            "id": f"job{len(self.jobs)}x{time.time_ns() % 10**6}", "kind": kind, "request": request, "state": "queued",
            "created": time.time(), "started": None, "finished": None, "stage": None, "done": 0, "total": 0,
            "samples_done": 0, "seconds_left": None, "problem": None, "artifacts": [], "tries": 1,
        }
        self.jobs[job["id"]] = job
        threading.Thread(target=self.work, args=(job,), daemon=True).start()
        return job

    def work(self, job: dict[str, Any]) -> None:
        for stage, total in (("load", 1), ("labels", 1), ("sample", 10), ("decode", 2), ("check", 1)):
            for done in range(total + 1):
                if job["state"] == "cancelled":
                    return
                left = self.step_seconds * (total - done)
                job.update(state="running", started=job["started"] or time.time(), stage=stage, done=done, total=total, seconds_left=left)
                time.sleep(self.step_seconds)
        job["finished"] = time.time()
        if self.problem:
            job.update(state="failed", problem=self.problem)
        else:
            job.update(state="done", artifacts=sorted(path.name for path in self.folder(job).iterdir()))


def labels() -> list[dict[str, Any]]:
    vocabulary = load_vocabulary()
    return [
        {
            "id": each.id, "name": each.name, "names": list(each.aliases), "group": each.groups[0] if each.groups else None,
            "groups": list(each.groups), "colour": "#{:02x}{:02x}{:02x}".format(*each.colour),
            "tumour": "tumours" in each.groups, "host": [each.host] if each.host else [], "region": each.region,
        }
        for each in vocabulary.structures
        if not each.is_dummy
    ]


MODEL = {
    "name": "ct-small", "default": True, "description": "Small CT bundle for 2 to 5 mm volumes, for trying things out.",
    "networks": ["autoencoder", "unet", "controlnet"], "regions": ["head", "chest", "abdomen", "lower"], "tumours": [],
    "limits": {"min_spacing_mm": [2, 2, 2], "max_spacing_mm": [5, 5, 5], "max_size": [128, 128, 144]}, "licence": "CC BY 4.0",
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] != "v1":
            return self.page(parts)
        if parts[1:] == ["health", "live"]:
            return self.answer({"status": "live"})
        if not self.allowed():
            return None
        match parts[1:]:
            case ["labels"]:
                return self.answer({"labels": labels()})
            case ["models"]:
                return self.answer({"models": [MODEL]})
            case ["jobs"]:
                return self.answer({"jobs": sorted(self.stub.jobs.values(), key=lambda job: -job["created"])})
            case ["jobs", id] if id in self.stub.jobs:
                return self.answer(self.stub.jobs[id])
            case ["jobs", id, "events"]:
                return self.events(self.stub.jobs[id])
            case ["jobs", id, "artifacts"]:
                folder = self.stub.folder(self.stub.jobs[id])
                return self.answer({"artifacts": [{"name": p.name, "bytes": p.stat().st_size, "media_type": ""} for p in sorted(folder.iterdir())]})
            case ["jobs", id, "artifacts", name]:
                return self.file(self.stub.folder(self.stub.jobs[id]) / name)
            case ["jobs", id, "archive"]:
                return self.send(200, b"PK\5\6" + bytes(18), "application/zip")
            case ["uploads", id, "volume.nii.gz"]:
                return self.file(self.stub.uploads[id])
            case ["uploads", id]:
                return self.answer(self.facts(id))
        return self.refuse(404, "Not found", "There is no such thing here.")

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if not self.allowed():
            return None
        if url.path == "/v1/uploads":
            id = f"up{len(self.stub.uploads)}"
            self.stub.uploads[id] = self.stub.files.parent / f"{id}-{parse_qs(url.query)['name'][0]}"
            self.stub.uploads[id].write_bytes(body)
            return self.answer(self.facts(id), 201)
        asked = json.loads(body)
        if url.path == "/v1/plan":
            size = asked["request"].get("size") or [128, 128, 128]
            if max(size) > 144:
                return self.refuse(422, "Not possible", f"size {size} is beyond the model", errors=[{"where": "request.size", "what": "at most 128 x 128 x 144"}])
            return self.answer({"seconds": 12.4, "bytes": 640_000_000, "how": "whole, on 2 threads", "problems": []})
        if self.stub.is_full:
            return self.refuse(429, "Queue full", "20 jobs are waiting, which is as many as this service takes.", {"Retry-After": "7"})
        return self.answer(self.stub.submit(asked["kind"], asked["request"]), 202)

    def do_DELETE(self) -> None:
        if not self.allowed():
            return None
        id = self.path.rsplit("/", 1)[1]
        job = self.stub.jobs[id]
        if job["state"] in ("queued", "running"):
            job.update(state="cancelled", finished=time.time())
            return self.answer(job, 202)
        del self.stub.jobs[id]
        return self.send(204, b"")

    def allowed(self) -> bool:
        if self.stub.token is None or self.headers.get("Authorization") == f"Bearer {self.stub.token}":
            return True
        self.refuse(401, "Unauthorized", "A token is needed.")
        return False

    def facts(self, id: str) -> dict[str, Any]:
        name = self.stub.uploads[id].name.split("-", 1)[1]
        kind = "labels" if "label" in name else "image"
        return {"id": id, "name": name, "kind": kind, "shape": [96, 80, 64], "spacing_mm": [4, 4, 4]}

    def events(self, job: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        count = 0
        while True:
            over = job["state"] in ("done", "failed", "cancelled")
            keys = ("stage", "done", "total", "seconds_left")
            data = job if over else {"sample": 0, **{key: job[key] for key in keys}}
            count += 1
            try:
                self.wfile.write(f"id: {count}\nevent: {'end' if over else 'stage'}\ndata: {json.dumps(data)}\n\n".encode())
                self.wfile.flush()
            except OSError:
                return
            if over:
                self.close_connection = True
                return
            time.sleep(0.05)

    def page(self, parts: list[str]) -> None:
        name = "index.html" if parts == [""] else "/".join(parts[1:]) if parts[0] == "static" else None
        if name is None or not (self.stub.pages / name).is_file():
            return self.refuse(404, "Not found", self.path)
        return self.file(self.stub.pages / name)

    def file(self, path: Path) -> None:
        self.send(200, path.read_bytes(), TYPES.get(path.suffix, "application/octet-stream"))

    def answer(self, body: Any, status: int = 200) -> None:
        self.send(status, json.dumps(body).encode(), "application/json")

    def refuse(self, status: int, title: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
        self.send(status, json.dumps(body).encode(), "application/problem+json", headers)

    def send(self, status: int, body: bytes, kind: str = "text/plain", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Security-Policy": POLICY, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def serve(stub: Stub, port: int = 0) -> ThreadingHTTPServer:
    """The service, running; its port is in `server_address`."""
    server = ThreadingHTTPServer(("127.0.0.1", port), type("StubHandler", (Handler,), {"stub": stub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
