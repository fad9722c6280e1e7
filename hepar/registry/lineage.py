"""Lineage: what a registered version or an artifact was made from, step by step, and where each of these is now.

Everything is known by its hash. The tree starts at a version or a folder and follows parents. For each artifact it asks
the folders that were given, the tracking server and, for a pool or cohort, the store: whoever has the artifact is where
it can be opened, and an MLflow run that only logged a record of it still tells its parents and its cases.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.cases import Cohort
from hepar.errors import ArtifactError, DataError, HeparError, NotConfigured
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import REGISTERED
from hepar.pool.table import Pool
from hepar.registry.lineage_folders import ArtifactFolders
from hepar.registry.lineage_records import Record, case_table, refused_cases
from hepar.registry.lineage_server import EXECUTION, ServerRecords, Version
from hepar.registry.model_registry import COHORT_VERSION
from hepar.registry.registration import Registration
from hepar.registry.scored_cohort import open_stored_cohort
from hepar.runtime.artifacts import MANIFEST, read_any_manifest
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.object_store import Store
from hepar.runtime.stored_files import read_stored

VERSION = "registered version"  # a kind beside those of artifacts
FILE = "file"  # the column of a case of a cohort that says where its image is; empty if it is gone
PoolOpener = Callable[[str], AbstractContextManager[Path]]  # the folder with table and manifest of a DVC version


class LinkState(StrEnum):
    HERE = "here"  # it can be opened
    RECORDED = "gone, but recorded"
    GONE = "gone"


@dataclass(frozen=True)
class Whereabouts:
    """Where an artifact can be opened, or where it was looked for; `problem` says why it cannot be opened there."""

    where: str
    address: str
    problem: str = ""


@dataclass(frozen=True)
class Node:
    """A version or an artifact. `parents` maps the part that each parent had in it to the key of its node.

    `records` are MLflow runs that tell of it, for a model its training if that is known. A version and a model have the
    facts `EXECUTION`, None if not known, and a model the `parameters` of its training. `cases` has one row per case of
    a cohort or pool, with the columns of `lineage_records.TABLES`, and of a cohort `FILE`; None if no table is left.
    `refused` are the ids of the cases that ingest refused for a cohort; None if they are not known.
    """

    key: str  # the hash of an artifact, the address of a version
    kind: str
    places: tuple[Whereabouts, ...] = ()
    records: tuple[str, ...] = ()
    facts: Mapping[str, str | None] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    cases: pd.DataFrame | None = None
    refused: tuple[str, ...] | None = None

    @property
    def state(self) -> LinkState:
        """Whether it can be opened, and if not, whether anything but its hash is known."""
        if any(not place.problem for place in self.places):
            return LinkState.HERE
        known = self.records or self.parents or self.cases is not None
        return LinkState.RECORDED if known else LinkState.GONE

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "key": self.key,
            "kind": self.kind,
            "state": str(self.state),
            "places": [vars(place) for place in self.places],
            "records": list(self.records),
            "facts": dict(self.facts),
            "parameters": dict(self.parameters),
            "parents": dict(self.parents),
            "cases": None if self.cases is None else self.cases.to_dict(orient="records"),
            "refused": None if self.refused is None else list(self.refused),
        }


@dataclass(frozen=True)
class Lineage:
    """The nodes by key, of which `root` is the one that was asked for.

    `damaged` says which folders could hold any of them, for all that can be told: their manifests are damaged.
    """

    root: str
    nodes: Mapping[str, Node]
    damaged: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        nodes = [node.as_json() for node in self.nodes.values()]
        return {"root": self.root, "nodes": nodes, "damaged": list(self.damaged)}


def trace_version(uri: str, roots: Sequence[Path], server: ServerRecords, open_pool: PoolOpener) -> Lineage:
    """The lineage of `models:/NAME@ALIAS` or `models:/NAME/NUMBER`; artifacts are looked for in the folders `roots`.

    Raises DataError if there is no such version, StorageError if the server fails.
    """
    return LineageTracer(ArtifactFolders(roots), server, open_pool).of_version(server.version(uri))


def trace_folder(folder: Path, roots: Sequence[Path], server: ServerRecords | None, open_pool: PoolOpener) -> Lineage:
    """The lineage of an artifact, or of what a run in a working directory ended with: its version or else its model.

    Raises ArtifactError if the folder is neither.
    """
    found = ArtifactFolders([folder])
    tracer = LineageTracer(ArtifactFolders([folder, *roots]), server, open_pool)
    if (folder / MANIFEST).exists():
        return tracer.of_artifact(Record.of(read_any_manifest(folder)))
    for place, manifest in found.of_kind(Registration.KIND):
        registered = Registration.load(place)
        return tracer.of_version(_registered(registered, manifest.parents[ModelFolder.KIND], server))
    for _, manifest in found.of_kind(ModelFolder.KIND):
        if manifest.parents.get(ModelFolder.ROLE) == ModelFolder.UNIVERSAL:
            return tracer.of_artifact(Record.of(manifest))
    raise ArtifactError(f"{folder} is neither an artifact nor the working directory of a run: it has no registration")


def _registered(registered: Registration, model_hash: str, server: ServerRecords | None) -> Version:
    """The version that a registration names, also if the registry does not have it."""
    uri = f"{REGISTERED}{registered.name}/{registered.version}"
    if server is None:
        return Version(uri, {}, {ModelFolder.KIND: model_hash}, problem="there is no registry here")
    try:
        found = server.version(uri)
    except DataError as error:
        return Version(uri, {}, {ModelFolder.KIND: model_hash}, problem=str(error))
    if found.artifacts.get(ModelFolder.KIND) == model_hash:
        return found
    return Version(uri, {}, {ModelFolder.KIND: model_hash}, problem="this registry has another model under its number")


class LineageTracer:
    """Follows parents from one node to all of its ancestors."""

    def __init__(self, folders: ArtifactFolders, server: ServerRecords | None, open_pool: PoolOpener) -> None:
        self._folders, self._server, self._open_pool = folders, server, open_pool
        self._records: dict[str, Record] = {}  # by hash, from wherever they were first found
        self._pool_versions: dict[str, str] = {}  # DVC versions by the hash of the pool

    def of_version(self, version: Version) -> Lineage:
        """The lineage of a registered version, also of one that the registry no longer has."""
        links = {name: (name, value) for name, value in version.artifacts.items()}
        places = (Whereabouts("registry", version.uri, version.problem),)
        facts = {**version.facts, **{name: version.facts.get(name) for name in EXECUTION}}
        node = Node(version.uri, VERSION, places, facts=facts, parents={name: key for name, (_, key) in links.items()})
        return self._trace(node, links, version)

    def of_artifact(self, record: Record) -> Lineage:
        """The lineage of an artifact."""
        self._learn(record)
        return self._trace(None, {"": (record.kind, record.hash)}, None)

    def _trace(self, root: Node | None, links: Mapping[str, tuple[str, str]], version: Version | None) -> Lineage:
        nodes = {} if root is None else {root.key: root}
        waiting = deque(links.values())
        while waiting:
            kind, artifact_hash = waiting.popleft()
            if artifact_hash in nodes:
                continue
            node = self._describe(kind, artifact_hash, version)
            nodes[artifact_hash] = node
            if (record := self._records.get(artifact_hash)) is not None:
                waiting.extend(record.links.values())
        return Lineage(next(iter(nodes)), nodes, tuple(self._folders.damaged))

    def _learn(self, record: Record) -> None:
        """Keep a record, and what it implies about its parents; the first of an artifact counts."""
        for found in (record, *record.implied):
            self._records.setdefault(found.hash, found)
        pools = [value for kind, value in record.links.values() if kind == Pool.KIND]
        if pools and (dvc_version := record.facts.get(ModelFolder.POOL_VERSION)):
            self._pool_versions[pools[0]] = dvc_version

    def _describe(self, kind: str, artifact_hash: str, version: Version | None) -> Node:
        known = dict.fromkeys(EXECUTION) if kind == ModelFolder.KIND else {}
        node = self._in_folders(Node(artifact_hash, kind, facts=known))
        if self._server is not None:
            node = self._on_server(node, self._server)
        if version is not None and version.artifacts.get(kind) == artifact_hash:
            node = replace(node, places=(*node.places, *self._of_version(kind, version)))
        if kind == Pool.KIND:
            node = self._on_remote(node)
        if kind == Cohort.KIND and version is not None and (stored := version.facts.get(COHORT_VERSION)):
            node = self._in_store(node, stored)
        record = self._records.get(artifact_hash)
        if record is not None:
            facts = {**record.facts, **node.facts}
            node = replace(node, facts=facts, parents={name: value for name, (_, value) in record.links.items()})
        return node

    def _in_folders(self, node: Node) -> Node:
        """The node with the folders that hold it, its cases and, of a report, its facts."""
        for folder in self._folders.of(node.key):
            self._learn(Record.of(read_any_manifest(folder)))
            problem = self._folders.problem(folder)
            try:
                cases = _cases_in(folder, node.kind) if node.cases is None else node.cases
                facts = Report(folder).facts() if node.kind == Report.KIND else node.facts
                refused = refused_cases(folder, node.kind) if node.refused is None else node.refused
                node = replace(node, cases=cases, facts=facts, refused=refused)
            except HeparError as error:
                problem = problem or str(error)
            node = replace(node, places=(*node.places, Whereabouts("folder", str(folder), problem)))
        return node

    def _on_server(self, node: Node, server: ServerRecords) -> Node:
        """The node with what MLflow has logged about it: for a model also its training and its versions."""
        logged = server.runs_that_tell_of(node.kind, node.key)
        for run in logged:
            for record in run.records:
                self._learn(record)
            if node.cases is None and (table := run.table(node.kind, node.key)) is not None:
                node = replace(node, cases=table.assign(**{FILE: ""}) if node.kind == Cohort.KIND else table)
            if node.refused is None:
                node = replace(node, refused=run.refused(node.kind, node.key))
        node = replace(node, records=tuple(run.uri for run in logged if run.has(node.kind, node.key)))
        if node.kind != ModelFolder.KIND:
            return node
        training = server.training_of(node.key)
        for uri, held in server.versions_of(node.key).items():
            if held is not None and held.hash == node.key:
                self._learn(held)
                node = replace(node, places=(*node.places, Whereabouts("registry", uri)))
            else:
                node = replace(
                    node, places=(*node.places, Whereabouts("registry", uri, "its files do not hold this model"))
                )
        if training is None:
            return node
        for record in (*training.records, training.record_of(node.key)):
            self._learn(record)
        return replace(
            node,
            records=(training.uri,),
            facts={**node.facts, **{name: training.facts.get(name) for name in EXECUTION}},
            parameters=training.parameters,
        )

    def _of_version(self, kind: str, version: Version) -> tuple[Whereabouts, ...]:
        """Where the report of a version is; its model is found like any other."""
        if kind != Report.KIND:
            return ()
        if version.report_record is not None:
            self._learn(version.report_record)
        return (Whereabouts("MLflow run", version.report_uri, "" if version.report_record else "not in this run"),)

    def _on_remote(self, node: Node) -> Node:
        """The node of a pool with its version on the DVC remote, and its cases from there if they are not known."""
        dvc_version = self._pool_versions.get(node.key)
        if dvc_version is None:
            return node
        node = replace(node, facts={**node.facts, ModelFolder.POOL_VERSION: dvc_version})
        problem = ""
        try:
            with self._open_pool(dvc_version) as folder:
                record = Record.of(read_any_manifest(folder))
                if record.hash == node.key:
                    self._learn(record)
                    table = case_table(folder, Pool.KIND) if node.cases is None else None
                    node = node if table is None else replace(node, cases=table)
                else:
                    problem = f"it is {record.kind} {record.hash[:12]}"
        except NotConfigured:
            problem = "none is configured, see --remote"
        except HeparError as error:
            problem = str(error)
        return replace(node, places=(*node.places, Whereabouts("DVC remote", dvc_version, problem)))

    def _in_store(self, node: Node, cohort_version: str) -> Node:
        """The node of a cohort with its version in the store, if it is the one that a registered version was scored on,
        and its cases from there if they are not known."""
        problem = ""
        try:
            if (store := Store.of_environment()) is None:
                raise NotConfigured(f"none is configured, set {STORE_VARIABLE}")
            with open_stored_cohort(cohort_version, store) as folder:
                record = Record.of(read_any_manifest(folder))
                if record.hash != node.key:
                    return node
                self._learn(record)
                if node.cases is None or not (node.cases[FILE] != "").any():
                    node = replace(node, cases=_cases_in(folder, Cohort.KIND))
                if node.refused is None:
                    node = replace(node, refused=refused_cases(folder, Cohort.KIND))
        except HeparError as error:
            problem = str(error)
        return replace(node, places=(*node.places, Whereabouts("store", cohort_version, problem)))


def _cases_in(folder: Path, kind: str) -> pd.DataFrame | None:
    """The table of cases with where the image of each is, as far as a cohort has it."""
    table = case_table(folder, kind)
    if table is None or kind != Cohort.KIND:
        return table
    cohort, stored = Cohort.load(folder), read_stored(folder)

    def place(image: str) -> str:
        if cohort.file(image).is_file():
            return str(cohort.file(image))
        return f"{image} of version {stored.version} in the store" if image in stored.files else ""

    images = {case.case_id: case.image for case in cohort}
    return table.assign(**{FILE: [place(images[name]) for name in table.case_id]})
