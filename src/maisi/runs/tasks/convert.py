"""`maisi convert`: upstream's checkpoints made into a bundle, its embeddings into latents."""

from collections import Counter
from pathlib import Path

from maisi.bundle.bundle import fill_bundle
from maisi.bundle.convert import assemble
from maisi.data.latents import LATENTS, LatentEntry, write_entries, write_latent
from maisi.data.upstream_latents import SUFFIX, embeddings_in, read_embedding
from maisi.errors import InvalidRequestError
from maisi.runs.requests import ConvertLatentsRequest, ConvertRequest
from maisi.runs.task import Checked, Output, Run, Task, check_not_within
from maisi.storage.sums import sha256


def check(request: ConvertRequest) -> Checked[ConvertRequest]:
    """The request with the bundle that its checkpoints make."""
    request = request.model_copy(update={"checkpoints": tuple(path.resolve() for path in request.checkpoints)})
    return Checked(request)


def inputs(request: ConvertRequest) -> tuple[Path, ...]:
    """The checkpoints."""
    return request.checkpoints


def work(checked: Checked[ConvertRequest], run: Run) -> None:
    """Write the bundle."""
    request = checked.request
    bundle = assemble(
        request.checkpoints,
        name=request.name or run.name,
        model=request.model,
        scale_factor=request.scale_factor,
        licence=request.licence,
    )
    run.on_stage("convert", 1, 1)
    fill_bundle(bundle, run.partial)
    run.publish()


def check_latents(request: ConvertLatentsRequest) -> Checked[ConvertLatentsRequest]:
    """The request with the embeddings that its folders hold."""
    folders = tuple(folder.resolve() for folder in request.folders)
    found = [path for folder in folders for path in embeddings_in(folder)]
    if not found:
        raise InvalidRequestError(f"no {SUFFIX} in {', '.join(map(str, folders))}; accepted: folders of embeddings")
    counts = Counter(path.name.casefold() for path in found)  # some disks do not tell A from a
    twice = sorted({path.name for path in found if counts[path.name.casefold()] > 1})
    if twice:
        raise InvalidRequestError(f"two embeddings are called {twice[0]}; accepted: one folder at a time")
    return Checked(request.model_copy(update={"folders": folders}), found)


def work_latents(checked: Checked[ConvertLatentsRequest], run: Run) -> None:
    """Write a latent an embedding, and the index; one that is wrong stops no other."""
    entries = []
    for done, path in enumerate(checked.subject, start=1):
        id = path.name.removesuffix(SUFFIX)
        try:
            found = read_embedding(path)
        except InvalidRequestError as error:
            run.warnings.append(str(error))
            continue
        run.warnings += [f"{path.name}: {note}" for note in found.notes]
        file = run.partial / f"{id}.safetensors"
        write_latent(found.latent, file)
        entries.append(LatentEntry(id=id, file=file.name, sha256=sha256(file)))
        run.on_stage("convert", done, len(checked.subject))
    if not entries:
        raise InvalidRequestError(f"no embedding could be read; first: {run.warnings[0]}")
    write_entries(entries, run.partial / LATENTS)
    run.publish()


def check_place(request: ConvertRequest, out: Path) -> None:
    """Nothing, or the refusal of a place in which a checkpoint lies."""
    check_not_within(out, request.checkpoints)


def check_place_of_latents(request: ConvertLatentsRequest, out: Path) -> None:
    """Nothing, or the refusal of a place in which embeddings lie."""
    check_not_within(out, request.folders)


CONVERT_LATENTS = Task(
    "convert latents",
    ConvertLatentsRequest,
    check_latents,
    work_latents,
    output=Output.WHOLE,
    check_place=check_place_of_latents,
)
CONVERT = Task("convert", ConvertRequest, check, work, inputs, Output.WHOLE, check_place=check_place)
