"""What the labels of a label map are, by the names that a data set gives them: liver, liver tumours, other organs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum, auto
from pathlib import Path

from hepar.errors import DataError
from hepar.ingest.sources.organ_words import LIVER, ORGANS, OTHERS, TUMOURS

CYST = r"(?:cysts?|ha?emangiomas?)"
ADJECTIVE = rf"(?:{LIVER}|hepatic|hepatocellular|hcc|primary|secondary|malignant|viable|necrotic)"
WHOLE_LIVER = re.compile(rf"(?:(?:whole|healthy|normal) ?)?(?:{LIVER})(?: ?(?:parenchyma|tissue))?")
LESION = re.compile(rf"(?:{ADJECTIVE} ?)*(?:{TUMOURS}|(?P<cyst>{CYST}))(?: (?:in |of )?(?:the )?(?:{LIVER}))?")
OF_LIVER = re.compile(rf"{LIVER}|hepat|hcc")
TUMOUR_HOSTS = re.compile(rf"\b(?:{ORGANS}|other)\b")
OUTSIDE = re.compile(rf"\b(?:{OTHERS})\b")
REMEDY = "or list the cases in a table"


class Kind(StrEnum):
    """What the name of a label says."""

    LIVER = auto()
    TUMOUR = auto()  # of any organ
    CYST = auto()  # of any organ; in the liver it belongs to the liver
    ORGAN = auto()  # which may have tumours, or its tumour
    OTHER = auto()  # outside the liver
    UNKNOWN = auto()


def liver_and_tumour(
    labels: Mapping[str, frozenset[int]], description: Path, data_set: str
) -> tuple[frozenset[int], frozenset[int]]:
    """The values of the liver, tumours and cysts included, and of its tumours; each empty if no label names it.

    A lesion of no named organ is the liver's in its region, beside the liver alone, or if the name of the data set says
    liver. Raises DataError naming `description` and a label if it may be another organ's or has an unknown name, or if
    the labels name neither liver nor liver tumour.
    """
    kinds = {name: _kind(name) for name, values in labels.items() if values != {0}}
    if unknown := [name for name, kind in kinds.items() if kind == Kind.UNKNOWN]:
        raise DataError(
            f"{description}: label {_shown(unknown[0], labels)} is neither liver, liver tumour nor another known organ;"
            f" rename it, as liver_tumor, kidney or other_organ, {REMEDY}"
        )
    liver = _values(labels, [name for name, kind in kinds.items() if kind == Kind.LIVER])
    try:
        lesions = _lesions(labels, kinds, liver, data_set)
    except DataError as error:
        raise DataError(f"{description}: {error}") from None
    tumour = _values(labels, [name for name in lesions if kinds[name] == Kind.TUMOUR])
    if not liver and not tumour:
        names = ", ".join(kinds) or "nothing"
        raise DataError(
            f"{description}: labels name neither liver nor liver tumour, but {names}; rename a tumour of the liver, as"
            f" liver_tumor, {REMEDY}"
        )
    return liver | _values(labels, lesions) if liver else liver, tumour


def _lesions(
    labels: Mapping[str, frozenset[int]], kinds: Mapping[str, Kind], liver: frozenset[int], data_set: str
) -> list[str]:
    """The names of the lesions that are the liver's. Raises DataError if one may also be of another organ."""
    lesions = [name for name, kind in kinds.items() if kind in (Kind.TUMOUR, Kind.CYST)]
    certain = [name for name in lesions if OF_LIVER.search(_words(name)) or labels[name] <= liver]
    bare = [name for name in lesions if name not in certain]
    organs = [name for name, kind in kinds.items() if kind == Kind.ORGAN]
    if bare and organs and (liver or certain):
        raise DataError(
            f"label {_shown(bare[0], labels)} may be of the liver or of {organs[0]}; rename it, as liver_{bare[0]},"
            f" {REMEDY}"
        )
    is_of_liver = liver or certain or (not organs and OF_LIVER.search(_words(data_set)))
    return lesions if is_of_liver else []


def _kind(name: str) -> Kind:
    words = _words(name)
    if TUMOUR_HOSTS.search(words):
        return Kind.UNKNOWN if OF_LIVER.search(words) else Kind.ORGAN
    if OUTSIDE.search(words):
        return Kind.OTHER
    if WHOLE_LIVER.fullmatch(words):
        return Kind.LIVER
    if lesion := LESION.fullmatch(words):
        return Kind.CYST if lesion["cyst"] else Kind.TUMOUR
    return Kind.UNKNOWN


def _words(name: str) -> str:
    """Lower-case words without digits, separated by spaces: `KidneyTumor_2` becomes `kidney tumor`."""
    return re.sub(r"[\W\d_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).strip().lower()


def _values(labels: Mapping[str, frozenset[int]], names: list[str]) -> frozenset[int]:
    return frozenset().union(*(labels[name] for name in names))


def _shown(name: str, labels: Mapping[str, frozenset[int]]) -> str:
    return f"{name} ({', '.join(map(str, sorted(labels[name])))})"
