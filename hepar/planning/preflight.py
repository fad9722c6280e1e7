"""Before a run: whether its params are valid, and its source, MLflow, the store and the patient key within reach.

What is wrong is said within a minute, not after the trainings. The first step of the pipeline and `hepar check` call
this; nothing is read but listings, and nothing is left behind.
"""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hepar.errors import DataError, ParamsError
from hepar.ingest.listing import list_source
from hepar.ingest.sources import AUTO, PHANTOMS, check_layout
from hepar.ingest.sources.dicomweb import SCHEMES, without_identifiers
from hepar.ingest.sources.files import is_zip
from hepar.ingest.sources.pseudonyms import given_key
from hepar.ingest.splits import read_splits
from hepar.networks import build_on_meta_device
from hepar.params import REGISTERED, PipelineParams, read_pipeline_params
from hepar.phantoms.cohort import TABLE
from hepar.pseudo_labels.stored_reviews import open_reviews
from hepar.registry.model_registry import find_registered
from hepar.registry.tracking import connect, has_server, mlflow_errors, server
from hepar.runtime.environment import EPHEMERAL_VARIABLE
from hepar.runtime.object_store import Store
from hepar.runtime.progress import current_stage, stage
from hepar.runtime.redaction import QUERY_VARIABLE, redact_address

STAGE = "check"
RETRIES_VARIABLE, RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"  # by default MLflow retries for minutes


def run(sections: Mapping[str, Any], overrides: Mapping[str, Any], compiled_folds: int = 1) -> PipelineParams:
    """The params of a run from the sections and overrides that KFP passes, checked by `check_params`.

    `compiled_folds` are the folds of a teacher that have steps of their own. Raises ParamsError too if the params ask
    for others, or if the source names a patient, since parameters of runs are shown and kept.
    """
    with stage(STAGE):
        params = read_pipeline_params(sections, overrides)
        params.train_liver.check_compiled(compiled_folds)
        if without_identifiers(params.source)[1]:
            raise ParamsError(
                f"source {redact_address(params.source)} names a patient: leave the value empty and set"
                f" {QUERY_VARIABLE}"
            )
        check_params(params)
        return params


def check_params(params: PipelineParams) -> None:
    """Check the networks, and what a run needs to reach; one line of the log for each.

    Raises ParamsError, DataError or StorageError naming the first thing that is wrong.
    """
    checks: Mapping[str, Callable[[PipelineParams], str]] = {
        "network": _check_networks,
        "source": _check_source,
        "split": _check_split,
        "reviews": _check_reviews,
        "MLflow": _check_tracking,
        "store": _check_store,
    }
    for name, check in checks.items():
        if found := check(params):
            current_stage().log(f"{name}: {found}")


def _check_networks(params: PipelineParams) -> str:
    """Build the networks without weights: a wrong setting, or a patch that does not fit, is found here."""
    for training in (params.train_liver.training, params.train_universal.training):
        build_on_meta_device(params.network.name, params.network.config, training.patch_zyx)
    return f"{params.network.name} takes the patches of both trainings"


def _check_source(params: PipelineParams) -> str:
    source = params.source
    check_layout(params.ingest.layout)
    listed = [row[0] for row in csv.reader(list_source(source).splitlines())]
    if not listed:
        raise DataError(f"source {redact_address(source)} has no files")
    if _may_hold_dicom(source, params.ingest.layout, listed):
        given_key()
    return PHANTOMS if source == PHANTOMS else f"{redact_address(source)}, {len(listed):,} entries"


def _may_hold_dicom(source: str, layout: str, listed: list[str]) -> bool:
    """Whether patients may get pseudonyms: no table and no phantoms, unless a layout without DICOM is named."""
    if source.startswith(SCHEMES):
        return True
    is_table = TABLE in listed or (not is_zip(source) and Path(source).name in listed)
    return source != PHANTOMS and layout in (AUTO, "dicom") and not is_table


def _check_split(params: PipelineParams) -> str:
    place = params.ingest.split_from
    return f"{len(read_splits(place).cases):,} entries of {redact_address(place)}" if place else ""


def _check_reviews(params: PipelineParams) -> str:
    place = params.assemble_pool.reviews
    if not place:
        return ""
    with open_reviews(place) as reviews:
        return f"{len(reviews.by_case):,} reviewed cases in {redact_address(place)}"


def _check_tracking(params: PipelineParams) -> str:
    warm_start = params.train_universal.warm_start
    if not has_server() and not warm_start.startswith(REGISTERED):
        return f"{server()} will be created"
    with _few_retries():
        mlflow = connect()
        if warm_start.startswith(REGISTERED):
            with mlflow_errors():
                find_registered(mlflow, warm_start)
    return f"{server()} answers"


@contextmanager
def _few_retries() -> Iterator[None]:
    """Let MLflow give up soon on a server that does not answer, unless the variable says otherwise."""
    given = os.environ.get(RETRIES_VARIABLE)
    os.environ.setdefault(RETRIES_VARIABLE, RETRIES)
    try:
        yield
    finally:
        if given is None:
            del os.environ[RETRIES_VARIABLE]


def _check_store(params: PipelineParams) -> str:
    """Write a small object and remove it: the store takes what the steps will write."""
    if (store := Store.of_environment()) is None:
        return "none, so steps pass on whole folders" if os.environ.get(EPHEMERAL_VARIABLE) else ""
    name = f"checks/{uuid.uuid4().hex}"
    store.put_text(name, "written by hepar check\n")
    store.remove([name])
    return f"{store.url} can be written"
