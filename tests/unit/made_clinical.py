"""A small patient for tests of clinical files: a CT and labels with a hole, an islet and a tumour in its host."""

import numpy as np

from maisi.anatomy.codes import segments_of
from maisi.anatomy.vocabulary import load_vocabulary
from maisi.space.grid import Grid
from maisi.space.segments import Segment
from maisi.space.volume import LabelMap, Volume
from maisi.storage.provenance import BundleIdentity, Provenance

GRID = Grid.axis_aligned((18, 15, 12), (4.25, 5.5, 6.123456), (-50.1, -60.2, 33.3))


def made_labels() -> LabelMap:
    """Body, liver with a hole of body, a tumour in it, one kidney voxel that lies alone."""
    vocabulary = load_vocabulary()
    ids = np.zeros(GRID.shape, np.uint8)
    ids[2:16, 2:13] = vocabulary.id("body")
    ids[4:13, 4:11, 2:9] = vocabulary.id("liver")
    ids[6:9, 6:9, 3:8] = vocabulary.id("body")
    ids[10:12, 5:7, 4:6] = vocabulary.id("hepatic tumor")
    ids[14, 11, 7] = vocabulary.id("left kidney")
    return LabelMap(ids, GRID)


def made_volume() -> Volume:
    """HU that follow the labels, with noise."""
    rng = np.random.default_rng(3)
    hu = np.where(made_labels().array > 0, 50.0, -1000.0) + rng.normal(0, 12, GRID.shape)
    hu[3:5, 3:5] = -90
    return Volume(np.rint(hu).astype(np.float32), GRID)


def made_segments() -> tuple[Segment, ...]:
    vocabulary = load_vocabulary()
    return segments_of(vocabulary.check_ids(made_labels().array), vocabulary)


def made_provenance(file: str = "sample_000_ct.nii.gz", command: str = "generate") -> Provenance:
    bundle = BundleIdentity(name="tiny", version="1", sha256="ab" * 32)
    return Provenance(maisi="0.1.0", command=command, request={"seed": 7, "steps": 2}, seed=7, bundle=bundle, file=file)
