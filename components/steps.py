"""KFP components of the steps that are no stage: the check before the first stage, and the news after the last."""

# As in `components.stages`: imports stand inside, and there is no `from __future__ import annotations`.
from typing import NamedTuple

from kfp import dsl

from components.images import image_of


@dsl.component(base_image=image_of("check"), install_kfp_package=False)
def check(
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
    """Merge the overrides into the params, and check these and all that a run needs to reach."""
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
    checked = dump_sections(hepar.planning.preflight.run(sections, overrides))
    return tuple(checked[name] for name in sections)


@dsl.component(base_image=image_of("notify"), install_kfp_package=False)
def notify(status: dsl.PipelineTaskFinalStatus, mlflow_url: str, runs_url: str) -> None:
    """Send the outcome, the comparison with the champion and links to HEPAR_NOTIFY_URL, if that is set."""
    import os

    from hepar.runtime.notification import URL_VARIABLE

    if os.environ.get(URL_VARIABLE):  # what follows takes seconds to import
        import hepar.registry.run_news

        hepar.registry.run_news.tell_outcome(status.state, status.error_message or "", mlflow_url, runs_url)
