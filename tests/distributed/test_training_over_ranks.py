"""A training over several processes is that of one: the same weights to rounding, whoever stops and goes on."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from processes import run_each_to_its_end, run_ranks

from maisi.cli.process import process_for
from maisi.compute.compute import Compute
from maisi.errors import InvalidRequestError, InvalidVolumeError, RunError
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.training.learner import Learner, MicroBatch
from maisi.training.loop import LoopConfig, fit, step_generators
from maisi.training.optimization import Optimization
from maisi.training.state import TrainingState, load_checkpoint

PARTS = 4  # micro-batches a step
ROUNDING = 1e-11  # of float64 weights near 1, after a few steps of Adam
SETTINGS = Optimization(
    learning_rate=1e-2, warmup=2, precision="float32", accumulate=PARTS, clip_norm=0.05, average_decay=0.9
)
SHARDED = SETTINGS.model_copy(update={"sharded": True})


def network(seed: int = 0) -> DenoisingUNet:
    """In float64, so that the order of sums is all that can differ, and by little."""
    torch.manual_seed(seed)
    levels = {"channels": (8,), "num_res_blocks": (1,), "attention_levels": (True,), "head_channels": 8}
    unet = DenoisingUNet(UNetConfig(**levels, norm_groups=4)).double()
    for parameter in unet.parameters():
        if not parameter.any():  # a fresh one answers zero, and most gradients are
            torch.nn.init.normal_(parameter, std=0.1)
    return unet.to(memory_format=torch.channels_last_3d)  # as the trainings lay it out


class Lesson:
    """A network that learns from drawn batches, the same ones however many processes there are."""

    def __init__(self, config: Optimization, bad: tuple[int, int] | None = None, seed: int = 0) -> None:
        self.unet, self.bad = network(seed), bad
        self.learner = Learner({"unet": self.unet}, config, num_steps=4)
        self.state = TrainingState()
        self.learner.join(self.state)

    def batch(self, step: int, part: int) -> MicroBatch:
        def losses(precision: str) -> dict[str, Tensor]:
            draw, _ = step_generators(5, step * PARTS + part)
            clean, noise = torch.randn(2, 1, 4, 4, 4, 4, generator=draw, dtype=torch.float64)
            t = torch.tensor([300.0 + 100 * part], dtype=torch.float64)
            loss = (self.unet(clean + noise, t) - noise).square().mean()
            told = {"loss": loss * math.nan if (step, part) == self.bad else loss}
            return {**told, "half": loss / 2} if part == 1 else told

        return MicroBatch(losses, (f"case {part}",))

    def step(self, step: int) -> dict[str, float]:
        return self.learner.update(step, [self.batch(step, part) for part in self.learner.parts])

    def tensors(self) -> dict[str, Tensor]:
        """All weights, averages and moments, whole."""
        found = {f"average/{k}": v for k, v in self.learner.averages["unet"].state_dict().items()}
        optimizer = self.learner.optimizers["unet"]
        for name, parameter in self.unet.named_parameters():
            found[name] = parameter.detach()
            found |= {f"{name}/{k}": torch.as_tensor(v) for k, v in optimizer.state[parameter].items()}
        return {name: v.full_tensor() if hasattr(v, "full_tensor") else v for name, v in found.items()}

    def run(self, folder: Path, until: int | None = None) -> dict[str, Tensor]:
        loop = LoopConfig(num_steps=4, save_every=2, validate_every=2)
        fit(self.state, self.step, loop, folder, None, until, lambda step: {"loss": 1.0 / step})
        return self.tensors()


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], within: float = ROUNDING) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], rtol=within, atol=within, msg=lambda m, n=name: f"{n}: {m}")


def learn(rank: int, folder: Path) -> None:
    for how, config in (("replicated", SETTINGS), ("sharded", SHARDED)):
        lesson = Lesson(config, bad=(2, 1), seed=rank)  # the second rank's weights and bad batch
        told = [lesson.step(step) for step in range(4)]
        tensors = lesson.tensors()
        (folder / f"{how}{rank}.json").write_text(json.dumps(told))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{how}{rank}.safetensors")
    with pytest.raises(InvalidRequestError, match=r"share 3 batches a step evenly; accepted: .* 2 or 4"):
        Lesson(SETTINGS.model_copy(update={"accumulate": 3}))
    lesson = Lesson(SETTINGS.model_copy(update={"most_skipped": 0}), bad=(0, 1))
    with pytest.raises(RunError, match="step 1 on case 0, case 2, case 1, case 3"):
        lesson.step(0)


def test_steps_over_two_processes_are_those_of_one(tmp_path: Path) -> None:
    run_ranks(learn, 2, tmp_path)
    alone = Lesson(SETTINGS, bad=(2, 1))
    expected = [alone.step(step) for step in range(4)]
    assert [step for step, metrics in enumerate(expected) if "skipped" in metrics] == [2]
    assert expected[0]["grad_norm"] > SETTINGS.clip_norm  # so that it is clipped
    for how in ("replicated", "sharded"):
        told = [json.loads((tmp_path / f"{how}{rank}.json").read_text()) for rank in (0, 1)]
        assert told[0] == told[1]
        for metrics, wanted in zip(told[0], expected, strict=True):
            assert metrics == pytest.approx(wanted, abs=2e-6)
        ranks = [load_file(tmp_path / f"{how}{rank}.safetensors") for rank in (0, 1)]
        assert_close(ranks[0], ranks[1], within=0)
        assert_close(ranks[0], alone.tensors())


def branches() -> tuple[nn.ModuleDict, list[dict[str, float]]]:
    """A network one half of which the second part of each step uses alone, and no part once it is frozen."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"always": nn.Linear(3, 3), "at_times": nn.Linear(3, 3)}).double()
    learner = Learner({"net": net}, SETTINGS, num_steps=6)
    x = torch.ones(3, dtype=torch.float64)

    def batch(step: int, part: int) -> MicroBatch:
        def losses(precision: str) -> dict[str, Tensor]:
            y = net["always"](x * (step + part))
            return {"loss": (net["at_times"](y) if part == 1 else y).square().mean()}

        return MicroBatch(losses)

    told = []
    for step in range(4):
        net["at_times"].requires_grad_(step < 2)
        told.append(learner.update(step, [batch(step, part) for part in learner.parts]))
    return net, told


def learn_at_times(rank: int, folder: Path) -> None:
    net, told = branches()
    (folder / f"{rank}.json").write_text(json.dumps(told))
    save_file(net.state_dict(), folder / f"{rank}.safetensors")


def test_replicated_weights_that_only_one_process_uses_learn_too(tmp_path: Path) -> None:
    run_ranks(learn_at_times, 2, tmp_path)
    net, told = branches()
    for rank in (0, 1):
        assert_close(load_file(tmp_path / f"{rank}.safetensors"), net.state_dict())
        for metrics, wanted in zip(json.loads((tmp_path / f"{rank}.json").read_text()), told, strict=True):
            assert metrics == pytest.approx(wanted, abs=2e-6)


def first_parts(rank: int, folder: Path) -> None:
    whole = Lesson(SHARDED).run(folder / "whole")
    if rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in whole.items()}, folder / "whole.safetensors")
    lesson = Lesson(SHARDED)
    lesson.run(folder / "two then two", until=2)
    if rank == 0:
        shutil.copytree(folder / "two then two", folder / "two then one")
    lesson.learner.team.wait()
    assert_close(Lesson(SHARDED, seed=7).run(folder / "two then two"), whole, within=0)
    Lesson(SETTINGS).run(folder / "replicated then sharded", until=3)
    assert_close(Lesson(SHARDED, seed=7).run(folder / "replicated then sharded"), whole)


def second_part(rank: int, folder: Path) -> None:
    tensors = Lesson(SHARDED, seed=7).run(folder / "one then two")
    if rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "resumed.safetensors")


def test_a_run_goes_on_with_more_or_fewer_processes(tmp_path: Path) -> None:
    alone = Lesson(SETTINGS).run(tmp_path / "alone")
    run_ranks(first_parts, 2, tmp_path)
    assert_close(load_file(tmp_path / "whole.safetensors"), alone)
    assert sorted(p.name for p in (tmp_path / "two then one").glob("*-*")) == ["best-000000002", "checkpoint-000000002"]
    assert_close(Lesson(SETTINGS, seed=7).run(tmp_path / "two then one"), alone)
    assert not list((tmp_path / "two then one").glob("checkpoint-*"))  # the file is the latest one now

    Lesson(SETTINGS).run(tmp_path / "one then two", until=2)
    (tmp_path / "one then two" / ".checkpoint-000000004.partial").mkdir()  # a kill while saving leaves such a folder
    run_ranks(second_part, 2, tmp_path)
    assert_close(load_file(tmp_path / "resumed.safetensors"), alone)
    assert {p.name for p in (tmp_path / "one then two").glob("*checkpoint*")} == {"checkpoint-000000004"}
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("alone", "one then two")]
    assert [json.loads(line)["step"] for line in lines[0]] == [json.loads(line)["step"] for line in lines[1]]


def die_once(rank: int, folder: Path) -> None:
    lesson = Lesson(SHARDED)
    step = lesson.step

    def dying(number: int) -> dict[str, float]:
        if number == 2 and rank == 1:
            os.kill(os.getpid(), 9)
        return step(number)

    lesson.step = dying  # type: ignore[method-assign]
    lesson.run(folder)


def test_a_run_whose_rank_was_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    codes = run_each_to_its_end(die_once, 2, tmp_path / "killed", timeout_s=60)
    assert all(codes), codes
    alone = Lesson(SETTINGS).run(tmp_path / "alone")
    assert_close(Lesson(SETTINGS, seed=7).run(tmp_path / "killed"), alone)


def fail_within(rank: int, folder: Path, how: str) -> None:
    """The second rank fails where the first waits for its gradients."""
    try:
        with process_for(Compute(threads=1)):
            lesson = Lesson(SHARDED if how == "sharded" else SETTINGS)
            batches = [lesson.batch(0, part) for part in lesson.learner.parts]
            if rank == 1:
                batches[-1] = MicroBatch(fail if how != "killed" else kill)
            lesson.learner.update(0, batches)
    except Exception as error:
        (folder / str(rank)).write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from error


def fail(precision: str) -> dict[str, Tensor]:
    raise InvalidVolumeError("case p7: it is no volume")


def kill(precision: str) -> dict[str, Tensor]:
    os.kill(os.getpid(), 9)
    return {}


@pytest.mark.parametrize("how", ["sharded", "killed"])
def test_a_rank_that_fails_within_a_step_is_told_by_the_others_with_its_error(tmp_path: Path, how: str) -> None:
    codes = run_each_to_its_end(fail_within, 2, tmp_path, how, timeout_s=60)
    assert codes[0] == 1
    assert codes[1] == (-9 if how == "killed" else 2)  # what a refusal exits with
    said = (tmp_path / "0").read_text()
    if how == "killed":
        assert said.startswith("RankError: another rank of this run died or no longer answers: ")
    else:
        assert said == "RankError: rank 1 of this run failed: case p7: it is no volume"


def test_a_damaged_checkpoint_in_shards_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-000000004"
    folder.mkdir()
    (folder / "checkpoint.json").write_text('{"step": "4", "learned": "{}", "facts": "{}"}')
    (folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    state = TrainingState({"net": nn.Linear(2, 2)})
    with pytest.raises(InvalidRequestError, match="there is no checkpoint"):
        load_checkpoint(state, tmp_path / "other.safetensors")
    with pytest.raises(InvalidRequestError, match="checkpoint"):
        load_checkpoint(state, tmp_path / "checkpoint.safetensors")
