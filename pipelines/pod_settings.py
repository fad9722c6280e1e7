"""What a step asks of a cluster and learns from its pod; no local runner reads it.

Addresses come from a ConfigMap, credentials from Secrets, both optional: what is missing is said by the step `check` in
one sentence, while a pod that waits for a missing object only hangs. As parameters they would be shown, and enter the
key of KFP's cache.
"""

import os
from collections.abc import Mapping

from kfp import dsl, kubernetes

from components.images import check_digests
from hepar.ingest.sources import pseudonyms
from hepar.params import ClusterParams, Params, StepResources, TrainingParams
from hepar.registry.tracking import PASSWORD_VARIABLE, URI_VARIABLE, USER_VARIABLE
from hepar.runtime import notification, remote_cache
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.execution import KFP_RUN_VARIABLE, STAGE_IMAGE_VARIABLE
from hepar.runtime.redaction import QUERY_VARIABLE
from pipelines.execution import ONE_MACHINE_VARIABLE

IMAGE_ANNOTATION, DOCS_ANNOTATION, SCRATCH_ANNOTATION = "hepar-image", "hepar-docs", "hepar-scratch"  # of a pod
RUN_LABEL = "pipeline/runid"  # that KFP gives every pod
SCRATCH, SHARED_MEMORY = "/scratch", "/dev/shm"
FIRST_PAUSE, FACTOR = 60, 2.0  # seconds before the first retry, and how much longer each further pause is
WAIT_SECONDS = 24 * 3600  # for a free node, in each attempt; Argo's window goes on while a pod waits

S3_SECRET = {"access-key": "AWS_ACCESS_KEY_ID", "secret-key": "AWS_SECRET_ACCESS_KEY"}
MLFLOW_SECRET = {"username": USER_VARIABLE, "password": PASSWORD_VARIABLE}
SETTINGS = (URI_VARIABLE, STORE_VARIABLE, "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", remote_cache.LIMIT_VARIABLE)
READING = ("s3", "mlflow", "dicomweb", "patient_key")  # secrets of the steps that open the source
SECRETS_OF: Mapping[str, tuple[str, ...]] = {
    "check": READING,
    "ingest": READING,
    "train-liver": ("s3", "mlflow"),
    "gather-folds": ("s3",),
    "pseudo-label": ("s3",),
    "assemble-pool": ("s3", "mlflow"),
    "train-universal": ("s3", "mlflow"),
    "evaluate": ("s3",),
    "register": ("s3", "mlflow"),
    "notify": ("s3", "mlflow", "notify"),
}
KEYS: Mapping[str, Mapping[str, str]] = {  # of each secret: the variable that each of its keys becomes
    "s3": S3_SECRET,
    "mlflow": MLFLOW_SECRET,
    "dicomweb": {"token": "HEPAR_DICOMWEB_TOKEN", "query": QUERY_VARIABLE},
    "patient_key": {"key": pseudonyms.VARIABLE},
    "notify": {"url": notification.URL_VARIABLE},
}
CAPTIONS: Mapping[str, tuple[str, str]] = {  # what a step does, and the page in docs/ about it
    "check": ("params, source and services", "operating.md#when-a-step-fails"),
    "ingest": ("read, check and split the scans", "data.md"),
    "train-liver": ("liver teacher", "architecture.md#the-flow"),
    "gather-folds": ("one teacher of all folds", "architecture.md#folds-of-a-teacher"),
    "pseudo-label": ("livers for scans without one", "mixed-labels.md"),
    "assemble-pool": ("all labels in one pool", "pool.md"),
    "train-universal": ("one model for CT and MR", "architecture.md#the-flow"),
    "evaluate": ("scores on held-out patients", "evaluation.md"),
    "register": ("champion or challenger", "promotion.md"),
    "notify": ("send the outcome", "operating.md#notifications"),
}


def set_up_pod(task: dsl.PipelineTask, step: str, params: Params) -> None:
    """Give a task what its step asks for.

    Raises ParamsError for an image that is named by a tag, unless the pipeline is to run on this machine.
    """
    image = task.container_spec.image
    if not os.environ.get(ONE_MACHINE_VARIABLE):
        check_digests([image])
    cluster = params.cluster
    resources = cluster.steps.of(step)
    _set_resources(task, resources)
    _set_volumes(task, resources, cluster.storage_class, _training_of(step, params))
    _set_attempts(task, resources)
    _set_variables(task, step, cluster)
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.add_pod_annotation(task, IMAGE_ANNOTATION, image)
    kubernetes.add_pod_annotation(task, DOCS_ANNOTATION, cluster.docs_url + CAPTIONS[step][1])
    kubernetes.use_field_path_as_env(task, STAGE_IMAGE_VARIABLE, f"metadata.annotations['{IMAGE_ANNOTATION}']")
    kubernetes.use_field_path_as_env(task, KFP_RUN_VARIABLE, f"metadata.labels['{RUN_LABEL}']")


def _training_of(step: str, params: Params) -> TrainingParams | None:
    trainings = {"train-liver": params.train_liver.training, "train-universal": params.train_universal.training}
    return trainings.get(step)


def training_processes(training: TrainingParams, resources: StepResources) -> int:
    """How many processes train in a pod: `training.processes`, or one per GPU that the step asks for."""
    return training.processes or resources.gpus or 1


def retry_window(resources: StepResources) -> int:
    """Seconds after its first start in which a step may be tried again: enough for every attempt to use its timeout.

    Without it KFP gives up after an hour, however many retries are left.
    """
    pauses = sum(FIRST_PAUSE * FACTOR**number for number in range(resources.retries))
    return round((resources.retries + 1) * (_timeout(resources) + WAIT_SECONDS) + pauses)


def _timeout(resources: StepResources) -> int:
    return round(resources.timeout_hours * 3600)


def _set_attempts(task: dsl.PipelineTask, resources: StepResources) -> None:
    kubernetes.set_timeout(task, _timeout(resources))
    if resources.retries and not os.environ.get(ONE_MACHINE_VARIABLE):  # a local run says at once why it failed
        task.set_retry(
            resources.retries,
            backoff_duration=f"{FIRST_PAUSE}s",
            backoff_factor=FACTOR,
            backoff_max_duration=f"{retry_window(resources)}s",
        )


def _set_resources(task: dsl.PipelineTask, resources: StepResources) -> None:
    cpu, memory = f"{round(resources.cpu * 1000)}m", mebibytes(resources.memory_gib)
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    if resources.gpus:
        task.set_accelerator_type(resources.gpu_type).set_accelerator_limit(resources.gpus)
    for label, value in resources.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for taint in resources.tolerations:
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value or None, taint.effect)


def _set_volumes(
    task: dsl.PipelineTask, resources: StepResources, storage_class: str, training: TrainingParams | None
) -> None:
    if resources.scratch_gib:
        kubernetes.add_ephemeral_volume(
            task,
            volume_name=SCRATCH.strip("/"),
            mount_path=SCRATCH,
            access_modes=["ReadWriteOnce"],
            size=f"{resources.scratch_gib}Gi",
            storage_class_name=storage_class or None,
        )
        kubernetes.add_pod_annotation(task, SCRATCH_ANNOTATION, SCRATCH)
        kubernetes.use_field_path_as_env(task, "TMPDIR", f"metadata.annotations['{SCRATCH_ANNOTATION}']")
    if training is not None and training_processes(training, resources) > 1:
        size = mebibytes(resources.shared_memory_gib)
        kubernetes.empty_dir_mount(task, "shared-memory", SHARED_MEMORY, medium="Memory", size_limit=size)


def _set_variables(task: dsl.PipelineTask, step: str, cluster: ClusterParams) -> None:
    names = (*SETTINGS, notification.FORMAT_VARIABLE) if step == "notify" else SETTINGS
    if cluster.settings:
        kubernetes.use_config_map_as_env(task, cluster.settings, {name: name for name in names}, optional=True)
    for secret in SECRETS_OF[step]:
        if name := getattr(cluster.secrets, secret):
            kubernetes.use_secret_as_env(task, name, dict(KEYS[secret]), optional=True)


def mebibytes(gib: float) -> str:
    """A quantity of Kubernetes."""
    return f"{round(gib * 1024)}Mi"
