"""A challenger whose cohort is in a store alone, and a champion that was scored on other patients."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from toy_cohort import EVERYWHERE, write_cohort_by_case
from toy_model import constant_weights, write_model
from toy_versions import ToyRegistry, scores, toy_gates

import hepar.stages.evaluate
from hepar.cases import Cohort
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, RegisterParams
from hepar.registry.model_registry import COHORT_VERSION
from hepar.runtime.object_store import Store
from hepar.runtime.stored_versions import publish


@dataclass(frozen=True)
class ToyChallenger:
    """The number of the challenger, the version of its cohort in the store, and gates that let it pass."""

    number: str
    version: str
    params: RegisterParams
    tested: tuple[str, ...] = ("p0", "p1", "p2")
    learned: tuple[str, ...] = ("p3",)


def publish_challenger(folder: Path, tiny: Params, store: Store, registry: ToyRegistry) -> ToyChallenger:
    """Write both. The champion finds no liver in these patients, the challenger finds it everywhere."""
    tested, learned = ToyChallenger.tested, ToyChallenger.learned
    cohort = write_cohort_by_case(folder / "made", tested, learned)
    better = write_model(folder / "everywhere", tiny, constant_weights(tiny, 0.9, 0.1)).folder
    hepar.stages.evaluate.run(cohort, better, folder / "report", tiny.evaluate)
    version = publish(cohort, (Cohort.VOLUMES,), store)
    shutil.rmtree(cohort)
    champion = write_model(folder / "nowhere", tiny, constant_weights(tiny, 0.1, 0.1)).folder
    registry.champion(scores(0.99), "earlier", champion)
    report = Report.load(folder / "report")
    facts = {key: value for key, value in report.facts().items() if key != ModelFolder.KIND}
    facts[COHORT_VERSION] = version
    number = registry.add(report.cases(), facts.pop(Report.TEST_SET), better, **facts)
    section = toy_gates(tiny)
    gates = section.gates.model_copy(update={"min_liver_dice": EVERYWHERE - 0.01})
    return ToyChallenger(number, version, section.model_copy(update={"gates": gates}))
