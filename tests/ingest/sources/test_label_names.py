"""Labels of nnU-Net data sets by their names: what is liver, what its tumours are, and what nobody can tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hepar.errors import DataError
from hepar.ingest.sources import nnunet

AMOS = (
    "spleen, right kidney, left kidney, gall bladder, esophagus, liver, stomach, arota, postcava, pancreas, right"
    " adrenal gland, left adrenal gland, duodenum, bladder, prostate/uterus"
)
TOTALSEGMENTATOR = (
    "spleen, kidney_right, gallbladder, stomach, pancreas, adrenal_gland_right, lung_upper_lobe_left, esophagus,"
    " trachea, thyroid_gland, small_bowel, duodenum, colon, urinary_bladder, prostate, kidney_cyst_left, sacrum,"
    " vertebrae_L1, heart, aorta, pulmonary_vein, brachiocephalic_trunk, subclavian_artery_right,"
    " common_carotid_artery_left, atrial_appendage_left, superior_vena_cava, inferior_vena_cava,"
    " portal_vein_and_splenic_vein, iliac_vena_left, humerus_left, scapula_left, clavicula_left, femur_left,"
    " hip_left, spinal_cord, gluteus_maximus_left, autochthon_left, iliopsoas_left, brain, skull, rib_left_1,"
    " sternum, costal_cartilages, intervertebral_discs, fibula, tibia, quadriceps_femoris_left,"
    " thigh_medial_compartment_left, sartorius_left, liver"
)
SHORT = "liver, rkid, spleen, pancreas, aorta, IVC, RAG, LAG, gallbladder, duodenum, bones, lymph nodes, other_organ"
Read = tuple[set[int] | None, set[int] | None]


def read(folder: Path, labels: dict[str, int | list[int]], name: str = "Dataset123") -> Read:
    """The values of liver and tumour in a data set with these labels; None where it has no such label."""
    for path in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}, "name": name}
    (folder / "dataset.json").write_text(json.dumps(description))
    (case,) = nnunet.read(folder)
    masks = [getattr(mask, "values", None) for mask in (case.liver, case.tumour)]
    return masks[0] and set(masks[0]), masks[1] and set(masks[1])


@pytest.mark.parametrize(
    "name",
    [
        *(
            "HCC",
            "hcc_2",
            "metastases",
            "Metastasis",
            "liver mets",
            "lesion",
            "liver-lesions",
            "LiverTumor",
            "livertumour",
        ),
        *("cancer", "hepatic metastases", "tumor in the liver", "hepatocellular carcinoma", "malignant lesion"),
    ],
)
def test_a_lesion_beside_the_liver_belongs_to_it(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, {"liver": 1, name: 2, "hepatic vessels": 3}) == ({1, 2}, {2})


def test_several_kinds_of_lesions_are_joined_and_a_cyst_is_liver_without_tumour(tmp_path: Path) -> None:
    assert read(tmp_path, {"liver": 1, "HCC": 2, "metastases": 3, "cyst": 4}) == ({1, 2, 3, 4}, {2, 3})
    assert read(tmp_path, {"Whole Liver": [1, 2], "HCC": 2, "metastases": 3}) == ({1, 2, 3}, {2, 3})


def test_a_lesion_that_names_the_liver_or_lies_in_its_region_may_stand_beside_other_organs(tmp_path: Path) -> None:
    assert read(tmp_path, {"liver": 1, "kidney": 2, "kidney tumor": 3, "liver_tumor": 4}) == ({1, 4}, {4})
    assert read(tmp_path, {"liver": [1, 2], "tumor": 2, "spleen": 4}) == ({1, 2}, {2})
    assert read(tmp_path, {"liver": 1, "kidney": 2, "kidney tumor": 3}) == ({1}, None)


def test_a_bare_tumour_counts_in_a_data_set_that_names_the_liver(tmp_path: Path) -> None:
    assert read(tmp_path, {"Vessel": 1, "Tumour": 2}, name="HepaticVessel") == (None, {2})


@pytest.mark.parametrize(
    "labels",
    [{"pancreas": 1, "cancer": 2}, {"kidney": 1, "tumor": 2, "cyst": 3}, {"tumor": 1}, {"liver cyst": 1}],
)
def test_a_tumour_of_another_organ_is_no_tumour_of_the_liver(
    labels: dict[str, int | list[int]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"dataset\.json: labels name neither liver nor liver tumour, but "):
        read(tmp_path, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"liver": 1, "kidney": 2, "tumor": 3},
            "label tumor (3) may be of the liver or of kidney; rename it, as liver_",
        ),
        ({"liver": 1, "spleen": 2, "cyst": 3}, "label cyst (3) may be of the liver or of spleen; rename it, as liver_"),
        (
            {"liver": 1, "HCC-ish": [2, 3]},
            "label HCC-ish (2, 3) is neither liver, liver tumour nor another known organ; ",
        ),
        ({"liver": 1, "liver and spleen": 2}, "label liver and spleen (2) is neither liver, liver tumour nor another"),
        (
            {"liver": 1, "non-tumor": 2},
            "label non-tumor (2) is neither liver, liver tumour nor another known organ; re",
        ),
    ],
)
def test_a_label_that_nobody_can_tell_is_named(
    labels: dict[str, int | list[int]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, labels)
    assert f"dataset.json: {message}" in str(caught.value)
    assert str(caught.value).endswith("or list the cases in a table")


@pytest.mark.parametrize("names", [AMOS, TOTALSEGMENTATOR, SHORT])
def test_organs_of_the_large_data_sets_are_known(names: str, tmp_path: Path) -> None:
    labels: dict[str, int | list[int]] = {name: number for number, name in enumerate(names.split(", "), start=1)}
    assert read(tmp_path, labels) == ({labels["liver"]}, None)
