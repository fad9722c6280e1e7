"""The datasheet of a pool, its `README.md`: label states, pseudo-livers, lesions, licences and example slices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from hepar.cases import LabelState, Split
from hepar.errors import one_line
from hepar.imaging.display import display_window, largest_slice, scale_to_window
from hepar.imaging.intensities import CT_RANGE
from hepar.imaging.masks import LESION_SIZES, Mask, lesion_size
from hepar.params import AssemblePoolParams
from hepar.pool.arrays import PreprocessedArrays
from hepar.pool.table import Pool, PoolEntry
from hepar.pool.targets import FULL
from hepar.runtime.whole_files import write_bytes, write_text

MIN_SIDE_PIXELS = 320  # of an example slice
UNKNOWN_OPACITY = 0.35
LIVER_COLOUR, TUMOUR_COLOUR, UNKNOWN_COLOUR = (60, 200, 110), (235, 70, 60), (70, 110, 230)
Rgb = npt.NDArray[np.uint8]


def write_datasheet(pool: Pool, parents: Mapping[str, str], params: AssemblePoolParams) -> None:
    """Writes `README.md` and `pictures/` into the folder of a pool; the same pool gives the same text and pixels."""
    examples = _write_examples(pool)
    parts = [
        "# Datasheet of the pool",
        _summary(pool.entries),
        "## Provenance",
        _table(("input", "hash"), parents.items()),
        _table(("setting", "value"), _settings(params)),
        "## Labels",
        "Unknown is not background: unknown voxels have weight 0 in the loss.",
        _label_states(pool.entries),
        "## Pseudo-livers",
        _pseudo_livers(pool.entries),
        "## Lesions",
        _lesions(pool.entries),
        "## Sources and licences",
        _sources(pool.entries),
    ]
    if examples:
        parts += ["## Example slices", _LEGEND, *examples]
    write_text(pool.folder / Pool.DATASHEET, "\n\n".join(parts) + "\n")


_LEGEND = "Green outline: liver (dashed for a pseudo-label). Red outline: tumour. Blue shading: tumour unknown."


def _settings(params: AssemblePoolParams) -> Iterable[tuple[str, str]]:
    """All settings but the folder of the reviews, which differs by machine, and what was taken over, which changes
    nothing. The hash of the reviews is among the parents."""
    values = params.model_dump(mode="json", exclude={"reviews", "start_from"})
    return ((key, ", ".join(value) if isinstance(value, list) else str(value)) for key, value in values.items())


def _summary(entries: Sequence[PoolEntry]) -> str:
    usable = sum(entry.arrays.known_share > 0 for entry in entries)
    patients = len({entry.patient_id for entry in entries})
    return f"{len(entries)} cases of {patients} patients; {usable} cases have known voxels to train on."


def _label_states(entries: Sequence[PoolEntry]) -> str:
    counted = Counter(
        (
            str(entry.modality),
            entry.provenance.sequence or "–",
            entry.provenance.source,
            str(entry.split),
            str(entry.liver.state),
            str(entry.tumour.state),
        )
        for entry in entries
    )
    header = ("modality", "sequence", "source", "split", "liver", "tumour", "cases")
    return _table(header, ((*names, str(count)) for names, count in sorted(counted.items())))


def _pseudo_livers(entries: Sequence[PoolEntry]) -> str:
    judged = sorted((entry for entry in entries if entry.liver.gate), key=lambda entry: entry.case_id)
    if not judged:
        return "None."
    counted = Counter((entry.liver.gate, bool(entry.liver.review)) for entry in judged)
    decided_by = {True: "reviewer", False: "gates"}
    outcomes = [(gate, decided_by[reviewed], str(count)) for (gate, reviewed), count in sorted(counted.items())]
    parts = [_table(("outcome", "decided by", "cases"), outcomes)]
    reasons = [
        (entry.case_id, entry.liver.gate, f"{entry.liver.weight:.2f}", "; ".join(why))
        for entry in judged
        if (why := [text for text in (entry.liver.reasons, entry.liver.review) if text])
    ]
    if reasons:
        parts.append(_table(("case", "outcome", "weight", "reason"), reasons))
    return "\n\n".join(parts)


def _lesions(entries: Sequence[PoolEntry]) -> str:
    rows = []
    for split in (Split.TRAIN, Split.VAL):
        for modality in sorted({entry.modality for entry in entries}):
            members = [entry for entry in entries if (entry.split, entry.modality) == (split, modality)]
            sizes = Counter(lesion_size(d) for entry in members for d in entry.tumour.lesion_diameters_mm)
            rows.append((str(split), str(modality), *(str(sizes[name]) for name in LESION_SIZES)))
    header = ("split", "modality", *(name.replace("-", "–") for name in LESION_SIZES))
    return "Number of lesions by equivalent diameter, that of a sphere of the same volume.\n\n" + _table(header, rows)


def _sources(entries: Sequence[PoolEntry]) -> str:
    counted = Counter((entry.provenance.source, entry.provenance.licence or "not stated") for entry in entries)
    return _table(("source", "licence", "cases"), ((*names, str(count)) for names, count in sorted(counted.items())))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = ([_plain(cell) for cell in row] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *escaped]]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A text from elsewhere as Markdown that shows it on one line: no HTML, link, picture, code or table cell."""
    marked = re.sub(r"([\\`\[|])", r"\\\1", one_line(text))
    return marked.replace("&", "&amp;").replace("<", "&lt;")


def _write_examples(pool: Pool) -> list[str]:
    """Writes one example slice for each combination of modality and label states; returns their Markdown."""
    chosen: dict[tuple[str, ...], PoolEntry] = {}
    by_volume = sorted(pool.entries, key=lambda e: (-e.tumour.volume_ml, -e.liver.volume_ml, e.case_id))
    for entry in by_volume:
        if entry.arrays.known_share > 0:
            chosen.setdefault((str(entry.modality), str(entry.liver.state), str(entry.tumour.state)), entry)
    markdown = []
    for (modality, liver, tumour), entry in sorted(chosen.items()):
        name = f"{Pool.PICTURES}/{modality}-liver-{liver}-tumour-{tumour}.png".lower()
        picture = BytesIO()
        with pool.local_arrays(entry) as arrays:
            Image.fromarray(draw_slice(arrays, entry, pool.plan.spacing_zyx_mm[1:])).save(picture, "PNG")
        write_bytes(pool.folder / name, picture.getvalue())
        case_id = _plain(entry.case_id)
        markdown.append(f"{modality}, liver {liver}, tumour {tumour}: {case_id}\n\n![{case_id}]({name})")
    return markdown


def draw_slice(arrays: PreprocessedArrays, entry: PoolEntry, spacing_yx_mm: tuple[float, float]) -> Rgb:
    """An example slice as RGB, uint8 yx3: targets outlined, shaded blue where the tumour is unknown.

    Shows the slice with most tumour, without a tumour that with most liver, and without either the middle one.
    """
    tumour_zyx, liver_zyx = arrays.tumour_zyx > 0, arrays.liver_zyx > 0
    image_zyx = np.asarray(arrays.image_zyx[:], np.float32)
    z = largest_slice((tumour_zyx, liver_zyx), len(image_zyx))
    image_yx = image_zyx[z]
    grey_yx = scale_to_window(image_yx, display_window(image_zyx, entry.modality, CT_RANGE))
    scale = max(1, round(MIN_SIDE_PIXELS / min(image_yx.shape)))
    ratio = spacing_yx_mm[0] / spacing_yx_mm[1]
    rows, columns = round(image_yx.shape[0] * scale * ratio), image_yx.shape[1] * scale

    def enlarge(plane_yx: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return plane_yx[np.ix_(np.arange(rows) * plane_yx.shape[0] // rows, np.arange(columns) // scale)]

    grey = Image.fromarray((grey_yx * 255).astype(np.uint8)).resize((columns, rows), Image.Resampling.BILINEAR)
    rgb_yx3 = np.repeat(np.asarray(grey)[..., None], 3, axis=2).astype(np.float32)
    if entry.tumour.state == LabelState.UNKNOWN:
        weight_yx = arrays.palette_n4[:, 3].take(np.asarray(arrays.code_zyx[z], np.intp))
        unknown_yx = 1 - enlarge(weight_yx) / np.float32(FULL)
        rgb_yx3 += UNKNOWN_OPACITY * unknown_yx[..., None] * (np.array(UNKNOWN_COLOUR, np.float32) - rgb_yx3)
    liver_line_yx, tumour_line_yx = _outline(enlarge(liver_zyx[z])), _outline(enlarge(tumour_zyx[z]))
    if entry.liver.state == LabelState.PSEUDO:
        liver_line_yx &= (np.add.outer(np.arange(rows), np.arange(columns)) // 6) % 2 == 0  # dashes
    rgb_yx3[liver_line_yx] = LIVER_COLOUR
    rgb_yx3[tumour_line_yx] = TUMOUR_COLOUR
    return rgb_yx3.round().astype(np.uint8)


def _outline(mask_yx: Mask) -> Mask:
    return np.asarray(mask_yx & ~ndimage.binary_erosion(mask_yx, iterations=2), bool)
