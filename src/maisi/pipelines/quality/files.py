"""The verdict on label maps in files."""

from pathlib import Path

from maisi.data.door import open_labels, open_volume
from maisi.data.label_maps import is_one_map
from maisi.errors import InvalidRequestError
from maisi.pipelines.quality.judge import judge, judge_labels
from maisi.pipelines.quality.report import QualityReport
from maisi.pipelines.quality.request import CheckRequest
from maisi.space.endings import image_files
from maisi.space.volume import LabelMap


def check_files(request: CheckRequest) -> dict[str, QualityReport]:
    """The report on each label map, and with a CT on both, by the path of the map; folders give all that they hold.

    Raises `InvalidRequestError` for a CT and several maps, for a folder without any, and what the door refuses.
    """
    paths = [path for source in request.labels for path in _maps_of(source)]
    if request.ct is None:
        return {str(path): judge_labels(_labels(path, request)) for path in paths}
    if len(paths) != 1:
        raise InvalidRequestError(f"{len(paths)} label maps were given for one CT; accepted: --ct with one label map")
    volume, _ = open_volume(request.ct, request.reading)
    return {str(paths[0]): judge(volume, _labels(paths[0], request), modality=request.reading.modality)}


def _maps_of(source: Path) -> list[Path]:
    if not source.is_dir() or is_one_map(source):
        return [source]
    found = image_files(source)
    if not found:
        raise InvalidRequestError(
            f"no label map in {source}; accepted: NIfTI, NRRD or MetaImage files, folders of them or of masks"
        )
    return found


def _labels(path: Path, request: CheckRequest) -> LabelMap:
    labels, _ = open_labels(path, request.reading)
    return labels
