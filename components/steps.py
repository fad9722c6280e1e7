"""KFP components of the steps that are no stage: the check before the first, the news after the last, and between them
what makes one teacher of its folds."""

# As in `components.stages`: imports stand inside, and there is no `from __future__ import annotations`.
from typing import NamedTuple

from kfp import dsl

from components.images import image_of


@dsl.component(base_image=image_of("check"), install_kfp_package=False)
def check(
    compiled_folds: int,
    overrides: dict,  # type: ignore[type-arg]
    source: str,
    experiment: str,
    modalities: list,  # type: ignore[type-arg]
    ingest: dict,  # type: ignore[type-arg]
    preprocessing: dict,  # type: ignore[type-arg]
    network: dict,  # type: ignore[type-arg]
    train_liver: dict,  # type: ignore[type-arg]
    pseudo_label: dict,  # type: ignore[type-arg]
    assemble_pool: dict,  # type: ignore[type-arg]
    train_universal: dict,  # type: ignore[type-arg]
    evaluate: dict,  # type: ignore[type-arg]
    register: dict,  # type: ignore[type-arg]
) -> NamedTuple(  # type: ignore[valid-type]
    "Checked",
    [
        ("source", str),
        ("experiment", str),
        ("modalities", list),
        ("ingest", dict),
        ("preprocessing", dict),
        ("network", dict),
        ("train_liver", dict),
        ("pseudo_label", dict),
        ("assemble_pool", dict),
        ("train_universal", dict),
        ("evaluate", dict),
        ("register", dict),
    ],
):
    """Merge the overrides into the params, and check these and all that a run needs to reach.

    `compiled_folds` are the folds of a teacher that have tasks of their own.
    """
    import hepar.planning.preflight
    from hepar.params import dump_sections

    sections = {
        "source": source,
        "experiment": experiment,
        "modalities": modalities,
        "ingest": ingest,
        "preprocessing": preprocessing,
        "network": network,
        "train_liver": train_liver,
        "pseudo_label": pseudo_label,
        "assemble_pool": assemble_pool,
        "train_universal": train_universal,
        "evaluate": evaluate,
        "register": register,
    }
    checked = dump_sections(hepar.planning.preflight.run(sections, overrides, compiled_folds))
    return tuple(checked[name] for name in sections)


@dsl.component(base_image=image_of("gather_folds"), install_kfp_package=False)
def gather_folds(
    modality: str,
    model: dsl.Output[dsl.Model],
    fold_1: dsl.Input[dsl.Model] = None,
    fold_2: dsl.Input[dsl.Model] = None,
    fold_3: dsl.Input[dsl.Model] = None,
    fold_4: dsl.Input[dsl.Model] = None,
    fold_5: dsl.Input[dsl.Model] = None,
    fold_6: dsl.Input[dsl.Model] = None,
    fold_7: dsl.Input[dsl.Model] = None,
    fold_8: dsl.Input[dsl.Model] = None,
    fold_9: dsl.Input[dsl.Model] = None,
    fold_10: dsl.Input[dsl.Model] = None,
) -> str:
    """Make one teacher of its folds; an input in KFP is one artifact, so there are as many as folds at most."""
    from pathlib import Path

    import hepar.training.ensemble
    from hepar.cases import Modality
    from hepar.inference.model_folder import ModelFolder
    from hepar.runtime.artifacts import read_manifest

    given = (fold_1, fold_2, fold_3, fold_4, fold_5, fold_6, fold_7, fold_8, fold_9, fold_10)
    folds = [Path(fold.path) for fold in given if fold is not None]
    hepar.training.ensemble.gather(folds, Path(model.path), Modality(modality))
    return read_manifest(Path(model.path), ModelFolder.KIND).hash


@dsl.component(base_image=image_of("notify"), install_kfp_package=False)
def notify(status: dsl.PipelineTaskFinalStatus, mlflow_url: str, runs_url: str) -> None:
    """Send the outcome, the comparison with the champion and links to HEPAR_NOTIFY_URL, if that is set."""
    import os

    from hepar.runtime.notification import URL_VARIABLE

    if os.environ.get(URL_VARIABLE):  # what follows takes seconds to import
        import hepar.registry.run_news

        hepar.registry.run_news.tell_outcome(status.state, status.error_message or "", mlflow_url, runs_url)
