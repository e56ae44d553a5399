"""The steps of the Dockerfile done without docker, in an empty environment, and the result asked whether it is ready.

    python benchmarks/dockerfile.py [FOLDER]

What needs root (apt-get, useradd) is left out, and /opt/maisi is a folder of FOLDER. Takes minutes and 2 GB.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AS_ROOT = ("apt-get", "useradd")
COPIED = ("constraints", "src", "pyproject.toml", "README.md", "LICENSE")


def steps(text: str) -> list[str]:
    """The commands of RUN that need no root."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [found for found in re.findall(r"^RUN (.+)$", joined, re.M) if not any(word in found for word in AS_ROOT)]


def build(folder: Path) -> None:
    """Carry out the steps in a copy of what the Dockerfile copies."""
    source = folder / "src"
    source.mkdir(parents=True)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    for step in steps((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        command = step.replace("/opt/maisi", str(folder / "maisi"))
        print(command, flush=True)
        subprocess.run(["sh", "-ec", command], cwd=source, env=environment, check=True)


def ready_after(folder: Path, port: int = 8765) -> float:
    """Seconds until the service of the environment is ready."""
    data, token = folder / "data", folder / "token"
    token.write_text("0123456789abcdef0123\n")
    program = [str(folder / "maisi" / "bin" / "maisi"), "serve", "--port", str(port)]
    started = time.monotonic()
    with subprocess.Popen([*program, "--data", str(data), "--token-file", str(token)], cwd=folder) as process:
        try:
            while not _is_ready(port):
                if process.poll() is not None or time.monotonic() - started > 600:
                    raise SystemExit("the service did not become ready")
                time.sleep(0.5)
            return time.monotonic() - started
        finally:
            process.terminate()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    """Build, serve, tell."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).resolve()
    build(folder)
    print(f"ready after {ready_after(folder):.1f} s, {sum(f.stat().st_size for f in folder.rglob('*')) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
