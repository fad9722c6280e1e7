"""A teacher ensemble as one model folder, made of the teachers of its folds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from hepar.cases import Modality
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder
from hepar.runtime.artifacts import read_manifest, write_artifact
from hepar.runtime.progress import stage


def save_ensemble(
    members: Sequence[ModelFolder],
    model: Path,
    origin: Mapping[str, str],
    liver_intensity: Mapping[Modality, tuple[float, float]],
) -> None:
    """Write the teachers of all folds, in their order and each with its snapshots, as the model folder `model`.

    `liver_intensity` is that of the patients of all folds (see `ModelSpec`). The history is that of the first fold.
    """
    hashes = [read_manifest(member.folder, ModelFolder.KIND).hash for member in members]
    taken = {ModelFolder.member_name(number): digest for number, digest in enumerate(hashes, start=1)}
    first = members[0]
    spec = first.load_spec().model_copy(update={"origin": dict(origin), "liver_intensity": dict(liver_intensity)})
    with write_artifact(model, ModelFolder.KIND, {**origin, **taken}) as folder:
        ensemble = ModelFolder(folder)
        weights = [member.load_weights(name) for member in members for name in member.weight_files()]
        ensemble.save(weights[0], spec, weights[1:])
        shutil.copyfile(first.folder / ModelFolder.HISTORY, folder / ModelFolder.HISTORY)
        ensemble.save_patients(frozenset[str]().union(*(member.load_patients() for member in members)))


def gather(folds: Sequence[Path], model: Path, modality: Modality) -> None:
    """Write the teachers of all folds, each trained by a step of its own, as the ensemble that one step would make.

    `folds` are their model folders in any order; without a scan of the modality, `model` says so as each of them does.
    Raises ArtifactError unless they are all folds of one ensemble of the modality.
    """
    with stage(f"train-liver-{modality}"):
        parents = {folder: dict(read_manifest(folder, ModelFolder.KIND).parents) for folder in folds}
        trained = [folder for folder in folds if ModelFolder(folder).not_trained() is None]
        for folder, given in parents.items():
            needed = {ModelFolder.FOLD, ModelFolder.ENSEMBLE_INTENSITY} if folder in trained else {ModelFolder.FOLD}
            if needed - given.keys() or given.get(ModelFolder.ROLE) != ModelFolder.teacher_role(modality):
                raise ArtifactError(f"{folder} is no fold of a {modality} teacher, made by 'hepar train-liver --fold'")
        label_of = {folder: given.pop(ModelFolder.FOLD) for folder, given in parents.items()}
        if not trained:
            with write_artifact(model, ModelFolder.KIND, parents[folds[0]]) as written:
                ModelFolder(written).save_untrained(ModelFolder(folds[0]).not_trained() or "")
            return
        members = _in_order(trained, label_of)
        _check_alike(members, parents)
        origin = parents[members[0]]
        liver_intensity = {
            Modality(name): (float(mean), float(deviation))
            for name, (mean, deviation) in json.loads(origin.pop(ModelFolder.ENSEMBLE_INTENSITY)).items()
        }
        save_ensemble(list(map(ModelFolder, members)), model, origin, liver_intensity)


def _in_order(trained: Sequence[Path], label_of: Mapping[Path, str]) -> list[Path]:
    """The model folders by the number of their folds, such as 2 of `2/3`. Raises ArtifactError unless each is there
    once."""
    folder_of = {label_of[folder]: folder for folder in trained}
    total = label_of[trained[0]].partition("/")[2]
    wanted = [f"{number}/{total}" for number in range(1, int(total) + 1)]
    if sorted(label_of[folder] for folder in trained) != sorted(wanted):
        found = ", ".join(sorted(label_of[folder] for folder in trained))
        raise ArtifactError(f"{trained[0].parent}: the folds are {found}, must be {', '.join(wanted)}")
    return [folder_of[label] for label in wanted]


def _check_alike(members: Sequence[Path], parents: Mapping[Path, Mapping[str, str]]) -> None:
    """Raise ArtifactError unless all were trained on the same cohort with the same network and preprocessing."""
    own = {"origin", "liver_intensity"}  # may differ between folds
    first, *others = members
    expected = ModelFolder(first).load_spec().model_dump(exclude=own)
    for other in others:
        spec = ModelFolder(other).load_spec().model_dump(exclude=own)
        if differing := [name for name in expected if spec[name] != expected[name]]:
            raise ArtifactError(f"{other} and {first} are no folds of one teacher: they differ in {differing[0]}")
        if differing := sorted(name for name, value in parents[first].items() if parents[other].get(name) != value):
            raise ArtifactError(f"{other} and {first} are no folds of one teacher: they differ in {differing[0]}")
