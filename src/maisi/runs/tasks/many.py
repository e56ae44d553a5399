"""`maisi generate --requests`: samples of distributions, each exactly once, however often the run is begun."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from maisi.bundle.bundle import Bundle
from maisi.compute.machine import num_ranks
from maisi.data.library import INDEX
from maisi.errors import InvalidRequestError, RunError, StorageError
from maisi.pipelines.many.facts import (
    SampleFacts,
    all_facts,
    facts_name,
    facts_of,
    known_facts,
    write_cases,
    write_facts,
)
from maisi.pipelines.many.overlap import overlapped
from maisi.pipelines.many.page import write_page
from maisi.pipelines.many.requests import COMMAND, ManyRequest, absolute, draw_request, paths_of, request_of
from maisi.pipelines.many.stages import Made, Maker, SampleWork, bundle_for, only_source
from maisi.pipelines.requests import GenerateRequest
from maisi.pipelines.validate import compute_for, lasting_name, load_for, validate_generate
from maisi.runs.spread import spread
from maisi.runs.task import Checked, Output, Run, Task
from maisi.runs.tasks.generate import file_names, made_by, set_apart, stem_of, write_sample
from maisi.space.reading import FileReport
from maisi.storage.folders import FAILED, open_beside, storage_errors

NOWHERE = Path()


def check(request: ManyRequest) -> Checked[ManyRequest]:
    """The request with its bundle; every sample is drawn and its request checked, and where memory is limited its plan.

    Raises `InvalidRequestError` (or a kind of it) that names the first request that cannot be carried out.
    """
    if num_ranks() > 1:
        raise InvalidRequestError(
            "torchrun splits one volume over processes; samples are spread by --workers, --shard or --ray"
        )
    compute = compute_for(request.compute, None)
    bundle = load_for(GenerateRequest(bundle=request.bundle, compute=compute))
    update = {"compute": compute, "bundle": lasting_name(request.bundle, bundle)}
    request = absolute(request.model_copy(update=update))
    maker, works, reports = Maker(bundle), [], {}
    for index in range(request.count):
        work, found = checked_work(request, index, maker)
        works.append(work)
        reports.update({report.path: report for report in found})
    return Checked(request, tuple(works), bundle, tuple(reports.values()))


def checked_work(request: ManyRequest, index: int, maker: Maker) -> tuple[SampleWork, tuple[FileReport, ...]]:
    """The work of a sample, all that it left open filled in, and what was found in files that it names."""
    drawn = draw_request(request, index)
    asked = request_of(drawn)
    try:
        valid = validate_generate(asked, maker.bundle)
        source = only_source(valid)
        if request.compute.memory is not None:
            maker.fit(valid, source)
    except InvalidRequestError as error:
        raise type(error)(f"request {index}: {error}") from error
    return SampleWork(drawn, valid.request, NOWHERE), valid.reports


def inputs(request: ManyRequest) -> tuple[Path, ...]:
    """The label maps, folders of them, indices of libraries and bundles of label generators, that are drawn from."""
    paths = (path / INDEX if (path / INDEX).is_file() else path for path in paths_of(request))
    return tuple(path for path in paths if path.exists())


def shard_of(request: ManyRequest) -> str | None:
    """The part of an array job that a request is for."""
    return request.across.shard


def cluster_of(request: ManyRequest) -> tuple[str | None, int]:
    """The Ray cluster, and the cores of an item: the same in every process, since last bits depend on it."""
    return request.across.ray, request.compute.threads or 1


def work(checked: Checked[ManyRequest], run: Run) -> None:
    """Make the samples of this part that are not there yet, then the manifest and the page of all that are."""
    run.publish()  # the settings, by which a later run knows that it goes on
    request, folder = checked.request, run.folder
    assert checked.bundle is not None
    own = [SampleWork(each.drawn, each.request, folder) for each in request.across.own(checked.subject)]
    items = [item for item in own if _known(item) is None]
    make = _beside_each_other if request.across.workers > 1 or request.across.ray else _one_after_the_other
    for done, error in enumerate(make(items, checked, run), start=1 + len(own) - len(items)):
        if error:
            run.warnings.append(error)
        else:
            run.num_made += 1
        run.watch.on_stage("samples", done, len(own))
    facts = all_facts(folder)
    run.outputs |= {write_cases(facts, folder), write_page(facts, request, folder)}
    run.outputs |= {folder / name for each in facts for name in (*each.files, facts_name(each.stem))}
    run.warnings += [
        f"{each.stem}: {problem}" for each in facts for problem in (*each.problems, each.failed) if problem
    ]
    run.meter.end("summary")
    _check_complete(own, run)


def _known(item: SampleWork) -> SampleFacts | None:
    return known_facts(item.folder, item.drawn.stem, item.request.model_dump(mode="json"))


def _check_complete(own: Sequence[SampleWork], run: Run) -> None:
    """Nothing, or a `RunError` where samples are missing that another try may make; those that failed are told."""
    known = [_known(item) for item in own]
    run.failed += [facts.stem for facts in known if facts is not None and facts.failed]
    run.kept += [facts.stem for facts in known if facts is not None and facts.problems and not facts.failed]
    missing = [item.drawn.stem for item, facts in zip(own, known, strict=True) if facts is None]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        first = next((warning for warning in run.warnings if warning.startswith(missing[0])), "unknown")
        raise RunError(
            f"{len(missing)} of {len(own)} samples were not made ({some}); first: {first}; the others are in "
            f"{run.folder}, ask again to go on"
        )


def _one_after_the_other(items: Sequence[SampleWork], checked: Checked[ManyRequest], run: Run) -> Iterator[str]:
    """Make samples in this process, their stages side by side unless memory is limited; see `written`."""
    assert checked.bundle is not None
    bundle = checked.bundle
    for name in bundle.names if items else ():
        bundle.network(name)  # loads it
    run.meter.end("load")

    def on_stage(stage: str, done: int, total: int) -> None:
        if done == total:
            run.meter.end(stage)
        run.watch.on_stage(stage, done, total)

    maker = Maker(bundle, on_stage)
    keep = partial(written, bundle=bundle, partial_folder=run.partial, publish=run.publish_beside)
    yield from overlapped(items, maker.prepare, maker.make, keep, beside=checked.request.compute.memory is None)


def _beside_each_other(items: Sequence[SampleWork], checked: Checked[ManyRequest], run: Run) -> Iterator[str]:
    """Make samples in several processes; for each that ends, what went wrong ("" for nothing)."""
    _, threads = cluster_of(checked.request)
    for outcome in spread(make_sample, items, checked.request.across, threads):
        if outcome.result:
            raise StorageError(outcome.result)
        yield f"{items[outcome.place].drawn.stem}: {outcome.error}" if outcome.error is not None else ""


def make_sample(item: SampleWork) -> str:
    """Make and write one sample in a process of its own; gives what is wrong with the disk, "" for nothing."""
    bundle = bundle_for(item.request.bundle, item.request.compute)
    maker = Maker(bundle)
    try:
        with open_beside(item.folder) as folder:
            made = maker.make(maker.prepare(item))
            written(made, bundle=bundle, partial_folder=folder.partial, publish=folder.publish)
    except StorageError as error:
        return str(error)
    if made.trouble:
        raise RunError(made.trouble)
    return ""


def written(made: Made, *, bundle: Bundle, partial_folder: Path, publish: Callable[[], object]) -> str:
    """The third stage: the files of a sample, and its facts, in their place; what failed its check is kept apart.

    Gives what went wrong and may go well another time: then nothing is written.
    """
    if made.trouble:
        return f"{made.work.drawn.stem}: {made.trouble}"
    try:
        with storage_errors(made.work.folder):
            names = _write_files(made, bundle, partial_folder) if made.sample is not None else {}
            facts = facts_of(made, bundle, partial_folder, names)
            write_facts(facts, partial_folder / facts_name(facts.stem))
            publish()
    except StorageError as error:  # in the user's words: where the file was to go
        raise StorageError(str(error).replace(str(partial_folder), str(made.work.folder))) from error
    return ""


def _write_files(made: Made, bundle: Bundle, partial_folder: Path) -> dict[str, str]:
    """Write the files of a sample, apart where it failed its check, and give their names by what they hold."""
    assert made.sample is not None
    request = made.work.request
    usual = stem_of(request, made.source, 0)
    names = {
        kind: f"{made.work.drawn.stem}{name.removeprefix(usual)}"
        for kind, name in file_names(request, made.source, 0).items()
    }
    if made.failed:
        (made.work.folder / FAILED).mkdir(exist_ok=True)  # before others, so that files move into it
        names = set_apart(names)
    files = {kind: partial_folder / name for kind, name in names.items()}
    write_sample(made.sample, request, bundle, files, made_by(request, bundle, made.source, 0))
    return names


MANY = Task(COMMAND, ManyRequest, check, work, inputs, Output.SHARED, shard=shard_of, cluster=cluster_of)
