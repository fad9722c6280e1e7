"""The tables of the report: their rows, and how numbers are formatted.

Numbers are rounded here and nowhere else. A section is a title and rows; a row is a label and one cell per column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hepar.cases import STRUCTURES
from hepar.evaluation.agreement import QUANTITIES, Agreement
from hepar.evaluation.lesions import IOU_THRESHOLDS, threshold_name
from hepar.imaging.masks import LESION_SIZES

UNDEFINED = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A value, its 95 % interval ("" without one) and the number of cases or lesions behind it."""

    value: str
    interval: str = ""
    basis: str = ""


@dataclass(frozen=True)
class TableRow:
    """The name of a metric, a hint and one cell per column."""

    label: str
    hint: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class TableSection:
    """Rows under one heading."""

    title: str
    rows: tuple[TableRow, ...]


def number(value: float | None, digits: int) -> str:
    """A number with a true minus sign and no negative zero; an en dash for None."""
    if value is None:
        return UNDEFINED
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def interval(ci95: Sequence[float] | None, digits: int) -> str:
    """A 95 % interval as text; "" for None."""
    return "" if ci95 is None else f"{number(ci95[0], digits)} to {number(ci95[1], digits)}"


def metric_sections(groups: Sequence[dict[str, Any]]) -> list[TableSection]:
    """The main table: liver, tumour, lesions and tumour-free cases, one column per group of the summary."""

    def mean(label: str, hint: str, structure: str, metric: str, digits: int, factor: float = 1.0) -> TableRow:
        return _row(label, hint, groups, lambda group: _mean_cell(group[structure][metric], digits, factor))

    sections = [
        TableSection(
            "Liver",
            (
                mean("Dice", "", "liver", "dice", 3),
                mean("NSD", "within 2 mm", "liver", "nsd_2mm", 3),
                mean("HD95, mm", "lower is better", "liver", "hd95_mm", 1),
                mean("ASSD, mm", "lower is better", "liver", "assd_mm", 1),
                mean("Relative volume difference, %", "signed", "liver", "rvd", 1, 100),
                mean("Volumetric overlap error, %", "lower is better", "liver", "voe", 1, 100),
                _row("Cases", "with a reference liver", groups, lambda group: _count_cell(group["liver"])),
            ),
        ),
        TableSection(
            "Tumour",
            (
                mean("Dice per case", "cases with tumours", "tumour", "dice", 3),
                _row(
                    "Global Dice",
                    "all voxels pooled",
                    groups,
                    lambda group: _mean_cell(group["tumour"]["global_dice"], 3, key="value"),
                ),
                mean("NSD", "within 2 mm", "tumour", "nsd_2mm", 3),
                mean("HD95, mm", "image diagonal if one mask is empty", "tumour", "hd95_mm", 1),
                _row(
                    "HD95, mm",
                    "neither mask empty",
                    groups,
                    lambda group: _mean_cell(group["tumour"]["where_both_present"]["hd95_mm"], 1),
                ),
                mean("Tumour burden error", "signed, percentage points", "tumour", "burden_error", 2, 100),
                mean("Tumour burden error", "absolute", "tumour", "absolute_burden_error", 2, 100),
                _row("Cases", "with a reference tumour", groups, lambda group: _count_cell(group["tumour"])),
            ),
        ),
    ]
    sections += [_lesion_section(groups, iou_above) for iou_above in IOU_THRESHOLDS]
    sections.append(
        TableSection(
            "Tumour-free cases",
            (
                mean("Specificity", "no tumour predicted", "tumour", "specificity", 3),
                mean("False-positive volume, ml", "per case", "tumour", "false_positive_volume_ml", 2),
            ),
        )
    )
    return sections


def size_sections(groups: Sequence[dict[str, Any]]) -> list[TableSection]:
    """Lesion sensitivity by equivalent diameter, one section per IoU threshold."""

    def row(threshold: str, name: str) -> TableRow:
        def cell(group: dict[str, Any]) -> Cell:
            size = group["tumour"]["lesion_f1"][threshold]["by_size"][name]
            basis = f"{size['detected']} of {size['lesions']}, {size['false_positives']} FP"
            return Cell(number(size["sensitivity"], 2), basis=basis)

        return _row(name.replace("-", "\N{EN DASH}"), "", groups, cell)

    return [
        TableSection(
            f"Sensitivity at IoU > {iou_above:g}",
            tuple(row(threshold_name(iou_above), name) for name in LESION_SIZES),
        )
        for iou_above in IOU_THRESHOLDS
    ]


def challenge_sections(groups: Sequence[dict[str, Any]]) -> list[TableSection]:
    """The challenge scores: LiTS and CHAOS."""

    def row(label: str, name: str, digits: int) -> TableRow:
        def cell(group: dict[str, Any]) -> Cell:
            value = group["challenges"][name]
            return _mean_cell(value, digits) if isinstance(value, dict) else Cell(number(value, digits))

        return _row(label, "", groups, cell)

    return [
        TableSection(
            "LiTS",
            (
                row("Tumour Dice per case", "lits_tumour_dice_per_case", 3),
                row("Liver Dice per case", "lits_liver_dice_per_case", 3),
                row("Lesion precision, IoU > 0.5", "lits_lesion_precision", 3),
                row("Lesion recall, IoU > 0.5", "lits_lesion_recall", 3),
                row("Lesion precision, IoU > 0", "lits_lesion_precision_greater_zero", 3),
                row("Lesion recall, IoU > 0", "lits_lesion_recall_greater_zero", 3),
                row("Tumour burden RMSE", "lits_tumour_burden_rmse", 4),
                row("Maximum tumour burden error", "lits_tumour_burden_max", 4),
            ),
        ),
        TableSection(
            "CHAOS, points out of 100",
            (
                row("Dice", "chaos_dice", 1),
                row("Absolute relative volume difference", "chaos_ravd", 1),
                row("ASSD", "chaos_assd", 1),
                row("MSSD", "chaos_mssd", 1),
                row("Mean", "chaos_mean", 1),
            ),
        ),
    ]


def agreement_sections(groups: Sequence[Sequence[Agreement | None]]) -> list[TableSection]:
    """Bias and limits of agreement, a section for each of `QUANTITIES`; a group has an entry for each of them."""

    def row(label: str, hint: str, position: int, line: int) -> TableRow:
        def cell(group: Sequence[Agreement | None]) -> Cell:
            agreement = group[position]
            if agreement is None or line >= len(agreement.lines):
                return Cell(UNDEFINED)
            (value, ci95), digits = agreement.lines[line], QUANTITIES[position].digits
            return Cell(number(value, digits), interval(ci95, digits), agreement.basis)

        return TableRow(label, hint, tuple(cell(group) for group in groups))

    return [
        TableSection(
            f"{quantity.name}, {quantity.unit}",
            (
                row("Bias", "predicted − reference", position, 0),
                row("Lower limit of agreement", "", position, 1),
                row("Upper limit of agreement", "", position, 2),
            ),
        )
        for position, quantity in enumerate(QUANTITIES)
        if any(group[position] is not None for group in groups)
    ]


def further_sections(groups: Sequence[dict[str, Any]]) -> list[TableSection]:
    """Panoptic quality of lesions, and the distances of surfaces weighted by area."""

    def area(structure: str, label: str, hint: str, metric: str, digits: int) -> TableRow:
        return _row(label, hint, groups, lambda group: _mean_cell(group[structure]["area_weighted"][metric], digits))

    def panoptic(label: str, hint: str, name: str) -> TableRow:
        return _row(label, hint, groups, lambda group: _mean_cell(group["tumour"]["panoptic"][name], 3, key="value"))

    return [
        TableSection(
            "Panoptic quality of lesions",
            (
                panoptic("Panoptic quality", "segmentation × recognition", "pq"),
                panoptic("Segmentation quality", "mean IoU of matched lesions", "sq"),
                panoptic("Recognition quality", "F1 at IoU > 0.5", "rq"),
            ),
        ),
        *(
            TableSection(
                f"{structure.capitalize()} surface, weighted by area",
                (
                    area(structure, "NSD", "within 2 mm", "nsd_2mm", 3),
                    area(structure, "HD95, mm", "lower is better", "hd95_mm", 1),
                    area(structure, "ASSD, mm", "lower is better", "assd_mm", 1),
                ),
            )
            for structure in STRUCTURES
        ),
    ]


def confidence_sections(groups: Sequence[dict[str, Any]]) -> list[TableSection]:
    """Detection over all confidences, and calibration."""

    def row(label: str, hint: str, estimate_of: Callable[[dict[str, Any]], dict[str, Any]]) -> TableRow:
        return _row(label, hint, groups, lambda group: _mean_cell(estimate_of(group["tumour"]), 3, key="value"))

    def at(rate: str) -> TableRow:
        return row(
            f"At {rate} false lesion{'s' * (rate != '1')} per case", "", lambda own: own["froc"]["sensitivity"][rate]
        )

    def precision(iou_above: float) -> TableRow:
        return row(f"At IoU > {iou_above:g}", "", lambda own: own["average_precision"][threshold_name(iou_above)])

    rates = list(groups[0]["tumour"]["froc"]["sensitivity"]) if groups else []
    return [
        TableSection(
            "Sensitivity",
            (*map(at, rates), row("Mean of these", "", lambda own: own["froc"]["mean"])),
        ),
        TableSection("Average precision", tuple(map(precision, IOU_THRESHOLDS))),
        TableSection(
            "Expected calibration error",
            (
                row("Voxels", "lower is better", lambda own: own["reliability"]["voxels"]["ece"]),
                row("Lesion candidates", "lower is better", lambda own: own["reliability"]["lesions"]["ece"]),
            ),
        ),
    ]


def _lesion_section(groups: Sequence[dict[str, Any]], iou_above: float) -> TableSection:
    threshold = threshold_name(iou_above)

    def ratio(label: str, hint: str, key: str, interval_key: str, digits: int, basis: Callable[..., str]) -> TableRow:
        def cell(group: dict[str, Any]) -> Cell:
            lesions = group["tumour"]["lesion_f1"][threshold]
            return Cell(number(lesions[key], digits), interval(lesions[interval_key], digits), basis(lesions))

        return _row(label, hint, groups, cell)

    return TableSection(
        f"Lesions at IoU > {iou_above:g}",
        (
            ratio("F1", "pooled over cases", "value", "ci95", 3, lambda lesions: f"n {lesions['n']}"),
            ratio(
                "Sensitivity",
                "",
                "sensitivity",
                "sensitivity_ci95",
                3,
                lambda c: f"{c['true_positives']} of {c['true_positives'] + c['false_negatives']}",
            ),
            ratio(
                "Precision",
                "",
                "precision",
                "precision_ci95",
                3,
                lambda c: f"{c['true_positives']} of {c['true_positives'] + c['false_positives']}",
            ),
            ratio(
                "False positives per case",
                "",
                "false_positives_per_case",
                "false_positives_per_case_ci95",
                2,
                lambda c: f"{c['false_positives']} in {c['n']}",
            ),
        ),
    )


def _row(
    label: str, hint: str, groups: Sequence[dict[str, Any]], cell_of: Callable[[dict[str, Any]], Cell]
) -> TableRow:
    return TableRow(label, hint, tuple(cell_of(group) for group in groups))


def _mean_cell(estimate: dict[str, Any], digits: int, factor: float = 1.0, key: str = "mean") -> Cell:
    if estimate[key] is None:
        return Cell(UNDEFINED)
    scaled = None if estimate["ci95"] is None else [factor * bound for bound in estimate["ci95"]]
    return Cell(number(factor * estimate[key], digits), interval(scaled, digits), f"n {estimate['n']}")


def _count_cell(structure: dict[str, Any]) -> Cell:
    counts = structure["counts"]
    labels = {"missed": "missed", "absent": "without", "false_positive": "false positive", "unknown": "unknown"}
    details = [f"{counts[name]} {label}" for name, label in labels.items() if counts[name]]
    return Cell(str(counts["present"]), basis=", ".join(details))
