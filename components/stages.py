"""KFP components. Each validates its section of the params and calls the stage's `run`, as DVC and the CLI do.

A component returns the content hash of its artifact, a folder. Later components take hashes as parameters, because
KFP's cache compares parameters but not the contents of files. With HEPAR_STORE the volumes of cohort, pseudo-labels,
pool and report go to the store, and the artifact holds the rest.
"""

# KFP compiles the source of each function on its own, so imports stand inside, and evaluates annotations, so there is
# no `from __future__ import annotations`.
from kfp import dsl

from components.images import image_of


@dsl.component(base_image=image_of("ingest"), install_kfp_package=False)
def ingest(
    source: str,
    params: dict,  # type: ignore[type-arg]
    modalities: list,  # type: ignore[type-arg]
    cohort: dsl.Output[dsl.Artifact],
) -> str:
    """Read, check and split a source."""
    from pathlib import Path

    import hepar.stages.ingest
    from components.stored_artifacts import StoredArtifact
    from hepar.cases import Cohort, Modality
    from hepar.params import IngestParams, read_section
    from hepar.runtime.artifacts import read_manifest

    section, chosen = read_section(IngestParams, params), [Modality(name) for name in modalities]
    stored = StoredArtifact(Cohort.KIND, cohort.metadata, section.start_from)
    hepar.stages.ingest.run(source, Path(cohort.path), section, chosen, stored)
    return read_manifest(Path(cohort.path), Cohort.KIND).hash


@dsl.component(base_image=image_of("train_liver"), install_kfp_package=False)
def train_liver(
    modality: str,
    cohort_hash: str,
    preprocessing: dict,  # type: ignore[type-arg]
    network: dict,  # type: ignore[type-arg]
    params: dict,  # type: ignore[type-arg]
    experiment: str,
    cohort: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
) -> str:
    """Train the liver teacher of one modality."""
    from pathlib import Path

    import hepar.stages.train_liver
    from hepar.cases import Modality
    from hepar.inference.model_folder import ModelFolder
    from hepar.params import NetworkParams, PreprocessingParams, TrainLiverParams, read_section
    from hepar.runtime.artifacts import read_manifest

    hepar.stages.train_liver.run(
        Path(cohort.path),
        Path(model.path),
        Modality(modality),
        read_section(PreprocessingParams, preprocessing),
        read_section(NetworkParams, network),
        read_section(TrainLiverParams, params),
        experiment,
    )
    return read_manifest(Path(model.path), ModelFolder.KIND).hash


@dsl.component(base_image=image_of("train_liver"), install_kfp_package=False)
def train_liver_fold(
    modality: str,
    fold: int,
    folds: int,
    cohort_hash: str,
    preprocessing: dict,  # type: ignore[type-arg]
    network: dict,  # type: ignore[type-arg]
    params: dict,  # type: ignore[type-arg]
    experiment: str,
    cohort: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
) -> str:
    """Train the liver teacher of one modality that leaves out one fold of the patients."""
    from pathlib import Path

    import hepar.stages.train_liver
    from hepar.cases import Modality
    from hepar.inference.model_folder import ModelFolder
    from hepar.params import NetworkParams, PreprocessingParams, TrainLiverParams, read_section
    from hepar.runtime.artifacts import read_manifest
    from hepar.training.folds import Fold

    hepar.stages.train_liver.run(
        Path(cohort.path),
        Path(model.path),
        Fold(Modality(modality), fold, folds),
        read_section(PreprocessingParams, preprocessing),
        read_section(NetworkParams, network),
        read_section(TrainLiverParams, params),
        experiment,
    )
    return read_manifest(Path(model.path), ModelFolder.KIND).hash


@dsl.component(base_image=image_of("pseudo_label"), install_kfp_package=False)
def pseudo_label(
    cohort_hash: str,
    teacher_ct_hash: str,
    teacher_mr_hash: str,
    params: dict,  # type: ignore[type-arg]
    cohort: dsl.Input[dsl.Artifact],
    teacher_ct: dsl.Input[dsl.Model],
    teacher_mr: dsl.Input[dsl.Model],
    pseudo: dsl.Output[dsl.Artifact],
) -> str:
    """Predict and gate liver masks for the cases without one."""
    from pathlib import Path

    import hepar.stages.pseudo_label
    from components.stored_artifacts import StoredArtifact
    from hepar.cases import Modality
    from hepar.params import PseudoLabelParams, read_section
    from hepar.pseudo_labels.folder import PseudoLabels

    teachers = {Modality.CT: Path(teacher_ct.path), Modality.MR: Path(teacher_mr.path)}
    hepar.stages.pseudo_label.run(
        Path(cohort.path),
        teachers,
        Path(pseudo.path),
        read_section(PseudoLabelParams, params),
        StoredArtifact(PseudoLabels.KIND, pseudo.metadata),
    )
    return PseudoLabels.load(Path(pseudo.path)).manifest.hash


@dsl.component(base_image=image_of("assemble_pool"), install_kfp_package=False)
def assemble_pool(
    cohort_hash: str,
    pseudo_hash: str,
    modalities: list,  # type: ignore[type-arg]
    preprocessing: dict,  # type: ignore[type-arg]
    params: dict,  # type: ignore[type-arg]
    cohort: dsl.Input[dsl.Artifact],
    pseudo: dsl.Input[dsl.Artifact],
    pool: dsl.Output[dsl.Dataset],
) -> str:
    """Combine all labels into the pool."""
    from pathlib import Path

    import hepar.stages.assemble_pool
    from components.stored_artifacts import StoredArtifact
    from hepar.cases import Modality
    from hepar.params import AssemblePoolParams, PreprocessingParams, read_section
    from hepar.pool.table import Pool
    from hepar.runtime.artifacts import read_manifest

    section = read_section(AssemblePoolParams, params)
    hepar.stages.assemble_pool.run(
        Path(cohort.path),
        Path(pseudo.path),
        Path(pool.path),
        [Modality(name) for name in modalities],
        read_section(PreprocessingParams, preprocessing),
        section,
        StoredArtifact(Pool.KIND, pool.metadata, section.start_from),
    )
    return read_manifest(Path(pool.path), Pool.KIND).hash


@dsl.component(base_image=image_of("train_universal"), install_kfp_package=False)
def train_universal(
    pool_hash: str,
    teacher_ct_hash: str,
    teacher_mr_hash: str,
    network: dict,  # type: ignore[type-arg]
    params: dict,  # type: ignore[type-arg]
    experiment: str,
    pool: dsl.Input[dsl.Dataset],
    teacher_ct: dsl.Input[dsl.Model],
    teacher_mr: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
) -> str:
    """Train one model for all modalities on the pool."""
    from pathlib import Path

    import hepar.stages.train_universal
    from hepar.cases import Modality
    from hepar.inference.model_folder import ModelFolder
    from hepar.params import NetworkParams, TrainUniversalParams, read_section
    from hepar.runtime.artifacts import read_manifest

    hepar.stages.train_universal.run(
        Path(pool.path),
        {Modality.CT: Path(teacher_ct.path), Modality.MR: Path(teacher_mr.path)},
        Path(model.path),
        read_section(NetworkParams, network),
        read_section(TrainUniversalParams, params),
        experiment,
    )
    return read_manifest(Path(model.path), ModelFolder.KIND).hash


@dsl.component(base_image=image_of("evaluate"), install_kfp_package=False)
def evaluate(
    cohort_hash: str,
    model_hash: str,
    params: dict,  # type: ignore[type-arg]
    cohort: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    report: dsl.Output[dsl.Artifact],
    scores: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    stored_name: str = "",
) -> str:
    """Score the model on the held-out patients; KFP shows the mean Dice and the page of the report, with fewer pictures
    if it is large. The store keeps the report's version under `stored_name`, if that is given."""
    from pathlib import Path

    import hepar.stages.evaluate
    from components.stored_artifacts import ShownReport, StoredArtifact
    from hepar.evaluation.report_folder import Report
    from hepar.params import EvaluateParams, read_section

    hepar.stages.evaluate.run(
        Path(cohort.path),
        Path(model.path),
        Path(report.path),
        read_section(EvaluateParams, params),
        ShownReport(StoredArtifact(Report.KIND, report.metadata, name=stored_name), Path(page.path)),
    )
    written = Report.load(Path(report.path))
    for name, value in written.mean_dice().items():
        scores.log_metric(name, value)
    return written.manifest.hash


@dsl.component(base_image=image_of("register"), install_kfp_package=False)
def register(
    cohort_hash: str,
    model_hash: str,
    report_hash: str,
    params: dict,  # type: ignore[type-arg]
    experiment: str,
    cohort: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    report: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
) -> None:
    """Register the model as champion or challenger."""
    from pathlib import Path

    import hepar.stages.register
    from hepar.params import RegisterParams, read_section

    hepar.stages.register.run(
        Path(model.path),
        Path(report.path),
        Path(registration.path),
        read_section(RegisterParams, params),
        experiment,
        Path(cohort.path),
    )
