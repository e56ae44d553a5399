"""What a checkpoint of a training holds, and how it comes to disk and back."""

import json
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from maisi.errors import InvalidRequestError
from maisi.shapes import few
from maisi.storage.atomic import write_atomically
from maisi.storage.tensors import write_tensors
from maisi.training.distributed import Team, in_rows
from maisi.training.shards import cut_like, folders_of, read_about, read_shards, remove_others, save_shards

AVERAGE = "average"
"""How the names of moving averages begin."""


@runtime_checkable
class Keeper(Protocol):
    """Something that keeps numbers from step to step, which a resumed run needs."""

    def facts(self) -> dict[str, float]:
        """The numbers by name."""
        ...

    def resume(self, facts: Mapping[str, float]) -> None:
        """Take up the numbers of an earlier part of the run."""
        ...


@dataclass
class TrainingState:
    """All that a checkpoint holds: named modules, named optimisers, the number of finished steps, and keepers."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    step: int = 0
    keepers: dict[str, Keeper] = field(default_factory=dict)


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Write modules, optimiser moments and the step number to one safetensors file, beside and renamed.

    All is kept under the names of the parameters: `module/NAME/PARAMETER`, `optimizer/NAME/PARAMETER/MOMENT`. Where
    processes have rows of the weights, each writes its own into a folder beside `path`, see `shards`; else the first of
    them writes.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in state.modules.items():
        for key, value in module.state_dict().items():
            tensors[f"module/{name}/{key}"] = value.detach()
    learned: dict[str, list[str]] = {}
    for name, optimizer in state.optimizers.items():
        parameters = _parameters(name, optimizer)
        learned[name] = list(parameters)
        for key, parameter in parameters.items():
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}/{moment}"] = torch.as_tensor(value).detach()
    facts = {name: keeper.facts() for name, keeper in state.keepers.items()}
    told = {"step": str(state.step), "learned": json.dumps(learned), "facts": json.dumps(facts)}
    if any(in_rows(tensor) for tensor in tensors.values()):
        save_shards({name: tensor.contiguous() for name, tensor in tensors.items()}, told, state.step, path)
    elif Team.here().is_first:
        with write_atomically(path) as temporary:
            write_tensors(tensors, temporary, told)
        remove_others(path, path)


def has_checkpoint(path: Path) -> bool:
    """Whether there is one, as that file or in shards."""
    return path.exists() or bool(folders_of(path))


def load_checkpoint(state: TrainingState, path: Path) -> None:
    """Fill `state` from a checkpoint; strict: of other parameters, or damaged, it is an `InvalidRequestError`.

    It may be the file or in shards, the latest counts, and of any number of processes.
    """
    tensors, metadata = _read(path, state)
    if not {"step", "learned", "facts"} <= metadata.keys():
        raise InvalidRequestError(f"{path} is no checkpoint of this version: it does not name what had learned by when")
    step, learned, facts = int(metadata["step"]), json.loads(metadata["learned"]), json.loads(metadata["facts"])
    _check_names(path, "run", state.keepers, facts)
    for name, module in state.modules.items():
        _check_parameters(path, name, module.state_dict(), _under(tensors, f"module/{name}/"))
    for name, optimizer in state.optimizers.items():
        _check_names(path, f"optimizer of {name}", list(_parameters(name, optimizer)), learned.get(name, []))
    for name, module in state.modules.items():
        module.load_state_dict(_under(tensors, f"module/{name}/"))
    for name, optimizer in state.optimizers.items():
        _load_moments(path, name, optimizer, _under(tensors, f"optimizer/{name}/"))
    for name, keeper in state.keepers.items():
        keeper.resume(facts[name])
    state.step = step


def load_averages(state: TrainingState, path: Path) -> int:
    """Fill the moving averages of `state` alone from a checkpoint of its run, and give the step it was written at."""
    tensors, metadata = _read(path, state)
    for name, module in state.modules.items():
        if name.startswith(AVERAGE):
            found = _under(tensors, f"module/{name}/")
            _check_parameters(path, name, module.state_dict(), found)
            module.load_state_dict(found)
    return int(metadata["step"])


def _read(path: Path, state: TrainingState) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the latest checkpoint, cut as those of `state` are, and what it says of itself."""
    models = {
        **{f"module/{name}/{key}": value for name, m in state.modules.items() for key, value in m.state_dict().items()},
        **{f"optimizer/{name}/{k}": p for name, o in state.optimizers.items() for k, p in _parameters(name, o).items()},
    }

    def like(name: str) -> Tensor | None:
        return models.get(name.rpartition("/")[0] if name.startswith("optimizer/") else name)

    folders = folders_of(path)
    if not folders and not path.exists():
        raise InvalidRequestError(f"there is no checkpoint {path}")
    about = read_about(folders[-1]) if folders else {}
    try:
        with safe_open(path, framework="pt") if path.exists() else nullcontext() as file:
            metadata = {} if file is None else file.metadata() or {}
            if file is None or (folders and int(metadata.get("step", 0)) < int(about["step"])):
                return read_shards(folders[-1], like), about
            return {key: cut_like(file.get_tensor(key), like(key)) for key in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise InvalidRequestError(f"{path} is not a readable checkpoint: {error}") from error


def _load_moments(path: Path, name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the moments of a checkpoint; a parameter that has not learned yet has none."""
    parameters = _parameters(name, optimizer)
    places = {key: index for index, key in enumerate(parameters)}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, _, moment = key.rpartition("/")
        if parameter not in parameters or (value.ndim and value.shape != parameters[parameter].shape):
            shape = tuple(value.shape)
            raise InvalidRequestError(f"{path} is of another {name}: {moment} of {parameter} has the shape {shape}")
        moments.setdefault(places[parameter], {})[moment] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(name: str, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The parameters that an optimiser changes, by the names that it was given with them, in its own order."""
    found: dict[str, nn.Parameter] = {}
    for group in optimizer.param_groups:
        assert "param_names" in group, f"the optimiser of {name} was made without names"
        found |= dict(zip(group["param_names"], group["params"], strict=True))
    return found


def _check_parameters(path: Path, name: str, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    _check_names(path, name, expected, got)
    odd = [key for key in expected if got[key].shape != expected[key].shape]
    if odd:
        told = [f"{key} {tuple(got[key].shape)} instead of {tuple(expected[key].shape)}" for key in odd]
        raise InvalidRequestError(f"{path} is a checkpoint of another {name}: {few(told)}")


def _check_names(path: Path, name: str, expected: Collection[str], got: Collection[str]) -> None:
    lacking, foreign = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    told = [f"without {few(lacking)}"] * bool(lacking) + [f"with {few(foreign)}"] * bool(foreign)
    if told:
        raise InvalidRequestError(f"{path} is a checkpoint of another {name}: {', '.join(told)}")


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
