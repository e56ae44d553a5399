"""A browser, and a service for it to show."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import SMALL, Running

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # WebGL 2 without a graphics card
PATIENCE_MS = 240_000  # drawing without a graphics card on a busy machine
EXPECTED = ("Failed to load resource", "GPU stall", "GL Driver Message")  # refusals are part of some tests


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


def _needs_serve() -> None:
    for name in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"no {name} here: pip install 'maisi[serve]'")


@pytest.fixture(scope="session")
def service(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with one worker, and room for one job that waits."""
    _needs_serve()
    running = Running(tmp_path_factory.mktemp("service") / "data", options=("--queue", "1")).start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def made(service: Running) -> str:
    """A generated CT: the id of its job."""
    return service.made("generate", SMALL)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Running]:
    """A service that asks for a token, and that may be stopped and started."""
    _needs_serve()
    running = Running(tmp_path / "data", token="the-first-token-of-all").start()
    yield running
    running.stop()


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    """A browser's profile of its own; fails where the page breaks its policy or throws."""
    context = chromium.new_context(viewport={"width": 1100, "height": 700}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("console", lambda message: complaints.append(message.text) if _is_complaint(message) else None)
    yield context
    context.close()
    assert complaints == []


def _is_complaint(message: Any) -> bool:
    return message.type in ("error", "warning") and not any(each in message.text for each in EXPECTED)


@pytest.fixture
def page(context: Any, service: Running) -> Iterator[Any]:
    """The page of the service."""
    page = context.new_page()
    page.goto(service.url)
    yield page
    service.cancel_all()


@pytest.fixture
def result(page: Any, service: Running, made: str) -> Any:
    """The page with a generated CT in one plane."""
    page.goto(f"{service.url}#job={made}")
    page.locator("body.has-result .crosshair .hu").wait_for()
    return page
