"""The compiled pipeline as KFP's backend would read it: strictly parsed, and rules, each with mutants that break it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, call, succeed
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from components import steps
from components.images import is_by_digest
from hepar.errors import ParamsError
from hepar.params import ClusterParams, load_params
from hepar.runtime.execution import KFP_RUN_VARIABLE, STAGE_IMAGE_VARIABLE
from pipelines.compiled import CompiledPipeline
from pipelines.execution import ONE_MACHINE_VARIABLE
from pipelines.teacher_tasks import SEPARATE_VARIABLE, separate_folds

IMAGE = f"registry.example.org/hepar@sha256:{'a' * 64}"
PATIENT = "planted-patient"
STEPS = (
    *("check", "ingest", "train-liver", "train-liver-2", "pseudo-label", "assemble-pool", "train-universal"),
    *("evaluate", "register", "notify"),
)
UNCACHED = {"check", "ingest", "gather-folds", "gather-folds-2", "assemble-pool", "register", "notify"}
GPU_STEPS = {"train-liver", "train-liver-2", "pseudo-label", "train-universal", "evaluate", "register"}
Json = dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline and its two documents, and the section `cluster` that it was compiled with."""

    text: str
    spec: Json
    platform: Json
    cluster: ClusterParams

    @property
    def tasks(self) -> Json:
        """The tasks by name, those within the exit handler too."""
        (inner,) = [found["dag"]["tasks"] for found in self.spec["components"].values() if "dag" in found]
        tasks, components = {**self.spec["root"]["dag"]["tasks"], **inner}, self.spec["components"]
        return {name: task for name, task in tasks.items() if "dag" not in components[task["componentRef"]["name"]]}

    def label(self, step: str) -> str:
        return str(self.spec["components"][self.tasks[step]["componentRef"]["name"]]["executorLabel"])

    def container(self, step: str) -> Json:
        found: Json = self.spec["deploymentSpec"]["executors"][self.label(step)]["container"]
        return found

    def pod(self, step: str) -> Json:
        found: Json = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][self.label(step)]
        return found

    def asked(self, step: str) -> Any:
        return self.cluster.steps.of(step.removesuffix("-2"))

    def variables(self, step: str) -> set[str]:
        """The environment variables that a pod gets from secrets and settings."""
        pod = self.pod(step)
        maps = (*pod.get("secretAsEnv", ()), *pod.get("configMapAsEnv", ()))
        return {str(pair["envVar"]) for one in maps for pair in one["keyToEnv"]}


def compile_to(folder: Path, folds: int) -> Compiled:
    """A pipeline for GPUs, two of them for the universal model, with all secrets, and params that name a patient."""
    changed = {
        "train_liver": {"folds": folds},
        "extends": os.path.relpath(ROOT / "params" / "full.yaml", folder),
        "source": f"dicomweb+http://127.0.0.1:9/web?PatientID={PATIENT}",
        "cluster": {
            "secrets": {"mlflow": "mlflow-login", "dicomweb": "pacs", "notify": "chat"},
            "storage_class": "fast",
            "docs_url": "https://docs.example.org/",
            "steps": {"train_universal": {"gpus": 2}},
        },
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(changed))
    command = ("kfp", "dsl", "compile", "--py", "pipelines/two_stage.py", "--output", str(folder / "built.yaml"))
    succeed(*command, cwd=ROOT, HEPAR_IMAGE=IMAGE, HEPAR_PARAMS=str(folder / "own.yaml"))
    text = (folder / "built.yaml").read_text()
    spec, platform = yaml.safe_load_all(text)
    return Compiled(text, spec, platform, load_params(folder / "own.yaml").cluster)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The pipeline with one teacher of each modality."""
    return compile_to(tmp_path_factory.mktemp("compiled"), folds=1)


@pytest.fixture
def compiled(built: Compiled) -> Compiled:
    """A copy that a test may change."""
    return copy.deepcopy(built)


def strictly_parsed(found: Compiled) -> None:
    """Both documents against KFP's protocol buffers; an unknown field is an error."""
    json_format.ParseDict(found.spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(found.platform, pipeline_spec_pb2.PlatformSpec())
    for pod in found.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(pod, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_both_documents_are_what_kfp_reads(compiled: Compiled) -> None:
    strictly_parsed(compiled)
    assert set(compiled.tasks) == set(STEPS)
    pod = copy.deepcopy(compiled)
    pod.pod("ingest")["nodeSelectors"] = {}
    task = copy.deepcopy(compiled)
    task.tasks["ingest"]["retries"] = 3
    for mutant in (pod, task):
        with pytest.raises(json_format.ParseError):
            strictly_parsed(mutant)


def test_a_run_must_name_its_source_and_no_patient_is_compiled_in(compiled: Compiled) -> None:
    inputs = compiled.spec["root"]["inputDefinitions"]["parameters"]
    assert [name for name, given in inputs.items() if not given.get("isOptional")] == ["source"]
    assert inputs["overrides"]["defaultValue"] == {}
    assert PATIENT not in compiled.text
    assert "pipeline_job" not in compiled.text  # a placeholder would make every task miss KFP's cache


def test_the_stages_take_their_params_from_the_check(compiled: Compiled) -> None:
    sections = set(compiled.spec["root"]["inputDefinitions"]["parameters"]) - {"overrides"}
    taken = set()
    for name, task in compiled.tasks.items():
        for given in task.get("inputs", {}).get("parameters", {}).values():
            if name not in ("check", "notify"):
                assert "componentInputParameter" not in given
            if (from_task := given.get("taskOutputParameter", {})).get("producerTask") == "check":
                taken.add(from_task["outputParameterKey"])
    assert taken == sections


def by_digest(found: Compiled, step: str) -> Iterator[str]:
    """The image is named by digest, and the pod tells the step which it is."""
    image = found.container(step)["image"]
    if not is_by_digest(image):
        yield image
    if found.pod(step)["podMetadata"]["annotations"].get("hepar-image") != image:
        yield "hepar-image"
    fields = {given["name"]: given["fieldPath"] for given in found.pod(step)["fieldPathAsEnv"]}
    if fields.get(STAGE_IMAGE_VARIABLE) != "metadata.annotations['hepar-image']":
        yield STAGE_IMAGE_VARIABLE
    if fields.get(KFP_RUN_VARIABLE) != "metadata.labels['pipeline/runid']":
        yield KFP_RUN_VARIABLE


def resources(found: Compiled, step: str) -> Iterator[str]:
    """CPU and memory are reserved and limited as the params say."""
    given, asked = found.container(step)["resources"], found.asked(step)
    expected = {"Cpu": f"{asked.cpu * 1000:.0f}m", "Memory": f"{asked.memory_gib * 1024:.0f}Mi"}
    for kind, amount in expected.items():
        for bound in ("Request", "Limit"):
            if given.get(f"resource{kind}{bound}") != amount:
                yield f"{kind} {bound}"


def gpus(found: Compiled, step: str) -> Iterator[str]:
    """GPUs of the type that the params name, on their nodes; no trace of them in a step without."""
    asked, accelerator = found.asked(step), found.container(step)["resources"].get("accelerator")
    if (step in GPU_STEPS) != (accelerator is not None):
        yield "accelerator"
    elif accelerator is not None and accelerator != {
        "count": str(asked.gpus),
        "type": "nvidia.com/gpu",
        "resourceCount": str(asked.gpus),
        "resourceType": "nvidia.com/gpu",
    }:
        yield str(accelerator)
    labels = found.pod(step).get("nodeSelector", {}).get("labels", {})
    if labels != ({"hepar-pool": "gpu"} if step in GPU_STEPS else {}):
        yield f"labels {labels}"
    taints = found.pod(step).get("tolerations", [])
    exists = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    if taints != ([exists] if step in GPU_STEPS else []):
        yield f"tolerations {taints}"


def timeout(found: Compiled, step: str) -> Iterator[str]:
    """Each attempt ends."""
    if found.pod(step).get("activeDeadlineSeconds") != str(round(found.asked(step).timeout_hours * 3600)):
        yield str(found.pod(step).get("activeDeadlineSeconds"))


def retries(found: Compiled, step: str) -> Iterator[str]:
    """The window is open until every attempt has used its timeout."""
    asked, policy = found.asked(step), found.tasks[step].get("retryPolicy", {})
    window = int(policy.get("backoffMaxDuration", "3600s").removesuffix("s"))
    if policy.get("maxRetryCount") != asked.retries:
        yield "count"
    if window < (asked.retries + 1) * asked.timeout_hours * 3600:
        yield "window"


def volumes(found: Compiled, step: str) -> Iterator[str]:
    """A scratch volume that goes with the pod, and memory to share where several processes train."""
    asked, pod = found.asked(step), found.pod(step)
    scratch = [
        (one["mountPath"], one["size"], one["storageClassName"]) for one in pod.get("genericEphemeralVolume", [])
    ]
    if scratch != ([("/scratch", f"{asked.scratch_gib}Gi", "fast")] if asked.scratch_gib else []):
        yield f"scratch {scratch}"
    shared = [(one["mountPath"], one["medium"], one["sizeLimit"]) for one in pod.get("emptyDirMounts", [])]
    if shared != ([("/dev/shm", "Memory", "8192Mi")] if step == "train-universal" else []):
        yield f"shared {shared}"
    if bool(asked.scratch_gib) != ("TMPDIR" in {given["name"] for given in pod["fieldPathAsEnv"]}):
        yield "TMPDIR"


def secrets(found: Compiled, step: str) -> Iterator[str]:
    """Settings and credentials come from objects of the cluster, and only to the steps that need them."""
    given, reads = found.variables(step), step in ("check", "ingest")
    settings = {"MLFLOW_TRACKING_URI", "HEPAR_STORE", "AWS_ENDPOINT_URL", "HEPAR_CACHE_GIB"}
    if missing := ({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} | settings) - given:
        yield f"missing {missing}"
    for name, needed in {
        "HEPAR_DICOMWEB_TOKEN": reads,
        "HEPAR_DICOMWEB_QUERY": reads,
        "HEPAR_PATIENT_KEY": reads,
        "HEPAR_NOTIFY_URL": step == "notify",
        "MLFLOW_TRACKING_PASSWORD": step.removesuffix("-2") not in ("gather-folds", "pseudo-label", "evaluate"),
    }.items():
        if (name in given) != needed:
            yield name
    if not all(one.get("optional") for one in found.pod(step)["secretAsEnv"]):
        yield "a pod that waits for a missing secret says nothing"
    if found.container(step).get("env"):
        yield "a value in the pipeline itself"


def caching(found: Compiled, step: str) -> Iterator[str]:
    """Steps whose result is no function of their parameters are never skipped; all others can be."""
    if bool(found.tasks[step]["cachingOptions"].get("enableCache")) == (step in UNCACHED):
        yield str(found.tasks[step]["cachingOptions"])


def described(found: Compiled, step: str) -> Iterator[str]:
    """A caption, a page of the documents that exists, and no root."""
    name = step.removesuffix("-2")
    if not found.tasks[step]["taskInfo"]["name"].startswith(name) or ": " not in found.tasks[step]["taskInfo"]["name"]:
        yield found.tasks[step]["taskInfo"]["name"]
    page, _, anchor = found.pod(step)["podMetadata"]["annotations"].get("hepar-docs", "").partition("#")
    file = ROOT / "docs" / page.removeprefix("https://docs.example.org/")
    if not file.is_file():
        yield page
    elif anchor and f"# {anchor.replace('-', ' ')}" not in file.read_text().lower():
        yield anchor
    if found.pod(step).get("securityContext") != {"runAsNonRoot": True}:
        yield "root"


Rule = Callable[[Compiled, str], Iterator[str]]
RULES: tuple[Rule, ...] = (by_digest, resources, gpus, timeout, retries, volumes, secrets, caching, described)
Mutate = Callable[[Compiled], object]
MUTANTS: tuple[tuple[str, Rule, Mutate], ...] = (
    ("ingest", by_digest, lambda found: found.container("ingest").update(image="registry.example.org/hepar:latest")),
    ("check", by_digest, lambda found: found.pod("check")["fieldPathAsEnv"].pop()),
    ("register", resources, lambda found: found.container("register")["resources"].pop("resourceCpuRequest")),
    ("register", resources, lambda found: found.container("register")["resources"].pop("resourceMemoryLimit")),
    (
        "train-liver",
        gpus,
        lambda found: found.container("train-liver")["resources"]["accelerator"].update(resourceType="amd.com/gpu"),
    ),
    ("check", gpus, lambda found: found.container("check")["resources"].update(accelerator={"count": "1"})),
    ("evaluate", gpus, lambda found: found.pod("evaluate").pop("tolerations")),
    ("evaluate", timeout, lambda found: found.pod("evaluate").pop("activeDeadlineSeconds")),
    (
        "train-universal",
        retries,
        lambda found: found.tasks["train-universal"]["retryPolicy"].update(backoffMaxDuration="3600s"),
    ),
    ("train-universal", retries, lambda found: found.tasks["train-universal"].pop("retryPolicy")),
    ("train-universal", volumes, lambda found: found.pod("train-universal").pop("emptyDirMounts")),
    ("ingest", volumes, lambda found: found.pod("ingest").pop("genericEphemeralVolume")),
    ("ingest", secrets, lambda found: found.pod("ingest")["secretAsEnv"].pop()),
    ("check", secrets, lambda found: found.pod("check").pop("configMapAsEnv")),
    ("notify", secrets, lambda found: found.container("notify").update(env=[{"name": "A", "value": "B"}])),
    ("ingest", caching, lambda found: found.tasks["ingest"]["cachingOptions"].update(enableCache=True)),
    ("evaluate", caching, lambda found: found.tasks["evaluate"]["cachingOptions"].clear()),
    ("evaluate", described, lambda found: found.tasks["evaluate"]["taskInfo"].update(name="evaluate")),
    ("evaluate", described, lambda found: found.pod("evaluate").pop("securityContext")),
)


def broken(found: Compiled) -> set[tuple[str, Rule]]:
    return {(step, rule) for rule in RULES for step in STEPS if list(rule(found, step))}


def test_every_rule_holds_for_every_step(compiled: Compiled) -> None:
    assert {(step, rule.__name__): list(rule(compiled, step)) for step, rule in broken(compiled)} == {}


@pytest.mark.parametrize(("step", "rule", "mutate"), MUTANTS)
def test_each_rule_refuses_its_mutants(compiled: Compiled, step: str, rule: Rule, mutate: Mutate) -> None:
    mutate(compiled)
    assert broken(compiled) == {(step, rule)}


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The pipeline with teachers of three folds."""
    return compile_to(tmp_path_factory.mktemp("folded"), folds=3)


def test_each_fold_of_a_teacher_asks_for_what_the_teacher_did(built: Compiled, folded: Compiled) -> None:
    strictly_parsed(folded)
    folds = sorted(name for name in folded.tasks if name.startswith("train-liver"))
    found = []
    for name in folds:
        task, teacher = folded.tasks[name], built.tasks["train-liver"]
        assert folded.pod(name) == built.pod("train-liver")
        assert folded.container(name)["resources"] == built.container("train-liver")["resources"]
        for key in ("retryPolicy", "cachingOptions"):
            assert task[key] == teacher[key]
        given = task["inputs"]["parameters"]
        found.append([given[key]["runtimeValue"]["constant"] for key in ("modality", "fold", "folds")])
    assert found == [[modality, fold, 3] for modality in ("CT", "MR") for fold in (1, 2, 3)]


def test_folds_are_gathered_to_what_all_later_steps_take(built: Compiled, folded: Compiled) -> None:
    members = {"gather-folds": ("", "-2", "-3"), "gather-folds-2": ("-4", "-5", "-6")}
    for name, numbers in members.items():
        given = folded.tasks[name]["inputs"]["artifacts"]
        assert [given[f"fold_{number}"]["taskOutputArtifact"]["producerTask"] for number in (1, 2, 3)] == [
            f"train-liver-fold{number}" for number in numbers
        ]
        assert {rule.__name__: list(rule(folded, name)) for rule in RULES if list(rule(folded, name))} == {}
    for name in set(STEPS) - {"train-liver", "train-liver-2"}:
        task = json.loads(json.dumps(folded.tasks[name]).replace("gather-folds", "train-liver"))
        expected = built.tasks[name]
        assert sorted(task.pop("dependentTasks", [])) == sorted(expected.get("dependentTasks", []))
        if name == "check":
            continue  # it knows the number of folds, see below
        assert task == {key: value for key, value in expected.items() if key != "dependentTasks"}


def test_the_check_knows_how_many_folds_have_steps(built: Compiled, folded: Compiled) -> None:
    found = []
    for compiled in (built, folded):
        given = copy.deepcopy(compiled.tasks["check"]["inputs"]["parameters"])
        found.append(given.pop("compiled_folds")["runtimeValue"]["constant"])
        assert all("componentInputParameter" in value for value in given.values()), "the rest is the run's"
    assert found == [1, 3]


def test_on_one_machine_folds_stay_in_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    assert separate_folds(3) == 3
    monkeypatch.setenv(ONE_MACHINE_VARIABLE, "1")
    assert separate_folds(3) == 1
    monkeypatch.setenv(SEPARATE_VARIABLE, "1")
    assert separate_folds(3) == 3


def test_a_run_cannot_have_other_folds_than_were_compiled(folded: Compiled, tmp_path: Path) -> None:
    (tmp_path / "built.yaml").write_text(folded.text)
    package = CompiledPipeline.load(tmp_path / "built.yaml")
    package.arguments({"source": "phantoms", "train_liver.folds": 3})
    with pytest.raises(ParamsError, match=r"^train_liver\.folds is 2, but .*built\.yaml has the steps of 3 folds"):
        package.arguments({"source": "phantoms", "train_liver.folds": 2})


def test_other_folds_in_a_run_that_was_started_otherwise_are_refused_by_its_first_step(folded: Compiled) -> None:
    inputs = folded.spec["root"]["inputDefinitions"]["parameters"]
    given = {name: known["defaultValue"] for name, known in inputs.items() if "defaultValue" in known}
    given |= {"source": "phantoms", "overrides": {"train_liver": {"folds": 2}}}
    fixed = int(folded.tasks["check"]["inputs"]["parameters"]["compiled_folds"]["runtimeValue"]["constant"])
    with pytest.raises(ParamsError, match=r"^train_liver\.folds is 2, but the pipeline has the steps of 3 folds"):
        steps.check.python_func(compiled_folds=fixed, **given)


def test_for_gpus_each_step_that_may_train_or_predict_has_one_and_room_for_scans() -> None:
    steps = load_params(ROOT / "params" / "full.yaml").cluster.steps
    names = ("train-liver", "pseudo-label", "train-universal", "evaluate", "register")
    assert [name for name in type(steps).model_fields if getattr(steps, name).gpus] == [
        "train_liver",
        "pseudo_label",
        "train_universal",
        "evaluate",
        "register_model",
    ]
    asked = [(steps.of(name).memory_gib, steps.of(name).scratch_gib, steps.of(name).timeout_hours) for name in names]
    assert len(set(asked)) == 1


def test_an_image_by_its_tag_is_not_compiled_for_a_cluster(tmp_path: Path) -> None:
    output = tmp_path / "built.yaml"
    command = ("kfp", "dsl", "compile", "--py", "pipelines/two_stage.py", "--output", str(output))
    refused = call(*command, cwd=ROOT, HEPAR_IMAGE="registry.example.org/hepar:latest")
    assert "image registry.example.org/hepar:latest is named by a tag, but a cluster needs a digest" in refused.stderr
    assert not output.exists()
