"""Commands of `hepar` in processes that are forked from one that has imported everything, which saves seconds each."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conftest import environment

PRELOADED = ["hepar.cli.main", "hepar.stages.train_universal", "hepar.stages.evaluate", "mlflow"]
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


def hepar(words: list[str], folder: Path, exported: Mapping[str, str]) -> Ended:
    """Run `hepar …` in a process of its own."""
    assert words[0] == "hepar", f"{words[0]} is no command that this shell runs"
    context = multiprocessing.get_context("forkserver")
    os.environ.update(QUIET)
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as outputs:
        written = [Path(outputs, name) for name in ("stdout", "stderr")]
        process = context.Process(target=_main, args=(words, folder, environment(**exported), written))
        process.start()
        process.join()
        stdout, stderr = (path.read_text() for path in written)
    return Ended(process.exitcode or 0, stdout, stderr)


def _main(words: list[str], folder: Path, variables: Mapping[str, str], written: list[Path]) -> None:
    from hepar.cli.main import main

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for stream, path in zip((1, 2), written, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = words
    main()


def _assignments(words: list[str]) -> dict[str, str]:
    """The `NAME=VALUE` at the beginning of a command."""
    found = {}
    for word in words:
        name, mark, value = word.partition("=")
        if not mark or not name.isidentifier():
            break
        found[name] = value
    return found
