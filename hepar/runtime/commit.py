"""The git commit and the release that artifacts and runs are labelled with."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import hepar
from hepar.runtime.artifacts import sha256_file, sha256_json

COMMIT_VARIABLE = "HEPAR_GIT_COMMIT"
RELEASE = "release"  # the fact of a report that names the release of hepar that scored
SCORING = ("evaluation", "imaging", "inference", "networks")  # folders of hepar whose code decides on scores
CODE_DIGITS = 12


@cache
def release() -> str:
    """The version of hepar that runs, with a hash of the code that scores depend on: they pair only if both agree."""
    root = Path(hepar.__file__).parent
    modules = [path for folder in SCORING for path in (root / folder).rglob("*.py")]
    code = {path.relative_to(root).as_posix(): sha256_file(path) for path in modules}
    return f"{hepar.__version__}+{sha256_json(code)[:CODE_DIGITS]}"


def git_commit() -> str:
    """HEPAR_GIT_COMMIT if set, as in a container; else the commit of the working tree; "" without git."""
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
