"""A decode of the released configuration, 16^3 latent, on a machine that others use too, against before and MONAI.

    python benchmarks/busy.py [--quick] [--rounds 3] [--minutes 11] [--precision float32] [--before SRC]

Every contender is a process of its own, as its environment sets what OpenMP does: *ours* lets threads wait asleep as
the command does, and takes as many as it may keep busy; `--before SRC` (a folder to import another maisi from) is the
same work there. They decode in turn: alone, beside one and two loops that never end, beside a second process that
decodes the same (until both are done), and with the CPU time of one core: in a cgroup where one can be made, else
stopped and continued, which the table says. Writes benchmarks/results/busy-UNIT.json and .md; medians, on Linux.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUDGET_GIB, SLABS, SPLITS = 0.15, 8, 4
WORKS = {
    "slabs": f"{SLABS} slabs",
    "budget": f"within {BUDGET_GIB} GiB",
    "splits": f"num_splits {SPLITS}",
}
ALONE, ONE, TWO, PAIR, QUOTA = "alone", "beside 1 loop", "beside 2 loops", "2 at once", "1 core's time"
SITUATIONS = (ALONE, ONE, TWO, PAIR, QUOTA)
MEASURED = {"slabs": SITUATIONS, "budget": (ALONE, TWO, PAIR), "splits": (ALONE, ONE, TWO, QUOTA)}
LOOP = "while True: pass"
PERIOD_S = 0.1


# --- a contender, in its own process ----------------------------------------------------------------------------------


def serve(work: str, precision: str, asleep: bool) -> None:
    """Decode whenever a line asks for it, and tell what it took."""
    if asleep:
        from maisi.compute.threads import default_threads, wait_asleep

        wait_asleep()
    import resource

    import torch

    usual, decode = torch.get_num_threads(), decoder(work, precision)
    with torch.inference_mode():
        decode()
        print(json.dumps({"threads": usual, "torch": torch.__version__}), flush=True)
        for _ in sys.stdin:
            torch.set_num_threads(default_threads() if asleep else usual)
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            decode()
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
            told = {"wall_s": wall, "threads": torch.get_num_threads()}
            told["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            told["switches"] = after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw
            print(json.dumps(told), flush=True)


def decoder(work: str, precision: str) -> Any:
    """The decode, its network made."""
    import torch

    from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
    from maisi.splitting import SlabTensor, plan_memory, run_split
    from maisi.splitting.precision import in_format, lowered

    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig()).eval().requires_grad_(False)
    latent = torch.randn(1, 4, 16, 16, 16)
    if work == "splits":
        return monai_decoder(network, latent)
    dtype = getattr(torch, precision)
    network = lowered(network, dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    decode = in_format(network.decode, dtype)
    if work == "slabs":
        return lambda: decode(SlabTensor.split(latent, SLABS)).gather()
    folder = tempfile.TemporaryDirectory(prefix="busy-")
    plan = plan_memory(decode, latent.shape, int(BUDGET_GIB * 2**30), folder=Path(folder.name))

    def within_budget(held: object = folder) -> Any:
        return run_split(decode, latent, plan)

    return within_budget


def monai_decoder(network: Any, latent: Any) -> Any:
    """MONAI's decode with the same weights."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    sys.path.insert(0, str(ROOT / "tests" / "parity"))
    from oracle_networks import oracle_of

    oracle = oracle_of(network)
    for module in oracle.modules():
        if hasattr(module, "num_splits"):
            module.num_splits = SPLITS
    return lambda: oracle.decode(latent)


# --- the one who asks -------------------------------------------------------------------------------------------------


class Contender:
    """A process that decodes when asked."""

    def __init__(self, label: str, source: Path, work: str, precision: str, asleep: bool) -> None:
        self.label, self.work = label, work
        self.precision = "float32" if work == "splits" else precision
        command = [sys.executable, __file__, "--serve", work, "--precision", precision, *["--asleep"] * asleep]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self.answer()

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("decode\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label}, {self.work}: its process ended")
        return dict(json.loads(line))

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def loops(count: int) -> Iterator[None]:
    """Processes that keep a core busy each."""
    running = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    time.sleep(0.2 * bool(count))
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


class Quota:
    """The CPU time of one core for a process: by a cgroup, version 2 or 1, else by stopping it."""

    def __init__(self) -> None:
        self.group: Path | None = None
        self.home: Path | None = None
        for mount in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/cpu")):
            group = mount / f"maisi-busy-{os.getpid()}"
            with suppress(OSError):
                group.mkdir()
                try:
                    grant(group)
                except OSError:
                    group.rmdir()
                    continue
                self.group, self.home = group, mount
                return

    @property
    def means(self) -> str:
        return "a cgroup's quota" if self.group else "stopping and continuing, threads as without a quota"

    def decode(self, contender: Contender) -> dict[str, Any]:
        pid = contender.process.pid
        if self.group is None or self.home is None:
            contender.ask()
            stop_and_go(pid, contender)
            return contender.answer()
        (self.group / "cgroup.procs").write_text(str(pid))
        try:
            contender.ask()
            return contender.answer()
        finally:
            (self.home / "cgroup.procs").write_text(str(pid))

    def end(self) -> None:
        if self.group is not None:
            self.group.rmdir()


def grant(group: Path) -> None:
    """Give a cgroup the CPU time of one core. Raises `OSError` where the folder is none that can be given any."""
    period = str(int(PERIOD_S * 1e6))
    settings = {"cpu.max": f"{period} {period}"}
    if not (group / "cpu.max").exists():
        settings = {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": period}
    for name, value in settings.items():
        os.stat(group / name)  # in a folder that is no cgroup, writing would make a file
        (group / name).write_text(value)


def stop_and_go(pid: int, contender: Contender) -> None:
    """Stops a process for the rest of each period in which it has used up a core's time."""
    import select

    assert contender.process.stdout is not None
    while not select.select([contender.process.stdout], [], [], 0)[0]:
        start, used = time.perf_counter(), cpu_seconds(pid)
        while time.perf_counter() - start < PERIOD_S:
            time.sleep(PERIOD_S / 20)
            if cpu_seconds(pid) - used >= PERIOD_S:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(max(0.0, PERIOD_S - (time.perf_counter() - start)))
                os.kill(pid, signal.SIGCONT)


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(situation: str, contender: Contender, second: Contender | None, quota: Quota) -> dict[str, Any]:
    """One decode; of two at once the time until both are done, and CPU time and switches of both."""
    if situation == QUOTA:
        return quota.decode(contender)
    with loops({ONE: 1, TWO: 2}.get(situation, 0)):
        contender.ask()
        if situation != PAIR:
            return contender.answer()
        assert second is not None
        second.ask()
        both = contender.answer(), second.answer()
        joined = {key: both[0][key] + both[1][key] for key in ("cpu_s", "switches")}
        return {"wall_s": max(b["wall_s"] for b in both), "threads": both[0]["threads"], **joined}


Times = dict[tuple[str, str], dict[str, list[dict[str, Any]]]]


def measure_all(arguments: argparse.Namespace, quota: Quota, stack: ExitStack) -> tuple[Times, dict[str, Any]]:
    """All rounds that there is time for, the contenders in turn."""
    start, times = time.perf_counter(), Times()
    sources = {"ours": (ROOT / "src", True), "ours, from Python": (ROOT / "src", False)}
    if arguments.before:
        sources["before"] = (arguments.before, False)
    if arguments.quick:
        del sources["ours, from Python"]
    facts: dict[str, Any] = {}

    def made(label: str, source: Path, work: str, asleep: bool) -> Contender:
        contender = Contender(label, source, work, arguments.precision, asleep)
        stack.callback(contender.end)
        facts.update(contender.facts)
        return contender

    groups: list[list[tuple[Contender, Contender | None]]] = []
    for work in ("slabs",) if arguments.quick else ("slabs", "budget"):
        groups.append(
            [
                (made(label, source, work, asleep), made(label, source, work, asleep))
                for label, (source, asleep) in sources.items()
                if work == "slabs" or label != "ours, from Python"
            ]
        )
    if not arguments.quick:
        groups[0].append((made("MONAI", ROOT / "src", "splits", False), None))
    longest = 0.0
    for k in range(arguments.rounds):
        began = time.perf_counter()
        if k and began - start + longest > 60 * arguments.minutes:
            break
        for situation in SITUATIONS:
            for contender, second in (pair for group in groups for pair in group):
                if situation not in MEASURED[contender.work] or (contender.label == "MONAI" and k):
                    continue
                found = measure(situation, contender, second, quota)
                times.setdefault((contender.label, contender.work), {}).setdefault(situation, []).append(found)
                told = f"{situation}: {contender.label}, {WORKS[contender.work]}: {found['wall_s']:.2f} s"
                print(told, file=sys.stderr, flush=True)
        longest = max(longest, time.perf_counter() - began)
    return times, facts


def table(times: Times, machine: dict[str, Any]) -> str:
    """Markdown: seconds, and CPU seconds in brackets."""

    def median(label: str, work: str, situation: str, key: str = "wall_s") -> float:
        return statistics.median(found[key] for found in times[label, work][situation])

    lines = [
        f"## A decode on a busy machine, released configuration, 16^3 latent, {machine['cpu']}",
        "",
        f"torch {machine['torch']}, {machine['threads']} threads, ours in {machine['precision']}, MONAI 1.6.1 in "
        f"float32, rounds: {machine['rounds']} (MONAI: 1), load {machine['load_before']:.1f} to "
        f"{machine['load_after']:.1f}; seconds (CPU seconds), medians. One core's time: by {machine['quota']}.",
        "",
        f"| | {' | '.join(SITUATIONS)} | 2 at once / 2 x alone |",
        "|---" * (len(SITUATIONS) + 2) + "|",
    ]
    for (label, work), found in times.items():
        cells = [
            f"{median(label, work, s):.2f} ({median(label, work, s, 'cpu_s'):.2f})" if s in found else ""
            for s in SITUATIONS
        ]
        share = f"{median(label, work, PAIR) / (2 * median(label, work, ALONE)):.2f}" if PAIR in found else ""
        lines.append(f"| {label}, {WORKS[work]} | {' | '.join(cells)} | {share} |")
    for work in ("slabs", "budget"):
        if ("before", work) in times:
            shares = [
                f"{median('ours', work, s) / median('before', work, s):.2f}" if s in MEASURED[work] else ""
                for s in SITUATIONS
            ]
            lines.append(f"| ours / before, {WORKS[work]} | {' | '.join(shares)} | |")
    return "\n".join(lines) + "\n"


def save(times: Times, facts: dict[str, Any], quota: Quota, arguments: argparse.Namespace, load: float) -> None:
    """The measurements as JSON and Markdown."""
    from machine import UNITS, vector_unit

    machine = {
        **facts,
        "cpu": UNITS[vector_unit()],
        "cores": os.cpu_count(),
        "precision": arguments.precision,
        "quota": quota.means,
        "rounds": max(len(found) for by_situation in times.values() for found in by_situation.values()),
        "load_before": load,
        "load_after": os.getloadavg()[0],
    }
    other = "" if arguments.precision == "float32" else f"-{arguments.precision}"
    name = f"busy-{vector_unit()}{other}{'-quick' if arguments.quick else ''}"
    RESULTS.mkdir(parents=True, exist_ok=True)
    raw = {"machine": machine, "times": {f"{label}, {WORKS[work]}": found for (label, work), found in times.items()}}
    (RESULTS / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(table(times, machine))
    print(table(times, machine))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="slabs alone, one round, without MONAI")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=11, help="after which no round begins that would end later")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--before", type=Path, help="folder to import an earlier maisi from")
    parser.add_argument("--serve", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--asleep", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.precision, arguments.asleep)
        return
    arguments.rounds = 1 if arguments.quick else arguments.rounds
    load, quota = os.getloadavg()[0], Quota()
    with ExitStack() as stack:
        stack.callback(quota.end)
        times, facts = measure_all(arguments, quota, stack)
    save(times, facts, quota, arguments, load)


if __name__ == "__main__":
    main()
