"""What an autoencoder keeps of a volume: encode, decode, compare."""

from pathlib import Path

from maisi.bundle.bundle import Bundle
from maisi.evaluation.fidelity import Fidelity, box_blur, fidelity
from maisi.pipelines.codec import decode, encode
from maisi.shapes import Frozen
from maisi.space.intensity import from_unit, to_unit
from maisi.space.volume import Volume

METRICS = "metrics.json"


class ReconstructionMetrics(Frozen):
    """How close a reconstruction is, beside the yardstick: the same volume with every voxel the mean of its 3^3."""

    reconstruction: Fidelity
    yardstick: Fidelity


def reconstruct(bundle: Bundle, volume: Volume) -> Volume:
    """The volume after one pass through the autoencoder, on its own grid."""
    return decode(bundle.autoencoder, encode(bundle.autoencoder, volume))


def as_decoded(volume: Volume) -> Volume:
    """The volume in the values that decoding gives: an MR, whose own have no unit, from 0 to about 1000."""
    if volume.modality == "ct":
        return volume
    unit = to_unit(volume.array, volume.modality)
    return Volume(from_unit(unit, volume.modality), volume.grid, volume.modality)


def measure(original: Volume, reconstruction: Volume) -> ReconstructionMetrics:
    """Fidelity of a reconstruction and of the yardstick."""
    return ReconstructionMetrics(
        reconstruction=fidelity(reconstruction, original), yardstick=fidelity(box_blur(original), original)
    )


def read_metrics(path: Path) -> ReconstructionMetrics:
    """The metrics in a `metrics.json`."""
    return ReconstructionMetrics.model_validate_json(path.read_text(encoding="utf-8"))
