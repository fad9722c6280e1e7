"""Intensities of a patient: fatty livers in CT, bright bowel and veins in MR, tumours unlike cysts and liver."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.phantoms import make_phantom
from hepar.phantoms.acquisition import CT_PHASES, MR_SEQUENCES, draw_intensities, draw_tumour_intensities
from hepar.phantoms.anatomy import Tissue

PATIENTS = 400
SMALL, SMALL_MM = (24, 40, 40), (10.8, 8.7, 8.7)


def patients(modality: str, sequence: str) -> list[dict[Tissue, float]]:
    return [draw_intensities(modality, sequence, np.random.default_rng([seed, 5])) for seed in range(PATIENTS)]


@pytest.mark.parametrize("phase", CT_PHASES)
def test_a_fifth_of_the_livers_in_ct_are_fatty(phase: str) -> None:
    typical = CT_PHASES[phase][0]
    livers = np.array([values[Tissue.LIVER] for values in patients("CT", phase)])
    fatty = livers < 0.7 * typical
    assert fatty.mean() == pytest.approx(0.2, abs=0.06)  # three standard errors
    assert livers[fatty].min() < 12
    assert livers[fatty].min() > 0
    assert livers[~fatty] == pytest.approx(typical, abs=20)


@pytest.mark.parametrize("phase", CT_PHASES)
def test_a_tumour_in_ct_is_solid_and_never_isodense(phase: str) -> None:
    rng = np.random.default_rng(3)
    for values in patients("CT", phase):
        core, rim = draw_tumour_intensities(values, "CT", phase, rng)
        assert abs(core - values[Tissue.LIVER]) >= 25
        assert core >= 14
        assert rim is None or rim > values[Tissue.LIVER]


@pytest.mark.parametrize("phase", CT_PHASES)
def test_a_tumour_is_brighter_than_a_very_fatty_liver(phase: str) -> None:
    rng = np.random.default_rng(4)
    very_fatty = [values for values in patients("CT", phase) if values[Tissue.LIVER] < 15]
    assert very_fatty
    for values in very_fatty:
        assert draw_tumour_intensities(values, "CT", phase, rng)[0] > values[Tissue.LIVER]


@pytest.mark.parametrize("phase", CT_PHASES)
def test_cysts_are_water_and_focal_fat_darkens_a_lean_liver_but_spares_a_fatty_one(phase: str) -> None:
    for values in patients("CT", phase):
        assert values[Tissue.CYST] == pytest.approx(5, abs=12)
        step_hu = values[Tissue.FOCAL_FAT] - values[Tissue.LIVER]
        assert 18 <= abs(step_hu) <= 32
        fat = 1 - values[Tissue.LIVER] / CT_PHASES[phase][0]
        assert step_hu < 0 if fat < 0.2 else step_hu > 0 if fat > 0.5 else True


@pytest.mark.parametrize("sequence", MR_SEQUENCES)
def test_cysts_in_mr_lie_beyond_the_range_of_tumours(sequence: str) -> None:
    """Several times brighter than the liver in T2, darker than any tumour in the others; focal fat is faint."""
    rng = np.random.default_rng(5)
    for values in patients("MR", sequence):
        core = draw_tumour_intensities(values, "MR", sequence, rng)[0] / values[Tissue.LIVER]
        cyst, fat = (values[tissue] / values[Tissue.LIVER] for tissue in (Tissue.CYST, Tissue.FOCAL_FAT))
        assert cyst > max(core, 2) if sequence == "T2" else cyst < core
        assert 0.75 <= fat <= 0.88
        assert core < 0.71 or core > 1.39


@pytest.mark.parametrize("sequence", MR_SEQUENCES)
def test_a_quarter_of_mr_patients_drank_oral_contrast(sequence: str) -> None:
    drawn = patients("MR", sequence)
    drank = [values for values in drawn if values[Tissue.CONTENT] != values[Tissue.WALL]]
    assert len(drank) / len(drawn) == pytest.approx(0.25, abs=0.07)
    assert all(2.5 <= values[Tissue.CONTENT] / values[Tissue.LIVER] <= 5 for values in drank)


def test_nobody_drank_oral_contrast_before_ct() -> None:
    for phase in CT_PHASES:
        assert all(values[Tissue.CONTENT] == values[Tissue.WALL] for values in patients("CT", phase))


@pytest.mark.parametrize("sequence", ["T1", "hepatobiliary"])
def test_oral_contrast_stretches_the_range_of_a_scan(sequence: str) -> None:
    """Without it the liver is among the brightest organs; with it, it falls far below the 98th percentile."""
    levels: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(16):
        phantom = make_phantom(seed, "MR", sequence, SMALL, SMALL_MM)
        liver = float(np.median(phantom.image_zyx[phantom.liver_zyx]))
        contents = phantom.image_zyx[phantom.tissue_zyx == Tissue.CONTENT]
        levels[bool(np.median(contents) > 1.5 * liver)].append(liver / float(np.percentile(phantom.image_zyx, 98)))
    assert min(levels[False]) > 0.9
    assert min(levels[True]) < 0.75
    assert np.median(levels[True]) < min(levels[False])


def test_veins_are_brighter_than_the_liver_in_some_t1_and_t2_and_in_no_hepatobiliary_scan() -> None:
    shares = {
        sequence: np.mean([values[Tissue.VESSEL] > values[Tissue.LIVER] for values in patients("MR", sequence)])
        for sequence in MR_SEQUENCES
    }
    assert shares == {"T1": pytest.approx(0.3, abs=0.07), "T2": pytest.approx(0.4, abs=0.08), "hepatobiliary": 0}
