"""Two folders of label maps, matched by file name: reference and prediction of any model.

A label map is a volume of integers. Its name without the ending is the id of the case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hepar.cases import LIVER, NOMINAL, STRUCTURES, TUMOUR, LabelState, Modality, parse_enum, parse_flag
from hepar.errors import DataError, ParamsError
from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase
from hepar.imaging.headers import ENDINGS, volume_stem
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Array, Geometry, canonical, grid_difference, read_image, to_array
from hepar.ingest.sources.table import read_frame

BACKGROUND = "background"
UNKNOWN_MODALITY = "unknown modality"
_REFERENCE_STATES = (LabelState.MANUAL, LabelState.ABSENT, LabelState.UNKNOWN)


@dataclass(frozen=True)
class LabelValues:
    """The values of each structure in a label map; () for one that the map does not show. 0 is always background."""

    liver: tuple[int, ...]
    tumour: tuple[int, ...]
    background: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> LabelValues:
        """Read `liver=1,tumour=2`; a name may occur again. Raises ParamsError naming what is wrong."""
        values: dict[str, list[int]] = {name: [] for name in (*STRUCTURES, BACKGROUND)}
        for item in text.split(","):
            name, equals, number = (part.strip() for part in item.partition("="))
            if not equals or name not in values or not (number.isdecimal() and int(number) > 0):
                raise ParamsError(
                    f"labels are {text!r}, but {item!r} is not NAME=VALUE with a name of {', '.join(values)} and an"
                    " integer above 0"
                )
            if any(int(number) in known for known in values.values()):
                raise ParamsError(f"labels are {text!r}, but {number} occurs twice")
            values[name].append(int(number))
        if not any(values[name] for name in STRUCTURES):
            raise ParamsError(f"labels are {text!r}, but neither liver nor tumour has a value")
        return cls(*(tuple(values[name]) for name in (*STRUCTURES, BACKGROUND)))

    @property
    def all_values(self) -> tuple[int, ...]:
        return (0, *self.liver, *self.tumour, *self.background)

    def describe(self) -> str:
        """As `parse` reads it."""
        return ",".join(f"{name}={n}" for name in (*STRUCTURES, BACKGROUND) for n in getattr(self, name))

    def structures(self) -> frozenset[int]:
        """The channels that the label map shows."""
        return frozenset(channel for channel, name in enumerate(STRUCTURES) if getattr(self, name))


@dataclass(frozen=True)
class CaseFacts:
    """What a table knows about a case."""

    identity: CaseIdentity
    states: tuple[LabelState, LabelState]  # of the reference, liver and tumour
    distances_known: bool


@dataclass(frozen=True)
class MaskPair:
    """The label maps of a case, not yet read."""

    facts: CaseFacts
    reference: Path
    prediction: Path


def match_masks(reference: Path, prediction: Path, table: Path | None, modality: Modality | None) -> list[MaskPair]:
    """The pairs of two folders, ordered by case id.

    Without a table each file is a patient of its own whose labels are all known. `modality` is that of the cases for
    which a table gives none; without either it is unknown. Raises DataError if a folder is empty, a file has no
    counterpart, or the table lacks a case or holds an invalid value.
    """
    references, predictions = list_masks(reference), list_masks(prediction)
    for folder, files, others in ((prediction, predictions, references), (reference, references, predictions)):
        if missing := sorted(others.keys() - files.keys()):
            more = f" ({len(missing)} such cases)" if len(missing) > 1 else ""
            raise DataError(
                f"case {missing[0]}: {others[missing[0]]} has no counterpart of the same name in {folder}{more}"
            )
    default = "" if modality is None else str(modality)
    known = {} if table is None else _read_facts(table, default)
    if table is not None and (missing := sorted(references.keys() - known.keys())):
        raise DataError(f"case {missing[0]}: {table} has no row for {references[missing[0]]}")
    return [
        MaskPair(known.get(case_id) or _facts(case_id, {}, default), file, predictions[case_id])
        for case_id, file in sorted(references.items())
    ]


def list_masks(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by case id; hidden files and those in folders below it are left out.

    Raises DataError if there are none, or if two have the same id.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.lower().endswith(ENDINGS) or path.name.startswith(".") or not path.is_file():
            continue
        case_id = volume_stem(path)
        if case_id in found:
            raise DataError(f"case {case_id}: {folder} has both {found[case_id].name} and {path.name}")
        found[case_id] = path
    if not found:
        raise DataError(f"{folder} has no label map: file names must end in {', '.join(ENDINGS)}")
    return found


def read_pair(pair: MaskPair, labels: LabelValues, prediction_labels: LabelValues) -> SegmentedCase:
    """Reference and prediction of a case in the canonical orientation, whatever order and direction their axes have.

    The liver includes the tumours. A structure that is unknown, or that one of the two label maps does not show, has no
    reference. Raises DataError naming the case if a file cannot be read, the grids differ, a value has no name, or a
    structure that is absent by the table is in the reference.
    """
    case_id = pair.facts.identity.case_id
    reference, prediction = (canonical(_read(case_id, path, pair.facts)) for path in (pair.reference, pair.prediction))
    if difference := grid_difference(Geometry.of(prediction), Geometry.of(reference)):
        difference = difference.replace("the mask has", "the prediction has").replace("the image", "the reference")
        raise DataError(f"case {case_id}: {difference}")
    reference_zyx, prediction_zyx = to_array(reference), to_array(prediction)
    for path, array_zyx, values in (
        (pair.reference, reference_zyx, labels),
        (pair.prediction, prediction_zyx, prediction_labels),
    ):
        _check_values(case_id, path, array_zyx, values)
    _check_absent(pair, reference_zyx, labels)
    shown = labels.structures() & prediction_labels.structures()
    known = [channel in shown and state != LabelState.UNKNOWN for channel, state in enumerate(pair.facts.states)]
    liver_zyx, tumour_zyx = _masks(reference_zyx, labels)
    predicted_liver_zyx, predicted_tumour_zyx = _masks(prediction_zyx, prediction_labels)
    return SegmentedCase(
        pair.facts.identity,
        LabelPair(liver_zyx if known[LIVER] else None, predicted_liver_zyx),
        LabelPair(tumour_zyx if known[TUMOUR] else None, predicted_tumour_zyx),
        Geometry.of(reference).spacing_zyx_mm,
        pair.facts.distances_known,
    )


def _masks(array_zyx: Array, values: LabelValues) -> tuple[Mask, Mask]:
    """The liver with its tumours, and the tumours."""
    tumour_zyx = np.isin(array_zyx, values.tumour)
    return np.isin(array_zyx, values.liver) | tumour_zyx, tumour_zyx


def _read(case_id: str, path: Path, facts: CaseFacts) -> sitk.Image:
    try:
        return read_image(path, spacing_known=facts.distances_known)
    except DataError as error:
        raise DataError(f"case {case_id}: {error}") from None


def _check_values(case_id: str, path: Path, array_zyx: Array, values: LabelValues) -> None:
    unnamed_zyx = ~np.isin(array_zyx, values.all_values)
    if unnamed_zyx.any():
        found = array_zyx[unnamed_zyx][0].item()
        raise DataError(
            f"case {case_id}: {path} has {np.count_nonzero(unnamed_zyx)} voxels of an unnamed value, such as {found:g},"
            f" but labels are background=0,{values.describe()}"
        )


def _check_absent(pair: MaskPair, reference_zyx: Array, values: LabelValues) -> None:
    for name, state in zip(STRUCTURES, pair.facts.states, strict=True):
        voxels = np.count_nonzero(np.isin(reference_zyx, getattr(values, name)))
        if state == LabelState.ABSENT and voxels:
            case_id = pair.facts.identity.case_id
            raise DataError(f"case {case_id}: {name}_state is absent but {pair.reference} has {voxels} {name} voxels")


def _read_facts(table: Path, default_modality: str) -> dict[str, CaseFacts]:
    """What a table like that of a source or of a report knows about each case; other columns are ignored."""
    frame = read_frame(table)
    if "case_id" not in frame.columns:
        raise DataError(f"{table}: column case_id is missing; columns are {', '.join(map(str, frame.columns))}")
    facts: dict[str, CaseFacts] = {}
    for row in frame.to_dict(orient="records"):
        case_id = str(row["case_id"])
        if case_id in facts:
            raise DataError(f"case {case_id}: the id is used twice in {table}")
        facts[case_id] = _facts(case_id, {str(key): str(cell) for key, cell in row.items()}, default_modality)
    return facts


def _facts(case_id: str, row: Mapping[str, str], default_modality: str) -> CaseFacts:
    """The facts in a row. An empty cell means the same as a missing column."""
    modality = row.get("modality") or default_modality
    if modality:
        modality = str(parse_enum(Modality, modality, case_id=case_id, column="modality"))
    states = [_state(case_id, structure, row) for structure in STRUCTURES]
    return CaseFacts(
        CaseIdentity(
            case_id=case_id,
            patient_id=row.get("patient_id") or case_id,
            modality=modality or UNKNOWN_MODALITY,
            sequence=row.get("sequence", ""),
            source=row.get("source") or "folder",
        ),
        (states[LIVER], states[TUMOUR]),
        _distances_known(case_id, row),
    )


def _distances_known(case_id: str, row: Mapping[str, str]) -> bool:
    """Whether the voxel size is real, by the column of a source, or else by that of a report; without either it is."""
    if spacing := row.get("spacing_known"):
        return parse_flag(spacing, case_id, "spacing_known", NOMINAL)
    return _known(case_id, "distances", row)


def _state(case_id: str, structure: str, row: Mapping[str, str]) -> LabelState:
    """The state of a structure: that of its column as in the table of a source, or else what that of a report tells."""
    column = f"{structure}_state"
    cell = row.get(column) or (LabelState.MANUAL if _known(case_id, structure, row) else LabelState.UNKNOWN)
    state = parse_enum(LabelState, cell, case_id=case_id, column=column)
    if state not in _REFERENCE_STATES:
        raise DataError(
            f"case {case_id}: {column} is {cell} but a reference must be one of {', '.join(_REFERENCE_STATES)}"
        )
    return LabelState(state)


def _known(case_id: str, what: str, row: Mapping[str, str]) -> bool:
    """Whether the table of a report knows something about a case; an empty or missing cell says yes."""
    column = f"{what}_known"
    return not row.get(column) or parse_flag(row[column], case_id, column)
