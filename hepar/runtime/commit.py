"""The git commit and the release that artifacts and runs are labelled with."""

from __future__ import annotations

import os
import subprocess

from hepar import __version__

COMMIT_VARIABLE = "HEPAR_GIT_COMMIT"
RELEASE = "release"  # the fact of a report that names the release of hepar that scored


def release() -> str:
    """The release of hepar that runs."""
    return __version__


def git_commit() -> str:
    """HEPAR_GIT_COMMIT if set, as in a container; else the commit of the working tree; "" without git."""
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
