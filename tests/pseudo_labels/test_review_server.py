"""The review page's server: what it serves, saves and refuses, and that decisions reach the pool."""

from __future__ import annotations

import io
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from hepar.cases import Cohort, LabelState
from hepar.errors import ArtifactError, DataError
from hepar.params import Params
from hepar.pool.table import Pool, PoolEntry
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.review_page.server import HOST, MAX_UPLOAD_BYTES, make_app, serve
from hepar.pseudo_labels.review_page.session import ReviewSession
from hepar.pseudo_labels.reviews import Reviews
from hepar.runtime.artifacts import read_manifest, sha256_file, write_artifact
from hepar.stages import assemble_pool

pytestmark = pytest.mark.slow
TOKEN = "a-token"


@pytest.fixture
def run(by_kfp: Path, tmp_path: Path) -> Path:
    """A folder with the cohort and the pseudo-labels of a run."""
    for name in ("cohort", "pseudo"):
        shutil.copytree(by_kfp / name, tmp_path / name)
    return tmp_path


def app_of(run: Path) -> Flask:
    return make_app(ReviewSession(run / "cohort", run / "pseudo", run / "reviews", "an expert"), TOKEN)


@pytest.fixture
def client(run: Path) -> FlaskClient:
    """A browser that has opened the printed address once."""
    browser = app_of(run).test_client()
    assert get(browser, f"/?token={TOKEN}").status_code == 200
    return browser


def get(client: FlaskClient, path: str, **options: Any) -> TestResponse:
    return client.get(path, base_url=f"http://{HOST}", buffered=True, **options)  # closes the file


def post(client: FlaskClient, path: str, **options: Any) -> TestResponse:
    return client.post(path, base_url=f"http://{HOST}", buffered=True, **options)


def quality(run: Path) -> dict[str, dict[str, Any]]:
    """The rows of the quality table by case id."""
    return {row["case_id"]: row for row in PseudoLabels(run / "pseudo").rows()}


def names(client: FlaskClient) -> list[str]:
    return [item["case_id"] for item in get(client, "/api/cases").json or []]


def mask_of(run: Path, case_id: str, change: Any = None) -> bytes:
    """A corrected mask of a case as the bytes of a NIfTI file, after `change`, if any."""
    image = sitk.ReadImage(str(PseudoLabels(run / "pseudo").liver(case_id)))
    array = sitk.GetArrayFromImage(image)
    array[array.shape[0] // 2 :, :5, :5] = 1
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    if change is not None:
        changed = change(changed)
    path = run / "upload.nii.gz"
    sitk.WriteImage(changed, str(path))
    return path.read_bytes()


def upload(client: FlaskClient, case_id: str, content: bytes, name: str = "mask.nii.gz") -> TestResponse:
    return post(client, f"/api/cases/{case_id}/mask", data={"mask": (io.BytesIO(content), name)})


def entry(run: Path, params: Params, case_id: str, reviews: str = "") -> PoolEntry:
    """The case in a pool assembled with the reviews."""
    assembling = params.assemble_pool.model_copy(update={"reviews": reviews})
    assemble_pool.run(run / "cohort", run / "pseudo", run / "pool", params.modalities, params.preprocessing, assembling)
    return next(entry for entry in Pool.load(run / "pool").entries if entry.case_id == case_id)


def test_the_queue_lists_every_pseudo_liver_the_most_uncertain_first(client: FlaskClient, run: Path) -> None:
    listed = get(client, "/api/cases").json
    assert listed is not None
    assert sorted(item["case_id"] for item in listed) == sorted(quality(run))
    order = {"review": 0, "reject": 1, "accept": 2}
    sort_keys = [(order[item["gate"]], item["signals"]["agreement"]) for item in listed]
    assert sort_keys == sorted(sort_keys)
    assert all(item["decision"] is None for item in listed)


def test_the_files_of_a_case_are_served(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    case = next(case for case in Cohort.load(run / "cohort") if case.case_id == case_id)
    assert get(client, f"/files/{case_id}/image.nii.gz").data == (run / "cohort" / case.image).read_bytes()
    mask = PseudoLabels(run / "pseudo").liver(case_id)
    assert get(client, f"/files/{case_id}/liver.nii.gz").data == mask.read_bytes()


@pytest.mark.parametrize(("decision", "weight", "gate"), [("accept", 1.0, "accept"), ("reject", 0.0, "reject")])
def test_a_decision_is_saved_at_once_and_reaches_the_pool(
    decision: str, weight: float, gate: str, client: FlaskClient, run: Path, tiny: Params
) -> None:
    case_id = names(client)[0]
    answer = post(client, f"/api/cases/{case_id}/{decision}").json
    assert answer is not None
    assert (answer["decision"]["decision"], answer["decision"]["who"]) == (decision, "an expert")
    assert len((run / "reviews" / Reviews.LOG).read_text().splitlines()) == 1
    found = entry(run, tiny, case_id, str(run / "reviews"))
    assert (found.liver.weight, found.liver.gate) == (weight, gate)
    assert found.liver.review.startswith(f"{decision}ed by an expert, ")
    assert read_manifest(run / "pool", Pool.KIND).parents["reviews"] == Reviews.load(run / "reviews").hash


def test_a_corrected_mask_becomes_a_manual_label_with_provenance(client: FlaskClient, run: Path, tiny: Params) -> None:
    case_id = names(client)[0]
    before = entry(run, tiny, case_id)
    answer = upload(client, case_id, mask_of(run, case_id)).json
    assert answer is not None
    digest = answer["decision"]["mask_sha256"]
    kept = run / "reviews" / Reviews.MASKS / f"{digest}.nii.gz"
    assert sha256_file(kept) == digest
    assert get(client, f"/files/{case_id}/corrected.nii.gz").data == kept.read_bytes()
    found = entry(run, tiny, case_id, str(run / "reviews"))
    assert (found.liver.state, found.liver.weight, found.liver.mask_sha256) == (LabelState.MANUAL, 1.0, digest)
    assert found.liver.review.startswith("corrected by an expert, ")
    assert (found.liver.gate, found.liver.reasons) == ("correct", quality(run)[case_id]["reasons"])
    assert found.arrays.key != before.arrays.key
    assert found.liver.teacher == ""


def test_accepting_after_a_correction_accepts_the_corrected_mask(client: FlaskClient, run: Path, tiny: Params) -> None:
    case_id = names(client)[0]
    corrected = upload(client, case_id, mask_of(run, case_id)).json
    accepted = post(client, f"/api/cases/{case_id}/accept").json
    assert corrected is not None
    assert accepted is not None
    assert accepted["decision"]["mask_sha256"] == corrected["decision"]["mask_sha256"]
    assert entry(run, tiny, case_id, str(run / "reviews")).liver.state == LabelState.MANUAL
    post(client, f"/api/cases/{case_id}/reject")
    assert entry(run, tiny, case_id, str(run / "reviews")).liver.state == LabelState.UNKNOWN


def test_a_flipped_mask_is_brought_to_the_grid_of_the_image(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    answer = upload(client, case_id, mask_of(run, case_id, lambda mask: sitk.DICOMOrient(mask, "RSA"))).json
    assert answer is not None
    kept = sitk.ReadImage(str(run / "reviews" / Reviews.MASKS / f"{answer['decision']['mask_sha256']}.nii.gz"))
    mask_of(run, case_id)
    given = sitk.ReadImage(str(run / "upload.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(kept), sitk.GetArrayFromImage(given))
    assert kept.GetDirection() == pytest.approx(given.GetDirection())


def test_replaced_pseudo_labels_are_not_reviewed(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    with write_artifact(run / "pseudo", PseudoLabels.KIND, {}) as folder:
        PseudoLabels(folder).save_table([])
    for answer in (
        post(client, f"/api/cases/{case_id}/accept"),
        get(client, f"/files/{case_id}/liver.nii.gz"),
        upload(client, case_id, b""),
    ):
        assert answer.status_code == 409
    assert not (run / "reviews").exists()


def test_nothing_is_appended_to_a_damaged_log(client: FlaskClient, run: Path) -> None:
    (run / "reviews").mkdir()
    (run / "reviews" / Reviews.LOG).write_text("no decision\n")
    assert post(client, f"/api/cases/{next(iter(quality(run)))}/reject").status_code == 422
    assert (run / "reviews" / Reviews.LOG).read_text() == "no decision\n"


def test_an_uncompressed_nifti_is_accepted(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    image = sitk.ReadImage(str(PseudoLabels(run / "pseudo").liver(case_id)))
    array = sitk.GetArrayFromImage(image)
    array[:3, :3, :3] = 1
    plain = sitk.GetImageFromArray(array)
    plain.CopyInformation(image)
    sitk.WriteImage(plain, str(run / "plain.nii"))
    assert upload(client, case_id, (run / "plain.nii").read_bytes(), "plain.nii").status_code == 200


def shifted(mask: sitk.Image) -> sitk.Image:
    mask.SetOrigin([value + 5 for value in mask.GetOrigin()])
    return mask


def rotated(mask: sitk.Image) -> sitk.Image:
    mask.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    return mask


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask[:-1], "the mask is .* but the image is "),
        (shifted, "the mask has .* voxels, spacing .* and origin "),
        (rotated, "the mask is rotated: its axes do not follow those of the image"),
        (lambda mask: sitk.Cast(mask, sitk.sitkUInt8) * 3, "the mask has the value 3 but must have only 0 and 1"),
        (lambda mask: mask * 0, "the mask is empty; reject the pseudo-liver instead"),
    ],
    ids=["size", "place", "direction", "values", "empty"],
)
def test_an_invalid_mask_is_refused_and_not_stored(change: Any, message: str, client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    answer = upload(client, case_id, mask_of(run, case_id, change))
    assert answer.status_code == 422
    assert answer.json is not None
    with pytest.raises(DataError, match=f"^case {case_id}: {message}"):
        raise DataError(answer.json["error"])
    assert not (run / "reviews").exists()


def test_a_file_that_is_not_a_volume_is_refused(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    answer = upload(client, case_id, b"no volume", "mine.nii.gz")
    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["error"].startswith("mine.nii.gz ")
    assert post(client, f"/api/cases/{case_id}/mask").status_code == 400
    assert not (run / "reviews").exists()


@pytest.mark.parametrize(
    "path",
    [
        "/files/../../etc/passwd",
        "/files/%2e%2e/%2e%2e/quality.parquet",
        "/files/{case}/../../quality.parquet",
        "/files/{case}/..%2f..%2fquality.parquet",
        "/files/{case}/manifest.json",
        "/files/{case}/corrected.nii.gz",  # not corrected
        "/files/nobody/image.nii.gz",
        "/vendor/niivue.umd.js",
        "/..%2fserver.py",
        "/server.py",
    ],
)
def test_only_the_page_and_files_of_cases_are_served(path: str, client: FlaskClient, run: Path) -> None:
    assert get(client, path.format(case=names(client)[0])).status_code in (404, 405)


def test_only_known_decisions_on_known_cases_are_saved(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    for path in (f"/api/cases/{case_id}/correct", f"/api/cases/{case_id}/delete", "/api/cases/nobody/accept"):
        assert post(client, path).status_code == 404
    assert get(client, f"/api/cases/{case_id}/accept").status_code == 405
    assert not (run / "reviews").exists()


@pytest.mark.parametrize(
    ("base", "headers"),
    [
        ("http://evil.example.org", {}),
        (f"http://{HOST}", {"Origin": "http://evil.example.org"}),
        (f"http://{HOST}", {"Origin": "null"}),
        (f"http://{HOST}", {"Sec-Fetch-Site": "cross-site"}),
        (f"http://{HOST}", {"Sec-Fetch-Site": "same-site"}),
    ],
    ids=["another host", "another origin", "no origin", "cross-site", "another port"],
)
def test_other_hosts_and_origins_are_refused(
    base: str, headers: dict[str, str], client: FlaskClient, run: Path
) -> None:
    case_id = names(client)[0]
    path = f"/api/cases/{case_id}/accept?token={TOKEN}"
    assert client.post(path, base_url=base, headers=headers).status_code == 403
    assert not (run / "reviews").exists()
    own = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
    assert post(client, path, headers=own).status_code == 200


def test_without_the_token_everything_is_refused(run: Path) -> None:
    stranger = app_of(run).test_client()
    for path in ("/", "/?token=wrong", "/api/cases", "/niivue.js"):
        assert get(stranger, path).status_code == 403
    assert get(stranger, f"/?token={TOKEN}").headers["Set-Cookie"].endswith("; HttpOnly; Path=/; SameSite=Strict")
    assert "frame-ancestors 'none'" in get(stranger, "/").headers["Content-Security-Policy"]


def test_a_decision_on_an_earlier_mask_is_not_shown(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    post(client, f"/api/cases/{case_id}/accept")
    log = run / "reviews" / Reviews.LOG
    log.write_text(log.read_text().replace(quality(run)[case_id]["mask_sha256"], "0" * 64))
    listed = get(client, "/api/cases").json
    assert listed is not None
    assert listed[0]["decision"] is None


def test_a_wrong_folder_and_a_taken_port_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArtifactError, match="is of kind cohort but must be pseudo-labels"):
        ReviewSession(run / "cohort", run / "cohort", run / "reviews", "")
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"port {port} is not available"):
            serve(run / "cohort", run / "pseudo", run / "reviews", port)
    assert capsys.readouterr().err == ""  # werkzeug prints nothing
    assert MAX_UPLOAD_BYTES >= 2**28
