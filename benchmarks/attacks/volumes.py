"""Mutated NIfTI, MetaImage and NRRD files of one small scan, each a row of a table.

Every input starts as a correct scan whose voxels no other input has. A mutation changes its files and says what must
come of them.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import SimpleITK as sitk

DETACHED = ("mhd", "nhdr")
FORMATS = ("nii", "nii.gz", "mha", "mhd", "nrrd", "nhdr")
NIFTI_HEADER_BYTES = 348
ABSURD_MM = ("nan", "inf", "1e30", "1e-30", "10000")
Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


class Expected(StrEnum):
    """What must come of an input."""

    SAME = "accepted with the voxels and the grid that it had"
    REFUSED = "refused"
    EITHER = "refused, or accepted as SimpleITK reads it"
    INSIDE = "refused, since its voxels lie outside the source"


@dataclass
class Input:
    """One input: its row of the table, what was done, and what must come of it.

    `image` and `mask` are the files that the row names; `original` is the correct scan.
    """

    case_id: str
    kind: str
    original: sitk.Image
    mask_image: sitk.Image
    folder: Path
    modality: str
    image: Path = field(init=False)
    mask: Path = field(init=False)
    mutation: str = ""
    expected: Expected = Expected.EITHER
    row: dict[str, str] = field(default_factory=dict)
    may_vanish: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.image, self.mask = self.folder / f"image.{self.kind}", self.folder / "liver.nii.gz"
        sitk.WriteImage(self.original, str(self.image), useCompression=self.kind not in DETACHED)
        sitk.WriteImage(self.mask_image, str(self.mask), useCompression=True)

    @property
    def attack(self) -> str:
        return f"{self.case_id} {self.mutation}"


Mutation = Callable[[Input, random.Random], Expected]


# any file


def _truncate(file: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    kept = rng.randrange(len(data) * 9 // 10)
    file.write_bytes(data[:kept])
    return f"{file.name} cut to {kept} of {len(data)} bytes"


def _flip(file: Path, rng: random.Random, end: int | None = None) -> str:
    data = bytearray(file.read_bytes())
    places = sorted(rng.randrange(min(len(data), end or len(data)) * 8) for _ in range(rng.choice((1, 1, 2, 8))))
    for place in places:
        data[place // 8] ^= 1 << place % 8
    file.write_bytes(data)
    return f"bits {places} of {file.name} flipped"


def voxel_file(case: Input) -> Path:
    """The file with the voxels: the image, or the data file that its header names."""
    names = {"mhd": case.image.with_suffix(".raw"), "nhdr": case.image.with_suffix(".raw")}
    return names.get(case.kind, case.image)


def truncated(case: Input, rng: random.Random) -> Expected:
    case.mutation = _truncate(rng.choice([case.image, voxel_file(case)]), rng)
    return Expected.REFUSED


def truncated_mask(case: Input, rng: random.Random) -> Expected:
    case.mutation = _truncate(case.mask, rng)
    return Expected.REFUSED


def flipped(case: Input, rng: random.Random) -> Expected:
    case.mutation = _flip(rng.choice([case.image, voxel_file(case)]), rng)
    return Expected.EITHER


def flipped_header(case: Input, rng: random.Random) -> Expected:
    if case.kind == "nii.gz":
        return _in_gzip(case, lambda file: _flip(file, rng, NIFTI_HEADER_BYTES))
    case.mutation = _flip(case.image, rng, NIFTI_HEADER_BYTES)
    return Expected.EITHER


def flipped_mask(case: Input, rng: random.Random) -> Expected:
    case.mutation = _flip(case.mask, rng)
    return Expected.EITHER


def garbage(case: Input, rng: random.Random) -> Expected:
    case.image.write_bytes(rng.randbytes(rng.choice((0, 1, 100, 10000))))
    case.mutation = f"{case.image.stat().st_size} random bytes"
    return Expected.REFUSED


def tail(case: Input, rng: random.Random) -> Expected:
    with case.image.open("ab") as stream:
        stream.write(rng.randbytes(1000))
    case.mutation = "1000 bytes appended"
    return Expected.EITHER


def special_file(case: Input, rng: random.Random) -> Expected:
    file = rng.choice([case.image, voxel_file(case), case.mask])
    file.unlink()
    case.mutation = rng.choice(["FIFO", "folder", "dangling link", "link to itself", "link to a device", "missing"])
    match case.mutation:
        case "FIFO":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "dangling link":
            file.symlink_to("nowhere.nii.gz")
        case "link to itself":
            file.symlink_to(file.name)
        case "link to a device":
            file.symlink_to(rng.choice(["/dev/zero", "/dev/stdin", "/dev/random"]))
    case.mutation = f"{file.name} is a {case.mutation}"
    return Expected.REFUSED


# NIfTI

NIFTI_FIELDS: dict[str, tuple[int, str, tuple[float, ...]]] = {  # offset, type, values
    "sizeof_hdr": (0, "i", (0, -1, 540, 2**31 - 1)),
    "dim[0]": (40, "h", (-1, 0, 1, 2, 5, 8, 32767)),
    "dim[1]": (42, "h", (-1, 0, 1, 32767)),
    "dim[2]": (44, "h", (-1, 0, 1, 32767)),
    "dim[3]": (46, "h", (-32768, 0, 1, 7, 32767)),
    "dim[4]": (48, "h", (-1, 0, 2, 32767)),
    "intent_code": (68, "h", (-1, 1001, 1002, 1005, 1007, 32767)),
    "datatype": (70, "h", (-1, 0, 1, 8, 32, 128, 1024, 1536, 1792, 2304, 9999)),
    "bitpix": (72, "h", (-8, 0, 1, 7, 128)),
    "pixdim[0]": (76, "f", (float("nan"), 0, 5, -1e30)),
    "vox_offset": (108, "f", (float("nan"), float("inf"), -1, 0, 1e9, -1e30)),
    "scl_slope": (112, "f", (float("nan"), float("inf"), 1e30, 1e-30, -1)),
    "scl_inter": (116, "f", (float("nan"), float("inf"), 1e30, -1e5)),
    "xyzt_units": (123, "b", (0, 1, 3, 127, -1)),
    "qform_code": (252, "h", (-1, 0, 99)),
    "sform_code": (254, "h", (-1, 0, 99)),
    "quatern_b": (256, "f", (float("nan"), float("inf"), 5, 1e30)),
    "qoffset_x": (268, "f", (float("nan"), float("inf"), 1e30)),
    "srow_x[0]": (280, "f", (float("nan"), float("inf"), 0, 1e30, 1e-30)),
    "magic": (344, "i", (0, -1)),
}


def _in_gzip(case: Input, change: Callable[[Path], str]) -> Expected:
    plain = case.folder / "plain"
    plain.write_bytes(gzip.decompress(case.image.read_bytes()))
    case.mutation = change(plain)
    case.image.write_bytes(gzip.compress(plain.read_bytes(), 1))
    plain.unlink()
    return Expected.EITHER


def nifti_field(case: Input, rng: random.Random) -> Expected:
    name = rng.choice(list(NIFTI_FIELDS))
    offset, kind, values = NIFTI_FIELDS[name]
    return _set_nifti(case, {offset: struct.pack(f"<{kind}", rng.choice(values))}, name)


def nifti_spacing(case: Input, rng: random.Random) -> Expected:
    """The spacing of one axis in pixdim, qform and sform."""
    axis, value = rng.randrange(3), rng.choice(ABSURD_MM)
    header = {80 + 4 * axis: struct.pack("<f", float(value))}
    header |= {280 + 16 * row + 4 * axis: struct.pack("<f", float(value) * (row == axis)) for row in range(3)}
    _set_nifti(case, header, f"spacing {value} along {'xyz'[axis]}")
    return Expected.REFUSED


def nifti_shear(case: Input, rng: random.Random) -> Expected:
    rows = {280: (3, rng.choice((2, 30)), 0, 0), 296: (0, 3, 0, 0), 312: (0, 0, 5, 0)}
    header = {offset: struct.pack("<4f", *row) for offset, row in rows.items()}
    _set_nifti(case, header | {252: struct.pack("<2h", 0, 1)}, "a sheared sform")
    return Expected.REFUSED


def _set_nifti(case: Input, header: dict[int, bytes], what: str) -> Expected:
    def change(file: Path) -> str:
        data = bytearray(file.read_bytes())
        for offset, value in header.items():
            data[offset : offset + len(value)] = value
        file.write_bytes(data)
        return f"{what} = {[value.hex() for value in header.values()]}"

    if case.kind == "nii.gz":
        return _in_gzip(case, change)
    case.mutation = change(case.image)
    return Expected.EITHER


def nifti_bomb(case: Input, rng: random.Random) -> Expected:
    """A small header before a gigabyte of zeros."""
    header = gzip.decompress(case.image.read_bytes())
    zeros = gzip.compress(bytes(2**26), 9)
    case.image.write_bytes(gzip.compress(header) + zeros * rng.choice((4, 16)))
    case.mutation = "a bomb behind the voxels"
    return Expected.EITHER


# text headers

METAIMAGE_LINES: dict[str, tuple[str, ...]] = {
    "NDims": ("-1", "0", "1", "2", "4", "99", "1000000000", "%s%n", "", "three"),
    "DimSize": ("", "1", "-1 -1 -1", "0 0 0", "4 4 4", "100000 100000 100000", "1 2 3 4 5", "a b c"),
    "ElementType": ("", "MET_FOO", "MET_STRING", "MET_OTHER", "MET_LONG_LONG", "MET_DOUBLE", "MET_NONE"),
    "ElementNumberOfChannels": ("-1", "0", "3", "100000"),
    "HeaderSize": ("-1", "-2", "1000000000000"),
    "BinaryData": ("False", "maybe"),
    "BinaryDataByteOrderMSB": ("True", "%n%n%n"),
    "CompressedData": ("True", "False"),
    "CompressedDataSize": ("-1", "0", "99999999999999"),
    "Offset": ("nan nan nan", "1e300 0 0", "1", "1 2 3 4"),
    "CenterOfRotation": ("nan", "1 2 3 4 5 6 7 8 9"),
    "AnatomicalOrientation": ("???", "R" * 5000),
    "ObjectType": ("Tube", "", "Image" * 1000),
    "TransformMatrix": ("0 0 0 0 0 0 0 0 0", "1 0 0", "1 2 3 4 5 6 7 8 9 10"),
}
NRRD_LINES: dict[str, tuple[str, ...]] = {
    "type": ("", "foo", "block", "unsigned char", "double", "int64"),
    "dimension": ("-1", "0", "1", "2", "4", "99", "three"),
    "sizes": ("", "1", "-1 -1 -1", "0 0 0", "100000 100000 100000", "4 4 4", "1 2 3 4 5"),
    "encoding": ("", "raw", "ascii", "hex", "bzip2", "gzip", "foo"),
    "endian": ("big", "middle"),
    "byte skip": ("-1", "-2", "100000000000"),
    "line skip": ("-1", "1", "100000000000"),
    "space": ("", "foo", "right-anterior-superior", "3D-left-handed"),
    "space origin": ("(nan,nan,nan)", "(1e300,0,0)", "(1)", "none"),
    "kinds": ("", "vector domain domain", "domain"),
    "space directions": (
        "none none none",
        "(1,0,0) (0,1,0)",
        "()",
        "(1,0,0) (1,0,0) (0,0,1)",
        "(0,0,0) (0,0,0) (0,0,0)",
    ),
    "spacings": ("1 1 1", "nan nan nan"),
    "content": ("%s%n", "x" * 10**5),
}


def _header(case: Input) -> tuple[str, bytes]:
    """Text and voxels of a MetaImage or NRRD file."""
    data = case.image.read_bytes()
    end = re.search(rb"ElementDataFile\s*=.*\n", data) if case.kind in ("mha", "mhd") else re.search(rb"\n\n", data)
    at = end.end() if end else len(data)
    return data[:at].decode("latin-1"), data[at:]


def set_line(case: Input, key: str, value: str | None) -> None:
    """Replace, add or with None remove a line of the header."""
    text, voxels = _header(case)
    sign = " = " if case.kind in ("mha", "mhd") else ": "
    line = "" if value is None else f"{key}{sign}{value}\n"
    pattern = re.compile(rf"^{re.escape(key)}\s*[=:].*\n", re.MULTILINE | re.IGNORECASE)
    if pattern.search(text):
        text = pattern.sub(lambda _: line, text, count=1)
    elif case.kind in ("mha", "mhd"):
        text = re.sub(r"^(?=ElementDataFile)", lambda _: line, text, flags=re.MULTILINE)
    else:
        text = text.rstrip("\n") + "\n" + line + "\n" if case.kind == "nrrd" else text + line
    case.image.write_bytes(text.encode("latin-1") + voxels)
    case.mutation = f"{key} {'removed' if value is None else repr(value[:60])}"


def text_field(case: Input, rng: random.Random) -> Expected:
    lines = METAIMAGE_LINES if case.kind in ("mha", "mhd") else NRRD_LINES
    key = rng.choice(list(lines))
    set_line(case, key, rng.choice([*lines[key], None]))
    return Expected.EITHER


def text_spacing(case: Input, rng: random.Random) -> Expected:
    value, axis = rng.choice(ABSURD_MM), rng.randrange(3)
    numbers = ["3", "3", "3"]
    numbers[axis] = value
    if case.kind in ("mha", "mhd"):
        set_line(case, "ElementSpacing", " ".join(numbers))
    else:
        vectors = [["0", "0", "0"] for _ in range(3)]
        for i, vector in enumerate(vectors):
            vector[i] = numbers[i]
        set_line(case, "space directions", " ".join(f"({','.join(vector)})" for vector in vectors))
    return Expected.REFUSED


def no_spacing(case: Input, rng: random.Random) -> Expected:
    if case.kind in ("mha", "mhd"):
        set_line(case, "ElementSpacing", None)
    else:
        set_line(case, "space directions", None)
    return Expected.REFUSED


def text_shear(case: Input, rng: random.Random) -> Expected:
    if case.kind in ("mha", "mhd"):
        bad = rng.choice(["1 0 0 0.5 1 0 0 0 1", "4 0 0 0 4 0 0 0 4", "nan 0 0 0 1 0 0 0 1", "1 0 0 1 0 0 0 0 1"])
        set_line(case, "TransformMatrix", bad)
    else:
        bad = rng.choice(["(3,0,0) (2,3,0) (0,0,5)", "(3,0,0) (0,3,0) (0,2,5)", "(3,0,0) (0,3,nan) (0,0,5)"])
        set_line(case, "space directions", bad)
    return Expected.REFUSED


def comment(case: Input, rng: random.Random) -> Expected:
    """A comment means nothing."""
    if case.kind in ("mha", "mhd"):
        set_line(case, "Comment", "nothing")
    else:
        text, voxels = _header(case)
        first, rest = text.split("\n", 1)
        case.image.write_bytes(f"{first}\n# nothing\n{rest}".encode("latin-1") + voxels)
        case.mutation = "a comment"
    return Expected.SAME


def _data_key(case: Input) -> str:
    return "ElementDataFile" if case.kind in ("mha", "mhd") else "data file"


def data_elsewhere(case: Input, rng: random.Random) -> Expected:
    """The voxels lie outside the source: by a path, a list, a pattern or a link."""
    outside = case.folder.parents[1] / "outside" / f"{case.case_id}.raw"
    outside.parent.mkdir(exist_ok=True)
    data = voxel_file(case)
    how = rng.choice(["relative", "absolute", "list", "pattern", "link", "linked folder", "password file", "device"])
    if how in ("list", "pattern"):
        size = len(data.read_bytes()) // case.original.GetDepth()
        for z in range(case.original.GetDepth()):
            part = data.read_bytes()[z * size : (z + 1) * size]
            (outside.parent / f"{case.case_id}-{z}.raw").write_bytes(part)
    data.rename(outside)
    relative = os.path.relpath(outside, case.folder)
    last = case.original.GetDepth() - 1
    match how:
        case "relative":
            set_line(case, _data_key(case), relative)
        case "absolute":
            set_line(case, _data_key(case), str(outside))
        case "list":
            names = "\n".join(relative.replace(".raw", f"-{z}.raw") for z in range(last + 1))
            set_line(case, _data_key(case), f"LIST 2\n{names}" if case.kind == "mhd" else f"LIST 2\n{names}\n")
        case "pattern":
            set_line(case, _data_key(case), f"{relative.replace('.raw', '-%d.raw')} 0 {last} 1")
        case "link":
            data.symlink_to(relative)
        case "linked folder":
            (case.folder / "data").symlink_to(outside.parent)
            set_line(case, _data_key(case), f"data/{outside.name}")
        case "password file":
            set_line(case, _data_key(case), "/etc/passwd")
        case "device":
            set_line(case, _data_key(case), rng.choice(["/dev/zero", "/dev/urandom"]))
    case.mutation = f"voxels outside by {how}"
    return Expected.INSIDE


def data_in_folder(case: Input, rng: random.Random) -> Expected:
    """The voxels lie in a folder below the header's."""
    (case.folder / "data").mkdir()
    voxel_file(case).rename(case.folder / "data" / "voxels.raw")
    set_line(case, _data_key(case), "data/voxels.raw")
    case.mutation = "voxels in a folder below"
    return Expected.SAME


# what the voxels are


def _rewrite(case: Input, image: sitk.Image, what: str) -> None:
    sitk.WriteImage(image, str(case.image), useCompression=case.kind not in DETACHED)
    case.mutation = what


def _with(case: Input, voxels_zyx: Array) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels_zyx)
    image.CopyInformation(case.original)
    return image


def not_finite(case: Input, rng: random.Random) -> Expected:
    voxels_zyx = sitk.GetArrayFromImage(case.original).astype(np.float32)
    value = rng.choice((np.nan, np.inf, -np.inf))
    voxels_zyx.flat[rng.randrange(voxels_zyx.size)] = value
    _rewrite(case, _with(case, voxels_zyx), f"one voxel is {value}")
    # ITK reads NaN of a NIfTI file as 0
    return Expected.EITHER if case.kind.startswith("nii") else Expected.REFUSED


def other_voxels(case: Input, rng: random.Random) -> Expected:
    voxels_zyx = sitk.GetArrayFromImage(case.original)
    changes: dict[str, Callable[[], sitk.Image]] = {
        "constant": lambda: _with(case, np.zeros_like(voxels_zyx)),
        "complex": lambda: sitk.RealAndImaginaryToComplex(
            sitk.Cast(case.original, sitk.sitkFloat32), sitk.Cast(case.original, sitk.sitkFloat32)
        ),
        "two channels": lambda: sitk.Compose(case.original, case.original),
        "two-dimensional": lambda: case.original[:, :, 5],
        "four-dimensional": lambda: sitk.JoinSeries([case.original, case.original]),
        "three slices": lambda: case.original[:, :, :3],
        "values of 1e30": lambda: _with(case, voxels_zyx.astype(np.float32) * np.float32(1e30)),
    }
    what = rng.choice(list(changes))
    try:
        _rewrite(case, changes[what](), what)
    except RuntimeError:  # ITK cannot write that in this format
        what = "constant"
        _rewrite(case, changes[what](), what)
    return Expected.EITHER if what == "values of 1e30" and case.modality == "MR" else Expected.REFUSED


def other_orientation(case: Input, rng: random.Random) -> Expected:
    """Axes permuted and flipped, with the direction that says so."""
    code = rng.choice(["RAS", "LPI", "SLP", "PIR", "RSA"])
    _rewrite(case, sitk.DICOMOrient(case.original, code), f"stored as {code}")
    sitk.WriteImage(sitk.DICOMOrient(case.mask_image, code), str(case.mask), useCompression=True)
    return Expected.SAME


def other_mask(case: Input, rng: random.Random) -> Expected:
    mask = case.mask_image
    mask_zyx = sitk.GetArrayFromImage(mask)
    what = rng.choice(["two", "empty", "shifted", "smaller", "spacing", "everywhere", "NaN", "turned"])
    other = sitk.Image(mask)
    match what:
        case "two":
            mask_zyx[mask_zyx.shape[0] // 2, 3, 3] = 2
            other = sitk.GetImageFromArray(mask_zyx)
            other.CopyInformation(mask)
        case "empty":
            other = mask * 0
        case "shifted":
            other.SetOrigin([value + 30 for value in mask.GetOrigin()])
        case "smaller":
            other = mask[:, :, 1:]
        case "spacing":
            other.SetSpacing([value * 1.5 for value in mask.GetSpacing()])
        case "everywhere":
            other = mask * 0 + 1
        case "NaN":
            other = sitk.Cast(mask, sitk.sitkFloat32) + float("nan")
        case "turned":
            other.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(other, str(case.mask), useCompression=True)
    case.mutation = f"mask: {what}"
    return Expected.EITHER if what == "NaN" else Expected.REFUSED  # see not_finite


def unchanged(case: Input, rng: random.Random) -> Expected:
    case.mutation = "nothing"
    return Expected.SAME


# a cell of the table


def cell(case: Input, rng: random.Random) -> Expected:
    column = rng.choice(["case_id", "modality", "liver_state", "tumour_state", "image", "liver", "split", "patient_id"])
    values = {
        "case_id": ("../../evil", "a/b", "-", "", "x" * 300, "a\nb", "ä", ".", "=1+1"),
        "modality": ("XX", "", "CT,MR", "ct "),
        "liver_state": ("pseudo", "MANUAL!", "", "absent"),
        "tumour_state": ("manual", "pseudo", "perhaps"),
        "image": ("", ".", "..", "x" * 300 + ".nii", "no\x00thing.nii", "a\nb.nii", "%s%n.mha", "{}.nii"),
        "liver": ("", "x" * 5000, "s3://", "http://x/y.nii"),
        "split": ("pool", "Train;test"),
        "patient_id": ("",),
    }
    value = rng.choice(values[column])
    case.row[column] = value
    case.mutation = f"{column} is {value[:40]!r}"
    return Expected.EITHER if column == "patient_id" else Expected.REFUSED


ANY: tuple[Mutation, ...] = (
    truncated, truncated_mask, flipped, flipped_header, flipped_mask, garbage, tail, special_file, not_finite,
    other_voxels, other_orientation, other_mask, unchanged,
)  # fmt: skip
NIFTI: tuple[Mutation, ...] = (nifti_field, nifti_field, nifti_field, nifti_spacing, nifti_shear)
TEXT: tuple[Mutation, ...] = (text_field, text_field, text_field, text_spacing, no_spacing, text_shear, comment)
MUTATIONS: dict[str, tuple[Mutation, ...]] = {
    "nii": (*ANY, *NIFTI),
    "nii.gz": (*ANY, *NIFTI, nifti_bomb),
    "mha": (*ANY, *TEXT),
    "mhd": (*ANY, *TEXT, data_elsewhere, data_elsewhere, data_elsewhere, data_in_folder),
    "nrrd": (*ANY, *TEXT),
    "nhdr": (*ANY, *TEXT, data_elsewhere, data_elsewhere, data_elsewhere, data_in_folder),
}
