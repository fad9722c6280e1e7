"""What a task on a cluster learns from its pod."""

from kfp import dsl, kubernetes

from hepar.runtime.execution import KFP_RUN_VARIABLE, STAGE_IMAGE_VARIABLE

IMAGE_ANNOTATION = "hepar-image"  # of a pod
RUN_LABEL = "pipeline/runid"  # that KFP gives every pod


def tell_execution(task: dsl.PipelineTask) -> None:
    """Let a task on a cluster know its image and its KFP run, by settings of the pod that no local runner reads.

    As parameters they would enter the key of KFP's cache, so that no task would ever be found there.
    """
    kubernetes.add_pod_annotation(task, IMAGE_ANNOTATION, task.container_spec.image)
    kubernetes.use_field_path_as_env(task, STAGE_IMAGE_VARIABLE, f"metadata.annotations['{IMAGE_ANNOTATION}']")
    kubernetes.use_field_path_as_env(task, KFP_RUN_VARIABLE, f"metadata.labels['{RUN_LABEL}']")
