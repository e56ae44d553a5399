"""Tumours in label maps: new ones in a host organ, and given ones moved within theirs."""

from maisi.anatomy.tumours.augment import augment_tumours
from maisi.anatomy.tumours.plant import plant
from maisi.anatomy.tumours.shapes import lesion_shape
from maisi.anatomy.tumours.table import Tumour, tumour_named, tumour_rows

__all__ = ["Tumour", "augment_tumours", "lesion_shape", "plant", "tumour_named", "tumour_rows"]
