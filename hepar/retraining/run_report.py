"""How a run ended, as text for people: a new version beside the champion that it met, or why the run failed.

States, not events, decide what is new: a version is reported until its file of pointers names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hepar.cases import Cohort
from hepar.errors import ArtifactError, DataError, one_line
from hepar.evaluation.breakdown import Breakdown
from hepar.evaluation.comparison import DEFAULT_METRICS, Comparison, compare_tables
from hepar.evaluation.comparison_table import comparison_table
from hepar.evaluation.forest_plot import write_forest_plot
from hepar.evaluation.report_folder import Report
from hepar.evaluation.summary import Bootstrap
from hepar.inference.model_folder import ModelFolder
from hepar.params import CHAMPION, REGISTERED
from hepar.registry.champion import DECISION_TAG, MET_TAG, NOBODY_MET, RESULT_TAG, ROLLED_BACK
from hepar.registry.model_registry import PREVIOUS, RUN_TAG, RegisteredModel, find_registered
from hepar.registry.tracking import connect, mlflow_errors, server, tag_name
from hepar.registry.version_scores import version_scores
from hepar.retraining.submission import REASONS_TAG, RUN_NAME
from hepar.runtime.execution import IMAGE, KFP_RUN
from hepar.runtime.notification import MAX_MESSAGE, SUCCEEDED
from hepar.runtime.redaction import redact
from hepar.runtime.whole_files import write_text

TEXT, TITLE, FIGURE, POINTERS = "report.md", "title.txt", "forest.png", "pointers.yaml"
POINTED_AT = (
    *(ModelFolder.KIND, ModelFolder.POOL_VERSION, Cohort.KIND, Report.TEST_SET, Report.KIND, Report.COMMIT),
    *(IMAGE, KFP_RUN),
)  # facts of a version


@dataclass(frozen=True)
class RunReport:
    """A version as the registry has it. `against` is the address of the version that it met, empty if there was none.

    `comparison` is None without that, or if the two cannot be compared, which `remark` then explains.
    """

    model: str
    version: str
    alias: str
    decision: str
    reasons: str
    facts: Mapping[str, str]
    against: str = ""
    comparison: Comparison | None = None
    remark: str = ""

    @property
    def title(self) -> str:
        without_alias = self.decision if self.decision.startswith(ROLLED_BACK) else "neither champion nor challenger"
        return f"{self.model} version {self.version}: {self.alias or without_alias}"

    def pointers(self) -> str:
        """YAML that names the version and what it was made from, without any time: equal versions give equal text."""
        values = {"name": self.model, "version": self.version, "alias": self.alias, "decision": self.decision}
        values |= {name.replace(" ", "_"): value for name, value in self.facts.items()}
        return "# Written by `hepar report-run`, read by `hepar promote`.\n" + yaml.safe_dump(values, sort_keys=False)

    def text(self) -> str:
        """Markdown, with the figure as `FIGURE` beside it."""
        lines = [f"## {self.title}", "", f"Last decision: {self.decision or 'no decision is recorded'}.", ""]
        lines += [f"Trained because: {self.reasons}.", ""] if self.reasons else []
        rows = [f"| {name} | `{value}` |" for name, value in self.facts.items()]
        lines += ["| made from | |", "|---|---|", *rows, ""]
        if self.comparison is None:
            return "\n".join([*lines, self.remark, ""])
        shown = f"![difference to {self.against}, with 95 % intervals]({FIGURE})"
        return "\n".join([*lines, comparison_table(self.comparison), "", shown, ""])

    def write(self, folder: Path) -> None:
        """Write text, title, pointers and, if there is a comparison, the figure. Raises StorageError if it cannot."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (TEXT, TITLE, FIGURE, POINTERS):
            (folder / name).unlink(missing_ok=True)
        write_text(folder / TEXT, redact(self.text()))
        write_text(folder / TITLE, f"{self.title}\n")
        write_text(folder / POINTERS, self.pointers())
        if self.comparison is not None:
            write_forest_plot(self.comparison, folder / FIGURE)


@dataclass(frozen=True)
class Failure:
    """A run that failed, as the message of its end tells it."""

    outcome: str
    subject: str
    details: tuple[str, ...]
    links: Mapping[str, str]

    @property
    def title(self) -> str:
        return f"{self.outcome}: {self.subject}"

    def write(self, folder: Path) -> None:
        """Write text and title. Raises StorageError if it cannot."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (FIGURE, POINTERS):
            (folder / name).unlink(missing_ok=True)
        details = [f"- {detail}" for detail in self.details]
        links = [f"- [{name}]({address})" for name, address in self.links.items()]
        text = "\n".join([f"## {self.title}", "", *details, *links, ""])
        write_text(folder / TEXT, redact(text))
        write_text(folder / TITLE, f"{redact(self.title)}\n")


def read_failure(message: Any) -> Failure | None:
    """The failure that the message of a run's end tells; None if the run succeeded, or if it is no such message.

    It may be the body of `repository_dispatch`, which has the message in `client_payload`. Its texts come on one line
    each, whatever was sent.
    """
    body = message.get("client_payload", message) if isinstance(message, Mapping) else None
    if not isinstance(body, Mapping) or body.get("outcome") in (None, SUCCEEDED):
        return None
    details, links = body.get("details") or (), body.get("links") or {}
    return Failure(
        _one_line(body["outcome"]),
        _one_line(body.get("subject", "")),
        tuple(_one_line(detail) for detail in details) if isinstance(details, list) else (),
        {_one_line(k): _one_line(v) for k, v in links.items()} if isinstance(links, Mapping) else {},
    )


def _one_line(value: Any) -> str:
    return one_line(value)[:MAX_MESSAGE]


def newest_version(model: str) -> str:
    """The highest version on which a gate has decided; empty if there is none. Raises StorageError if MLflow fails."""
    with mlflow_errors():
        found = connect().MlflowClient().search_model_versions(f"name='{model}'")
    return str(max((int(version.version) for version in found if RESULT_TAG in version.tags), default=""))


def describe_run(model: str, version: str, bootstrap: Bootstrap) -> RunReport:
    """The report on a version, beside the champion that its last decision was made against.

    A version of an older release does not name it: one that is champion now stands beside the previous champion, any
    other beside the champion.

    Raises DataError if there is no such version, StorageError if MLflow fails.
    """
    with mlflow_errors():
        mlflow = connect()
        tags = find_registered(mlflow, f"{REGISTERED}{model}/{version}").tags
        aliases, reasons = RegisteredModel(mlflow, model).aliases(), _reasons(mlflow, tags)
    alias = next((name for name in sorted(aliases) if aliases[name] == version), "")
    other = tags.get(MET_TAG) or aliases.get(PREVIOUS if aliases.get(CHAMPION) == version else CHAMPION, NOBODY_MET)
    against = f"{REGISTERED}{model}/{other}" if other != NOBODY_MET else ""
    facts = {name: tags[tag_name(name)] for name in POINTED_AT if tags.get(tag_name(name))}
    found = RunReport(model, version, alias, tags.get(DECISION_TAG, ""), reasons, facts, against)
    return _with_comparison(found, bootstrap)


def _reasons(mlflow: Any, tags: Mapping[str, str]) -> str:
    """Why a version was trained: from its tags, else from the attempt that was handed to a cluster; may be empty."""
    if REASONS_TAG in tags or RUN_TAG not in tags:
        return tags.get(REASONS_TAG, "")
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"attributes.run_name = '{RUN_NAME}' and tags.`{RUN_TAG}` = '{tags[RUN_TAG]}'",
        max_results=1,
        output_format="list",
    )
    return str(found[0].data.tags.get(REASONS_TAG, "")) if found else ""


def _with_comparison(found: RunReport, bootstrap: Bootstrap) -> RunReport:
    if not found.against:
        return replace(found, remark="There was no champion to compare it with.")
    try:
        tables = [version_scores(uri) for uri in (found.against, f"{REGISTERED}{found.model}/{found.version}")]
        comparison = compare_tables(tables, DEFAULT_METRICS, tuple(Breakdown), bootstrap)
    except (ArtifactError, DataError) as error:  # other patients, or a version of an older release
        return replace(found, remark=f"Not compared with {found.against}: {error}.")
    return replace(found, comparison=comparison)


def pointed_version(folder: Path, model: str) -> str:
    """The version that the pointers of a model name, in the folder that keeps them; empty if there are none.

    Raises DataError if the file is damaged or names another model.
    """
    path = pointers_file(folder, model)
    try:
        found = yaml.safe_load(path.read_text()) if path.is_file() else {"name": model, "version": ""}
        named, version = str(found["name"]), str(found["version"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise DataError(f"{path} does not name a model and its version, as `hepar report-run` writes it") from None
    if named != model:
        raise DataError(f"{path} names the model {named!r}, but the params name {model!r}")
    return version


def pointers_file(folder: Path, model: str) -> Path:
    """Where a folder keeps the pointers of a model."""
    return folder / f"{model}.yaml"


def no_version(model: str) -> str:
    """The sentence for a model without any version."""
    return f"{model} has no version yet at {server()}"
