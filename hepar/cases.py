"""Case, LabelState and Cohort: the table of cases that every stage reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepar.errors import DataError, one_line
from hepar.runtime.journal import finish_replacing
from hepar.runtime.verification import verify_artifact
from hepar.runtime.whole_files import write_bytes

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and `hepar --help` needs only Modality


class Modality(StrEnum):
    CT = "CT"
    MR = "MR"


LIVER, TUMOUR = 0, 1  # the channels of targets, weights and predictions: the whole liver, and the tumour in it
STRUCTURES = ("liver", "tumour")  # their names, in that order
PHANTOM = "phantom"  # the source of the cases that hepar draws itself
YES, NO = ("yes", "true", "1"), ("no", "false", "0")  # in the cells of a table
NOMINAL = (*NO, "approximate")  # of a voxel size that is not that of the scanner


class LabelState(StrEnum):
    """What is known about one structure in one case. Unknown is never background."""

    MANUAL = "manual"
    PSEUDO = "pseudo"
    UNKNOWN = "unknown"
    ABSENT = "absent"  # confirmed by an expert


class Split(StrEnum):
    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True)
class Case:
    """One scan and its labels. Paths are relative to the cohort folder; a mask that does not exist has an empty path.

    `spacing_mm` and `size` run z, y, x. The digests are SHA-256, empty where the file does not exist.
    `distances_known` is false where the spacing is nominal, so that distances in millimetres mean nothing.
    """

    case_id: str
    patient_id: str
    source: str
    modality: Modality
    sequence: str
    image: str
    liver: str
    tumour: str
    liver_state: LabelState
    tumour_state: LabelState
    split: Split
    spacing_mm: tuple[float, float, float]
    size: tuple[int, int, int]
    distances_known: bool = True
    licence: str = ""
    image_sha256: str = ""
    liver_sha256: str = ""
    tumour_sha256: str = ""
    source_sha256: str = ""  # of the declaration and every source file of the case
    voxels_sha256: str = ""  # of the voxels of the canonical image
    header: str = field(default="{}")  # what is kept of the source's header, as JSON

    @property
    def file_hashes(self) -> dict[str, str]:
        """The SHA-256 of each file of the case, by its path."""
        digests = {self.image: self.image_sha256, self.liver: self.liver_sha256, self.tumour: self.tumour_sha256}
        return {path: sha256 for path, sha256 in digests.items() if path}


_ENUMS: dict[str, type[StrEnum]] = {
    "modality": Modality,
    "liver_state": LabelState,
    "tumour_state": LabelState,
    "split": Split,
}


@dataclass(frozen=True)
class Cohort:
    """Cases, ordered by id, and the folder that holds them: what `hepar ingest` writes."""

    folder: Path
    cases: tuple[Case, ...]

    KIND = "cohort"
    TABLE = "cases.parquet"
    VOLUMES = "volumes"  # a folder a case
    QUARANTINE = "quarantine.csv"  # the refused cases, each with the rule that it breaks
    PERCEPTUAL_HASHES = "perceptual_hashes.npz"  # of every scan, to find near duplicates

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those with a case, in the order of `Modality`."""
        return tuple(modality for modality in Modality if self.select(modality))

    def select(self, modality: Modality | None = None, splits: Iterable[Split] | None = None) -> tuple[Case, ...]:
        """Cases of one modality and of these splits; None selects all."""
        wanted = None if splits is None else set(splits)
        return tuple(
            case
            for case in self.cases
            if (modality is None or case.modality == modality) and (wanted is None or case.split in wanted)
        )

    @classmethod
    def volume(cls, case_id: str, name: str) -> str:
        """Path in a cohort of a volume of a case: `image`, `liver` or `tumour`."""
        return f"{cls.volumes_of(case_id)}{name}.nii.gz"

    @classmethod
    def volumes_of(cls, case_id: str) -> str:
        """Beginning of the paths in a cohort of the volumes of a case."""
        return f"{cls.VOLUMES}/{case_id}/"

    def file(self, relative: str) -> Path:
        """Path of a file of the cohort."""
        return self.folder / relative

    def verify(self, cases: Iterable[Case]) -> None:
        """Check the table and the volumes of these cases. Raises ArtifactError naming the first damaged file."""
        volumes = [path for case in cases for path in case.file_hashes]
        verify_artifact(self.folder, self.KIND, [self.TABLE, *volumes])

    def save(self) -> None:
        """Write the table into the folder. Equal cases give equal bytes."""
        write_bytes(self.folder / self.TABLE, cases_frame(self.cases).to_parquet(index=False))

    @classmethod
    def load(cls, folder: Path) -> Cohort:
        """Read a cohort. Raises DataError if the table is missing or damaged, or a value does not fit its column."""
        import pandas as pd

        finish_replacing(folder)
        table = folder / cls.TABLE
        if not table.is_file():
            raise DataError(f"{folder} is not a cohort: {cls.TABLE} is missing")
        try:
            rows = pd.read_parquet(table).to_dict(orient="records")
            return cls(folder, tuple(case_from_row({str(key): value for key, value in row.items()}) for row in rows))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{table} is damaged or was written by another version of hepar: {one_line(error)}"
            ) from None


def cases_frame(cases: Sequence[Case]) -> pd.DataFrame:
    """One row per case, ordered by id; the columns are the fields of `Case`."""
    import pandas as pd

    columns = [item.name for item in fields(Case)]
    rows = [asdict(case) for case in sorted(cases, key=lambda case: case.case_id)]
    for row in rows:
        row.update({name: str(row[name]) for name in _ENUMS})
        row.update(spacing_mm=list(row["spacing_mm"]), size=list(row["size"]))
    return pd.DataFrame(rows, columns=columns)


def case_from_row(row: dict[str, Any]) -> Case:
    """The case in a row of the table. Raises DataError naming case, column and value."""
    values = {item.name: row[item.name] for item in fields(Case) if item.name in row}
    for name, kind in _ENUMS.items():
        values[name] = parse_enum(kind, row[name], case_id=str(row["case_id"]), column=name)
    values["spacing_mm"] = tuple(float(value) for value in row["spacing_mm"])
    values["size"] = tuple(int(value) for value in row["size"])
    values["distances_known"] = bool(row["distances_known"])
    return Case(**values)


def parse_enum(kind: type[StrEnum], value: object, case_id: str, column: str) -> Any:
    """The member of `kind` with this value. Raises DataError naming case, column and value."""
    try:
        return kind(str(value))
    except ValueError:
        allowed = ", ".join(member.value for member in kind)
        raise DataError(f"case {case_id}: {column} is {str(value)!r} but must be one of {allowed}") from None


def parse_flag(cell: str, case_id: str, column: str, no: Sequence[str] = NO) -> bool:
    """Whether a cell says yes, in capitals or not; `no` are the words for no.

    Raises DataError naming case, column and value if it is any other word.
    """
    if (word := cell.lower()) in (*YES, *no):
        return word in YES
    raise DataError(f"case {case_id}: {column} is {cell!r} but must be one of {', '.join((*YES, *no))}")


def check_case_ids(case_ids: Iterable[str]) -> None:
    """Raise DataError if a case id occurs twice."""
    seen: set[str] = set()
    for case_id in case_ids:
        if case_id in seen:
            raise DataError(f"case {case_id}: the id is used twice")
        seen.add(case_id)


def check_patients(cases: Sequence[Case]) -> None:
    """Raise DataError if a case id occurs twice or a patient's scans are in two splits."""
    check_case_ids(case.case_id for case in cases)
    split_of: dict[str, Case] = {}
    for case in cases:
        first = split_of.setdefault(case.patient_id, case)
        if first.split != case.split:
            raise DataError(
                f"patient {case.patient_id}: {first.case_id} is in {first.split} but {case.case_id} is in {case.split};"
                " a patient belongs to one split"
            )
