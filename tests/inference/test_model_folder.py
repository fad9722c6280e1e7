"""The model folder."""

from __future__ import annotations

from pathlib import Path

from hepar.inference.model_folder import ModelFolder, hash_patient


def test_a_model_folder_stores_patients_as_hashes_only(tmp_path: Path) -> None:
    ModelFolder(tmp_path).save_patients(map(hash_patient, ["b", "a", "b"]))
    assert ModelFolder(tmp_path).load_patients() == {hash_patient("a"), hash_patient("b")}
    assert '"a"' not in (tmp_path / ModelFolder.PATIENTS).read_text()
