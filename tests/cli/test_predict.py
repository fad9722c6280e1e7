"""`hepar predict`: its options, what it prints, and the folder of each scan."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
from click.testing import Result
from dicom_files import Placement, phantom_voxels, write_series
from PIL import Image
from toy_case import volume, write_noise
from toy_model import constant_weights, write_model
from typer.testing import CliRunner

from hepar.cli.main import app
from hepar.errors import ArtifactError, DataError
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.imaging.volumes import write_image
from hepar.params import Params


def prepare(folder: Path, tiny: Params) -> Path:
    """A scan of 32.768 ml, and a model of which one member finds liver everywhere and the other tumour everywhere."""
    write_noise(folder / "scan.nii.gz")
    liver, tumour = constant_weights(tiny, 0.9, 0.2), constant_weights(tiny, 0.2, 0.9)
    write_model(folder / "model", tiny, liver, members=[tumour])
    return folder


@pytest.fixture
def folder(tiny: Params, tmp_path: Path) -> Path:
    return prepare(tmp_path, tiny)


@pytest.fixture(scope="module")
def written(tiny: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All outputs of that scan."""
    folder = prepare(tmp_path_factory.mktemp("written"), tiny)
    run(folder, str(folder / "scan.nii.gz"), "-o", str(folder / "out"), "--modality", "ct")
    return folder / "out" / "scan"


def predict(folder: Path, *options: str) -> dict[str, Any]:
    places = [str(folder / "scan.nii.gz"), "--out", str(folder / "labels.nii.gz"), "--model", str(folder / "model")]
    done = CliRunner().invoke(app, ["predict", *places, "--modality", "ct", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_fast_is_a_smaller_overlap_and_takes_no_other_setting(folder: Path) -> None:
    options = [str(folder / "scan.nii.gz"), "-o", str(folder / "out"), "--model", str(folder / "model"), "--fast"]
    done = CliRunner().invoke(app, ["predict", *options, "--modality", "ct", "--only", "json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    settings = json.loads((folder / "out" / "scan" / "measurements.json").read_text())["made_by"]["settings"]
    assert (settings["overlap"], settings["variants"], settings["mirror_axes"]) == ("0.25", "1", "")
    for other in (("--mirror", "x"), ("--overlap", "0.5"), ("--variants", "1")):  # two of them as they are without it
        with pytest.raises(DataError, match=r"^--fast sets --overlap, --variants and --mirror: leave them out$"):
            CliRunner().invoke(app, ["predict", *options, *other], catch_exceptions=False)


def test_whole_predicts_all_windows_and_their_number_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepar.cli.window_bar.LINE_SECONDS", 0.0)
    for options, whole in (((), False), (("--whole",), True)):
        done = run(folder, str(folder / "scan.nii.gz"), "-o", str(folder / "out"), "--modality", "ct", *options)
        made_by = json.loads((folder / "out" / "scan" / "measurements.json").read_text())["made_by"]
        assert made_by["whole"] is whole
        counted = re.findall(r"scan: (\d+)/(\d+) windows", done.stderr)
        assert counted[-1][0] == counted[-1][1]
        assert [int(count) for count, _ in counted] == list(range(1, len(counted) + 1))


def test_volumes_and_lesions_are_printed(folder: Path) -> None:
    assert predict(folder, "--variants", "2", "--mirror", "x", "--overlap", "0") == {
        "labels": str(folder / "labels.nii.gz"),
        "modality": "CT",
        "liver_ml": 32.768,
        "tumour_ml": 32.768,
        "lesions": [
            {
                "volume_ml": 32.768,
                "confidence": 0.55,
                "centre_index_zyx": [7.5, 7.5, 7.5],
                "centre_lps_mm": [15.0, 15.0, 15.0],
            }
        ],
    }


@pytest.mark.parametrize("options", [("--tumour-threshold", "0.6"), ("--min-lesion-ml", "33")])
def test_threshold_and_smallest_lesion_are_options(folder: Path, options: tuple[str, str]) -> None:
    found = predict(folder, *options)
    assert (found["liver_ml"], found["tumour_ml"], found["lesions"]) == (32.768, 0, [])


def run(folder: Path, *arguments: str, code: int = 0) -> Result:
    """`hepar predict` with the model of the folder; the exit code is checked."""
    options = ["--model", str(folder / "model"), "--overlap", "0", *arguments]
    done = CliRunner().invoke(app, ["predict", *options], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def test_a_folder_has_every_output_of_a_scan_and_each_says_what_it_is_for(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        *("liver.nii.gz", "tumour.nii.gz", "measurements.json", "measurements.csv", "lesions.csv"),
        *("overview.png", "page.html", "manifest.json"),
    }
    for name in ("measurements.json", "measurements.csv", "lesions.csv", "page.html"):
        assert RESEARCH_USE in (written / name).read_text()
    with Image.open(written / "overview.png") as picture:
        assert picture.info["Disclaimer"] == RESEARCH_USE
    mask = sitk.ReadImage(str(written / "tumour.nii.gz"))
    assert mask.GetMetaData("descrip") == RESEARCH_USE
    assert (sitk.GetArrayFromImage(mask) == 1).all()
    assert mask.GetSpacing() == (2.0, 2.0, 2.0)


def test_tables_and_json_have_the_same_measurements(written: Path) -> None:
    measured = json.loads((written / "measurements.json").read_text())
    lesions, scans = pd.read_csv(written / "lesions.csv"), pd.read_csv(written / "measurements.csv")
    assert measured["scan"]["modality_from"] == "the user's choice"
    assert measured["scan"]["source"].endswith("/scan.nii.gz")
    assert lesions["longest_diameter_mm"].tolist() == [measured["lesions"][0]["longest_diameter_mm"]]
    assert lesions["centre_lps_mm_3"].tolist() == [measured["lesions"][0]["centre_lps_mm"][2]]
    assert scans["burden_percent"].tolist() == [100.0]
    assert scans["warnings"][0] == "; ".join(warning["message"] for warning in measured["warnings"])


def test_the_table_of_lesions_has_the_same_columns_without_a_lesion(folder: Path, written: Path) -> None:
    out = ["-o", str(folder / "out"), "--modality", "ct", "--only", "csv", "--min-lesion-ml", "33"]
    run(folder, str(folder / "scan.nii.gz"), *out)
    lesions = pd.read_csv(folder / "out" / "scan" / "lesions.csv")
    assert (lesions.columns.tolist(), len(lesions)) == (pd.read_csv(written / "lesions.csv").columns.tolist(), 0)
    assert {"longest_ends_lps_mm_6", "from_liver_centre_lps_mm_1", "confidence"} < set(lesions.columns)


def test_the_page_shows_warnings_and_takes_nothing_from_elsewhere(written: Path) -> None:
    page = (written / "page.html").read_text()
    assert "outside 300 to 6000 ml" in page
    assert not re.search(r"<script[^>]+src|https?://|src=\"(?!data:)", page)


def test_scans_of_one_name_have_folders_of_their_own_and_a_line_each(folder: Path) -> None:
    write_noise(folder / "other" / "scan.nii.gz")
    scans = [str(folder / "scan.nii.gz"), str(folder / "other" / "scan.nii.gz")]
    done = run(folder, *scans, "-o", str(folder / "out"), "--modality", "ct", "--only", "csv")
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["folder"] for line in printed] == [str(folder / "out" / name) for name in ("scan", "other-scan")]
    assert [line["source"] for line in printed] == [f"{folder.name}/scan.nii.gz", "other/scan.nii.gz"]
    assert [line["liver_ml"] for line in printed] == [32.8, 32.8]
    files = {path.name for path in (folder / "out" / "other-scan").iterdir()}
    assert files == {"measurements.csv", "lesions.csv", "manifest.json"}


def test_warnings_fail_the_command_only_if_it_is_strict(folder: Path) -> None:
    scan = [str(folder / "scan.nii.gz"), "-o", str(folder / "out"), "--modality", "ct", "--only", "json"]
    assert "cm² of the liver lie on the foot end of the scan (bound 1 cm²)" in run(folder, *scan).stderr
    assert "1 of 1 scans have warnings" in run(folder, *scan, "--strict", code=1).stderr
    assert (folder / "out" / "scan" / "measurements.json").is_file()


def test_a_scan_that_fails_does_not_stop_the_others(folder: Path) -> None:
    scans = [str(folder / "missing.nii.gz"), str(folder / "scan.nii.gz")]
    done = run(folder, *scans, "-o", str(folder / "out"), "--modality", "ct", "--only", "json", code=2)
    assert "missing.nii.gz: no such file or folder" in done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("out", ["out", "labels.nii.gz"])
def test_a_scan_with_voxels_that_are_not_finite_is_refused(folder: Path, ending: str, value: float, out: str) -> None:
    voxels_zyx = np.random.default_rng(0).normal(50, 10, (16, 16, 16)).astype(np.float32)
    voxels_zyx[5, 5, 5:7] = value
    sitk.WriteImage(volume(voxels_zyx), str(folder / f"bad{ending}"))
    done = run(folder, str(folder / f"bad{ending}"), "-o", str(folder / out), "--modality", "ct", code=2)
    rule = "all voxels of the image are finite: 2 voxels are NaN or infinite"
    assert [line for line in done.stderr.splitlines() if "finite" in line] == [
        f"hepar: {folder.name}/bad{ending}: {rule}"
    ]
    assert (done.stdout, (folder / out).exists()) == ("", False)


def test_a_mask_is_no_scan(folder: Path) -> None:
    mask_zyx = np.zeros((16, 16, 16), np.uint8)
    mask_zyx[4:8, 4:8, 4:8] = 255
    sitk.WriteImage(volume(mask_zyx), str(folder / "bone.nii.gz"))
    done = run(folder, str(folder / "bone.nii.gz"), "-o", str(folder / "out"), "--modality", "ct", code=2)
    assert f"hepar: {folder.name}/bone.nii.gz is a mask: its voxels are 0 or 255" in done.stderr.splitlines()
    assert not (folder / "out").exists()


def test_a_model_that_does_not_exist_is_refused_with_the_option_that_names_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ArtifactError, match=r"^models/universal does not exist: --model takes a model folder, "):
        CliRunner().invoke(app, ["predict", "scan.nii.gz", "-o", "out"], catch_exceptions=False)
    assert not (folder / "out").exists()


def test_a_modality_that_the_model_never_learned_or_that_is_doubtful_is_refused(folder: Path) -> None:
    scan = [str(folder / "scan.nii.gz"), "-o", str(folder / "out")]
    assert "the model was trained on CT only" in run(folder, *scan, "--modality", "mr", code=2).stderr
    assert "may be CT or MR by its values" in run(folder, *scan, code=2).stderr
    assert not (folder / "out").exists()


def test_a_registered_model_without_a_registry_is_a_sentence_and_creates_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")
    done = CliRunner().invoke(app, ["predict", "scan.nii.gz", "-o", "out", "--model", "models:/name@champion"])
    assert str(done.exception) == "there is no registry at sqlite:///nowhere.db: set MLFLOW_TRACKING_URI"
    assert not Path("nowhere.db").exists()


def test_the_modality_of_dicom_is_that_of_its_header(folder: Path) -> None:
    write_series(folder / "dicom", phantom_voxels(), SeriesNumber=3)
    out = ["-o", str(folder / "out"), "--only", "json"]
    (line,) = run(folder, str(folder / "dicom"), *out).stdout.splitlines()
    assert json.loads(line)["folder"].endswith("series-3-ct-portal-venous")
    assert json.loads(line)["source"] is None
    refused = run(folder, str(folder / "dicom"), *out, "--modality", "mr", code=2)
    assert "is CT by its DICOM header, not MR" in refused.stderr


def test_uneven_slices_are_left_out_with_what_to_do_and_resampled_on_request(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heights_mm = [0, 3, 6, 9, 12, 15, 18, 22, 26, 30, 34, 38]
    write_series(folder / "uneven", phantom_voxels(), Placement(heights_mm=heights_mm), SeriesNumber=3)
    out = [str(folder / "uneven"), "-o", str(folder / "out"), "--only", "json"]
    refused = run(folder, *out, code=2).stderr
    assert "series-3-ct-portal-venous is left out: slices are evenly spaced: 3.00 to 4.00 mm" in refused
    assert "--uneven-slices resample" in refused
    run(folder, *out, "--uneven-slices", "resample")
    assert (folder / "out" / "series-3-ct-portal-venous" / "measurements.json").is_file()
    assert "ITK" not in capfd.readouterr().err  # no warning of a C++ library


def test_a_folder_that_is_no_prediction_is_not_replaced(folder: Path) -> None:
    (folder / "out" / "scan").mkdir(parents=True)
    (folder / "out" / "scan" / "thesis.txt").write_text("mine")
    arguments = [str(folder / "scan.nii.gz"), "-o", str(folder / "out"), "--modality", "ct"]
    assert "exists and is not a prediction" in run(folder, *arguments, code=2).stderr
    assert (folder / "out" / "scan" / "thesis.txt").read_text() == "mine"


def test_a_folder_with_a_damaged_manifest_is_not_replaced_and_the_other_scans_are_predicted(folder: Path) -> None:
    shutil.copy(folder / "scan.nii.gz", folder / "other.nii.gz")
    sources = [str(folder / name) for name in ("scan.nii.gz", "other.nii.gz")]
    options = ["-o", str(folder / "out"), "--modality", "ct", "--only", "json"]
    damaged = folder / "out" / "scan" / "manifest.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    done = run(folder, *sources, *options, code=2)
    assert f"hepar: {damaged} is damaged" in done.stderr
    assert "choose another --out, or delete that folder" in done.stderr
    assert damaged.read_text() == "{"
    assert (folder / "out" / "other" / "measurements.json").is_file()


def zipped_series(folder: Path, name: str) -> Path:
    """A zip of a series of its own; all have one number and one name."""
    write_series(folder / name, phantom_voxels(), SeriesNumber=3)
    return Path(shutil.make_archive(str(folder / f"{name}-GRIMALDI"), "zip", folder / name))


def test_the_result_of_another_series_is_not_replaced_and_that_of_the_same_one_is(folder: Path) -> None:
    first, second = zipped_series(folder, "a"), zipped_series(folder, "b")
    out = ["-o", str(folder / "out"), "--only", "json"]
    run(folder, str(first), *out)
    result = folder / "out" / "series-3-ct-portal-venous"
    before = {path.name: path.read_bytes() for path in result.iterdir()}
    refused = run(folder, str(second), *out, code=2)
    how = "choose another --out, or delete that folder"
    assert refused.stderr.splitlines()[-1] == f"hepar: {result} holds the result of another scan: {how}"
    assert refused.stdout == ""
    assert {path.name: path.read_bytes() for path in result.iterdir()} == before
    run(folder, str(first), *out[:2], "--only", "csv")
    assert (result / "measurements.csv").is_file()
    assert not (result / "measurements.json").exists()
    manifest = (result / "manifest.json").read_text()
    series = pydicom.dcmread(next((folder / "a").iterdir())).SeriesInstanceUID
    assert not any(value in manifest for value in (series, "GRIMALDI"))


def test_the_result_of_another_file_of_that_name_is_not_replaced(folder: Path) -> None:
    options = ["-o", str(folder / "out"), "--modality", "ct", "--only", "json"]
    run(folder, str(folder / "scan.nii.gz"), *options)
    (folder / "copy").mkdir()
    shutil.copy(folder / "scan.nii.gz", folder / "copy" / "scan.nii.gz")
    run(folder, str(folder / "copy" / "scan.nii.gz"), *options)  # the same scan
    other = sitk.ReadImage(str(folder / "scan.nii.gz")) + 1
    (folder / "other").mkdir()
    write_image(other, folder / "other" / "scan.nii.gz")
    refused = run(folder, str(folder / "other" / "scan.nii.gz"), *options, code=2)
    assert f"{folder / 'out' / 'scan'} holds the result of another scan" in refused.stderr


def test_of_several_dicom_sources_each_result_says_which_it_is_of(folder: Path) -> None:
    sources = [str(zipped_series(folder, name)) for name in ("a", "b")]
    done = run(folder, *sources, "-o", str(folder / "out"), "--only", "json", "--only", "csv")
    assert "GRIMALDI" not in done.stdout
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["series-3-ct-portal-venous", "series-3-ct-portal-venous-2"]
    assert [(line["name"], line["source_number"]) for line in printed] == list(zip(names, (1, 2), strict=True))
    for number, name in enumerate(names, start=1):
        results = folder / "out" / name
        assert json.loads((results / "measurements.json").read_text())["scan"]["source_number"] == number
        assert pd.read_csv(results / "measurements.csv")["source_number"].tolist() == [number]
    swapped = run(folder, *sources[::-1], "-o", str(folder / "out"), "--only", "json", code=2)
    assert swapped.stderr.count("holds the result of another scan") == 2


@pytest.mark.parametrize(
    ("options", "problem"), [(["--only", "json"], "one label map"), (["scan2.nii.gz"], "one label map")]
)
def test_a_label_map_is_of_one_scan(folder: Path, options: list[str], problem: str) -> None:
    arguments = ["predict", str(folder / "scan.nii.gz"), "-o", str(folder / "labels.nii.gz"), *options]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, DataError)
    assert problem in str(done.exception)


def test_a_scan_of_one_slice_has_every_output(folder: Path) -> None:
    image = volume(np.random.default_rng(0).integers(0, 200, (1, 16, 16)).astype(np.int16))
    write_image(image, folder / "slice.nii.gz")
    run(folder, str(folder / "slice.nii.gz"), "-o", str(folder / "out"), "--modality", "ct")
    measured = json.loads((folder / "out" / "slice" / "measurements.json").read_text())
    assert measured["lesions"][0]["longest_diameter_mm"] == pytest.approx(np.hypot(32, 30), abs=0.1)
    assert (folder / "out" / "slice" / "page.html").is_file()
