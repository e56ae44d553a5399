"""`maisi doctor`: whether this machine and this installation can do the work."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from maisi.cli.console import complain, give_json, give_table, tell
from maisi.cli.options import AsJson

EXTRAS = ("pytest", "hypothesis", "monai")  # for the tests alone
NEEDED_BYTES = 4 * 10**9


def doctor(as_json: AsJson = False) -> None:
    """Check versions, processor, memory, disk, bundles and extras; exit 1 where something is broken."""
    import psutil
    import torch

    from maisi import __version__
    from maisi.compute.compute import Compute
    from maisi.compute.machine import fill_defaults
    from maisi.compute.threads import available_cores, default_threads
    from maisi.runs.record import machine, versions

    found = versions()
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(Path.cwd()))
    bundles, broken = _bundles()
    report: dict[str, Any] = {
        "versions": {"maisi": __version__, **found},
        "machine": machine(),
        "processor_features": _features(),
        "threads": {
            "torch": torch.get_num_threads(),
            "cores": available_cores(),
            "default": default_threads(),
            "of_the_machine": os.cpu_count(),
        },
        "precision": {"default": fill_defaults(Compute()).precision},
        "torch_build": {
            "cuda": torch.version.cuda or "no",
            "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,
            "onednn": torch.backends.mkldnn.is_available(),
        },
        "memory": {"total_bytes": memory.total, "available_bytes": memory.available},
        "disk": {"folder": str(Path.cwd()), "free_bytes": disk.free},
        "bundles": bundles,
        "extras": {name: "installed" if find_spec(name) else "not installed" for name in EXTRAS},
    }
    if as_json:
        give_json(report)
    else:
        _show(report)
    for name, reason in broken.items():
        complain(f"bundle {name}: {reason}")
    if memory.available < NEEDED_BYTES:
        tell("note: less than 4 GB of memory are free; --memory bounds what a command takes")
    if not bundles:
        tell("note: no bundle is packaged here; --bundle FOLDER names one of your own")
    if broken:
        raise typer.Exit(1)


def _bundles() -> tuple[dict[str, str], dict[str, str]]:
    """What each packaged bundle is, every file of it checked, and what is wrong with the broken ones."""
    from maisi.bundle.bundle import load_bundle
    from maisi.bundle.places import packaged_names
    from maisi.errors import InvalidBundleError

    fine, broken = {}, {}
    for name in packaged_names():
        try:
            bundle = load_bundle(name)
            bundle.verify()
            fine[name] = f"version {bundle.info.version}, {', '.join(bundle.kinds)}, checksums right"
        except InvalidBundleError as error:
            fine[name], broken[name] = "broken", str(error)
    return fine, broken


def _features() -> list[str]:
    """What of the processor matters to the speed of convolutions."""
    known = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return []
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "").split()
    return [name for name in known if name in flags]


def _show(report: dict[str, Any]) -> None:
    from maisi.compute.compute import format_bytes

    rows: list[tuple[str, str, object]] = []
    for topic, facts in report.items():
        listed: Iterable[tuple[str, Any]] = facts.items() if isinstance(facts, dict) else [("", ", ".join(facts))]
        for name, value in listed:
            shown = format_bytes(value) if name.endswith("_bytes") else value
            rows.append((topic.replace("_", " "), name.removesuffix("_bytes").replace("_", " "), shown))
    seen: set[str] = set()
    for k, (topic, name, value) in enumerate(rows):
        rows[k] = ("" if topic in seen else topic, name, value)
        seen.add(topic)
    give_table(rows)
