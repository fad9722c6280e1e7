"""Places on this machine as processes that work in other folders need them: absolute."""

from __future__ import annotations

import os
from pathlib import Path

from hepar.registry import tracking
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.unfinished import CHECKPOINTS_VARIABLE


def absolute_variables() -> dict[str, str]:
    """The tracking server, the store and the folder of checkpoints of this environment, if they are set.

    A relative path is taken from the working directory of this process; addresses of servers stay as they are.
    """
    found = {
        name: _absolute(os.environ[name]) for name in (STORE_VARIABLE, CHECKPOINTS_VARIABLE) if os.environ.get(name)
    }
    if uri := os.environ.get(tracking.URI_VARIABLE):
        found[tracking.URI_VARIABLE] = tracking.absolute_uri(uri)
    return found


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).resolve())
