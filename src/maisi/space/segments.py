"""What a structure of a label map is called in files that name their structures: name, colour, standard code."""

from maisi.shapes import Frozen


class Code(Frozen):
    """A concept of a coding scheme, such as 10200004 (SCT, "Liver")."""

    value: str
    meaning: str
    scheme: str = "SCT"

    @property
    def key(self) -> tuple[str, str]:
        """What it is compared by: meanings differ from program to program."""
        return self.scheme, self.value


class Coding(Frozen):
    """The codes that say which structure a segment is."""

    type: Code
    laterality: Code | None = None
    region: Code | None = None  # that a lesion lies in
    region_laterality: Code | None = None

    @property
    def key(self) -> tuple[tuple[str, str] | None, ...]:
        """What it is compared by."""
        codes = (self.type, self.laterality, self.region, self.region_laterality)
        return tuple(None if code is None else code.key for code in codes)


class Segment(Coding):
    """One structure: its id in the label map, and how DICOM and 3D Slicer name it."""

    id: int
    name: str
    colour: tuple[int, int, int]
    category: Code
