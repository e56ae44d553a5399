"""A service without workers, as a client sees it."""

from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from maisi.service.app import create_app
from maisi.service.service import Service
from maisi.service.settings import ServeSettings

OCTETS = {"content-type": "application/octet-stream"}


def made_service(folder: Path, **settings: Any) -> Service:
    """A service that keeps all in a folder."""
    return Service.of(ServeSettings(**{"data": folder / "data", "upload_seconds": 600, **settings}))


def client_of(service: Service, **options: Any) -> TestClient:
    """A client on this machine."""
    return TestClient(create_app(service), base_url="http://localhost:8000", **options)
