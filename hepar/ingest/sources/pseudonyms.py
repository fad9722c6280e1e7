"""Pseudonyms: keyed hashes of patients' ids, and the secret key, which lies outside every cohort."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hepar.errors import DataError
from hepar.runtime.environment import EPHEMERAL_VARIABLE

VARIABLE = "HEPAR_PATIENT_KEY"
FILE_VARIABLE = "HEPAR_PATIENT_KEY_FILE"
MIN_LENGTH = 16


def patient_key() -> bytes:
    """The key from HEPAR_PATIENT_KEY or the file HEPAR_PATIENT_KEY_FILE, else one made once in ~/.config/hepar.

    With the same key a patient has the same id in every cohort. Raises DataError if the key is too short, or if none is
    given in a container, where a new one would be lost.
    """
    if (given := given_key()) is not None:
        return given
    path = _key_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(32) + "\n")
    return _checked(path.read_text().strip(), str(path))


def given_key() -> bytes | None:
    """The key from the environment or a file; None if `patient_key` would make one. Raises as `patient_key` does."""
    if given := os.environ.get(VARIABLE):
        return _checked(given, VARIABLE)
    if (path := _key_file()).is_file():
        return _checked(path.read_text().strip(), str(path))
    if os.environ.get(EPHEMERAL_VARIABLE):
        raise DataError(
            f"no patient key is given, and one made in this container would be lost: set {VARIABLE} or {FILE_VARIABLE}"
        )
    return None


def _key_file() -> Path:
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get(FILE_VARIABLE) or configuration / "hepar" / "patient.key")


def keyed_hash(key: bytes) -> Callable[[str], str]:
    """A function from an id to its pseudonym: the first 16 hexadecimal digits of HMAC-SHA-256 with that key."""
    return partial(_keyed_hash, key)


def _keyed_hash(key: bytes, identifier: str) -> str:
    return hmac.new(key, identifier.encode(), hashlib.sha256).hexdigest()[:16]


def _checked(key: str, where: str) -> bytes:
    if len(key) < MIN_LENGTH:
        raise DataError(f"the patient key in {where} has {len(key)} characters but must have at least {MIN_LENGTH}")
    return key.encode()
