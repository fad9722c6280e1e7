"""Plans: what a cohort is like decides them, in ways that can be followed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, succeed

from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.networks import build_network
from hepar.params import NetworkParams, Params, SizeZYX, SpacingZYX, load_params, write_preset
from hepar.planning.proposals import ModalityFacts, _layout, describe, in_words, propose
from hepar.stages import ingest

BOX_MM = (150.0, 160.0, 200.0)
PLAIN = NetworkParams(name="unet", config={"channels": [4, 8], "strides": [1], "num_res_units": 0})


def facts(spacing: tuple[float, ...] = (3.0, 2.0, 2.0)) -> ModalityFacts:
    return ModalityFacts(
        scans=5,
        sequences={"arterial": 5},
        spacing_mm=np.array([spacing] * 5),
        size_zyx=np.array([(60, 200, 200)] * 5),
        liver_box_mm=np.array([BOX_MM] * 5),
        intensities_of={"arterial": np.arange(0, 101, dtype=float), "venous": np.arange(101, 201, dtype=float)},
        liver_percentiles=np.array([(30.0, 90.0)] * 5),
        lesion_diameters_mm=(5.0, 10.0),
    )


TRAINING = load_params(ROOT / "params" / "tiny.yaml").train_universal.training


def proposed(found: dict[Modality, ModalityFacts], network: NetworkParams, memory_gib: float) -> dict[str, Any]:
    return {proposal.key: proposal.value for proposal in propose(found, network, TRAINING, memory_gib)}


@pytest.mark.parametrize(
    ("name", "config", "divisor"), [("swinunetr", {"feature_size": 12}, 32), ("vnet", {}, 16), ("mednext", {}, 16)]
)
def test_a_patch_is_one_that_the_network_can_divide(name: str, config: dict[str, Any], divisor: int) -> None:
    found = {Modality.CT: facts((5.0, 1.0, 1.0)), Modality.MR: facts((5.0, 1.0, 1.0))}
    values = proposed(found, NetworkParams(name=name, config=config), 64.0)
    patch = values["train_universal.training.patch_zyx"]
    assert [side % divisor for side in patch] == [0, 0, 0]
    assert values["preprocessing.mr_percentiles"] == [2.0, 98.0]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, phantom_source: Path, tiny: Params) -> Cohort:
    folder = tmp_path_factory.mktemp("plan") / "cohort"
    ingest.run(str(phantom_source), folder, tiny.ingest)
    return Cohort.load(folder)


def test_the_same_cohort_gives_the_same_plan_that_a_run_takes(cohort: Cohort, tiny: Params, tmp_path: Path) -> None:
    first, again = (propose(describe(cohort), tiny.network, tiny.train_universal.training, 1.0) for _ in range(2))
    assert first == again
    write_preset(tmp_path / "own.yaml", ROOT / "params" / "tiny.yaml", {p.key: p.value for p in first}, "proposed")
    loaded = load_params(tmp_path / "own.yaml")
    values = {proposal.key: proposal.value for proposal in first}
    assert list(loaded.preprocessing.spacing_zyx_mm or ()) == values["preprocessing.spacing_zyx_mm"]
    assert list(loaded.train_universal.training.patch_zyx) == values["train_universal.training.patch_zyx"]
    assert loaded.evaluate == tiny.evaluate


def test_test_patients_are_not_looked_at(cohort: Cohort) -> None:
    found = describe(cohort)
    held_out = [case for case in cohort if case.split == Split.TEST]
    assert held_out
    assert sum(facts.scans for facts in found.values()) == len(cohort) - len(held_out)
    livers = [case for case in cohort if case.split != Split.TEST and case.liver_state == LabelState.MANUAL]
    assert sum(len(facts.liver_box_mm) for facts in found.values()) == len(livers)
    assert any("lesions, diameters" in sentence for sentence in in_words(found))
    for modality, of_one in found.items():
        own = [case for case in cohort if case.modality == modality and case.split != Split.TEST]
        assert sorted(map(tuple, of_one.size_zyx.tolist())) == sorted(case.size for case in own)
        assert set(of_one.intensities_of) == {c.sequence for c in own if c.liver_state == LabelState.MANUAL}


def test_scans_are_described_by_size_and_each_sequence_by_its_values() -> None:
    said = in_words({Modality.CT: facts((2.0, 1.0, 1.0))})
    assert "CT: voxels z×y×x from 60×200×200 to 60×200×200, median 60×200×200." in said
    assert any(
        words.startswith("CT, arterial: inside manual livers values run from 0.5 to 99.5, median 50") for words in said
    )
    assert any(words.startswith("CT, venous: inside manual livers values run from 101.5 to ") for words in said)


def test_modalities_count_alike_and_a_far_coarser_axis_is_refined() -> None:
    many = replace(facts((2.0, 1.0, 1.0)), spacing_mm=np.array([[2.0, 1.0, 1.0]] * 100))
    plan = proposed({Modality.CT: many, Modality.MR: facts((4.0, 2.0, 2.0))}, PLAIN, 8.0)
    assert plan["preprocessing.spacing_zyx_mm"] == [3.0, 1.5, 1.5]
    thick = np.array([[mm, 1.0, 1.0] for mm in np.linspace(4, 8, 11)])
    plan = proposed({Modality.CT: replace(facts(), spacing_mm=thick)}, PLAIN, 8.0)
    assert plan["preprocessing.spacing_zyx_mm"] == [4.4, 1.0, 1.0]  # the 10th percentile, not the median of 6


def test_the_window_holds_99_percent_of_the_liver() -> None:
    window = proposed({Modality.CT: facts()}, PLAIN, 8.0)["preprocessing.window_hu"]
    assert window == [0.0, 200.0]
    assert "preprocessing.window_hu" not in proposed({Modality.MR: facts()}, PLAIN, 8.0)


def test_mr_is_clipped_beyond_what_a_liver_reaches() -> None:
    def recipe(*percentiles: tuple[float, float]) -> Any:
        found = {Modality.MR: replace(facts(), liver_percentiles=np.array(percentiles).reshape(-1, 2))}
        return proposed(found, PLAIN, 64.0)["preprocessing.mr_percentiles"]

    assert recipe() == recipe((30.0, 90.0)) == [2.0, 98.0]
    assert recipe((0.7, 99.1)) == [0.5, 99.5]
    assert recipe(*[(30.0, 90.0)] * 10, (0.0, 100.0)) == [2.0, 98.0]  # one of eleven does not widen it


def test_where_a_liver_lies_in_the_body_is_found(cohort: Cohort) -> None:
    found = describe(cohort)[Modality.MR].liver_percentiles
    assert len(found)
    assert ((found >= 0) & (found <= 100)).all()
    assert (found[:, 0] < found[:, 1]).all()


@pytest.mark.parametrize("name", ["medformer", "dynunet"])
@pytest.mark.parametrize(
    ("sides", "spacing", "patch", "strides"),
    [
        ((16, 64, 64), (5.0, 1.0, 1.0), (16, 64, 64), [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]),
        ((56, 56, 56), (1.0, 1.0, 1.0), (56, 56, 56), [[2, 2, 2], [2, 2, 2], [2, 2, 2]]),
        ((72, 40, 40), (1.0, 1.0, 1.0), (80, 40, 40), [[2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 1, 1]]),
        ((16, 24, 24), (3.0, 1.0, 1.0), (16, 24, 24), [[1, 2, 2], [2, 2, 2], [2, 1, 1]]),
    ],
)
def test_depth_and_strides_follow_the_patch_and_the_spacing(
    name: str, sides: SizeZYX, spacing: SpacingZYX, patch: SizeZYX, strides: list[list[int]], tiny: Params
) -> None:
    own = NetworkParams(name=name, config={"filters": [4] * (len(strides) + 1)})
    network = tiny.network if name == "medformer" else own
    found = _layout(network, sides, spacing)
    assert found.patch_zyx == patch
    if name == "dynunet":
        assert found.config["strides"] == [[1, 1, 1], *strides]
    else:
        assert found.config["stride"] == strides + [[1, 1, 1]] * (4 - len(strides))
    assert found.chosen["kernel" if name == "medformer" else "kernel_size"][0][0] == [3 if spacing[0] < 2 else 1, 3, 3]
    build_network(name, found.config, found.patch_zyx)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing_mm": np.empty((0, 3))}, "no scan of the cohort has a known spacing"),
        ({"liver_box_mm": np.empty((0, 3))}, "no training or validation scan has a manual liver"),
    ],
)
def test_what_cannot_be_planned_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        propose({Modality.CT: replace(facts(), **changes)}, PLAIN, TRAINING, 8.0)


def test_a_budget_that_holds_no_patch_is_refused() -> None:
    with pytest.raises(DataError, match=r"no patch of unet fits 0\.001 GiB: the smallest is"):
        propose({Modality.CT: facts()}, PLAIN, TRAINING, 0.001)


def test_what_is_proposed_is_written_so_that_the_network_can_be_built(cohort: Cohort, tmp_path: Path) -> None:
    own, tiny = str(tmp_path / "own.yaml"), str(ROOT / "params" / "tiny.yaml")
    where = ("--cohort", str(cohort.folder))
    succeed("hepar", "plan", *where, "--memory-gib", "1", "--out", own, "--params", tiny, cwd=tmp_path)
    loaded = load_params(tmp_path / "own.yaml")
    build_network(loaded.network.name, loaded.network.config, loaded.train_universal.training.patch_zyx)
    assert "medformer" in succeed("hepar", "networks", "--params", own, cwd=tmp_path)
