"""The API and the page of the service.

An upload is the body of a request, without a name. Results are looked up by the id of a job, the number of a scan and
the fixed name of a file, never by a path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import ClientDisconnect

from hepar import __version__, viewer
from hepar.cases import Modality
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.prediction.folder import PredictionFolder
from hepar.runtime import whole_files
from hepar.runtime.device import available_cores
from hepar.service.access import Access
from hepar.service.jobs import DISK_FULL, Job, Jobs, JobState, QueueFull
from hepar.service.lane import Lane
from hepar.service.limits import ServiceLimits
from hepar.service.metrics import ServiceMetrics
from hepar.service.predicting import ARCHIVE, IMAGES, RESULTS
from hepar.service.uploads import ACCEPTED, HEAD_BYTES, TOO_LARGE, UploadRefused, check_apart, kind_of
from hepar.viewer.embedding import HOSTED_POLICY

STATIC = Path(__file__).parent / "static"
PAGES = {
    "service.js": STATIC / "service.js",
    "service.css": STATIC / "service.css",
    **viewer.FILES,
}
RETRY_SECONDS = 5
TIMED_OUT, FULL, GONE = 408, 503, 404
BROKEN_OFF = "the upload was broken off"
FILES = frozenset(
    (
        *(*PredictionFolder.MASKS, PredictionFolder.SEG, PredictionFolder.SR, PredictionFolder.MEASUREMENTS),
        *(PredictionFolder.SUMMARY, PredictionFolder.LESIONS, PredictionFolder.PICTURE, PredictionFolder.PAGE),
    )
)


def make_service(jobs: Jobs, lanes: list[Lane], metrics: ServiceMetrics, token: str) -> FastAPI:
    """The application of a service whose lanes work on `jobs`."""
    app = FastAPI(title="hepar", version=__version__, description=RESEARCH_USE, docs_url=None, redoc_url=None,
                  openapi_url="/api/openapi.json")  # fmt: skip
    app.add_middleware(Access, token=token)
    _answer_errors(app, metrics)
    _add_pages(app, lanes, metrics)
    _add_jobs(app, jobs, metrics)
    return app


def _answer_errors(app: FastAPI, metrics: ServiceMetrics) -> None:
    """Every error is one sentence, as JSON."""

    @app.exception_handler(StarletteError)
    async def http_error(request: Request, error: StarletteError) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def bad_value(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.exception_handler(UploadRefused)
    async def refused(request: Request, error: UploadRefused) -> Response:
        metrics.refused(error.status)
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> Response:
        metrics.refused(FULL)
        return JSONResponse({"error": str(error)}, FULL, {"Retry-After": str(RETRY_SECONDS)})


def _add_pages(app: FastAPI, lanes: list[Lane], metrics: ServiceMetrics) -> None:
    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok"

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = all(lane.is_alive() for lane in lanes) and any(lane.process.alive for lane in lanes)
        return PlainTextResponse("ready" if ready else "no process to predict runs", 200 if ready else FULL)

    @app.get("/metrics")
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def index() -> Response:
        return FileResponse(STATIC / "index.html")

    @app.get("/static/{name}")
    async def page(name: str) -> Response:
        if name not in PAGES:
            raise HTTPException(GONE, "there is no such page")
        return FileResponse(PAGES[name])


def _add_jobs(app: FastAPI, jobs: Jobs, metrics: ServiceMetrics) -> None:
    limits = jobs.limits
    checks = ThreadPoolExecutor(available_cores(), "check")  # of their own: many wait here while others are received

    def known(job_id: str) -> Job:
        job = jobs.find(job_id)
        if job is None:
            raise HTTPException(GONE, "there is no such job, or its results have been deleted")
        return job

    @app.get("/api/service")
    async def describe() -> dict[str, Any]:
        bounds = {"upload_bytes": limits.upload_bytes, "files": limits.files, "kept_seconds": limits.kept_seconds}
        return {"version": __version__, "use": RESEARCH_USE, "accepts": ACCEPTED, **bounds}

    @app.post("/api/jobs", status_code=202)
    async def create(request: Request, modality: Modality | None = None) -> dict[str, Any]:
        with _full_disk_refused():
            job = jobs.reserve(announced_bytes(request, limits))
            try:
                size_bytes = await receive(request, job, limits)
                job.modality = modality
                await asyncio.get_running_loop().run_in_executor(checks, check_apart, job.folder / job.upload, limits)
                if await request.is_disconnected():
                    raise UploadRefused(TIMED_OUT, BROKEN_OFF)
            except BaseException:
                jobs.delete(job)
                raise
        metrics.accepted(size_bytes)
        jobs.submit(job)
        return jobs.describe(job)

    @app.get("/api/jobs/{job_id}")
    async def show(job_id: str) -> dict[str, Any]:
        return jobs.describe(known(job_id))

    @app.delete("/api/jobs/{job_id}")
    async def delete(job_id: str) -> dict[str, Any]:
        jobs.delete(known(job_id))
        return {"deleted": True}

    @app.get("/api/jobs/{job_id}/" + ARCHIVE)
    async def archive(job_id: str) -> Response:
        return _file(known(job_id), ARCHIVE, "hepar-results.zip")

    @app.get("/api/jobs/{job_id}/scans/{number}/image.nii.gz")
    async def image(job_id: str, number: int) -> Response:
        return _file(known(job_id), f"{IMAGES}/{number}.nii.gz")

    @app.get("/api/jobs/{job_id}/scans/{number}/{name}")
    async def result(job_id: str, number: int, name: str) -> Response:
        job = known(job_id)
        if name not in FILES:
            raise HTTPException(GONE, "there is no such file")
        answer = _file(job, f"{RESULTS}/{number}/{name}")
        if name == PredictionFolder.PAGE:
            answer.headers["Content-Security-Policy"] = HOSTED_POLICY
        return answer


def _file(job: Job, name: str, download: str = "") -> FileResponse:
    """A file of a finished job; `name` is composed of fixed names and numbers."""
    path = job.folder / name
    if job.state != JobState.DONE or not path.is_file():
        raise HTTPException(GONE, "there is no such file")
    return FileResponse(path, filename=download or None)


@contextmanager
def _full_disk_refused() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in whole_files.FULL:
            raise
        raise QueueFull(DISK_FULL) from None


def announced_bytes(request: Request, limits: ServiceLimits) -> int:
    """How large the body of a request is, or may be if it does not say so. Raises UploadRefused if it is too large."""
    length = request.headers.get("Content-Length", "")
    if not length.isdecimal():
        return limits.upload_bytes
    if int(length) > limits.upload_bytes:
        raise UploadRefused(TOO_LARGE, f"the upload has {length} bytes but may have {limits.upload_bytes}")
    return int(length)


async def receive(request: Request, job: Job, limits: ServiceLimits) -> int:
    """Store the body of a request as the upload of a job, and return its bytes.

    Raises UploadRefused if it is of no accepted kind, too large, too slow or broken off.
    """
    partial, received = job.folder / "upload", 0
    try:
        async with asyncio.timeout(limits.upload_seconds):
            with partial.open("wb") as out:
                async for chunk in request.stream():
                    received += len(chunk)
                    if received > limits.upload_bytes:
                        raise UploadRefused(
                            TOO_LARGE, f"the upload has more than the {limits.upload_bytes} bytes allowed"
                        )
                    await asyncio.to_thread(out.write, chunk)
                    job.unwritten -= len(chunk)
        job.unwritten = 0
    except TimeoutError:
        raise UploadRefused(TIMED_OUT, f"the upload takes longer than {limits.upload_seconds:.0f} s") from None
    except ClientDisconnect:
        raise UploadRefused(TIMED_OUT, BROKEN_OFF) from None
    with partial.open("rb") as stored:
        kind = kind_of(stored.read(HEAD_BYTES))
    job.upload = f"upload{kind}"
    partial.rename(job.folder / job.upload)
    return received
