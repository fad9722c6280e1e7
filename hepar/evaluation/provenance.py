"""Where the numbers of a report come from: its facts, from the data to the code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hepar.cases import Cohort
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.runtime.commit import RELEASE

_HASH = re.compile(r"(?:sha256:)?([0-9a-f]{32,})")
_SHOWN = 12  # characters of a hash
_STEPS = {
    "Cohort": (Cohort.KIND, Report.SOURCES),
    "Training pool": (ModelFolder.POOL, ModelFolder.POOL_VERSION),
    "Model": (ModelFolder.KIND,),
    "Predictions": (Report.PREDICTIONS, Report.PREDICTION_LABELS, *Report.SETTINGS, Report.LEFT_TO_MODEL),
    "Scores": (Report.TEST_SET, Report.REFERENCE_LABELS, Report.COMMIT, RELEASE),
}


@dataclass(frozen=True)
class Fact:
    """One fact as shown: a hash is cut short, `full` is all of it."""

    name: str
    shown: str
    full: str


@dataclass(frozen=True)
class ProvenanceStep:
    """A step on the way to the report, and what is known about it."""

    title: str
    facts: tuple[Fact, ...]


def trace(facts: Mapping[str, str]) -> list[ProvenanceStep]:
    """The facts of a report by step; a step about which there is no fact is left out, other facts come last.

    What was not scored is no step. An empty value is given as not known, for a setting as none.
    """
    named = {name for names in _STEPS.values() for name in names} | {Report.NOT_SCORED}
    steps = {**_STEPS, "Other": tuple(name for name in facts if name not in named)}
    return [
        ProvenanceStep(title, tuple(_fact(name, facts[name]) for name in names if name in facts))
        for title, names in steps.items()
        if any(name in facts for name in names)
    ]


def _fact(name: str, value: str) -> Fact:
    if not value:
        value = "none" if name in (*Report.SETTINGS, Report.LEFT_TO_MODEL) else "not known"
    found = _HASH.fullmatch(value)
    return Fact(name.replace("_", " "), value if found is None else f"{found[1][:_SHOWN]}…", value)
