"""The folder of pseudo-labels: its table, its masks and its manifest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from good_signals import GATES, GOOD

from hepar.cases import Modality
from hepar.errors import ArtifactError
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.gates import judge
from hepar.runtime.artifacts import sha256_file, write_artifact


def table_row(case_id: str) -> dict[str, Any]:
    identity = {"case_id": case_id, "modality": "CT", "teacher": "t", "teacher_saw_patient": False, "mask_sha256": "m"}
    return identity | asdict(GOOD) | judge(GOOD, Modality.CT, GATES).row() | {"predicted_dice": 0.9}


def test_the_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    labels = PseudoLabels(tmp_path)
    labels.save_table([table_row("a"), table_row("b")])
    first = (tmp_path / PseudoLabels.TABLE).read_bytes()
    assert labels.rows() == [table_row("a"), table_row("b")]
    assert tuple(labels.rows()[0]) == PseudoLabels.COLUMNS
    labels.save_table(labels.rows())
    assert (tmp_path / PseudoLabels.TABLE).read_bytes() == first


def test_a_table_may_be_empty(tmp_path: Path) -> None:
    PseudoLabels(tmp_path).save_table([])
    assert PseudoLabels(tmp_path).rows() == []


def test_a_missing_or_damaged_table_is_refused(tmp_path: Path) -> None:
    for damage in (lambda path: None, lambda path: path.write_bytes(b"no table")):
        damage(tmp_path / PseudoLabels.TABLE)
        with pytest.raises(ArtifactError, match=r"quality\.parquet is missing or damaged"):
            PseudoLabels(tmp_path).rows()


def test_masks_are_linked_and_their_hashes_come_from_the_manifest(tmp_path: Path) -> None:
    source, pseudo = tmp_path / "source", tmp_path / "pseudo"
    source.mkdir()
    (source / PseudoLabels.LIVER).write_bytes(b"liver")
    (source / PseudoLabels.UNCERTAIN).write_bytes(b"uncertain")
    with write_artifact(pseudo, PseudoLabels.KIND, {}) as folder:
        PseudoLabels(folder).link_masks("a", source)
    labels = PseudoLabels.load(pseudo)
    assert labels.liver("a").read_bytes() == b"liver"
    assert labels.sha256(labels.uncertain("a")) == sha256_file(source / PseudoLabels.UNCERTAIN)
    with pytest.raises(ArtifactError, match=r"pseudo is incomplete: masks/b/liver\.nii\.gz is missing$"):
        labels.sha256(labels.liver("b"))


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "pool", "pool", {}):
        pass
    with pytest.raises(ArtifactError, match="is of kind pool but must be pseudo-labels"):
        PseudoLabels.load(tmp_path / "pool")
