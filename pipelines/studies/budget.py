"""The budget of a study: each arm trains as long as the first, counted in patches of a modality or in multiply-adds.

The universal training of an arm has `steps` for both modalities; on a pool of one modality the stage itself takes half
of them, so the budget of a modality stays the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from hepar.cases import Modality
from hepar.params import Params, SizeZYX

if TYPE_CHECKING:
    from hepar.networks import Cost


class BudgetKind(StrEnum):
    PATCHES = "patches"
    MULTIPLY_ADDS = "multiply_adds"  # of the forward pass; the backward pass has twice as many in every network


@dataclass(frozen=True)
class Spending:
    """What the universal training of an arm takes: `steps` in fact, patches and multiply-adds of each modality."""

    steps: int
    patches: float
    multiply_adds: float
    parameters: int


def budgeted(params: Params, first: Params, kind: BudgetKind) -> Params:
    """The params of an arm with as many steps as the budget of the first arm gives, at least one.

    Warm-up and validations move with the steps. Raises ParamsError if the network cannot be built.
    """
    share = _per_step(first, kind) / _per_step(params, kind)
    training = params.train_universal.training.scaled(share)
    return params.model_copy(
        update={"train_universal": params.train_universal.model_copy(update={"training": training})}
    )


def spending(params: Params) -> Spending:
    """What a training with these params takes."""
    training = params.train_universal.training
    own = training.scaled(len(params.modalities) / len(Modality))
    found = _cost_of(params)
    patches = own.steps * training.batch_size * training.accumulate / len(params.modalities)
    return Spending(own.steps, patches, patches * found.multiply_adds, found.parameters)


def _per_step(params: Params, kind: BudgetKind) -> int:
    """Patches, or multiply-adds of all patches, of one step."""
    training = params.train_universal.training
    patches = training.batch_size * training.accumulate
    if kind == BudgetKind.PATCHES:
        return patches
    return patches * _cost_of(params).multiply_adds


def _cost_of(params: Params) -> Cost:
    return _cost(params.network.name, json.dumps(params.network.config), params.train_universal.training.patch_zyx)


@lru_cache
def _cost(name: str, config: str, patch_zyx: SizeZYX) -> Cost:  # the first arm is looked at once per arm
    from hepar.networks import cost  # imports torch

    return cost(name, json.loads(config), patch_zyx)
