"""A browser, and a service for it to show."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stub import Stub, serve

import maisi

PAGES = Path(maisi.__file__).parent / "service" / "static"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # WebGL 2 without a graphics card
PATIENCE_MS = 90_000  # drawing without a graphics card on a busy machine


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running Chromium; tests that need it skip where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install 'maisi[browser]'")
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is on the path")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *QUIET, *SOFTWARE])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated CT in `made`, and in `changed` the same with a tumour put in."""
    root = tmp_path_factory.mktemp("results")
    size = ["--size", "48", "48", "48", "--spacing", "5", "5", "5", "--steps", "2", "--region", "abdomen"]
    _maisi("generate", *size, "--phantom", "--out", root / "made")
    image, labels = root / "made" / "sample_000_ct.nii.gz", root / "made" / "sample_000_labels.nii.gz"
    place = ["--labels", labels, "--tumor", "hepatic tumor", "--random", "1", "--diameter", "30", "--steps", "2"]
    _maisi("inpaint", image, *place, "--out", root / "changed")
    return root


def _maisi(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "maisi", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def service(results: Path) -> Iterator[Stub]:
    """A service with nothing in it."""
    stub = Stub(PAGES, results / "made", results / "changed")
    server = serve(stub)
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/"
    yield stub
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(chromium: Any, service: Stub) -> Iterator[Any]:
    """The page of the service; a test fails where the browser complains of anything, a breach of the policy included."""
    context = chromium.new_context(viewport={"width": 1100, "height": 700}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if _is_complaint(message) else None)
    page.goto(service.url)
    yield page
    context.close()
    assert complaints == []


def _is_complaint(message: Any) -> bool:
    expected = ("Failed to load resource", "GPU stall", "GL Driver Message")  # refusals are part of some tests
    return message.type in ("error", "warning") and not any(each in message.text for each in expected)
