"""Data-parallel training, one process per GPU: its collectives, and how the processes start.

Processes come from `torchrun`, which sets RANK, WORLD_SIZE and the like, or from `launch`. With a single process every
function here returns its input.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hepar.errors import HeparError, ParamsError, Preempted
from hepar.params import TrainingParams
from hepar.runtime.device import SHUTDOWN_SECONDS, available_cores, pick_device

T = TypeVar("T")


def rank() -> int:
    """Rank of this process; only rank 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_launched() -> bool:
    """Whether `torchrun` or `launch` has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the process group if there is one; yields the device of this process."""
    device = pick_device()
    if not is_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield device
    dist.destroy_process_group()  # not after an error: it would wait for processes that are still computing


def threads_per_process(threads: int) -> int:
    """CPU threads of one process: `threads`, or its share of the machine's cores if that is 0."""
    return threads or max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def wrap_ddp(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network, which averages its gradients over the processes."""
    if world_size() == 1:
        return network
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def sync_batch_norm(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network with batch norms that take their statistics over all processes.

    Raises ParamsError if it has batch norms and runs on several CPU processes, where torch cannot synchronise them.
    """
    if world_size() == 1 or not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        return network
    if device.type != "cuda":
        raise ParamsError("the network has batch norms: on a CPU training.processes must be 1")
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return]


def refuse_torchrun(setting: str) -> None:
    """Raise ParamsError under `torchrun`, for a `setting` that trains several networks, each on all GPUs."""
    if is_launched():
        raise ParamsError(f"{setting}: run it without torchrun, because each training takes all GPUs of this machine")


def all_reduce_sum(local: Tensor) -> Tensor:
    """Sum of a tensor over the processes, of the same shape, with a gradient.

    Each process backpropagates through its own part times the number of processes, so that the average over processes
    is the gradient of the sum.
    """
    if world_size() == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total + world_size() * (local - local.detach())


def all_reduce_any(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process. Every process has to call it."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return bool(flags > 0)


def broadcast(value: T) -> T:
    """The value of rank 0."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def process_count(params: TrainingParams) -> int:
    """How many processes train on this machine: `params.processes`, or one per GPU as far as they divide the batch.

    Raises ParamsError if the batch size is not a multiple of the number of processes.
    """
    if is_launched():
        processes = int(os.environ["WORLD_SIZE"])
    elif params.processes:
        processes = params.processes
    else:
        gpus = torch.cuda.device_count()
        return max((n for n in range(1, gpus + 1) if params.batch_size % n == 0), default=1)
    if params.batch_size % processes:
        raise ParamsError(
            f"training.batch_size is {params.batch_size} but must be divisible by {processes}, the number of processes"
        )
    return processes


def launch(processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work`, a function of a module, in several processes of this machine that form a process group.

    Raises the HeparError of the process that failed, and Preempted if SIGTERM stopped the training.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    with tempfile.TemporaryDirectory(prefix="hepar-") as folder:
        error_file = Path(folder) / "error.json"
        try:
            elastic_launch(config, _run_and_record_error)(error_file, work, *arguments)
        except (ChildFailedError, SignalException):
            if not error_file.is_file():
                raise
            kind, message = json.loads(error_file.read_text())
            raise (Preempted if kind == Preempted.__name__ else HeparError)(message) from None


def _run_and_record_error(error_file: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work`; a HeparError is written to the file, from which the launching process raises it again."""
    try:
        work(*arguments)
    except HeparError as error:
        temporary = error_file.with_name(f"{error_file.name}.{os.getpid()}")
        temporary.write_text(json.dumps([type(error).__name__, str(error)]))
        temporary.replace(error_file)
        sys.exit(os.EX_TEMPFAIL)
