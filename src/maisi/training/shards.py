"""Checkpoints that every process writes its rows of, by torch.distributed.checkpoint, as safetensors.

One is a folder, `NAME-STEP`, that appears whole; the one before is removed after it. What does the work takes a second
to import, and few trainings need it: the functions do that.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from maisi.errors import InvalidRequestError
from maisi.splitting.ranks import failing_together
from maisi.storage.atomic import flush
from maisi.training.distributed import Team, in_rows

ABOUT = "checkpoint.json"


def folders_of(path: Path) -> list[Path]:
    """Complete checkpoints in shards with the name of a file, the newest last."""
    return sorted(path.parent.glob(f"{path.stem}-*[0-9]"))


def save_shards(tensors: Mapping[str, Tensor], about: Mapping[str, str], step: int, path: Path) -> None:
    """Write the rows that each process has beside `path`; all processes call this."""
    from torch.distributed import checkpoint as dcp

    team = Team.here()
    done = path.with_name(f"{path.stem}-{step:09d}")
    partial = path.with_name(f".{done.name}.partial")
    if team.is_first:
        for left in path.parent.glob(f".{path.stem}-*.partial"):
            shutil.rmtree(left)
        partial.mkdir()
    team.wait()
    rows = {name: tensor.reshape(1) if tensor.ndim == 0 else tensor for name, tensor in tensors.items()}
    with failing_together():
        dcp.save(rows, storage_writer=dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True))
    team.wait()  # until every process has written
    if team.is_first:
        (partial / ABOUT).write_text(json.dumps(dict(about)), encoding="utf-8")
        flush(partial / ABOUT)
        flush(partial)
        if done.exists():  # of the same step, and as whole
            shutil.rmtree(partial)
        else:
            partial.rename(done)
            flush(path.parent)
        remove_others(path, done)
    team.wait()


def remove_others(path: Path, kept: Path) -> None:
    """Remove the earlier checkpoints of the name, in whatever form."""
    for folder in folders_of(path):
        if folder != kept:
            shutil.rmtree(folder)
    if kept != path:
        path.unlink(missing_ok=True)


def read_about(folder: Path) -> dict[str, str]:
    """What a checkpoint in shards says of itself."""
    found: dict[str, str] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return found


def read_shards(folder: Path, like: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """The tensors of a checkpoint in shards, cut as `like` of their names is where it is cut.

    Raises `InvalidRequestError` for one that is damaged.
    """
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        reader = dcp.HuggingFaceStorageReader(str(folder))
        tensors = {}
        for name, each in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(each, TensorStorageMetadata)
            model = like(name)
            assert each.properties.dtype is not None
            if model is not None and in_rows(model) and model.shape == each.size:
                tensors[name] = torch.empty_like(model)
            else:
                tensors[name] = torch.empty(each.size, dtype=each.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that it reads alone is meant
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (OSError, RuntimeError, ValueError, dcp.CheckpointException) as error:
        raise InvalidRequestError(f"{folder} is not a readable checkpoint: {error}") from error
    return {name: value.reshape(()) if name.endswith("/step") else value for name, value in tensors.items()}


def cut_like(tensor: Tensor, model: Tensor | None) -> Tensor:
    """A whole tensor, cut as another of its shape is."""
    if model is None or not in_rows(model) or model.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(model, DTensor)
    tensor = tensor.to(model.device)
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)
