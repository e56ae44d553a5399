"""How all that a bundle can do with a volume would be cut to stay within memory."""

from maisi.bundle.bundle import Bundle
from maisi.compute.fit import fixed_bytes, plan
from maisi.compute.machine import dtype_of, fastest_precision
from maisi.errors import InvalidRequestError
from maisi.pipelines.codec import rehearse_both
from maisi.pipelines.generate import rehearse
from maisi.pipelines.labels import NoLabels
from maisi.pipelines.requests import GenerateRequest, PlanRequest
from maisi.pipelines.validate import bundle_of
from maisi.shapes import Frozen
from maisi.space.grid import Grid
from maisi.splitting.plan import MemoryPlan


class BundlePlan(Frozen):
    """A plan for each call to a network, and what the process and the networks take besides."""

    precision: str
    fixed_bytes: int
    plans: dict[str, MemoryPlan]


def plan_all(request: PlanRequest) -> BundlePlan:
    """Plans for encoding, sampling and decoding; the device need not be there.

    Raises `InvalidPlanError` with the least memory that would do.
    """
    if request.size is None or request.compute.memory is None:
        raise InvalidRequestError("a plan needs a size and an amount of memory")
    size = request.size
    precision = request.compute.precision or fastest_precision(request.compute)
    compute = request.compute.model_copy(update={"precision": precision})
    here = request.model_copy(update={"compute": compute.model_copy(update={"device": "cpu", "host_memory": None})})
    bundle = bundle_of(here)
    sampling = GenerateRequest(compute=compute)
    x, y, z = (-(-n // bundle.size_multiple) * bundle.size_multiple for n in size)  # sampling takes fewer sizes
    source = NoLabels("chest", Grid.centered((x, y, z), (1.0, 1.0, 1.0)))

    def work(networks: Bundle) -> None:
        rehearse_both(size, networks)
        if "unet" in networks.kinds:
            rehearse(sampling, source, networks)

    return BundlePlan(
        precision=precision, fixed_bytes=fixed_bytes(bundle, dtype_of(compute)), plans=plan(bundle, compute, work)
    )
