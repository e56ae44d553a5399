"""One way to carry out every task: check, write piece by piece, record. For the command line, a service, a cluster."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from maisi.bundle.places import BUNDLE_INFO
from maisi.errors import InvalidConfigError, InvalidRequestError
from maisi.runs.meter import StageMeter
from maisi.runs.ray_cluster import connected
from maisi.runs.record import (
    BundleIdentity,
    RunRecord,
    check_same_inputs,
    identity,
    input_sums,
    installed_version,
    machine,
    now,
    versions,
)
from maisi.runs.task import Checked, Output, Request, Run, Task, Watch
from maisi.splitting.ranks import Ranks
from maisi.storage.atomic import write_directory
from maisi.storage.folders import (
    FAILED,
    RUN_RECORD,
    RUN_SETTINGS,
    OutputFolder,
    check_free,
    entries_of,
    open_beside,
    open_folder,
    outputs_of,
    staged_in,
    storage_errors,
)
from maisi.storage.provenance import Provenance, lasting
from maisi.storage.settings import check_settings, read_settings, write_settings
from maisi.storage.sums import sha256

logger = logging.getLogger(__name__)

COMMAND = "command"
FREE = ("across",)
"""Settings in which an unfinished run and what goes on with it may differ: who does the work."""

FREE_IN_SHARED = (*FREE, "sources", "count", "prepare.segmenter_minutes")
"""Settings in which runs that fill one folder may differ."""


def carry_out(
    task: Task[Request],
    request: Request,
    out: Path,
    *,
    overwrite: bool = False,
    repeats: RunRecord | Provenance | None = None,
    watch: Watch = Watch(),
    ranks: Ranks | None = None,
) -> RunRecord | None:
    """Do what was asked for and write it to `out`, with `run.yaml` that repeats it and `run.json` that records it.

    All that can be refused is refused before anything is written. Files appear whole, `run.json` last: it says that the
    run is complete. A run that was killed goes on where it stopped when it is asked for again. With `repeats`, the
    record of an earlier run or what a file of it says, bundle and input files must be that run's. With `ranks`, all of
    them call this and compute together; the first one writes, the others give None.
    """
    started, meter = now(), StageMeter()
    checked = task.check(request)
    place = Destination.of(task, checked.request, out)
    existing = place.check(task, checked.request, overwrite)
    task.check_place(checked.request, out)
    bundle = None if checked.bundle is None else identity(checked.bundle)
    inputs = input_sums(task.inputs(checked.request))
    if repeats is not None:
        check_same_inputs(repeats, inputs, bundle)
    if ranks is not None:
        ranks.wait()  # until all have seen the folder as it was
    if ranks is not None and not ranks.is_first:
        task.work(checked, silent_run(place, existing, ranks, meter))
        return None
    with connected(*task.cluster(checked.request)), place.open(task, checked.request, overwrite) as folder:
        known = _Known(task.name, started, bundle, inputs)
        settings = {COMMAND: task.name, **checked.request.model_dump(mode="json")}
        made_by = known.provenance(checked.request)
        run = Run(folder.partial, place.folder, out.name, existing, True, ranks, watch, meter, folder.publish, made_by)
        with storage_errors(place.folder):
            write_settings(folder.partial / place.settings, settings)
        if task.output is Output.SHARED:
            place.check_shared(task, checked.request, folder.partial)  # another may have begun in the same moment
        try:
            task.work(checked, run)
        except InvalidRequestError:  # a request that nothing came of is not one to go on with
            folder.withdraw()
            raise
        record = make_record(known, checked, run)
        with storage_errors(place.folder):
            (folder.partial / place.record).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        folder.publish()
    return record


@dataclass(frozen=True)
class Destination:
    """Where the files of a task go, and what its two records are called."""

    path: Path
    folder: Path
    settings: str = RUN_SETTINGS
    record: str = RUN_RECORD

    @classmethod
    def of(cls, task: Task[Any], request: Any, out: Path) -> "Destination":
        """The place that `--out` names; the records of a part of a shared folder are called after it.

        Those of a file have its name without its ending, and with it where a file of another ending has these already.
        """
        shard = task.shard(request)
        if shard is not None:
            stem = f"part-{shard.replace('/', '-of-')}"
            return cls(out, out, f"{stem}.{RUN_SETTINGS}", f"{stem}.{RUN_RECORD}")
        if task.output is not Output.FILE:
            return cls(out, out)
        stem = out.name[: len(out.name) - len(_suffix(task, out))]
        record = out.parent / f"{stem}.{RUN_RECORD}"
        if record.is_file() and out.name not in _made_in(record):  # it is of a file of another ending, and stays
            stem = out.name
        return cls(out, out.parent, f"{stem}.{RUN_SETTINGS}", f"{stem}.{RUN_RECORD}")

    def check(self, task: Task[Any], request: BaseModel, overwrite: bool) -> frozenset[str]:
        """Names of files that an earlier, unfinished part of the same run left.

        Raises `InvalidRequestError` where the place is not free, or holds an unfinished run of other settings.
        """
        if task.output is Output.FILE:
            self._check_file(overwrite)
            return frozenset()
        if task.output is Output.WHOLE:
            if self.path.exists():
                self._check_whole(overwrite)
            return frozenset()
        if task.output is Output.SHARED:
            self.check_shared(task, request)
            return frozenset()
        names = entries_of(self.folder)
        if overwrite or RUN_SETTINGS not in names or RUN_RECORD in names:
            check_free(self.folder, overwrite)
            self._check_kept(task, request)
            return frozenset()
        different = settings_that_differ(task, request, self.folder / RUN_SETTINGS, FREE)
        if different:
            raise InvalidRequestError(
                f"{self.folder} is not empty: it holds an unfinished run of other settings ({', '.join(different)}); "
                "accepted: the same request to go on with it, another folder, or --overwrite"
            )
        logger.info("going on with the unfinished run in %s", self.folder)
        return frozenset(names) | {f"{FAILED}/{name}" for name in entries_of(self.folder / FAILED)}

    def check_shared(self, task: Task[Any], request: BaseModel, own: Path | None = None) -> None:
        """Nothing, or the refusal of a folder that other settings, or something else than this task, fills.

        What others have staged counts as well, but not what is staged in `own`. Who stages settings before looking,
        sees those of all who have looked already: parts of an array job may begin in the same moment.
        """
        if self.path.is_file():
            raise InvalidRequestError(f"{self.path} is a file; accepted: a folder")
        entries = entries_of(self.folder, shared=True)
        staged = [path for path in staged_in(self.folder, f"*{RUN_SETTINGS}") if path.parent != own]
        published = sorted(self.path.glob(f"*{RUN_SETTINGS}"))  # after the staged ones, which may just be moved
        if entries and not published:
            check_free(self.folder, shared=True)
        free = (*FREE_IN_SHARED, *task.free)
        for record in (path for path in (*staged, *published) if not path.name.startswith(".")):
            try:
                different = settings_that_differ(task, request, record, free)
            except InvalidConfigError:
                if record in staged and not record.exists():
                    continue
                raise
            if different:
                raise InvalidRequestError(
                    f"{self.folder} was filled with other settings ({', '.join(different)}, see {record.name}); "
                    "accepted: the same settings, or another folder"
                )

    def _check_kept(self, task: Task[Any], request: BaseModel) -> None:
        """Nothing, or the refusal to begin anew where what is read is of the run that would go."""
        going = [(self.folder / name).resolve() for name in outputs_of(self.folder / RUN_RECORD, task.name)]
        read = [path for path in task.inputs(request) if any(each.is_relative_to(path.resolve()) for each in going)]
        if read:
            raise InvalidRequestError(
                f"{read[0]} is read, and is of the run in {self.folder} that would go; accepted: another folder"
            )

    def _check_whole(self, overwrite: bool) -> None:
        """Nothing, or the refusal to replace a folder that is not to be, or is of nobody's run."""
        if not overwrite:
            raise InvalidRequestError(f"{self.path} exists already; accepted: another place, or --overwrite")
        names = entries_of(self.path)
        if names and not {RUN_RECORD, BUNDLE_INFO} & set(names):
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise InvalidRequestError(
                f"{self.path} would be replaced as a whole, and holds what no run of maisi left ({shown}); accepted: "
                "another place"
            )

    def _check_file(self, overwrite: bool) -> None:
        if self.path.is_dir() or (self.path.exists() and not overwrite):
            raise InvalidRequestError(f"{self.path} exists; accepted: another name, or --overwrite")
        if not self.folder.is_dir():
            raise InvalidRequestError(f"there is no folder {self.folder} to write {self.path.name} into")

    @contextmanager
    def open(self, task: Task[Any], request: Any, overwrite: bool) -> Iterator[OutputFolder]:
        """The place to write to, see `storage.folders`."""
        if task.output is Output.WHOLE:
            with write_directory(self.path, overwrite=overwrite) as partial:
                yield OutputFolder(partial, partial, clears=False)
        elif task.output in (Output.FILE, Output.SHARED):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open_beside(self.folder) as folder:
                yield folder
        else:
            with open_folder(self.folder, overwrite, task.state(request), task.name) as folder:
                yield folder


def settings_that_differ(task: Task[Any], request: BaseModel, path: Path, free: Sequence[str] = ()) -> list[str]:
    """Names of the settings of a `run.yaml` that are not those of a request; "command" where it is of another task.

    `free` are those that may differ, parts of parts with a dot: "prepare.spacing".
    """
    command, settings = read_run_settings(path)
    if command != task.name:
        return [COMMAND]
    there, asked = check_settings(task.request, settings).model_dump(), request.model_dump()
    if task.on_ranks and task.output is Output.STATE and there["compute"]["ranks"] != asked["compute"]["ranks"]:
        for compute in (there["compute"], asked["compute"]):  # state is of any number of processes, and their threads
            compute |= {"ranks": None, "threads": None}
    for name in free:
        _drop(there, name)
        _drop(asked, name)
    return [name for name in {**asked, **there} if asked.get(name) != there.get(name)]


def _drop(settings: dict[str, Any], name: str) -> None:
    part, _, rest = name.partition(".")
    if rest and part in settings:
        _drop(settings[part], rest)
    elif not rest:
        settings.pop(part, None)


def read_run_settings(path: Path) -> tuple[str, dict[str, Any]]:
    """The command and the settings of a `run.yaml`; raises `InvalidConfigError` or `InvalidRequestError`."""
    settings = read_settings(path)
    command = settings.pop(COMMAND, None)
    if not isinstance(command, str):
        raise InvalidRequestError(f"{path} does not say which command it repeats; accepted: a run.yaml of a maisi run")
    return command, settings


def silent_run(place: Destination, existing: frozenset[str], ranks: Ranks, meter: StageMeter) -> Run:
    """The run as ranks besides the first see it: they compute, and write nothing."""
    return Run(Path(), place.folder, place.path.name, existing, False, ranks, Watch(), meter, publish_files=lambda: [])


@dataclass(frozen=True)
class _Known:
    """What of a record is known before the work."""

    command: str
    started: datetime
    bundle: BundleIdentity | None
    inputs: dict[str, str]

    def provenance(self, request: BaseModel) -> Provenance:
        """What the files of the run say of their making."""
        settings = request.model_dump(mode="json")
        return Provenance(
            maisi=installed_version("maisi"),
            command=self.command,
            request=lasting(settings),
            seed=settings.get("seed"),
            bundle=self.bundle,
            inputs=self.inputs,
        )


def make_record(known: _Known, checked: Checked[Any], run: Run) -> RunRecord:
    """The record of a run whose work is done."""
    settings, stages = checked.request.model_dump(), run.meter.stages
    compute = settings.get("compute") or {}
    return RunRecord(
        command=known.command,
        maisi=installed_version("maisi"),
        started=known.started,
        seed=settings.get("seed"),
        threads=compute.get("threads"),
        ranks=compute.get("ranks") or 1,
        bundle=known.bundle,
        versions=versions(),
        platform=machine(),
        inputs=known.inputs,
        files=checked.files,
        warnings=tuple(run.warnings),
        failed=tuple(run.failed),
        kept=tuple(run.kept),
        num_made=run.num_made,
        outputs={name_in(path, run): sha256(path) for path in sorted(run.outputs)},
        stages=stages,
        seconds=round(sum(stage.seconds for stage in stages.values()), 3),
        peak_bytes=max((stage.peak_bytes for stage in stages.values()), default=0),
    )


def name_in(path: Path, run: Run) -> str:
    """What a record calls a file: its path within the folder of the run, or within what is to become that folder."""
    base = run.folder if path.is_relative_to(run.folder) else run.partial
    return path.relative_to(base).as_posix()


def _made_in(record: Path) -> tuple[str, ...]:
    """The files that a record tells of; none where it cannot be read."""
    with suppress(OSError, UnicodeDecodeError, ValidationError):
        return tuple(RunRecord.model_validate_json(record.read_text(encoding="utf-8")).outputs)
    return ()


def _suffix(task: Task[Any], out: Path) -> str:
    found = next((s for s in sorted(task.suffixes, key=len, reverse=True) if out.name.lower().endswith(s)), None)
    if found is None:
        accepted = " or ".join(task.suffixes)
        raise InvalidRequestError(f"{out} ends in {out.suffix or 'nothing'}; accepted: {accepted}")
    return found
