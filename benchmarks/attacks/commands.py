"""Commands of hepar in a folder of their own, and how they ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from attacks.verdicts import Verdict

ROOT = Path(__file__).parents[2]
HEPAR = str(Path(sys.executable).with_name("hepar"))
PATIENT_KEY = "a key of the attack"
TRACEBACK = "Traceback (most recent call last)"
SENTENCE = "hepar: "


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, None after a hang, and all that it wrote."""

    code: int | None
    output: str
    seconds: float

    @property
    def sentence(self) -> str:
        """The last line that speaks to the user; empty if there is none."""
        said = [line for line in self.output.splitlines() if line.startswith(SENTENCE)]
        return said[-1].removeprefix(SENTENCE) if said else ""

    def verdict(self) -> Verdict | None:
        """What the end alone shows; None if the command succeeded."""
        if self.code is None:
            return Verdict.HANG
        if self.code < 0 or self.code > 128:
            return Verdict.CRASH
        if TRACEBACK in self.output:
            return Verdict.TRACEBACK
        if self.code == 0:
            return None
        return Verdict.REFUSED if self.code == 2 and self.sentence else Verdict.TRACEBACK

    def seen(self) -> str:
        """The last words of the command."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return f"exit {self.code}: {lines[-1].strip()[:300] if lines else 'silence'}"


@dataclass(frozen=True)
class Workplace:
    """A folder in which commands run, with temporary files, home and tracking database of its own.

    `variables` are added to the environment of every command.
    """

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tmp", "home"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def environment(self) -> dict[str, str]:
        own = {
            "TMPDIR": str(self.temporary),
            "HOME": str(self.folder / "home"),
            "HEPAR_PATIENT_KEY": PATIENT_KEY,
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(
                self.folder / "home" / "torch"
            ),  # else torch leaves it among temporary files
        }
        return {**os.environ, **own, **self.variables}

    def run(self, *command: str, timeout_s: float = 600, prepare: Callable[[], None] | None = None) -> Ended:
        """Run a command of hepar to its end, or kill it and all its children after `timeout_s`."""
        process, start = self.start(*command, prepare=prepare), time.monotonic()
        try:
            output, _ = process.communicate(timeout=timeout_s)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            kill_group(process)
            output, code = process.communicate()[0], None
        return Ended(code, output, time.monotonic() - start)

    def start(self, *command: str, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """Start a command of hepar in a process group of its own."""
        return subprocess.Popen(
            [HEPAR, *command],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=prepare,
        )


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a command and all its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every entry below a folder with its size and modification time."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(OSError):
            state = path.lstat()
            found[str(path.relative_to(folder))] = (state.st_size, state.st_mtime_ns if not path.is_dir() else 0)
    return found
