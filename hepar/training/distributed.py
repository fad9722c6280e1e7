"""One training in several processes, one a GPU: what they add up and agree on, and how they start.

Launched by `torchrun`, a process takes its place from the standard variables (RANK, WORLD_SIZE, …); by itself, a
training starts one process for each GPU of its machine. Where there is one process, everything here does nothing.
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
    """This process's number in its training; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes the training has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_launched() -> bool:
    """Whether this process is one of several that `torchrun`, or `launch`, has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[torch.device]:
    """The device of this process, which has joined the others where there are any."""
    device = pick_device()
    if not is_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield device
    dist.destroy_process_group()  # after an error the process ends, and must not wait for others to say so


def threads_each(threads: int) -> int:
    """CPU threads of one process: as many as are asked for, or its share of the machine's cores."""
    return threads or max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def parallel(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network with its gradients averaged over the processes."""
    if size() == 1:
        return network
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def synchronised(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network with statistics of batches taken over all processes.

    Raises ParamsError on the CPU for a network that has any: torch can do it on GPUs alone.
    """
    if size() == 1 or not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        return network
    if device.type != "cuda":
        raise ParamsError("the network has batch norms: on the CPU training.processes must be 1 for it")
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return]


def refuse_torchrun(what: str) -> None:
    """Raise ParamsError where `torchrun` has started the process: several trainings in turn start their own."""
    if is_launched():
        raise ParamsError(f"{what}: run it without torchrun; each of its trainings takes all GPUs of this machine")


def add_up(local: Tensor) -> Tensor:
    """The sum of a tensor over the processes.

    Each process passes back the gradient of its own part, times the number of processes: after the gradients of the
    weights are averaged, they are those of the whole.
    """
    if size() == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total + size() * (local - local.detach())


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    if size() == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return bool(flags > 0)


def from_first(value: T) -> T:
    """The value that process 0 has."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def wanted_processes(params: TrainingParams) -> int:
    """How many processes this machine's training takes: those asked for, or one a GPU as far as they divide the batch.

    Raises ParamsError where the batch cannot be shared by the processes that are asked for.
    """
    if is_launched():
        wanted = int(os.environ["WORLD_SIZE"])
    elif params.processes:
        wanted = params.processes
    else:
        gpus = torch.cuda.device_count()
        return max((n for n in range(1, gpus + 1) if params.batch_size % n == 0), default=1)
    if params.batch_size % wanted:
        raise ParamsError(f"training.batch_size is {params.batch_size}: must be a multiple of the {wanted} processes")
    return wanted


def launch(processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work` in some processes of this machine, which find each other; it has to be a module's function.

    Raises the HeparError that one of them raised, and Preempted where SIGTERM came and they have saved their state.
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
        said = Path(folder) / "error.json"
        try:
            elastic_launch(config, _reporting)(said, work, *arguments)
        except (ChildFailedError, SignalException):
            if not said.is_file():
                raise
            kind, message = json.loads(said.read_text())
            raise (Preempted if kind == Preempted.__name__ else HeparError)(message) from None


def _reporting(said: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work`; what the user can mend, or go on from, is left for the process that launched this one."""
    try:
        work(*arguments)
    except HeparError as error:
        temporary = said.with_name(f"{said.name}.{os.getpid()}")
        temporary.write_text(json.dumps([type(error).__name__, str(error)]))
        temporary.replace(said)
        sys.exit(os.EX_TEMPFAIL)
