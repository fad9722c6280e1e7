"""What a study says: verdicts by hand, means over seeds, paired intervals, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from score_csv import scores_csv
from toy_study import FakeStages, failing, write_study

from hepar.errors import Preempted
from hepar.evaluation.comparison import choose_metrics
from hepar.evaluation.score_table import parse_scores
from hepar.evaluation.summary import Bootstrap
from hepar.runtime.commit import COMMIT_VARIABLE
from pipelines.studies.claims import ClaimVerdict, Interval, judge, judge_claim
from pipelines.studies.definition import Claim, load_study
from pipelines.studies.layout import COMMITS, step_folder
from pipelines.studies.plan import plan_cells
from pipelines.studies.report import figure_of, write_study_report
from pipelines.studies.running import run_cells
from pipelines.studies.scores import ArmScores

BOOTSTRAP = Bootstrap(1, 200)
SEEDS = (1, 2, 3)
Scores = Mapping[str, float]


def arm(name: str, by_seed: Mapping[int, Sequence[Scores]], modality: str = "CT") -> ArmScores:
    """An arm by the scores of cases 0, 1, …, each of its own patient, for every seed."""
    tables = {}
    for seed, cases in by_seed.items():
        rows = [{"case_id": f"{modality}-{n}", "modality": modality, **scores} for n, scores in enumerate(cases)]
        tables[seed] = parse_scores(scores_csv(rows), name)
    return ArmScores(name, tables)


def dices(*values: float) -> list[Scores]:
    return [{"liver_dice": value} for value in values]


def claim(**changes: object) -> Claim:
    values = {"claim": "b helps", "arm": "b", "than": "a", "metric": "liver Dice", "modalities": ["CT"], "by": 0.0}
    return Claim.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("ci95", "gains", "patients", "by", "expected"),
    [
        ((0.01, 0.05), (0.02, 0.03, 0.04), 6, 0.0, "holds"),
        ((0.01, 0.05), (0.02, 0.03, 0.04), 5, 0.0, "not enough evidence"),  # a patient short
        ((0.01, 0.05), (0.02, 0.03), 6, 0.0, "not enough evidence"),  # a seed short
        ((0.01, 0.05), (0.02, 0.03, -0.01), 6, 0.0, "not enough evidence"),  # a seed against it
        ((-0.01, 0.05), (0.02, 0.03, 0.04), 6, 0.0, "not enough evidence"),
        ((-0.01, 0.05), (0.02, 0.03, 0.04), 6, -0.02, "holds"),  # not worse by 0.02
        ((0.01, 0.05), (0.02, 0.03, 0.04), 6, 0.01, "not enough evidence"),  # not more than the bound
        ((-0.05, -0.01), (-0.02, -0.03, -0.04), 6, 0.0, "does not hold"),
        ((-0.05, -0.01), (-0.02, -0.03, 0.04), 6, 0.0, "not enough evidence"),
        ((0.01, 0.05), (0.02, 0.03, 0.04), 6, 0.1, "does not hold"),  # a gain, but of less
        (None, (), 0, 0.0, "not enough evidence"),
    ],
)
def test_the_rule(ci95: Interval | None, gains: Sequence[float], patients: int, by: float, expected: str) -> None:
    assert judge(ci95, gains, patients, by) == expected


def test_a_claim_is_judged_by_the_mean_over_the_seeds_that_both_arms_have() -> None:
    """Gains of 0.1, 0.2 and 0.3 in every patient: their mean, without any spread over patients."""
    first = arm("a", {seed: dices(*[0.5] * 6) for seed in (*SEEDS, 4)})
    second = arm("b", {seed: dices(*[0.5 + seed / 10] * 6) for seed in SEEDS})
    (judged,) = judge_claim(claim(), {"a": first, "b": second}, BOOTSTRAP)
    assert judged.gain == pytest.approx(0.2)
    assert judged.ci95 == pytest.approx((0.2, 0.2))
    assert judged.seed_gains == pytest.approx((0.1, 0.2, 0.3))
    assert (judged.patients, judged.verdict) == (6, ClaimVerdict.HOLDS)


def test_the_interval_is_over_patients_however_many_seeds_there_are() -> None:
    """One of two patients gains 1, the other nothing: the mean of two resampled patients is 0, a half or 1."""
    first, second = (arm(n, {seed: dices(0.0, gain) for seed in range(3)}) for n, gain in (("a", 0.0), ("b", 1.0)))
    (judged,) = judge_claim(claim(), {"a": first, "b": second}, BOOTSTRAP)
    assert (judged.gain, judged.ci95, judged.patients) == (0.5, (0.0, 1.0), 2)


def test_a_gain_is_turned_so_that_more_is_better() -> None:
    first, second = (
        arm(name, {seed: [{"liver_hd95_mm": mm}] * 6 for seed in SEEDS}) for name, mm in (("a", 9.0), ("b", 5.0))
    )
    (judged,) = judge_claim(claim(metric="liver HD95"), {"a": first, "b": second}, BOOTSTRAP)
    assert (judged.gain, judged.ci95, judged.verdict) == (4.0, (4.0, 4.0), "holds")


def test_lesions_are_counted_over_seeds() -> None:
    """2 of 4 lesions found with one seed and 4 of 4 with the other are 6 of 8."""

    (recall,) = choose_metrics(["lesion recall"])

    def cases(found: int) -> list[Scores]:
        return [dict(zip(recall.columns, (found, 4 - found, 0), strict=True))]

    figure = figure_of(recall, [arm("a", {1: cases(2), 2: cases(4)}), arm("b", {1: cases(4), 2: cases(4)})], BOOTSTRAP)
    assert [item.value.value for item in figure.arms] == [0.75, 1.0]
    versus = figure.arms[1].versus_first
    assert versus is not None
    assert versus.result.difference.value == 0.25


def test_recall_is_of_the_scans_with_lesions() -> None:
    """Three patients have lesions; the nine others count neither as patients nor in the interval."""
    (recall,) = choose_metrics(["lesion recall"])
    counts = [(1, 0, 0), (0, 1, 0), (1, 0, 0), *[(0, 0, 0)] * 9]
    cases = [dict(zip(recall.columns, row, strict=True)) for row in counts]
    (item,) = figure_of(recall, [arm("a", {1: cases})], BOOTSTRAP).arms
    assert item.value.value == pytest.approx(2 / 3)
    assert (item.value.patients, item.value.n) == (3, 3)


def test_an_arm_without_a_scan_in_common_has_its_own_value_only() -> None:
    (dice,) = choose_metrics(["liver Dice"])
    ct, mr = arm("a", {1: dices(0.5, 0.7)}), arm("b", {1: dices(0.9)}, modality="MR")
    figure = figure_of(dice, [ct, mr], BOOTSTRAP)
    assert [(item.arm, item.modality, item.value.value, item.versus_first) for item in figure.arms] == [
        ("a", "CT", 0.6, None),
        ("b", "MR", 0.9, None),
    ]
    assert figure.comparison is None
    (judged,) = judge_claim(claim(), {"a": ct, "b": mr}, BOOTSTRAP)
    assert (judged.gain, judged.verdict) == (None, "not enough evidence")


def test_arms_with_another_reference_are_not_comparable_and_the_report_says_why() -> None:
    (dice,) = choose_metrics(["liver Dice"])
    first, second = (
        arm(name, {seed: [{"liver_dice": 0.5, "liver_reference_volume_ml": ml}] for seed in SEEDS})
        for name, ml in (("a", 100.0), ("b", 101.0))
    )
    reason = (
        "case CT-0, seed 1: the reference liver has 100.00 ml in a but 101.00 ml in b; both must be scored against the"
        " same reference"
    )
    (judged,) = judge_claim(claim(), {"a": first, "b": second}, BOOTSTRAP)
    assert (judged.gain, judged.verdict, judged.reason) == (None, ClaimVerdict.NOT_COMPARABLE, reason)
    figure = figure_of(dice, [first, second, arm("c", {1: dices(0.9)})], BOOTSTRAP)
    assert figure.incomparable == {"b": reason}
    assert [item.versus_first is None for item in figure.arms] == [True, True, False]


def test_an_arm_that_is_missing_altogether_leaves_the_others() -> None:
    (dice,) = choose_metrics(["liver Dice"])
    others = [arm("b", {}), arm("c", {1: dices(0.9)})]
    figure = figure_of(dice, [arm("a", {1: dices(0.5)}), *others], BOOTSTRAP)
    assert [item.arm for item in figure.arms] == ["a", "c"]
    assert figure_of(dice, [arm("a", {}), *others], BOOTSTRAP).comparison is None


def test_the_page_says_above_the_claims_that_commits_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 10 steps one commit made 5 and began the sixth, which another one finished with the others."""
    study = load_study(write_study(tmp_path, seeds=[1]))
    cells, fake = plan_cells(study), FakeStages()
    fake.fail = failing("train-universal", ["CT", "MR"], Preempted("stopped"))
    monkeypatch.setenv(COMMIT_VARIABLE, "c0ffee")
    with pytest.raises(Preempted):
        run_cells(cells, tmp_path, fake)
    fake.fail = lambda step, params: None
    monkeypatch.setenv(COMMIT_VARIABLE, "decade")
    assert run_cells(cells, tmp_path, fake) == []
    text = write_study_report(study, cells, [], tmp_path).read_text()
    said = "**Not all steps are of one commit**, so arms may differ by the code too. Steps of each commit: "
    assert 0 < text.index(f"{said}c0ffee (6), decade (5).") < text.index("## Claims")
    (step_folder(cells[0].steps[0], tmp_path) / COMMITS).unlink()  # as an older release left it
    text = write_study_report(study, cells, [], tmp_path).read_text()
    assert f"{said}c0ffee (5), decade (5), unknown (1)." in text


def test_a_difference_of_few_patients_is_marked_beside_values_of_enough(tmp_path: Path) -> None:
    """Each arm lacks the liver Dice of two other patients of eight, so that four have a difference."""
    study = load_study(write_study(tmp_path, seeds=[1]))
    cells = plan_cells(study)
    lacking = {"universal": (0, 1), "CT only": (2, 3)}
    assert run_cells(cells, tmp_path, FakeStages(lambda arm, n: None if n in lacking[arm] else 0.5, cases=8)) == []
    text = write_study_report(study, cells, [], tmp_path).read_text()
    assert "| CT | CT only | 0.500 | 0.500 to 0.500 | 0.000 (!) | 0.000 to 0.000 | 6 | 1 |" in text


def test_the_page_says_which_scans_of_two_arms_cannot_be_compared(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, seeds=[1]))
    cells, fake = plan_cells(study), FakeStages()
    fake.liver_ml = {"universal": 100.0, "CT only": 101.0}.__getitem__
    assert run_cells(cells, tmp_path, fake) == []
    text = write_study_report(study, cells, [], tmp_path).read_text()
    problem = "case CT-0, seed 1: the reference liver has 101.00 ml in CT only but 100.00 ml in universal; "
    assert f"| **not comparable**: {problem}" in text
    problem = "case CT-0, seed 1: the reference liver has 100.00 ml in universal but 101.00 ml in CT only; "
    assert f"CT only is not compared with universal: {problem}" in text


def test_the_page_has_claims_figures_plots_and_what_was_spent(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, seeds=list(SEEDS)))
    cells = plan_cells(study)
    fake = FakeStages(lambda name, number: (0.8 if name == "universal" else 0.7) + number / 100, cases=6)
    assert run_cells(cells, tmp_path, fake) == []
    page = write_study_report(study, cells, [], tmp_path)
    text = page.read_text()
    assert "| MR helps CT (universal against CT only) | liver Dice | CT | +0.100 | 0.100 to 0.100 |" in text
    assert "| 6 | 3 | **holds** |" in text
    assert "| CT | CT only | 0.725 | " in text
    assert "| −0.100 | −0.100 to −0.100 | 6 | 3 |" in text
    assert "| CT only | `modalities: ['CT']` | 4 | 8 |" in text
    assert "6 of 6 cells finished" in text
    assert "commit abc" in text
    assert "Not all steps" not in text
    assert "Missing" not in text
    plot = page.parent / "forest-liver-dice.svg"
    assert f"]({plot.name})" in text
    assert plot.read_text().lstrip().startswith("<?xml")
    found = json.loads((page.parent / "study.json").read_text())
    assert [item["verdict"] for item in found["claims"]] == ["holds"]
    assert {item["metric"] for item in found["figures"]} == {
        "liver Dice",
        "tumour Dice",
        "lesion recall",
        "specificity",
    }
    assert write_study_report(study, cells, [], tmp_path).read_text() == text
