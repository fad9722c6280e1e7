"""Studies of the tiny params, as a file and planned, whose steps a test runs without training anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Barrier
from typing import Any

import yaml
from conftest import TINY
from score_csv import scores_csv
from waiting import SECONDS

from hepar.errors import HeparError
from hepar.evaluation.report_folder import Report
from hepar.runtime.artifacts import write_artifact, write_json
from hepar.runtime.whole_files import write_text
from pipelines.steps import Step

ARMS = {"universal": {}, "CT only": {"modalities": ["CT"]}}
CLAIM = {"claim": "MR helps CT", "arm": "universal", "than": "CT only", "metric": "liver Dice", "modalities": ["CT"]}


def write_study(folder: Path, **changes: object) -> Path:
    """The file of a study with two arms and two seeds, or with other values for some of its keys."""
    values = {
        "question": "Does MR help CT?",
        "params": str(TINY),
        "common": {},
        "arms": ARMS,
        "budget": "patches",
        "teachers": "first",
        "seeds": [1, 2],
        "folds": 1,
        "claims": [{**CLAIM, "by": 0.0}],
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return path


class FakeStages:
    """Runs steps by writing empty artifacts and reports of given scores; notes what has run, and fails as told.

    `dice` gives the liver Dice of a case by arm (the part of a title before the comma) and case number, None for none;
    `liver_ml` the volume of its reference liver by arm.
    """

    def __init__(self, dice: Callable[[str, int], float | None] = lambda arm, case: 0.5, cases: int = 2) -> None:
        self.ran: list[str] = []
        self.environments: list[Mapping[str, str]] = []
        self.fail: Callable[[Step, Mapping[str, Any]], Exception | None] = lambda step, params: None
        self.dice, self.cases = dice, cases
        self.liver_ml: Callable[[str], float] = lambda arm: 100.0

    def __call__(
        self, step: Step, folder: Path, held: tuple[int, int], environment: Mapping[str, str], log: Path
    ) -> None:
        params = yaml.safe_load((folder / "params.yaml").read_text())
        if (error := self.fail(step, params)) is not None:
            raise error
        self.ran.append(step.name)
        self.environments.append(environment)
        with write_artifact(step.result, step.kind, {}) as partial:
            (partial / "params").write_text(folder.name)  # so that each has a hash of its own
            if step.kind == Report.KIND:
                self._write_report(Report(partial), params)

    def _write_report(self, report: Report, params: Mapping[str, Any]) -> None:
        rows = []
        for modality in params["modalities"]:
            for number in range(self.cases):
                arm = "CT only" if params["modalities"] == ["CT"] else "universal"
                scores = {"liver_dice": self.dice(arm, number), "liver_reference_volume_ml": self.liver_ml(arm)}
                rows.append({"case_id": f"{modality}-{number}", "modality": modality, "specific": 1, **scores})
        write_text(report.folder / Report.CASES, scores_csv(rows))
        write_json(report.folder / Report.FACTS, {Report.COMMIT: "abc"})


def failing(
    stage: str, modalities: list[str], error: Exception | None = None
) -> Callable[[Step, Any], Exception | None]:
    """A rule by which a stage fails for an arm of these modalities."""
    given = error or HeparError(f"{stage} ended with exit code 1: out of memory")
    return lambda step, params: given if step.name == stage and params["modalities"] == modalities else None


def teachers_meet() -> Callable[[Step, Any], None]:
    """A rule by which each of two teachers waits until the other one runs too."""
    both = Barrier(2, timeout=SECONDS)

    def meet(step: Step, params: object) -> None:
        if step.name.startswith("train-liver"):
            both.wait()

    return meet
