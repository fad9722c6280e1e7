"""The datasheet of a pool, `README.md`: what is in it, how much is known, from where, and what was left out and why.

Pictures show for some cases what is taught: liver and tumour outlined, and shaded where the tumour is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from hepar.cases import LabelState, Split
from hepar.imaging.masks import LESION_SIZES, lesion_size
from hepar.params import AssemblePoolParams
from hepar.pool.table import FULL, Pool, PoolEntry, PreprocessedArrays

FILE, PICTURES = "README.md", "pictures"
MIN_SIDE = 320  # of a picture, in its pixels
SHADE = 0.35  # of blue where nothing is known
LIVER_COLOUR, TUMOUR_COLOUR, UNKNOWN_COLOUR = (60, 200, 110), (235, 70, 60), (70, 110, 230)
Rgb = npt.NDArray[np.uint8]


def write_datasheet(pool: Pool, parents: Mapping[str, str], params: AssemblePoolParams) -> None:
    """Write `README.md` and `pictures/` into the folder of a pool. The same pool gives the same text and pixels."""
    pictures = _write_pictures(pool)
    parts = [
        "# Datasheet of a mixed-label pool",
        _summary(pool.entries),
        "## Made from",
        _table(("what", "hash"), parents.items()),
        _table(("setting", "value"), _settings(params)),
        "## What is known",
        "Unknown is not background: nothing is taught there. Weights are how far a label is trusted.",
        _counts(pool.entries),
        "## Pseudo-livers",
        _gates(pool.entries),
        "## Lesions",
        _lesions(pool.entries),
        "## Sources and licences",
        _sources(pool.entries),
    ]
    if pictures:
        parts += ["## Pictures", _LEGEND, *pictures]
    (pool.folder / FILE).write_text("\n\n".join(parts) + "\n")


_LEGEND = (
    "Green is the liver's outline, red the tumour's; dashed where a liver is a pseudo-label. Blue is shaded where it is"
    " not known whether there is a tumour."
)


def _settings(params: AssemblePoolParams) -> Iterable[tuple[str, str]]:
    """All but where reviews lie, which is another place on every machine; their hash is among the parents."""
    values = params.model_dump(mode="json", exclude={"reviews"})
    return ((key, ", ".join(value) if isinstance(value, list) else str(value)) for key, value in values.items())


def _summary(entries: Sequence[PoolEntry]) -> str:
    teaching = sum(entry.known_share > 0 for entry in entries)
    patients = len({entry.patient_id for entry in entries})
    return f"{len(entries)} cases of {patients} patients, of which {teaching} teach something."


def _counts(entries: Sequence[PoolEntry]) -> str:
    def key(entry: PoolEntry) -> tuple[str, ...]:
        states = (str(entry.liver_state), str(entry.tumour_state))
        return (str(entry.modality), entry.sequence or "–", entry.source, str(entry.split), *states)

    counted = Counter(map(key, entries))
    header = ("modality", "sequence", "source", "split", "liver", "tumour", "cases")
    return _table(header, ((*names, str(count)) for names, count in sorted(counted.items())))


def _gates(entries: Sequence[PoolEntry]) -> str:
    judged = [entry for entry in entries if entry.gate]
    if not judged:
        return "None."
    counted = Counter((entry.gate, bool(entry.review)) for entry in judged)
    by_whom = {True: "a person", False: "the gates"}
    rows = [(gate, by_whom[reviewed], str(count)) for (gate, reviewed), count in sorted(counted.items())]
    parts = [_table(("outcome", "by", "cases"), rows)]
    doubtful = [entry for entry in judged if entry.reasons or entry.review]
    if doubtful:
        details = (
            (e.case_id, e.gate, f"{e.liver_weight:.2f}", "; ".join(filter(None, (e.reasons, e.review))))
            for e in sorted(doubtful, key=lambda e: e.case_id)
        )
        parts.append(_table(("case", "outcome", "weight", "why"), details))
    return "\n\n".join(parts)


def _lesions(entries: Sequence[PoolEntry]) -> str:
    rows = []
    for split in (Split.TRAIN, Split.VAL):
        for modality in sorted({entry.modality for entry in entries}):
            members = [entry for entry in entries if (entry.split, entry.modality) == (split, modality)]
            sizes = Counter(lesion_size(d) for entry in members for d in entry.lesion_diameters_mm)
            counts = [str(sizes[name]) for name in LESION_SIZES]
            rows.append((str(split), str(modality), *counts))
    return "Diameters of spheres of equal volume.\n\n" + _table(("split", "modality", *LESION_SIZES), rows)


def _sources(entries: Sequence[PoolEntry]) -> str:
    counted = Counter((entry.source, entry.licence or "not stated") for entry in entries)
    return _table(("source", "licence", "cases"), ((*names, str(count)) for names, count in sorted(counted.items())))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *escaped]]
    return "\n".join(lines)


def _write_pictures(pool: Pool) -> list[str]:
    """One picture of each kind of case, by modality and what is known; their lines of Markdown."""
    shown: dict[tuple[str, ...], PoolEntry] = {}
    for entry in sorted(pool.entries, key=lambda entry: (-entry.tumour_ml, -entry.liver_ml, entry.case_id)):
        if entry.known_share > 0:
            shown.setdefault((str(entry.modality), str(entry.liver_state), str(entry.tumour_state)), entry)
    lines = []
    for (modality, liver, tumour), entry in sorted(shown.items()):
        name = f"{PICTURES}/{modality}-liver-{liver}-tumour-{tumour}.png".lower()
        path = pool.folder / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(pool.arrays(entry), entry, pool.plan.spacing_zyx_mm[1:])).save(path)
        lines.append(f"{modality}, liver {liver}, tumour {tumour}: {entry.case_id}\n\n![{entry.case_id}]({name})")
    return lines


def picture(arrays: PreprocessedArrays, entry: PoolEntry, spacing_yx_mm: tuple[float, float]) -> Rgb:
    """The slice with most tumour, else most liver, as RGB: outlines of what is taught, blue where tumour is unknown."""
    tumour, liver = arrays.tumour > 0, arrays.liver > 0
    z = int((tumour if tumour.any() else liver).sum(axis=(1, 2)).argmax())
    image_yx = np.asarray(arrays.image[z], np.float32)
    low, high = np.percentile(image_yx, (1, 99))
    grey = np.clip((image_yx - low) / max(float(high - low), 1e-6), 0, 1)
    scale = max(1, round(MIN_SIDE / min(image_yx.shape)))
    ratio = spacing_yx_mm[0] / spacing_yx_mm[1]
    rows, columns = round(image_yx.shape[0] * scale * ratio), image_yx.shape[1] * scale

    def enlarged(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return plane[np.ix_(np.arange(rows) * plane.shape[0] // rows, np.arange(columns) // scale)]

    wide = np.asarray(Image.fromarray((grey * 255).astype(np.uint8)).resize((columns, rows), Image.Resampling.BILINEAR))
    rgb = np.repeat(wide[..., None], 3, axis=2).astype(np.float32)
    code_yx = np.asarray(arrays.code[z], np.intp)
    if entry.tumour_state == LabelState.UNKNOWN:
        unknown = 1 - enlarged(arrays.palette[:, 3].take(code_yx)) / np.float32(FULL)
        rgb += SHADE * unknown[..., None] * (np.array(UNKNOWN_COLOUR, np.float32) - rgb)
    for mask, colour, dashed in (
        (liver[z], LIVER_COLOUR, entry.liver_state == LabelState.PSEUDO),
        (tumour[z], TUMOUR_COLOUR, False),
    ):
        line = _outline(enlarged(mask))
        if dashed:
            line &= (np.add.outer(np.arange(rows), np.arange(columns)) // 6) % 2 == 0
        rgb[line] = colour
    return rgb.round().astype(np.uint8)


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return np.asarray(mask & ~ndimage.binary_erosion(mask, iterations=2), bool)
