"""Memory estimate of a training step: its tensors are traced, but none is computed."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hepar.cases import STRUCTURES
from hepar.networks import build_on_meta_device
from hepar.networks.from_monai import IN_CHANNELS
from hepar.params import SizeZYX, TrainingParams
from hepar.runtime.device import autocast
from hepar.training.losses import LossWeights, masked_loss

WEIGHT_COPIES = 5  # besides the gradient: the weight, two moments of AdamW, the moving average, the best average
WEIGHT_BYTES = 4
WORKSPACE = 1.5  # factor for workspaces and fragmentation, as measured by `benchmarks/training.py`


class _PeakMemory(TorchDispatchMode):
    """Tracks the bytes of all tensors that are created inside it and still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = self._alive_bytes = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._allocate(tensor.untyped_storage())
        return result

    def _allocate(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._alive:  # a view, or an operation in place
            return
        self._alive.add(storage._cdata)
        self._alive_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._alive_bytes)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, address: int, size_bytes: int) -> None:
        self._alive.discard(address)
        self._alive_bytes -= size_bytes


def _make_fake(network: nn.Module) -> None:
    """Replace meta tensors by fake ones of the active mode, which autocast treats as tensors of a CPU."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def training_bytes(
    name: str, config: Mapping[str, Any], patch_zyx: SizeZYX, batch_size: int, training: TrainingParams
) -> int:
    """Estimated peak memory of a training step: weights and their copies, activations and gradients.

    Uses the precision and gradient checkpointing of `training`. Raises ParamsError as `hepar.networks.build_network`.
    """
    network = build_on_meta_device(name, config, patch_zyx).train()
    weight_bytes = WEIGHT_BYTES * sum(parameter.numel() for parameter in network.parameters())
    if training.gradient_checkpointing and hasattr(network, "gradient_checkpointing"):
        setattr(network, "gradient_checkpointing", True)  # noqa: B010, a module types its attributes as tensors
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(network)
        step_bytes = step_peak_bytes(network, patch_zyx, batch_size, training)
        return WEIGHT_COPIES * weight_bytes + int(WORKSPACE * step_bytes)


def step_peak_bytes(network: nn.Module, patch_zyx: SizeZYX, batch_size: int, training: TrainingParams) -> int:
    """Peak bytes of the tensors created by one forward and backward pass of a network on the CPU, loss included."""
    memory = _PeakMemory()
    with memory:
        image_bcdhw, target_brdhw, weight_brdhw = (
            torch.zeros(batch_size, channels, *patch_zyx)
            for channels in (IN_CHANNELS, len(STRUCTURES), len(STRUCTURES))
        )
        with autocast(image_bcdhw.device, training.precision):
            output = network(image_bcdhw.contiguous(memory_format=torch.channels_last_3d))
        scales = output if isinstance(output, list) else [output]
        loss = masked_loss(scales, target_brdhw, weight_brdhw, LossWeights.of(training, step=0))
        loss.total.backward()
    return memory.peak_bytes
