"""The service under load, and under kills: what it answers how fast, and whether anything is lost.

    python benchmarks/service.py [--jobs 200] [--clients 16] [--workers 2] [--kill-every 20] [--server-kills 2]
                                 [--retention DAYS] [--soak 0] [--parts calm kills soak]

Starts `maisi serve`, and lets clients ask for small jobs at once, each waiting for one job before it asks for the next.
`calm` measures throughput, the time from start to ready, what the idle web process holds, and how long status calls
take while the workers are busy. `kills` asks for the same jobs while a worker is killed (SIGKILL) every so many seconds
and the server a few times, and compares every volume with that of the calm run. `soak` goes on for some minutes with
jobs that are made, cancelled, removed and killed, and tells how memory and files grow. Results go to
benchmarks/results/service.json.
"""

import argparse
import hashlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

ENDED = ("done", "failed", "cancelled")
POLL_S, PATIENCE_S, LOOKS = 0.2, 600.0, 12
SMALL = {"region": "chest", "size": [32, 32, 32], "spacing": [4.5, 4.5, 4.5], "steps": 2}


def request(seed: int) -> dict[str, Any]:
    return {"kind": "generate", "request": {**SMALL, "seed": seed, "quality": {"on_failure": "keep"}}}


class Server:
    """`maisi serve` on a port and a folder, which can be killed and started again."""

    def __init__(self, folder: Path, workers: int, jobs: int, memory: str | None, keep: float | None) -> None:
        self.folder, self.port = folder, 0
        self.options = ["--workers", str(workers), "--queue", str(jobs + 100), "--data", str(folder / "data")]
        for name, value in (("--memory", memory), ("--retention", keep)):
            self.options += [name, str(value)] if value else []
        self.process: subprocess.Popen[str] | None = None
        self.log = (folder / "serve.log").open("a")

    def start(self) -> dict[str, float]:
        """Start it; seconds until it answers, and until it is ready."""
        began = time.perf_counter()
        command = [sys.executable, "-m", "maisi", "serve", "--port", str(self.port), *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"maisi serve did not start: {(self.folder / 'serve.log').read_text()[-2000:]}")
        self.port = int(line.strip().rpartition(":")[2])
        answers = self._until("/v1/health/live") - began
        return {"answers_s": round(answers, 2), "ready_s": round(self._until("/v1/health/ready") - began, 2)}

    def _until(self, path: str) -> float:
        end = time.monotonic() + PATIENCE_S
        client = Client(self)
        while client.ask("GET", path)[0] != 200:
            if time.monotonic() > end:
                raise SystemExit(f"{path} was not 200 within {PATIENCE_S} s")
            time.sleep(0.1)
        return time.perf_counter()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """End it by SIGTERM; seconds that it took."""
        assert self.process is not None
        began = time.perf_counter()
        self.process.terminate()
        self.process.wait(60)
        return round(time.perf_counter() - began, 2)

    def workers(self) -> list[psutil.Process]:
        assert self.process is not None
        with suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "maisi.service.worker" in child.cmdline()]
        return []

    def cpu_seconds(self) -> dict[str, float]:
        """What the web process and its workers have computed so far, whatever else the machine does."""
        assert self.process is not None
        times = [each.cpu_times() for each in (psutil.Process(self.process.pid), *self.workers())]
        web, *workers = (round(each.user + each.system, 2) for each in times)
        return {"web_cpu_s": web, "workers_cpu_s": round(sum(workers), 2)}

    def memory(self) -> dict[str, Any]:
        """Megabytes that the web process and its workers hold, and whether the first has torch."""
        assert self.process is not None
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        web = psutil.Process(self.process.pid)
        return {
            "web_mb": round(web.memory_info().rss / 1e6, 1),
            "workers_mb": [round(worker.memory_info().rss / 1e6, 1) for worker in self.workers()],
            "web_has_torch": "libtorch" in maps,
            "web_files": web.num_fds(),
        }


class Client:
    """Asks, again while nobody answers, and keeps how long the answers took."""

    def __init__(self, server: Server) -> None:
        self.server, self.seconds = server, list[float]()
        self.connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._ask(method, path, body, headers)
            except (OSError, http.client.HTTPException):
                self.connection = None
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        began = time.perf_counter()
        text = None if body is None else json.dumps(body)
        self.connection.request(method, path, text, {"content-type": "application/json", **headers})
        answer = self.connection.getresponse()
        content = answer.read()
        self.seconds.append(time.perf_counter() - began)
        return answer.status, json.loads(content) if content and "json" in answer.getheader(
            "content-type", ""
        ) else None

    def submit(self, asked: dict[str, Any], key: str) -> dict[str, Any]:
        """Ask for a job, again while there is no room for it."""
        while True:
            status, job = self.ask("POST", "/v1/jobs", asked, **{"Idempotency-Key": key})
            if status == 202:
                return dict(job)
            if status not in (429, 503):
                raise SystemExit(f"refused: {status} {job}")
            time.sleep(1)

    def job(self, asked: dict[str, Any], key: str) -> dict[str, Any]:
        """Ask for a job and wait until it has ended."""
        job = self.submit(asked, key)
        while job["state"] not in ENDED:
            time.sleep(POLL_S)
            status, job = self.ask("GET", f"/v1/jobs/{job['id']}")
            if status != 200:
                raise SystemExit(f"lost: {status} {job}")
        return job


def load(server: Server, jobs: int, clients: int, ended: list[dict[str, Any]]) -> list[float]:
    """Have clients ask for jobs until all have ended; how long each answer took."""
    numbers, everyone = count(), [Client(server) for _ in range(clients)]

    def work(client: Client) -> None:
        while (number := next(numbers)) < jobs:
            ended.append(client.job(request(number), f"job-{number}"))

    threads = [threading.Thread(target=work, args=(client,)) for client in everyone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [each for client in everyone for each in client.seconds]


def milliseconds(seconds: list[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=100)
    found = {"p50": median(seconds), "p95": cuts[94], "p99": cuts[98], "most": max(seconds)}
    return {"answers": len(seconds)} | {name: round(1000 * each, 1) for name, each in found.items()}


def volumes(server: Server, ended: list[dict[str, Any]]) -> list[str]:
    """The first digits of the sum of each volume, in the order of their seeds."""
    folder = server.folder / "data" / "jobs"
    made = [folder / job["id"] / "sample_000_ct.nii.gz" for job in sorted(ended, key=lambda e: e["request"]["seed"])]
    return [hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else "" for path in made]


def told(ended: list[dict[str, Any]], jobs: int, seconds: float) -> dict[str, Any]:
    return {
        "jobs": jobs,
        "states": dict(Counter(job["state"] for job in ended)),
        "lost": jobs - len({job["id"] for job in ended}),
        "without_all_files": sum(len(job["artifacts"]) != 6 for job in ended),
        "seconds": round(seconds, 1),
        "jobs_a_minute": round(60 * jobs / seconds, 1),
        "tries": dict(Counter(job["tries"] for job in ended)),
        "load_average": round(os.getloadavg()[0], 1),
    }


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[tuple[Server, dict[str, float]]]:
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), options.workers, options.jobs, options.memory, options.retention)
        try:
            yield server, server.start()
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop()


def calm(options: argparse.Namespace) -> dict[str, Any]:
    with serving(options) as (server, start):
        start |= server.cpu_seconds()
        idle, ended, began = server.memory(), list[dict[str, Any]](), time.perf_counter()
        answers = load(server, options.jobs, options.clients, ended)
        found = told(ended, options.jobs, time.perf_counter() - began) | {"status_ms": milliseconds(answers)}
        used = {name: seconds - start[name] for name, seconds in server.cpu_seconds().items()}
        found["cpu_ms_an_answer"] = round(1000 * used["web_cpu_s"] / len(answers), 2)
        found["cpu_s_a_job"] = round(used["workers_cpu_s"] / options.jobs, 2)
        found |= {"start": start, "idle": idle, "after": server.memory()}
        found |= {"volumes": volumes(server, ended), "stop_s": server.stop()}
    return found


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """The same jobs while workers and the server are killed."""
    draws, done = random.Random(options.seed), threading.Event()
    killed = {"workers": 0, "server": 0}
    with serving(options) as (server, _):
        ended = list[dict[str, Any]]()

        def kill() -> None:
            last = time.monotonic()
            while not done.wait(0.2):
                share = len(ended) / options.jobs
                if killed["server"] < options.server_kills and share > (killed["server"] + 1) / (
                    options.server_kills + 1
                ):
                    server.kill()
                    killed["server"] += 1
                    server.start()
                if time.monotonic() - last > options.kill_every and (alive := server.workers()):
                    last = time.monotonic()
                    with suppress(psutil.Error):
                        draws.choice(alive).send_signal(signal.SIGKILL)
                        killed["workers"] += 1

        killer, began = threading.Thread(target=kill), time.perf_counter()
        killer.start()
        answers = load(server, options.jobs, options.clients, ended)
        seconds = time.perf_counter() - began
        done.set()
        killer.join()
        found = told(ended, options.jobs, seconds) | {"killed": killed, "status_ms": milliseconds(answers)}
        return found | {"kill_every_s": options.kill_every, "volumes": volumes(server, ended)}


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Jobs that are made, cancelled and removed, and workers that are killed, for some minutes."""
    draws, numbers, seen, kills = random.Random(options.seed), count(), Counter[str](), 0
    with serving(options) as (server, _):
        begin = time.monotonic()
        end, looks = begin + 60 * options.soak, [look(server, 0.0)]

        def work(seed: int) -> None:
            own, client = random.Random(seed), Client(server)
            while time.monotonic() < end:
                number = next(numbers)
                job = client.submit(request(number), f"soak-{number}")
                if own.random() < 0.2:
                    time.sleep(own.uniform(0, 2))
                    client.ask("DELETE", f"/v1/jobs/{job['id']}")
                job = client.job(request(number), f"soak-{number}") if job["state"] not in ENDED else job
                seen[job["state"]] += 1

        threads = [threading.Thread(target=work, args=(k,)) for k in range(options.clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(min(options.kill_every, max(1.0, end - time.monotonic())))
            if time.monotonic() - begin > 60 * (looks[-1]["minute"] + options.soak / LOOKS):
                looks.append(look(server, (time.monotonic() - begin) / 60))
                print(looks[-1], flush=True)
            with suppress(psutil.Error, IndexError):
                draws.choice(server.workers()).send_signal(signal.SIGKILL)
                kills += 1
        for thread in threads:
            thread.join()
        looks.append(look(server, (time.monotonic() - begin) / 60))
    return {
        "minutes": options.soak,
        "kept_minutes": options.retention and round(1440 * options.retention, 1),
        "states": dict(seen),
        "kills": kills,
        "looks": looks,
    }


def look(server: Server, minute: float) -> dict[str, Any]:
    """What a server holds in memory and on disk."""
    data = server.folder / "data"
    sizes: dict[Path, int] = {}
    for folder, _, names in os.walk(data):  # passes over folders that go meanwhile
        for path in (Path(folder) / name for name in names):
            with suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
    store = sum(size for path, size in sizes.items() if path.parent == data)
    jobs = len(list((data / "jobs").iterdir()))
    on_disk = {
        "jobs": jobs,
        "store_mb": round(store / 1e6, 1),
        "files_mb": round((sum(sizes.values()) - store) / 1e6, 1),
    }
    return {"minute": round(minute, 1), **server.memory(), **on_disk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", help="of all workers together, such as 4GB")
    parser.add_argument("--retention", type=float, help="days that ended jobs are kept, such as 0.003")
    parser.add_argument("--kill-every", type=float, default=20.0, help="seconds")
    parser.add_argument("--server-kills", type=int, default=2)
    parser.add_argument("--soak", type=float, default=0.0, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=("calm", "kills", "soak"), default=("calm", "kills"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "service.json")
    options = parser.parse_args()
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    found["machine"] = {"cores": psutil.cpu_count(), "clients": options.clients, "workers": options.workers}
    if "calm" in options.parts:
        found["calm"] = calm(options)
        print(json.dumps({"calm": found["calm"]}, indent=1), flush=True)
    if "kills" in options.parts:
        found["kills"] = kills(options)
        print(json.dumps({"kills": found["kills"]}, indent=1), flush=True)
        both = zip(found["kills"]["volumes"], found.get("calm", {}).get("volumes", []), strict=False)
        differ = [ours != theirs for ours, theirs in both]
        found["kills"] |= {"volumes_compared": len(differ), "volumes_that_differ": sum(differ)}
        print(f"{sum(differ)} of {len(differ)} volumes differ from those of the calm run")
    if "soak" in options.parts or options.soak:
        found["soak"] = soak(options)
        print(json.dumps({"soak": found["soak"]}, indent=1), flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
