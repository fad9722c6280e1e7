#!/usr/bin/env python3
"""House rules for rendered manifests, beyond the schema: `rules.py [--release] FILE`, FILE from `kubectl kustomize`.

Prints what breaks a rule, as `KIND/NAME: RULE: what it is`, and exits with 1 if anything does. --release also asks for
images by digest; without it a tag is enough, since the repository cannot know the digests of your registry.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
DIGEST = re.compile(r"[\w./:-]+@sha256:[0-9a-f]{64}")
TAG = re.compile(r"[\w./-]+(:\d+/[\w./-]+)?:[\w.-]+")
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY")
LONG_RUNNING = ("Deployment", "StatefulSet", "DaemonSet")
CLUSTER_WIDE = ("Namespace",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--release", action="store_true", help="refuse an image that is not named by digest")
    given = parser.parse_args()
    complaints = check([found for found in yaml.safe_load_all(given.file.read_text()) if found], given.release)
    print("\n".join(complaints) or f"{given.file}: {len(RULES) + given.release} rules hold")
    return 1 if complaints else 0


def check(manifests: list[Manifest], release: bool = False) -> list[str]:
    """All that breaks a rule, as one line each."""
    rules = {**RULES, "image-by-digest": image_by_digest} if release else RULES
    return [f"{where}: {name}: {what}" for name, rule in rules.items() for where, what in rule(manifests)]


Complaints = Iterator[tuple[str, str]]


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pods(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Each workload with the spec of its pods."""
    for manifest in manifests:
        spec = manifest.get("spec") or {}
        if manifest["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if manifest["kind"] == "Pod":
            yield manifest, spec
        elif "template" in spec:
            yield manifest, spec["template"]["spec"]


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Each container with its place and its pod."""
    for manifest, pod in pods(manifests):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield f"{title(manifest)} {container['name']}", container, pod


def non_root(manifests: list[Manifest]) -> Complaints:
    """A user above 0, and Kubernetes told to refuse root."""
    for where, container, pod in containers(manifests):
        values = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        if values.get("runAsNonRoot") is not True or not values.get("runAsUser"):
            yield where, f"runAsNonRoot is {values.get('runAsNonRoot')}, runAsUser is {values.get('runAsUser')}"


def confined(manifests: list[Manifest]) -> Complaints:
    """No way to more rights: what the Pod Security Standard `restricted` asks for, and a read-only root file system."""
    for where, container, pod in containers(manifests):
        own = container.get("securityContext", {})
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            yield where, "allowPrivilegeEscalation is not false"
        if own.get("capabilities", {}) != {"drop": ["ALL"]}:
            yield where, f"capabilities are {own.get('capabilities')}"
        if own.get("readOnlyRootFilesystem") is not True:
            yield where, "the root file system is writable"
        if pod.get("securityContext", {}).get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield where, "seccompProfile is not RuntimeDefault"
        if shared := sorted(pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}):
            yield where, f"shares with the host: {', '.join(shared)}"
        if any("hostPath" in volume for volume in pod.get("volumes", ())):
            yield where, "mounts a folder of the host"


def limited(manifests: list[Manifest]) -> Complaints:
    """Requests of CPU and memory, and a limit of memory. No limit of CPU: it would slow a pod on an idle node."""
    for where, container, _ in containers(manifests):
        resources = container.get("resources", {})
        asked, limits = resources.get("requests", {}), resources.get("limits", {})
        if missing := [f"requests.{name}" for name in ("cpu", "memory") if name not in asked]:
            yield where, f"no {', '.join(missing)}"
        if "memory" not in limits:
            yield where, "no limits.memory"


def tagged(manifests: list[Manifest]) -> Complaints:
    """An image with a tag or a digest."""
    for where, container, _ in containers(manifests):
        if not (TAG.fullmatch(container["image"]) or DIGEST.fullmatch(container["image"])):
            yield where, f"image {container['image']} has neither tag nor digest"


def image_by_digest(manifests: list[Manifest]) -> Complaints:
    """An image that cannot change: a registry may move a tag."""
    for where, container, _ in containers(manifests):
        if not DIGEST.fullmatch(container["image"]):
            yield where, f"image {container['image']} has no digest: give one in infra/kubernetes/images"


def no_token(manifests: list[Manifest]) -> Complaints:
    """No pod gets a token of the Kubernetes API, and each workload has an account of its own."""
    for manifest, pod in pods(manifests):
        if pod.get("automountServiceAccountToken") is not False:
            yield title(manifest), "mounts the token of its service account"
        if pod.get("serviceAccountName", "default") == "default":
            yield title(manifest), "uses the default service account"


def probed(manifests: list[Manifest]) -> Complaints:
    """Kubernetes can see whether a service is ready, and whether it hangs."""
    for manifest, pod in pods(manifests):
        for container in pod["containers"] if manifest["kind"] in LONG_RUNNING else ():
            for probe in {"readinessProbe", "livenessProbe"} - container.keys():
                yield title(manifest), f"{container['name']} has no {probe}"


def secrets_by_reference(manifests: list[Manifest]) -> Complaints:
    """No secret is in a manifest, nor in a command, which every user of a node can read."""
    for manifest in manifests:
        if manifest["kind"] == "Secret":
            yield title(manifest), "a Secret does not belong in the repository: see infra/kubernetes/make_secrets.py"
    for where, container, _ in containers(manifests):
        for variable in container.get("env", ()):
            if SECRET_NAME.search(variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
                yield where, f"{variable['name']} does not come from a Secret"
        for word in (*container.get("command", ()), *container.get("args", ())):
            if re.search(r"://[^/@]*:[^/@]*@", word):
                yield where, "a password in the command"


def walled(manifests: list[Manifest]) -> Complaints:
    """Each namespace denies all traffic that is not named, and has a quota."""
    for namespace in (found["metadata"]["name"] for found in manifests if found["kind"] == "Namespace"):
        own = [found for found in manifests if found["metadata"].get("namespace") == namespace]
        closed = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        if not any(found["kind"] == "NetworkPolicy" and found["spec"] == closed for found in own):
            yield f"Namespace/{namespace}", "no NetworkPolicy denies everything else"
        if not any(found["kind"] == "ResourceQuota" for found in own):
            yield f"Namespace/{namespace}", "no ResourceQuota"


def least_rights(manifests: list[Manifest]) -> Complaints:
    """No rights in the whole cluster, no wildcards, no reading of secrets that are not named."""
    for manifest in manifests:
        if manifest["kind"].startswith("ClusterRole"):
            yield title(manifest), "gives rights in the whole cluster"
        for rule in manifest.get("rules", ()) if manifest["kind"] == "Role" else ():
            if "*" in (*rule["apiGroups"], *rule["resources"], *rule["verbs"]):
                yield title(manifest), f"a wildcard in {rule}"
            if {"secrets", "configmaps"} & {*rule["resources"]} and not rule.get("resourceNames"):
                yield title(manifest), f"may read every object of {', '.join(rule['resources'])}"


def internal(manifests: list[Manifest]) -> Complaints:
    """No service is reachable from outside the cluster."""
    for manifest in manifests:
        if manifest["kind"] == "Ingress" or manifest.get("spec", {}).get("type") in ("NodePort", "LoadBalancer"):
            yield title(manifest), "is reachable from outside the cluster"


def placed(manifests: list[Manifest]) -> Complaints:
    """Everything names its namespace, so that it does not land in the one that a shell happens to use."""
    for manifest in manifests:
        if manifest["kind"] not in CLUSTER_WIDE and not manifest["metadata"].get("namespace"):
            yield title(manifest), "has no namespace"


RULES: dict[str, Callable[[list[Manifest]], Complaints]] = {
    "non-root": non_root,
    "confined": confined,
    "limited": limited,
    "tagged": tagged,
    "no-token": no_token,
    "probed": probed,
    "secrets-by-reference": secrets_by_reference,
    "walled": walled,
    "least-rights": least_rights,
    "internal": internal,
    "placed": placed,
}


if __name__ == "__main__":
    sys.exit(main())
