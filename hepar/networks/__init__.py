"""Builds networks by name. To add one, add it to `BUILDERS` and `OUTPUT_LAYERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hepar.cases import STRUCTURES
from hepar.errors import ParamsError, one_line
from hepar.networks import from_monai
from hepar.networks.medformer import MedFormer
from hepar.networks.medformer.softmax_head import SOFTMAX_CLASSES, SoftmaxMedFormer
from hepar.params import SizeZYX

BUILDERS: dict[str, Callable[[Mapping[str, Any], SizeZYX], nn.Module]] = {
    "medformer": lambda config, patch_zyx: _medformer(config),
    **from_monai.BUILDERS,
}
OUTPUT_LAYERS: dict[str, str] = {  # regular expressions of the layers with one row per structure, by network
    "medformer": "(aux_)?head",
    **from_monai.OUTPUT_LAYERS,
}


def build_network(name: str, config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """Build a network with random weights, for patches of `patch_zyx` voxels.

    Raises ParamsError for an unknown name, an invalid setting, or a patch whose sides are not multiples of its divisor.
    """
    if name not in BUILDERS:
        raise ParamsError(f"network.name is {name!r} but must be one of {', '.join(sorted(BUILDERS))}")
    _check_channels(name, config)
    try:
        network = BUILDERS[name](config, patch_zyx)
    except (TypeError, ValueError, AssertionError) as error:
        raise ParamsError(f"network.config of {name}: {one_line(error)}") from None
    divisor: Any = network.divisor
    if any(side % by for side, by in zip(patch_zyx, divisor, strict=True)):
        raise ParamsError(f"training.patch_zyx is {patch_zyx}: {name} needs each side to be a multiple of {divisor}")
    return network


def _medformer(config: Mapping[str, Any]) -> nn.Module:
    network_class = SoftmaxMedFormer if config.get("classes") == SOFTMAX_CLASSES else MedFormer
    return network_class.from_config(config)


def _check_channels(name: str, config: Mapping[str, Any]) -> None:
    """Raise ParamsError unless the network maps one channel to liver and tumour."""
    structures = len(STRUCTURES)
    allowed_of: dict[str, tuple[int, ...]] = {"in_channels": (from_monai.IN_CHANNELS,)}
    if name == "medformer":
        allowed_of["classes"] = (structures, SOFTMAX_CLASSES)
    else:
        allowed_of["out_channels"] = (structures,)
    for key, allowed in allowed_of.items():
        if (value := config.get(key, allowed[0])) not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ParamsError(f"network.config.{key} of {name} is {value} but must be {wanted}")


def build_on_meta_device(name: str, config: Mapping[str, Any], patch_zyx: SizeZYX) -> nn.Module:
    """Build a network of tensors without values, to count with. Raises as `build_network` does."""
    try:
        with torch.device("meta"):
            return build_network(name, config, patch_zyx)
    except RuntimeError:  # SwinUNETR reads a value while it is built
        return build_network(name, config, patch_zyx).to("meta")


@dataclass(frozen=True)
class Cost:
    """Parameters of a network, and multiply-adds of its forward pass on one patch."""

    parameters: int
    multiply_adds: int


def cost(name: str, config: Mapping[str, Any], patch_zyx: SizeZYX) -> Cost:
    """Count parameters and multiply-adds without running the network. Raises as `build_network` does."""
    network = build_on_meta_device(name, config, patch_zyx)
    channels = int(config.get("in_channels", from_monai.IN_CHANNELS))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            network(torch.zeros(1, channels, *patch_zyx, device="meta"))
        except ValueError as error:  # instance norm of a single voxel
            raise ParamsError(
                f"network.name {name}: a patch of {patch_zyx} is too small for it: {one_line(error)}"
            ) from None
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters, int(counter.get_total_flops()) // 2)
