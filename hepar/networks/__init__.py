"""Every network behind one factory. A new one is added in `BUILDERS`, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from hepar.errors import ParamsError
from hepar.networks.medformer import MedFormer


def _dynunet(config: Mapping[str, Any]) -> nn.Module:
    from monai.networks.nets.dynunet import DynUNet  # importing monai takes seconds

    return DynUNet(spatial_dims=3, **config)  # type: ignore[no-any-return]


def _segresnet(config: Mapping[str, Any]) -> nn.Module:
    from monai.networks.nets.segresnet import SegResNet

    return SegResNet(spatial_dims=3, **config)  # type: ignore[no-any-return]


BUILDERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "medformer": MedFormer.from_config,
    "dynunet": _dynunet,
    "segresnet": _segresnet,
}


def build_network(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights. Raises ParamsError for an unknown name or a setting that it refuses."""
    if name not in BUILDERS:
        raise ParamsError(f"network.name is {name!r}, must be one of {', '.join(sorted(BUILDERS))}")
    try:
        return BUILDERS[name](config)
    except (TypeError, ValueError) as error:
        raise ParamsError(f"network.config: {error}") from None
