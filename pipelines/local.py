"""The pipeline on one machine through kfp.local, in subprocesses or in containers.

It runs in a child process whose output goes to `run.log`, while this process shows the stages' progress. When all have
finished, their artifacts are moved to their places in the working directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import yaml

from hepar.cli.tables import print_table
from hepar.errors import HeparError, Preempted
from hepar.ingest.sources.dicomweb import without_identifiers
from hepar.params import Params, dump_params, dump_sections
from hepar.registry import tracking
from hepar.runtime import progress
from hepar.runtime.commit import COMMIT_VARIABLE, git_commit
from hepar.runtime.device import SHUTDOWN_SECONDS, catch_sigterm
from hepar.runtime.environment import IMAGE_VARIABLE
from hepar.runtime.redaction import QUERY_VARIABLE, redact
from hepar.runtime.unfinished import CHECKPOINTS_VARIABLE
from pipelines.execution import ONE_MACHINE_VARIABLE, PARAMS_VARIABLE, is_local
from pipelines.places import absolute_variables
from pipelines.results import PARAMS_FILE, finish_placing, place_results, score_table, summary
from pipelines.run_lock import only_run
from pipelines.stage_progress import STAGES, read_statuses, show_while

STATUS_FOLDER = "progress"
LOG_TAIL = 30  # lines of the log that are printed on a failure


def run_in_subprocesses(params: Params, workdir: Path, image: str) -> None:
    """Run the pipeline by KFP's SubprocessRunner, in this environment; `image` is not used."""
    run(params, workdir, runner="subprocess", image=image)


def run_in_containers(params: Params, workdir: Path, image: str) -> None:
    """Run the pipeline by KFP's DockerRunner, each stage in a container of `image`."""
    run(params, workdir, runner="docker", image=image)


def run(params: Params, workdir: Path, runner: str, image: str) -> None:
    """Run all stages below `workdir` and print the scores, the registered model and the seconds of each stage.

    Results of an earlier run in `workdir` are replaced only when all stages have finished, and then all together.
    Raises HeparError if another run is working in `workdir`, or naming the stage if one refuses its input, Preempted if
    SIGTERM arrives; exits with code 1 and the end of the log if one fails.
    """
    workdir = workdir.resolve()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeparError(f"the working directory {workdir} cannot be created: {error.strerror}") from None
    with only_run(workdir) as inherited:
        finish_placing(workdir)
        _run_stages(params, workdir, runner, image, inherited)
        print_table(score_table(workdir))
        print(summary(workdir, read_statuses(workdir / STATUS_FOLDER)))


def _run_stages(params: Params, workdir: Path, runner: str, image: str, inherited: tuple[int, int]) -> None:
    """Run all stages and put their results in place; the child process inherits the descriptors."""
    kfp_root, status_folder, log = workdir / ".kfp", workdir / STATUS_FOLDER, workdir / "run.log"
    for folder in (kfp_root, status_folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    params, query = _without_identifiers(with_absolute_paths(params))
    (kfp_root / PARAMS_FILE).write_text(yaml.safe_dump(dump_params(params), sort_keys=False))
    environment = {**_environment(workdir, status_folder, runner, image), **query}
    environment[PARAMS_VARIABLE] = str(kfp_root / PARAMS_FILE)
    request = {
        "params": dump_sections(params),
        "runner": runner,
        "root": str(kfp_root),
        "environment": environment,
        "lifeline": inherited[0],
    }
    with _tracking_database(environment):
        code = _run_child(json.dumps(request), environment, log, status_folder, inherited)
    _check_stages(code, status_folder, log)
    if missing := place_results(kfp_root, workdir):
        _fail(f"the pipeline did not write {missing[0]}", log)
    shutil.rmtree(kfp_root)


def with_absolute_paths(params: Params) -> Params:
    """The params with absolute local paths, because stages run in other folders."""
    ingest = params.ingest.model_copy(update={"split_from": _absolute(params.ingest.split_from)})
    pool = params.assemble_pool.model_copy(update={"reviews": _absolute(params.assemble_pool.reviews)})
    return params.model_copy(update={"source": _absolute(params.source), "ingest": ingest, "assemble_pool": pool})


def _without_identifiers(params: Params) -> tuple[Params, dict[str, str]]:
    """The params without values that identify a patient, and the environment variable that hands them to the stages."""
    source, query = without_identifiers(params.source)
    if not query:
        return params, {}
    given = os.environ.get(QUERY_VARIABLE)
    return params.model_copy(update={"source": source}), {QUERY_VARIABLE: f"{given}&{query}" if given else query}


def _absolute(place: str) -> str:
    return str(Path(place).resolve()) if is_local(place) else place


def _environment(workdir: Path, status_folder: Path, runner: str, image: str) -> dict[str, str]:
    """Environment variables of the stages, in any process or container."""
    environment = {
        tracking.URI_VARIABLE: f"{tracking.SQLITE}{workdir / tracking.DATABASE}",
        CHECKPOINTS_VARIABLE: str(workdir / "checkpoints"),
        **absolute_variables(),
        progress.FOLDER_VARIABLE: str(status_folder),
        COMMIT_VARIABLE: git_commit(),
        IMAGE_VARIABLE: image,
        ONE_MACHINE_VARIABLE: "1",
        "GOMP_SPINCOUNT": "100000",  # stages run one after another, so idle threads may spin without holding up others
    }
    if runner == "docker":
        environment.update(HOME="/tmp", USER="hepar")  # the container has no account for the caller's user id
    return environment


@contextmanager
def _tracking_database(environment: Mapping[str, str]) -> Iterator[None]:
    """Connect to the tracking server before the first stage starts, so that a wrong address is noticed at once."""
    before = dict(os.environ)
    os.environ.update(environment)
    os.environ.pop(tracking.RUN_VARIABLE, None)  # it names one run, but each training needs its own
    try:
        tracking.connect()
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run_child(
    request: str, environment: Mapping[str, str], log: Path, status_folder: Path, inherited: tuple[int, int]
) -> int:
    """Run the pipeline in a child process and show its progress; returns the exit code."""
    with log.open("w") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.execution"],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[1],
            pass_fds=inherited,
            start_new_session=True,
        )
        try:
            _write_request(child, request)
            with catch_sigterm(partial(_stop_group, child.pid)) as stopped:
                show_while(lambda: child.poll() is None, status_folder)
                code = child.wait()
                if stopped():
                    _wait_for_group(child.pid)
                    _raise_preempted(status_folder)
                    raise Preempted("stopped by SIGTERM: run the same command again to resume")
                return code
        finally:
            if child.poll() is None:  # interrupted: stop the stages too
                _stop_group(child.pid)


def _write_request(child: subprocess.Popen[bytes], request: str) -> None:
    """Hand over the request by a pipe, because every user of the machine can read a command line."""
    assert child.stdin is not None
    with suppress(BrokenPipeError), child.stdin as pipe:  # the log says why the child has ended
        pipe.write(request.encode())


def _stop_group(group: int) -> None:
    """Send SIGTERM to the child and the stages that it started; trainings then save a checkpoint."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)


def _wait_for_group(group: int) -> None:
    """Wait until the child and its stages have ended, at most as long as a training may take to save a checkpoint."""
    end = time.monotonic() + SHUTDOWN_SECONDS
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.2)


def _check_stages(code: int, status_folder: Path, log: Path) -> None:
    """Raise or exit if a stage was stopped, failed or never started."""
    _raise_preempted(status_folder)
    statuses = read_statuses(status_folder)
    for status in statuses:
        if status.state == "failed":
            if status.user_error:
                raise HeparError(f"{status.stage}: {status.message}")
            _fail(f"{status.stage} failed: {status.message}", log)
    missing = [name for name in STAGES if name not in {status.stage for status in statuses}]
    if code != 0 or missing:  # KFP may report a container that died as a success
        _fail(f"the pipeline ended with exit code {code}" + (f" before {missing[0]}" if missing else ""), log)


def _raise_preempted(status_folder: Path) -> None:
    for status in read_statuses(status_folder):
        if status.preempted:
            raise Preempted(f"{status.stage}: {status.message}")


def _fail(reason: str, log: Path) -> NoReturn:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
    print(redact(f"{tail}\nhepar: {reason}; the full log is {log}"), file=sys.stderr)
    sys.exit(1)
