"""Phantoms: reproducible, with nested masks, tumours that intensity alone does not separate, and partial labels."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hepar.imaging.volumes import Geometry, canonical, read_image, to_array
from hepar.phantoms import PARTIALLY_LABELLED, CohortDesign, Phantom, make_phantom, write_phantoms
from hepar.phantoms.acquisition import CT_PHASES, MR_SEQUENCES
from hepar.phantoms.anatomy import Tissue

SMALL, SMALL_MM = (24, 40, 40), (10.8, 8.7, 8.7)
MINUTE = (16, 24, 24)
SEQUENCES = [("CT", phase) for phase in CT_PHASES] + [("MR", sequence) for sequence in MR_SEQUENCES]


def small(seed: int, modality: str = "CT", sequence: str = "portal-venous", tumours: int | None = None) -> Phantom:
    return make_phantom(seed, modality, sequence, SMALL, SMALL_MM, tumours)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 cases, which cover every state of the label pattern in every split, with the true masks in `hidden`."""
    folder = tmp_path_factory.mktemp("cohort")
    write_phantoms(folder, cases=24, seed=3, size_zyx=MINUTE, hidden=folder / "hidden")
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "cohort.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(("modality", "sequence"), [("CT", "arterial"), ("MR", "T2")])
def test_the_seed_determines_the_voxels(modality: str, sequence: str) -> None:
    first, again, other = small(1, modality, sequence), small(1, modality, sequence), small(2, modality, sequence)
    assert np.array_equal(first.image_zyx, again.image_zyx)
    assert np.array_equal(first.tissue_zyx, again.tissue_zyx)
    assert np.array_equal(first.tumour_zyx, again.tumour_zyx)
    assert not np.array_equal(first.image_zyx, other.image_zyx)
    assert not np.array_equal(first.tissue_zyx, other.tissue_zyx)


@pytest.mark.parametrize(("modality", "sequence"), SEQUENCES)
def test_the_tumour_lies_inside_the_liver(modality: str, sequence: str) -> None:
    phantom = small(5, modality, sequence)
    assert phantom.image_zyx.shape == phantom.liver_zyx.shape == phantom.tumour_zyx.shape == SMALL
    assert phantom.tumour_zyx.any()
    assert not (phantom.tumour_zyx & ~phantom.liver_zyx).any()
    assert phantom.liver_zyx.sum() > 2 * phantom.tumour_zyx.sum()
    assert np.isfinite(phantom.image_zyx).all()


def test_ct_is_in_whole_hounsfield_units() -> None:
    for phase in CT_PHASES:
        phantom = small(4, "CT", phase)
        image_zyx, tissue_zyx = phantom.image_zyx, phantom.tissue_zyx
        assert np.array_equal(image_zyx, np.rint(image_zyx))
        assert image_zyx.min() >= -1024
        assert np.median(image_zyx[tissue_zyx == Tissue.AIR]) == pytest.approx(-1000, abs=10)
        assert np.median(image_zyx[tissue_zyx == Tissue.FAT]) == pytest.approx(-100, abs=40)


@pytest.mark.parametrize("phase", CT_PHASES)
def test_organs_have_the_attenuation_of_their_phase(phase: str) -> None:
    """Most livers and all spleens, within five standard deviations: later tissues must not tint those below."""
    phantoms = [make_phantom(seed, "CT", phase, (40, 60, 60), (6.5, 5.8, 5.8)) for seed in range(5)]
    liver_hu, spleen_hu = (
        [float(np.median(phantom.image_zyx[phantom.tissue_zyx == tissue])) for phantom in phantoms]
        for tissue in (Tissue.LIVER, Tissue.SPLEEN)
    )
    assert np.median(liver_hu) == pytest.approx(CT_PHASES[phase][0], abs=25)  # some are fatty
    assert spleen_hu == pytest.approx([CT_PHASES[phase][1]] * 5, abs=25)


def test_the_liver_to_spleen_ratio_is_that_of_the_sequence() -> None:
    for sequence, typical in MR_SEQUENCES.items():
        phantom = make_phantom(2, "MR", sequence, (40, 60, 60), (6.5, 5.8, 5.8))
        liver, spleen = (
            np.median(phantom.image_zyx[phantom.tissue_zyx == tissue]) for tissue in (Tissue.LIVER, Tissue.SPLEEN)
        )
        assert liver / spleen == pytest.approx(typical[0] / typical[1], rel=0.3)


def test_mr_is_a_magnitude_with_an_arbitrary_scale() -> None:
    images = [small(seed, "MR", "T1").image_zyx for seed in range(4)]
    assert all(image.min() >= 0 for image in images)
    brightest = [float(np.percentile(image, 99)) for image in images]
    assert max(brightest) > 1.5 * min(brightest)


def test_a_healthy_patient_has_no_tumour() -> None:
    healthy = small(6, tumours=0)
    assert healthy.liver_zyx.any()
    assert not healthy.tumour_zyx.any()
    assert not np.isin(healthy.tissue_zyx, (Tissue.TUMOUR, Tissue.RIM)).any()


def shares_like_tumour(modality: str, sequence: str, tissue: Tissue) -> Iterator[float]:
    """The share of a tissue's voxels, by patient, between the 10th and 90th percentile of tumour intensity."""
    for seed in range(12):
        phantom = small(seed, modality, sequence)
        low, high = np.percentile(phantom.image_zyx[phantom.tumour_zyx], (10, 90))
        value_n = phantom.image_zyx[phantom.tissue_zyx == tissue]
        if value_n.size:
            yield float(((value_n >= low) & (value_n <= high)).mean())


@pytest.mark.parametrize(
    ("modality", "sequence", "tissue"),
    [(*scan, tissue) for scan in SEQUENCES for tissue in (Tissue.CONTENT, Tissue.VESSEL)]
    + [("CT", "non-contrast", Tissue.FLUID)],
)
def test_a_tenth_of_confounding_tissue_looks_like_tumour(modality: str, sequence: str, tissue: Tissue) -> None:
    assert np.mean(list(shares_like_tumour(modality, sequence, tissue))) > 0.1


@pytest.mark.parametrize(("modality", "sequence"), [("CT", "T2"), ("MR", "arterial"), ("PET", "T1")])
def test_an_unknown_modality_or_sequence_is_refused(modality: str, sequence: str) -> None:
    with pytest.raises(ValueError, match=f"phantom {modality} {sequence}: must be CT .*portal-venous.*or MR .*T2"):
        small(1, modality, sequence)


def test_a_cohort_of_fewer_than_eight_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 7 cases but must have at least 8"):
        write_phantoms(tmp_path / "out", cases=7, seed=1)
    assert not (tmp_path / "out").exists()


def test_a_phantom_of_default_size_takes_less_than_a_second() -> None:
    spent = []
    for seed in range(2):
        began = time.process_time()
        make_phantom(seed, "CT", "portal-venous", (64, 96, 96))
        spent.append(time.process_time() - began)
    assert min(spent) < 1


def test_a_larger_cohort_begins_with_the_smaller(tmp_path: Path) -> None:
    for cases in (8, 9):
        write_phantoms(tmp_path / str(cases), cases=cases, seed=5, size_zyx=MINUTE)
    smaller, larger = rows(tmp_path / "8"), rows(tmp_path / "9")
    assert len(larger) == 9
    assert larger[:8] == smaller
    for row in smaller:
        pair = [read_image(tmp_path / folder / row["image"]) for folder in ("8", "9")]
        assert Geometry.of(pair[0]) == Geometry.of(pair[1])
        assert np.array_equal(to_array(pair[0]), to_array(pair[1]))


def test_masks_are_written_for_state_manual_only(cohort: Path) -> None:
    states = set()
    for row in rows(cohort):
        for name in ("liver", "tumour"):
            manual = row[f"{name}_state"] == "manual"
            assert (cohort / row["case_id"] / f"{name}.nii.gz").is_file() == manual
            assert bool(row[name]) == manual
            states.add((name, row[f"{name}_state"]))
    assert {("liver", "unknown"), ("tumour", "unknown"), ("tumour", "absent")} <= states


def test_label_states_match_the_true_masks(cohort: Path) -> None:
    for row in rows(cohort):
        truth = {
            name: to_array(read_image(cohort / "hidden" / f"{row['case_id']}_{name}.nii.gz")) > 0
            for name in ("liver", "tumour")
        }
        assert truth["tumour"].any() == (row["tumour_state"] != "absent")
        assert not (truth["tumour"] & ~truth["liver"]).any()
        for name, mask in truth.items():
            if row[f"{name}_state"] == "manual":
                assert np.array_equal(to_array(read_image(cohort / row[name])) > 0, mask)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_eight_cases_cover_every_split_and_unknown_livers_of_each_modality(phantom_source: Path, modality: str) -> None:
    members = [row for row in rows(phantom_source) if row["modality"] == modality]
    assert {row["split"] for row in members} == {"train", "val", "test"}
    assert any(row["split"] == "train" and row["liver_state"] == "unknown" for row in members)
    assert any(row["split"] == "train" and row["liver_state"] == "manual" for row in members)
    assert all(row["liver_state"] == "manual" for row in members if row["split"] != "train")
    assert any(row["split"] == "train" and row["tumour_state"] == "manual" for row in members)


def test_every_split_of_the_demo_has_healthy_patients() -> None:
    """156 cases, half of each modality: enough healthy ones to learn from, to validate and to score."""
    healthy = Counter(labels.split for labels in islice(cycle(PARTIALLY_LABELLED), 78) if labels.tumour == "absent")
    sizes = Counter(labels.split for labels in islice(cycle(PARTIALLY_LABELLED), 78))
    assert 4 <= healthy["test"] <= 5
    assert 2 <= healthy["val"] < sizes["val"] / 2
    assert healthy["train"] >= 0.1 * sizes["train"]
    assert sizes["train"] > 2 * (sizes["val"] + sizes["test"])


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_24_cases_have_healthy_patients_in_every_split(cohort: Path, modality: str) -> None:
    found = [row for row in rows(cohort) if row["modality"] == modality and row["tumour_state"] == "absent"]
    assert {row["split"] for row in found} == {"train", "val", "test"}
    assert all(row["liver_state"] == "manual" for row in found)


def test_files_have_the_types_and_orientations_of_scanners(cohort: Path) -> None:
    images = {row["case_id"]: read_image(cohort / row["image"]) for row in rows(cohort)}
    assert all(("-ct-" in case_id) == (i.GetPixelID() == sitk.sitkInt16) for case_id, i in images.items())
    assert len({tuple(np.rint(i.GetDirection())) for i in images.values()}) > 1
    for row in rows(cohort):
        if row["liver"]:
            liver = read_image(cohort / row["liver"])
            assert Geometry.of(liver).agrees_with(Geometry.of(images[row["case_id"]]))
    sizes = {Geometry.of(canonical(image)).size_zyx for image in images.values()}
    assert sizes == {MINUTE}


def test_a_revealed_cohort_has_the_same_scans_and_splits_and_every_true_mask(cohort: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path, cases=24, seed=3, size_zyx=MINUTE, design=CohortDesign().revealed())
    before, after = rows(cohort), rows(tmp_path)
    assert {"unknown"} <= {row["tumour_state"] for row in before} & {row["liver_state"] for row in before}
    for old, new in zip(before, after, strict=True):
        assert (old["case_id"], old["split"]) == (new["case_id"], new["split"])
        assert (cohort / old["image"]).read_bytes() == (tmp_path / new["image"]).read_bytes()
        assert new["liver_state"] == "manual"
        assert new["tumour_state"] == ("absent" if old["tumour_state"] == "absent" else "manual")
        for name in ("liver", "tumour"):
            true_zyx = to_array(read_image(cohort / "hidden" / f"{old['case_id']}_{name}.nii.gz"))
            if new[name]:
                assert np.array_equal(to_array(read_image(tmp_path / new[name])), true_zyx)
            else:
                assert not true_zyx.any()
