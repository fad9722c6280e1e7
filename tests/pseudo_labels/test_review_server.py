"""The review page's server: what it serves and saves, what it refuses, and that a person's word reaches the pool."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from hepar.cases import Cohort, LabelState
from hepar.errors import ArtifactError, DataError
from hepar.params import Params
from hepar.pool.table import Pool, PoolEntry
from hepar.pseudo_labels.review_page.server import HOST, MAX_UPLOAD, make_app, serve
from hepar.pseudo_labels.reviews import LOG, Reviews
from hepar.runtime.artifacts import read_manifest, sha256_file, writing
from hepar.stages import assemble_pool

pytestmark = pytest.mark.slow
TOKEN = "a-token"


@pytest.fixture
def run(by_kfp: Path, tmp_path: Path) -> Path:
    """A folder with the cohort and the pseudo-livers of a run."""
    for name in ("cohort", "pseudo"):
        shutil.copytree(by_kfp / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def client(run: Path) -> FlaskClient:
    """A browser that has opened the printed address once."""
    app = make_app(run / "cohort", run / "pseudo", run / "reviews", TOKEN, "an expert")
    browser = app.test_client()
    assert get(browser, f"/?token={TOKEN}").status_code == 200
    return browser


def get(client: FlaskClient, path: str, **options: Any) -> TestResponse:
    return client.get(path, base_url=f"http://{HOST}", buffered=True, **options)  # so that its file is closed


def post(client: FlaskClient, path: str, **options: Any) -> TestResponse:
    return client.post(path, base_url=f"http://{HOST}", buffered=True, **options)


def quality(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "pseudo" / "quality.parquet").set_index("case_id")


def names(client: FlaskClient) -> list[str]:
    return [item["case_id"] for item in get(client, "/api/cases").json or []]


def mask_of(run: Path, case_id: str, change: Any = None) -> bytes:
    """A mask on a case's grid as the bytes of a NIfTI file: its pseudo-liver, or what `change` makes of it."""
    image = sitk.ReadImage(str(run / "pseudo" / "masks" / case_id / "liver.nii.gz"))
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
    """The case in a pool that is assembled with the reviews."""
    assembling = params.assemble_pool.model_copy(update={"reviews": reviews})
    assemble_pool.run(run / "cohort", run / "pseudo", run / "pool", params.preprocessing, assembling)
    return next(entry for entry in Pool.load(run / "pool").entries if entry.case_id == case_id)


def test_the_queue_holds_every_pseudo_liver_the_most_doubtful_first(client: FlaskClient, run: Path) -> None:
    listed = get(client, "/api/cases").json
    assert listed is not None
    assert sorted(item["case_id"] for item in listed) == sorted(quality(run).index)
    order = {"review": 0, "reject": 1, "accept": 2}
    doubts = [(order[item["gate"]], item["signals"]["agreement"]) for item in listed]
    assert doubts == sorted(doubts)
    assert all(item["decision"] is None for item in listed)


def test_files_are_those_of_the_case(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    case = next(case for case in Cohort.load(run / "cohort") if case.case_id == case_id)
    assert get(client, f"/files/{case_id}/image.nii.gz").data == (run / "cohort" / case.image).read_bytes()
    mask = run / "pseudo" / "masks" / case_id / "liver.nii.gz"
    assert get(client, f"/files/{case_id}/liver.nii.gz").data == mask.read_bytes()


@pytest.mark.parametrize(("word", "weight", "gate"), [("accept", 1.0, "accept"), ("reject", 0.0, "reject")])
def test_a_decision_is_saved_at_once_and_reaches_the_pool(
    word: str, weight: float, gate: str, client: FlaskClient, run: Path, tiny: Params
) -> None:
    case_id = names(client)[0]
    answer = post(client, f"/api/cases/{case_id}/{word}").json
    assert answer is not None
    assert (answer["decision"]["decision"], answer["decision"]["who"]) == (word, "an expert")
    assert len((run / "reviews" / LOG).read_text().splitlines()) == 1
    found = entry(run, tiny, case_id, str(run / "reviews"))
    assert (found.liver_weight, found.gate) == (weight, gate)
    assert found.review.startswith(f"{word}ed by an expert, ")
    assert read_manifest(run / "pool", "pool").parents["reviews"] == Reviews.load(run / "reviews").hash


def test_a_corrected_mask_becomes_a_manual_label_with_its_origin(client: FlaskClient, run: Path, tiny: Params) -> None:
    case_id = names(client)[0]
    before = entry(run, tiny, case_id)
    answer = upload(client, case_id, mask_of(run, case_id)).json
    assert answer is not None
    digest = answer["decision"]["mask_sha256"]
    kept = run / "reviews" / "masks" / f"{digest}.nii.gz"
    assert sha256_file(kept) == digest
    assert get(client, f"/files/{case_id}/corrected.nii.gz").data == kept.read_bytes()
    found = entry(run, tiny, case_id, str(run / "reviews"))
    assert (found.liver_state, found.liver_weight, found.liver_origin) == (LabelState.MANUAL, 1.0, digest)
    assert found.review.startswith("corrected by an expert, ")
    assert (found.gate, found.reasons) == ("correct", quality(run).loc[case_id, "reasons"])
    assert found.key != before.key
    assert found.teacher == ""


def test_accepting_after_a_correction_is_about_the_corrected_mask(client: FlaskClient, run: Path, tiny: Params) -> None:
    case_id = names(client)[0]
    corrected = upload(client, case_id, mask_of(run, case_id)).json
    accepted = post(client, f"/api/cases/{case_id}/accept").json
    assert corrected is not None
    assert accepted is not None
    assert accepted["decision"]["mask_sha256"] == corrected["decision"]["mask_sha256"]
    assert entry(run, tiny, case_id, str(run / "reviews")).liver_state == LabelState.MANUAL
    post(client, f"/api/cases/{case_id}/reject")
    assert entry(run, tiny, case_id, str(run / "reviews")).liver_state == LabelState.UNKNOWN


def test_a_mask_whose_axes_are_mirrored_is_put_on_the_grid_of_the_image(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    answer = upload(client, case_id, mask_of(run, case_id, lambda mask: sitk.DICOMOrient(mask, "RSA"))).json
    assert answer is not None
    kept = sitk.ReadImage(str(run / "reviews" / "masks" / f"{answer['decision']['mask_sha256']}.nii.gz"))
    mask_of(run, case_id)
    given = sitk.ReadImage(str(run / "upload.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(kept), sitk.GetArrayFromImage(given))
    assert kept.GetDirection() == pytest.approx(given.GetDirection())


def test_pseudo_livers_that_were_drawn_anew_meanwhile_are_not_judged(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    with writing(run / "pseudo", "pseudo-labels", {}) as folder:
        (folder / "quality.parquet").write_bytes(b"")
    for answer in (
        post(client, f"/api/cases/{case_id}/accept"),
        get(client, f"/files/{case_id}/liver.nii.gz"),
        upload(client, case_id, b""),
    ):
        assert answer.status_code == 409
    assert not (run / "reviews").exists()


def test_nothing_is_added_to_a_list_that_cannot_be_read(client: FlaskClient, run: Path) -> None:
    (run / "reviews").mkdir()
    (run / "reviews" / LOG).write_text("no decision\n")
    assert post(client, f"/api/cases/{quality(run).index[0]}/reject").status_code == 422
    assert (run / "reviews" / LOG).read_text() == "no decision\n"


def test_a_plain_nifti_is_taken_too(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    image = sitk.ReadImage(str(run / "pseudo" / "masks" / case_id / "liver.nii.gz"))
    array = sitk.GetArrayFromImage(image)
    array[:3, :3, :3] = 1
    plain = sitk.GetImageFromArray(array)
    plain.CopyInformation(image)
    sitk.WriteImage(plain, str(run / "plain.nii"))
    assert upload(client, case_id, (run / "plain.nii").read_bytes(), "plain.nii").status_code == 200


def shifted(mask: sitk.Image) -> sitk.Image:
    mask.SetOrigin([value + 5 for value in mask.GetOrigin()])
    return mask


def turned(mask: sitk.Image) -> sitk.Image:
    mask.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    return mask


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda mask: mask[:-1], "the mask is .* but the image is "),
        (shifted, "the mask has spacing .* and origin "),
        (turned, "the mask's axes have another direction than the image's"),
        (lambda mask: sitk.Cast(mask, sitk.sitkUInt8) * 3, "a mask holds 0 and 1 only, this one has 3"),
        (lambda mask: mask * 0, "the mask is empty; reject the pseudo-liver instead"),
    ],
    ids=["size", "place", "direction", "values", "empty"],
)
def test_a_mask_that_does_not_fit_is_refused_and_nothing_is_kept(
    change: Any, said: str, client: FlaskClient, run: Path
) -> None:
    case_id = names(client)[0]
    answer = upload(client, case_id, mask_of(run, case_id, change))
    assert answer.status_code == 422
    assert answer.json is not None
    with pytest.raises(DataError, match=f"^case {case_id}: {said}"):
        raise DataError(answer.json["error"])
    assert not (run / "reviews").exists()


def test_what_is_no_volume_is_refused(client: FlaskClient, run: Path) -> None:
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
        "/files/{case}/corrected.nii.gz",  # there is none yet
        "/files/nobody/image.nii.gz",
        "/vendor/niivue.umd.js",
        "/..%2fserver.py",
        "/server.py",
    ],
)
def test_nothing_but_the_cases_files_and_the_page_is_served(path: str, client: FlaskClient, run: Path) -> None:
    assert get(client, path.format(case=names(client)[0])).status_code in (404, 405)


def test_only_known_decisions_on_known_cases_are_taken(client: FlaskClient, run: Path) -> None:
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


def test_without_the_token_there_is_nothing(run: Path) -> None:
    stranger = make_app(run / "cohort", run / "pseudo", run / "reviews", TOKEN, "an expert").test_client()
    for path in ("/", "/?token=wrong", "/api/cases", "/niivue.js"):
        assert get(stranger, path).status_code == 403
    assert get(stranger, f"/?token={TOKEN}").headers["Set-Cookie"].endswith("; HttpOnly; Path=/; SameSite=Strict")
    assert "frame-ancestors 'none'" in get(stranger, "/").headers["Content-Security-Policy"]


def test_a_decision_on_an_earlier_mask_is_not_shown_as_one_on_this(client: FlaskClient, run: Path) -> None:
    case_id = names(client)[0]
    post(client, f"/api/cases/{case_id}/accept")
    log = run / "reviews" / LOG
    log.write_text(log.read_text().replace(quality(run).loc[case_id, "mask_sha256"], "0" * 64))
    listed = get(client, "/api/cases").json
    assert listed is not None
    assert listed[0]["decision"] is None


def test_pseudo_livers_of_another_cohort_and_a_taken_port_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError, match="is of kind cohort, must be pseudo-labels"):
        make_app(run / "cohort", run / "cohort", run / "reviews", TOKEN, "")
    import socket

    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"port {port} cannot be taken"):
            serve(run / "cohort", run / "pseudo", run / "reviews", port)
    assert capsys.readouterr().err == ""  # the sentence is all
    assert MAX_UPLOAD >= 2**28
