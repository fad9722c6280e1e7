"""A champion is scored anew on a cohort that lies in the store alone, as on a machine that has made nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_challenger import ToyChallenger, publish_challenger
from toy_versions import ToyRegistry

from hepar.cases import Cohort
from hepar.errors import DataError, StorageError
from hepar.params import Params
from hepar.registry.champion import promote
from hepar.registry.promotion import Decision
from hepar.runtime import remote_cache
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.object_store import Store


@pytest.fixture
def made(tmp_path: Path, tiny: Params, database: None, monkeypatch: pytest.MonkeyPatch) -> ToyChallenger:
    """The store is a folder."""
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    monkeypatch.setenv(remote_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return publish_challenger(tmp_path, tiny, Store(str(tmp_path / "store")), ToyRegistry(tmp_path / "registry"))


def stored(name: str, store: Path) -> Path:
    """The object of a name, an MD5 or a version, in a store."""
    (found,) = store.rglob(f"{name[:2]}/{name[2:]}")
    return found


def image(made: ToyChallenger, patient: str, store: Path) -> Path:
    """The object of the scan of a patient."""
    return stored(Store(str(store)).listing(made.version)[Cohort.volume(patient, "image")], store)


def test_the_cohort_comes_from_the_store_and_of_it_the_test_patients_alone(made: ToyChallenger, tmp_path: Path) -> None:
    image(made, made.learned[0], tmp_path / "store").unlink()
    assert promote(made.number, made.params, dry_run=True) == Decision(True, ())


def test_without_a_store_the_reason_says_which_version_to_look_for(
    made: ToyChallenger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STORE_VARIABLE)
    (reason,) = promote(made.number, made.params, dry_run=True).reasons
    assert f"or set HEPAR_STORE to the store that has it as version {made.version}," in reason
    assert reason.startswith("not comparable: version 1, the champion, was scored on another test set; pass --cohort")


def test_what_the_store_lacks_or_has_damaged_ends_in_one_sentence(made: ToyChallenger, tmp_path: Path) -> None:
    damaged = image(made, made.tested[1], tmp_path / "store")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(StorageError, match=str(damaged)):
        promote(made.number, made.params, dry_run=True)
    listing = stored(made.version, tmp_path / "store")
    listing.unlink()
    with pytest.raises(DataError, match=rf"{listing} does not exist"):
        promote(made.number, made.params, dry_run=True)
