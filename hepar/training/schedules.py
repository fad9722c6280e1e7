"""Learning rate and weight of the consistency loss by step."""

from __future__ import annotations

import numpy as np

from hepar.params import TrainingParams

POLYNOMIAL_POWER = 0.9


def learning_rate(step: int, params: TrainingParams) -> float:
    """Linear warm-up, then polynomial or cosine decay to zero."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    remaining = 1 - (step - params.warmup_steps) / max(params.steps - params.warmup_steps, 1)
    if params.schedule == "cosine":
        return float(params.learning_rate * (1 - np.cos(np.pi * remaining)) / 2)
    return float(params.learning_rate * remaining**POLYNOMIAL_POWER)


def consistency_weight(step: int, params: TrainingParams) -> float:
    """Grows over the ramp-up from e^-5 of `params.consistency_weight` to all of it; constant without a ramp-up."""
    missing = 1 - min(1.0, step / params.consistency_rampup_steps) if params.consistency_rampup_steps else 0.0
    return params.consistency_weight * float(np.exp(-5 * missing**2))
