"""The model folder: what it holds, and that damaged weights are never used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from full_disk import SmallDisk
from toy_model import toy_spec, toy_weights, write_model

from hepar.cases import Modality
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder, ModelSpec, hash_patient
from hepar.inference.prediction import load_ensemble
from hepar.networks import build_network
from hepar.params import Params
from hepar.runtime.artifacts import MANIFEST, write_artifact

CPU = torch.device("cpu")


def flip_a_bit(path: Path, share: float) -> None:
    """Flip one bit at a share of the file, and give it its old time back."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_model_folder_stores_patients_as_hashes_only(tmp_path: Path, tiny: Params) -> None:
    model = write_model(tmp_path / "model", tiny, patients=["b", "a", "b"])
    assert model.load_patients() == {hash_patient("a"), hash_patient("b")}
    assert '"a"' not in (tmp_path / "model" / ModelFolder.PATIENTS).read_text()


def test_a_list_of_patients_that_was_deleted_is_missed(tmp_path: Path, tiny: Params) -> None:
    model = write_model(tmp_path / "model", tiny)
    (model.folder / ModelFolder.PATIENTS).unlink()
    assert model.has_patients()
    with pytest.raises(ArtifactError, match=r"model is damaged: patients\.json is missing$"):
        model.load_patients()


def test_a_saved_model_loads_unchanged(tmp_path: Path, tiny: Params) -> None:
    network = build_network(tiny.network.name, tiny.network.config, (8, 16, 16))
    write_model(tmp_path / "model", tiny, network.state_dict())
    (model,) = load_ensemble(tmp_path / "model", CPU)
    assert model.spec == toy_spec(tiny.network)
    assert not model.network.training
    image_bcdhw = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 16, 32, 32)).astype(np.float32))
    with torch.no_grad():
        assert torch.allclose(model.network(image_bcdhw), network.eval()(image_bcdhw), atol=1e-5)


def test_the_pair_of_an_earlier_liver_teacher_is_that_of_its_modality(tiny: Params) -> None:
    values = toy_spec(tiny.network).model_dump(mode="json")
    known = [ModelSpec.model_validate({**values, "liver_intensity": pair}) for pair in ([0.5, 0.1], None)]
    assert [spec.liver_intensity for spec in known] == [{Modality.CT: (0.5, 0.1)}, {}]


def test_an_empty_modality_and_a_missing_value_survive_in_the_history(tmp_path: Path) -> None:
    rows = [(1, "train", "", "loss", 0.5), (1, "val", "CT", "dice", float("nan"))]
    history = pd.DataFrame(rows, columns=list(ModelFolder.HISTORY_COLUMNS))
    with write_artifact(tmp_path / "model", ModelFolder.KIND, {}) as folder:
        ModelFolder(folder).save_history(history)
    pd.testing.assert_frame_equal(ModelFolder(tmp_path / "model").load_history(), history)


def test_ensemble_members_are_ordered_by_number(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        ModelFolder(tmp_path).add_member({"weight": torch.zeros(1)}, number)
    assert ModelFolder(tmp_path).weight_files() == ("weights.pt", "members/1.pt", "members/2.pt", "members/10.pt")


def test_a_lost_or_added_member_of_an_ensemble_is_noticed(tmp_path: Path, tiny: Params) -> None:
    with write_artifact(tmp_path / "model", ModelFolder.KIND, {}) as folder:
        ModelFolder(folder).save(toy_weights(tiny), toy_spec(tiny.network), [toy_weights(tiny)])
    assert len(load_ensemble(tmp_path / "model", CPU)) == 2
    ModelFolder(tmp_path / "model").add_member(toy_weights(tiny), 2)
    with pytest.raises(ArtifactError, match=r"model is damaged: members/2\.pt is not listed in manifest\.json$"):
        load_ensemble(tmp_path / "model", CPU)
    (tmp_path / "model" / "members" / "2.pt").unlink()
    (tmp_path / "model" / "members" / "1.pt").unlink()
    with pytest.raises(ArtifactError, match=r"model is damaged: members/1\.pt is missing$"):
        load_ensemble(tmp_path / "model", CPU)


@pytest.mark.parametrize("missing", [ModelFolder.SPEC, ModelFolder.WEIGHTS])
def test_a_folder_without_spec_or_weights_is_refused(tmp_path: Path, tiny: Params, missing: str) -> None:
    model = write_model(tmp_path / "model", tiny)
    (model.folder / missing).unlink()
    with pytest.raises(ArtifactError, match=f"{missing} is missing$"):
        load_ensemble(model.folder, CPU)


def test_a_model_without_a_manifest_is_refused(tmp_path: Path, tiny: Params) -> None:
    model = write_model(tmp_path / "model", tiny)
    (model.folder / MANIFEST).unlink()
    message = r"model is not a complete artifact of kind model: manifest\.json is missing$"
    with pytest.raises(ArtifactError, match=message):
        load_ensemble(model.folder, CPU)


@pytest.mark.parametrize("damaged", [ModelFolder.SPEC, ModelFolder.WEIGHTS])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_truncated_file_is_a_damaged_model(tmp_path: Path, tiny: Params, damaged: str, kept: float) -> None:
    model = write_model(tmp_path / "model", tiny)
    whole = (model.folder / damaged).read_bytes()
    (model.folder / damaged).write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ArtifactError, match=f"model is damaged: {damaged} has \\d+ bytes but had {len(whole)} when it"):
        load_ensemble(model.folder, CPU)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_weights_with_a_flipped_bit_are_never_loaded(
    tmp_path: Path, tiny: Params, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model", tiny)
    flip_a_bit(model.folder / ModelFolder.WEIGHTS, share)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("damaged weights reached torch.load"))
    with pytest.raises(ArtifactError, match=r"model is damaged: weights\.pt has changed since it was sealed"):
        model.load_weights()


def test_a_changed_digit_in_the_spec_is_noticed(tmp_path: Path, tiny: Params) -> None:
    model = write_model(tmp_path / "model", tiny)
    text = (model.folder / ModelFolder.SPEC).read_text()
    (model.folder / ModelFolder.SPEC).write_text(text.replace("300.0", "400.0"))
    assert json.loads((model.folder / ModelFolder.SPEC).read_text()) != json.loads(text)
    with pytest.raises(ArtifactError, match=r"model is damaged: model\.json has changed since it was sealed"):
        load_ensemble(model.folder, CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_the_parameter(
    tmp_path: Path, tiny: Params, value: float
) -> None:
    weights = {name: weight.clone() for name, weight in toy_weights(tiny).items()}
    name = next(name for name in reversed(weights) if weights[name].is_floating_point())
    weights[name].view(-1)[-1] = value
    write_model(tmp_path / "model", tiny, weights)
    with pytest.raises(ArtifactError, match=f"model/weights\\.pt is damaged: {name} is NaN or infinite$"):
        load_ensemble(tmp_path / "model", CPU)


def test_weights_that_are_no_state_dict_are_refused(tmp_path: Path, tiny: Params) -> None:
    with write_artifact(tmp_path / "model", ModelFolder.KIND, {}) as folder:
        ModelFolder(folder).save(toy_weights(tiny), toy_spec(tiny.network))
        torch.save([1, 2], folder / ModelFolder.WEIGHTS)
    with pytest.raises(ArtifactError, match=r"model/weights\.pt is damaged: it is not a state dict$"):
        load_ensemble(tmp_path / "model", CPU)


def test_weights_are_written_whole_or_not_at_all_however_full_the_disk_is(disk: SmallDisk, tiny: Params) -> None:
    weights, model = toy_weights(tiny), ModelFolder(disk.folder)
    member = disk.folder / ModelFolder.MEMBERS / "1.pt"
    model.add_member(weights, 1)
    whole, failed = member.read_bytes(), 0
    for kib in range(0, len(whole) // 1024, 4):
        member.unlink()
        if error := disk.outcome(kib, lambda: model.add_member(weights, 1)):
            failed += 1
            assert error.startswith(f"{member} cannot be written: ")
            assert disk.left_behind() == [ModelFolder.MEMBERS]
            member.touch()
        else:
            assert member.read_bytes() == whole
    assert failed > 10


def test_weights_of_another_network_are_a_damaged_model(tmp_path: Path, tiny: Params) -> None:
    weights = toy_weights(tiny)
    weights.popitem()
    write_model(tmp_path / "model", tiny, weights)
    with pytest.raises(ArtifactError, match=r"model/weights\.pt is damaged: "):
        load_ensemble(tmp_path / "model", CPU)


def test_a_folder_without_a_model_says_why(tmp_path: Path, tiny: Params) -> None:
    with write_artifact(tmp_path / "model", ModelFolder.KIND, {}) as folder:
        ModelFolder(folder).save_untrained("the cohort has no MR scan")
    stored, message = ModelFolder(tmp_path / "model"), r"model holds no model: the cohort has no MR scan$"
    for read in (stored.load_spec, stored.load_weights, lambda: load_ensemble(stored.folder, CPU)):
        with pytest.raises(ArtifactError, match=message):
            read()
    assert stored.load_patients() == frozenset()
