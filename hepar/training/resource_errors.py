"""Errors of memory and compiler, turned into one that names the setting to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from hepar.errors import HeparError, one_line
from hepar.params import TrainingParams
from hepar.runtime.shortages import is_out_of_memory


@contextmanager
def explain_resource_errors(network: nn.Module, params: TrainingParams, step: Callable[[], int]) -> Iterator[None]:
    """Raise HeparError, with the setting to change, if memory runs out or torch cannot compile the network."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if params.compile and (reason := _compiler_message(error)):
            raise HeparError(
                f"training.compile is true, but torch cannot compile the network ({reason}): set it to false, or"
                " install a C++ compiler"
            ) from None
        if not is_out_of_memory(error):
            raise
        checkpointing = ", or set gradient_checkpointing" if hasattr(network, "gradient_checkpointing") else ""
        raise HeparError(
            f"out of memory at step {step() + 1}: lower training.batch_size ({params.batch_size}) or"
            f" patch_zyx ({params.patch_zyx}){checkpointing}; cached arrays take up to cache_gib"
            f" ({params.cache_gib:g})"
        ) from None


def _compiler_message(error: Exception) -> str:
    """First paragraph of an error of torch's compiler; empty for any other error."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    return one_line(str(error).split("\n\n")[0]) if isinstance(error, TorchDynamoException) else ""
