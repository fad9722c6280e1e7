"""The HTML page of the report: one self-contained file that loads nothing, worst cases first.

Its size is bounded: at most `MAX_PICTURES` single slices, and the slices of at most three cases a modality.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hepar.evaluation.agreement import QUANTITIES, measure_agreement
from hepar.evaluation.agreement_chart import agreement_chart
from hepar.evaluation.charts import MAX_CURVES, dice_chart, learning_chart, volume_chart
from hepar.evaluation.confidence_charts import froc_chart, reliability_chart
from hepar.evaluation.examples import pick_examples
from hepar.evaluation.forest_plot import groups_chart
from hepar.evaluation.inter_rater import CITATION, INTER_RATER_DICE
from hepar.evaluation.label_pairs import CaseIdentity
from hepar.evaluation.lesions import threshold_name
from hepar.evaluation.not_scored import list_not_scored
from hepar.evaluation.pictures import slice_svg, stack_svg
from hepar.evaluation.provenance import trace
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.evaluation.scores import CaseScores
from hepar.evaluation.slices import CaseSlice
from hepar.evaluation.subgroups import metrics_in_groups
from hepar.evaluation.summary import Bootstrap
from hepar.evaluation.tables import (
    UNDEFINED,
    TableSection,
    agreement_sections,
    challenge_sections,
    confidence_sections,
    further_sections,
    interval,
    metric_sections,
    number,
    size_sections,
)
from hepar.inference.model_folder import ModelFolder
from hepar.runtime.whole_files import write_text

MAX_PICTURES = 60
_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPT = "report.js"


@dataclass(frozen=True)
class Picture:
    """One or several slices of a case on the page: SVG, caption and remarks.

    `slices` is their number, `position` that of the one that is shown first, `place` that of the case among others.
    """

    svg: Markup
    case: CaseIdentity
    index_z: int
    numbers: str
    remarks: tuple[str, ...]
    place: str = ""
    slices: int = 1
    position: int = 0


def write_report(
    path: Path,
    metrics: dict[str, Any],
    scores: Sequence[CaseScores],
    slices: Sequence[CaseSlice],
    history: pd.DataFrame,
    facts: Mapping[str, str],
    bootstrap: Bootstrap,
) -> None:
    """Write the page for `metrics` (from `summarise`) and the cases behind them.

    `history` has the columns of `ModelFolder.HISTORY_COLUMNS`; split is train or val, modality may be empty. `facts`
    are those of a `Report`. `bootstrap` gives the intervals of groups that `metrics` does not have. At most
    `MAX_PICTURES` slices are drawn, and those of the worst, median and best case of each modality. If there are no
    cases, slices or history, the page says so. The same inputs give the same bytes.

    Raises ValueError if the history lacks a column or a slice has no scored case.
    """
    missing = [column for column in ModelFolder.HISTORY_COLUMNS if column not in history.columns]
    if missing:
        raise ValueError(f"history lacks the columns {', '.join(missing)}")
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ordered = worst_first(scores)
    script = (_TEMPLATES / _SCRIPT).read_text(encoding="utf-8")
    modalities = list(metrics)
    agreements = {
        modality: [measure_agreement(_of_modality(scores, modality), quantity) for quantity in QUANTITIES]
        for modality in modalities
    }
    page = environment.get_template("report.html.j2").render(
        steps=trace(facts),
        of_model=ModelFolder.KIND in facts,
        use=RESEARCH_USE,
        modalities=modalities,
        cards=_cards(metrics),
        not_scored=list_not_scored(scores, facts),
        tables={**_tables(metrics), "agreement": (modalities, agreement_sections(list(agreements.values())))},
        charts={
            "dice": _markup(dice_chart(scores, metrics)),
            "volume": _markup(volume_chart(scores)),
            "agreement": _markup(agreement_chart(agreements)),
            "groups": _markup(groups_chart(metrics_in_groups(scores, bootstrap))),
            "froc": _markup(froc_chart(metrics)),
            "reliability": _markup(reliability_chart(metrics)),
            "learning": _markup(learning_chart(history)),
        },
        inter_rater=CITATION if any(modality in modalities for modality, _ in INTER_RATER_DICE) else "",
        curves_left_out=max(0, history["metric"].nunique() - MAX_CURVES),
        examples=_examples(scores, slices),
        pictures=_pictures(ordered, slices),
        slices=len(slices),
        rows=[_case_row(case) for case in ordered],
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    write_text(path, page)


def worst_first(scores: Sequence[CaseScores]) -> list[CaseScores]:
    """Cases by tumour Dice, else liver Dice, lowest first; then those with neither, by id."""

    def key(case: CaseScores) -> tuple[bool, float, str]:
        value = case.liver.dice if case.tumour.dice is None else case.tumour.dice
        return value is None, 0.0 if value is None else value, case.identity.case_id

    return sorted(scores, key=key)


def remarks(case: CaseScores) -> tuple[str, ...]:
    """What the numbers of a case do not show."""
    found = []
    for name, structure in (("tumour", case.tumour), ("liver", case.liver)):
        if not structure.known:
            found.append(f"{name} unknown")
        elif structure.present and structure.one_empty:
            found.append(f"{name} missed")
    if case.tumour_free:
        found.append("tumour-free" if case.specific else "tumour-free, false positive")
    if not case.distances_known:
        found.append("nominal voxel size")
    return tuple(found)


def _pictures(ordered: Sequence[CaseScores], slices: Sequence[CaseSlice]) -> list[Picture]:
    by_case = {case_slice.case_id: case_slice for case_slice in slices}
    unscored = sorted(by_case.keys() - {case.identity.case_id for case in ordered})
    if unscored:
        raise ValueError(f"slices of cases without scores: {', '.join(unscored)}")
    shown = [(case, by_case[case.identity.case_id]) for case in ordered if case.identity.case_id in by_case]
    return [
        Picture(
            svg=Markup(slice_svg(case_slice, case.distances_known)),
            case=case.identity,
            index_z=case_slice.index_z,
            numbers=_numbers(case),
            remarks=remarks(case),
        )
        for case, case_slice in shown[:MAX_PICTURES]
    ]


def _examples(scores: Sequence[CaseScores], slices: Sequence[CaseSlice]) -> dict[str, list[Picture]]:
    """The cases to scroll through, by what they are ranked by."""
    stacks = {case_slice.case_id: case_slice.stack for case_slice in slices}
    ranked: dict[str, list[Picture]] = {}
    for example in pick_examples([case for case in scores if case.identity.case_id in stacks]):
        identity, stack = example.case.identity, stacks[example.case.identity.case_id]
        ranked.setdefault(f"{identity.modality}, by {example.structure} Dice", []).append(
            Picture(
                svg=Markup(stack_svg(identity.case_id, stack, example.case.distances_known)),
                case=identity,
                index_z=stack.indices_z[stack.key],
                numbers=_numbers(example.case),
                remarks=remarks(example.case),
                place=example.place,
                slices=len(stack.indices_z),
                position=stack.key,
            )
        )
    return ranked


def _of_modality(scores: Sequence[CaseScores], modality: str) -> list[CaseScores]:
    return [case for case in scores if case.identity.modality == modality]


def _numbers(case: CaseScores) -> str:
    """The numbers of a caption; undefined ones are left out."""
    parts = []
    if case.tumour.dice is not None:
        parts.append(f"tumour Dice {number(case.tumour.dice, 3)}")
    if case.liver.dice is not None:
        parts.append(f"liver Dice {number(case.liver.dice, 3)}")
    if case.lesions is not None:
        counts = case.lesions[0].counts
        lesions = counts.true_positives + counts.false_negatives
        if lesions:
            parts.append(f"{counts.true_positives} of {lesions} lesions detected")
        if counts.false_positives:
            parts.append(f"{counts.false_positives} false positive{'s' if counts.false_positives > 1 else ''}")
    return " · ".join(parts)


def _cards(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline numbers of each modality."""
    cards = []
    for modality, group in metrics.items():
        f1 = group["tumour"]["lesion_f1"][threshold_name(0.1)]
        estimates = (
            ("Liver Dice", group["liver"]["dice"]["mean"], group["liver"]["dice"]),
            ("Tumour Dice", group["tumour"]["dice"]["mean"], group["tumour"]["dice"]),
            ("Lesion F1, IoU > 0.1", f1["value"], f1),
        )
        cards.append(
            {
                "modality": modality,
                "cases": group["cases"],
                "patients": group["patients"],
                "values": [
                    (name, number(value, 3), interval(estimate["ci95"], 3), estimate["n"])
                    for name, value, estimate in estimates
                ],
            }
        )
    return cards


def _tables(metrics: dict[str, Any]) -> dict[str, tuple[list[str], list[TableSection]]]:
    """Column titles and sections of each table on the page."""
    by_source = {
        f"{modality} · {source}": part
        for modality, group in metrics.items()
        for source, part in group["sources"].items()
    }
    return {
        "main": (list(metrics), metric_sections(list(metrics.values()))),
        "sources": (list(by_source), metric_sections(list(by_source.values()))),
        "sizes": (list(metrics), size_sections(list(metrics.values()))),
        "challenges": (list(metrics), challenge_sections(list(metrics.values()))),
        "further": (list(metrics), further_sections(list(metrics.values()))),
        "confidence": (list(metrics), confidence_sections(list(metrics.values()))),
    }


def _case_row(case: CaseScores) -> list[str]:
    counts = None if case.lesions is None else case.lesions[0].counts
    return [
        case.identity.case_id,
        f"{case.identity.modality} {case.identity.sequence}".strip(),
        case.identity.source,
        number(case.tumour.dice, 3),
        number(case.tumour.reference_volume_ml, 1),
        number(case.tumour.prediction_volume_ml, 1),
        UNDEFINED
        if counts is None
        else f"{counts.true_positives} / {counts.false_negatives} / {counts.false_positives}",
        number(case.liver.dice, 3),
        number(case.liver.nsd_2mm, 3),
        number(case.liver.hd95_mm, 1),
        number(case.liver.reference_volume_ml, 0),
        number(case.liver.prediction_volume_ml, 0),
        ", ".join(remarks(case)),
    ]


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)
