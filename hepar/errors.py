"""Errors that the user can fix. The command line prints the message and exits with code 2.

HeparError
├── ParamsError     a parameter is unknown, missing or out of range
├── DataError       a scan, a mask or a table breaks a rule; the message names case, rule and value
│   ├── Refusal     one case breaks a rule: it is quarantined and the others go on
│   └── NotConfigured   nothing says where a store is
├── StorageError    a store or server fails; no case is at fault
│   └── DiskFull    a disk, a quota or the size limit of the process has no room
├── Preempted       the run was stopped and can be resumed: exit code 75
└── ArtifactError   a folder passed between stages is missing, incomplete or of the wrong kind
"""

from __future__ import annotations


class HeparError(Exception):
    """Base of every error that the user can fix."""


class ParamsError(HeparError):
    """A parameter is unknown, missing or out of range."""


class DataError(HeparError):
    """A scan, a mask or a table breaks a rule."""


class Refusal(DataError):
    """One case is refused: the rule that it breaks and the value that breaks it."""

    def __init__(self, rule: str, value: str) -> None:
        super().__init__(f"{rule}: {value}")
        self.rule = rule
        self.value = value

    def __reduce__(self) -> tuple[type[Refusal], tuple[str, str]]:
        return type(self), (self.rule, self.value)  # an exception is otherwise rebuilt from its message alone


class NotConfigured(DataError):
    """Nothing says where a store is; the message says how to name it."""


class StorageError(HeparError):
    """A store or server is unreachable, denies access or fails; no case is at fault."""


class DiskFull(StorageError):
    """A disk, a quota or the size limit of the process has no room for a file."""


class Preempted(HeparError):
    """SIGTERM arrived and progress is saved; the same command resumes from there."""


class ArtifactError(HeparError):
    """A folder that a stage reads is missing, incomplete or of the wrong kind."""


def one_line(error: object) -> str:
    """The message of an error, or any other text, on one line."""
    return " ".join(str(error).split())
