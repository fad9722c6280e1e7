"""The folder `registration/`: which version of which registered model a run made, and its alias."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from hepar.errors import ArtifactError, one_line
from hepar.registry.promotion import Decision
from hepar.runtime.artifacts import write_json
from hepar.runtime.journal import finish_replacing


@dataclass(frozen=True)
class Registration:
    """A registered version. `reasons` say why it did not become champion, and which patients were left out."""

    name: str
    version: str
    alias: str
    reasons: tuple[str, ...]

    KIND = "registration"
    FILE = "registration.json"

    @classmethod
    def of(cls, name: str, version: str, decision: Decision) -> Registration:
        """How the registration of a version ends by a decision."""
        reasons = decision.left_out if decision.promote else decision.remarks
        return cls(name, version, decision.alias, reasons)

    @property
    def summary(self) -> str:
        """The registration as one line of text."""
        reasons = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.name} version {self.version}, {self.alias}{reasons}"

    def save(self, folder: Path) -> None:
        """Write the file into `folder`; the same values give the same bytes."""
        write_json(folder / self.FILE, asdict(self))

    def to_json(self) -> str:
        """The registration as JSON on one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Registration:
        """A registration from JSON. Raises ValueError, TypeError or KeyError if the text is none."""
        found = json.loads(text)
        return cls(found["name"], found["version"], found["alias"], tuple(found["reasons"]))

    @classmethod
    def load(cls, folder: Path) -> Registration:
        """Read a registration. Raises ArtifactError if it is missing or damaged."""
        finish_replacing(folder)
        path = folder / cls.FILE
        try:
            return cls.from_json(path.read_text())
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{path} is not a registration: {one_line(error)}") from None
