"""The steps of a study: what arms share, what a step depends on, and how cells run, resume and fail."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from toy_study import ARMS, FakeStages, failing, write_study
from typer.testing import CliRunner

from components import stages
from hepar.cli.main import app
from hepar.errors import DataError, HeparError, ParamsError, Preempted
from hepar.params import Params
from pipelines.studies import running
from pipelines.studies.definition import load_study
from pipelines.studies.folds import prepare_folds
from pipelines.studies.layout import as_step
from pipelines.studies.plan import SECTIONS, FoldSplit, StudyCell, plan_cells, unique_steps
from pipelines.studies.running import run_cells

WHOLE = {"ingest": 1, "train-liver-CT": 1, "train-liver-MR": 1, "pseudo-label": 1}
OWN = {"assemble-pool": 1, "train-universal": 1, "evaluate": 1}


def planned(folder: Path, **changes: object) -> list[StudyCell]:
    return plan_cells(load_study(write_study(folder, **changes)))


def counts(cells: list[StudyCell]) -> Counter[str]:
    return Counter(step.name for step in unique_steps(cells))


def test_arms_share_the_steps_before_they_differ(tmp_path: Path) -> None:
    cells = planned(tmp_path, seeds=[1])
    assert counts(cells) == WHOLE | dict.fromkeys(OWN, 2)
    universal, single = cells
    assert [a.key == b.key for a, b in zip(universal.steps, single.steps, strict=True)] == [True] * 4 + [False] * 3
    cohort = single.steps[0]
    assert [str(modality) for modality in cohort.params.modalities] == ["CT", "MR"]  # the pool leaves MR out
    assert [str(modality) for modality in single.steps[4].params.modalities] == ["CT"]


def test_seeds_share_the_cohort_alone(tmp_path: Path) -> None:
    found = counts(planned(tmp_path, seeds=[1, 2, 3]))
    assert found["ingest"] == 1
    assert {name: found[name] for name in ("train-liver-CT", "pseudo-label", "assemble-pool", "evaluate")} == {
        "train-liver-CT": 3,
        "pseudo-label": 3,
        "assemble-pool": 6,
        "evaluate": 6,
    }


@pytest.mark.parametrize(
    ("change", "teachers", "own"),
    [
        ({"assemble_pool.unknown_tumour": "ignored"}, "first", OWN),
        ({"train_universal.training.learning_rate": 0.5}, "first", {"train-universal": 1, "evaluate": 1}),
        ({"pseudo_label.variants": 3}, "own", {"pseudo-label": 1, **OWN}),
        ({"network": {"name": "unet", "config": {}}}, "first", {"train-universal": 1, "evaluate": 1}),
        ({"network": {"name": "unet", "config": {}}}, "own", {n: c for n, c in (WHOLE | OWN).items() if n != "ingest"}),
        ({"ingest.max_refused_share": 0.5}, "own", WHOLE | OWN),
        ({"register.model_name": "other"}, "own", {}),
    ],
)
def test_an_arm_has_steps_of_its_own_from_its_change_on(
    tmp_path: Path, change: dict[str, object], teachers: str, own: dict[str, int]
) -> None:
    together = counts(planned(tmp_path, seeds=[1], arms={"a": {}, "b": change}, teachers=teachers, claims=[]))
    assert together - Counter(WHOLE | OWN) == own


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_step_depends_on_the_params_that_the_component_of_its_stage_takes(stage: str) -> None:
    component = getattr(stages, stage.replace("-", "_")).component_spec
    names = {field.alias or name for name, field in Params.model_fields.items()}
    taken = (set(component.inputs) & names) | {stage.replace("-", "_")}
    assert taken - {"experiment"} == set(SECTIONS[stage])  # where it is recorded changes no model


def test_a_source_known_by_its_content_may_lie_anywhere(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path), source=str(tmp_path / "a.csv"))
    moved = load_study(write_study(tmp_path), source=str(tmp_path / "b.csv"))
    fold = FoldSplit("fold 1", "case_id,split\n", "hash")
    keys = [plan_cells(one, (fold,))[0].steps[-1].key for one in (study, moved)]
    assert keys[0] == keys[1]
    others = [replace(fold, split="x"), replace(fold, source_hash="y"), FoldSplit()]
    assert len({plan_cells(study, (other,))[0].steps[-1].key for other in (fold, *others)}) == 4


def test_the_command_of_a_step_names_the_results_that_it_reads(tmp_path: Path) -> None:
    cell = planned(tmp_path)[0]
    words = {step.name: as_step(step, tmp_path).words for step in cell.steps}
    teacher = str(tmp_path / "steps" / cell.steps[1].id / "model")
    assert words["train-liver-CT"][:5] == ("train-liver", "--params", "params.yaml", "--modality", "CT")
    pseudo = words["pseudo-label"]
    assert pseudo[pseudo.index("--teacher-ct") + 1] == teacher
    assert words["evaluate"][-2:] == ("--report", "report")


def test_finished_steps_are_not_run_again_and_a_killed_one_is(tmp_path: Path) -> None:
    cells, fake = planned(tmp_path), FakeStages()
    fake.fail = lambda step, params: KeyboardInterrupt() if step.name == "train-universal" else None  # type: ignore[return-value]
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, tmp_path, fake)
    assert fake.ran == [*WHOLE, "assemble-pool"]
    fake.fail = lambda step, params: None
    assert run_cells(cells, tmp_path, fake) == []
    assert fake.ran[5:7] == ["train-universal", "evaluate"]
    assert Counter(fake.ran) == counts(cells)
    assert run_cells(cells, tmp_path, fake) == []
    assert len(fake.ran) == len(unique_steps(cells))


def test_a_failed_arm_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    cells, fake = planned(tmp_path), FakeStages()
    fake.fail = failing("train-universal", ["CT"])
    missing = run_cells(cells, tmp_path, fake)
    assert [(item.title, item.reason) for item in missing] == [
        (f"CT only, seed {seed}", "train-universal ended with exit code 1: out of memory") for seed in (1, 2)
    ]
    assert Counter(fake.ran)["evaluate"] == 2
    fake.fail = lambda step, params: None
    assert run_cells(cells, tmp_path, fake) == []
    assert Counter(fake.ran)["evaluate"] == 4


def test_a_shared_step_that_fails_is_tried_once(tmp_path: Path) -> None:
    cells, tries = planned(tmp_path, seeds=[1]), []
    fake = FakeStages()

    def fail(step: object, params: object) -> Exception:
        tries.append(step)
        return HeparError("no disk")

    fake.fail = fail
    assert [item.title for item in run_cells(cells, tmp_path, fake)] == ["universal, seed 1", "CT only, seed 1"]
    assert len(tries) == 1


def test_a_stopped_study_stops(tmp_path: Path) -> None:
    fake = FakeStages()
    fake.fail = failing("ingest", ["CT", "MR"], Preempted("ingest was stopped"))
    with pytest.raises(Preempted, match=r"^universal, seed 1: ingest was stopped$"):
        run_cells(planned(tmp_path), tmp_path, fake)


def test_folds_need_a_table(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, folds=3))
    with pytest.raises(ParamsError, match="folds is 3, but the source phantoms is no table: set folds to 1"):
        prepare_folds(study, tmp_path)


def test_folds_need_patients_outside_the_test_split(tmp_path: Path, phantom_source: Path) -> None:
    table = pd.read_csv(phantom_source / "cohort.csv", dtype=str, keep_default_na=False)
    table.assign(split="test").to_csv(tmp_path / "cohort.csv", index=False)
    study = load_study(write_study(tmp_path, folds=2), source=str(tmp_path / "cohort.csv"))
    with pytest.raises(DataError, match=r"^folds is 2 but must be .* at most 0, the labelled patients outside"):
        prepare_folds(study, tmp_path)


def test_folds_test_each_patient_once_and_never_read_the_test_split(tmp_path: Path, phantom_source: Path) -> None:
    path = write_study(tmp_path, folds=2)
    study, folds, tables = prepare_folds(load_study(path, source=str(phantom_source / "cohort.csv")), tmp_path)
    table = tables[Path(study.base.source)]
    assert Path(study.base.source).is_relative_to(tmp_path)
    assert [fold.name for fold in folds] == ["fold 1", "fold 2"]
    tested = [line for fold in folds for line in fold.split.splitlines() if line.endswith(",test")]
    assert len(tested) == len(set(tested)) > 0
    originally = {
        line.split(",")[0] for line in (phantom_source / "cohort.csv").read_text().splitlines() if ",test," in line
    }
    assert originally
    assert not [name for name in originally if name in table]
    cells = plan_cells(study, folds)
    assert len(cells) == 2 * 2 * len(ARMS)
    assert counts(cells)["ingest"] == 2
    words = as_step(cells[0].steps[0], tmp_path).words
    assert words[words.index("--split-from") + 1] == "splits.csv"


def test_a_run_prints_the_report_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeStages()
    fake.fail = failing("assemble-pool", ["CT"])
    monkeypatch.setattr(running, "run_cells", lambda cells, folder, jobs: run_cells(cells, folder, fake, jobs))
    with pytest.raises(
        HeparError, match=r"^2 of 4 cells are missing, first CT only, seed 1: assemble-pool ended .*again$"
    ):
        running.run_study(write_study(tmp_path), tmp_path / "out", None, dry_run=False)
    page = (tmp_path / "out" / "reports" / "toy" / "study.md").read_text()
    assert page in capsys.readouterr().out
    assert "2 of 4 cells finished" in page
    assert "- CT only, seed 2: assemble-pool ended with exit code 1: out of memory" in page
    facts = json.loads((tmp_path / "out" / "reports" / "toy" / "study.json").read_text())
    assert [item["title"] for item in facts["missing"]] == ["CT only, seed 1", "CT only, seed 2"]


def test_a_dry_run_lists_steps_and_runs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running.run_study(write_study(tmp_path, seeds=[1]), tmp_path / "out", None, dry_run=True)
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 10
    assert lines[0].endswith("| no | universal, seed 1; CT only, seed 1 |")
    assert lines[-1].endswith("| no | CT only, seed 1 |")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_folds_writes_nothing(tmp_path: Path, phantom_source: Path) -> None:
    source = str(phantom_source / "cohort.csv")
    running.run_study(write_study(tmp_path, folds=2), tmp_path / "out", source, dry_run=True)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_for_a_cluster_is_refused(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["study", str(write_study(tmp_path)), "--cluster", "x.yaml", "--dry-run"])
    assert isinstance(refused.exception, ParamsError)
    assert "--dry-run" in str(refused.exception)
