"""Statistics of a cohort and the settings proposed from them, with cases that can be worked out by hand."""

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
from hepar.planning.cohort_statistics import (
    CohortStatistics,
    ModalityStatistics,
    compute_statistics,
    summarise_statistics,
)
from hepar.planning.proposals import choose_patch, propose
from hepar.stages import ingest

BOX_MM = (150.0, 160.0, 200.0)
SMALL_UNET = NetworkParams(name="unet", config={"channels": [4, 8], "strides": [1], "num_res_units": 0})


def statistics(spacing: tuple[float, ...] = (3.0, 2.0, 2.0)) -> ModalityStatistics:
    return ModalityStatistics(
        scans=5,
        sequences={"arterial": 5},
        spacing_n3_mm=np.array([spacing] * 5),
        size_n3=np.array([(60, 200, 200)] * 5),
        liver_box_n3_mm=np.array([BOX_MM] * 5),
        intensity_n_of={"arterial": np.arange(0, 101, dtype=float), "venous": np.arange(101, 201, dtype=float)},
        liver_percentile_n2=np.array([(30.0, 90.0)] * 5),
        lesion_diameters_mm=(5.0, 10.0),
    )


TRAINING = load_params(ROOT / "params" / "tiny.yaml").train_universal.training


def proposed(found: CohortStatistics, network: NetworkParams, memory_gib: float) -> dict[str, Any]:
    return {proposal.key: proposal.value for proposal in propose(found, network, TRAINING, memory_gib)}


@pytest.mark.parametrize(
    ("name", "config", "divisor"), [("swinunetr", {"feature_size": 12}, 32), ("vnet", {}, 16), ("mednext", {}, 16)]
)
def test_the_patch_is_a_multiple_of_the_networks_divisor(name: str, config: dict[str, Any], divisor: int) -> None:
    found = {Modality.CT: statistics((5.0, 1.0, 1.0)), Modality.MR: statistics((5.0, 1.0, 1.0))}
    values = proposed(found, NetworkParams(name=name, config=config), 64.0)
    patch = values["train_universal.training.patch_zyx"]
    assert [side % divisor for side in patch] == [0, 0, 0]
    assert values["preprocessing.mr_percentiles"] == [2.0, 98.0]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, phantom_source: Path, tiny: Params) -> Cohort:
    folder = tmp_path_factory.mktemp("plan") / "cohort"
    ingest.run(str(phantom_source), folder, tiny.ingest, tiny.modalities)
    return Cohort.load(folder)


def test_proposals_are_deterministic_and_load_as_params(cohort: Cohort, tiny: Params, tmp_path: Path) -> None:
    first, again = (
        propose(compute_statistics(cohort), tiny.network, tiny.train_universal.training, 1.0) for _ in range(2)
    )
    assert first == again
    write_preset(tmp_path / "own.yaml", ROOT / "params" / "tiny.yaml", {p.key: p.value for p in first}, "proposed")
    loaded = load_params(tmp_path / "own.yaml")
    values = {proposal.key: proposal.value for proposal in first}
    assert list(loaded.preprocessing.spacing_zyx_mm or ()) == values["preprocessing.spacing_zyx_mm"]
    assert list(loaded.train_universal.training.patch_zyx) == values["train_universal.training.patch_zyx"]
    assert loaded.evaluate == tiny.evaluate


def test_test_patients_are_not_read(cohort: Cohort) -> None:
    found = compute_statistics(cohort)
    held_out = [case for case in cohort if case.split == Split.TEST]
    assert held_out
    assert sum(one.scans for one in found.values()) == len(cohort) - len(held_out)
    livers = [case for case in cohort if case.split != Split.TEST and case.liver_state == LabelState.MANUAL]
    assert sum(len(one.liver_box_n3_mm) for one in found.values()) == len(livers)
    assert any("lesions, diameter" in sentence for sentence in summarise_statistics(found))
    for modality, of_one in found.items():
        own = [case for case in cohort if case.modality == modality and case.split != Split.TEST]
        assert sorted(map(tuple, of_one.size_n3.tolist())) == sorted(case.size for case in own)
        assert set(of_one.intensity_n_of) == {c.sequence for c in own if c.liver_state == LabelState.MANUAL}


def test_the_summary_gives_sizes_and_the_intensities_of_each_sequence() -> None:
    sentences = summarise_statistics({Modality.CT: statistics((2.0, 1.0, 1.0))})
    assert "CT: size in voxels x×y×z: 200×200×60 to 200×200×60, median 200×200×60." in sentences
    percentiles = "(0.5th and 99.5th percentile)"
    assert (
        f"CT arterial: intensity in manual livers 0.5 to 99.5 {percentiles}, median 50, mean 50, SD 29.15." in sentences
    )
    venous = "CT venous: intensity in manual livers 101.5 to "
    assert any(sentence.startswith(venous) for sentence in sentences)


def test_modalities_have_equal_weight_and_a_much_coarser_axis_is_refined() -> None:
    many = replace(statistics((2.0, 1.0, 1.0)), spacing_n3_mm=np.array([[2.0, 1.0, 1.0]] * 100))
    plan = proposed({Modality.CT: many, Modality.MR: statistics((4.0, 2.0, 2.0))}, SMALL_UNET, 8.0)
    assert plan["preprocessing.spacing_zyx_mm"] == [3.0, 1.5, 1.5]
    thick = np.array([[mm, 1.0, 1.0] for mm in np.linspace(4, 8, 11)])
    plan = proposed({Modality.CT: replace(statistics(), spacing_n3_mm=thick)}, SMALL_UNET, 8.0)
    assert plan["preprocessing.spacing_zyx_mm"] == [4.4, 1.0, 1.0]  # the 10th percentile, not the median of 6


def test_the_window_holds_99_percent_of_the_liver() -> None:
    window = proposed({Modality.CT: statistics()}, SMALL_UNET, 8.0)["preprocessing.window_hu"]
    assert window == [0.0, 200.0]
    assert "preprocessing.window_hu" not in proposed({Modality.MR: statistics()}, SMALL_UNET, 8.0)


def test_mr_percentiles_widen_so_that_livers_are_not_clipped() -> None:
    def recipe(*percentiles: tuple[float, float]) -> Any:
        found = {Modality.MR: replace(statistics(), liver_percentile_n2=np.array(percentiles).reshape(-1, 2))}
        return proposed(found, SMALL_UNET, 64.0)["preprocessing.mr_percentiles"]

    assert recipe() == recipe((30.0, 90.0)) == [2.0, 98.0]
    assert recipe((0.7, 99.1)) == [0.5, 99.5]
    assert recipe(*[(30.0, 90.0)] * 10, (0.0, 100.0)) == [2.0, 98.0]  # one of eleven does not widen it


def test_why_mr_is_clipped_claims_no_scale_of_its_own() -> None:
    """The scale is another setting, which `propose` leaves as it is."""
    found = propose({Modality.MR: statistics()}, SMALL_UNET, TRAINING, 64.0)
    (reason,) = [proposal.reason for proposal in found if proposal.key == "preprocessing.mr_percentiles"]
    assert "preprocessing.mr_scale" in reason
    assert "SD 1" not in reason


def test_liver_percentiles_of_the_body_are_measured_in_mr(cohort: Cohort) -> None:
    found = compute_statistics(cohort)[Modality.MR].liver_percentile_n2
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
    found = choose_patch(network, sides, spacing)
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
        ({"spacing_n3_mm": np.empty((0, 3))}, "no scan of the cohort has a known spacing"),
        ({"liver_box_n3_mm": np.empty((0, 3))}, "no training or validation scan has one"),
    ],
)
def test_a_cohort_without_spacing_or_liver_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        propose({Modality.CT: replace(statistics(), **changes)}, SMALL_UNET, TRAINING, 8.0)


def test_a_budget_too_small_for_any_patch_is_refused() -> None:
    with pytest.raises(DataError, match=r"no patch of unet fits 0\.001 GiB: the smallest is"):
        propose({Modality.CT: statistics()}, SMALL_UNET, TRAINING, 0.001)


def test_proposals_are_written_as_params_that_build_a_network(cohort: Cohort, tmp_path: Path) -> None:
    own, tiny = str(tmp_path / "own.yaml"), str(ROOT / "params" / "tiny.yaml")
    where = ("--cohort", str(cohort.folder))
    succeed("hepar", "plan", *where, "--memory-gib", "1", "--out", own, "--params", tiny, cwd=tmp_path)
    loaded = load_params(tmp_path / "own.yaml")
    build_network(loaded.network.name, loaded.network.config, loaded.train_universal.training.patch_zyx)
    assert "medformer" in succeed("hepar", "networks", "--params", own, cwd=tmp_path)
