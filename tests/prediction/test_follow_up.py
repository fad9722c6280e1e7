"""Follow-up: livers of boxes and balls moved by a known transform, and RECIST 1.1 on invented diameters."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from predicted import predictor
from typer.testing import CliRunner

from hepar.cases import Modality
from hepar.cli.main import app
from hepar.errors import ArtifactError, DataError
from hepar.imaging.volumes import Geometry, to_image
from hepar.inference.prediction import Segmentation
from hepar.ingest.sources.source import VolumeFile
from hepar.prediction.alignment import align_livers
from hepar.prediction.follow_up import Fate, choose_targets, match_lesions, near_pairs, respond
from hepar.prediction.measurements import measure
from hepar.prediction.out_of_distribution import ScanWarning
from hepar.prediction.outputs import Output
from hepar.prediction.predicted_scan import PredictedScan
from hepar.prediction.scans import Scan
from hepar.prediction.writing import write_prediction

GRID = Geometry((40, 64, 70), (4.0, 3.0, 3.0), (-100.0, -90.0, 10.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
TURN_DEGREES, SHIFT_MM = 12.0, (14.0, -9.0, 11.0)
Balls = Mapping[tuple[float, float, float], float]  # radius by centre, mm from the middle of the grid, x y z
LESIONS: Balls = {(-25.0, 5.0, 5.0): 12.0, (15.0, 10.0, -10.0): 8.0}


def moved() -> sitk.Euler3DTransform:
    """From the patient as scanned at baseline to the patient at follow-up."""
    transform = sitk.Euler3DTransform()
    transform.SetCenter(GRID.to_lps_mm((19.5, 31.5, 34.5)))
    transform.SetRotation(0.0, 0.0, np.deg2rad(TURN_DEGREES))
    transform.SetTranslation(SHIFT_MM)
    return transform


def points_mm(transform: sitk.Transform | None) -> npt.NDArray[np.float64]:
    """For each voxel its place at baseline, mm from the middle of the grid, float64 zyx3."""
    spacing = np.array(GRID.spacing_zyx_mm)
    points = ((np.indices(GRID.size_zyx).transpose(1, 2, 3, 0) - (19.5, 31.5, 34.5)) * spacing)[..., ::-1]
    if transform is None:
        return points
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    return np.asarray((points - SHIFT_MM) @ matrix)  # the inverse of a rotation is its transpose


def scan(lesions: Balls, transform: sitk.Transform | None = None, modality: Modality = Modality.CT) -> PredictedScan:
    """A liver of two ellipsoids, without symmetry, with balls as lesions."""
    x, y, z = np.moveaxis(points_mm(transform), -1, 0)
    right = ((x + 20) / 55) ** 2 + (y / 40) ** 2 + (z / 48) ** 2 <= 1
    left = ((x - 30) / 45) ** 2 + ((y + 15) / 22) ** 2 + ((z - 10) / 25) ** 2 <= 1
    tumour_zyx = np.zeros(GRID.size_zyx, bool)
    for (cx, cy, cz), radius in lesions.items():
        tumour_zyx |= (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 <= radius**2
    liver_zyx = right | left | tumour_zyx
    image_zyx = np.where(tumour_zyx, 50, np.where(liver_zyx, 100, -1000)).astype(np.int16)
    probability_rzyx = np.stack([liver_zyx, tumour_zyx]).astype(np.float32)
    found = Segmentation(liver_zyx, tumour_zyx, probability_rzyx, GRID, ("liver", "tumour"), 0.0)
    measured = measure(found, image_zyx, modality)
    source = Scan("scan", VolumeFile(Path("scan.nii.gz")))
    return PredictedScan(source, to_image(image_zyx, GRID), modality, "--modality", found, measured, (), predictor())


def test_livers_are_aligned_by_the_transform_that_moved_them() -> None:
    baseline, follow_up = (to_image(scan({}, transform).found.liver_zyx, GRID) for transform in (None, moved()))
    found, there = align_livers(baseline, follow_up), moved().GetInverse()
    assert found.liver_dice > 0.95
    assert found.rotation_degrees == pytest.approx(TURN_DEGREES, abs=2)
    for point in ((-20.0, 0.0, 80.0), (40.0, -10.0, 100.0), (-50.0, 30.0, 60.0)):
        assert found.transform.TransformPoint(point) == pytest.approx(there.TransformPoint(point), abs=2.5)


def test_livers_of_other_grids_are_aligned() -> None:
    baseline = to_image(scan({}).found.liver_zyx, GRID)
    turned = sitk.DICOMOrient(to_image(scan({}, moved()).found.liver_zyx, GRID), "RAI")
    assert align_livers(baseline, turned).liver_dice > 0.95


def test_without_a_liver_nothing_is_aligned() -> None:
    liver = to_image(scan({}).found.liver_zyx, GRID)
    with pytest.raises(DataError, match="the follow-up has no liver"):
        align_livers(liver, liver * 0)


def test_lesions_of_a_moved_patient_are_matched_and_new_and_vanished_ones_are_named(tmp_path: Path) -> None:
    (first, _), added = LESIONS, (-40.0, -5.0, -15.0)
    write_prediction(
        scan(LESIONS),
        tmp_path / "before" / "scan",
    )
    write_prediction(scan({first: 9.0, added: 7.0}, moved()), tmp_path / "after")
    options = ["--json", str(tmp_path / "f.json"), "--csv", str(tmp_path / "f.csv")]
    done = CliRunner().invoke(app, ["follow", str(tmp_path / "before"), str(tmp_path / "after"), *options])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "f.json").read_text())
    assert json.loads(done.stdout) == found
    fates = {lesion["fate"]: lesion for lesion in found["lesions"]}
    assert sorted(fates) == ["matched", "new", "vanished"]
    assert fates["matched"]["baseline_mm"] == pytest.approx(24, abs=3)
    assert fates["matched"]["follow_up_mm"] == pytest.approx(18, abs=3)
    assert fates["vanished"]["baseline_mm"] == pytest.approx(16, abs=3)
    assert fates["new"]["follow_up_mm"] == pytest.approx(14, abs=3)
    assert found["response"]["category"] == "PD"
    assert "Research use only" in found["use"]
    with (tmp_path / "f.csv").open(newline="") as file:
        rows = {row["fate"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == ["matched", "new", "vanished"]
    assert [rows[fate]["baseline"] for fate in ("new", "vanished")] == ["", str(fates["vanished"]["baseline"])]
    assert rows["new"]["follow_up"] == str(fates["new"]["follow_up"])
    assert all("Research use only" in row["use"] for row in rows.values())


def test_livers_that_do_not_overlap_have_no_category_and_shared_warnings_are_told_once(tmp_path: Path) -> None:
    (first, _) = LESIONS
    cut = scan({first: 12.0})
    liver_zyx = cut.found.liver_zyx.copy()
    liver_zyx[:, :, 30:] = False  # a hemihepatectomy
    half = replace(cut.found, liver_zyx=liver_zyx)
    warned = (ScanWarning("spacing", 6.0, 5.0, "mm", "too coarse"),)
    own = (*warned, ScanWarning("extent", 90.0, 100.0, "mm", "too low"))
    write_prediction(replace(scan({first: 12.0}), warnings=warned), tmp_path / "a", (Output.MASKS, Output.JSON))
    write_prediction(replace(cut, found=half, warnings=own), tmp_path / "b", (Output.MASKS, Output.JSON))
    done = CliRunner().invoke(app, ["follow", str(tmp_path / "a"), str(tmp_path / "b")])
    found = json.loads(done.stdout)
    assert found["alignment"]["liver_dice"] < 0.8
    assert found["response"]["category"] == "NE"
    assert found["response"]["reasons"][0].startswith("the aligned livers overlap too little")
    assert found["warnings"][:2] == ["both scans: too coarse", "follow-up: too low"]
    assert [line.count("too coarse") for line in done.stderr.splitlines()].count(1) == 1


def test_livers_without_lesions_have_a_table_with_all_columns(tmp_path: Path) -> None:
    write_prediction(scan({}), tmp_path / "healthy")
    done = CliRunner().invoke(app, ["follow", *[str(tmp_path / "healthy")] * 2, "--csv", str(tmp_path / "f.csv")])
    assert done.exit_code == 0, done.output
    (header,) = csv.reader((tmp_path / "f.csv").read_text().splitlines())
    assert {"fate", "baseline", "follow_up_mm", "is_target", "merged_into", "change_percent", "use"} < set(header)


def test_scans_of_two_modalities_are_not_compared(tmp_path: Path) -> None:
    write_prediction(scan(LESIONS), tmp_path / "ct")
    write_prediction(scan(LESIONS, modality=Modality.MR), tmp_path / "mr")
    done = CliRunner().invoke(app, ["follow", str(tmp_path / "ct"), str(tmp_path / "mr")])
    assert isinstance(done.exception, DataError)
    assert "the baseline is CT, but the follow-up is MR" in str(done.exception)


def test_a_prediction_without_a_mask_says_how_to_get_it(tmp_path: Path) -> None:
    write_prediction(scan(LESIONS), tmp_path / "numbers", (Output.JSON,))
    done = CliRunner().invoke(app, ["follow", str(tmp_path / "numbers"), str(tmp_path / "numbers")])
    how = "predict the scan with --only masks or without --only, by a model that was taught the liver"
    assert str(done.exception) == f"{tmp_path / 'numbers'} has no liver.nii.gz: {how}"


def test_a_folder_without_a_prediction_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["follow", str(tmp_path), str(tmp_path)])
    assert isinstance(done.exception, ArtifactError)
    done = CliRunner().invoke(app, ["follow", str(tmp_path / "a"), str(tmp_path / "b")])
    assert str(done.exception) == f"{tmp_path / 'a'} does not exist"


def test_lesions_are_near_if_their_surfaces_are_within_ten_millimetres() -> None:
    baseline_zyx, follow_up_zyx = np.zeros((2, 3, 3, 40), np.int32)
    baseline_zyx[1, 1, 2:4], baseline_zyx[1, 1, 30] = 1, 2
    follow_up_zyx[1, 1, 8:10], follow_up_zyx[1, 1, 15] = 1, 2
    pairs = near_pairs(baseline_zyx, follow_up_zyx, (1.0, 1.0, 2.0))
    assert pairs == {(1, 1): pytest.approx(12.0)}  # 10 mm from voxel 3 to voxel 8, the other 24 mm away


def test_each_lesion_is_paired_once_and_others_beside_it_are_merged_or_split() -> None:
    near = {(1, 1): 2.0, (2, 1): 3.0, (3, 2): 1.0, (3, 3): 4.0}
    lesions = match_lesions(near, {1: 20.0, 2: 12.0, 3: 9.0, 4: 30.0}, {1: 25.0, 2: 6.0, 3: 5.0, 4: 8.0})
    found = [(lesion.fate, lesion.baseline, lesion.follow_up) for lesion in lesions]
    assert [
        (lesion.merged_into, lesion.split_from) for lesion in lesions if lesion.fate in (Fate.MERGED, Fate.SPLIT)
    ] == [
        (1, None),
        (None, 3),
    ]
    assert all(lesion.merged_into is lesion.split_from is None for lesion in (lesions[0], lesions[3], lesions[5]))
    assert found == [
        (Fate.MATCHED, 1, 1),
        (Fate.MERGED, 2, None),
        (Fate.MATCHED, 3, 2),
        (Fate.VANISHED, 4, None),
        (Fate.SPLIT, None, 3),
        (Fate.NEW, None, 4),
    ]


def test_a_lesion_between_two_others_merged_into_the_nearer_one() -> None:
    near = {(1, 1): 0.0, (2, 2): 0.0, (3, 1): 9.0, (3, 2): 5.0}
    sizes = {1: 20.0, 2: 12.0, 3: 9.0}
    (lesion,) = (lesion for lesion in match_lesions(near, sizes, {1: 25.0, 2: 16.0}) if lesion.fate == Fate.MERGED)
    assert (lesion.baseline, lesion.merged_into) == (3, 2)


def test_as_many_lesions_as_possible_are_paired() -> None:
    lesions = match_lesions({(1, 1): 1.0, (1, 2): 5.0, (2, 1): 6.0}, {1: 20.0, 2: 12.0}, {1: 25.0, 2: 6.0})
    assert [(lesion.baseline, lesion.follow_up) for lesion in lesions] == [(1, 2), (2, 1)]


def test_targets_are_the_two_largest_lesions_of_ten_millimetres_or_more() -> None:
    assert choose_targets({1: 12.0, 2: 30.0, 3: 9.9, 4: 14.0}) == (2, 4)
    assert choose_targets({1: 9.9, 2: 10.0}) == (2,)


@pytest.mark.parametrize(
    ("before", "after", "category"),
    [
        ({1: 30.0, 2: 20.0}, {1: 21.0, 2: 14.0}, "PR"),  # 35 of 50 mm: a fall of 30 %
        ({1: 30.0, 2: 20.0}, {1: 21.0, 2: 14.1}, "SD"),
        ({1: 30.0, 2: 20.0}, {1: 36.0, 2: 24.0}, "PD"),  # 60 of 50 mm: a growth of 20 % and 10 mm
        ({1: 30.0, 2: 20.0}, {1: 36.0, 2: 23.9}, "SD"),
        ({1: 12.0}, {1: 16.0}, "SD"),  # 33 %, but less than 5 mm
        ({1: 12.0}, {1: 17.0}, "PD"),
        ({1: 30.0, 2: 20.0}, {}, "CR"),
        ({1: 30.0, 2: 20.0, 3: 5.0}, {3: 5.0}, "PR"),  # the targets have vanished, another lesion has not
        ({1: 9.0}, {1: 9.0}, "NE"),
        ({}, {}, "NE"),
        ({1: 30.0}, {1: 15.0, 9: 4.0}, "PD"),  # a new lesion
    ],
)
def test_categories_of_recist(before: dict[int, float], after: dict[int, float], category: str) -> None:
    near = {(number, number): 0.0 for number in before if number in after}
    assert respond(match_lesions(near, before, after)).category == category


def test_progression_counts_from_the_smallest_sum_so_far() -> None:
    lesions = match_lesions({(1, 1): 0.0}, {1: 40.0}, {1: 30.0})
    assert respond(lesions).category == "SD"
    assert respond(lesions, nadir_mm=20.0).category == "PD"


def test_a_target_that_merged_cannot_be_evaluated() -> None:
    lesions = match_lesions({(1, 1): 1.0, (2, 1): 2.0}, {1: 30.0, 2: 20.0}, {1: 55.0})
    assert respond(lesions).category == "NE"
