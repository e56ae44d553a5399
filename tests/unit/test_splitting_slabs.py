"""A `SlabTensor` gives what the whole tensor gives, operation by operation, and says what it cannot do."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maisi.errors import InvalidPlanError, UnsupportedOperationError
from maisi.splitting import SlabTensor, gather
from maisi.splitting.fuse import fuse
from maisi.splitting.interpret import SplitSettings
from maisi.splitting.schedule import make_schedule

WEIGHT = torch.Generator().manual_seed(7)


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=WEIGHT, dtype=torch.float64)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


W3, W2, W5, W1, WG, WT = (
    weight(6, 4, 3, 3, 3),
    weight(6, 4, 2, 2, 2),
    weight(6, 4, 5, 1, 3),
    weight(6, 4, 1, 1, 1),
    weight(6, 2, 3, 3, 3),
    weight(4, 6, 3, 3, 3),
)
B6, C4, L4 = weight(6), weight(4), weight(5, 4)
DENSE, TIME = noise(2, 4, 7, 6, 5), noise(2, 4, 1, 1, 1)

OPERATIONS = {
    "conv": lambda x: F.conv3d(x, W3, B6, padding=1),
    "conv without padding": lambda x: F.conv3d(x, W3),
    "conv with padding beyond its kernel": lambda x: F.conv3d(x, W3, padding=3),
    "conv same": lambda x: F.conv3d(x, W3, padding="same"),
    "even kernel": lambda x: F.conv3d(x, W2, padding=1),
    "flat kernel": lambda x: F.conv3d(x, W5, padding=(2, 0, 1)),
    "strided conv": lambda x: F.conv3d(x, W3, stride=2, padding=1),
    "one-sided padding": lambda x: F.conv3d(F.pad(x, (0, 1, 0, 1, 0, 1)), W3, stride=2),
    "dilated grouped conv": lambda x: F.conv3d(x, WG, dilation=2, padding=2, groups=2),
    "pointwise conv": lambda x: F.conv3d(x, W1, B6),
    "conv of conv": lambda x: F.conv3d(F.silu(F.conv3d(x, W3, B6, padding=1)), weight_66, padding=1),
    "strided conv of conv": lambda x: F.conv3d(F.relu(F.conv3d(x, W3, padding=1)), weight_66, padding=1, stride=2),
    "transposed conv": lambda x: F.conv_transpose3d(x, WT, B6, stride=2, padding=1, output_padding=1),
    "transposed conv with gaps": lambda x: F.conv_transpose3d(x, WT, B6, stride=4, padding=0, output_padding=2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "nearest in one axis": lambda x: F.interpolate(x, size=(14, 6, 10)),
    "trilinear": lambda x: F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False),
    "trilinear three times": lambda x: F.interpolate(x, scale_factor=3.0, mode="trilinear"),
    "mean pooling": lambda x: F.avg_pool3d(x, 2),
    "padded mean pooling": lambda x: F.avg_pool3d(x, 3, stride=2, padding=1),
    "max pooling": lambda x: F.max_pool3d(x, 3, stride=1, padding=1),
    "crop": lambda x: F.pad(x, (0, 0, -1, 0, -2, -1)),
    "group norm": lambda x: F.group_norm(x, 2, C4, C4),
    "group norm, SiLU": lambda x: F.silu(F.group_norm(x, 2, C4, C4)) * 2,
    "group norm used twice": lambda x: (lambda n: n + F.silu(n))(F.group_norm(x, 4, C4, C4)),
    "instance norm": lambda x: F.instance_norm(x),
    "batch norm": lambda x: F.batch_norm(x, C4, C4.square(), C4, C4),
    "layer norm of channels": lambda x: F.layer_norm(x.permute(0, 2, 3, 4, 1), (4,), C4).permute(0, 4, 1, 2, 3),
    "arithmetic": lambda x: ((1 - x) / 3 + x * TIME - 2 * DENSE).clamp(-2, 2) ** 2,
    "in place": lambda x: add_in_place(x * 1.0),
    "cat": lambda x: torch.cat([x, DENSE, F.silu(x)], dim=1),
    "split": lambda x: torch.cat([part * i for i, part in enumerate(x.split(3, dim=1))], dim=1),
    "chunk": lambda x: (lambda a, b: a * F.gelu(b))(*x.chunk(2, dim=1)),
    "index": lambda x: x[:, 1:3] + x[:, ::2],
    "softmax of channels": lambda x: x.softmax(dim=1),
    "linear on tokens": lambda x: F.linear(x.flatten(2).transpose(1, 2), L4).transpose(1, 2).unflatten(2, x.shape[2:]),
    "attention": lambda x: self_attention(x),
    "explicit attention": lambda x: explicit_attention(x),
    "memory format": lambda x: x.contiguous().to(memory_format=torch.channels_last_3d).clone() * 2,
    "precision": lambda x: x.float().double() + x.to(torch.float32),
}
weight_66 = weight(6, 6, 3, 3, 3)


def add_in_place(x: Tensor) -> Tensor:
    x += 1
    before = x * 2
    x.mul_(3)
    F.relu(x, inplace=True)
    return x - before


def self_attention(x: Tensor) -> Tensor:
    b, c, *size = x.shape
    tokens = x.reshape(b, 2, c // 2, -1).transpose(2, 3)
    return x + F.scaled_dot_product_attention(tokens, tokens * 2, tokens).transpose(2, 3).reshape(b, c, *size)


def explicit_attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    scores = (tokens @ tokens.transpose(1, 2) * 0.5).softmax(dim=-1)
    return (scores @ tokens).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_slabs_equals_the_operation_on_the_whole(name: str, axis: int) -> None:
    x, function = noise(2, 4, 7, 6, 5), OPERATIONS[name]
    whole = function(x)
    rows = x.shape[2 + axis]
    for sizes in ([rows], [1] * rows, [rows - 1, 1], [2, rows - 4, 2]):
        split = function(SlabTensor.split(x, axis=axis, sizes=sizes)).gather()
        assert split.dtype == whole.dtype
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-10)


def test_a_single_row_is_enough() -> None:
    x = noise(1, 4, 1, 1, 1)
    for name in ("conv", "trilinear", "group norm", "attention", "transposed conv", "linear on tokens"):
        for axis in range(3):
            split = OPERATIONS[name](SlabTensor.split(x, axis=axis)).gather()
            torch.testing.assert_close(split, OPERATIONS[name](x), rtol=0, atol=1e-10)


class UserNetwork(nn.Module):
    """What somebody may write who has never heard of slabs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.LeakyReLU(0.1, inplace=True), nn.Dropout3d(0.5)
        )
        self.down = nn.Sequential(nn.Conv3d(8, 8, 2, stride=2), nn.BatchNorm3d(8), nn.ELU())
        self.up = nn.Sequential(nn.ConvTranspose3d(8, 8, 2, stride=2), nn.GroupNorm(2, 8), nn.PReLU(8))
        self.head = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv3d(16, 2, 1), nn.Softmax(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(x, torch.Tensor)
        assert x.ndim == 5
        h = self.body(x)
        return self.head(torch.cat([h, self.up(self.down(h))], dim=1))


@torch.no_grad()
def test_a_users_network_runs_unchanged() -> None:
    torch.manual_seed(0)
    network = UserNetwork().eval()
    x = torch.randn(1, 1, 8, 12, 10)
    for axis in range(3):
        split = network(SlabTensor.split(x, 4, axis)).gather()
        torch.testing.assert_close(split, network(x), rtol=0, atol=1e-5)


def test_a_split_tensor_describes_itself_as_the_whole() -> None:
    slab = SlabTensor.split(torch.zeros(2, 4, 7, 6, 5), 3, axis=0)
    assert slab.sizes == (2, 2, 3)
    assert slab.shape == (2, 4, 7, 6, 5)
    assert slab.dtype == torch.float32
    assert len(slab) == 2
    assert "axis=0, sizes=(2, 2, 3)" in repr(slab)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.fft.fftn(x), "fft_fftn cannot be carried out slab by slab"),
        (lambda x: x.softmax(dim=2), "along the axis that is split"),
        (lambda x: x[:, :, 2:], "indexes the axis that is split"),
        (lambda x: torch.cat([x, x], dim=2), "joins along the axis that is split"),
        (lambda x: F.interpolate(x, scale_factor=1.5), "only whole multiples"),
        (lambda x: F.dropout(x, 0.5), "eval mode"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), mode="replicate"), "'replicate' along the axis"),
        (lambda x: x.view(16, 105), "tears the rows"),
        (lambda x: x.chunk(2, dim=1)[0].add_(1), "share memory"),
        (lambda x: x + SlabTensor.split(torch.zeros(2, 4, 7, 6, 5), 2, axis=1), "split differently"),
    ],
)
def test_what_cannot_be_split_is_named_with_a_way_out(function, message: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=message) as caught:
        function(SlabTensor.split(torch.zeros(2, 4, 7, 6, 5), 2))
    assert ".gather()" in str(caught.value)


def test_an_error_of_the_call_itself_is_torchs_own() -> None:
    with pytest.raises(RuntimeError, match="channel"):
        F.conv3d(SlabTensor.split(torch.zeros(1, 4, 4, 4, 4), 2), torch.zeros(6, 5, 3, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": 8}, "8 slabs of 7 rows; accepted: 1 to 7"),
        ({"axis": 3}, "axis 3 .* accepted: 0 to 2"),
        ({"sizes": [3, 3]}, "must be positive and sum to 7"),
        ({"sizes": [7, 0]}, "must be positive and sum to 7"),
    ],
)
def test_an_impossible_split_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InvalidPlanError, match=message):
        SlabTensor.split(torch.zeros(1, 4, 7, 6, 5), **arguments)


@torch.no_grad()
def test_recomputing_and_disk_change_nothing(tmp_path) -> None:
    torch.manual_seed(0)
    convs = [nn.Conv3d(4, 8, 3, padding=1), nn.Conv3d(8, 4, 3, padding=1), nn.Conv3d(8, 4, 1), nn.Conv3d(4, 4, 3)]

    def network(x: Tensor) -> Tensor:
        u = convs[0](F.interpolate(x, scale_factor=2.0, mode="trilinear"))
        h = convs[2](u) + convs[1](F.silu(F.group_norm(u, 2)))
        return convs[3](F.group_norm(h, 2))

    x = torch.randn(2, 4, 6, 5, 4)
    whole = network(x)
    for axis in range(3):
        slab = SlabTensor.split(x, axis=axis)
        schedule = make_schedule(fuse([network(slab).node]))
        stored = [schedule.keys[node] for node in schedule.nodes if node in schedule.stored]
        assert len(stored) == 2
        for chosen in ([stored[0]], stored[:2], stored):
            for settings in (
                SplitSettings(step_bytes=3000, recompute=frozenset(chosen)),
                SplitSettings(step_bytes=3000, on_disk=frozenset(chosen), folder=tmp_path),
            ):
                split = network(SlabTensor.split(x, axis=axis, settings=settings)).gather()
                torch.testing.assert_close(split, whole, rtol=0, atol=2e-6 * float(whole.abs().max()))
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_several_results_are_gathered_in_one_computation() -> None:
    calls = []
    conv = nn.Conv3d(2, 2, 3, padding=1)
    conv.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(1, 2, 6, 4, 4)
    h = conv(SlabTensor.split(x, 3))
    mean, log_variance = gather(h * 2, h.clamp(-1, 1))
    torch.testing.assert_close(mean, conv(x) * 2)
    torch.testing.assert_close(log_variance, conv(x).clamp(-1, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_a_slab_keeps_its_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv3d(8, 2, 3, padding=1))
    x = torch.randn(1, 2, 8, 8, 8)
    split = network.to(dtype)(SlabTensor.split(x.to(dtype), 3)).gather()
    assert split.dtype == dtype
    error = (split.double() - network.double()(x.double())).abs().max()
    assert error < (2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_what_is_remembered_of_a_call_tells_its_arguments_apart() -> None:
    whole = torch.arange(2 * 6 * 2 * 2).reshape(1, 2, 6, 2, 2)
    slabs = SlabTensor.split(whole, 3)
    for other in (2, 2.0, True, torch.tensor(2), torch.tensor(2.0)):
        for _ in range(2):
            found = (slabs + other).gather()
            assert found.dtype == (whole + other).dtype
            assert torch.equal(found, whole + other)
    assert (slabs.float() * 2).shape == (slabs * 2).shape
    assert torch.equal(slabs[:, :1].gather(), whole[:, :1])
    assert torch.equal(slabs[:, 1:].gather(), whole[:, 1:])  # a slice has no hash


def test_gradients_of_a_split_network_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    network = UserNetwork().double().eval()
    norm = nn.GroupNorm(2, 2).double()
    weights = [*network.parameters(), *norm.parameters()]
    target = torch.randn(1, 2, 16, 12, 8, dtype=torch.float64)

    def gradients(split: bool) -> list[Tensor]:
        x = target[:, :1, ::2, ::2, ::2] + torch.linspace(-1, 3, 8, dtype=torch.float64)[:, None, None]
        x.requires_grad_()
        y = norm(network(SlabTensor.split(x, 3) if split else x))
        y = y.gather() if split else y
        return list(torch.autograd.grad((y * target).sum(), [x, *weights]))

    for whole, split in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-10)
