"""The secret that patients' ids are hashed with. It lies outside of every cohort."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from hepar.errors import DataError

VARIABLE = "HEPAR_PATIENT_KEY"
FILE_VARIABLE = "HEPAR_PATIENT_KEY_FILE"
EPHEMERAL_VARIABLE = "HEPAR_EPHEMERAL"  # set where what is written at home is lost, as in a container
MIN_LENGTH = 16


def patient_key() -> bytes:
    """The key: HEPAR_PATIENT_KEY, or the file HEPAR_PATIENT_KEY_FILE, or one made once in the user's configuration.

    With the same key the same patient has the same id in every cohort. Raises DataError for a key that is too short,
    and where one would have to be made that nothing keeps.
    """
    if given := os.environ.get(VARIABLE):
        return _checked(given, VARIABLE)
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = Path(os.environ.get(FILE_VARIABLE) or configuration / "hepar" / "patient.key")
    if not path.is_file():
        if os.environ.get(EPHEMERAL_VARIABLE):
            raise DataError(
                f"no patient key is given, and one made in this container would be lost: set {VARIABLE} or"
                f" {FILE_VARIABLE}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
    return _checked(path.read_text().strip(), str(path))


def _checked(key: str, where: str) -> bytes:
    if len(key) < MIN_LENGTH:
        raise DataError(f"the patient key in {where} has {len(key)} characters, must have {MIN_LENGTH} or more")
    return key.encode()
