"""The manifests: valid for the schema of Kubernetes, within the rules of infra/kubernetes/rules.py, and consistent."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from infra.deployment_files import (
    INFRA,
    OVERLAYS,
    ROOT,
    ComposeFile,
    container,
    example_variables,
    load_script,
    rendered,
)

from hepar.params import load_params
from hepar.registry.tracking import URI_VARIABLE
from hepar.runtime.remote_cache import LIMIT_VARIABLE
from pipelines.pod_settings import KEYS, SETTINGS

KUBERNETES = INFRA / "kubernetes"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
Manifests = list[dict[str, Any]]


rules = load_script(KUBERNETES / "rules.py")


@pytest.fixture(scope="module")
def overlays() -> dict[str, Manifests]:
    return {name: list(yaml.safe_load_all(rendered(KUBERNETES / "overlays" / name))) for name in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest, overlays: dict[str, Manifests]) -> Manifests:
    return copy.deepcopy(overlays[request.param])


@pytest.fixture
def gpu(overlays: dict[str, Manifests]) -> Manifests:
    return copy.deepcopy(overlays["gpu"])


def find(manifests: Manifests, kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.37.0", strict=True)


def test_each_manifest_fits_the_schema(overlays: dict[str, Manifests]) -> None:
    different = [one for one in overlays["cpu"] if one not in overlays["gpu"]]
    assert different
    for manifest in overlays["gpu"] + different + overlays["restore"] + overlays["serve"]:
        validate(manifest)


def test_a_misplaced_key_does_not_fit_the_schema(gpu: Manifests) -> None:
    pod = find(gpu, "Deployment", "mlflow")["spec"]["template"]["spec"]
    pod["containers"][0]["runAsNonRoot"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="runAsNonRoot"):
        validate(find(gpu, "Deployment", "mlflow"))


def test_the_rules_hold(manifests: Manifests) -> None:
    assert rules.check(manifests) == []


def pod_of(manifests: Manifests) -> dict[str, Any]:
    return find(manifests, "Deployment", "mlflow")["spec"]["template"]["spec"]


def first(manifests: Manifests) -> dict[str, Any]:
    return pod_of(manifests)["containers"][0]


def closed(manifests: Manifests) -> dict[str, Any]:
    return next(one for one in manifests if one["metadata"]["name"] == "default-deny")


def role(manifests: Manifests) -> dict[str, Any]:
    return find(manifests, "Role", "hepar-run")["rules"]


BAD: list[tuple[str, str, Callable[[Manifests], Any]]] = [
    ("non-root", "runAsUser is 0", lambda m: pod_of(m)["securityContext"].update(runAsUser=0)),
    ("non-root", "runAsNonRoot is None", lambda m: pod_of(m)["securityContext"].pop("runAsNonRoot")),
    ("non-root", "runAsUser is 0", lambda m: first(m)["securityContext"].update(runAsUser=0)),
    ("confined", "is not false", lambda m: first(m)["securityContext"].pop("allowPrivilegeEscalation")),
    ("confined", "is not false", lambda m: first(m)["securityContext"].update(privileged=True)),
    ("confined", "capabilities", lambda m: first(m)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"])),
    ("confined", "writable", lambda m: first(m)["securityContext"].pop("readOnlyRootFilesystem")),
    ("confined", "seccompProfile", lambda m: pod_of(m)["securityContext"].pop("seccompProfile")),
    ("confined", "hostNetwork", lambda m: pod_of(m).update(hostNetwork=True)),
    ("confined", "folder of the host", lambda m: pod_of(m)["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    ("limited", "requests.cpu", lambda m: first(m)["resources"]["requests"].pop("cpu")),
    ("limited", "limits.memory", lambda m: first(m)["resources"].pop("limits")),
    ("tagged", "neither tag nor digest", lambda m: first(m).update(image="registry.example.org:5000/hepar-services")),
    ("no-token", "mounts the token", lambda m: pod_of(m).pop("automountServiceAccountToken")),
    ("no-token", "default service account", lambda m: pod_of(m).pop("serviceAccountName")),
    ("probed", "no readinessProbe", lambda m: first(m).pop("readinessProbe")),
    ("probed", "no livenessProbe", lambda m: first(m).pop("livenessProbe")),
    ("secrets-by-reference", "PGPASSWORD", lambda m: first(m)["env"].append({"name": "PGPASSWORD", "value": "x"})),
    ("secrets-by-reference", "in the command", lambda m: first(m)["command"].append("--uri=postgresql://a:b@c/d")),
    ("secrets-by-reference", "does not belong", lambda m: m.append(
        {"kind": "Secret", "metadata": {"name": "s", "namespace": "hepar"}, "stringData": {"a": "b"}})),
    ("walled", "no ResourceQuota", lambda m: m.remove(find(m, "ResourceQuota", "services"))),
    ("walled", "no NetworkPolicy", lambda m: closed(m)["spec"].update(policyTypes=["Ingress"])),
    ("least-rights", "wildcard", lambda m: role(m)[0].update(verbs=["*"])),
    ("least-rights", "every object", lambda m: role(m)[3].pop("resourceNames")),
    ("least-rights", "whole cluster", lambda m: m.append(
        {"kind": "ClusterRole", "metadata": {"name": "r", "namespace": "hepar"}})),
    ("internal", "outside", lambda m: find(m, "Service", "mlflow")["spec"].update(type="LoadBalancer")),
    ("placed", "no namespace", lambda m: find(m, "Service", "mlflow")["metadata"].pop("namespace")),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "what", "spoil"), BAD, ids=[f"{rule}-{what}" for rule, what, _ in BAD])
def test_a_bad_manifest_is_refused_by_its_rule(
    gpu: Manifests, rule: str, what: str, spoil: Callable[[Manifests], Any]
) -> None:
    spoil(gpu)
    complaints = rules.check(gpu)
    assert complaints
    assert [line for line in complaints if not re.search(f": {rule}: .*{re.escape(what)}", line)] == []


def test_each_rule_has_a_bad_manifest() -> None:
    assert {rule for rule, _, _ in BAD} == set(rules.RULES)


def test_a_release_refuses_a_mere_tag(gpu: Manifests) -> None:
    assert len(rules.check(gpu, release=True)) == len(list(rules.containers(gpu)))
    for _, found, _ in rules.containers(gpu):
        found["image"] = f"registry.example.org:5000/{found['name']}@{DIGEST}"
    assert rules.check(gpu, release=True) == []


def test_make_renders_manifests_only_with_digests(tmp_path: Path) -> None:
    shutil.copytree(INFRA, tmp_path / "infra")
    shutil.copy(ROOT / "Makefile", tmp_path)
    virtual = Path(sys.executable).parents[1]
    options = ["--old-file=setup", f"VENV={virtual}", "OVERLAY=gpu"]
    make = ["make", "--silent", "manifests", *options]
    refused = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode != 0
    for image in ("hepar-services:latest", "hepar:latest", "postgres:15-bookworm"):
        assert f"image {image} has no digest" in refused.stdout
    assert not (tmp_path / "build" / "kubernetes-gpu.yaml").exists()

    images = tmp_path / "infra" / "kubernetes" / "images" / "kustomization.yaml"
    images.write_text(re.sub(r"newTag: .*", f"digest: {DIGEST}", images.read_text()))
    subprocess.run(make, cwd=tmp_path, check=True, capture_output=True)
    made = list(yaml.safe_load_all((tmp_path / "build" / "kubernetes-gpu.yaml").read_text()))
    assert {found["image"].rpartition("@")[2] for _, found, _ in rules.containers(made)} == {DIGEST}


def references(manifests: Manifests) -> Iterator[tuple[str, str, str]]:
    """Namespace, name and key of each secret that a pod needs; a mounted one has no key."""
    for manifest, pod in rules.pods(manifests):
        namespace = manifest["metadata"]["namespace"]
        for volume in pod.get("volumes", ()):
            if "secret" in volume:
                yield namespace, volume["secret"]["secretName"], "identities.json"
        for one in (*pod.get("initContainers", ()), *pod["containers"]):
            for variable in one.get("env", ()):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference and not reference.get("optional"):
                    yield namespace, reference["name"], reference["key"]


def made_secrets() -> Manifests:
    """Those of a new site."""
    script = load_script(KUBERNETES / "make_secrets.py")
    return list(script.make_secrets(script.new_keys()))


def keys_of(secrets: Manifests) -> set[tuple[str, str, str]]:
    """Namespace, name and key of each."""
    return {
        (one["metadata"]["namespace"], one["metadata"]["name"], key) for one in secrets for key in one["stringData"]
    }


def test_the_secrets_that_are_made_are_those_that_are_needed(manifests: Manifests) -> None:
    secrets = made_secrets()
    assert set(references(manifests)) <= keys_of(secrets)
    for one in secrets:
        validate(one)


def test_the_steps_of_runs_get_settings_and_secrets_that_exist(overlays: dict[str, Manifests]) -> None:
    """What the compiled pipeline names by default: a ConfigMap with addresses of services, and keys of secrets."""
    cluster = load_params(INFRA.parent / "params.yaml").cluster
    (settings,) = [one for one in overlays["cpu"] if one["kind"] == "ConfigMap"]
    assert (settings["metadata"]["name"], settings["metadata"]["namespace"]) == (cluster.settings, "hepar-runs")
    variables = settings["data"]
    assert set(variables) == set(SETTINGS) - {LIMIT_VARIABLE}  # which has a default
    named = {kind: name for kind, name in cluster.secrets.model_dump().items() if name}
    assert {"s3", "patient_key"} <= named.keys()
    assert {("hepar-runs", name, key) for kind, name in named.items() for key in KEYS[kind]} <= keys_of(made_secrets())
    services = {
        f"{one['metadata']['name']}.{one['metadata']['namespace']}": one
        for one in overlays["cpu"]
        if one["kind"] == "Service"
    }
    for name in (URI_VARIABLE, "AWS_ENDPOINT_URL"):
        host, _, port = variables[name].removeprefix("http://").rpartition(":")
        assert services[host.removesuffix(".svc.cluster.local")]["spec"]["ports"] == [{"port": int(port)}]
    allowed = next(
        word for word in container(overlays["cpu"], "Deployment", "mlflow")["command"] if "allowed-hosts" in word
    )
    assert variables[URI_VARIABLE].removeprefix("http://") in allowed.partition("=")[2].split(",")


def test_the_steps_may_read_the_bucket_of_scans_that_the_documents_name(gpu: Manifests) -> None:
    (bucket,) = set(re.findall(r"s3://([\w-]+)/liver", (ROOT / "docs" / "submitting.md").read_text()))
    actions = load_script(KUBERNETES / "make_secrets.py").ACTIONS
    assert {f"Read:{bucket}", f"List:{bucket}"} <= set(actions["pipeline"])
    assert f"Write:{bucket}" not in actions["pipeline"]
    made = container(gpu, "Deployment", "mlflow", "buckets")["command"]
    rights = [right for found in actions.values() for right in found if ":" in right]
    assert {right.partition(":")[2] for right in rights} == set(made[2:])
    assert made == ComposeFile.load(dict.fromkeys(example_variables(), "x")).command("buckets")


def test_pods_reach_only_what_a_policy_names(gpu: Manifests) -> None:
    """Each selector of a policy finds a workload, and each service admits somebody."""
    names = {
        manifest["spec"].get("jobTemplate", manifest)["spec"]["template"]["metadata"]["labels"][
            "app.kubernetes.io/name"
        ]
        for manifest, _ in rules.pods(gpu)
    }
    policies = yaml.safe_dump([one for one in gpu if one["kind"] == "NetworkPolicy"])
    selected = set(re.findall(r"app\.kubernetes\.io/name: ([\w-]+)", policies))
    assert selected <= names
    assert {one["metadata"]["name"] for one in gpu if one["kind"] == "Service"} <= selected


def amount(quantity: str) -> float:
    """A quantity as Kubernetes writes it, such as 250m or 4Gi."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]


def test_predictions_talk_to_mlflow_alone_and_nobody_to_them(overlays: dict[str, Manifests]) -> None:
    """Names are looked up by base's policy; two policies have to agree for a connection."""
    serve, base = overlays["serve"], overlays["cpu"]
    policy, way = (find(serve, "NetworkPolicy", name)["spec"] for name in ("serve", "mlflow-for-serve"))
    assert "ingress" not in policy
    (out,), (into,) = policy["egress"], way["ingress"]
    label = find(base, "Deployment", "mlflow")["spec"]["template"]["metadata"]["labels"]
    for selector in (out["to"][0]["podSelector"], way["podSelector"]):
        assert selector["matchLabels"].items() <= label.items()
    own = find(serve, "Deployment", "serve")["spec"]["template"]["metadata"]["labels"]
    for selector in (policy["podSelector"], into["from"][0]["podSelector"]):
        assert selector["matchLabels"].items() <= own.items()
    assert out["ports"] == into["ports"] == [{"protocol": "TCP", "port": 5000}]


def test_quotas_leave_room_for_what_is_deployed(gpu: Manifests, overlays: dict[str, Manifests]) -> None:
    gpu += overlays["serve"]
    hard = find(gpu, "ResourceQuota", "services")["spec"]["hard"]
    asked = [
        (manifest, one["resources"])
        for manifest, pod in rules.pods(gpu)
        for one in pod["containers"]
        if manifest["metadata"]["namespace"] == "hepar"
    ]
    for key in ("cpu", "memory"):
        assert sum(amount(own["requests"][key]) for _, own in asked) <= amount(hard[f"requests.{key}"])
    assert sum(amount(own["limits"]["memory"]) for _, own in asked) <= amount(hard["limits.memory"])
    claims = [one["spec"] for one in gpu if one["kind"] == "PersistentVolumeClaim"]
    claims += [claim["spec"] for one in gpu for claim in one.get("spec", {}).get("volumeClaimTemplates", ())]
    stored = sum(amount(claim["resources"]["requests"]["storage"]) for claim in claims)
    assert stored <= amount(hard["requests.storage"])


def test_only_the_gpu_overlay_admits_gpus(overlays: dict[str, Manifests]) -> None:
    cpu, gpu = (find(overlays[name], "ResourceQuota", "runs")["spec"]["hard"] for name in ("cpu", "gpu"))
    assert cpu.pop("requests.nvidia.com/gpu") == "0"
    assert int(gpu.pop("requests.nvidia.com/gpu")) >= 1
    assert cpu == gpu


def test_compose_and_kubernetes_run_the_same_commands(gpu: Manifests, overlays: dict[str, Manifests]) -> None:
    compose = ComposeFile.load(dict.fromkeys(example_variables(), "x"))
    own = {"--allowed-hosts", "--cors-allowed-origins", "-s3.config", "--model"}  # of a site

    def command(words: list[str]) -> list[str]:
        return [word for word in words if word.partition("=")[0] not in own]

    variables = container(gpu, "Deployment", "mlflow")["env"]
    assert {one["name"] for one in variables} == set(compose.environment("mlflow"))
    for name, kind, words in (("mlflow", "Deployment", "command"), ("s3", "StatefulSet", "command"),
                              ("postgres", "StatefulSet", "args"), ("backup", "CronJob", "command"),
                              ("serve", "Deployment", "command")):  # fmt: skip
        found = container(gpu + overlays["serve"], kind, name)
        assert command(found[words]) == command(compose.command(name))
        probe = found.get("readinessProbe", {})
        if "exec" in probe:
            assert ["CMD", *probe["exec"]["command"]] == compose.services[name]["healthcheck"]["test"]
        if "httpGet" in probe:
            assert f'"{probe["httpGet"]["path"]}"' in compose.services[name]["healthcheck"]["test"][-1]
