"""nnU-Net raw (Isensee et al. 2021, version 2): `dataset.json`, `imagesTr/CASE_0000.END`, `labelsTr/CASE.END`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hepar.cases import LabelState, Modality
from hepar.errors import DataError, one_line
from hepar.ingest.sources.files import by_key, safe_id
from hepar.ingest.sources.label_names import liver_and_tumour
from hepar.ingest.sources.source import ABSENT_IF_EMPTY, LabelMap, SourceCase, VolumeFile

DESCRIPTION = "dataset.json"
FIRST_CHANNEL = "0000"


def recognise(folder: Path) -> str:
    """What marks this layout in a folder, for a message; empty if nothing does."""
    if not (folder / DESCRIPTION).is_file() or not (folder / "imagesTr").is_dir():
        return ""
    description = _describe(folder)
    return f"{DESCRIPTION} with channel_names" if "channel_names" in description else ""


def read(folder: Path) -> list[SourceCase]:
    """Cases of one channel, CT or MR by its name. Raises DataError if there are more, or as `liver_and_tumour`."""
    description = _describe(folder)
    channels = description.get("channel_names", {})
    if list(channels) != ["0"]:
        raise DataError(f"{folder / DESCRIPTION}: channel_names has {len(channels)} channels but must have one")
    modality = Modality.CT if str(channels["0"]).upper() == "CT" else Modality.MR
    labels = description.get("labels", {})
    try:
        values = {name: _values(value) for name, value in labels.items() if name != "ignore"}
    except (TypeError, ValueError):
        raise DataError(f"{folder / DESCRIPTION}: labels must map names to numbers, but are {labels}") from None
    declared = frozenset().union(*values.values(), {0})
    source = str(description.get("name", folder.name))
    liver, tumour = liver_and_tumour(values, folder / DESCRIPTION, source)
    ending = re.escape(str(description.get("file_ending", ".nii.gz")))
    cases = []
    for part in ("Tr", "Ts"):
        masks = by_key(folder / f"labels{part}", rf"(.+){ending}")
        for key, image in by_key(folder / f"images{part}", rf"(.+)_{FIRST_CHANNEL}{ending}").items():
            mask = masks.get(key)
            maps = {
                name: LabelMap(VolumeFile(mask), found, declared) if mask and found else None
                for name, found in (("liver", liver), ("tumour", tumour))
            }
            cases.append(
                SourceCase(
                    case_id=safe_id(key),
                    patient_id=key,
                    modality=modality,
                    sequence="" if modality == Modality.CT else str(channels["0"]),
                    image=VolumeFile(image),
                    liver=maps["liver"],
                    tumour=maps["tumour"],
                    liver_state=LabelState.MANUAL if maps["liver"] else LabelState.UNKNOWN,
                    tumour_state=LabelState.MANUAL if maps["tumour"] else LabelState.UNKNOWN,
                    split=None,
                    source=source,
                    licence=str(description.get("licence", description.get("license", ""))),
                    if_empty=ABSENT_IF_EMPTY,
                )
            )
    return cases


def _describe(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except ValueError as error:
        raise DataError(f"{folder / DESCRIPTION} is not JSON: {one_line(error)}") from None
    if not isinstance(description, dict):
        raise DataError(f"{folder / DESCRIPTION} is not a JSON object")
    return description


def _values(value: int | list[int]) -> frozenset[int]:
    return frozenset(value) if isinstance(value, list) else frozenset({int(value)})
