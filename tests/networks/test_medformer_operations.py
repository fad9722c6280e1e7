"""MedFormer's own operations match torch's, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hepar.networks.medformer import operations

FORMATS = [torch.contiguous_format, torch.channels_last_3d]


def assert_same(ours: Callable[..., Tensor], torchs: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Assert the same output and the same gradient of each input, in double precision."""
    results = []
    for function in (ours, torchs):
        leaves = [value.clone().requires_grad_() for value in inputs]
        output = function(*leaves)
        upstream = torch.sin(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)
        output.backward(upstream)
        results.append((output, *(leaf.grad for leaf in leaves)))
    with torch.no_grad():
        torch.testing.assert_close(ours(*inputs), results[0][0], rtol=1e-10, atol=1e-12)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.fixture(params=FORMATS, ids=["plain", "channels last"])
def image(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    torch.manual_seed(0)
    return lambda *shape: (torch.randn(shape, dtype=torch.float64) + 0.5).to(memory_format=request.param)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("channels", "space"),
    [(3, (4, 5, 6)), (20, (4, 5, 6)), (3, (8, 12, 12)), (20, (8, 12, 12)), (17, (1, 1, 2))],
    ids=["narrow, few voxels", "few voxels", "narrow", "as torch", "two voxels"],
)
def test_instance_norm(image: Callable[..., Tensor], batch: int, channels: int, space: tuple[int, int, int]) -> None:
    assert_same(
        lambda x: operations.instance_norm(x, 1e-4),
        lambda x: F.group_norm(x, channels, eps=1e-4),
        image(batch, channels, *space),
    )


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 5)])
@pytest.mark.parametrize("space", [(4, 5, 6), (1, 2, 2)])
def test_depthwise_convolution(
    image: Callable[..., Tensor], kernel: tuple[int, int, int], space: tuple[int, int, int]
) -> None:
    padding = [side // 2 for side in kernel]
    assert_same(
        operations.depthwise_conv,
        lambda x, w: F.conv3d(x, w, padding=padding, groups=6),
        image(2, 6, *space),
        image(6, 1, *kernel),
    )


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels", [2, 96])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 5)])
def test_convolution(image: Callable[..., Tensor], kernel: tuple[int, int, int], channels: int, batch: int) -> None:
    padding = [side // 2 for side in kernel]
    assert_same(
        operations.conv,
        lambda x, w: F.conv3d(x, w, padding=padding),
        image(batch, channels, 4, 5, 6),
        image(7, channels, *kernel),
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_pointwise_convolution(image: Callable[..., Tensor], batch: int) -> None:
    x, weight, bias = image(batch, 6, 4, 5, 6), image(3, 6, 1, 1, 1), torch.randn(3, dtype=torch.float64)
    assert_same(operations.pointwise_conv, F.conv3d, x, weight, bias)


@pytest.mark.parametrize("size", [(8, 12, 12), (4, 6, 12), (7, 11, 13), (1, 1, 1)])
@pytest.mark.parametrize("space", [(4, 6, 6), (1, 1, 2)])
def test_upsampling(image: Callable[..., Tensor], size: tuple[int, int, int], space: tuple[int, int, int]) -> None:
    assert_same(
        lambda x: operations.upsample(x, torch.Size(size)),
        lambda x: F.interpolate(x, size=size, mode="trilinear", align_corners=True),
        image(2, 3, *space),
    )


def test_under_autocast_gradients_have_the_type_of_their_inputs() -> None:
    x, weight = torch.randn(2, 6, 4, 5, 6, requires_grad=True), torch.randn(6, 1, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = operations.depthwise_conv(x, weight)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    for leaf in (x, weight):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32


@pytest.mark.parametrize("channels", [4, 96])
def test_the_gradient_of_a_kernel_is_correct_in_bfloat16(channels: int) -> None:
    # torch's reads uninitialised memory if the map has two slices
    generator = torch.Generator().manual_seed(1)
    x, weight = (
        torch.randn(*shape, generator=generator) for shape in ((2, channels, 2, 2, 2), (channels, channels, 3, 3, 3))
    )
    exact = weight.clone().requires_grad_()
    torch.nn.functional.conv3d(x, exact, padding=1).square().sum().backward()
    rounded = weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        operations.conv(x.requires_grad_(), rounded).float().square().sum().backward()
    assert exact.grad is not None
    assert rounded.grad is not None
    assert float((rounded.grad - exact.grad).abs().max()) < 0.05 * float(exact.grad.abs().max())


def test_a_batch_norm_of_each_scan_is_an_instance_norm() -> None:
    one = torch.randn(2, 8, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    other = one.detach().clone().requires_grad_()
    normed, expected = operations._batch_norm_each(one, 1e-4)[0], F.instance_norm(other, eps=1e-4)
    assert torch.allclose(normed, expected, atol=1e-12)
    weights = torch.linspace(-1, 1, one.numel(), dtype=torch.float64).reshape(one.shape)
    (normed * weights).sum().backward()
    (expected * weights).sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    assert torch.allclose(one.grad, other.grad, atol=1e-12)


def test_the_mean_over_space(image: Callable[..., Tensor]) -> None:
    assert_same(operations.mean_over_space, lambda x: x.mean(dim=(2, 3, 4)), image(2, 6, 4, 5, 6))


def test_the_gradient_of_a_mean_over_space_has_channels_last_memory() -> None:
    x = torch.randn(2, 6, 4, 5, 6).to(memory_format=torch.channels_last_3d).requires_grad_()
    (gradient,) = torch.autograd.grad(operations.mean_over_space(x).square().sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last_3d)


def test_instance_norm_on_a_gpu_keeps_half_precision_and_contiguous_memory() -> None:
    with FakeTensorMode():  # GPU tensors with a type and a layout but no values
        normed = operations.instance_norm(torch.empty((2, 16, 4, 6, 6), device="cuda", dtype=torch.bfloat16), 1e-4)
        assert normed.dtype == torch.bfloat16
        assert normed.is_contiguous()


def test_elsewhere_than_on_a_cpu_a_depthwise_convolution_reads_contiguous_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layouts = []
    monkeypatch.setattr(operations, "_conv", lambda x, *_: layouts.append((x.device.type, x.is_contiguous())))
    for device in ("meta", "cpu"):
        x = torch.empty((2, 16, 4, 6, 6), device=device).to(memory_format=torch.channels_last_3d)
        operations.depthwise_conv(x, torch.empty((16, 1, 3, 3, 3), device=device))
    assert layouts == [("meta", True), ("cpu", False)]


def test_what_runs_on_a_gpu_computes_the_same(image: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    x, kernel = image(2, 6, 4, 5, 6), image(6, 1, 3, 3, 3)
    calls = (
        lambda: operations.mean_over_space(x),
        lambda: operations.depthwise_conv(x, kernel),
        lambda: operations.instance_norm(x, 1e-4),
    )
    on_cpu = [call() for call in calls]
    monkeypatch.setattr(operations, "_on_cpu", lambda x: False)
    for call, expected in zip(calls, on_cpu, strict=True):
        torch.testing.assert_close(call(), expected, rtol=1e-10, atol=1e-12)
