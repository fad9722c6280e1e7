"""Layouts with a folder of images and one of label maps: MSD, ATLAS 2023, AMOS22."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hepar.cases import LabelState, Modality
from hepar.ingest.sources.files import by_key
from hepar.ingest.sources.lits import FIRST_SCANS
from hepar.ingest.sources.source import ABSENT_IF_EMPTY, LabelMap, SourceCase, VolumeFile


@dataclass(frozen=True)
class PairLayout:
    """`images/IMAGE` and `labels/LABEL`; the first group of both patterns is the case's key.

    `liver` and `tumour` are values of the label map; None if the data set does not segment the structure. `first_scans`
    maps the later scans of a patient to the first, by their numbers; every other scan is a patient.
    """

    name: str
    licence: str
    folders: Mapping[str, str]  # of images to their label maps
    image: str
    label: str
    values: int  # the highest of the label map
    liver: frozenset[int] | None
    tumour: frozenset[int] | None
    modality: Callable[[str], Modality]
    sequence: str
    case_id: str
    first_scans: Mapping[int, int] = field(default_factory=dict)

    def recognise(self, folder: Path) -> str:
        """What marks this layout in a folder, for a message; empty if nothing does."""
        count = sum(len(by_key(folder / images, self.image)) for images in self.folders)
        return f"{count} images named as in {self.name}" if count else ""

    def read(self, folder: Path) -> list[SourceCase]:
        """Each image; without a label map both structures are unknown."""
        cases = []
        for images, labels in self.folders.items():
            masks = by_key(folder / labels, self.label)
            for key, image in by_key(folder / images, self.image).items():
                cases.append(self._case(key, image, masks.get(key)))
        return sorted(cases, key=lambda case: case.case_id)

    def _case(self, key: str, image: Path, label: Path | None) -> SourceCase:
        number = int(key)
        declared = frozenset(range(self.values + 1))

        def mask(values: frozenset[int] | None) -> LabelMap | None:
            return LabelMap(VolumeFile(label), values, declared) if label and values else None

        liver, tumour = mask(self.liver), mask(self.tumour)
        return SourceCase(
            case_id=self.case_id.format(number),
            patient_id=self.case_id.format(self.first_scans.get(number, number)),
            modality=self.modality(key),
            sequence=self.sequence,
            image=VolumeFile(image),
            liver=liver,
            tumour=tumour,
            liver_state=LabelState.MANUAL if liver else LabelState.UNKNOWN,
            tumour_state=LabelState.MANUAL if tumour else LabelState.UNKNOWN,
            split=None,
            source=self.name,
            licence=self.licence,
            if_empty=ABSENT_IF_EMPTY,
        )


def _always(modality: Modality) -> Callable[[str], Modality]:
    return lambda key: modality


NIFTI = r"\.nii(?:\.gz)?"
MSD_LIVER = PairLayout(
    name="MSD-Task03",
    licence="CC-BY-SA-4.0",
    folders={"imagesTr": "labelsTr", "imagesTs": "labelsTs"},
    image=r"liver_(\d+)" + NIFTI,
    label=r"liver_(\d+)" + NIFTI,
    values=2,
    liver=frozenset({1, 2}),
    tumour=frozenset({2}),
    modality=_always(Modality.CT),
    sequence="portal-venous",
    case_id="msd03-{:03d}",
    first_scans=FIRST_SCANS,  # the scans of LiTS, with their numbers
)
# vessels are 1, tumours 2; the liver is not segmented
MSD_VESSEL = PairLayout(
    name="MSD-Task08",
    licence="CC-BY-SA-4.0",
    folders={"imagesTr": "labelsTr", "imagesTs": "labelsTs"},
    image=r"hepaticvessel_(\d+)" + NIFTI,
    label=r"hepaticvessel_(\d+)" + NIFTI,
    values=2,
    liver=None,
    tumour=frozenset({2}),
    modality=_always(Modality.CT),
    sequence="portal-venous",
    case_id="msd08-{:03d}",
)
ATLAS = PairLayout(
    name="ATLAS-2023",
    licence="",
    folders={"imagesTr": "labelsTr", "imagesTs": "labelsTs"},
    image=r"im(\d+)" + NIFTI,
    label=r"lb(\d+)" + NIFTI,
    values=2,
    liver=frozenset({1, 2}),
    tumour=frozenset({2}),
    modality=_always(Modality.MR),
    sequence="T1-contrast",
    case_id="atlas-{:03d}",
)
AMOS_FIRST_MR = 501  # the ids up to 500 are CT
AMOS = PairLayout(
    name="AMOS22",
    licence="CC-BY-4.0",
    folders={"imagesTr": "labelsTr", "imagesVa": "labelsVa", "imagesTs": "labelsTs"},
    image=r"amos_(\d+)" + NIFTI,
    label=r"amos_(\d+)" + NIFTI,
    values=15,
    liver=frozenset({6}),
    tumour=None,
    modality=lambda key: Modality.MR if int(key) >= AMOS_FIRST_MR else Modality.CT,
    sequence="",
    case_id="amos-{:04d}",
)
