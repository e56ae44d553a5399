"""CT series in DICOM files: which files, which series, which stack of slices, where it lies, and its HU. And labels.

Geometry by DICOM PS3.3 C.7.6.2 (Image Plane) and, for Enhanced CT, C.7.6.16.2 (functional groups); positions are LPS.
"""

from maisi.space.dicom.labels import read_dicom_labels
from maisi.space.dicom.opening import is_dicom
from maisi.space.dicom.series import read_series

__all__ = ["is_dicom", "read_dicom_labels", "read_series"]
