"""Names of ROIs, segments and mask series: what they mean, and what stays unclear."""

from __future__ import annotations

import pytest

from hepar.ingest.sources.structure_names import Meaning, meaning

LIVER = ("Liver", "whole_liver", "Leber", "Foie", "liver_seg", "livermask", "LIVER 2")
TUMOURS = (
    *(
        "Tumour 1",
        "tumor",
        "HCC1",
        "Liver metastases",
        "mets 4a",
        "GTV",
        "GTV liver",
        "GTV_2",
        "hepatocellular carcinoma",
    ),
    *("livertumor1", "HCC segment VIII", "Lesion S7", "Lesion left lobe", "Tumor no. 2", "liver tumor-3"),
)
NEITHER = (
    *("Kidney Tumor", "Lung metastasis", "Pancreas cancer", "Splenic lesion", "Renal cell carcinoma", "Liver vessels"),
    *("no tumor", "Liver minus tumor", "Liver without lesions", "Non-liver", "PTV liver", "CTV1 HCC", "Liver PRV 5mm"),
    *("Tumor margin", "Liver ring", "Spleen", "Oliver", "Target", ""),
)
OF_EITHER = ("Liver-GTV", "Liver and tumor", "Liver + HCC", "Liver mass", "HCC near gallbladder", "Liver/Tumor")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (LIVER, Meaning("liver")),
        (TUMOURS, Meaning("tumour")),
        (NEITHER, Meaning()),
        (("Left liver lobe", "Liver segment 4", "Liver seg 4"), Meaning(unclear=("liver",))),
        (("Tumor?", "Tumor core", "Peritumoral", "Mass 2", "Tumor not biopsied", "GTVn"), Meaning(unclear=("tumour",))),
        (OF_EITHER, Meaning(unclear=("liver", "tumour"))),
    ],
    ids=["liver", "tumour", "neither", "part", "unclear tumour", "unclear"],
)
def test_a_name_means_a_structure_only_if_all_its_words_do(names: tuple[str, ...], expected: Meaning) -> None:
    assert {name: meaning([name]) for name in names} == dict.fromkeys(names, expected)


def test_label_type_and_region_of_a_segment_are_one_name() -> None:
    assert meaning(["Segment_1", "Neoplasm, Primary", "Liver"]) == Meaning("tumour")
    assert meaning(["Tumor", "Mass", "Kidney"]) == Meaning()
