"""One training step on toys, in one process or as one of several."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from toy_pool import toy_pool
from toy_training import TINY, TOYS, toy_trainer

from hepar.params import load_params
from hepar.training import distributed
from hepar.training.batches import batches


def save_step(folder: Path) -> None:
    """Take a step on a batch in two parts, with every term of the loss; rank 0 saves loss and gradients, `step.pt`."""
    with distributed.process_group() as device:
        pool = toy_pool(folder / f"pool-{distributed.rank()}", TOYS)
        trainer = toy_trainer(
            pool,
            load_params(TINY),
            folder / "checkpoints",
            batch_size=4,
            accumulate=2,
            clip_norm=1e9,
            nesting_weight=1.0,
            consistency_weight=1.0,
            consistency_rampup_steps=0,
        )
        with torch.no_grad():  # a teacher that differs from the network
            for parameter in trainer.state.ema.parameters():
                parameter.mul_(0.5)
        loss = trainer._step(list(islice(batches(trainer.sampler, 0, trainer.params, device), 2)))
        if distributed.rank() == 0:
            torch.save([loss, [parameter.grad for parameter in trainer.network.parameters()]], folder / "step.pt")
