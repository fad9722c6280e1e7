"""A sealed model folder with the network of `params/tiny.yaml` and random weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from hepar.cases import Modality
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.inference.model_folder import ModelFolder, ModelSpec, hash_patient
from hepar.networks import build_network
from hepar.params import NetworkParams, Params
from hepar.runtime.artifacts import write_artifact

PLAN = PreprocessingPlan(spacing_zyx_mm=(2.0, 1.0, 1.0), window_hu=(-100.0, 300.0), mr_percentiles=(2.0, 98.0))


def toy_spec(network: NetworkParams) -> ModelSpec:
    return ModelSpec(
        network=network, plan=PLAN, patch_zyx=(8, 16, 16), modalities=(Modality.CT,), origin={"cohort": "c0"}
    )


def toy_weights(tiny: Params) -> dict[str, Tensor]:
    """The state dict of a new network."""
    return build_network(tiny.network.name, tiny.network.config, (8, 16, 16)).state_dict()


def constant_weights(tiny: Params, liver: float, tumour: float) -> dict[str, Tensor]:
    """The state dict of a network that predicts these probabilities everywhere."""
    weights = toy_weights(tiny)
    weights["head.weight"] = torch.zeros_like(weights["head.weight"])
    weights["head.bias"] = torch.logit(torch.tensor([liver, tumour]))
    return weights


def write_model(
    folder: Path,
    tiny: Params,
    weights: Mapping[str, Tensor] | None = None,
    patients: Iterable[str] = ("a", "b"),
    members: Sequence[Mapping[str, Tensor]] = (),
    **spec: Any,
) -> ModelFolder:
    """Write a model, which has seen these patients, with further members and other values in its spec."""
    with write_artifact(folder, ModelFolder.KIND, {"cohort": "c0"}) as partial:
        model = ModelFolder(partial)
        changed = toy_spec(tiny.network).model_copy(update=spec)
        model.save(toy_weights(tiny) if weights is None else weights, changed, members)
        model.save_history(pd.DataFrame([(1, "train", "", "loss", 0.5)], columns=list(ModelFolder.HISTORY_COLUMNS)))
        model.save_patients(map(hash_patient, patients))
    return ModelFolder(folder)
