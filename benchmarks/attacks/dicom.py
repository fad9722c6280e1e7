"""Mutated DICOM series, segmentations (SEG) and structure sets (RTSTRUCT), each in a folder of one tree."""

from __future__ import annotations

import os
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from attacks.volumes import Expected
from hepar.ingest.sources.pseudonyms import keyed_hash

CT_IMAGE, MR_IMAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
KINDS = ("series", "series", "SEG", "RTSTRUCT", "zip")
AIR_HU = -1024


def uid(rng: random.Random) -> UID:
    """A UID that depends on the seed only."""
    return UID(f"2.25.{rng.getrandbits(96)}")


@dataclass
class Series:
    """A series in a folder, and a file of a mask that is drawn on it or a zip that holds it."""

    folder: Path
    kind: str
    original: sitk.Image
    modality: str
    key: str
    rng: random.Random
    liver: sitk.Image
    patient: str = "ATTACKED"
    mutation: str = ""
    expected: Expected = Expected.EITHER
    may_vanish: bool = False  # what is no CT or MR image any more is left out without a word
    series_uid: UID = field(init=False)
    files: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.series_uid = uid(self.rng)
        self.files = write_series(self, sitk.GetArrayFromImage(self.original), self.folder / "scan")

    @property
    def case_id(self) -> str:
        return f"{self.modality.lower()}-{keyed_hash(self.key.encode())(f'{self.series_uid}/0')[:12]}"

    @property
    def attack(self) -> str:
        return f"{self.folder.name} {self.mutation}"

    @property
    def drawing(self) -> Path:
        return self.folder / "drawing.dcm"


def write_series(case: Series, voxels_zyx: np.ndarray[Any, Any], folder: Path, **tags: Any) -> list[Path]:
    """One file per slice with the grid of the case's image; integers are stored with slope 1 and intercept −1024."""
    folder.mkdir(parents=True)
    study, frame = UID(f"{case.series_uid}.1"), UID(f"{case.series_uid}.2")
    spacing_mm, origin_mm = case.original.GetSpacing(), case.original.GetOrigin()
    paths = []
    for z, plane_yx in enumerate(voxels_zyx):
        dataset = Dataset()
        dataset.SOPClassUID = CT_IMAGE if case.modality == "CT" else MR_IMAGE
        dataset.SOPInstanceUID = uid(case.rng)
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = case.series_uid, study, frame
        dataset.Modality, dataset.PatientID, dataset.PatientName = case.modality, case.patient, "ATTACKED"
        dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyID = "", "", "1"
        dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20200101", "101010", "1"
        dataset.ReferringPhysicianName, dataset.SeriesNumber, dataset.InstanceNumber = "", 1, z + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.PixelSpacing = [f"{spacing_mm[1]:g}", f"{spacing_mm[0]:g}"]
        dataset.SliceThickness = f"{spacing_mm[2]:g}"
        position_mm = [origin_mm[0], origin_mm[1], origin_mm[2] + z * spacing_mm[2]]
        dataset.ImagePositionPatient = [f"{value:.6g}" for value in position_mm]
        dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        dataset.Rows, dataset.Columns = plane_yx.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        stored_yx = plane_yx
        if case.modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept = "1", str(AIR_HU)
            stored_yx = plane_yx - AIR_HU
        dataset.PixelData = np.clip(np.round(stored_yx), 0, 65535).astype("<u2").tobytes()
        for name, value in tags.items():
            setattr(dataset, name, value)
        paths.append(folder / f"IM{z:04d}")
        save(dataset, paths[-1])
    return paths


def save(dataset: Dataset, path: Path) -> None:
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def write_masks(case: Series, structures: dict[str, sitk.Image]) -> None:
    """Masks of a good case, as series of their own."""
    image_uid = case.series_uid
    for number, (name, mask) in enumerate(structures.items()):
        mask_zyx = sitk.GetArrayFromImage(mask).astype(np.int32) + (AIR_HU if case.modality == "CT" else 0)
        write_series(
            case,
            mask_zyx,
            case.folder / name,
            SeriesDescription=name,
            RescaleIntercept="0",
            SeriesInstanceUID=UID(f"{image_uid}.{number + 7}"),
        )


def write_segmentation(case: Series) -> None:
    """The liver as DICOM-SEG."""
    import highdicom
    from pydicom.sr.codedict import codes

    description = highdicom.seg.SegmentDescription(
        1, "Liver", codes.SCT.Organ, codes.SCT.Liver, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segmentation = highdicom.seg.Segmentation(
            [pydicom.dcmread(path) for path in case.files],
            sitk.GetArrayFromImage(case.liver).astype(np.uint8),
            highdicom.seg.SegmentationTypeValues.BINARY,
            [description],
            series_instance_uid=uid(case.rng),
            series_number=9,
            sop_instance_uid=uid(case.rng),
            instance_number=1,
            manufacturer="none",
            manufacturer_model_name="none",
            software_versions="1",
            device_serial_number="1",
        )
        segmentation.save_as(case.drawing)


def structure_set(case: Series) -> Dataset:
    """A box in the liver as RTSTRUCT, and a tumour without contours."""
    liver_zyx = sitk.GetArrayFromImage(case.liver) > 0
    contours = []
    for z in np.flatnonzero(liver_zyx.any(axis=(1, 2))):
        ys, xs = np.nonzero(liver_zyx[z])
        corners = [(xs.min(), ys.min()), (xs.max(), ys.min()), (xs.max(), ys.max()), (xs.min(), ys.max())]
        points = [case.original.TransformIndexToPhysicalPoint((int(x), int(y), int(z))) for x, y in corners]
        item = Dataset()
        item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", 4
        item.ContourData = [f"{value:.5g}" for point in points for value in point]
        contours.append(item)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = UID(RTSTRUCT), uid(case.rng)
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid(case.rng), UID(f"{case.series_uid}.1")
    dataset.PatientID, dataset.Modality = case.patient, "RTSTRUCT"
    rois, drawn = [], []
    for number, (name, items) in enumerate({"Liver": contours, "Tumour": []}.items(), start=1):
        roi, of_roi = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        of_roi.ReferencedROINumber = number
        of_roi.ContourSequence = Items(items)
        rois.append(roi)
        drawn.append(of_roi)
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = case.series_uid
    study.RTReferencedSeriesSequence = Items([series])
    frame.RTReferencedStudySequence = Items([study])
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Items(rois), Items(drawn)
    dataset.ReferencedFrameOfReferenceSequence = Items([frame])
    return dataset


# mutations of a series

TAGS: dict[str, tuple[str, tuple[bytes | None, ...]]] = {  # None removes the tag
    "PixelSpacing": ("DS", (b"", b"0\\0", b"nan\\nan", b"1e30\\1e30", b"-1\\-1", b"3", b"1\\2\\3 ", b"a\\b ", None)),
    "ImagePositionPatient": ("DS", (b"", b"1\\2 ", b"1\\2\\3\\4 ", b"nan\\0\\0", b"1e30\\0\\0", b"x\\y\\z ", None)),
    "ImageOrientationPatient": (
        "DS",
        (
            b"",
            b"1\\0\\0\\0\\1 ",
            b"0\\0\\0\\0\\0\\0 ",
            b"nan\\0\\0\\0\\1\\0",
            b"1\\0\\0\\1\\0\\0 ",
            b"4\\0\\0\\0\\4\\0 ",
            None,
        ),
    ),
    "Rows": ("US", (b"\0\0", b"\xff\xff", b"\x28\0\x28\0", b"\1", b"", None)),
    "Columns": ("US", (b"\0\0", b"\xff\xff", b"\x28\0\x28\0", b"", None)),
    "BitsAllocated": ("US", (b"\0\0", b"\1\0", b"\7\0", b"\x40\0", b"\x10\0\x10\0", None)),
    "BitsStored": ("US", (b"\0\0", b"\xff\xff", None)),
    "HighBit": ("US", (b"\xff\xff",)),
    "PixelRepresentation": ("US", (b"\7\0", None)),
    "SamplesPerPixel": ("US", (b"\0\0", b"\3\0", b"\xff\xff", None)),
    "PhotometricInterpretation": ("CS", (b"RGB ", b"", b"MONOCHROME1 ", b"FOO\\BAR ")),
    "RescaleSlope": ("DS", (b"", b"nan ", b"0 ", b"1e30", b"abc ", b"1\\2 ", None)),
    "RescaleIntercept": ("DS", (b"", b"inf ", b"1e30", b"abc ", None)),
    "SeriesInstanceUID": ("UI", (b"", b"1.2\\1.3\0", b"../../evil\0\0", b"9" * 200, None)),
    "StudyInstanceUID": ("UI", (b"", b"1.2\\1.3\0", None)),
    "SOPClassUID": ("UI", (b"", b"1.2\\1.3\0", b"1.2.3.4\0", None)),
    "SOPInstanceUID": ("UI", (b"", b"1.2\\1.3\0", None)),
    "InstanceNumber": ("IS", (b"", b"abc ", b"1\\2 ", b"99999999999999999999", None)),
    "NumberOfFrames": ("IS", (b"0 ", b"-1", b"1000000000", b"x ", b"1\\2 ")),
    "ImageType": ("CS", (b"", b"DERIVED\\SECONDARY ", b"A" * 3000, None)),
    "SpecificCharacterSet": ("CS", (b"FOO_BAR ", b"ISO 2022 IR 87\\\\ISO_IR 192", b"\xff\xfe")),
    "Modality": ("CS", (b"", b"CT\\MR ", b"XX", None)),
    "PatientID": ("LO", (b"", b"\xff\xff\xff\xff", b"a\\b ", b"x" * 5000, None)),
    "SliceThickness": ("DS", (b"", b"nan ", b"1\\2 ", None)),
    "PixelData": ("OW", (b"", b"\0\0", b"\0" * 100, None)),
}
VANISHING = {"SOPClassUID", "Modality", "ImageType", "Rows", "Columns", "PixelData", "SeriesInstanceUID"}
Mutation = Callable[[Series], Expected]


def set_tag(path: Path, keyword: str, vr: str, value: bytes | None) -> None:
    dataset = pydicom.dcmread(path)
    tag = Tag(keyword)
    if value is None:
        dataset.pop(tag, None)
    else:
        dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, dataset)


def tag_value(case: Series) -> Expected:
    keyword = case.rng.choice(list(TAGS))
    vr, values = TAGS[keyword]
    value = case.rng.choice(values)
    all_slices = case.rng.random() < 0.7
    for path in case.files if all_slices else [case.rng.choice(case.files)]:
        set_tag(path, keyword, vr, value)
    case.may_vanish = keyword in VANISHING
    case.mutation = (
        f"{keyword} of {'all slices' if all_slices else 'a slice'} is {value if value is None else value[:30]!r}"
    )
    if all_slices and keyword in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "PixelData"):
        return Expected.REFUSED
    return Expected.EITHER


def flipped(case: Series) -> Expected:
    path = case.rng.choice(case.files)
    data = bytearray(path.read_bytes())
    place = case.rng.randrange(132, case.rng.choice((len(data), 1000)))
    data[place] ^= 1 << case.rng.randrange(8)
    path.write_bytes(data)
    case.may_vanish = True
    case.mutation = f"a bit of byte {place} of {path.name} flipped"
    return Expected.EITHER


def truncated(case: Series) -> Expected:
    for path in case.rng.choice([case.files, case.files[3:4]]):
        data = path.read_bytes()
        path.write_bytes(data[: case.rng.randrange(len(data) - 100)])
    case.may_vanish = True
    case.mutation = "slices truncated"
    return Expected.REFUSED


def missing_slice(case: Series) -> Expected:
    case.files[case.rng.randrange(3, len(case.files) - 3)].unlink()
    case.mutation = "a missing slice"
    return Expected.REFUSED


def other_patient(case: Series) -> Expected:
    path = case.rng.choice(case.files)
    set_tag(path, "PatientID", "LO", b"SOMEBODY ELSE ")
    case.mutation = "a slice of another patient"
    return Expected.REFUSED


def burned_in(case: Series) -> Expected:
    for path in case.files:
        set_tag(path, "BurnedInAnnotation", "CS", b"YES ")
    case.may_vanish = True
    case.mutation = "BurnedInAnnotation is YES"
    return Expected.REFUSED


def special_file(case: Series) -> Expected:
    """One slice is no regular file of the source, or one more entry lies beside the slices."""
    what = case.rng.choice(["FIFO", "link to a device", "link outside", "link to the folder", "long name"])
    path = case.files[5]
    case.mutation = what
    match what:
        case "FIFO":
            path.unlink()
            os.mkfifo(path)
        case "link to a device":
            path.unlink()
            path.symlink_to("/dev/zero")
        case "link outside":
            outside = case.folder.parents[1] / "outside"
            outside.mkdir(exist_ok=True)
            path.rename(outside / f"{case.folder.name}.dcm")
            path.symlink_to(outside / f"{case.folder.name}.dcm")
            return Expected.INSIDE
        case "link to the folder":
            (case.folder / "scan" / "again").symlink_to(".")
            (case.folder / "scan" / "more").symlink_to("..")
            return Expected.SAME
        case "long name":
            path.rename(path.with_name("ä" * 120 + "\n%s"))
            return Expected.SAME
    return Expected.REFUSED


def other_names(case: Series) -> Expected:
    """The order of files and of their numbers means nothing."""
    shuffled = case.rng.sample(range(len(case.files)), len(case.files))
    for number, path in zip(shuffled, case.files, strict=True):
        set_tag(path, "InstanceNumber", "IS", f"{number:<4d}".encode())
        path.rename(path.with_name(f"{number:03d}.dcm"))
    case.mutation = "other names and numbers"
    return Expected.SAME


SERIES: tuple[Mutation, ...] = (
    tag_value, tag_value, tag_value, tag_value, tag_value, flipped, flipped, truncated, missing_slice, other_patient,
    burned_in, special_file, other_names,
)  # fmt: skip


def drawing(case: Series) -> Expected:
    """A SEG or RTSTRUCT with wrong values, flipped bits or without its end."""
    if case.kind == "SEG":
        write_segmentation(case)
        dataset: Dataset = pydicom.dcmread(case.drawing)
    else:
        dataset = structure_set(case)
        save(dataset, case.drawing)
    how = case.rng.choice(["bits", "end", "value", "value", "value", "value"])
    if how == "bits":
        data = bytearray(case.drawing.read_bytes())
        for _ in range(case.rng.choice((1, 4))):
            data[case.rng.randrange(132, len(data))] ^= 1 << case.rng.randrange(8)
        case.drawing.write_bytes(data)
        case.mutation = "bits flipped"
    elif how == "end":
        whole = case.drawing.read_bytes()
        case.drawing.write_bytes(whole[: case.rng.randrange(len(whole))])
        case.mutation = "truncated"
    else:
        changes = SEGMENTATION if case.kind == "SEG" else STRUCTURES
        case.mutation = case.rng.choice(list(changes))
        changes[case.mutation](dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pydicom.dcmwrite(case.drawing, dataset)
    return Expected.EITHER


def _raw(dataset: Dataset, keyword: str, vr: str, value: bytes) -> None:
    dataset._dict[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)


def _contours(dataset: Dataset) -> Any:
    return dataset.ROIContourSequence[0].ContourSequence


SEGMENTATION: dict[str, Callable[[Dataset], object]] = {
    "no SegmentSequence": lambda d: d.pop("SegmentSequence"),
    "no SegmentNumber": lambda d: d.SegmentSequence[0].pop("SegmentNumber"),
    "SegmentNumber of two values": lambda d: _raw(d.SegmentSequence[0], "SegmentNumber", "US", b"\1\0\2\0"),
    "SegmentNumber 0": lambda d: _raw(d.SegmentSequence[0], "SegmentNumber", "US", b"\0\0"),
    "no frames": lambda d: d.pop("PerFrameFunctionalGroupsSequence"),
    "one frame too few": lambda d: d.PerFrameFunctionalGroupsSequence.pop(),
    "no shared groups": lambda d: d.pop("SharedFunctionalGroupsSequence"),
    "NumberOfFrames 0": lambda d: _raw(d, "NumberOfFrames", "IS", b"0 "),
    "NumberOfFrames 1000000000": lambda d: _raw(d, "NumberOfFrames", "IS", b"1000000000"),
    "Rows 0": lambda d: _raw(d, "Rows", "US", b"\0\0"),
    "Rows of two values": lambda d: _raw(d, "Rows", "US", b"\x28\0\x28\0"),
    "no pixels": lambda d: d.pop("PixelData"),
    "half of the pixels": lambda d: setattr(d, "PixelData", d.PixelData[: len(d.PixelData) // 2]),
    "no references": lambda d: d.pop("ReferencedSeriesSequence"),
    "empty reference": lambda d: setattr(d, "ReferencedSeriesSequence", Items([Dataset()])),
    "SegmentationType FOO": lambda d: _raw(d, "SegmentationType", "CS", b"FOO "),
    "position of two values": lambda d: _raw(
        d.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0], "ImagePositionPatient", "DS", b"1\\2 "
    ),
    "position nan": lambda d: _raw(
        d.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0], "ImagePositionPatient", "DS", b"nan\\0\\0 "
    ),
    "label with zero bytes": lambda d: _raw(d.SegmentSequence[0], "SegmentLabel", "LO", b"Liver\0\0\0"),
}
STRUCTURES: dict[str, Callable[[Dataset], object]] = {
    "an empty ROI": lambda d: None,  # the tumour has no contours as it is
    "contour of 7 numbers": lambda d: setattr(_contours(d)[0], "ContourData", ["1"] * 7),
    "contour of one point": lambda d: setattr(_contours(d)[0], "ContourData", ["1"] * 3),
    "contour without data": lambda d: _contours(d)[0].pop("ContourData"),
    "contour of text": lambda d: _raw(_contours(d)[0], "ContourData", "DS", b"a\\b\\c "),
    "contour nan": lambda d: _raw(_contours(d)[0], "ContourData", "DS", b"\\".join([b"nan"] * 9) + b" "),
    "contour of 1e30": lambda d: _raw(_contours(d)[0], "ContourData", "DS", b"1e30\\1\\1\\1\\1e30\\1\\1\\1\\1 "),
    "contour elsewhere": lambda d: setattr(_contours(d)[0], "ContourData", ["9000"] * 9),
    "contour between slices": lambda d: setattr(_contours(d)[0], "ContourData", ["0.123"] * 9),
    "no contours": lambda d: d.pop("ROIContourSequence"),
    "no ROIs": lambda d: d.pop("StructureSetROISequence"),
    "no ROINumber": lambda d: d.StructureSetROISequence[0].pop("ROINumber"),
    "ROINumber of text": lambda d: _raw(d.StructureSetROISequence[0], "ROINumber", "IS", b"one "),
    "ROINumber of two values": lambda d: _raw(d.StructureSetROISequence[0], "ROINumber", "IS", b"1\\2 "),
    "no ReferencedROINumber": lambda d: d.ROIContourSequence[0].pop("ReferencedROINumber"),
    "ReferencedROINumber of text": lambda d: _raw(d.ROIContourSequence[0], "ReferencedROINumber", "IS", b"one "),
    "reference of two values": lambda d: _raw(
        d.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0],
        "SeriesInstanceUID", "UI", b"1.2\\1.3\0",
    ),
    "reference without series": lambda d: d.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    .RTReferencedSeriesSequence[0].pop("SeriesInstanceUID"),
}  # fmt: skip


def zipped(case: Series) -> Expected:
    """The series in a zip that is damaged, or has one more member that must not be unpacked."""
    path = case.folder / "scan.zip"
    how = case.rng.choice(["nothing", "bits", "end", "parent", "absolute", "link", "bomb", "LZMA bits", "FIFO name"])
    compression = zipfile.ZIP_LZMA if how == "LZMA bits" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in case.files:
            archive.write(file, f"scan/{file.name}")
        match how:
            case "parent":
                archive.writestr("../../../evil.dcm", b"evil")
            case "absolute":
                archive.writestr(f"{case.folder.parents[1]}/evil.dcm", b"evil")
            case "link":
                member = zipfile.ZipInfo("scan/link")
                member.external_attr = 0o120777 << 16
                archive.writestr(member, "/etc/passwd")
            case "bomb":
                with archive.open("scan/bomb", "w", force_zip64=True) as stream:
                    for _ in range(2**11):
                        stream.write(bytes(2**20))
    data = bytearray(path.read_bytes())
    if how.endswith("bits"):
        for _ in range(5):
            data[case.rng.randrange(len(data))] ^= 1 << case.rng.randrange(8)
        path.write_bytes(data)
    elif how == "end":
        path.write_bytes(data[: case.rng.randrange(len(data) - 30)])
    shutil.rmtree(case.folder / "scan")
    case.mutation = f"zip: {how}"
    case.may_vanish = how != "nothing"
    return Expected.SAME if how == "nothing" else Expected.EITHER


def mutate(case: Series) -> None:
    """Write what belongs to the case and change it."""
    mutations: dict[str, Sequence[Mutation]] = {"SEG": (drawing,), "RTSTRUCT": (drawing,), "zip": (zipped,)}
    case.expected = case.rng.choice(mutations.get(case.kind, SERIES))(case)
