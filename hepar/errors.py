"""What can go wrong because of the user's input. The command line prints the message and exits with code 2.

HeparError
├── ParamsError     a parameter is unknown, missing or out of range
├── DataError       a scan, a mask or a table breaks a rule; names case, rule and value
└── ArtifactError   a folder handed from stage to stage is missing, half-written or of another kind
"""

from __future__ import annotations


class HeparError(Exception):
    """Base of every error that the user can mend."""


class ParamsError(HeparError):
    """A parameter is unknown, missing or out of range."""


class DataError(HeparError):
    """A scan, a mask or a table breaks a rule."""


class ArtifactError(HeparError):
    """A folder that a stage reads is missing, half-written or of another kind."""
