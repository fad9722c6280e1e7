"""Make a model folder out of a published MedFormer checkpoint."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hepar.cases import Modality
from hepar.errors import DataError, ParamsError, one_line
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.inference.model_folder import ModelFolder, ModelSpec
from hepar.networks import build_network
from hepar.networks.medformer import MedFormer, load_published_weights
from hepar.networks.medformer.checkpoint_import import read_checkpoint
from hepar.params import NetworkParams, SizeZYX
from hepar.runtime.artifacts import sha256_file, write_artifact


def run(checkpoint: Path, model: Path, network: NetworkParams, plan: PreprocessingPlan, patch_zyx: SizeZYX) -> None:
    """Write the folder `model`: the checkpoint's weights in the network of the params, with the preprocessing plan.

    Raises ParamsError if the network is not a MedFormer, DataError naming the first parameter that does not fit.
    """
    built = build_network(network.name, network.config, patch_zyx)
    if not isinstance(built, MedFormer):
        raise ParamsError(f"network.name is {network.name!r}: published weights can be imported for medformer only")
    try:
        load_published_weights(built, read_checkpoint(checkpoint))
    except ValueError as error:
        raise DataError(f"{checkpoint}: {one_line(error)}") from None
    origin = {ModelFolder.ROLE: "imported", "checkpoint": sha256_file(checkpoint)}
    spec = ModelSpec(network=network, plan=plan, patch_zyx=patch_zyx, modalities=tuple(Modality), origin=origin)
    with write_artifact(model, ModelFolder.KIND, origin) as folder:
        made = ModelFolder(folder)
        made.save(built.state_dict(), spec)
        made.save_history(pd.DataFrame(columns=list(ModelFolder.HISTORY_COLUMNS)))
