"""`maisi evaluate memorization`: the nearest training volume of every generated one, and pictures of the nearest."""

from functools import partial
from pathlib import Path

from maisi.evaluation.extractors import find_extractor
from maisi.evaluation.features import PROTOCOLS
from maisi.evaluation.memorization import find_copies, in_place
from maisi.evaluation.requests import EvaluateMemorizationRequest
from maisi.evaluation.sets import image_set
from maisi.pipelines.preview import comparison, write_png
from maisi.runs.task import Checked, Run, Task

REPORT, NUM_PAIRS = "memorization.json", 5


def check(request: EvaluateMemorizationRequest) -> Checked[EvaluateMemorizationRequest]:
    """The request with generated, training and held-out volumes, and the features."""
    extractor = find_extractor(request.features)
    generated = image_set(request.generated, None, request.modality, least=1)
    splits = (request.training_split, request.held_out_split) if request.held_out is None else (None, None)
    training = image_set(request.real, splits[0], request.modality)
    held_out = image_set(request.held_out or request.real, splits[1], request.modality)
    return Checked(request, (generated, training, held_out, extractor))


def inputs(request: EvaluateMemorizationRequest) -> tuple[Path, ...]:
    """The sets that are files."""
    paths = (request.generated, request.real, request.held_out)
    return tuple(path for path in paths if path is not None and path.is_file())


def work(checked: Checked[EvaluateMemorizationRequest], run: Run) -> None:
    """Write the report, and pictures of the nearest pairs."""
    generated, training, held_out, extractor = checked.subject
    told = partial(run.on_stage, "features")
    found = find_copies(generated, training, held_out, extractor, PROTOCOLS["maisi"], told)
    (run.partial / REPORT).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    made, real = ({image.name: image for image in images} for images in (generated, training))
    for rank, pair in enumerate(found.generated[:NUM_PAIRS]):
        volume = made[pair.name].read()
        title = f"{pair.name} and its nearest · {pair.image:.2f} apart; held out at least {found.least_image:.2f}"
        near = in_place(real[pair.nearest].read(), pair, volume.grid)
        picture = comparison(volume, near, title, (pair.name, pair.nearest))
        write_png(picture, run.partial / f"pair_{rank:02d}.png")
    run.warnings += [f"{each.name} is a copy of {each.nearest}" for each in found.copies]
    run.publish()


EVALUATE_MEMORIZATION = Task("evaluate memorization", EvaluateMemorizationRequest, check, work, inputs)
