"""The memory of a training step, followed tensor by tensor without computing any."""

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
from hepar.networks import without_values
from hepar.networks.from_monai import IN_CHANNELS
from hepar.params import SizeZYX, TrainingParams
from hepar.runtime.device import autocast
from hepar.training.losses import masked_loss

COPIES = 5  # of each weight beside its gradient: itself, two moments of Adam, the moving average, and the best so far
BYTES = 4  # of a weight
WORKSPACE = 1.5  # times what tensors take: workspaces and gaps, as `benchmarks/training.py` measures


class _Held(TorchDispatchMode):
    """Counts the bytes of all tensors that were made in it and are not gone yet, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._now += storage.nbytes()
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._now -= size


def _fake(network: nn.Module) -> None:
    """Take the network from the meta device to the mode's own tensors, which autocast knows as those of a CPU."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                made = torch.empty(weight.shape, dtype=weight.dtype)
                module._parameters[name] = nn.Parameter(made, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def training_bytes(
    name: str, config: Mapping[str, Any], patch_zyx: SizeZYX, batch: int, training: TrainingParams
) -> int:
    """Bytes that a step on a batch takes at most, at the precision and the checkpointing of `training`.

    Weights and what is kept of each, activations and gradients. Raises ParamsError as `hepar.networks.build_network`
    does.
    """
    network = without_values(name, config, patch_zyx).train()
    weights = BYTES * sum(parameter.numel() for parameter in network.parameters())
    if training.gradient_checkpointing and hasattr(network, "gradient_checkpointing"):
        setattr(network, "gradient_checkpointing", True)  # noqa: B010, a module types its attributes as tensors
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake(network)
        return COPIES * weights + int(WORKSPACE * held_by_a_step(network, patch_zyx, batch, training))


def held_by_a_step(network: nn.Module, patch_zyx: SizeZYX, batch: int, training: TrainingParams) -> int:
    """The most bytes of tensors that a step makes of a network on the CPU, forwards and backwards through the loss."""
    held = _Held()
    with held:
        image, y, m = (
            torch.zeros(batch, channels, *patch_zyx) for channels in (IN_CHANNELS, len(STRUCTURES), len(STRUCTURES))
        )
        with autocast(image.device, training.precision):
            output = network(image.contiguous(memory_format=torch.channels_last_3d))
        scales = output if isinstance(output, list) else [output]
        masked_loss(scales, y, m, training.nesting_weight, training.bce_weights).total.backward()
    return held.most
