"""One ingest of many inputs beside good cases, and what became of each."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd

from attacks.commands import ROOT, Ended, Workplace, listing
from attacks.verdicts import Outcome, Verdict
from attacks.volumes import Expected

GIVEN_MM = (0.05, 50.0)  # outside it no accepted spacing makes sense
SECONDS_A_CASE, SECONDS_A_RUN = 1.0, 180.0
MAX_CULPRITS = 12  # of one batch; what is left of it is then not tried one by one


class Attacked(Protocol):
    """What is common to inputs of all kinds."""

    expected: Expected
    may_vanish: bool  # what is no scan any more may be left out without a word

    @property
    def case_id(self) -> str: ...

    @property
    def attack(self) -> str: ...


Case = TypeVar("Case", bound=Attacked)


@dataclass
class Ingested:
    """A finished ingest: how it ended, its accepted and its refused cases."""

    ended: Ended
    cohort: Path
    accepted: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    outside: str = ""  # what was left or changed outside the cohort

    @property
    def hash(self) -> str:
        """The cohort's; empty if there is none."""
        path = self.cohort / "manifest.json"
        return str(json.loads(path.read_text())["hash"]) if path.exists() else ""


def ingest(place: Workplace, options: Sequence[str], cases: int) -> Ingested:
    """Ingest into `cohort` of the workplace, in which nothing else may change."""
    cohort = place.folder / "cohort"
    shutil.rmtree(cohort, ignore_errors=True)
    before = _beside(place)
    timeout_s = SECONDS_A_RUN + SECONDS_A_CASE * cases
    ended = place.run("ingest", "--cohort", str(cohort), *options, timeout_s=timeout_s)
    result = Ingested(ended, cohort)
    if ended.code == 0:
        table = pd.read_parquet(cohort / "cases.parquet")
        rows = [{str(key): value for key, value in row.items()} for row in table.to_dict(orient="records")]
        result.accepted = {row["case_id"]: row for row in rows}
        with (cohort / "quarantine.csv").open(newline="") as stream:
            result.refused = {row["case_id"]: f"{row['rule']}: {row['value']}" for row in csv.DictReader(stream)}
    faults = [f"left or changed {name}" for name, _ in sorted(set(before.items()) ^ set(_beside(place).items()))]
    faults += [f"left {path.name} among temporary files" for path in place.temporary.iterdir()]
    result.outside = "; ".join(faults[:3])
    for path in place.temporary.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return result


def _beside(place: Workplace) -> dict[str, tuple[int, int]]:
    own = ("cohort", "cohort.quarantine.csv", "tmp", "home")
    return {name: state for name, state in listing(place.folder).items() if name.split("/")[0] not in own}


@dataclass(frozen=True)
class Batches(Generic[Case]):
    """How batches of inputs of one kind are ingested and judged.

    `ingest` reads the good cases and the given inputs; `good` are the voxels' hashes of the good cases by id.
    `expected_reading` describes, as `plain_reading.describe` does, what the accepted ones of them should have become.
    """

    ingest: Callable[[Sequence[Case]], Ingested]
    good: Mapping[str, str]
    expected_reading: Callable[[Sequence[Case]], dict[str, dict[str, Any]]]
    row: Callable[[Case], str]
    fault: Callable[[Case, Mapping[str, Any]], str] = lambda case, row: ""  # of an accepted case's row in the cohort

    def outcomes(self, cases: Sequence[Case]) -> list[Outcome]:
        """The outcome of every input. Those that end the whole ingest are found by halving the batch."""
        culprits: list[Case] = []
        found: list[Outcome] = []
        todo = [list(cases)]
        while todo:
            batch = todo.pop()
            result = self.ingest(batch)
            verdict = result.ended.verdict()
            named = [case for case in batch if case.case_id in result.ended.sentence]
            if verdict is None:
                found += self._judged(batch, result)
            elif len(named) == 1 < len(batch):
                todo += [named, [case for case in batch if case is not named[0]]]
            elif len(batch) == 1:
                culprits += batch
                # one sentence, but for all cases
                ends = Verdict.WRONG if verdict == Verdict.REFUSED else verdict
                found.append(Outcome(self.row(batch[0]), batch[0].attack, ends, f"ends all: {result.ended.seen()}"))
            elif len(culprits) >= MAX_CULPRITS:
                seen = f"with {len(batch) - 1} others, not tried alone: {result.ended.seen()}"
                found += [Outcome(self.row(case), case.attack, verdict, seen) for case in batch[:1]]
            else:
                todo += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        return found

    def _judged(self, cases: Sequence[Case], result: Ingested) -> list[Outcome]:
        accepted = [case for case in cases if case.case_id in result.accepted]
        wanted = self.expected_reading(accepted)
        stored = read_plainly(
            [
                {
                    "case_id": case.case_id,
                    "modality": result.accepted[case.case_id]["modality"],
                    "path": str(result.cohort / result.accepted[case.case_id]["image"]),
                }
                for case in accepted
            ],
            result.cohort.parent,
        )
        known = {case.case_id for case in cases} | set(self.good)
        strangers = [name for name in result.refused if name not in known]
        outcomes = []
        for case in cases:
            if case.case_id in result.accepted:
                verdict, seen = accepted_right(case.expected, stored[case.case_id], wanted[case.case_id])
                if verdict == Verdict.ACCEPTED and (fault := self.fault(case, result.accepted[case.case_id])):
                    verdict, seen = Verdict.WRONG, fault
            elif case.case_id in result.refused or strangers:
                name = case.case_id if case.case_id in result.refused else strangers.pop()
                sentence = result.refused[name]
                right = case.expected != Expected.SAME and " at 0x" not in sentence
                verdict, seen = (Verdict.REFUSED if right else Verdict.WRONG), f"refused: {sentence}"
            else:
                verdict = Verdict.REFUSED if case.may_vanish else Verdict.WRONG
                seen = "neither accepted nor refused"
            outcomes.append(Outcome(self.row(case), case.attack, verdict, seen))
        return [*outcomes, self._of_good_cases(result)]

    def _of_good_cases(self, result: Ingested) -> Outcome:
        row, attack = "good cases beside them", f"batch of {len(result.accepted) + len(result.refused)}"
        if result.outside:
            return Outcome(row, attack, Verdict.OUTSIDE, result.outside)
        found = {name: result.accepted.get(name, {}).get("voxels_sha256") for name in self.good}
        if lost := [name for name, sha256 in self.good.items() if found[name] != sha256]:
            why = result.refused.get(lost[0], "is another or missing")
            return Outcome(row, attack, Verdict.WRONG, f"{lost[0]} {why}")
        return Outcome(row, attack, Verdict.ACCEPTED)


def accepted_right(expected: Expected, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Verdict, str]:
    """Whether an accepted case may be in the cohort, and as it is."""
    if expected == Expected.INSIDE:
        return Verdict.OUTSIDE, "accepted"
    if expected == Expected.REFUSED:
        return Verdict.WRONG, "accepted, must be refused"
    if "error" in stored or "error" in wanted:
        return Verdict.WRONG, f"accepted, but {stored.get('error') or wanted.get('error')}"
    numbers = [*stored["spacing"], *stored["origin"], *stored["direction"]]
    axes = np.array(stored["direction"]).reshape(3, 3)
    if not all(map(math.isfinite, numbers)) or not np.allclose(axes.T @ axes, np.eye(3), atol=1e-2):
        return Verdict.WRONG, f"accepted with direction {stored['direction']}, origin {stored['origin']}"
    if not all(GIVEN_MM[0] <= mm <= GIVEN_MM[1] for mm in stored["spacing"]):
        return Verdict.WRONG, f"accepted with spacing {stored['spacing']}"
    if stored["size"] != wanted["size"] or stored["sha256"] != wanted["sha256"]:
        return Verdict.WRONG, "accepted with other voxels than SimpleITK reads"
    for name, tolerance in (("spacing", 1e-3), ("origin", 1e-2), ("direction", 1e-3)):
        if not np.allclose(stored[name], wanted[name], rtol=1e-4, atol=tolerance):
            return Verdict.WRONG, f"accepted with {name} {stored[name]}, must be {wanted[name]}"
    return Verdict.ACCEPTED, ""


def read_plainly(requests: Iterable[Mapping[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """What `plain_reading.py` reads of each request, by case id; an entry `error` where it cannot or dies."""
    waiting = list(requests)
    found: dict[str, dict[str, Any]] = {}
    while waiting:
        path = folder / "requests.json"
        path.write_text(json.dumps(waiting))
        script = [sys.executable, str(ROOT / "benchmarks" / "attacks" / "plain_reading.py"), str(path)]
        try:
            lines = subprocess.run(script, capture_output=True, text=True, timeout=300).stdout.splitlines()
        except subprocess.TimeoutExpired as expired:
            lines = (expired.stdout or b"").decode().splitlines()
        path.unlink()
        for line in lines:
            read = json.loads(line)
            found[read.pop("case_id")] = {"error": "SimpleITK dies of it"} if "started" in read else read
        waiting = [request for request in waiting if request["case_id"] not in found] if lines else []
    return found
