"""All that the routes of a service share."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from maisi.errors import InvalidConfigError
from maisi.service.archive import remove_left
from maisi.service.bundles import configured
from maisi.service.helper import end_helpers
from maisi.service.job import Limits
from maisi.service.jobs import JobStore
from maisi.service.metrics import Metrics
from maisi.service.planner import Planner
from maisi.service.references import Places
from maisi.service.settings import LEAST_TOKEN, ServeSettings
from maisi.service.supervisor import Supervisor, check_memory, devices
from maisi.service.uploads import UploadStore

MOST_WAITING = 100_000
_ID = re.compile(r"/uploads/([0-9a-f]{24})")


@dataclass(frozen=True)
class Service:
    """A service while it runs: what it was told, where its jobs and uploads are, and what it counts."""

    settings: ServeSettings
    token: str | None
    jobs: JobStore
    uploads: UploadStore
    places: Places
    metrics: Metrics
    planner: Planner
    supervisor: Supervisor
    ending: threading.Event = field(default_factory=threading.Event)  # whoever waits for something is to stop

    @classmethod
    def of(cls, settings: ServeSettings) -> "Service":
        """The service of these settings; raises `InvalidRequestError` for a bundle, token or folder that is none."""
        if settings.inputs is not None and not settings.inputs.is_dir():
            raise InvalidConfigError(f"inputs: no folder {settings.inputs}; accepted: a folder that exists")
        bundles, token = configured(settings.bundle), read_token(settings)
        data, limits = settings.data.absolute(), limits_of(settings)
        check_memory(limits)
        jobs = JobStore(data, limits)
        uploads = UploadStore(data / "uploads", settings)
        places = Places(jobs, uploads, bundles, settings.inputs)
        supervisor = Supervisor(jobs, warm=next(iter(bundles.values())), ray=settings.ray)
        has_gpu = supervisor.workers[0].device != "cpu"  # whose memory is not that of the limits
        planner = Planner(supervisor.threads, None if has_gpu else jobs.limits.share)
        return cls(settings, token, jobs, uploads, places, Metrics(), planner, supervisor)

    @contextmanager
    def working(self) -> Iterator["Service"]:
        """The service with its workers; raises `InvalidRequestError` where another has the same data."""
        try:
            self.supervisor.start()  # from here on the folder is ours
            remove_left(self.jobs.folder)
            self.uploads.remove_left()
            yield self
        finally:
            self.supervisor.stop()

    def why_not_ready(self) -> str:
        """Why no job is carried out; "" where they are."""
        return "" if self.supervisor.is_ready else "no worker is ready; accepted: to ask again in a moment"

    def expire(self) -> list[str]:
        """Remove uploads that nobody has used for long and that no job will read; gives their ids."""
        waiting = [job for state in ("queued", "running") for job in self.jobs.jobs(state, limit=MOST_WAITING)]
        named = {each for job in waiting for each in _ID.findall(json.dumps(job.request))}
        return self.uploads.expire(named)

    def close(self) -> None:
        """End what answers questions beside the web process, also what is at one."""
        self.planner.close()
        end_helpers()


def limits_of(settings: ServeSettings) -> Limits:
    """How much the store of jobs takes."""
    return Limits(
        queued=settings.queue,
        memory=settings.memory,
        workers=settings.workers or len(devices()),
        disk=settings.quota,
        keep_days=settings.retention,
    )


def read_token(settings: ServeSettings) -> str | None:
    """The token of a service, from its settings or its file."""
    if settings.token_file is None:
        return settings.token
    return _token_in(settings.token_file)


def _token_in(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfigError(
            f"token_file: {path} cannot be read ({error}); accepted: a file with a token"
        ) from error
    if not re.fullmatch(rf"[\x21-\x7e]{{{LEAST_TOKEN},}}", token):
        raise InvalidConfigError(
            f"token_file: {path} holds no token; accepted: one line of {LEAST_TOKEN} signs or more"
        )
    return token


def service_of(request: Request) -> Service:
    """The service that a request is made to."""
    service: Service = request.app.state.service
    return service


Ours = Annotated[Service, Depends(service_of)]
