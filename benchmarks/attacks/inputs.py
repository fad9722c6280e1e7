"""The attack by inputs: mutated volumes, DICOM series, tables and zips."""

from __future__ import annotations

import csv
import random
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from attacks import dicom
from attacks.commands import PATIENT_KEY, Workplace
from attacks.ingests import Batches, Ingested, ingest, read_plainly
from attacks.plain_reading import describe
from attacks.verdicts import Outcome, Verdict
from attacks.volumes import FORMATS, MUTATIONS, Expected, Input, cell
from hepar.phantoms import FULLY_LABELLED, CohortDesign, write_phantoms

SIZE_ZYX = (24, 40, 40)
BATCH, DICOM_BATCH = 150, 50  # inputs of one ingest
CELL_SHARE = 0.08
EVERYTHING_MAY_BE_REFUSED = "extends: {params}\ningest: {{max_refused_share: 1.0}}\n"
Row = dict[str, str]


@dataclass(frozen=True)
class Scan:
    """A phantom in LPS orientation, upright, with its true liver and tumour."""

    modality: str
    image: sitk.Image
    liver: sitk.Image
    tumour: sitk.Image

    def noisy(self, rng: np.random.Generator) -> Scan:
        """The same scan with noise of its own, so that no two inputs have the same voxels."""
        noise = sitk.GetImageFromArray(rng.integers(-3, 4, SIZE_ZYX).astype(np.int16))
        noise.CopyInformation(self.image)
        return Scan(self.modality, self.image + sitk.Cast(noise, self.image.GetPixelID()), self.liver, self.tumour)


def scans(folder: Path, cases: int, seed: int) -> list[Scan]:
    """Phantoms of both modalities in turn, all structures known."""
    table = write_phantoms(folder, cases, seed, SIZE_ZYX, CohortDesign(FULLY_LABELLED))
    found = []
    for row in rows_of(table):
        images = [upright(sitk.ReadImage(str(folder / row[name]))) for name in ("image", "liver", "tumour")]
        found.append(Scan(row["modality"], *images))
    return found


def upright(image: sitk.Image) -> sitk.Image:
    image = sitk.DICOMOrient(image, "LPS")
    image.SetDirection(np.eye(3).ravel().tolist())
    image.SetSpacing([round(mm, 3) for mm in image.GetSpacing()])
    image.SetOrigin([round(mm, 1) for mm in image.GetOrigin()])
    return image


def rows_of(table: Path) -> list[Row]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_table(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def row_of_volume(case: Input) -> str:
    return f"volumes: {case.kind}"


class VolumeAttack:
    """Tables of mutated volumes beside eight good phantoms."""

    def __init__(self, folder: Path, params: Path, seed: int) -> None:
        self.place = Workplace(folder / "volumes")
        self.hashes: dict[int, str] = {}  # of the first cohort with so many inputs
        self.source = self.place.folder / "source"
        self.params = self.place.folder / "params.yaml"
        self.params.write_text(EVERYTHING_MAY_BE_REFUSED.format(params=params))
        self.rows = rows_of(write_phantoms(self.source, 8, seed, SIZE_ZYX))
        self.scans = scans(self.place.folder / "scans", 8, seed + 1)[:2]
        first = self.ingest([])
        assert first.ended.code == 0, first.ended.output
        good = {name: row["voxels_sha256"] for name, row in first.accepted.items()}
        assert len(good) == len(self.rows), first.refused
        self.batches = Batches(self.ingest, good, self.expected_reading, row_of_volume, self.wrong_mask)

    def run(self, inputs: int, seed: int) -> Iterator[Outcome]:
        """The outcomes of that many inputs, each batch in one ingest; the first batch twice."""
        for start in range(0, inputs, BATCH):
            cases = [self.case(seed, number) for number in range(start, min(start + BATCH, inputs))]
            yield from self.batches.outcomes(cases)
            if start == 0:
                yield self.again(cases)
            for case in cases:
                shutil.rmtree(case.folder, ignore_errors=True)

    def case(self, seed: int, number: int) -> Input:
        """An input, which depends on the seed and its number only."""
        rng, noise = random.Random(f"{seed}/{number}"), np.random.default_rng([seed, number])
        scan = self.scans[number % 2].noisy(noise)
        kind = FORMATS[number // 2 % len(FORMATS)]
        case = Input(
            f"input-{number:05d}", kind, scan.image, scan.liver, self.source / f"input-{number:05d}", scan.modality
        )
        mutate = cell if rng.random() < CELL_SHARE else rng.choice(MUTATIONS[kind])
        case.expected = mutate(case, rng)
        named = {"case_id": case.case_id, "patient_id": "attacked", "modality": scan.modality}
        files = {"image": f"{case.folder.name}/{case.image.name}", "liver": f"{case.folder.name}/{case.mask.name}"}
        states = {"liver_state": "manual", "tumour_state": "unknown", "split": "train", "spacing_known": "yes"}
        case.row = {**dict.fromkeys(self.rows[0], ""), **named, **files, **states, **case.row}
        return case

    def ingest(self, cases: Sequence[Input]) -> Ingested:
        write_table(self.source / "cohort.csv", [*self.rows, *(case.row for case in cases)])
        options = ["--source", str(self.source / "cohort.csv"), "--params", str(self.params)]
        result = ingest(self.place, options, len(cases))
        self.hashes.setdefault(len(cases), result.hash)
        return result

    def expected_reading(self, cases: Sequence[Input]) -> dict[str, dict[str, Any]]:
        """The original's description, or for changes of unknown meaning what SimpleITK reads."""
        same = {c.case_id: describe(c.original, c.modality) for c in cases if c.expected != Expected.EITHER}
        either = [
            {"case_id": case.case_id, "modality": case.row["modality"], "path": str(case.image)}
            for case in cases
            if case.expected == Expected.EITHER
        ]
        return same | read_plainly(either, self.place.folder)

    def wrong_mask(self, case: Input, row: Mapping[str, Any]) -> str:
        """Whether the cohort holds another liver than SimpleITK reads from a changed mask; empty if the same."""
        if case.mask.name not in case.mutation and "mask" not in case.mutation:
            return ""
        paths = {"source": case.mask, "cohort": self.place.folder / "cohort" / row["liver"]}
        requests = [{"case_id": name, "modality": "CT", "path": str(path)} for name, path in paths.items()]
        read = read_plainly(requests, self.place.folder)
        if "error" in read["source"]:
            return f"accepted with a mask that cannot be read: {read['source']['error']}"
        return "" if read["source"]["sha256"] == read["cohort"].get("sha256") else "accepted with another mask"

    def again(self, cases: Sequence[Input]) -> Outcome:
        """Whether the same source gives the same cohort, refusals included."""
        first, second = self.hashes[len(cases)], self.ingest(cases)
        row, attack = "the same source twice", f"{len(cases)} volumes"
        if not first or second.ended.code:
            return Outcome(row, attack, Verdict.REFUSED, "the batch ends the ingest")
        same = first == second.hash
        return Outcome(row, attack, Verdict.ACCEPTED if same else Verdict.WRONG, "" if same else "hashes differ")


class DicomAttack:
    """Trees of mutated series beside good ones with masks."""

    def __init__(self, folder: Path, params: Path, seed: int) -> None:
        self.place = Workplace(folder / "dicom")
        self.source, self.waiting = self.place.folder / "source", self.place.folder / "waiting"
        self.waiting.mkdir()
        self.split = self.place.folder / "split.csv"
        self.params = self.place.folder / "params.yaml"
        self.params.write_text(EVERYTHING_MAY_BE_REFUSED.format(params=params))
        rows = []
        found = scans(self.place.folder / "scans", 8, seed)
        self.scans = found[:2]
        for number, scan in enumerate(found[2:6]):
            case = self.series(self.source / f"good-{number}", "series", scan, random.Random(f"{seed}/{number}"))
            dicom.write_masks(case, {"liver": scan.liver, "tumour": scan.tumour})
            rows.append({"case_id": case.case_id, "split": "test" if number < 2 else "train"})
        write_table(self.split, rows)
        first = self.ingest([])
        assert first.ended.code == 0, first.ended.output
        good = {name: row["voxels_sha256"] for name, row in first.accepted.items()}
        assert len(good) == len(rows), first.refused
        self.batches = Batches(
            self.ingest, good, self.expected_reading, lambda case: f"DICOM: {case.kind}", taught_tumour_free
        )

    def run(self, inputs: int, seed: int) -> Iterator[Outcome]:
        """The outcomes of that many inputs, each batch in one ingest."""
        for start in range(0, inputs, DICOM_BATCH):
            cases = [self.case(seed, number) for number in range(start, min(start + DICOM_BATCH, inputs))]
            yield from self.batches.outcomes(cases)
            for case in cases:
                shutil.rmtree(case.folder, ignore_errors=True)

    def case(self, seed: int, number: int) -> dicom.Series:
        """An input, which depends on the seed and its number only."""
        rng = random.Random(f"DICOM/{seed}/{number}")
        scan = self.scans[number % 2].noisy(np.random.default_rng([seed, number]))
        kind = dicom.KINDS[number // 2 % len(dicom.KINDS)]
        case = self.series(self.waiting / f"input-{number:05d}", kind, scan, rng)
        dicom.mutate(case)
        return case

    @staticmethod
    def series(folder: Path, kind: str, scan: Scan, rng: random.Random) -> dicom.Series:
        """A scan as a series, rounded to the integers that it can store; attacked ones belong to one patient."""
        patient = "ATTACKED" if folder.name.startswith("input") else folder.name.upper()
        low, high = (dicom.AIR_HU, 30000) if scan.modality == "CT" else (0, 60000)
        image = sitk.Clamp(sitk.Round(sitk.Cast(scan.image, sitk.sitkFloat32)), sitk.sitkFloat32, low, high)
        return dicom.Series(folder, kind, image, scan.modality, PATIENT_KEY, rng, scan.liver, patient)

    def ingest(self, cases: Sequence[dicom.Series]) -> Ingested:
        """Ingest the good series and these, which lie in the source for as long as that takes."""
        for case in cases:
            case.folder.rename(self.source / case.folder.name)
        try:
            options = ["--source", str(self.source), "--layout", "dicom", "--split-from", str(self.split)]
            return ingest(self.place, [*options, "--params", str(self.params)], len(cases))
        finally:
            for case in cases:
                (self.source / case.folder.name).rename(case.folder)

    def expected_reading(self, cases: Sequence[dicom.Series]) -> dict[str, dict[str, Any]]:
        """The original's description, or for a changed series what pydicom reads."""
        changed = [case for case in cases if case.kind == "series" and case.expected == Expected.EITHER]
        same = {case.case_id: describe(case.original, case.modality) for case in cases if case not in changed}
        requests = [
            {
                "case_id": case.case_id,
                "modality": case.modality,
                "files": [str(path) for path in sorted((case.folder / "scan").iterdir())],
                "series": str(case.series_uid),
            }
            for case in changed
        ]
        read = read_plainly(requests, self.place.folder)
        # pydicom refuses some headers that others read; then the voxels must be what they were
        unread = [case for case in changed if "error" in read[case.case_id]]
        return same | read | {case.case_id: describe(case.original, case.modality) for case in unread}


def taught_tumour_free(case: dicom.Series, row: Mapping[str, Any]) -> str:
    """The fault of a case that became tumour-free by a ROI without contours; empty if there is none."""
    if case.kind == "RTSTRUCT" and row["tumour_state"] == "absent":
        return "an empty ROI became the state absent"
    return ""


class WholeSourceAttack:
    """Tables and zips that are damaged as a whole: one ingest each."""

    def __init__(self, folder: Path, params: Path, seed: int) -> None:
        self.place = Workplace(folder / "sources")
        self.source = self.place.folder / "source"
        self.params = self.place.folder / "params.yaml"
        self.params.write_text(EVERYTHING_MAY_BE_REFUSED.format(params=params))
        self.table = write_phantoms(self.source, 8, seed, SIZE_ZYX)
        self.frame = pd.DataFrame(rows_of(self.table))
        self.zip = Path(shutil.make_archive(str(self.place.folder / "whole"), "zip", self.source))
        first = ingest(self.place, ["--source", str(self.table), "--params", str(self.params)], 8)
        self.good = {row["voxels_sha256"] for row in first.accepted.values()}
        assert len(self.good) == 8, first.ended.output

    def run(self, inputs: int, seed: int) -> Iterator[Outcome]:
        for number in range(inputs):
            rng = random.Random(f"whole/{seed}/{number}")
            kind = ("CSV", "Parquet", "zip")[number % 3]
            source = self.source / "attacked.csv" if kind == "CSV" else self.source / "attacked.parquet"
            source = self.place.folder / "attacked.zip" if kind == "zip" else source
            change = {"CSV": self.change_csv, "Parquet": self.change_parquet, "zip": self.change_zip}[kind]
            attack = f"{number} {change(source, rng)}"
            result = ingest(self.place, ["--source", str(source), "--params", str(self.params)], 8)
            source.unlink()
            yield Outcome(f"sources: {kind}", attack, *self.judged(result))

    def judged(self, result: Ingested) -> tuple[Verdict, str]:
        """What became of a source, of which every accepted case must have the voxels of a good one."""
        if verdict := result.ended.verdict():
            return verdict, result.ended.seen()
        if result.outside:
            return Verdict.OUTSIDE, result.outside
        strange = [name for name, row in result.accepted.items() if row["voxels_sha256"] not in self.good]
        return (Verdict.WRONG, f"{strange[0]} has other voxels") if strange else (Verdict.ACCEPTED, "")

    def change_csv(self, path: Path, rng: random.Random) -> str:
        text = self.table.read_bytes()
        changes: dict[str, Callable[[], bytes]] = {
            "bits": lambda: _flipped(text, rng),
            "end": lambda: text[: rng.randrange(len(text))],
            "UTF-16": lambda: text.decode().encode("utf-16"),
            "Latin-1": lambda: text.replace(b"phantom-ct", b"phant\xf6m-ct"),
            "zero bytes": lambda: text.replace(b"train", b"tr\0in"),
            "a quote": lambda: text.replace(b",CT,", b',"CT,', 1),
            "semicolons": lambda: text.replace(b",", b";"),
            "a column twice": lambda: text.replace(b"sequence", b"image", 1),
            "a row too long": lambda: text + b"," * 40 + b"\n",
            "a row twice": lambda: text + text.splitlines(keepends=True)[-1],
            "patient NA": lambda: re.sub(rb"phantom-000[0-3]", b"NA", text),
            "a huge cell": lambda: text.replace(b"CC0-1.0", b"x" * 10**6, 1),
            "nothing": lambda: b"",
            "byte order mark": lambda: b"\xef\xbb\xbf" + text,
        }
        how = rng.choice(list(changes))
        path.write_bytes(changes[how]())
        return f"table: {how}"

    def change_parquet(self, path: Path, rng: random.Random) -> str:
        how = rng.choice(["bits", "end", "lists", "bytes", "numbers", "nulls", "structs", "text"])
        frame = self.frame.copy()
        column = rng.choice(list(frame.columns))
        values: dict[str, Callable[[int], object]] = {
            "lists": lambda i: [str(i)],
            "bytes": lambda i: bytes([255, i]),
            "numbers": lambda i: i / 3,
            "nulls": lambda i: None,
            "structs": lambda i: {"a": i},
        }
        if how in values:
            frame[column] = pd.Series([values[how](i) for i in range(len(frame))], dtype=object)
        frame.to_parquet(path)
        data = path.read_bytes()
        if how == "bits":
            path.write_bytes(_flipped(data, rng))
        elif how == "end":
            path.write_bytes(data[: rng.randrange(len(data))])
        elif how == "text":
            path.write_bytes(self.table.read_bytes())
        return f"table: {how}{f' in {column}' if how in values else ''}"

    def change_zip(self, path: Path, rng: random.Random) -> str:
        data = self.zip.read_bytes()
        how = rng.choice(["bits", "bits", "end", "garbage", "parent", "absolute", "link", "encrypted"])
        if how in ("parent", "absolute", "link"):
            shutil.copy(self.zip, path)
            with zipfile.ZipFile(path, "a") as archive:
                member = zipfile.ZipInfo(
                    {"parent": "../../evil", "absolute": f"{self.place.folder}/evil"}.get(how, "l")
                )
                member.external_attr = (0o120777 if how == "link" else 0o100644) << 16
                archive.writestr(member, "/etc/passwd")
            return f"zip: {how}"
        if how == "encrypted":
            data = data.replace(b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0")
        changed = {"bits": _flipped(data, rng), "end": data[: rng.randrange(len(data))], "garbage": rng.randbytes(5000)}
        path.write_bytes(changed.get(how, data))
        return f"zip: {how}"


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 10))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)
