"""Shares of manual livers: nested, exact in each modality, and never of validation or test patients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from phantom_folder import PhantomFolder, ingest

import hepar.stages.ingest
from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.ingest.liver_share import keep_livers
from hepar.ingest.sources.source import SourceCase, VolumeFile
from hepar.params import Params


def case(patient: str, modality: str = "CT", split: str = "train", liver: str = "manual", scan: int = 0) -> SourceCase:
    state, file = LabelState(liver), VolumeFile(Path("mask.nii.gz"))
    return SourceCase(
        case_id=f"{patient}-{modality}-{scan}",
        patient_id=patient,
        modality=Modality(modality),
        sequence="",
        image=file,
        liver=file if state == LabelState.MANUAL else None,
        tumour=file,
        liver_state=state,
        tumour_state=LabelState.MANUAL,
        split=Split(split),
        source="toy",
        licence="",
    )


def shown(cases: Sequence[SourceCase], share: float) -> set[str]:
    """The ids of the cases with a manual liver."""
    kept = keep_livers(cases, share)
    assert [(item.case_id, item.tumour_state) for item in kept] == [(item.case_id, item.tumour_state) for item in cases]
    assert all((item.liver is None) == (item.liver_state != LabelState.MANUAL) for item in kept)
    return {item.case_id for item in kept if item.liver_state == LabelState.MANUAL}


COHORT = [
    *(case(f"ct{n}") for n in range(10)),
    *(case(f"mr{n}", "MR") for n in range(5)),
    *(case(f"held{n}", split=split) for n, split in enumerate(("val", "test", "val", "test"))),
    *(case(f"none{n}", liver="unknown") for n in range(7)),
]


@pytest.mark.parametrize(("share", "ct", "mr"), [(0.1, 1, 1), (0.25, 3, 2), (0.5, 5, 3), (0.7, 7, 4), (1.0, 10, 5)])
def test_a_share_of_each_modality_is_kept_rounded_up(share: float, ct: int, mr: int) -> None:
    names = shown(COHORT, share)
    assert (sum(name.startswith("ct") for name in names), sum(name.startswith("mr") for name in names)) == (ct, mr)
    assert {name for name in names if name.startswith("held")} == {f"held{n}-CT-0" for n in range(4)}
    assert not [name for name in names if name.startswith("none")]


def test_shares_are_nested_and_do_not_depend_on_the_order_of_cases() -> None:
    found = [shown(COHORT, share) for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    assert all(one < other for one, other in pairwise(found))
    assert shown(COHORT[::-1], 0.5) == found[2]


def test_a_patient_is_hidden_in_all_scans_or_in_none() -> None:
    scans = [case(f"p{n}", modality, scan=scan) for n in range(8) for modality in ("CT", "MR") for scan in (0, 1)]
    patients = {name.partition("-")[0] for name in shown(scans, 0.25)}
    assert len(patients) == 2
    assert len(shown(scans, 0.25)) == 4 * len(patients)


def test_a_cohort_has_the_livers_of_its_share(source: PhantomFolder, tiny: Params) -> None:
    source.rewrite([{**row, "split": row["split"].replace("val", "train")} for row in source.rows()])
    whole = Cohort.load(ingest(source, tiny.ingest)).cases
    fewer = Cohort.load(ingest(source, tiny.ingest.model_copy(update={"liver_share": 0.5}))).cases
    hidden = [old for old, new in zip(whole, fewer, strict=True) if old.liver_state != new.liver_state]
    assert sorted((item.modality, item.split, item.liver_state) for item in hidden) == [
        ("CT", "train", "manual"),
        ("MR", "train", "manual"),
    ]
    assert {new.liver for new in fewer if new.liver_state == LabelState.UNKNOWN} == {""}


def test_phantoms_can_have_all_their_labels(tiny: Params, tmp_path: Path) -> None:
    phantoms = tiny.ingest.phantoms.model_copy(update={"labels": "full"})
    params = tiny.ingest.model_copy(update={"phantoms": phantoms})
    hepar.stages.ingest.run("phantoms", tmp_path / "cohort", params, tiny.modalities)
    cases = Cohort.load(tmp_path / "cohort").cases
    assert {case.liver_state for case in cases} == {LabelState.MANUAL}
    assert LabelState.UNKNOWN not in {case.tumour_state for case in cases}
