"""Secrets that a test plants in the environment, and a search for them wherever they could have leaked."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self
from urllib.parse import quote, quote_plus
from uuid import uuid4

POLL_SECONDS = 0.05


class Watch:
    """Secrets of one test. While it is entered, the command lines of all processes are searched for them."""

    def __init__(self) -> None:
        mark = uuid4().hex[:12]
        self.password, self.patient = f"Pass-{mark}-word", f"Pat {mark}/ient"
        self.environment = {
            "AWS_ACCESS_KEY_ID": f"AKIA{mark}",
            "AWS_SECRET_ACCESS_KEY": f"aws/{mark}+secret",
            "AWS_SESSION_TOKEN": f"aws-{mark}-session",
            "HEPAR_DICOMWEB_TOKEN": f"dicomweb-{mark}-token",
            "HEPAR_PATIENT_KEY": f"patient-{mark}-key",
            "MLFLOW_TRACKING_PASSWORD": f"mlflow-{mark}-password",
        }
        secrets = [self.password, self.patient, *self.environment.values()]
        encoded = {form(secret) for secret in secrets for form in (quote, quote_plus)}
        self.forms = sorted({*secrets, *encoded, *(quote(secret, safe="") for secret in secrets)})
        self._stop, self._leaks = Event(), set[str]()
        self._thread = Thread(target=self._read_command_lines, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _read_command_lines(self) -> None:
        while not self._stop.is_set():
            for process in Path("/proc").iterdir():
                if not process.name.isdigit():
                    continue
                try:
                    line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:  # it has ended
                    continue
                self._leaks.update(f"command line: {line}" for form in self.forms if form in line)
            time.sleep(POLL_SECONDS)

    def found_in(self, folder: Path, *texts: str) -> list[str]:
        """Where a secret stands: in a command line, in a file below `folder` or its name, or in a text."""
        places = sorted(self._leaks) + [text for text in texts if any(form in text for form in self.forms)]
        needles = [form.encode() for form in self.forms]
        for root, folders, files in os.walk(folder):
            for name in (*folders, *files):
                path = Path(root) / name
                content = path.read_bytes() if path.is_file() else b""
                if any(needle in content or needle in str(path).encode() for needle in needles):
                    places.append(str(path))
        return places
