"""Requests of tasks that are no pipeline. Imports no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from maisi.shapes import Frozen
from maisi.space.reading import ReadOptions


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
    """A CT, a folder of cases or a manifest, and what its cases are to become."""

    source: Path | None = Field(
        default=None, description="Folder of maisi generate or maisi prepare, a manifest, or one CT."
    )
    to: Literal["monai", "msd", "nnunet", "dicom", "seg", "rtstruct", "seg.nrrd", "nrrd", "mha"] = Field(
        description="A data set: monai, msd, nnunet. Files: dicom, seg, rtstruct, seg.nrrd, nrrd, mha."
    )
    labels: Path | None = Field(default=None, description="Label map of the one CT, or alone, for files.")
    classes: tuple[str, ...] = Field(
        default=(),
        description="Structures or groups to keep, in a data set numbered from 1 in this order.",
        json_schema_extra={"shown_default": "all that are there"},
    )
    encoding: Literal["auto", "binary", "labelmap"] = Field(
        default="auto", description="Of a SEG: binary, labelmap, or auto, which is binary up to 20 structures."
    )
    reading: ReadOptions = ReadOptions()

    @property
    def is_data_set(self) -> bool:
        """Whether the cases become a data set of another tool."""
        return self.to in ("monai", "msd", "nnunet")

    @model_validator(mode="after")
    def _fits_together(self) -> "ExportRequest":
        if self.source is None and (self.is_data_set or self.labels is None):
            raise ValueError("nothing to export; give a folder, a manifest or a CT, or for files labels alone")
        if self.is_data_set and self.labels is not None:
            raise ValueError(f"a data set ({self.to}) is made of a folder or a manifest; leave out labels")
        if self.encoding != "auto" and self.to not in ("dicom", "seg"):
            raise ValueError(f"{self.encoding} is an encoding of a SEG; leave it out for {self.to}")
        return self
