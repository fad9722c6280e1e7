"""Headers of NIfTI, MetaImage and NRRD files, read before ITK opens them.

ITK fills in what a header lacks, follows it to any file, and may end the process over a wrong number. So the numbers
are checked here, and a header whose voxels are in other files is rewritten from its known fields alone.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hepar.errors import DataError, Refusal
from hepar.imaging.grid_rules import (
    DIRECTION_RULE,
    DIRECTION_TOLERANCE,
    check_axes,
    check_origin,
    check_spacing,
    numbers,
    size_text,
)
from hepar.imaging.packed_voxels import GZIP_OR_ZLIB, PackedVoxels
from hepar.runtime.scratch import scratch_folder

NIFTI, METAIMAGE, NRRD = (".nii", ".nii.gz"), (".mha", ".mhd"), (".nrrd", ".nhdr")
READERS = {"NiftiImageIO": NIFTI, "MetaImageIO": METAIMAGE, "NrrdImageIO": NRRD}
ENDINGS = (*NIFTI, *METAIMAGE, *NRRD)
MAX_HEADER_BYTES = 2**20
MAX_DATA_FILES = 10_000
GZIP_MAGIC = b"\x1f\x8b"
NIFTI_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}  # of a voxel by datatype
VECTOR_INTENTS = range(1005, 1010)  # symmetric matrix, displacement, vector, point set, triangle
FORM_TOLERANCE = 0.01  # of a voxel's size: NIfTI gives it twice, and rounding differs less
META_TYPES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
META_TYPES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
META_SPACINGS = ("ElementSpacing", "ElementSize")
META_VECTORS = (*META_SPACINGS, "Offset", "Position", "Origin", "CenterOfRotation")
META_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
META_FLAGS = ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData")
META_SIZES = ("HeaderSize", "CompressedDataSize")
META_SCALARS = (*META_SIZES, "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset")
META_KNOWN = ("NDims", "DimSize", "ElementType", *META_VECTORS, *META_MATRICES, *META_SCALARS, *META_FLAGS)
NRRD_KEPT = (
    *("type", "dimension", "space", "space dimension", "sizes", "spacings", "thicknesses", "axis mins", "axis maxs"),
    *("centers", "endian", "encoding", "line skip", "byte skip", "kinds", "space directions", "space origin"),
)
NRRD_TYPES = dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1)
NRRD_TYPES |= {f"{sign}{name}": 2 for name in ("short", "short int") for sign in ("", "signed ", "unsigned ")}
NRRD_TYPES |= {"ushort": 2, "int16": 2, "int16_t": 2, "uint16": 2, "uint16_t": 2}
NRRD_TYPES |= {"int": 4, "signed int": 4, "unsigned int": 4, "uint": 4}
NRRD_TYPES |= {"int32": 4, "int32_t": 4, "uint32": 4, "uint32_t": 4, "float": 4, "double": 8}
NRRD_TYPES |= {f"{sign}{name}": 8 for name in ("long long", "long long int") for sign in ("", "signed ", "unsigned ")}
NRRD_TYPES |= {"longlong": 8, "ulonglong": 8, "int64": 8, "int64_t": 8, "uint64": 8, "uint64_t": 8}
NRRD_SAME = {"axismins": "axis mins", "axismaxs": "axis maxs", "lineskip": "line skip", "byteskip": "byte skip"}
NRRD_SAME |= {"datafile": "data file", "centerings": "centers"}
PATTERN = re.compile(r"[^%]*%0?\d{0,2}[di][^%]*")  # of printf, with one number
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf(inity)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Header:
    """What a file's header says. `data_files` hold the voxels; if there are none, the file itself does.

    `detached` is the header without the names of its data files, for ITK.
    """

    size_xyz: tuple[int, ...]
    has_spacing: bool
    reader: str
    voxel_bytes: int = 1
    data_offset: int = 0
    data_files: tuple[Path, ...] = ()
    detached: tuple[str, ...] = ()
    splits: str = ""  # what follows LIST: the dimensions of one data file
    packed: PackedVoxels | None = None  # in each of the files that hold the voxels

    @property
    def voxels(self) -> int:
        return math.prod(self.size_xyz)

    @property
    def bytes_in_each(self) -> int:
        """Size of the voxels, unpacked, in each of the files that hold them."""
        return self.voxels * self.voxel_bytes // max(1, len(self.data_files))


def volume_stem(path: Path) -> str:
    """The name of a file without the ending by which it is read, in upper or lower case; all of it without one."""
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)]


def read_header(path: Path) -> Header:
    """The header of a volume, of three dimensions. Raises DataError naming what is wrong with the file."""
    check_regular(path)
    reader = next((name for name, endings in READERS.items() if path.name.lower().endswith(endings)), None)
    if reader is None:
        raise DataError(f"{path} cannot be read: its name must end in {', '.join(ENDINGS)}")
    read = {"NiftiImageIO": _read_nifti, "MetaImageIO": _read_metaimage, "NrrdImageIO": _read_nrrd}[reader]
    try:
        header = read(path)
    except (OSError, EOFError, zlib.error, struct.error, ValueError, OverflowError) as error:
        detail = str(error) if isinstance(error, _Wrong | OSError | EOFError) else "its header is damaged"
        raise DataError(f"{path} cannot be read: {detail}") from None
    if len(header.size_xyz) < 3 or any(n != 1 for n in header.size_xyz[3:]):
        size = size_text(header.size_xyz[::-1])
        raise DataError(f"{path} has size {size} but must be a single 3-D volume")
    return replace(header, size_xyz=header.size_xyz[:3])


@contextmanager
def readable(path: Path, header: Header) -> Iterator[Path]:
    """The file that ITK is to open: `path`, or where voxels are in other files a rewritten header beside links to them.

    Raises DataError if a data file is missing or not regular.
    """
    if not header.data_files:
        yield path
        return
    with scratch_folder("volume") as folder:
        links = [f"voxels{number:05d}" for number in range(len(header.data_files))]
        for link, file in zip(links, header.data_files, strict=True):
            check_regular(file)
            (folder / link).symlink_to(file.resolve())
        ending, field = (".mhd", "ElementDataFile = ") if header.reader == "MetaImageIO" else (".nhdr", "data file: ")
        listed = links if header.splits == "" else [f"LIST{header.splits}".rstrip(), *links]
        listed[0] = field + listed[0]
        rewritten = folder / f"header{ending}"
        text = "\n".join([*header.detached, *listed]) + "\n"
        rewritten.write_text(text, errors="backslashreplace")
        yield rewritten


def check_regular(path: Path) -> None:
    """Raise DataError unless a path names a regular file, perhaps by links: no folder, device or pipe."""
    try:
        found = path.is_file()
        other = not found and path.exists()
        folder = other and path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long or holds NUL, a loop of links
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{path} cannot be read: {reason}") from None
    if folder:
        raise DataError(f"{path} is a folder but must be a file")
    if other:
        raise DataError(f"{path} is a device or pipe but must be a regular file")
    if not found:
        raise DataError(f"{path} does not exist")


class _Wrong(ValueError):
    """What is wrong with a header, for the message."""


def _read_nifti(path: Path) -> Header:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    if packed and path.name.lower().endswith(".gz"):
        with gzip.open(path) as unpacked:
            raw = unpacked.read(540)
    else:
        with path.open("rb") as file:
            raw = file.read(540)
    header = _parse_nifti(raw)
    if packed and path.name.lower().endswith(".gz"):
        needed_bytes = header.data_offset + header.voxels * header.voxel_bytes
        return replace(header, packed=PackedVoxels(needed_bytes, spare_bytes=MAX_HEADER_BYTES))
    return header


def _parse_nifti(raw: bytes) -> Header:
    if len(raw) < 348:
        raise _Wrong("it is not a NIfTI file: its header is truncated")
    order = next((sign for sign in "<>" if struct.unpack_from(f"{sign}i", raw)[0] in (348, 540)), None)
    if order is None:
        raise _Wrong("it is not a NIfTI file: its header has another size")
    if struct.unpack_from(f"{order}i", raw)[0] == 348:
        magic, places = raw[344:348], ("8h", 40, "h", 68, "h", 70, "8f", 76, "f", 108, "2h", 252, "6f", 256, "12f", 280)
        wanted, size = b"n+1\0", 348
    else:
        magic, places = raw[4:8], ("8q", 16, "i", 504, "h", 12, "8d", 104, "q", 168, "2i", 344, "6d", 352, "12d", 400)
        wanted, size = b"n+2\0", 540
    if magic != wanted:
        raise _Wrong("it is not a NIfTI file that holds its own voxels")
    fields = [struct.unpack_from(f"{order}{kind}", raw, at) for kind, at in zip(places[::2], places[1::2], strict=True)]
    dimensions, (intent,), (datatype,), pixdim, (offset,), (qform, sform), quaternion, rows = fields
    if not 1 <= dimensions[0] <= 7:
        raise _Wrong(f"it has {dimensions[0]} dimensions")
    size_xyz = dimensions[1 : 1 + dimensions[0]]
    if min(size_xyz) < 1:
        raise _Wrong(f"its size is {size_text(size_xyz[::-1])}")
    if datatype not in NIFTI_BYTES or intent in VECTOR_INTENTS:
        raise Refusal("a voxel is one real number", f"NIfTI datatype {datatype}, intent {intent}")
    spacing_mm = pixdim[1:4]
    if has_spacing := not any(mm == 0 for mm in spacing_mm):
        check_spacing(spacing_mm)
    if qform > 0:
        _check_quaternion(quaternion[:3])
        check_origin(quaternion[3:])
    if sform > 0:
        _check_rows(rows, spacing_mm)
        check_origin(rows[3::4])
    return Header(
        size_xyz=size_xyz,
        has_spacing=has_spacing,
        reader="NiftiImageIO",
        voxel_bytes=NIFTI_BYTES[datatype],
        data_offset=max(size, int(offset)),
    )


def _check_quaternion(imaginary: Sequence[float]) -> None:
    if not sum(part**2 for part in imaginary) <= 1 + DIRECTION_TOLERANCE:
        raise Refusal(DIRECTION_RULE, f"a quaternion longer than 1: {numbers(imaginary)}")


def _check_rows(rows: Sequence[float], spacing_mm: Sequence[float]) -> None:
    """The affine matrix of a NIfTI file by rows, against its voxel size. ITK drops what does not fit."""
    columns = [rows[axis:12:4] for axis in range(3)]
    lengths_mm = [math.sqrt(sum(part**2 for part in column)) for column in columns]
    if not all(0 < mm < math.inf for mm in lengths_mm):
        raise Refusal(DIRECTION_RULE, f"axes of {numbers(lengths_mm)} mm")
    if any(abs(mm - other) > FORM_TOLERANCE * mm for mm, other in zip(lengths_mm, spacing_mm, strict=True) if other):
        raise Refusal(
            "the affine matrix of a NIfTI file has its voxel size",
            f"{numbers(lengths_mm)} mm but pixdim is {numbers(spacing_mm)} mm",
        )
    check_axes([[part / mm for part in column] for column, mm in zip(columns, lengths_mm, strict=True)])


def _read_metaimage(path: Path) -> Header:
    raw = _head(path)
    end = re.search(rb"^[ \t]*ElementDataFile[^\n]*\n?", raw, re.MULTILINE)
    if end is None:
        raise _Wrong("its header names no ElementDataFile")
    fields: dict[str, str] = {}
    for line in _lines(raw[: end.end()]):
        found = re.fullmatch(r"\s*([^=:]+?)\s*[=:](.*)", line)
        name = found[1] if found else ""
        hidden = name != "ElementDataFile" and "elementdatafile" in name.lower()
        if found is None or hidden or (name in fields and name in META_KNOWN):
            raise _Wrong(f"its header is damaged at the line {_shown(line)}")
        fields[name] = found[2].strip()
    header = _parse_metaimage(path, fields, raw[end.end() :])
    return replace(header, packed=_packed_metaimage(fields, header, end.end()))


def _parse_metaimage(path: Path, fields: Mapping[str, str], rest: bytes) -> Header:
    count = _whole(fields, "NDims")
    if not 1 <= count <= 7:
        raise _Wrong(f"NDims is {count}")
    size_xyz = tuple(int(n) for n in _values(fields, "DimSize", count))
    if min(size_xyz) < 1:
        raise _Wrong(f"its size is {size_text(size_xyz[::-1])}")
    kind = fields.get("ElementType", "").removeprefix("MET_")
    if kind not in META_TYPES or fields.get("ElementNumberOfChannels", "1") != "1":
        raise Refusal("a voxel is one real number", f"ElementType {_shown(fields.get('ElementType', 'is missing'))}")
    for name in META_VECTORS:  # ITK takes 0 or 1 for what is not a number
        values = _values(fields, name, count, optional=True)[:3]
        (check_spacing if name in META_SPACINGS else check_origin)(values)
    for name in META_MATRICES:
        values = _values(fields, name, count**2, optional=True)
        if count == 3 and values:
            check_axes([values[:3], values[3:6], values[6:]])
    for name in META_SCALARS:
        _values(fields, name, 1, optional=True)
    for name in META_FLAGS:
        if fields.get(name, "True").lower() not in ("true", "false", "1", "0"):
            raise _Wrong(f"{name} is {_shown(fields[name])}")
    stored_bytes = path.stat().st_size
    data, splits = _data_files(path, fields["ElementDataFile"], rest)
    for name in META_SIZES:
        if not -1 <= _whole(fields, name, 0) <= (2**40 if data else stored_bytes):
            raise _Wrong(f"{name} is {_shown(fields[name])}, but the file has {stored_bytes} bytes")
    return Header(
        size_xyz=size_xyz,
        has_spacing=any(name in fields for name in META_SPACINGS),
        reader="MetaImageIO",
        voxel_bytes=META_TYPES[kind],
        data_files=data,
        detached=("ObjectType = Image", *(f"{name} = {fields[name]}" for name in META_KNOWN if name in fields)),
        splits=splits,
    )


def _packed_metaimage(fields: Mapping[str, str], header: Header, data_offset: int) -> PackedVoxels | None:
    """Where ITK looks for compressed voxels; without a size it takes the whole file, even if that begins with text."""
    if fields.get("CompressedData", "False").lower() not in ("true", "1"):
        return None
    offset, stored_bytes = _whole(fields, "HeaderSize", 0), _whole(fields, "CompressedDataSize", 0)
    if offset == -1 or stored_bytes == -1:
        raise _Wrong("its voxels are compressed, but HeaderSize or CompressedDataSize is -1")
    if stored_bytes == 0:
        return PackedVoxels(header.bytes_in_each, wbits=GZIP_OR_ZLIB)
    offset = offset or (0 if header.data_files else data_offset)
    return PackedVoxels(header.bytes_in_each, wbits=GZIP_OR_ZLIB, offset=offset, stored_bytes=stored_bytes)


def _read_nrrd(path: Path) -> Header:
    raw = _head(path)
    if not re.match(rb"NRRD000[1-6]\r?\n", raw):
        raise _Wrong("it is not an NRRD file")
    fields: dict[str, str] = {}
    end = re.search(rb"\r?\n\r?\n|^data ?file:[ \t]*LIST[^\n]*\n|\Z", raw, re.MULTILINE | re.IGNORECASE)
    assert end is not None
    for line in _lines(raw[: end.end()])[1:]:
        found = re.match(r"([^:]*):(=?)(.*)", line)
        if line.startswith("#") or (found and found[2]):  # a comment, or a key with a value of its own
            continue
        name = " ".join(found[1].lower().split()) if found else ""
        name = NRRD_SAME.get(name, name)
        if found is None or name in fields:
            raise _Wrong(f"its header is damaged at the line {_shown(line)}")
        fields[name] = found[3].strip()
    header = _parse_nrrd(path, fields, raw[end.end() :])
    return replace(header, packed=_packed_nrrd(fields, header, end.end()))


def _parse_nrrd(path: Path, fields: Mapping[str, str], rest: bytes) -> Header:
    count = _whole(fields, "dimension")
    if not 1 <= count <= 7:
        raise _Wrong(f"its dimension is {count}")
    size_xyz = tuple(int(n) for n in _values(fields, "sizes", count))
    if min(size_xyz) < 1:
        raise _Wrong(f"its size is {size_text(size_xyz[::-1])}")
    kind = " ".join(fields.get("type", "").lower().split())
    if kind not in NRRD_TYPES:
        raise Refusal("a voxel is one real number", f"NRRD type {_shown(fields.get('type', 'is missing'))}")
    for name in ("line skip", "byte skip"):
        if not -1 <= _whole(fields, name, 0) <= 2**31:
            raise _Wrong(f"{name} is {_shown(fields[name])}")
    for name in ("space directions", "space origin"):
        if re.search(r"nan|inf", fields.get(name, ""), re.IGNORECASE):
            raise Refusal(DIRECTION_RULE, f"{name} is {_shown(fields[name])}")
    data, splits = _data_files(path, fields.get("data file", "LOCAL"), rest)
    if path.suffix.lower() == ".nhdr" and not data:
        raise _Wrong("its header names no data file")
    given = fields.get("space directions") or fields.get("spacings") or ""
    vectors = [part for part in re.findall(r"\([^)]*\)|\S+", given) if part.lower() not in ("none", "nan")]
    return Header(
        size_xyz=size_xyz,
        has_spacing=len(vectors) >= min(3, count),
        reader="NrrdImageIO",
        voxel_bytes=NRRD_TYPES[kind],
        data_files=data,
        detached=("NRRD0005", *(f"{name}: {fields[name]}" for name in NRRD_KEPT if name in fields)),
        splits=splits,
    )


def _packed_nrrd(fields: Mapping[str, str], header: Header, data_offset: int) -> PackedVoxels | None:
    """Where ITK looks for compressed voxels: after lines of the file, and after bytes of what is unpacked."""
    if fields.get("encoding", "").lower() not in ("gzip", "gz"):
        return None
    skipped_bytes = _whole(fields, "byte skip", 0)  # -1: those that the voxels leave
    return PackedVoxels(
        unpacked_bytes=header.bytes_in_each + max(0, skipped_bytes),
        spare_bytes=MAX_HEADER_BYTES if skipped_bytes < 0 else 0,
        offset=0 if header.data_files else data_offset,
        skipped_lines=max(0, _whole(fields, "line skip", 0)),
    )


def _data_files(path: Path, named: str, rest: bytes) -> tuple[tuple[Path, ...], str]:
    """The files that `ElementDataFile` or `data file` names, and what follows LIST; none if the voxels follow.

    Either a name, or LIST and a name in each line of `rest`, or a pattern of printf with first, last and step.
    """
    words = named.split()
    if not words or named.upper() == "LOCAL":
        if not words:
            raise _Wrong("its header names no data file")
        return (), ""
    folder = path.parent
    if words[0].upper() == "LIST":
        if len(words) > 2 or (len(words) == 2 and not re.fullmatch(r"[1-7]D?", words[1], re.IGNORECASE)):
            raise _Wrong(f"its list of data files begins with {_shown(named)}")
        names = [line.strip() for line in rest.decode(errors="surrogateescape").splitlines() if line.strip()]
        splits = f" {words[1]}" if len(words) == 2 else " "
    elif "%" in named:
        if len(words) not in (4, 5) or not PATTERN.fullmatch(words[0]):
            raise _Wrong(f"its pattern of data files is {_shown(named)}")
        first, last, step = (int(word) for word in words[1:4])
        if step == 0 or (last - first) // step + 1 > MAX_DATA_FILES or abs(first) + abs(last) > 10**9:
            raise _Wrong(f"its pattern of data files is {_shown(named)}")
        names = [words[0] % number for number in range(first, last + (1 if step > 0 else -1), step)]
        splits = f" {words[4]}" if len(words) == 5 and re.fullmatch(r"[1-7]", words[4]) else " "
    else:
        names, splits = [named], ""
    if not 1 <= len(names) <= MAX_DATA_FILES:
        raise _Wrong(f"its header names {len(names)} data files")
    return tuple(folder / name for name in names), splits


def _lines(raw: bytes) -> list[str]:
    """The lines of a header that are not empty. Other control signs than tabs could hide a line from one reader."""
    text = raw.decode(errors="surrogateescape").replace("\r\n", "\n").replace("\t", " ")
    if sign := re.search(r"[\x00-\x09\x0b-\x1f\x7f\x85\u2028\u2029]", text):
        raise _Wrong(f"its header holds the control sign {sign[0]!r}")
    return [line for line in text.split("\n") if line.strip()]


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_HEADER_BYTES)


def _whole(fields: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in fields and default is not None:
        return default
    if not re.fullmatch(r"[+-]?\d{1,12}", fields.get(name, "")):
        raise _Wrong(f"{name} is {_shown(fields.get(name, 'missing'))}")
    return int(fields[name])


def _values(fields: Mapping[str, str], name: str, count: int, optional: bool = False) -> list[float]:
    """The numbers of a field; none if it is optional and missing."""
    if name not in fields and optional:
        return []
    words = fields.get(name, "").split()
    if len(words) != count or not all(NUMBER.fullmatch(word) for word in words):
        raise _Wrong(f"{name} is {_shown(fields.get(name, 'missing'))} but must be {count} numbers")
    return [float(word) for word in words]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
