"""A fold on disk: its params, split and models, and the stages that make them, each a command of `hepar`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hepar.cases import Cohort
from hepar.cli.options import POOL, PSEUDO, REPORT, TEACHER_CT, TEACHER_MR, UNIVERSAL
from hepar.errors import HeparError, ParamsError, Preempted
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, dump_params, load_params, override_params
from hepar.pool.table import Pool
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.runtime.artifacts import MANIFEST, link_or_copy, read_manifest, write_json
from hepar.runtime.whole_files import write_text
from pipelines.run_lock import only_run
from pipelines.steps import Step, run_step, say

PARAMS, SPLITS, SECONDS = "params.yaml", "splits.csv", "seconds.json"
EVALUATE = "evaluate"


@dataclass(frozen=True)
class FoldFolder:
    """A fold of one seed, on disk; `cohort` is shared with other names and seeds of the same split."""

    folder: Path
    cohort: Path
    table: Path  # the source of the cohort
    params: Params
    splits: str  # the split table as CSV; empty for the source's own split

    @property
    def title(self) -> str:
        return f"{self.folder.parents[1].name}, seed {self.seed}, {self.folder.name}"

    @property
    def seed(self) -> int:
        return self.params.train_universal.training.seed

    @property
    def model(self) -> Path:
        return self.folder / UNIVERSAL

    @property
    def report(self) -> Path:
        return self.folder / REPORT

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, interrupted attempts included; empty before the first."""
        path = self.folder / SECONDS
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def is_scored(self) -> bool:
        return steps(self)[-1].is_finished


def make_params(preset: Path, overrides: Sequence[str], seed: int) -> Params:
    """The params of a preset with `KEY=VALUE` overrides (dotted keys, YAML values) and the seed of both trainings.

    Raises ParamsError naming the override or key.
    """
    seeds = [f"{section}.training.seed={seed}" for section in ("train_liver", "train_universal")]
    params = load_params(preset)
    for override in [*overrides, *seeds, "ingest.split_from=''"]:
        key, equals, text = override.partition("=")
        if not equals:
            raise ParamsError(f"--set {override}: must be KEY=VALUE, with a key of the params such as evaluate.overlap")
        params = override_params(params, {key: yaml.safe_load(text)}, f"--set {override}")
    return params


def prepare(fold: FoldFolder) -> None:
    """Write params and split of a fold. The params are whole, so that a preset that changes later changes no fold.

    Raises HeparError if the fold was begun with others, or by a version of hepar with other keys.
    """
    params = fold.folder / PARAMS
    if not params.exists():
        write_text(fold.folder / SPLITS, fold.splits)
        write_text(params, yaml.safe_dump(dump_params(fold.params), sort_keys=False))
    elif difference := _first_difference(yaml.safe_load(params.read_text()), dump_params(fold.params)):
        raise HeparError(f"{fold.folder} was begun with {difference}: choose another --name")
    elif (fold.folder / SPLITS).read_text() != fold.splits:
        raise HeparError(f"{fold.folder} was begun with another split: choose another --name")


def steps(fold: FoldFolder) -> list[Step]:
    """The stages of a fold up to its report; all but the first and the last train."""
    split_from = ("--split-from", SPLITS) if fold.splits else ()
    cohort = ("--cohort", str(fold.cohort))
    source = ("--source", str(fold.table))

    def step(name: str, result: Path, kind: str, *words: str) -> Step:
        command = name.split()[0]
        return Step(name, (command, *words, "--params", PARAMS), fold.folder / result, kind)

    return [
        step("ingest", fold.cohort, Cohort.KIND, *source, *split_from, *cohort),
        step("train-liver CT", TEACHER_CT, ModelFolder.KIND, "--modality", "CT", *cohort),
        step("train-liver MR", TEACHER_MR, ModelFolder.KIND, "--modality", "MR", *cohort),
        step("pseudo-label", PSEUDO, PseudoLabels.KIND, *cohort),
        step("assemble-pool", POOL, Pool.KIND, *cohort),
        step("train-universal", UNIVERSAL, ModelFolder.KIND),
        step(EVALUATE, REPORT, Report.KIND, *cohort),
    ]


def run_steps(fold: FoldFolder, chosen: Sequence[Step]) -> None:
    """Run those stages that are not finished, in order, and say so.

    A stage that was interrupted resumes from its checkpoint. Raises Preempted if SIGTERM arrives, HeparError naming the
    stage if one fails or another process works in the folder.
    """
    with only_run(fold.folder) as held:
        for number, step in enumerate(chosen, start=1):
            if step.is_finished:
                continue
            say(f"{fold.title}: {step.name} ({number} of {len(chosen)})")
            start = time.monotonic()
            try:
                run_step(step, fold.folder, held)
            except Preempted as error:
                raise Preempted(f"{fold.title}: {error}") from None
            except HeparError as error:
                raise HeparError(f"{fold.title}: {error}") from None
            finally:
                seconds = fold.seconds
                seconds[step.name] = round(seconds.get(step.name, 0.0) + time.monotonic() - start, 1)
                write_json(fold.folder / SECONDS, seconds)
        say(f"{fold.title}: done, {sum(fold.seconds.values()) / 60:.1f} min in all")


def link_model(source: FoldFolder, fold: FoldFolder) -> None:
    """Take over the universal model of the same fold of another name, unless there is one already.

    Raises ArtifactError if that is not finished.
    """
    read_manifest(source.model, ModelFolder.KIND)
    if any(step.is_finished for step in steps(fold) if step.result == fold.model):
        return
    for path in sorted(source.model.rglob("*"), key=lambda path: path.name == MANIFEST):  # which makes it whole, last
        if path.is_file() and not (target := fold.model / path.relative_to(source.model)).exists():
            link_or_copy(path, target)


def _first_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str:
    """The first key whose values differ, with both; empty if there is none."""
    for key in sorted({*stored, *wanted}):
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if found := _first_difference(old, new, f"{prefix}{key}."):
                return found
        elif old != new:
            return f"{prefix}{key} = {old}, not {new}"
    return ""
