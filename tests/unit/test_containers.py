"""The Dockerfile and the compose file, as far as they can be checked without docker."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from maisi.service.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its arguments."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines]


def last(name: str) -> str:
    return [arguments for instruction, arguments in instructions() if instruction == name][-1]


def test_the_image_is_slim_and_does_not_run_as_root() -> None:
    assert all("slim" in arguments for name, arguments in instructions() if name == "FROM")
    assert int(last("USER")) > 1000
    assert not any(name == "ADD" for name, _ in instructions())
    assert "gcc" not in "".join(arguments for _, arguments in instructions()[_last_stage() :])


def _last_stage() -> int:
    return max(index for index, (name, _) in enumerate(instructions()) if name == "FROM")


def test_what_is_copied_is_there() -> None:
    copied = [
        arguments.split()[:-1] for name, arguments in instructions() if name == "COPY" and "--from" not in arguments
    ]
    assert all((ROOT / name).exists() for names in copied for name in names)


def test_the_health_check_asks_the_port_that_is_served_whether_jobs_are_carried_out() -> None:
    port = re.search(r'"--port", "(\d+)"', last("ENTRYPOINT"))
    assert port is not None
    assert f":{port[1]}/v1/health/ready" in last("HEALTHCHECK")
    assert last("EXPOSE") == port[1]


def test_the_service_is_told_settings_that_it_has() -> None:
    command = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["maisi"]["command"]
    said = re.findall(r"--([a-z-]+)", f"{last('ENTRYPOINT')} {last('CMD')} {command}")
    assert {name.replace("-", "_") for name in said} <= set(ServeSettings.model_fields)
    assert "token-file" in said  # it listens beyond the container


def test_the_service_of_compose_has_a_read_only_root_and_no_powers() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["maisi"]
    assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert any(volume.endswith(f":{last('VOLUME')}") for volume in service["volumes"])


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing() -> None:
    found = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
