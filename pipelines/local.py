"""The pipeline on one machine through kfp.local, in subprocesses or in containers, with its progress on the screen.

The pipeline runs in a child process whose output goes to `run.log`; the stages report to files in `progress/`, which
this process shows. What the stages made is moved to its place in the working directory when all is done.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from components.pool_versions import REMOTE_VARIABLE as POOL_REMOTE_VARIABLE
from hepar.cli.options import print_whole
from hepar.errors import HeparError, Preempted
from hepar.ingest.sources import PHANTOMS, is_remote, pseudonyms
from hepar.params import Params, dump_params, dump_sections
from hepar.registry import tracking
from hepar.runtime import progress
from hepar.runtime.artifacts import MANIFEST, read_manifest
from hepar.runtime.device import SHUTDOWN_SECONDS, available_cores, sigterm
from hepar.training import checkpoint

STAGES = (
    "ingest",
    "train-liver-CT",
    "train-liver-MR",
    "pseudo-label",
    "assemble-pool",
    "train-universal",
    "evaluate",
    "register",
)
PLACES = {  # by kind, and for models by role
    "cohort": "cohort",
    "pseudo-labels": "pseudo",
    "pool": "pool",
    "report": "report",
    "registration": "registration",
    "liver teacher CT": "models/liver-ct",
    "liver teacher MR": "models/liver-mr",
    "universal": "models/universal",
}
LOG_TAIL = 30
STORE_VARIABLES = ("AWS_", "HEPAR_DICOMWEB_", "HEPAR_CACHE_")  # what stages need to reach a store


def run_in_subprocesses(source: str, params: Params, workdir: Path, image: str) -> None:
    """Run the pipeline by KFP's SubprocessRunner, in this environment; `image` is not used."""
    run(source, params, workdir, runner="subprocess", image=image)


def run_in_containers(source: str, params: Params, workdir: Path, image: str) -> None:
    """Run the pipeline by KFP's DockerRunner, each stage in a container of `image`."""
    run(source, params, workdir, runner="docker", image=image)


def run(source: str, params: Params, workdir: Path, runner: str, image: str) -> None:
    """Run all stages below `workdir` and print what came out.

    Raises HeparError naming the stage where one refuses its input or breaks; what an earlier run left in `workdir`
    stays as it was then.
    """
    workdir = workdir.resolve()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeparError(f"the working directory {workdir} cannot be made: {error.strerror}") from None
    kfp_root, board = workdir / ".kfp", workdir / "progress"
    for folder in (kfp_root, board):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    source, params = _absolute(source), _with_absolute_paths(params)
    request = {"source": source, "params": dump_sections(params), "runner": runner, "root": str(kfp_root)}
    (workdir / "params.yaml").write_text(yaml.safe_dump(dump_params(params), sort_keys=False))
    environment = _environment(workdir, params, runner, image)
    with _tracking_ready(environment, params.register_model.experiment):
        code = _run_child({**request, "environment": environment}, environment, workdir, board)
    _raise_failure(code, board, workdir / "run.log")
    _put_in_place(kfp_root, workdir)
    print_whole(scores(workdir))
    print(facts(workdir, board))


def _is_here(source: str) -> bool:
    return source not in ("", PHANTOMS) and not is_remote(source)


def _absolute(source: str) -> str:
    """A place on this disk by its full path, since stages run in other folders; all else as it is."""
    return str(Path(source).resolve()) if _is_here(source) else source


def _with_absolute_paths(params: Params) -> Params:
    ingest = params.ingest.model_copy(update={"split_from": _absolute(params.ingest.split_from)})
    pool = params.assemble_pool.model_copy(update={"reviews": _absolute(params.assemble_pool.reviews)})
    return params.model_copy(update={"ingest": ingest, "assemble_pool": pool})


def _environment(workdir: Path, params: Params, runner: str, image: str) -> dict[str, str]:
    """What the stages find in their environment, in whatever process or container they run."""
    database = f"{tracking.SQLITE}{workdir / 'mlflow.db'}"
    environment = {
        tracking.URI_VARIABLE: os.environ.get(tracking.URI_VARIABLE) or database,
        tracking.EXPERIMENT_VARIABLE: params.register_model.experiment,
        progress.FOLDER_VARIABLE: str(workdir / "progress"),
        checkpoint.FOLDER_VARIABLE: os.environ.get(checkpoint.FOLDER_VARIABLE) or str(workdir / "checkpoints"),
        tracking.COMMIT_VARIABLE: tracking.git_commit(),
        "HEPAR_IMAGE": image,
        "GOMP_SPINCOUNT": "100000",  # stages follow one another: nobody waits for the idle threads of another
    }
    if remote := os.environ.get(POOL_REMOTE_VARIABLE):
        environment[POOL_REMOTE_VARIABLE] = remote if "://" in remote else str(Path(remote).resolve())
    if runner == "docker":
        environment.update(HOME="/tmp", USER="hepar")  # the container runs as the caller, whom it does not know
    return environment


@contextmanager
def _tracking_ready(environment: Mapping[str, str], experiment: str) -> Iterator[None]:
    """Create the tracking database here, before stages that may run side by side do."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        tracking.connect(experiment)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run_child(request: Mapping[str, Any], environment: Mapping[str, str], workdir: Path, board: Path) -> int:
    """Run the pipeline in a child process and show its progress; its exit code."""
    console = Console()
    with (workdir / "run.log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.local", json.dumps(request)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        try:
            with sigterm(partial(_stop, child.pid)) as told_to_stop:
                if console.is_terminal:
                    with Live(console=console, refresh_per_second=2) as live:
                        while child.poll() is None:
                            live.update(_board(board))
                            time.sleep(0.5)
                        live.update(_board(board))
                else:
                    _print_changes(child, board)
                code = child.wait()
                if told_to_stop():
                    _wait_for_group(child.pid)
                    _raise_preempted(board)
                    raise Preempted("stopped by SIGTERM: run the same command again to go on")
                return code
        finally:
            if child.poll() is None:  # interrupted: the stages that it started end with it
                _stop(child.pid)


def _stop(group: int) -> None:
    """End the processes of the run; their trainings save where they are."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)


def _wait_for_group(group: int) -> None:
    """Until the processes of the run have ended, as long as a training may take to save its state."""
    end = time.monotonic() + SHUTDOWN_SECONDS
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.2)


def _raise_preempted(board: Path) -> None:
    for status in _statuses(board):
        if status.preempted:
            raise Preempted(f"{status.stage}: {status.message}")


def _print_changes(child: subprocess.Popen[bytes], board: Path) -> None:
    """One line for each stage that begins, goes on for a while, or ends."""
    shown: dict[str, tuple[str, float]] = {}
    alive = True
    while alive:
        alive = child.poll() is None
        for status in _statuses(board):
            state, seconds = shown.get(status.stage, ("", 0.0))
            if status.state != state or status.seconds - seconds >= progress.LINE_SECONDS:
                shown[status.stage] = (status.state, status.seconds)
                print(f"{status.stage:16} {status.state:8} {status.seconds:6.0f} s  {_steps(status)}", flush=True)
        time.sleep(0.5 if alive else 0)


def _statuses(board: Path) -> list[progress.StageStatus]:
    """The stages that have begun, in flow order."""
    found = (board / f"{name}.json" for name in STAGES)
    return [progress.StageStatus(**json.loads(path.read_text())) for path in found if path.is_file()]


def _steps(status: progress.StageStatus) -> str:
    counted = f"{status.done}/{status.total} " if status.total else ""
    return counted + status.message


def _board(board: Path) -> Table:
    table = Table("stage", "state", "seconds", "progress")
    begun = {status.stage: status for status in _statuses(board)}
    for name in STAGES:
        if name in begun:
            status = begun[name]
            table.add_row(name, status.state, f"{status.seconds:.0f}", _steps(status))
        else:
            table.add_row(name, "", "", "")
    return table


def _raise_failure(code: int, board: Path, log: Path) -> None:
    _raise_preempted(board)
    for status in _statuses(board):
        if status.state == "failed":
            if status.mendable:
                raise HeparError(f"{status.stage}: {status.message}")
            _fail(f"{status.stage} broke: {status.message}", log)
    missing = [name for name in STAGES if name not in {status.stage for status in _statuses(board)}]
    if code != 0 or missing:  # a container that dies may be reported as success
        _fail(f"the pipeline ended with exit code {code}" + (f" before {missing[0]}" if missing else ""), log)


def _fail(what: str, log: Path) -> None:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
    print(f"{tail}\nhepar: {what}; the whole output is in {log}", file=sys.stderr)
    sys.exit(1)


def _put_in_place(kfp_root: Path, workdir: Path) -> None:
    """Move each artifact from KFP's folders to its name in the working directory."""
    for manifest in sorted(kfp_root.glob(f"*/*/*/{MANIFEST}")):
        kind = json.loads(manifest.read_text())["kind"]
        parents = read_manifest(manifest.parent, kind).parents
        place = workdir / PLACES[parents["role"] if kind == "model" else kind]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        manifest.parent.rename(place)
    if missing := [place for place in PLACES.values() if not (workdir / place / MANIFEST).is_file()]:
        _fail(f"the pipeline left no {missing[0]}", workdir / "run.log")
    shutil.rmtree(kfp_root)


def scores(workdir: Path) -> Table:
    """The scores on held-out patients by modality: mean, 95 % interval, number of patients."""
    metrics = json.loads((workdir / "report" / "metrics.json").read_text())
    table = Table(title="hepar: held-out patients", show_header=True)
    for column in ("", *metrics):
        table.add_column(column, no_wrap=True)
    rows: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
        "liver Dice": lambda m: _with_interval(m["liver"]["dice"]),
        "tumour Dice": lambda m: _with_interval(m["tumour"]["dice"]),
        "lesion F1 (IoU > 0.1)": lambda m: _number(m["tumour"]["lesion_f1"]["iou>0.1"]["value"]),
    }
    for name, read in rows.items():
        table.add_row(name, *(read(values) for values in metrics.values()))
    return table


def facts(workdir: Path, board: Path) -> str:
    """The registered model, the report, and the seconds of each stage, one fact a line."""
    registered = json.loads((workdir / "registration" / "registration.json").read_text())
    reasons = f" ({'; '.join(registered['reasons'])})" if registered["reasons"] else ""
    lines = {
        "model": f"{registered['name']} version {registered['version']}, {registered['alias']}{reasons}",
        "report": str(workdir / "report" / "report.html"),
        **{f"seconds of {status.stage}": f"{status.seconds:.0f}" for status in _statuses(board)},
    }
    return "\n".join(f"{name:26} {value}" for name, value in lines.items())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_interval(estimate: Mapping[str, Any]) -> str:
    low_high = estimate["ci95"]
    interval = "" if low_high is None else f" [{low_high[0]:.3f}, {low_high[1]:.3f}]"
    return f"{_number(estimate['mean'])}{interval} n={estimate['n']}"


def execute(request: Mapping[str, Any]) -> None:
    """Run the pipeline in this process by one of KFP's local runners. Called in the child process."""
    from kfp import local

    from pipelines.two_stage import two_stage

    root = Path(request["root"])
    if request["runner"] == "docker":
        runner: Any = _docker_runner(request, local)
    else:
        runner = local.SubprocessRunner(use_venv=False)
    local.init(runner=runner, pipeline_root=str(root), raise_on_error=True)
    sections = {name: value for name, value in request["params"].items() if name in two_stage.component_spec.inputs}
    two_stage(source=request["source"], **sections)


def _docker_runner(request: Mapping[str, Any], local: Any) -> Any:
    """Containers as the caller, on the host's network, that see the working directory and the source."""
    from docker.types import Mount

    folders = {str(Path(request["root"]).parent): False}
    environment = {name: value for name, value in os.environ.items() if name.startswith(STORE_VARIABLES)}
    environment |= dict(request["environment"])
    remote = environment.get(POOL_REMOTE_VARIABLE, "")
    if remote and "://" not in remote:
        Path(remote).mkdir(parents=True, exist_ok=True)
        folders[remote] = False
    params = request["params"]
    for place in (request["source"], params["ingest"]["split_from"], params["assemble_pool"]["reviews"]):
        if _is_here(place):
            folders[place if Path(place).is_dir() else str(Path(place).parent)] = True
    if request["source"] != PHANTOMS:
        environment[pseudonyms.VARIABLE] = (
            pseudonyms.patient_key().decode()
        )  # or each container would make one of its own
    mounts = [Mount(target=path, source=path, type="bind", read_only=fixed) for path, fixed in folders.items()]
    return local.DockerRunner(
        mounts=mounts,
        environment=environment,
        network_mode="host",
        user=f"{os.getuid()}:{os.getgid()}",
        nano_cpus=available_cores() * 10**9,
    )


if __name__ == "__main__":
    execute(json.loads(sys.argv[1]))
