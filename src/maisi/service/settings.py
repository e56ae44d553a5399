"""What `maisi serve` can be told. Imports no torch."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import ByteSize, Field, field_validator, model_validator

from maisi.compute.compute import Bytes
from maisi.pipelines.requests import DEFAULT_BUNDLE, DEFAULT_LABEL_GENERATOR, DEFAULT_SEGMENTER
from maisi.shapes import Frozen

LEAST_TOKEN = 16
OFFERED = (DEFAULT_BUNDLE, DEFAULT_SEGMENTER, DEFAULT_LABEL_GENERATOR)
SAFE = range(0x21, 0x7F)  # characters that a header can carry

Voxels = Annotated[int, Field(ge=8)]


class ServeSettings(Frozen):
    """Where a service listens, who may ask, what it offers, and how much it takes."""

    host: str = Field(default="127.0.0.1", description="Address to listen at; beyond this machine with a token only.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen at; 0 takes a free one.")
    token: str | None = Field(
        default=None,
        min_length=LEAST_TOKEN,
        description="What clients must show; --token-file keeps it off the screen.",
    )
    token_file: Path | None = Field(default=None, description="File that holds the token.")
    data: Path = Field(default=Path("maisi-data"), description="Folder of jobs, results and uploads.")
    bundle: tuple[str, ...] = Field(
        default=OFFERED,
        description="Bundle to offer, packaged or a folder; the first is the default.",
        json_schema_extra={"shown_default": ", ".join(OFFERED)},
    )
    inputs: Path | None = Field(default=None, description="Folder whose files requests may name.")
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Processes that carry out jobs, side by side.",
        json_schema_extra={"shown_default": "one for each GPU, else one"},
    )
    ray: str | None = Field(
        default=None, description="Carry jobs out on a Ray cluster: its address, or local to start one here."
    )
    memory: Bytes | None = Field(default=None, description="Memory of all workers together, such as 16GB.")
    queue: int = Field(default=100, ge=1, description="Jobs that may wait.")
    quota: Bytes | None = Field(default=None, description="Disk that results, and again uploads, may take: 100GB.")
    retention: float = Field(default=7, gt=0, description="Days that ended jobs and uploads are kept.")
    allow_origin: tuple[str, ...] = Field(default=(), description="Web page of another place that may ask.")
    upload_bytes: Bytes = Field(default=ByteSize(2_000_000_000), description="Largest upload.")
    unpacked_bytes: Bytes = Field(default=ByteSize(4_000_000_000), description="Most that an upload may unpack to.")
    upload_voxels: Voxels = Field(default=512 * 512 * 1024, description="Most voxels of an upload.")
    upload_files: int = Field(default=5000, ge=1, description="Most files of an uploaded zip.")
    upload_seconds: float = Field(default=120, gt=0, description="How long reading an upload may take.")
    outputs: Path | None = Field(
        default=None, description="Folder that POST /v1/maisi/run may write to (local_working_dir)."
    )
    allow_upload_to: tuple[str, ...] = Field(
        default=(), description="Host that results may be sent to by a pre-signed URL (POST /v1/maisi/run)."
    )
    run_timeout: float = Field(default=3600, gt=0, description="Seconds that POST /v1/maisi/run waits for its job.")

    @field_validator("token")
    @classmethod
    def _can_be_sent(cls, token: str | None) -> str | None:
        if token is not None and any(ord(letter) not in SAFE for letter in token):
            raise ValueError("a token has letters, digits and signs of ASCII, without spaces")
        return token

    @field_validator("allow_origin")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            scheme, sign, rest = origin.partition("://")
            if scheme not in ("http", "https") or not sign or not rest or "/" in rest or "*" in rest:
                raise ValueError(f"{origin!r} is no origin; accepted: such as https://viewer.example.org")
        return origins

    @model_validator(mode="after")
    def _closed_to_strangers(self) -> "ServeSettings":
        if self.token is not None and self.token_file is not None:
            raise ValueError("either token or token_file; give one")
        if not self.is_local and self.token is None and self.token_file is None:
            raise ValueError(
                f"{self.host} can be reached from other machines, and there is no token; accepted: --token-file FILE, "
                "or --host 127.0.0.1"
            )
        if not self.bundle:
            raise ValueError("a service offers a bundle; name one by --bundle")
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
