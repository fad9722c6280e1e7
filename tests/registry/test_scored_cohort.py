"""A champion is scored anew on a cohort that lies in the store alone, as on a machine that has made nothing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_cohort import EVERYWHERE, write_cohort_by_case
from toy_model import constant_weights, write_model
from toy_versions import ToyRegistry, scores, toy_gates

import hepar.stages.evaluate
from hepar.cases import Cohort
from hepar.errors import DataError, StorageError
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, RegisterParams
from hepar.registry.champion import promote
from hepar.registry.model_registry import COHORT_VERSION
from hepar.registry.promotion import Decision
from hepar.runtime import remote_cache
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.object_store import Store
from hepar.runtime.stored_versions import publish

TESTED, LEARNED = ("p0", "p1", "p2"), ("p3",)
IMPROVED = Decision(True, ())


@dataclass
class Published:
    """A challenger whose cohort is in a store, which is a folder, and the champion, which was scored on others."""

    store: Path
    version: str
    number: str
    params: RegisterParams

    def object(self, path: str) -> Path:
        """The object of a file of the cohort."""
        md5 = Store(str(self.store)).listing(self.version)[path]
        (found,) = self.store.rglob(f"{md5[:2]}/{md5[2:]}")
        return found


@pytest.fixture
def published(tmp_path: Path, tiny: Params, database: None, monkeypatch: pytest.MonkeyPatch) -> Published:
    cohort = write_cohort_by_case(tmp_path / "made", TESTED, LEARNED)
    models = {
        name: write_model(tmp_path / name, tiny, constant_weights(tiny, liver, 0.1)).folder
        for name, liver in (("everywhere", 0.9), ("nowhere", 0.1))
    }
    hepar.stages.evaluate.run(cohort, models["everywhere"], tmp_path / "report", tiny.evaluate)
    version = publish(cohort, (Cohort.VOLUMES,), Store(str(tmp_path / "store")))
    shutil.rmtree(cohort)
    registry, report = ToyRegistry(tmp_path / "registry"), Report.load(tmp_path / "report")
    registry.champion(scores(0.99), "earlier", models["nowhere"])
    facts = {
        **{key: value for key, value in report.facts().items() if key != ModelFolder.KIND},
        COHORT_VERSION: version,
    }
    number = registry.add(report.cases(), facts.pop(Report.TEST_SET), models["everywhere"], **facts)
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    monkeypatch.setenv(remote_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    section = toy_gates(tiny)
    gates = section.gates.model_copy(update={"min_liver_dice": EVERYWHERE - 0.01})
    return Published(tmp_path / "store", version, number, section.model_copy(update={"gates": gates}))


def test_the_cohort_comes_from_the_store_and_of_it_the_test_patients_alone(published: Published) -> None:
    published.object(Cohort.volume("p3", "image")).unlink()
    assert promote(published.number, published.params, dry_run=True) == IMPROVED


def test_without_a_store_the_reason_says_which_version_to_look_for(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STORE_VARIABLE)
    (reason,) = promote(published.number, published.params, dry_run=True).reasons
    assert f"or set HEPAR_STORE to the store that has it as version {published.version}," in reason
    assert reason.startswith("not comparable: version 1, the champion, was scored on another test set; pass --cohort")


def test_what_the_store_lacks_or_has_damaged_ends_in_one_sentence(published: Published) -> None:
    image = published.object(Cohort.volume("p1", "image"))
    image.write_bytes(image.read_bytes()[:-1])
    with pytest.raises(StorageError, match=str(image)):
        promote(published.number, published.params, dry_run=True)
    (listing,) = published.store.rglob(f"*{published.version[2:]}")
    listing.unlink()
    with pytest.raises(DataError, match=rf"{listing} does not exist"):
        promote(published.number, published.params, dry_run=True)
