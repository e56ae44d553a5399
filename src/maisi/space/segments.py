"""What a structure of a label map is called in files that name their structures: name, colour, standard code."""

from maisi.shapes import Frozen


class Code(Frozen):
    """A concept of a coding scheme, such as 10200004 (SCT, "Liver")."""

    value: str
    meaning: str
    scheme: str = "SCT"


class Segment(Frozen):
    """One structure: its id in the label map, and how DICOM and 3D Slicer name it."""

    id: int
    name: str
    colour: tuple[int, int, int]
    category: Code
    type: Code
    laterality: Code | None = None
    region: Code | None = None  # that a lesion lies in
    region_laterality: Code | None = None
