"""The git commit and the release that artifacts and runs are labelled with."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import hepar
from hepar.runtime.artifacts import sha256_file, sha256_json

PACKAGE = Path(hepar.__file__).parent
COMMIT_VARIABLE = "HEPAR_GIT_COMMIT"
RELEASE = "release"  # the fact of a report that names the release of hepar that scored
SCORING = ("evaluation", "imaging", "inference", "networks")  # folders of hepar whose code decides on scores
LIBRARIES = ("monai", "numpy", "scipy", "SimpleITK", "torch")  # on which they depend too
CODE_DIGITS = 12
DIRTY = "-dirty"  # as `git describe` marks it


@cache
def release() -> str:
    """The version of hepar that runs, with a hash of the code that scores depend on: they pair only if both agree.

    The versions of `LIBRARIES` are in the hash, but not their builds, such as those for a GPU.
    """
    modules = [path for folder in SCORING for path in (PACKAGE / folder).rglob("*.py")]
    code = {path.relative_to(PACKAGE).as_posix(): sha256_file(path) for path in modules}
    libraries = {name: version(name).split("+")[0] for name in LIBRARIES}
    return f"{hepar.__version__}+{sha256_json({**code, **libraries})[:CODE_DIGITS]}"


def git_commit() -> str:
    """HEPAR_GIT_COMMIT if set, as in a container; else the commit that the code of hepar is of; "" without one.

    The working directory does not matter. `DIRTY` follows the commit if files of the package are changed or new.
    """
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # else it is installed, perhaps below another repository
        return _git("rev-parse", "HEAD") + (DIRTY if _git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
