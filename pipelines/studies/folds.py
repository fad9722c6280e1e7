"""The folds of a study: its source as a table without the patients of the test split, and a split table of each fold.

On this machine both are files beside the steps; for a cluster they are objects of the store.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

from hepar.cases import STRUCTURES, Split
from hepar.errors import ParamsError
from hepar.ingest.cross_validation import read_patients, split_tables, table_of
from hepar.ingest.sources.s3 import Buckets
from hepar.params import Params, override_params
from hepar.runtime.artifacts import sha256_file, sha256_json
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.object_store import Store
from hepar.runtime.s3_client import SCHEME
from hepar.runtime.scratch import scratch_folder
from pipelines.execution import is_local
from pipelines.local import with_absolute_paths
from pipelines.studies.definition import Study
from pipelines.studies.plan import KEY_DIGITS, FoldSplit

TABLES = "tables"  # the folder of the tables of folds
STORED_TABLES = "studies"  # the same in a store


def prepare_folds(study: Study, folder: Path) -> tuple[Study, tuple[FoldSplit, ...], dict[Path, str]]:
    """The study with absolute paths, its folds, and the tables in `folder` that they need, which are not written yet.

    Raises ParamsError if there is no table to make folds of.
    """
    study = _with_params(study, with_absolute_paths)
    if study.file.folds == 1:
        path = Path(study.base.source)
        given = sha256_file(path) if is_local(study.base.source) and path.is_file() else ""
        return study, (FoldSplit(source_hash=given),), {}
    table, folds = _deal(study)
    kept = folder / TABLES / _file_name(table)
    return _with_source(study, str(kept)), folds, {kept: table}


def remote_folds(study: Study) -> tuple[Study, tuple[FoldSplit, ...], dict[str, str]]:
    """The study, its folds, and the tables that they need, by their names in HEPAR_STORE; they are not stored yet.

    Raises ParamsError if there is no table to make folds of, if the source or a file of it is on this machine, or if
    HEPAR_STORE is not in S3.
    """
    source = study.base.source
    if is_local(source) and not Path(source).is_absolute():  # an absolute path may be one of the containers
        raise ParamsError(f"source {source} is a path on this machine, which a cluster cannot read: put it in S3")
    if study.file.folds == 1:
        return study, (FoldSplit(),), {}
    store = Store.of_environment()
    if store is None or not store.url.startswith(SCHEME):
        raise ParamsError(
            f"folds is {study.file.folds}: their tables go to the store of the cluster, so set {STORE_VARIABLE} to its"
            f" address {SCHEME}BUCKET/PREFIX"
        )
    table, folds = _deal(study)
    _check_remote(table, source)
    names = {text: f"{STORED_TABLES}/{_file_name(text)}" for text in (table, *(fold.split for fold in folds))}
    return (
        _with_source(study, store.address(names[table])),
        tuple(replace(fold, split=store.address(names[fold.split])) for fold in folds),
        {name: text for text, name in names.items()},
    )


def store_tables(tables: Mapping[str, str]) -> None:
    """Put tables into HEPAR_STORE. Raises StorageError if it fails."""
    if not tables:
        return
    store = Store.needed_for("a table of folds")
    for name, text in tables.items():
        store.put_text(name, text)


def _file_name(table: str) -> str:
    return f"{sha256_json(table)[:KEY_DIGITS]}.csv"


def _deal(study: Study) -> tuple[str, tuple[FoldSplit, ...]]:
    """The source as a table without the patients of its test split, and the folds of the others."""
    source, folds = study.base.source, study.file.folds
    with scratch_folder("table") as scratch:
        path = Path(source)
        if source.startswith(SCHEME) and path.suffix:  # without one it is a prefix, which may be large
            path = Buckets(scratch).mirror(source)
        if not path.is_file() or path.suffix == ".zip":
            raise ParamsError(
                f"folds is {folds}, but the source {source} is no table: set folds to 1, or give a table by --source"
            )
        patients = read_patients(path, study.base.ingest.split)
    splits = split_tables(patients, folds)
    table = table_of([patient for patient in patients if patient.split != Split.TEST], source)
    content = sha256_json(table)
    return table, tuple(FoldSplit(f"fold {number}", split, content) for number, split in splits.items())


def _check_remote(table: str, source: str) -> None:
    """Raise ParamsError if a file of a case is not in S3."""
    for row in csv.DictReader(StringIO(table)):
        for name in ("image", *STRUCTURES):
            if (cell := row.get(name, "")) and not cell.startswith(SCHEME):
                raise ParamsError(
                    f"source {source}: the {name} of case {row['case_id']} is {cell}, which a cluster cannot read: put"
                    f" table and scans in S3, and give the table by --source {SCHEME}…"
                )


def _with_source(study: Study, source: str) -> Study:
    return _with_params(study, lambda params: override_params(params, {"source": source}, "folds"))


def _with_params(study: Study, change: Callable[[Params], Params]) -> Study:
    """The study with other params in all arms."""
    arms = tuple(replace(arm, params=change(arm.params)) for arm in study.arms)
    return replace(study, base=change(study.base), arms=arms)
