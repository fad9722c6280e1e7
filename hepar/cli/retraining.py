"""The commands `retrain` and `watch`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hepar.cli.lineage import trace
from hepar.cli.messages import print_message
from hepar.cli.options import PARAMS, Layout, ParamsFile, Source, SplitFrom, load_with_options
from hepar.cli.pool import Remote
from hepar.cli.stages import load_outcome, load_runner
from hepar.runtime.environment import DEFAULT_IMAGE

if TYPE_CHECKING:
    from hepar.params import Params
    from hepar.registry.lineage import Lineage
    from hepar.retraining.looking import Look
    from hepar.retraining.submission import Submission
    from hepar.retraining.watching import Seen

PANEL = "Models"
NO = 3  # the exit code of `retrain` if nothing is to be trained
REFUSED = 4  # the same, until a person looks at the new labels
Workdir = Annotated[Path, typer.Option(help="Folder of `hepar run`; looks are kept in its subfolder retraining.")]
Runner = Annotated[
    str,
    typer.Option(
        help="Where the training runs: 'subprocess' in this environment, 'docker' in containers, 'cluster' on KFP,"
        " 'submit' there without waiting. The last two need build/two_stage.yaml, written by 'make compile', and"
        " KF_PIPELINES_ENDPOINT."
    ),
]
Image = Annotated[str, typer.Option(help="Image for the docker runner.")]

retraining_app = typer.Typer()


@retraining_app.command(rich_help_panel=PANEL)
def retrain(
    source: Source = None,
    workdir: Workdir = Path("runs/latest"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained and why; train nothing.")] = (
        False
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
    runner: Runner = "subprocess",
    image: Image = DEFAULT_IMAGE,
    layout: Layout = None,
    split_from: SplitFrom = None,
    remote: Remote = "",
    params: ParamsFile = PARAMS,
) -> None:
    """Train again if the source, the labels or the champion's scores give a reason; exit code 0 yes, 3 no, 4 refused.

    The training is that of 'hepar run'. This command waits for it, unless the runner only submits it to a cluster. One
    state is trained once: the answer is also no, with the reason, if it has been trained or is being trained.
    """
    from hepar.retraining.folder import LookBusy

    job = _Job(load_with_options(params, source, layout, split_from), workdir, runner, image, remote)
    aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    try:
        with job.folder.hold(), aside:  # the runner prints scores
            found = job.plan() if dry_run else job.look()
            why_not = ""
            if found.decision.retrain:
                why_not = job.why_not(found) if dry_run else job.train(found, lambda: False)
    except LookBusy as busy:
        print_message(str(busy))
        raise typer.Exit(NO) from None
    trains = found.decision.retrain and not why_not
    if as_json:
        answer = {"retrain": trains, "submitted": trains and not dry_run, "why_not": why_not}
        print(json.dumps({**found.as_json(), **answer}, indent=2))
    else:
        print("\n".join(decision_lines(found, why_not)))
    if not trains:
        raise typer.Exit(REFUSED if found.decision.refused else NO)


@retraining_app.command(rich_help_panel=PANEL)
def watch(
    source: Source = None,
    workdir: Workdir = Path("runs/latest"),
    runner: Runner = "subprocess",
    image: Image = DEFAULT_IMAGE,
    layout: Layout = None,
    split_from: SplitFrom = None,
    remote: Remote = "",
    params: ParamsFile = PARAMS,
) -> None:
    """Look as 'hepar retrain' does, again and again; one line a look, until Ctrl-C or SIGTERM."""
    from hepar.retraining.watching import Backoff, Seen, watch_source

    job = _Job(load_with_options(params, source, layout, split_from), workdir, runner, image, remote)
    last: list[str] = []

    def look_once(stopped: Callable[[], bool]) -> Seen:
        with job.folder.hold():
            found = job.look()
            why_not = ""
            if found.decision.retrain:
                why_not = "SIGTERM arrived" if stopped() else job.train(found, stopped)
        text, before = one_line_of(found, why_not, job.registered), last[-1:]
        last[:] = [found.state]
        return Seen(text, changed=before != last)

    shortest, longest = job.params.retrain.look_seconds
    watch_source(look_once, Backoff(shortest, longest), lambda line: print(line, flush=True))


class _Job:
    """The params and the places of looks and trainings."""

    def __init__(self, params: Params, workdir: Path, runner: str, image: str, remote: str) -> None:
        from hepar.registry import tracking
        from hepar.retraining.folder import RetrainingFolder

        self.params, self.workdir, self.image, self.remote = params, workdir.resolve(), image, remote
        self.runner, self.outcome = load_runner(runner), load_outcome(runner)
        self.folder = RetrainingFolder.of_workdir(self.workdir)
        self.registered = ""  # by the last training, as far as it has ended
        database = f"{tracking.SQLITE}{self.workdir / tracking.DATABASE}"  # as the runners have it
        os.environ[tracking.URI_VARIABLE] = os.environ.get(tracking.URI_VARIABLE) or database

    def plan(self) -> Look:
        """A look that is not kept and tells nobody, so that the next one does."""
        from hepar.retraining.looking import look

        return look(self.params, self.folder, self._trace, keep=False)

    def look(self) -> Look:
        """A look that is kept; a refusal is told."""
        from hepar.retraining.looking import look

        before = self.folder.last_look().get("state")
        found = look(self.params, self.folder, self._trace)
        if found.decision.refused and found.state != before:
            self._tell_refusal(found)
        return found

    def _tell_refusal(self, found: Look) -> None:
        """Send a refusal to HEPAR_NOTIFY_URL, if it is set, once for each state: somebody has to look at the masks."""
        from hepar.runtime.notification import Notification, send

        subject = f"new labels for {self.params.register_model.model_name} are refused"
        if problem := send(Notification("retraining", "REFUSED", subject, found.decision.refused)):
            print_message(f"notify: {problem}")

    def _trace(self, uri: str) -> Lineage:
        return trace(uri, [self.workdir], self.remote)

    def train(self, found: Look, stopped: Callable[[], bool]) -> str:
        """Train the state of a look; returns why it is not trained, empty if it was.

        `stopped` tells whether SIGTERM has arrived before.
        """
        from hepar.retraining.submission import still_running, submit

        return submit(self._submission(found), lambda: self._run(found), self.outcome or still_running, stopped)

    def why_not(self, found: Look) -> str:
        """Why `train` would not train the state of a look, by the attempts so far; empty if it would."""
        from hepar.retraining.submission import still_running, why_not_now

        return why_not_now(self._submission(found), self.outcome or still_running)

    def _submission(self, found: Look) -> Submission:
        from hepar.retraining.submission import Submission, place_of

        return Submission(
            state=found.state,
            model=self.params.register_model.model_name,
            experiment=self.params.experiment,
            place=place_of(self.workdir),
            reasons=found.decision.reasons,
            max_resubmissions=self.params.retrain.max_resubmissions,
            basis=found.basis,
        )

    def _run(self, found: Look) -> str | None:
        """Run the pipeline and tag the version that it registers here; returns the id of a run on a cluster."""
        from hepar.registry.model_registry import RegisteredModel
        from hepar.registry.registration import Registration
        from hepar.registry.tracking import connect, mlflow_errors
        from hepar.retraining.submission import registered_by, version_tags

        self.registered = ""
        elsewhere: str | None = self.runner(params=self.params, workdir=self.workdir, image=self.image)
        if elsewhere is not None:
            self.registered = registered_by(self.params.register_model.model_name, elsewhere)
            return elsewhere
        made = Registration.load(self.workdir / Registration.KIND)
        tags = version_tags(found.state, found.decision.reasons)
        with mlflow_errors():
            RegisteredModel(connect(), made.name).tag_version(made.version, tags)
        self.registered = made.summary
        return None


def decision_lines(found: Look, why_not: str) -> list[str]:
    """A decision for people: yes or no, the reasons, what refuses it, and the checks that found none.

    It ends with `why_not`, why earlier attempts do not let the state be trained, unless that is empty.
    """
    decision = found.decision
    lines = [f"retrain: {'yes' if decision.retrain and not why_not else 'no'}"]
    lines.append(f"champion: {found.champion or 'none'}")
    lines += [f"refused: {reason}" for reason in decision.refused]
    lines += [f"{'reason' if check.holds else 'no reason'}: {check.text}" for check in decision.checks]
    return [*lines, f"state: {found.state[:12]}", *([f"not trained: {why_not}"] if why_not else [])]


def one_line_of(found: Look, why_not: str, made: str) -> str:
    """A look in one line. `made` is the version that a training has registered; empty if that goes on elsewhere."""
    decision = found.decision
    if decision.refused:
        return f"refused: {'; '.join(decision.refused)}"
    if not decision.retrain:
        return "no reason to train"
    if why_not:
        return f"not trained: {why_not}"
    reasons = "; ".join(decision.reasons)
    return f"trained: {reasons}; {made}" if made else f"submitted: {reasons}"
