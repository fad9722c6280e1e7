"""Commands of `hepar`, and other work, in forks of a process that has imported everything, which saves seconds each."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from conftest import environment

PRELOADED = [
    *("hepar.cli.main", "hepar.stages.train_universal", "hepar.stages.evaluate", "hepar.stages.ingest"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store"),
]
STREAMS = ("stdout", "stderr")
QUIET = {"GIT_PYTHON_REFRESH": "quiet"}  # read when mlflow is imported


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Shell:
    """A folder and the variables that are exported there; runs `export NAME=VALUE` and `NAME=VALUE … hepar …`."""

    folder: Path
    exported: dict[str, str] = field(default_factory=dict)

    def run(self, line: str) -> Ended:
        """Run one line of a shell script; a comment at its end is ignored."""
        words = shlex.split(line, comments=True)
        if words[0] == "export":
            self.exported.update(_assignments(words[1:]))
            return Ended(0, "", "")
        given = _assignments(words)
        return hepar(words[len(given) :], self.folder, {**self.exported, **given})

    def succeed(self, line: str) -> str:
        """The standard output of a line that must end with exit code 0."""
        ended = self.run(line)
        assert ended.code == 0, f"{line}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout


@dataclass(frozen=True)
class Forked:
    """A process forked from one that has imported everything."""

    process: BaseProcess
    outputs: tempfile.TemporaryDirectory[str]

    def end(self, seconds: float | None = None) -> Ended:
        """Wait for its end; a process that takes longer is killed."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode is not None
        stdout, stderr = (Path(self.outputs.name, name).read_text() for name in STREAMS)
        self.outputs.cleanup()
        return Ended(self.process.exitcode, stdout, stderr)


def fork(work: Callable[..., object], *arguments: object, folder: Path, **exported: str) -> Forked:
    """Let a new process do `work`, a function of an importable module, in `folder` and with variables of its own."""
    context = multiprocessing.get_context("forkserver")
    os.environ.update(QUIET)
    context.set_forkserver_preload(PRELOADED)
    outputs = tempfile.TemporaryDirectory()
    written = [Path(outputs.name, name) for name in STREAMS]
    process = context.Process(target=_work, args=(work, arguments, folder, environment(**exported), written))
    process.start()
    return Forked(process, outputs)


def start(words: list[str], folder: Path, **exported: str) -> Forked:
    """Let `hepar …` begin in a process of its own."""
    assert words[0] == "hepar", f"{words[0]} is no command that this shell runs"
    return fork(_hepar, words, folder=folder, **exported)


def hepar(words: list[str], folder: Path, exported: Mapping[str, str]) -> Ended:
    """Run `hepar …` in a process of its own."""
    return start(words, folder, **exported).end()


def script(code: str, *words: str, folder: Path, **exported: str) -> Ended:
    """Run a Python script in a process of its own, like `python -c CODE WORDS…`."""
    return fork(_script, code, words, folder=folder, **exported).end()


def _hepar(words: list[str]) -> None:
    from hepar.cli.main import main

    sys.argv = words
    main()


def _script(code: str, words: tuple[str, ...]) -> None:
    sys.argv = ["-c", *words]
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})


def _work(
    work: Callable[..., object],
    arguments: tuple[object, ...],
    folder: Path,
    variables: Mapping[str, str],
    written: list[Path],
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for stream, path in zip((1, 2), written, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    work(*arguments)


def _assignments(words: list[str]) -> dict[str, str]:
    """The `NAME=VALUE` at the beginning of a command."""
    found = {}
    for word in words:
        name, mark, value = word.partition("=")
        if not mark or not name.isidentifier():
            break
        found[name] = value
    return found
