"""Cross-validation over the training and validation patients of a cohort table: normalisation, augmentation and network
are chosen by its figures.

    python benchmarks/real_folds.py [--source ../shared/data/cohort.csv] [--params params/real-small.yaml]
        [--set KEY=VALUE …] [--folds 4] [--fold N …] [--seeds 1 …] [--name NAME] [--out runs/folds] [--stress] [--cases]
    python benchmarks/real_folds.py --compare A B [--out runs/folds]

Patients are dealt into folds by modality and label (`hepar/ingest/cross_validation.py`). Each fold is tested on its
patients, with labelled patients of the next fold for validation and all others for training; those of the table's own
test split are left out, their files are never read. `--test`, to be used once, at the end, trains on the table's own
split instead and tests on that test split.

A fold is the stages of `hepar run` up to `evaluate`, in NAME/seed-S/fold-K. Finished stages are not run again, and an
interrupted training resumes: repeat the command. A fold keeps the params and the split that it was begun with; with
others, it asks for another name. Cohorts are shared by all names and seeds.

`--train-only` stops after the training. `--score-only` scores a model that another machine has trained: put its folder
at NAME/seed-S/fold-K/models/universal. `--models-from OTHER` scores the models of another name, with other settings of
`evaluate`, for example `--set evaluate.variants=3`.

Figures are pooled over the finished folds, each patient tested once per seed, with 95 % bootstrap intervals over
patients (`folds/figures.py`), printed as Markdown and written to NAME/figures.json. The global Dice is over the voxels
of all scans with a known tumour state. A lesion is found if any voxel of it is. Sizes and volumes are by the spacing of
the header, also where the table calls it nominal. `--cases` adds a row for each scan.

`--stress` adds figures of the same models on their test scans in other lights (`folds/lights.py`): in CT a liver 60 HU
darker or 40 HU brighter; in MR a bright stomach that fills 8 % of the body, inverted intensities, gamma 0.5 and 2.
`--compare` prints two names side by side, with paired differences over the scans that both have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from folds.figures import Pooled, case_table, compare, difference_table, pool, pooled_table
from folds.scoring import ScanScores, cached, from_json, score_report
from folds.stress import stress_fold
from folds.training import EVALUATE, FoldFolder, link_model, make_params, prepare, run_steps, steps

from hepar.cases import Cohort, Split
from hepar.cli.main import errors_as_sentences
from hepar.errors import DataError, HeparError
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.ingest.cross_validation import read_patients, split_tables, table_of
from hepar.runtime.artifacts import read_manifest, sha256_json, write_json
from hepar.runtime.whole_files import write_text

ROOT = Path(__file__).parents[1]
SOURCE = ROOT.parent / "shared" / "data" / "cohort.csv"
TEST = "test"  # the name of the only fold with --test
AS_SCANNED = "as scanned"
KEY_DIGITS = 12  # of a hash in a folder's name


def main() -> None:
    options = parsed()
    if options.compare:
        print(comparison(options.out, *options.compare))
        return
    folds = make_folds(options)
    for fold in folds:
        if not options.fold or fold.folder.name in {fold_name(number) for number in options.fold}:
            run_fold(fold, options)
    if not options.train_only:
        report([fold for fold in folds if fold.is_scored()], options)


def make_folds(options: argparse.Namespace) -> list[FoldFolder]:
    """All folds of every seed that is asked for; writes the table that their cohorts are read from."""
    params = [make_params(options.params, options.set, seed) for seed in options.seeds]
    patients = read_patients(options.source, params[0].ingest.split)
    splits = {TEST: ""}
    if not options.test:
        splits = {fold_name(number): split for number, split in split_tables(patients, options.folds).items()}
    kept = patients if options.test else [patient for patient in patients if patient.split != Split.TEST]
    table = table_of(kept, str(options.source))
    path = options.out / "tables" / f"{sha256_json(table)[:KEY_DIGITS]}.csv"
    write_text(path, table)
    folds = []
    for own in params:
        for name, split in splits.items():
            seed = own.train_universal.training.seed
            read_by = [table, split, own.modalities, own.ingest.model_dump(mode="json")]
            cohort = options.out / "cohorts" / f"{name}-{sha256_json(read_by)[:KEY_DIGITS]}"
            folder = options.out / options.name / f"seed-{seed}" / name
            folds.append(FoldFolder(folder, cohort, path, own, split))
    if options.fold and (unknown := {fold_name(number) for number in options.fold} - splits.keys()):
        raise DataError(f"--fold must be 1 to {options.folds}, but there is no {min(unknown)}")
    return folds


def fold_name(number: int) -> str:
    return f"fold-{number}"


def run_fold(fold: FoldFolder, options: argparse.Namespace) -> None:
    """Run the stages of a fold that are not finished, as far as the options ask for."""
    prepare(fold)
    if fold.is_scored():
        return
    if options.models_from:
        link_model(other_name(fold, options), fold)
    if options.models_from or options.score_only:
        read_manifest(fold.model, ModelFolder.KIND)  # or it says that there is none
        wanted = [step for step in steps(fold) if step.name in ("ingest", EVALUATE)]
    else:
        wanted = [step for step in steps(fold) if not (options.train_only and step.name == EVALUATE)]
    run_steps(fold, wanted)


def other_name(fold: FoldFolder, options: argparse.Namespace) -> FoldFolder:
    """The same fold of the name whose models are scored."""
    return replace(fold, folder=options.out / options.models_from / fold.folder.relative_to(options.out / options.name))


def report(folds: Sequence[FoldFolder], options: argparse.Namespace) -> None:
    """Print the figures of finished folds and write them with the scores of every scan."""
    scans = [scan for fold in folds for scan in fold_scores(fold)]
    rows = pool(scans)
    lights = stress_scores(folds) if options.stress else {}
    known = {scan.case_id for stressed in lights.values() for scan in stressed}
    plain = [scan for scan in scans if scan.case_id in known]
    stressed_rows = [
        row
        for light, stressed in ({AS_SCANNED: plain, **lights} if lights else {}).items()
        for row in pool(stressed, light)
        if "recall" not in row.name
    ]
    print(f"{'; '.join(fold.title for fold in folds)}:\n")
    print(pooled_table(rows))
    if stressed_rows:
        print(f"\nIn other lights:\n\n{pooled_table(stressed_rows)}")
    if options.cases:
        print(f"\n{case_table(scans)}")
    minutes = [sum(fold.seconds.values()) / 60 for fold in folds]
    print(f"\n{sum(minutes) / len(minutes):.1f} min a fold, {max(minutes):.1f} at most")
    path = options.out / options.name / ("test.json" if options.test else "figures.json")
    write_json(path, as_json(folds, scans, lights, [*rows, *stressed_rows]))


def fold_scores(fold: FoldFolder) -> list[ScanScores]:
    """The scores of the test scans of a fold."""
    key = read_manifest(fold.report, Report.KIND).hash
    cohort = Cohort.load(fold.cohort)
    taught = ModelFolder(fold.model).load_spec().taught
    name = fold.folder.name
    return cached(
        fold.folder / "scores.json",
        key,
        lambda: score_report(Report(fold.report), cohort, taught, fold.seed, name),
    )


def stress_scores(folds: Sequence[FoldFolder]) -> dict[str, list[ScanScores]]:
    """The scores of all folds by light."""
    found: dict[str, list[ScanScores]] = {}
    for fold in folds:
        for light, scans in stress_fold(fold).items():
            found.setdefault(light, []).extend(scans)
    return found


def as_json(
    folds: Sequence[FoldFolder],
    scans: Sequence[ScanScores],
    lights: dict[str, list[ScanScores]],
    rows: Sequence[Pooled],
) -> dict[str, Any]:
    return {
        "folds": {fold.title: {"seconds": fold.seconds} for fold in folds},
        "figures": {row.name: asdict(row) for row in rows},
        "scans": [asdict(scan) for scan in scans],
        "lights": {light: [asdict(scan) for scan in stressed] for light, stressed in lights.items()},
    }


def comparison(out: Path, first: str, second: str) -> str:
    """Two names side by side, as a table in Markdown; lights that only one has are left out."""
    one, two = (read_scores(out / name / "figures.json") for name in (first, second))
    tables = [
        f"{light}:\n\n{difference_table(compare(scans, two[light]), first, second)}"
        for light, scans in one.items()
        if light in two
    ]
    return "\n\n".join(tables)


def read_scores(path: Path) -> dict[str, list[ScanScores]]:
    """The scores by light in a file of figures, first as scanned."""
    if not path.is_file():
        raise HeparError(f"{path} does not exist: run its folds first")
    stored = json.loads(path.read_text())
    lights = {AS_SCANNED: stored["scans"], **stored["lights"]}
    return {light: [from_json(scan) for scan in scans] for light, scans in lights.items()}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="cohort table, CSV or Parquet")
    parser.add_argument("--params", type=Path, default=ROOT / "params" / "real-small.yaml")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of the params")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--fold", type=int, nargs="+", default=[], metavar="N", help="only these, from 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the trainings")
    parser.add_argument("--name", help="of the variant; by default that of the params file")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "folds")
    parser.add_argument("--test", action="store_true", help="score the table's own test split, once, at the end")
    parser.add_argument("--cases", action="store_true", help="also print a row for each scan")
    parser.add_argument("--stress", action="store_true", help="also score scans in other lights")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="print two names side by side")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--train-only", action="store_true")
    only.add_argument("--score-only", action="store_true", help="models are in their places")
    only.add_argument("--models-from", metavar="OTHER", help="score the models of another name")
    options = parser.parse_args()
    options.name = options.name or options.params.stem
    options.out = options.out.resolve()
    return options


if __name__ == "__main__":
    with errors_as_sentences():
        main()
