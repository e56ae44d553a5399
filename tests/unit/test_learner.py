"""A step of training: what it changes, what guards it, and what a resumed run needs of it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from maisi.errors import InvalidRequestError, RunError
from maisi.networks.autoencoder import Autoencoder, AutoencoderConfig
from maisi.networks.unet import DenoisingUNet, UNetConfig
from maisi.training.learner import Learner, MicroBatch, checkpoint_activations
from maisi.training.loop import LoopConfig, fit, training_device
from maisi.training.optimization import Optimization
from maisi.training.state import TrainingState

PLAIN = Optimization(learning_rate=0.1, schedule="constant", warmup=0, precision="float32", clip_norm=None)


def learner(config: Optimization = PLAIN) -> Learner:
    torch.manual_seed(0)
    return Learner({"net": nn.Linear(3, 2)}, config, num_steps=10)


def batch(of: Learner, x: Tensor, name: str = "") -> MicroBatch:
    return MicroBatch(lambda precision: {"loss": of.networks["net"](x).square().mean()}, (name,))


def weights(of: Learner) -> Tensor:
    return torch.cat([p.detach().flatten() for p in of.networks["net"].parameters()])


def average(state: TrainingState) -> Tensor:
    return torch.cat([p.detach().flatten() for p in state.modules["average"].parameters()])


def test_batches_whose_gradients_are_added_make_the_step_of_one_batch_of_all() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    together, apart = learner(), learner()
    told = together.update(0, [batch(together, x)])
    also = apart.update(0, [batch(apart, part) for part in x.split(1)])
    torch.testing.assert_close(weights(apart), weights(together), rtol=0, atol=1e-6)
    assert also["loss"] == pytest.approx(told["loss"], abs=2e-6)  # told to six decimals
    assert also["grad_norm"] == pytest.approx(told["grad_norm"], abs=1e-3)


def test_a_step_that_is_not_finite_in_its_format_is_taken_in_float32() -> None:
    of = learner(PLAIN.model_copy(update={"precision": "bfloat16"}))
    seen = []

    def losses(precision: str) -> dict[str, Tensor]:
        seen.append(precision)
        loss = of.networks["net"](torch.ones(3)).square().mean()
        return {"loss": loss * math.inf if precision == "bfloat16" else loss}

    before = weights(of)
    told = of.update(0, [MicroBatch(losses)])
    assert seen == ["bfloat16", "float32"]
    assert math.isfinite(told["loss"])
    assert not torch.equal(weights(of), before)


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_steps_that_are_not_finite_are_skipped_and_too_many_end_in_a_diagnosis(wrong: str) -> None:
    of = learner(PLAIN.model_copy(update={"most_skipped": 2}))
    bad = torch.tensor([1.0, math.nan, 1.0]) if wrong == "loss" else torch.ones(3)

    def losses(precision: str) -> dict[str, Tensor]:
        out = of.networks["net"](bad)
        if wrong == "gradient":
            out = (out - out.detach()).abs().sqrt() + out.detach()  # finite, with a slope that is not
        return {"loss": out.mean()}

    before = weights(of)
    for step in range(2):
        assert of.update(step, [batch(of, torch.ones(3)), MicroBatch(losses, ("case 7",))])["skipped"] == 1.0
    assert torch.equal(weights(of), before)
    with pytest.raises(
        RunError, match=r"3 steps in a row were not finite, the last one step 3 on .*case 7.* rate 0\.1"
    ):
        of.update(2, [batch(of, torch.ones(3)), MicroBatch(losses, ("case 7",))])
    assert torch.equal(weights(of), before)


def test_a_good_step_ends_the_count_of_bad_ones_and_a_resumed_run_goes_on_counting() -> None:
    of, nan = learner(PLAIN.model_copy(update={"most_skipped": 2})), torch.full((3,), math.nan)
    of.update(0, [batch(of, nan)])
    of.update(1, [batch(of, torch.ones(3))])
    of.update(2, [batch(of, nan)])
    of.update(3, [batch(of, nan)])
    again = learner(of.config)
    again.resume(json.loads(json.dumps(of.facts())))
    with pytest.raises(RunError, match="3 steps in a row"):
        again.update(4, [batch(again, nan)])


def test_the_diagnosis_names_the_module_that_was_the_first_to_fail() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        network[1].weight[0, 0] = math.inf
    of = Learner({"net": network}, PLAIN.model_copy(update={"most_skipped": 0}), num_steps=10)
    with pytest.raises(RunError, match=r"first in net\.1"):
        of.update(0, [MicroBatch(lambda precision: {"loss": network(torch.ones(3)).sum()})])


def test_half_precision_is_for_a_gpu() -> None:
    with pytest.raises(InvalidRequestError, match="float16 learns on a GPU"):
        learner(PLAIN.model_copy(update={"precision": "float16"}))


def network_of(kind: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8, 8)
    if kind == "autoencoder":
        return Autoencoder(AutoencoderConfig(channels=(8, 8), num_res_blocks=(1, 1), norm_groups=2)).decoder, (x,)
    config = UNetConfig(
        channels=(8, 16), num_res_blocks=(1, 1), attention_levels=(False, True), head_channels=8, norm_groups=4
    )
    return DenoisingUNet(config), (x, torch.tensor([500.0]))


@pytest.mark.parametrize("kind", ["autoencoder", "unet"])
def test_activations_that_are_computed_again_give_the_same_gradients_and_keep_less(kind: str) -> None:
    gradients, kept = [], []
    for again in (False, True):
        network, inputs = network_of(kind)
        if again:
            checkpoint_activations(network)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = network(*inputs).square().mean()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < 0.6 * kept[0]


@given(
    st.sampled_from(["constant", "cosine", "polynomial"]), st.integers(0, 50), st.integers(1, 300), st.integers(0, 400)
)
def test_the_rate_rises_to_its_peak_and_never_again(schedule: str, warmup: int, num_steps: int, step: int) -> None:
    config = Optimization(learning_rate=2.0, schedule=schedule, warmup=warmup)
    rates = [config.rate(s, num_steps) for s in (step, step + 1)]
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    assert rates[1] >= rates[0] if step + 1 < warmup else (step < warmup or rates[1] <= rates[0])
    assert config.rate(warmup, num_steps) == pytest.approx(2.0)


def run(folder: Path, losses: list[float], until: int | None = None, **more: object) -> tuple[TrainingState, list[int]]:
    """A run whose validations have these losses, in order; and after which steps it validated."""
    of, state, at = learner(), TrainingState(), []
    of.join(state)

    def validate(step: int) -> dict[str, float]:
        at.append(step)
        return {"loss": losses[step // 2 - 1]}

    config = LoopConfig(num_steps=12, save_every=3, validate_every=2, **more)
    fit(state, lambda step: of.update(step, [batch(of, torch.ones(3) * step)]), config, folder, None, until, validate)
    return state, at


def test_a_run_without_a_better_validation_stops_and_keeps_the_best(tmp_path: Path) -> None:
    losses = [5.0, 3.0, 4.0, 3.5, 1.0, 1.0]
    state, at = run(tmp_path, losses, patience=2)
    assert (state.step, at) == (8, [2, 4, 6, 8])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [(line["step"], line["loss"]) for line in lines if line.get("split") == "validation"]
    assert told == [(2, 5.0), (4, 3.0), (6, 4.0), (8, 3.5)]
    assert [line["step"] for line in lines if "split" not in line] == list(range(1, 9))
    again, more = run(tmp_path, losses, patience=2)
    assert (again.step, more) == (8, [])
    best, _ = run(tmp_path / "other", losses, until=4)
    for stopped in (state, again):
        assert torch.equal(average(stopped), average(best))
    kept = TrainingState()
    fresh = learner()
    fresh.join(kept)
    (tmp_path / "as_best").mkdir()
    (tmp_path / "as_best" / "checkpoint.safetensors").write_bytes((tmp_path / "best.safetensors").read_bytes())
    fit(kept, lambda step: {}, LoopConfig(num_steps=4), tmp_path / "as_best")
    assert torch.equal(weights(fresh), torch.cat([p.detach().flatten() for p in best.modules["net"].parameters()]))


def test_a_run_gives_its_best_weights_where_it_might_have_stopped_early_and_else_its_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses = [5.0, 3.0, 4.0, 3.5, 3.2, 3.1]
    best, _ = run(tmp_path / "best", losses, until=4)
    caplog.clear()
    last, _ = run(tmp_path / "last", losses)
    assert not torch.equal(average(last), average(best))
    assert not caplog.messages
    patient, _ = run(tmp_path / "patient", losses, patience=9)
    assert patient.step == 12
    assert torch.equal(average(patient), average(best))
    assert "gives its weights of step 4, the best validated, and not those of its last step, 12" in caplog.text
    unfinished, _ = run(tmp_path / "unfinished", losses, patience=9, until=6)
    going_on, _ = run(tmp_path / "last_six", losses, until=6)
    assert torch.equal(average(unfinished), average(going_on))


def test_a_run_that_was_stopped_between_validations_ends_like_one_that_was_not(tmp_path: Path) -> None:
    losses = [5.0, 4.0, 4.5, 4.2, 4.1, 1.0]
    whole, _ = run(tmp_path / "whole", losses, patience=3)
    for until in (3, 5, 7, None):
        parts, _ = run(tmp_path / "parts", losses, until=until, patience=3)
    assert parts.step == whole.step == 10
    assert all(torch.equal(a, b) for a, b in zip(*(s.modules["net"].parameters() for s in (whole, parts)), strict=True))
    files = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    steps = [[(json.loads(line)["step"], json.loads(line).get("split")) for line in f.splitlines()] for f in files]
    assert steps[0] == steps[1]


KILLED = """
import sys, torch
from pathlib import Path
from torch import nn
from maisi.training.learner import Learner, MicroBatch
from maisi.training.loop import LoopConfig, fit, training_device
from maisi.training.optimization import Optimization
from maisi.training.state import TrainingState

torch.manual_seed(0)
net = nn.Linear(700, 700)
of = Learner({"net": net}, Optimization(precision="float32"), 60)
state = TrainingState()
of.join(state)
x = torch.ones(700)
fit(state, lambda step: of.update(step, [MicroBatch(lambda p: {"loss": (net(x * (step + 1)) - 1).square().mean()})]),
    LoopConfig(num_steps=60, save_every=1), Path(sys.argv[1]))
"""


def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", KILLED, str(folder)])

    assert start(tmp_path / "whole").wait() == 0
    kills = 0
    for seconds in (0.05, 0.11, 0.02, 0.17, 0.08):
        process = start(tmp_path / "parts")
        while process.poll() is None and not (tmp_path / "parts" / "checkpoint.safetensors").exists():
            time.sleep(0.005)
        time.sleep(seconds)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert start(tmp_path / "parts").wait() == 0
    assert kills
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert [json.loads(line)["loss"] for line in lines[0]] == [json.loads(line)["loss"] for line in lines[1]]


def test_an_epoch_is_as_many_steps_as_show_every_case_once() -> None:
    config = LoopConfig(epochs=3)
    assert config.counted(10, 4).steps == 9
    assert LoopConfig(num_steps=5).counted(10, 4).steps == 5
    with pytest.raises(ValueError, match="either num_steps or epochs"):
        LoopConfig(num_steps=5, epochs=1)


def test_what_is_taken_in_float32_after_float16_failed_changes_the_weights() -> None:
    of = learner()
    of.config, of.scaler = PLAIN.model_copy(update={"precision": "float16"}), torch.amp.GradScaler("cpu")

    def losses(precision: str) -> dict[str, Tensor]:
        loss = of.networks["net"](torch.ones(3)).square().mean()
        return {"loss": loss * math.nan if precision == "float16" else loss}

    before, scale = weights(of), of.scaler.get_scale()
    assert "skipped" not in of.update(0, [MicroBatch(losses)])
    assert not torch.equal(weights(of), before)
    assert of.scaler.get_scale() < scale


def in_float16(of: Learner) -> Learner:
    """A learner that scales its losses as on a GPU, and computes on the CPU."""
    of.config = of.config.model_copy(update={"precision": "float16", "most_skipped": 2})
    of.scaler = torch.amp.GradScaler("cpu")
    return of


def test_bad_data_in_float16_are_skipped_as_often_as_may_be_and_then_told() -> None:
    of = in_float16(learner())
    nan = MicroBatch(lambda precision: {"loss": of.networks["net"](torch.full((3,), math.nan)).mean()}, ("case 7",))
    before = weights(of)
    for step in range(2):
        assert of.update(step, [nan])["skipped"] == 1.0
    with pytest.raises(RunError, match="3 steps in a row were not finite"):
        of.update(2, [nan])
    assert torch.equal(weights(of), before)


def test_a_network_that_takes_no_part_in_a_step_stays_in_float16_too() -> None:
    torch.manual_seed(0)
    of = in_float16(Learner({"net": nn.Linear(3, 2), "other": nn.Linear(3, 2)}, PLAIN, num_steps=10))
    before = [p.detach().clone() for p in of.networks["other"].parameters()]
    mine = weights(of)
    assert "skipped" not in of.update(0, [batch(of, torch.ones(3))])
    assert not torch.equal(weights(of), mine)
    assert all(torch.equal(p, b) for p, b in zip(of.networks["other"].parameters(), before, strict=True))


def test_patience_without_validation_is_refused() -> None:
    with pytest.raises(ValueError, match="accepted: with validate_every, or without patience"):
        LoopConfig(num_steps=10, patience=2)


def test_a_gpu_is_told_to_multiply_in_float32_what_is_learned_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        training_device("cpu")
        assert torch.backends.cudnn.allow_tf32
        training_device("cuda:0")
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
