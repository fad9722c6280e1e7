"""BIDS-like trees: `sub-XX[/ses-YY]/MODALITY/sub-XX_…_SUFFIX.nii.gz`, masks beside them or under `derivatives/`.

The suffix gives the modality: `ct` is CT; `T1w`, `T2w` and the like are MR. A mask's name has the entities of its image
and `label-liver` or `label-tumour` (or lesion), as BEP011 names masks.
"""

from __future__ import annotations

import re
from pathlib import Path

from hepar.cases import LabelState, Modality
from hepar.ingest.sources.files import folders, safe_id
from hepar.ingest.sources.source import ABSENT_IF_EMPTY, SourceCase, VolumeFile

IMAGE = re.compile(
    r"(sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9]+)*)_(ct|CT|T1w|T2w|PDw|T2starw|FLAIR|dwi|MR)\.nii(?:\.gz)?"
)
ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9]+)")
LABELS = {"liver": ("liver",), "tumour": ("tumour", "tumor", "lesion")}


def recognise(folder: Path) -> str:
    """What marks this layout in a folder, for a message; empty if nothing does."""
    subjects = [path for path in folder.glob("sub-*") if path.is_dir()]
    count = sum(1 for subject in subjects for _ in _images(subject))
    return f"{count} images in {len(subjects)} folders sub-*" if count else ""


def read(folder: Path) -> list[SourceCase]:
    """Each image with the masks that share its entities."""
    masks = [path for part in folders(folder) for path in part.glob("sub-*_label-*.nii*")]
    cases = []
    for subject in sorted(path for path in folder.glob("sub-*") if path.is_dir()):
        for image in _images(subject):
            match = IMAGE.fullmatch(image.name)
            assert match is not None
            stem, suffix = match.groups()
            modality = Modality.CT if suffix.lower() == "ct" else Modality.MR
            found = {name: _mask(masks, stem, suffix, words) for name, words in LABELS.items()}
            liver, tumour = found["liver"], found["tumour"]
            cases.append(
                SourceCase(
                    case_id=safe_id(f"{stem}_{suffix}"),
                    patient_id=subject.name,
                    modality=modality,
                    sequence="" if modality == Modality.CT else suffix,
                    image=VolumeFile(image),
                    liver=VolumeFile(liver) if liver else None,
                    tumour=VolumeFile(tumour) if tumour else None,
                    liver_state=LabelState.MANUAL if liver else LabelState.UNKNOWN,
                    tumour_state=LabelState.MANUAL if tumour else LabelState.UNKNOWN,
                    split=None,
                    source=folder.name,
                    licence="",
                    if_empty=ABSENT_IF_EMPTY,
                )
            )
    return cases


def _images(subject: Path) -> list[Path]:
    found = [path for part in folders(subject) for path in sorted(part.glob("sub-*.nii*"))]
    return [path for path in found if IMAGE.fullmatch(path.name) and "_label-" not in path.name]


def _mask(masks: list[Path], stem: str, suffix: str, words: tuple[str, ...]) -> Path | None:
    """The mask with the image's entities and one of the labels; a suffix, if it names one, must be the image's."""
    wanted = dict(ENTITY.findall(stem))
    for path in masks:
        entities = dict(ENTITY.findall(path.name.split(".", 1)[0]))
        others = {name: value for name, value in entities.items() if name not in ("label", "desc", "space")}
        named = re.search(r"_(ct|CT|T1w|T2w|PDw|T2starw|FLAIR|dwi|MR)(?:_|\.)", path.name)
        if entities.get("label", "").lower() in words and others == wanted and (not named or named[1] == suffix):
            return path
    return None
