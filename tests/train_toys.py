"""Train the tiny network on toys: `python train_toys.py FOLDER PROCESSES CHANGES`, the folder of pool and model."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from toy_pool import toy_pool
from toy_training import TINY, TOYS, toy_settings

from hepar.cli.main import errors_as_sentences
from hepar.params import load_params
from hepar.runtime.progress import stage
from hepar.training.fit import Recipe, fit_model


def variables(folder: Path) -> dict[str, str]:
    """The variables of a training in `folder`, with a database and checkpoints of its own."""
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "HEPAR_CHECKPOINTS": str(folder / "checkpoints"),
    }


def train_toys(folder: Path, processes: int, changes: dict[str, Any]) -> None:
    """Train a model in `folder`; with 0 processes in those that have been launched."""
    tiny = load_params(TINY)
    changes = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "learning_rate": 1e-4, **changes}
    training = toy_settings(tiny, processes=processes, **changes)
    with errors_as_sentences(), stage("train"):
        pool = toy_pool(folder / f"pool-{os.environ.get('RANK', '0')}", TOYS)
        fit_model(pool, folder / "model", Recipe(tiny.network, training, ("CT", "MR"), "tests"), {"role": "universal"})


if __name__ == "__main__":
    train_toys(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
