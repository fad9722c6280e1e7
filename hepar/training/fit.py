"""From a pool to a finished model folder, for liver teachers and the universal model alike."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hepar.cases import STRUCTURES, LabelState, Modality, Split
from hepar.errors import HeparError, one_line
from hepar.inference.model_folder import ModelFolder, ModelSpec, hash_patient
from hepar.inference.prediction import make_model
from hepar.networks import OUTPUT_LAYERS, build_network
from hepar.params import NetworkParams, TrainingParams
from hepar.pool.table import Pool
from hepar.registry.lineage_records import LINEAGE, write_records
from hepar.registry.tracking import RUN_FILE, TrainingRun
from hepar.runtime.artifacts import read_manifest, sha256_json, write_artifact
from hepar.runtime.device import use_threads
from hepar.runtime.progress import current_stage, stage
from hepar.runtime.stored_checkpoint import StoredCheckpoint
from hepar.runtime.unfinished import checkpoint_folder
from hepar.training import checkpoint, distributed
from hepar.training.liver_intensities import liver_intensities
from hepar.training.loop import Trained, Trainer
from hepar.training.operating_point import choose_operating_point
from hepar.training.taught import taught_structures

MIN_TUMOUR_CASES = 5  # in validation; to fewer an extreme threshold fits by chance, and misses the tumours of others
# a run may resume with other values of these
EXECUTION_SETTINGS = {"processes", "threads", "workers", "cache_gib", "checkpoint_every", "checkpoint_minutes"}


@dataclass(frozen=True)
class Recipe:
    """How to make a model from a pool, and the MLflow experiment in which its training is recorded."""

    network: NetworkParams
    training: TrainingParams
    modalities: tuple[Modality, ...]
    experiment: str
    # see ModelSpec; if empty, measured once, when the training ends
    liver_intensity: Mapping[Modality, tuple[float, float]] = field(default_factory=dict)
    warm_start: Path | None = None  # the model folder whose weights the training starts from
    inputs: tuple[Path, ...] = ()  # artifacts whose records and cases join the MLflow run; none need exist


def fit_model(
    pool: Pool, model: Path, recipe: Recipe, origin: Mapping[str, str], notes: Mapping[str, str] | None = None
) -> None:
    """Train a network and write the model folder `model`, which appears only when it is complete.

    On a machine with several GPUs this starts one process per GPU; under `torchrun` every process calls it and rank 0
    writes. `origin` becomes part of the model, `notes` only of its manifest. A killed run leaves a checkpoint, with
    HEPAR_STORE also in the store, from which the next run with the same data and settings resumes. Raises ParamsError,
    HeparError and Preempted as `Trainer` does, and HeparError if the warm start has another network.
    """
    processes = distributed.process_count(recipe.training)
    job = (current_stage().status.stage, pool, model, recipe, dict(origin), dict(notes or {}))
    if processes > 1 and not distributed.is_launched():
        if idle := torch.cuda.device_count() - processes if recipe.training.processes == 0 else 0:
            current_stage().log(f"{idle} of the GPUs stay idle: training.batch_size is {recipe.training.batch_size}")
        distributed.launch(processes, _fit_in_stage, *job)
    else:
        _fit(*job)


def _fit_in_stage(stage_name: str, *job: Any) -> None:
    """Entry point of a launched process, in which no stage is running yet."""
    with stage(stage_name):
        _fit(stage_name, *job)


def _fit(
    stage_name: str, pool: Pool, model: Path, recipe: Recipe, origin: dict[str, str], notes: dict[str, str]
) -> None:
    training = recipe.training
    use_threads(distributed.threads_per_process(training.threads))
    network, patients = _initial_network(recipe), _patients(pool, recipe.warm_start)
    spec = ModelSpec(
        network=recipe.network,
        plan=pool.plan,
        patch_zyx=training.patch_zyx,
        modalities=recipe.modalities,
        taught=taught_structures(pool, training),
        liver_intensity=dict(recipe.liver_intensity),
        origin=origin,
    )
    settings = training.model_dump(mode="json", exclude=EXECUTION_SETTINGS)
    key = sha256_json([spec.model_dump(mode="json"), settings, [entry.arrays.sha256 for entry in pool.entries]])
    checkpoints = checkpoint_folder(model, key)
    with distributed.process_group() as device:
        network = distributed.sync_batch_norm(network, device)
        if distributed.rank() > 0:
            Trainer(network, pool, training, checkpoints, device, lambda step, metrics: None).run(current_stage())
            return
        files, optional = (RUN_FILE, checkpoint.FILE), (RUN_FILE,)  # without a tracking server there is no run
        stored = StoredCheckpoint.of_environment(checkpoints.name, files, training.checkpoint_minutes, optional)
        if stored is not None:
            stored.restore(checkpoints)
        with TrainingRun(recipe.experiment, stage_name, spec, training, checkpoints) as run:
            run.log_files(LINEAGE, partial(write_records, recipe.inputs))
            trained = Trainer(network, pool, training, checkpoints, device, run.log, stored).run(current_stage())
            with write_artifact(model, ModelFolder.KIND, origin | notes) as folder:
                model_folder = ModelFolder(folder)
                if not recipe.liver_intensity:  # reads all arrays, so here: once, by one process
                    spec = spec.model_copy(update={"liver_intensity": liver_intensities(pool)})
                finished = _with_operating_point(spec, trained, pool, training, device)
                model_folder.save(trained.weights, finished, trained.snapshots)
                model_folder.save_history(trained.history)
                model_folder.save_patients(patients)
            run.tag_model(read_manifest(model, ModelFolder.KIND).hash)
    shutil.rmtree(checkpoints, ignore_errors=True)
    if stored is not None:
        stored.remove()


def _initial_network(recipe: Recipe) -> nn.Module:
    """The network with seeded random weights, or with those of the warm start."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        network = build_network(recipe.network.name, recipe.network.config, recipe.training.patch_zyx)
    if recipe.warm_start is None:
        return network
    warm = ModelFolder(recipe.warm_start)
    untaught = [number for number, name in enumerate(STRUCTURES) if name not in warm.load_spec().taught]
    weights = keep_output_rows(warm.load_weights(), network, OUTPUT_LAYERS[recipe.network.name], untaught)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = one_line(error)
        raise HeparError(f"train_universal.warm_start is a model with another network: {reason}") from None
    return network


def keep_output_rows(
    weights: Mapping[str, Tensor], network: nn.Module, layers: str, structures: Sequence[int]
) -> dict[str, Tensor]:
    """The state dict `weights`, but with the output rows of some structures, counted from 0, as `network` has them.

    A model that was never taught a structure predicts it at random there, and confidently. `layers` is the regular
    expression of the output layers' names. They have one row per structure, or one more for the background of a
    softmax, which comes first. What does not fit the network is left as it is.
    """
    kept, initial = dict(weights), network.state_dict()
    for name, layer in network.named_modules(remove_duplicate=False):
        if re.fullmatch(layers, name) is None:
            continue
        transposed = isinstance(layer, nn.ConvTranspose3d)  # its kernel counts the inputs first
        for key, axis in ((f"{name}.weight", int(transposed)), (f"{name}.bias", 0)):
            if key in initial and key in kept and kept[key].shape == initial[key].shape:
                first = initial[key].shape[axis] - len(STRUCTURES)
                rows = torch.tensor([first + structure for structure in structures], dtype=torch.long)
                kept[key] = kept[key].index_copy(axis, rows, initial[key].index_select(axis, rows))
    return kept


def _with_operating_point(
    spec: ModelSpec, trained: Trained, pool: Pool, training: TrainingParams, device: torch.device
) -> ModelSpec:
    """The spec with tumour threshold and smallest lesion chosen on all validation patients, all members averaged.

    With fewer than `MIN_TUMOUR_CASES` that have a tumour, or without validation, it keeps the defaults.
    """
    cases = pool.select(Split.VAL)
    with_tumour = sum(entry.tumour.state == LabelState.MANUAL for entry in cases)
    if not training.validation_cases or "tumour" not in spec.taught or with_tumour < MIN_TUMOUR_CASES:
        return spec
    members = [make_model(weights, spec, device).network for weights in (trained.weights, *trained.snapshots)]
    point = choose_operating_point(members, pool, cases, spec, device, training.precision)
    current_stage().log(f"tumour threshold {point.tumour_threshold:g}, lesions from {point.min_lesion_ml:g} ml")
    update = {"tumour_threshold": point.tumour_threshold, "min_lesion_ml": point.min_lesion_ml}
    return spec.model_copy(update=update)


def _patients(pool: Pool, warm_start: Path | None) -> frozenset[str]:
    """Hashes of the patients in the pool and of those that the warm start has seen; an imported model lists none."""
    patients = frozenset(hash_patient(entry.patient_id) for entry in pool.entries)
    if warm_start is None or not ModelFolder(warm_start).has_patients():
        return patients
    return patients | ModelFolder(warm_start).load_patients()
