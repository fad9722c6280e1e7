"""Processes in which untrusted files are read: each may crash, hang or run out of memory without taking others along.

One process, the nursery, imports the code once and forks every worker, so a worker starts, and is replaced, within
milliseconds; threads may ask for workers at the same time. It reads no file and ends with this process, however that
ends, and all workers end with it.
"""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

import psutil
import SimpleITK as sitk

from hepar.errors import HeparError

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the end of the parent ends the nursery
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
DESCRIPTOR_BYTES = 1
USABLE = 0.8  # share of the machine's memory that all workers may fill together
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class WorkersFailed(HeparError):
    """The nursery cannot be started; no job is at fault."""


@dataclass(frozen=True)
class Failed:
    """The outcome of a job that raised: the error, if it can be sent, and its traceback as text."""

    error: Exception
    trace: str


@dataclass(frozen=True)
class OutOfMemory:
    """The outcome of a job that needed more memory than its worker may take."""


@dataclass(frozen=True)
class Done:
    """The outcome of a job that returned a value."""

    value: Any


def usable_bytes() -> int:
    """Memory that all workers may fill together: a share of what the machine or its container has."""
    limits = [psutil.virtual_memory().total]
    for place in CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            limits.append(int(Path(place).read_text()))
    return int(USABLE * min(limits))


class Worker:
    """One worker process as its parent sees it."""

    def __init__(self, work: Callable[[Any], Any], threads: int) -> None:
        """Start it; it computes `work(job)` with ITK on `threads` threads. Raises WorkersFailed."""
        self.connection, theirs = _connections()
        order = _Order(work, threads, dict(os.environ), Path.cwd(), tempfile.gettempdir())
        try:
            self._nursery, self._pid = _fork_worker(order, theirs)
        finally:
            theirs.close()

    def start(self, job: Any, memory_bytes: int) -> None:
        """Hand over a job, which may fill that much memory. If the worker is dead, its outcome will say so."""
        with suppress(OSError):
            self.connection.send((job, memory_bytes))

    def outcome(self) -> Done | Failed | OutOfMemory | None:
        """What `connection` has to tell; None if the worker died."""
        try:
            return self.connection.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):
            return None

    def end(self) -> str:
        """Kill it, unless it is dead, and return how it ended: the name of a signal or an exit code."""
        self.connection.close()
        status = self._nursery.bury(self._pid)
        if status < 0:
            with suppress(ValueError):
                return signal.Signals(-status).name
        return f"exit code {status}"


@dataclass(frozen=True)
class _Order:
    """What a worker is forked for, and the surroundings that it takes over from its parent."""

    work: Callable[[Any], Any]
    threads: int
    environment: dict[str, str]
    folder: Path
    temporary: str


class _Nursery:
    """The process that forks workers, as its parent sees it."""

    def __init__(self) -> None:
        own, theirs = socket.socketpair()
        paths = os.pathsep.join(path for path in sys.path if path)
        code = f"from hepar.ingest.workers import run_nursery; run_nursery({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": paths},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self.owner = os.getpid()
        self._socket = own
        self._messages = Connection(os.dup(own.fileno()))

    def fork(self, order: _Order, theirs: Connection) -> int:
        """The process id of a new worker that listens on `theirs`. Raises OSError or EOFError if the nursery died."""
        self._messages.send(order)
        socket.send_fds(self._socket, [b"\0" * DESCRIPTOR_BYTES], [theirs.fileno()])
        return int(self._messages.recv())

    def bury(self, pid: int) -> int:
        """Kill a worker, unless it is dead; its exit code, or minus the signal that ended it."""
        try:
            with _talking:
                self._messages.send(pid)
                return int(self._messages.recv())
        except (OSError, EOFError):
            return -signal.SIGKILL  # the nursery is dead, and so are its workers

    def close(self) -> None:
        """End the process and all its workers."""
        self._messages.close()
        self._socket.close()
        self._process.wait()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


_nurseries: list[_Nursery] = []  # one, or none
_talking = Lock()  # to the nursery: an answer belongs to the message before it


@atexit.register
def _close_nursery() -> None:
    while _nurseries:
        nursery = _nurseries.pop()
        if nursery.owner == os.getpid():
            nursery.close()


def _fork_worker(order: _Order, theirs: Connection) -> tuple[_Nursery, int]:
    """A worker from the nursery of this process, which is started where there is none or it died."""
    with _talking:
        for _ in range(2):
            if not _nurseries or _nurseries[0].owner != os.getpid() or not _nurseries[0].alive:
                _nurseries[:] = [_Nursery()]
            with suppress(OSError, EOFError):
                return _nurseries[0], _nurseries[0].fork(order, theirs)
            _close_nursery()
    raise WorkersFailed("worker processes cannot be started to read files")


def _connections() -> tuple[Connection, Connection]:
    ends = socket.socketpair()
    first, second = (Connection(end.detach()) for end in ends)
    return first, second


def run_nursery(descriptor: int) -> None:
    """Fork a worker for each order, kill and reap one for each process id, until the parent has gone."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=descriptor)
    messages = Connection(os.dup(descriptor))
    workers: set[int] = set()
    gc.freeze()  # forks share these objects as long as nothing touches them
    try:
        while True:
            message = messages.recv()
            if isinstance(message, int):
                messages.send(_bury(message))
                workers.discard(message)
                continue
            _, (theirs, *_), *_ = socket.recv_fds(connection, DESCRIPTOR_BYTES, 1)
            pid = os.fork()
            if pid == 0:
                messages.close()
                connection.close()
                _serve_and_exit(message, Connection(theirs))
            os.close(theirs)
            workers.add(pid)
            messages.send(pid)
    except (EOFError, OSError):
        pass
    finally:
        for pid in workers:
            _bury(pid)


def _serve_and_exit(order: _Order, connection: Connection) -> NoReturn:
    """Work on one job after the other, as a worker, until the parent closes the connection."""
    try:
        _settle(order)
        while True:
            connection.send(_outcome(order.work, connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)
    finally:
        os._exit(1)  # nothing of the nursery may run in its child


def _settle(order: _Order) -> None:
    """Take over the parent's surroundings. What libraries print about a file goes nowhere: it may name a patient."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump holds the scan
    with suppress(OSError):  # not on Linux
        Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel kills this process first
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.folder)
    tempfile.tempdir = order.temporary
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(order.threads)


def _outcome(work: Callable[[Any], Any], message: bytes) -> Done | Failed | OutOfMemory:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    try:
        job, memory_bytes = pickle.loads(message)
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, hard))
        return Done(work(job))
    except MemoryError:
        return OutOfMemory()
    except Exception as error:
        return Failed(_sendable(error), traceback.format_exc())
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _bury(pid: int) -> int:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 0
