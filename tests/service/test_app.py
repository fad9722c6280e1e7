"""The API of the service without a process that predicts: what it takes, what it refuses, and what it gives out."""

from __future__ import annotations

import gzip
import http.client
import io
import re
import shutil
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from served_jobs import served_jobs
from toy_case import write_noise
from waiting import wait_until

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.prediction.folder import PredictionFolder
from hepar.service import app, connections, server, uploads
from hepar.service.access import TOKEN_VARIABLE
from hepar.service.jobs import DISK_FULL, Job, Jobs, JobState, QueueFull
from hepar.service.limits import ServiceLimits
from hepar.service.predicting import Served
from hepar.service.server import Address, serve_predictions
from hepar.service.unpacking import unpack_numbered
from hepar.service.uploads import UploadKind, kind_of

TOKEN = "a-token-of-the-tests"
LIMITS = replace(ServiceLimits(), upload_bytes=2**24, unpacked_bytes=2**26, files=1000, waiting=2, free_bytes=0)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    (tmp_path / "jobs").mkdir()
    return Jobs(tmp_path / "jobs", LIMITS)


class Client:
    """Requests to a service, with the token unless headers say otherwise."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.session = requests.Session()

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {TOKEN}", **options.pop("headers", {})}
        return self.session.request(method, f"{self.address}{path}", headers=headers, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, content: bytes | Iterator[bytes], **options: Any) -> requests.Response:
        return self.request("POST", path, data=content, **options)


@pytest.fixture
def client(jobs: Jobs) -> Iterator[Client]:
    with served_jobs(jobs, TOKEN) as address:
        opened = Client(address)
        yield opened
        opened.session.close()


def scan(folder: Path) -> bytes:
    write_noise(folder / "scan.nii.gz")
    return (folder / "scan.nii.gz").read_bytes()


def with_size(raw: bytes, *size_xyz: int) -> bytes:
    """The same NIfTI file, whose header claims another size."""
    return gzip.compress(raw[:40] + struct.pack("<8h", 3, *size_xyz, 1, 1, 1, 1) + raw[56:])


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def link() -> bytes:
    member = zipfile.ZipInfo("IM0001")
    member.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, "/etc/passwd")
    return buffer.getvalue()


def encrypted() -> bytes:
    """A zip whose flags say so, in both places."""
    content = bytearray(zipped({"IM0001": b"x" * 99}, zipfile.ZIP_STORED))
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + at] |= 1
    return bytes(content)


DETACHED = (
    b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\nendian: little\ndata file: ../../secret\n\n"
)
MALFORMED: dict[str, tuple[Callable[[bytes], bytes], int, str]] = {
    "nothing": (lambda _: b"", 415, "is not NIfTI"),
    "wrong magic": (lambda _: b"MZ" + bytes(1000), 415, "is not NIfTI"),
    "truncated gzip": (lambda raw: gzip.compress(raw)[:-2000], 422, "the upload is truncated"),
    "damaged gzip": (lambda raw: gzip.compress(raw)[:-8] + bytes(8), 422, "the upload is damaged"),
    "gzip bomb": (lambda raw: gzip.compress(raw[:352] + bytes(2**25)), 422, "holds more than the"),
    "header of 1 TiB": (lambda raw: with_size(raw, 8192, 8192, 8192), 413, "8192×8192×8192 voxels of 2 bytes"),
    "header of no size": (lambda raw: with_size(raw, 16, 0, 16), 422, "its size is"),
    "no zip behind its magic": (lambda _: b"PK\x03\x04" + bytes(100), 422, "the zip is damaged"),
    "zip bomb": (lambda _: zipped({"IM0001": bytes(2**27)}), 413, "unpacks to 134217728 bytes"),
    "10,000 files": (lambda _: zipped(dict.fromkeys(map(str, range(10_000)), b"")), 413, "holds 10000 files"),
    "a name that leads out": (lambda _: zipped({"a": b"", "../../b": b"x"}), 422, "member 2 leaves the folder"),
    "an absolute name": (lambda _: zipped({"/etc/cron.d/x": b"x"}), 422, "member 1 leaves the folder"),
    "a link": (lambda _: link(), 422, "member 1 is a link"),
    "encrypted": (lambda _: encrypted(), 422, "the zip is encrypted"),
    "voxels in another file": (lambda _: DETACHED, 422, "names other files for its voxels"),
}


def test_what_is_malformed_is_refused_with_a_sentence_and_leaves_nothing(
    client: Client, jobs: Jobs, tmp_path: Path
) -> None:
    raw = gzip.decompress(scan(tmp_path))
    for name, (make, status, phrase) in MALFORMED.items():
        answer = client.post("/api/jobs", content=make(raw))
        assert (name, answer.status_code) == (name, status), answer.text
        sentence = answer.json()["error"]
        assert phrase in sentence, name
        assert "\n" not in sentence
        assert str(tmp_path) not in sentence
        assert list(jobs.root.iterdir()) == [], name
        assert client.get("/healthz").status_code == 200
    assert f'hepar_uploads_refused_total{{status="415"}} {2.0}' in client.get("/metrics").text
    assert client.post("/api/jobs?modality=PET", content=b"x").status_code == 422


def test_an_upload_that_announces_too_much_is_refused_before_it_is_sent(client: Client, jobs: Jobs) -> None:
    connection = begin_upload(client, LIMITS.upload_bytes + 1)
    answer = connection.getresponse()
    assert (answer.status, answer.read().decode()) == (
        413,
        '{"error":"the upload has 16777217 bytes but may have 16777216"}',
    )
    connection.close()
    assert list(jobs.root.iterdir()) == []


def begin_upload(client: Client, announced: int, content: bytes = b"") -> http.client.HTTPConnection:
    """Announce an upload, and send the first bytes of it."""
    connection = http.client.HTTPConnection(client.address.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/api/jobs")
    connection.putheader("Authorization", f"Bearer {TOKEN}")
    connection.putheader("Content-Length", str(announced))
    connection.endheaders(content or None)
    return connection


def test_the_disk_has_room_for_all_uploads_under_way_or_refuses_the_next(tmp_path: Path) -> None:
    most = shutil.disk_usage(tmp_path).free * 6 // 10  # one has room, two have not
    (tmp_path / "jobs").mkdir()
    jobs = Jobs(tmp_path / "jobs", replace(LIMITS, upload_bytes=most, waiting=9))
    content = scan(tmp_path)
    with served_jobs(jobs, TOKEN) as address:
        client = Client(address)
        first = begin_upload(client, most, content)
        wait_until(lambda: bool(list(jobs.root.iterdir())))
        refused = client.post("/api/jobs", content=iter([content]))  # which does not say how large it is
        assert (refused.status_code, refused.json()) == (503, {"error": DISK_FULL})
        assert refused.headers["Retry-After"] == "5"
        second = begin_upload(client, most)
        assert second.getresponse().status == 503
        second.close()
        assert client.post("/api/jobs", content=content).status_code == 202  # a small one has room
        first.close()
        wait_until(lambda: len(list(jobs.root.iterdir())) == 1)
        for _ in range(2):  # what is stored counts no longer
            assert client.post("/api/jobs", content=iter([content])).status_code == 202
        client.session.close()


def test_an_upload_that_fills_the_disk_is_refused_and_leaves_nothing(
    client: Client, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = jobs.reserve

    def without_room(upload_bytes: int) -> Job:
        job = reserve(upload_bytes)
        (job.folder / "upload").symlink_to("/dev/full")  # every write to it fails
        return job

    content = scan(tmp_path)
    monkeypatch.setattr(jobs, "reserve", without_room)
    for body in (content, content[:100]):  # the second is written when the file is closed
        refused = client.post("/api/jobs", content=body)
        assert (refused.status_code, refused.json()) == (503, {"error": DISK_FULL})
        assert list(jobs.root.iterdir()) == []
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr("hepar.service.jobs.ID_BYTES", 300)  # no folder may have so long a name
        with pytest.raises(OSError, match="File name too long"):
            jobs.reserve(0)
    assert jobs.count(JobState.UPLOADING) == 0
    assert client.post("/api/jobs", content=content).status_code == 202


def test_an_upload_that_is_cancelled_while_it_is_checked_becomes_no_job(
    client: Client, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checking, cancelled = threading.Event(), threading.Event()

    def check(upload: Path, limits: ServiceLimits) -> None:
        assert upload.is_file()
        checking.set()
        assert cancelled.wait(60)

    monkeypatch.setattr(app, "check_apart", check)
    content = scan(tmp_path)
    connection = begin_upload(client, len(content), content)
    assert checking.wait(60)
    connection.close()
    time.sleep(0.5)  # the service learns of it
    cancelled.set()
    wait_until(lambda: jobs.count(JobState.UPLOADING) == 0)
    assert jobs.count(JobState.QUEUED) == 0
    assert list(jobs.root.iterdir()) == []
    assert 'hepar_uploads_refused_total{status="408"} 1.0' in client.get("/metrics").text


def test_as_many_uploads_are_checked_at_a_time_as_there_are_cores(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=20)

    @contextmanager
    def check_together(*_: object) -> Iterator[Iterator[None]]:
        both.wait()
        yield iter([None])

    monkeypatch.setattr(app, "available_cores", lambda: 2)
    monkeypatch.setattr(uploads, "parallel_map", check_together)
    content = scan(tmp_path)
    with served_jobs(jobs, TOKEN) as address, ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda _: Client(address).post("/api/jobs", content=content).status_code, range(2))
        assert list(answers) == [202, 202]


def test_an_upload_waits_under_a_name_of_the_service_until_there_is_no_room(
    client: Client, jobs: Jobs, tmp_path: Path
) -> None:
    content = scan(tmp_path)
    answer = client.post("/api/jobs?modality=MR", content=content, headers={"Content-Disposition": 'filename="../x"'})
    assert answer.status_code == 202
    first = answer.json()
    assert (first["state"], first["ahead"], first["use"][:17]) == ("queued", 0, "Research use only")
    assert client.post("/api/jobs", content=content).json()["ahead"] == 1
    full = client.post("/api/jobs", content=content)
    assert (full.status_code, full.headers["Retry-After"]) == (503, "5")
    job = jobs.take()
    assert job is not None
    assert (job.id, job.modality, job.state) == (first["id"], Modality.MR, JobState.RUNNING)
    assert [path.name for path in job.folder.iterdir()] == ["upload.nii.gz"]
    assert (job.folder / job.upload).read_bytes() == content
    assert client.get(f"/api/jobs/{job.id}").json()["state"] == "running"
    assert client.request("DELETE", f"/api/jobs/{job.id}").status_code == 200
    assert job.deleted
    assert job.folder.exists()  # the lane still works in it
    jobs.finish(job, JobState.DONE)
    assert not job.folder.exists()


def finished(jobs: Jobs) -> Job:
    """A job with the results of one scan."""
    job = jobs.reserve(0)
    jobs.submit(job)
    assert jobs.take() is job
    results = job.folder / "results" / "1"
    results.mkdir(parents=True)
    for name in (PredictionFolder.MEASUREMENTS, PredictionFolder.PAGE, "manifest.json"):
        (results / name).write_text(name)
    (job.folder / "results.zip").write_text("zip")
    jobs.finish(job, JobState.DONE)
    return job


def test_results_are_given_out_by_fixed_names_alone(client: Client, jobs: Jobs) -> None:
    job = finished(jobs)
    found = client.get(f"/api/jobs/{job.id}/scans/1/{PredictionFolder.MEASUREMENTS}")
    assert found.text == PredictionFolder.MEASUREMENTS
    page = client.get(f"/api/jobs/{job.id}/scans/1/{PredictionFolder.PAGE}")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert client.get(f"/api/jobs/{job.id}/results.zip").text == "zip"
    elsewhere = ("manifest.json", "..%2f..%2fresults.zip", "%2e%2e", "image.nii.gz", PredictionFolder.SEG)
    paths = [f"/api/jobs/{job.id}/scans/1/{name}" for name in elsewhere]
    paths += [f"/api/jobs/{job.id}/scans/2/{PredictionFolder.PAGE}", "/api/jobs/../results.zip", "/static/..%2fapp.py"]
    assert {client.get(path).status_code for path in paths} == {404}


def test_results_are_deleted_after_their_time(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, replace(LIMITS, kept_seconds=0.0))
    job = finished(jobs)
    assert job.folder.exists()
    jobs.sweep()
    assert jobs.find(job.id) is None
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_results_make_room_for_a_new_job_and_open_jobs_never_do(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, replace(LIMITS, kept=3))
    waiting, older, newer = jobs.reserve(0), finished(jobs), finished(jobs)
    jobs.submit(waiting)
    last = jobs.reserve(0)
    assert [jobs.find(job.id) is job for job in (waiting, older, newer, last)] == [True, False, True, True]
    assert {path.name for path in tmp_path.iterdir()} == {waiting.id, newer.id, last.id}
    with pytest.raises(QueueFull, match=r"^2 jobs wait: try again later$"):
        jobs.reserve(0)
    assert jobs.find(newer.id) is newer
    for job in (waiting, last):
        jobs.finish(job, JobState.DONE)
    jobs.reserve(0)
    assert jobs.find(newer.id) is None


def test_strangers_and_other_origins_are_refused(client: Client) -> None:
    for path in ("/", "/api/service", "/metrics", "/static/niivue.js"):
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/healthz", headers={"Authorization": ""}).status_code == 200
    assert client.get("/readyz").status_code == 503  # nothing predicts
    origins = ("http://evil.example.org", "http://[", "null")
    for headers in (*({"Origin": origin} for origin in origins), {"Sec-Fetch-Site": "cross-site"}):
        assert client.post("/api/jobs", content=b"x", headers=headers).status_code == 403
    opened = client.get(f"/?token={TOKEN}", headers={"Authorization": ""})
    assert opened.headers["Set-Cookie"].endswith(f"={TOKEN}; HttpOnly; Path=/; SameSite=Strict")
    assert "frame-ancestors 'none'" in opened.headers["Content-Security-Policy"]
    assert client.get("/api/service", headers={"Authorization": ""}).status_code == 200  # by the cookie
    client.session.cookies.clear()
    login = "Basic dXNlcjpwYXNzd29yZA=="  # that a browser sends to a proxy before the service, and so to both
    assert client.get("/api/service", headers={"Authorization": login}).status_code == 401
    assert client.get(f"/?token={TOKEN}", headers={"Authorization": login}).status_code == 200
    assert client.get("/api/service", headers={"Authorization": login}).status_code == 200  # by the cookie
    assert (
        client.get("/api/service", headers={"Authorization": "Bearer wrong"}).status_code == 401
    )  # for all the cookie
    client.session.cookies.clear()
    assert client.get("/api/service", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    assert client.get("/api/service", headers={"Authorization": TOKEN}).status_code == 401


def test_a_connection_without_a_request_is_closed_and_a_slow_upload_is_not(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with served_jobs(jobs, TOKEN) as address:
        client = Client(address)
        place = ("127.0.0.1", int(address.rpartition(":")[2]))
        silent, partial, again = (socket.create_connection(place, timeout=30) for _ in range(3))
        slow = begin_upload(client, 4, b"no")
        partial.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
        again.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert again.recv(2**16).startswith(b"HTTP/1.1 200")
        again.sendall(b"G")
        for waiting in (silent, partial, again):
            with waiting, waiting.makefile("rb") as received:
                assert received.read() in (b"", b"ok")  # the service has closed it
        slow.send(b"ne")
        assert slow.getresponse().status == 415
        slow.close()
        client.session.close()


def test_an_address_of_ipv6_has_brackets_in_urls() -> None:
    assert f"http://{Address('::1', 8000)}/" == "http://[::1]:8000/"
    assert f"http://{Address('127.0.0.1', 8000)}/" == "http://127.0.0.1:8000/"
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=re.escape(f"[::1]:{port} is not available")):
            serve_predictions(Served("model"), Address("::1", port), LIMITS, print)


@pytest.mark.parametrize("given", [TOKEN, ""])
def test_a_token_of_the_environment_is_not_printed(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, given)
    monkeypatch.setattr(server, "_running", lambda *_: nullcontext())
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    addresses: list[str] = []
    serve_predictions(Served("model"), Address(), LIMITS, addresses.append)
    shown = r"\$HEPAR_SERVE_TOKEN" if given else r"[\w-]{32}"
    assert re.fullmatch(rf"http://127\.0\.0\.1:\d+/\?token={shown}", addresses[0])


def test_a_zip_is_unpacked_under_numbers_and_masks_stay_masks(tmp_path: Path) -> None:
    archive = tmp_path / "upload.zip"
    names = ["GRIMALDI/IM0001", "GRIMALDI/IM0002", "GRIMALDI/Liver/page.html", "a" * 200 + "/x" * 40, "s.NII.GZ"]
    archive.write_bytes(zipped({name: name.encode() for name in names}))
    unpack_numbered(archive, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")): path.read_text() for path in (tmp_path / "out").rglob("0*")}
    places = ("folder-1/000001", "folder-1/000002", "liver-2/000003", "folder-3/000004", "folder-4/000005.nii.gz")
    assert found == dict(zip(places, names, strict=True))
    damaged = bytearray(zipped({"a": b"x" * 1000}, zipfile.ZIP_STORED))
    damaged[200] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(DataError, match="a file in it cannot be unpacked"):
        unpack_numbered(archive, tmp_path / "damaged")


def test_kinds_are_told_by_content() -> None:
    heads = {
        UploadKind.PACKED_NIFTI: b"\x1f\x8b",
        UploadKind.ZIP: b"PK\x03\x04",
        UploadKind.NRRD: b"NRRD0005",
        UploadKind.METAIMAGE: b"ObjectType = Image",
        UploadKind.DICOM: bytes(128) + b"DICM",
        UploadKind.NIFTI: bytes(344) + b"n+1\0",
    }
    assert {kind_of(head): head for head in heads.values()} == heads
