"""`maisi encode --manifest`: the cases of a manifest as latents that training takes, a file a case."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from maisi.bundle.bundle import Bundle, load_bundle
from maisi.bundle.digest import weights_digest
from maisi.compute.compute import Compute
from maisi.compute.fit import fit
from maisi.data.cases import case_span, read_case
from maisi.data.latents import LATENTS, LatentEntry, read_origin, write_entries, write_latent
from maisi.data.manifest import Case, read_manifest
from maisi.errors import InvalidRequestError
from maisi.pipelines.codec import rehearse_encode
from maisi.pipelines.requests import EncodeCasesRequest, EncodeRequest
from maisi.pipelines.validate import bundle_vocabulary, check_takes_ct, compute_for, lasting_name, load_for
from maisi.recipes.variations import encode_labelled
from maisi.runs.spread import spread
from maisi.runs.task import Checked, Output, Run, Task
from maisi.storage.sums import sha256


@dataclass(frozen=True)
class EncodeWork:
    """A case to encode, by which bundle, where to."""

    case: Case
    bundle: str
    compute: Compute
    folder: Path
    made_from: str  # what the latent is to say of its making

    @property
    def file(self) -> Path:
        """Where the latent lies."""
        return self.folder / f"{self.case.stem}.safetensors"

    @property
    def is_done(self) -> bool:
        """Whether an earlier run has made it, of the same case with the same weights."""
        return self.file.is_file() and read_origin(self.file) == self.made_from


def check(request: EncodeCasesRequest) -> Checked[EncodeCasesRequest]:
    """The request, its manifest read and its bundle found."""
    cases = tuple(case for case in read_manifest(request.manifest) if case.image is not None)
    if not cases:
        raise InvalidRequestError(f"{request.manifest} has no case with an image")
    bundle = load_bundle(request.bundle)
    check_takes_ct(bundle)
    compute = compute_for(request.compute, None)
    update = {
        "manifest": request.manifest.resolve(),
        "bundle": lasting_name(request.bundle, bundle),
        "compute": compute,
    }
    return Checked(request.model_copy(update=update), cases, bundle)


def inputs(request: EncodeCasesRequest) -> tuple[Path, ...]:
    """The manifest."""
    return (request.manifest,) if request.manifest.is_file() else ()


def shard_of(request: EncodeCasesRequest) -> str | None:
    """The part of an array job that a request is for."""
    return request.across.shard


def cluster_of(request: EncodeCasesRequest) -> tuple[str | None, int]:
    """The Ray cluster, and the cores of an item: the same in every process, since last bits depend on it."""
    return request.across.ray, request.compute.threads or 1


def work(checked: Checked[EncodeCasesRequest], run: Run) -> None:
    """Encode the cases of this part that are not there yet, then write the index of all that are."""
    run.publish()  # the settings, by which a later run knows that it goes on
    request, cases, folder = checked.request, checked.subject, run.folder
    assert checked.bundle is not None
    weights = weights_digest(checked.bundle.autoencoder.state_dict())
    everything = [
        EncodeWork(case, request.bundle, request.compute, folder, made_from(case, checked.bundle, weights))
        for case in cases
    ]
    own = request.across.own(everything)
    items = [item for item in own if not item.is_done]
    _, threads = cluster_of(request)
    for done, outcome in enumerate(
        spread(encode_case, items, request.across, threads), start=1 + len(own) - len(items)
    ):
        if outcome.error is not None:
            id = items[outcome.place].case.id
            run.warnings.append(f"case {id}: {outcome.error.removeprefix(f'case {id}: ')}")
        run.on_stage("encode", done, len(own))
    there = [item for item in everything if item.is_done]
    index = folder / LATENTS
    write_entries(_entries(there, weights), index)
    run.outputs |= {index, *(item.file for item in there)}
    if not there:
        raise InvalidRequestError(f"no case could be encoded; first: {run.warnings[0] if run.warnings else 'none'}")


def _entries(made: Iterable[EncodeWork], weights: str) -> Iterable[LatentEntry]:
    for each in made:
        case, sum = each.case, sha256(each.file)
        yield LatentEntry(id=case.id, file=each.file.name, sha256=sum, split=case.split, autoencoder=weights)


def made_from(case: Case, bundle: Bundle, weights: str) -> str:
    """What a latent says of its making: case, bundle, weights, and a sum of what the manifest says of the case."""
    said = case.model_dump_json(exclude={"image", "labels", "labels_maisi", "notes"})
    told = hashlib.sha256(said.encode()).hexdigest()
    return f"case {case.id} {told[:8]}, bundle {bundle.name} {bundle.info.version}, autoencoder {weights[:12]}"


def encode_case(work: EncodeWork) -> str:
    """The id of a case whose latent is on disk: mean, log-variance, labels, region, spacing, modality, group."""
    whole = _bundle(work.bundle, work.compute)
    volume, labels = read_case(work.case, vocabulary=bundle_vocabulary(whole))
    span = case_span(work.case, labels)
    bundle = fit(whole, work.compute, partial(rehearse_encode, volume.grid.shape))
    modality, group = work.case.modality, work.case.group
    latent = encode_labelled(bundle.autoencoder, volume, labels, span, modality, group, work.made_from)
    write_latent(latent, work.file)
    return work.case.id


@lru_cache(maxsize=1)
def _bundle(name: str, compute: Compute) -> Bundle:
    return load_for(EncodeRequest(bundle=name, compute=compute))


ENCODE_CASES = Task(
    "encode cases", EncodeCasesRequest, check, work, inputs, Output.SHARED, shard=shard_of, cluster=cluster_of
)
