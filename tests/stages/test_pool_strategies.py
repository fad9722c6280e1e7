"""Each strategy of `assemble_pool`, assembled by the stage: which livers count, and what an unknown tumour means."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from toy_case import box, volume, write_case

import hepar.stages.assemble_pool
from hepar.cases import Case, Cohort, LabelState, Split
from hepar.imaging.volumes import write_image
from hepar.params import Params
from hepar.pool.arrays import PreprocessedArrays
from hepar.pool.table import Pool, PoolEntry
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.runtime.artifacts import read_manifest, sha256_file, write_artifact

MANUAL, PSEUDO, UNKNOWN = LabelState.MANUAL, LabelState.PSEUDO, LabelState.UNKNOWN
UNKNOWN_LIVER = {"liver": "", "liver_sha256": "", "liver_state": UNKNOWN}
UNKNOWN_TUMOUR = {"tumour": "", "tumour_sha256": "", "tumour_state": UNKNOWN}
WEIGHT = 0.5  # of the pseudo-livers


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort and its pseudo-labels: cases by which of liver (l) and tumour (t) an expert labelled."""
    folder = tmp_path_factory.mktemp("inputs")
    both = replace(write_case(folder / "files"), case_id="lt", patient_id="lt")
    cases = [
        both,
        replace(both, case_id="t", patient_id="t", **UNKNOWN_LIVER),
        replace(both, case_id="l", patient_id="l", **UNKNOWN_TUMOUR),
        replace(both, case_id="neither", patient_id="neither", **UNKNOWN_LIVER, **UNKNOWN_TUMOUR),
        replace(both, case_id="val", patient_id="val", split=Split.VAL),
        replace(both, case_id="test", patient_id="test", split=Split.TEST),
    ]
    with write_artifact(folder / "cohort", Cohort.KIND, {}) as cohort:
        shutil.copytree(folder / "files" / "cohort", cohort, dirs_exist_ok=True)
        Cohort(cohort, tuple(cases)).save()
    write_pseudo_labels(folder, [case for case in cases if case.liver_state == UNKNOWN])
    return folder


def write_pseudo_labels(folder: Path, cases: list[Case]) -> None:
    parents = {Cohort.KIND: read_manifest(folder / "cohort", Cohort.KIND).hash}
    with write_artifact(folder / "pseudo", PseudoLabels.KIND, parents) as partial:
        labels, rows = PseudoLabels(partial), []
        for case in cases:
            write_image(volume(box(5, 11)), labels.liver(case.case_id))
            write_image(volume(box(0, 0)), labels.uncertain(case.case_id))
            known = {"mask_sha256": sha256_file(labels.liver(case.case_id)), "teacher": "t0", "gate": "accept"}
            rows.append({"case_id": case.case_id, "weight": WEIGHT, "reasons": "", **known})
        labels.save_table(rows)


def assemble(inputs: Path, folder: Path, tiny: Params, **strategy: str) -> tuple[Pool, Mapping[str, PoolEntry]]:
    params = tiny.assemble_pool.model_copy(update=strategy)
    preprocessing = tiny.preprocessing.model_copy(update={"spacing_zyx_mm": (2.0, 2.0, 2.0)})
    places = inputs / "cohort", inputs / "pseudo", folder / "pool"
    hepar.stages.assemble_pool.run(*places, tiny.modalities, preprocessing, params)
    pool = Pool.load(folder / "pool")
    return pool, {entry.case_id: entry for entry in pool.entries}


@pytest.mark.parametrize(
    ("labels", "livers"),
    [
        ("tumour", {"lt": (UNKNOWN, 0.0), "t": (UNKNOWN, 0.0), "l": (UNKNOWN, 0.0), "neither": (UNKNOWN, 0.0)}),
        ("manual", {"lt": (MANUAL, 1.0), "t": (UNKNOWN, 0.0), "l": (MANUAL, 1.0), "neither": (UNKNOWN, 0.0)}),
        ("mixed", {"lt": (MANUAL, 1.0), "t": (PSEUDO, WEIGHT), "l": (MANUAL, 1.0), "neither": (PSEUDO, WEIGHT)}),
    ],
)
def test_a_strategy_chooses_the_livers_of_training_cases(
    labels: str, livers: dict[str, tuple[LabelState, float]], inputs: Path, tiny: Params, tmp_path: Path
) -> None:
    """Validation patients keep their manual liver under each, and test patients are in no pool."""
    _, entries = assemble(inputs, tmp_path, tiny, labels=labels, unknown_tumour="masked")
    assert {name: (entry.liver.state, entry.liver.weight) for name, entry in entries.items()} == {
        **livers,
        "val": (MANUAL, 1.0),
    }
    assert {name: entry.tumour.state for name, entry in entries.items()} == {
        **dict.fromkeys(("lt", "t", "val"), MANUAL),
        **dict.fromkeys(("l", "neither"), UNKNOWN),
    }


@pytest.mark.parametrize(
    ("rule", "at_liver", "far_away"), [("masked", 0, 255), ("ignored", 0, 0), ("background", 255, 255)]
)
def test_a_rule_says_where_an_unknown_tumour_counts_as_absent(
    rule: str, at_liver: int, far_away: int, inputs: Path, tiny: Params, tmp_path: Path
) -> None:
    pool, entries = assemble(inputs, tmp_path, tiny, labels="mixed", unknown_tumour=rule)
    for name, weight in (("l", 1.0), ("neither", WEIGHT)):
        arrays = PreprocessedArrays.open(pool.folder / entries[name].arrays.folder)
        weights = arrays.palette_n4[:, 3].take(arrays.loaded().code_zyx)
        trusted = weight if rule == "masked" else 1.0  # outside a pseudo-liver as much as that liver
        assert (weights[8, 8, 8], weights[0, 0, 0]) == (at_liver, round(far_away * trusted))
        assert not arrays.tumour_zyx.any()
    arrays = PreprocessedArrays.open(pool.folder / entries["t"].arrays.folder)
    assert (arrays.palette_n4[:, 3] == 255).all()  # a known tumour is known everywhere
    assert arrays.tumour_zyx[6, 6, 6] == 1


def test_left_out_keeps_training_cases_of_an_unknown_tumour_out_of_the_pool(
    inputs: Path, tiny: Params, tmp_path: Path
) -> None:
    _, entries = assemble(inputs, tmp_path, tiny, labels="mixed", unknown_tumour="left-out")
    assert {name: entry.tumour.state for name, entry in entries.items()} == dict.fromkeys(("lt", "t", "val"), MANUAL)
    assert entries["t"].liver.state == PSEUDO
