"""The cohort that a version was scored on: in a folder that is given, else in the store, as the version names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hepar.cases import Cohort
from hepar.registry.model_registry import COHORT_VERSION, ModelVersion
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.object_store import Store
from hepar.runtime.scratch import scratch_folder
from hepar.runtime.stored_versions import open_version


@contextmanager
def open_scored_cohort(version: ModelVersion, given: Path | None) -> Iterator[Path | None]:
    """The cohort as long as the context lasts; None if none is given and the store is not set or not named.

    From the store it comes by reference: only its tables are fetched. Raises DataError if the store lacks it,
    StorageError if the store fails.
    """
    known, store = version.facts.get(COHORT_VERSION), Store.of_environment()
    if given is not None or known is None or store is None:
        yield given
        return
    with open_stored_cohort(known, store) as cohort:
        yield cohort


@contextmanager
def open_stored_cohort(version: str, store: Store) -> Iterator[Path]:
    """A cohort of the store by reference, as long as the context lasts: only its tables are fetched.

    Raises DataError if the store lacks it, StorageError if the store fails.
    """
    with scratch_folder(Cohort.KIND) as scratch:
        open_version(version, Cohort.KIND, (Cohort.VOLUMES,), scratch / Cohort.KIND, store)
        yield scratch / Cohort.KIND


def what_to_give(version: ModelVersion) -> str:
    """How to name the cohort, in words that follow "not comparable"."""
    known = version.facts.get(COHORT_VERSION)
    or_store = f", or set {STORE_VARIABLE} to the store that has it as version {known}," if known else ""
    return f"pass --cohort with the cohort of version {version.number}{or_store} to score it on the same patients"
