"""Whether tables of scores were made alike: by one release of hepar, from masks predicted with the same settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hepar.evaluation.report_folder import Report
from hepar.evaluation.score_table import ScoreTable
from hepar.inference.model_folder import ModelFolder
from hepar.runtime.commit import RELEASE

UNKNOWN, NONE, OF_MODEL = "not known", "none", "the model's own"


def scoring_differences(tables: Sequence[ScoreTable]) -> str:
    """What differs in how the tables were scored, or is not known, with the values by table; empty if nothing does.

    A setting that is left to each model differs with the models alone, and masks that were scored without a model have
    no settings.
    """
    predicted = [table for table in tables if ModelFolder.KIND in table.facts]
    values = {
        RELEASE: {table.name: table.facts.get(RELEASE) or UNKNOWN for table in tables},
        **{name: {table.name: _setting(table.facts, name) for table in predicted} for name in Report.SETTINGS},
    }
    return "; ".join(_by_table(name, found) for name, found in values.items() if _differ(found))


def _setting(facts: Mapping[str, str], name: str) -> str:
    if name in facts.get(Report.LEFT_TO_MODEL, "").split():
        return OF_MODEL
    return facts.get(name, UNKNOWN) or NONE


def _differ(values: Mapping[str, str]) -> bool:
    return len(set(values.values())) > 1 or UNKNOWN in values.values()


def _by_table(name: str, values: Mapping[str, str]) -> str:
    """Such as `overlap is 0.5 in a, b and 0.25 in c`."""
    tables: dict[str, list[str]] = {}
    for table, value in values.items():
        tables.setdefault(value, []).append(table)
    return f"{name} is " + " and ".join(f"{value} in {', '.join(names)}" for value, names in tables.items())
