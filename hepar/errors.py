"""What can go wrong because of the user's input. The command line prints the message and exits with code 2.

HeparError
├── ParamsError     a parameter is unknown, missing or out of range
├── DataError       a scan, a mask or a table breaks a rule; names case, rule and value
│   └── Refusal     one case breaks a rule: it goes to quarantine and the others go on
├── StorageError    a store or server does not give what it should; the case is not to blame
├── Preempted       the run was told to stop and can go on: exit code 75
└── ArtifactError   a folder handed from stage to stage is missing, half-written or of another kind
"""

from __future__ import annotations


class HeparError(Exception):
    """Base of every error that the user can mend."""


class ParamsError(HeparError):
    """A parameter is unknown, missing or out of range."""


class DataError(HeparError):
    """A scan, a mask or a table breaks a rule."""


class Refusal(DataError):
    """Why a case is refused: the rule that it breaks and the value that breaks it."""

    def __init__(self, rule: str, value: str) -> None:
        super().__init__(f"{rule}: {value}")
        self.rule = rule
        self.value = value


class StorageError(HeparError):
    """A store or server is out of reach, refuses, or fails: nothing is wrong with a case."""


class Preempted(HeparError):
    """SIGTERM came, what was done is saved, and the same command goes on from there."""


class ArtifactError(HeparError):
    """A folder that a stage reads is missing, half-written or of another kind."""
