"""What promotion says to three challengers: a better one, an equal one, and one that is worse by false tumours.

`python benchmarks/promotion.py RUN [--params FILE] [--out FOLDER] [--noise 0.2] [--threshold 0.02]` takes cohort and
universal model of a finished run. Nothing is trained. The first champion is the model with noise on its weights, scored
on a cohort that lacks the last test patient of each modality. Then the cohort "grows" to the whole one, and three
challengers are scored on it and registered, in a registry on SQLite in the folder:

1. better: the model of the run;
2. equal: the same with a ten-thousandth of noise, so that its hash is another one;
3. worse by false tumours: the same with a low tumour threshold, and no smallest lesion.

Prints for each the scores, what the gates said, and how long the decision took, and at last how long it takes again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hepar.stages.evaluate
import hepar.stages.register
from hepar.cases import Case, Cohort, Split
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, load_params
from hepar.registry.champion import promote
from hepar.registry.registration import Registration
from hepar.registry.tracking import SQLITE, URI_VARIABLE
from hepar.runtime.artifacts import link_or_copy, read_manifest, write_artifact

ROOT = Path(__file__).parents[1]
SEED = 1
NAME = "promotion-benchmark"


def noisy(weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights with normal noise, whose standard deviation is a share of that of each tensor."""
    generator = torch.Generator().manual_seed(SEED)
    return {name: _noisy(value, share, generator) for name, value in weights.items()}


def _noisy(value: Tensor, share: float, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point() or value.numel() < 2:
        return value
    return value + share * value.std() * torch.randn(value.shape, generator=generator)


def write_variant(model: Path, out: Path, noise: float, **spec: Any) -> Path:
    """The model with noise on its weights and other values in its spec."""
    source = ModelFolder(model)
    with write_artifact(out, ModelFolder.KIND, read_manifest(model, ModelFolder.KIND).parents) as folder:
        target = ModelFolder(folder)
        weights = [noisy(source.load_weights(name), noise) for name in source.weight_files()]
        target.save(weights[0], source.load_spec().model_copy(update=spec), weights[1:])
        target.save_history(source.load_history())
        if source.has_patients():
            link_or_copy(model / ModelFolder.PATIENTS, folder / ModelFolder.PATIENTS)
    return out


def without_last_patients(cohort: Path, out: Path) -> Path:
    """The test cases of a cohort, without those of the last test patient of each modality."""
    cases = Cohort.load(cohort)
    tested: dict[str, list[Case]] = {}
    for case in cases.select(None, (Split.TEST,)):
        tested.setdefault(case.modality, []).append(case)
    last = {max(case.patient_id for case in of_one) for of_one in tested.values()}
    kept = tuple(case for of_one in tested.values() for case in of_one if case.patient_id not in last)
    hashes = read_manifest(cohort, Cohort.KIND).files
    known: dict[str, str] = {}
    with write_artifact(out, Cohort.KIND, {}, known) as folder:
        for file in (file for case in kept for file in case.file_hashes):
            link_or_copy(cohort / file, folder / file)
            known[file] = hashes[file]
        Cohort(folder, kept).save()
    return out


def register(name: str, model: Path, cohort: Path, params: Params, out: Path) -> str:
    """Score a model on a cohort and register it; prints what the gates said, and returns its version."""
    report, registration = out / f"report-{name}", out / f"registration-{name}"
    hepar.stages.evaluate.run(cohort, model, report, params.evaluate)
    section = params.register_model.model_copy(update={"model_name": NAME})
    begun = time.perf_counter()
    hepar.stages.register.run(model, report, registration, section, NAME, cohort)
    seconds = time.perf_counter() - begun
    result = Registration.load(registration)
    print(f"\n{name}: version {result.version}, {result.alias}, decided and registered in {seconds:.1f} s")
    for modality, scores in Report.load(report).metrics().items():
        print(f"  {modality}: {_shown(scores)}")
    for reason in result.reasons:
        print(f"  - {reason}")
    return result.version


def _shown(scores: Mapping[str, Any]) -> str:
    means = {f"{name} Dice": scores[name]["dice"]["mean"] for name in ("liver", "tumour")}
    means["specificity"] = scores["tumour"]["specificity"]["mean"]
    return ", ".join(f"{name} {'none' if value is None else format(value, '.3f')}" for name, value in means.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="working directory of a finished run")
    parser.add_argument(
        "--params", type=Path, default=ROOT / "params.yaml", help="params file, for gates and evaluation"
    )
    parser.add_argument("--out", type=Path, help="folder for models, reports and registry; a temporary one without it")
    parser.add_argument("--noise", type=float, default=0.2, help="noise of the first champion, as a share of each SD")
    parser.add_argument("--threshold", type=float, default=0.02, help="tumour threshold of the worse challenger")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hepar-promotion-") as temporary:
        out = (given.out or Path(temporary)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        os.environ[URI_VARIABLE] = f"{SQLITE}{out / 'mlflow.db'}"
        demonstrate(given.run.resolve(), load_params(given.params), out, given.noise, given.threshold)


def demonstrate(run: Path, params: Params, out: Path, noise: float, threshold: float) -> None:
    """Register the first champion and the three challengers, and decide on the last one again."""
    cohort, model = run / "cohort", run / "models" / "universal"
    earlier = without_last_patients(cohort, out / "cohort-earlier")
    first = write_variant(model, out / "first", noise)
    number = register("first", first, earlier, params, out)
    section = params.register_model.model_copy(update={"model_name": NAME})
    promote(number, section, force=True)  # whatever its bounds are, there is a champion to beat
    register("better", model, cohort, params, out)
    register("equal", write_variant(model, out / "equal", 1e-4), cohort, params, out)
    worse = write_variant(model, out / "worse", 0.0, tumour_threshold=threshold, min_lesion_ml=0.0)
    number = register("worse by false tumours", worse, cohort, params, out)
    begun = time.perf_counter()
    decision = promote(number, section, dry_run=True, cohort=cohort)
    print(f"\nhepar promote {number} --dry-run, in {time.perf_counter() - begun:.1f} s:\n  {decision.summary}")


if __name__ == "__main__":
    main()
