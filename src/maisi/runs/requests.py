"""Requests of tasks that are no pipeline. Imports no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from maisi.shapes import Frozen


class ConvertRequest(Frozen):
    """Which checkpoints belong together, and what they do not say."""

    checkpoints: tuple[Path, ...] = Field(description="Upstream .pt files that belong together.")
    name: str | None = Field(
        default=None, description="Name of the bundle.", json_schema_extra={"shown_default": "the folder's"}
    )
    model: str | None = Field(default=None, description="ddpm-ct, rflow-ct or mask, where the files do not say it.")
    scale_factor: float | None = Field(
        default=None, gt=0, description="Of the latents, where the U-Net's file has none."
    )
    licence: str = Field(default="that of the converted checkpoints", description="Licence of the weights.")


class ConvertLatentsRequest(Frozen):
    """Folders of upstream's embeddings."""

    folders: tuple[Path, ...] = Field(description="Folders of upstream's embeddings, X_emb.nii.gz with side-cars.")


class ExportRequest(Frozen):
    """A manifest, or a folder that holds one, and what its cases are to become."""

    source: Path = Field(description="Folder of maisi generate --requests or maisi prepare, or a manifest.")
    to: Literal["monai", "msd", "nnunet"] = Field(description="monai, msd or nnunet.")
    classes: tuple[str, ...] = Field(
        default=(),
        description="Structures or groups to keep, numbered from 1 in this order.",
        json_schema_extra={"shown_default": "all that are there"},
    )
