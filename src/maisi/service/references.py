"""What requests of clients may name: uploads, results of jobs, files below one folder, configured bundles. No paths.

A request names them by `upload:ID`, `job:ID/NAME`, a path relative to the folder of inputs, or a name. The store keeps
the paths that these stand for, and what is told of a job has the names again. Imports no torch.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from maisi.anatomy.numberings import numbering_names
from maisi.errors import InvalidBundleError, InvalidConfigError, InvalidRequestError
from maisi.service.job import Job, Problem
from maisi.service.jobs import JobStore
from maisi.service.kinds import KINDS
from maisi.service.uploads import UploadStore

UPLOAD, JOB = "upload:", "job:"
BUNDLES = ("bundle", "label_bundle", "segmenter")
NUMBERINGS = ("numbering", "segmenter_numbering")
REFUSED = ("scratch", "ranks", "shard", "ray", "workers")
"""Settings that are the server's."""

_ID = "[0-9a-f]{24}"
Rule = Callable[[str, Any], Any]


def path_settings() -> frozenset[str]:
    """Names of all settings of all kinds that are paths, but for those that are the server's."""
    names = {name for model in KINDS.values() for name in _paths_of(model)}
    return frozenset(names - set(REFUSED))


def _paths_of(model: type[BaseModel]) -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        inner = _types_in(field.annotation)
        found |= {name} if Path in inner else set()
        for kind in inner:
            found |= _paths_of(kind) if isinstance(kind, type) and issubclass(kind, BaseModel) else set()
    return found


def _types_in(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    if get_origin(annotation) in (Union, UnionType, tuple):
        return {each for inner in get_args(annotation) for each in _types_in(inner)}
    return {annotation}


@dataclass(frozen=True)
class Places:
    """Where what clients name is found, and how it is called for them."""

    jobs: JobStore
    uploads: UploadStore
    bundles: Mapping[str, str]  # the default first: name -> what the program finds it by
    inputs: Path | None = None

    def resolved(self, kind: str, request: BaseModel) -> dict[str, Any]:
        """The settings of a request with paths for names; raises `InvalidRequestError` for what may not be named."""
        settings = request.model_dump(mode="json", exclude_unset=True)
        default = KINDS[kind].model_fields.get("bundle")
        if default is not None and default.default is not None:
            settings.setdefault("bundle", next(iter(self.bundles)))
        resolved: dict[str, Any] = self._walk(settings, "")
        return resolved

    def _walk(self, settings: Any, where: str) -> Any:
        if isinstance(settings, list):
            return [self._walk(each, f"{where}.{index}") for index, each in enumerate(settings)]
        if not isinstance(settings, dict):
            return settings
        rules, result = self._rules, {}
        for name, value in settings.items():
            here = f"{where}.{name}" if where else name
            rule = rules.get(name)
            result[name] = self._walk(value, here) if rule is None or value is None else _applied(rule, here, value)
        return result

    @property
    def _rules(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = dict.fromkeys(path_settings(), self._path)
        rules |= dict.fromkeys(BUNDLES, self._bundle) | dict.fromkeys(NUMBERINGS, _numbering)
        return rules | dict.fromkeys(REFUSED, _refused) | {"features": _features}

    def _bundle(self, where: str, name: str) -> str:
        if name not in self.bundles:
            close = get_close_matches(name, self.bundles, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InvalidBundleError(f"{where}: no bundle {name!r} here; {hint}accepted: {', '.join(self.bundles)}")
        return self.bundles[name]

    def _path(self, where: str, name: str) -> str:
        if name.startswith(UPLOAD):
            return str(self.uploads.path_of(name.removeprefix(UPLOAD)))
        if name.startswith(JOB):
            return str(self._artifact(where, name.removeprefix(JOB)))
        return str(self._input(where, name))

    def _artifact(self, where: str, named: str) -> Path:
        id, _, name = named.partition("/")
        job = self.jobs.get(id)
        if job.state != "done":
            raise InvalidRequestError(f"{where}: job {id} is {job.state}; accepted: a job that is done")
        if name and name not in job.artifacts:
            raise InvalidRequestError(f"{where}: job {id} has no {name!r}; accepted: {', '.join(job.artifacts)}")
        return self.jobs.folder_of(id) / name

    def _input(self, where: str, name: str) -> Path:
        accepted = "accepted: upload:ID, job:ID/NAME" + (
            ", or a file below the folder of --inputs" if self.inputs else ""
        )
        if self.inputs is None:
            raise InvalidRequestError(f"{where}: {name!r} is a path of the server; {accepted}")
        root = self.inputs.resolve()
        try:
            found = (root / name).resolve() if "\0" not in name else root.parent
            is_there = found.exists()
        except OSError:  # a name that no disk takes
            is_there = False
        if not is_there or PurePosixPath(name).is_absolute() or not found.is_relative_to(root):
            raise InvalidRequestError(f"{where}: there is no {name!r} below the folder of inputs; {accepted}")
        return found

    def told(self, job: Job) -> Job:
        """The job as clients are told of it: with the names that they gave, without paths of the server."""
        problem = None if job.problem is None else self.told_problem(job.problem)
        return job.model_copy(update={"request": self._renamed(job.request), "problem": problem})

    def told_problem(self, problem: Problem) -> Problem:
        """A problem, likewise."""
        return Problem.model_validate(self._renamed(problem.model_dump(mode="json")))

    def told_event(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The data of an event, likewise."""
        return self.told(Job.model_validate(data)).model_dump(mode="json") if "kind" in data else dict(data)

    def _renamed(self, settings: Any) -> Any:
        if isinstance(settings, dict):
            return {name: self._renamed(value) for name, value in settings.items()}
        if isinstance(settings, list):
            return [self._renamed(value) for value in settings]
        return self.named(settings) if isinstance(settings, str) else settings

    def named(self, text: str) -> str:
        """A text with the names of what it has paths of."""
        data = f"(?:{re.escape(str(self.jobs.folder))}/)?"
        text = re.sub(rf"{data}\buploads/({_ID})(/[^\s'\"]*)?", rf"{UPLOAD}\1", text)
        text = re.sub(rf"{data}\bjobs/({_ID})\b", rf"{JOB}\1", text).replace(f"{self.jobs.folder}/", "")
        if self.inputs is not None:
            text = text.replace(f"{self.inputs.resolve()}/", "")
        return next((name for name, place in self.bundles.items() if place == text), text)


def _applied(rule: Rule, where: str, value: Any) -> Any:
    """What a rule makes of a text, or of each text of a list."""
    if isinstance(value, list):
        return [_applied(rule, f"{where}.{index}", each) for index, each in enumerate(value)]
    if rule is not _refused and not isinstance(value, str):
        raise InvalidConfigError(f"{where}: {value!r} is not accepted here; it should be one name")
    return rule(where, value)


def _refused(where: str, value: Any) -> Any:
    raise InvalidConfigError(f"{where}: this is for the server to say; leave it out")


def _numbering(where: str, name: str) -> str:
    if name not in numbering_names():
        raise InvalidConfigError(f"{where}: unknown numbering {name!r}; accepted: {', '.join(numbering_names())}")
    return name


def _features(where: str, name: str) -> str:
    """The features of an evaluation by their name: no file and no code."""
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise InvalidConfigError(
            f"{where}: {name!r} is no name; accepted: scattering (files and code are the server's)"
        )
    return name
