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
from hepar.imaging.volumes import Geometry, to_array, to_image
from hepar.inference.prediction import Segmentation
from hepar.ingest.sources.source import VolumeFile
from hepar.prediction.alignment import Alignment, align_livers
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.follow_up import (
    Fate,
    FollowUp,
    Outside,
    OutsideEach,
    choose_targets,
    follow,
    match_lesions,
    near_pairs,
    outside_lesions,
    respond,
)
from hepar.prediction.measurements import measure
from hepar.prediction.out_of_distribution import FIELD_OF_VIEW, ScanWarning, check_scan
from hepar.prediction.outputs import Output
from hepar.prediction.predicted_scan import PredictedScan
from hepar.prediction.scans import Scan
from hepar.prediction.writing import write_prediction

GRID = Geometry((40, 64, 70), (4.0, 3.0, 3.0), (-100.0, -90.0, 10.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
TURN_DEGREES, SHIFT_MM = 12.0, (14.0, -9.0, 11.0)
Balls = Mapping[tuple[float, float, float], float]  # radius by centre, mm from the middle of the grid, x y z
LESIONS: Balls = {(-25.0, 5.0, 5.0): 12.0, (15.0, 10.0, -10.0): 8.0}
DOME, DEEP = (-20.0, 0.0, 30.0), (-25.0, 5.0, -25.0)  # centres near the head end of the liver and far from it
AT_DOME: Balls = {DOME: 15.0}
EVERY_SLICE = slice(0, GRID.size_zyx[0])


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


def scan(
    lesions: Balls,
    transform: sitk.Transform | None = None,
    modality: Modality = Modality.CT,
    slices: slice = EVERY_SLICE,
) -> PredictedScan:
    """A liver of two ellipsoids, without symmetry, with balls as lesions; only some slices of the grid are scanned."""
    x, y, z = np.moveaxis(points_mm(transform), -1, 0)
    right = ((x + 20) / 55) ** 2 + (y / 40) ** 2 + (z / 48) ** 2 <= 1
    left = ((x - 30) / 45) ** 2 + ((y + 15) / 22) ** 2 + ((z - 10) / 25) ** 2 <= 1
    tumour_zyx = np.zeros(GRID.size_zyx, bool)
    for (cx, cy, cz), radius in lesions.items():
        tumour_zyx |= (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 <= radius**2
    liver_zyx = right | left | tumour_zyx
    image_zyx = np.where(tumour_zyx, 50, np.where(liver_zyx, 100, -1000)).astype(np.int16)
    grid = GRID.cropped((slices, slice(None), slice(None)))
    liver_zyx, tumour_zyx, image_zyx = liver_zyx[slices], tumour_zyx[slices], image_zyx[slices]
    probability_rzyx = np.stack([liver_zyx, tumour_zyx]).astype(np.float32)
    found = Segmentation(liver_zyx, tumour_zyx, probability_rzyx, grid, ("liver", "tumour"), 0.0)
    measured, image = measure(found, image_zyx, modality), to_image(image_zyx, grid)
    source = Scan("scan", VolumeFile(Path(__file__)))  # any file: by its content a result is known as the scan's
    by = predictor()
    warnings = check_scan(image, modality, found, measured, by.models[0].spec)
    cut = tuple(warning for warning in warnings if warning.rule == FIELD_OF_VIEW)
    return PredictedScan(source, image, modality, "--modality", found, measured, cut, by)


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


def test_a_lesion_between_two_thick_slices_is_not_lost() -> None:
    """A baseline of 1 mm, a follow-up with slices at 0, 8 and 16 mm, and a lesion in the baseline's at 2 and 3 mm."""
    thin_zyx, thick_zyx = np.zeros((24, 9, 9), np.int32), np.zeros((3, 9, 9), np.int32)
    thin_zyx[2:4, 3:6, 3:6], thin_zyx[16, 0, 0] = 1, 2
    axes = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    thin = to_image(thin_zyx, Geometry(thin_zyx.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), axes))
    thick = to_image(thick_zyx, Geometry(thick_zyx.shape, (8.0, 1.0, 1.0), (0.0, 0.0, 0.0), axes))
    unmoved = Alignment(sitk.Euler3DTransform(), 1.0, 1.0, 1.0, 0.0, 0.0)
    moved_zyx = to_array(unmoved.to_follow_up(thin, thick))
    assert np.argwhere(moved_zyx == 1).tolist() == [[0, y, x] for y in range(3, 6) for x in range(3, 6)]
    assert np.argwhere(moved_zyx == 2).tolist() == [[2, 0, 0]]
    outside = to_image(thin_zyx, Geometry(thin_zyx.shape, (1.0, 1.0, 1.0), (50.0, 0.0, 0.0), axes))
    assert not to_array(unmoved.to_follow_up(outside, thick)).any()


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
    lesions = match_lesions({(1, 1): 0.0}, {1: 60.0}, {1: 80.0})
    assert respond(lesions).category == respond(lesions, nadir_mm=60.0).category == "PD"


def test_the_smallest_sum_so_far_is_at_most_that_of_the_baseline(tmp_path: Path) -> None:
    """Counted from a larger sum, a growth would be a smaller one; it is refused before any mask is read."""
    found = compare(scan(LESIONS), scan(LESIONS), tmp_path)
    most_mm = round(found.response.baseline_sum_mm, 1)
    folders = PredictionFolder(tmp_path / "before"), PredictionFolder(tmp_path / "after")
    assert follow(*folders, nadir_mm=most_mm).response.category == "SD"
    for mask in tmp_path.rglob("*.nii.gz"):
        mask.unlink()
    with pytest.raises(DataError, match=rf"is given as 100 mm but must be at most {most_mm} mm, that of the baseline$"):
        follow(*folders, nadir_mm=100.0)


def test_a_target_that_merged_cannot_be_evaluated() -> None:
    lesions = match_lesions({(1, 1): 1.0, (2, 1): 2.0}, {1: 30.0, 2: 20.0}, {1: 55.0})
    assert respond(lesions).category == "NE"


def compare(before: PredictedScan, after: PredictedScan, folder: Path) -> FollowUp:
    """The follow-up of two scans, written to a folder."""
    for name, made in (("before", before), ("after", after)):
        write_prediction(made, folder / name, (Output.MASKS, Output.JSON))
    return follow(PredictionFolder(folder / "before"), PredictionFolder(folder / "after"))


def above_percent(balls: Balls, height_mm: float) -> float:
    """How much of the voxels of balls lies above a height at baseline, mm from the middle of the grid."""
    heights_mm = points_mm(None)[scan(balls).found.tumour_zyx][:, 2]
    return 100 * float(np.mean(heights_mm > height_mm))


def edge_mm(kept: int, transform: sitk.Euler3DTransform | None) -> float:
    """The height at baseline of the head end of a scan of that many slices of the patient moved: a turn keeps it."""
    shift_mm = 0.0 if transform is None else SHIFT_MM[2]
    return (kept - 0.5 - 19.5) * GRID.spacing_zyx_mm[0] - shift_mm


PARTLY, WHOLLY = (27, 25), (23, 22)  # slices from the foot end, of which the dome is at 23 to 31
MOVED_UP = 3  # slices


@pytest.mark.parametrize("is_moved", [False, True])
@pytest.mark.parametrize("kept", [*PARTLY, *WHOLLY])
def test_a_lesion_beyond_the_follow_up_has_not_vanished(kept: int, is_moved: bool, tmp_path: Path) -> None:
    transform, slices = (moved(), slice(0, kept + MOVED_UP)) if is_moved else (None, slice(0, kept))
    found = compare(scan(AT_DOME), scan(AT_DOME, transform, slices=slices), tmp_path)
    outside_percent = above_percent(AT_DOME, edge_mm(slices.stop, transform))
    (lesion,) = found.lesions
    assert lesion.fate == Fate.OUTSIDE
    assert lesion.baseline_outside_percent == pytest.approx(outside_percent, abs=15)
    assert (lesion.follow_up is None) == (kept in WHOLLY)
    assert lesion.change_percent is None
    assert found.response.category == "NE"
    assert found.response.reasons[0].startswith("a target lesion lies wholly or partly outside the field of view")
    assert found.response.follow_up_sum_mm is found.response.change_percent is None
    assert not found.alignment.doubt
    assert found.warnings[-1] == "outside the field of view of the other scan, wholly or partly: 1 lesion"


@pytest.mark.parametrize("is_moved", [False, True])
@pytest.mark.parametrize("kept", [*PARTLY, *WHOLLY])
def test_a_lesion_beyond_the_baseline_is_not_new(kept: int, is_moved: bool, tmp_path: Path) -> None:
    lesions = {**AT_DOME, DEEP: 10.0}
    after = scan(lesions, moved() if is_moved else None)
    found = compare(scan(lesions, slices=slice(0, kept)), after, tmp_path)
    deep, dome = found.lesions
    assert (deep.fate, dome.fate) == (Fate.MATCHED, Fate.OUTSIDE)
    outside_percent = above_percent(AT_DOME, edge_mm(kept, None))
    assert dome.follow_up_outside_percent == pytest.approx(outside_percent, abs=15)
    assert (dome.baseline is None) == (kept in WHOLLY)
    assert found.response.category == "NE"
    assert any("field of view of the baseline" in reason for reason in found.response.reasons)


@pytest.mark.parametrize("is_moved", [False, True])
@pytest.mark.parametrize("kept", [27, 25, 23])
def test_livers_are_aligned_by_what_both_scans_show(kept: int, is_moved: bool) -> None:
    transform, slices = (moved(), slice(0, kept + MOVED_UP)) if is_moved else (None, slice(0, kept))
    whole, part = scan({}).found, scan({}, transform, slices=slices).found
    livers = [to_image(found.liver_zyx, found.geometry) for found in (whole, part)]
    there = transform or sitk.Euler3DTransform()
    for baseline, follow_up, back in ((*livers, there.GetInverse()), (*reversed(livers), there)):
        found = align_livers(baseline, follow_up)
        for point in ((-20.0, 0.0, 80.0), (40.0, -10.0, 100.0), (-50.0, 30.0, 60.0)):
            apart_mm = np.subtract(found.transform.TransformPoint(point), back.TransformPoint(point))
            assert np.linalg.norm(apart_mm) < 5
        shown_zyx = whole.liver_zyx[: edge_slice(slices.stop, is_moved)]
        shares = found.baseline_covered, found.follow_up_covered
        assert min(shares) == pytest.approx(shown_zyx.sum() / whole.liver_zyx.sum(), abs=0.1)
        assert max(shares) > 0.95


def edge_slice(kept: int, is_moved: bool) -> int:
    """The slice at baseline, to the nearest, where a scan of that many slices of the patient moved ends."""
    return round(kept - (SHIFT_MM[2] / GRID.spacing_zyx_mm[0] if is_moved else 0))


def test_what_both_scans_show_is_evaluated_although_one_cuts_the_liver(tmp_path: Path) -> None:
    def category(before: Balls, after: Balls, name: str) -> str:
        follow_up = scan(after, moved(), slices=slice(0, 27 + MOVED_UP))
        assert follow_up.warnings
        return compare(scan(before), follow_up, tmp_path / name).response.category

    assert category({DEEP: 10.0}, {DEEP: 10.0}, "stable") == "SD"
    assert category({DEEP: 10.0}, {}, "vanished") == "CR"
    assert category({}, {DEEP: 10.0}, "new") == "PD"
    assert category({**AT_DOME, DEEP: 10.0}, {DEEP: 10.0, (15.0, 10.0, -10.0): 8.0}, "new beside one outside") == "PD"


def test_a_scan_of_too_little_liver_has_no_category(tmp_path: Path) -> None:
    found = compare(scan({DEEP: 10.0}), scan({DEEP: 10.0}, slices=slice(0, 18)), tmp_path)
    share = scan({}).found.liver_zyx[:18].sum() / scan({}).found.liver_zyx.sum()
    assert found.alignment.baseline_covered == pytest.approx(share, abs=0.05)
    assert found.response.category == "NE"
    assert found.response.reasons[0].startswith("the follow-up covers too little of the baseline's liver to align them")
    assert found.warnings[-1] == f"{found.response.reasons[0]}; lesions may be matched wrongly"


def test_json_and_csv_say_how_much_of_a_lesion_lies_outside(tmp_path: Path) -> None:
    write_prediction(scan(AT_DOME), tmp_path / "before")
    write_prediction(scan(AT_DOME, slices=slice(0, 22)), tmp_path / "after")
    places = [str(tmp_path / name) for name in ("before", "after")]
    done = CliRunner().invoke(app, ["follow", *places, "--csv", str(tmp_path / "f.csv")])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (lesion,) = found["lesions"]
    assert (lesion["fate"], lesion["baseline_outside_percent"]) == ("outside", 100.0)
    assert lesion["follow_up_outside_percent"] is lesion["follow_up"] is None
    assert found["response"]["follow_up_sum_mm"] is None
    assert found["alignment"]["baseline_covered"] < found["alignment"]["follow_up_covered"] == 1
    with (tmp_path / "f.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[name] for name in ("fate", "baseline_outside_percent", "follow_up_outside_percent")] == [
        *("outside", "100.0", "")
    ]


def test_lesions_lie_outside_by_the_voxels_that_are_not_covered() -> None:
    labels_zyx, covered_zyx = np.zeros((3, 3, 40), np.int32), np.zeros((3, 3, 40), bool)
    covered_zyx[..., :20] = True
    for number, (start, stop) in enumerate(((2, 4), (14, 17), (19, 23), (30, 31)), start=1):
        labels_zyx[1, 1, start:stop] = number
    spacing_zyx_mm = (1.0, 1.0, 2.0)  # the second ends 8 mm from the first voxel that is not covered
    exact, wary = (outside_lesions(labels_zyx, covered_zyx, spacing_zyx_mm, near_edge) for near_edge in (False, True))
    assert [exact[number].percent for number in (1, 2, 3, 4)] == [0, 0, 75, 100]
    assert [exact[number].may_be for number in (1, 2, 3, 4)] == [False, False, True, True]
    assert [wary[number].may_be for number in (1, 2, 3, 4)] == [False, True, True, True]
    assert outside_lesions(labels_zyx * 0, covered_zyx, spacing_zyx_mm, True) == {}


def test_lesions_are_near_although_another_one_lies_outside_the_grid() -> None:
    baseline_zyx, follow_up_zyx = np.zeros((2, 3, 3, 40), np.int32)
    baseline_zyx[1, 1, 5], follow_up_zyx[1, 1, 6] = 2, 1
    assert near_pairs(baseline_zyx, follow_up_zyx, (1.0, 1.0, 2.0)) == {(2, 1): pytest.approx(2.0)}


PART, NEAR_EDGE = Outside(40.0, True), Outside(0.0, True)


@pytest.mark.parametrize(
    ("before", "after", "outside", "category"),
    [
        ({1: 30.0, 2: 20.0}, {1: 30.0}, OutsideEach({2: PART}), "NE"),  # a target is not seen
        ({1: 30.0, 2: 20.0}, {1: 52.0}, OutsideEach({2: PART}), "NE"),  # 52 of 50 mm at least
        ({1: 30.0, 2: 20.0}, {1: 60.0}, OutsideEach({2: PART}), "PD"),  # 60 of 50 mm at least
        ({1: 30.0, 2: 20.0}, {1: 60.0, 2: 30.0}, OutsideEach({}, {2: PART}), "NE"),  # the baseline did not see all
        ({1: 30.0}, {1: 30.0, 2: 9.0}, OutsideEach({}, {2: PART}), "NE"),  # may be new
        ({1: 30.0}, {1: 36.0, 2: 9.0}, OutsideEach({}, {2: PART}), "PD"),  # grew anyway
        ({1: 30.0}, {1: 30.0, 2: 9.0, 3: 8.0}, OutsideEach({}, {2: PART}), "PD"),  # the third is new
        ({1: 30.0, 2: 9.0}, {}, OutsideEach({2: PART}), "NE"),  # CR or PR
        ({1: 30.0, 2: 9.0}, {1: 15.0}, OutsideEach({2: PART}), "PR"),  # whatever became of the second
        ({1: 30.0, 2: 9.0}, {2: 9.0}, OutsideEach({2: PART}), "PR"),  # the second has not vanished
        ({1: 30.0}, {1: 30.0}, OutsideEach({1: NEAR_EDGE}, {1: NEAR_EDGE}), "SD"),  # a pair is seen as a whole
        ({1: 30.0}, {}, OutsideEach({1: NEAR_EDGE}), "NE"),
        ({1: 30.0}, {1: 30.0, 2: 9.0}, OutsideEach({}, {2: NEAR_EDGE}), "NE"),
    ],
)
def test_a_lesion_outside_a_scan_makes_not_evaluable_what_it_could_change(
    before: dict[int, float], after: dict[int, float], outside: OutsideEach, category: str
) -> None:
    near = {(number, number): 0.0 for number in before if number in after}
    response = respond(match_lesions(near, before, after, outside))
    assert response.category == category, response.reasons
