"""CSV for spreadsheets: a text that a spreadsheet would run as a formula gets an apostrophe before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
MARK = "'"


def inert_cell(text: str) -> str:
    """The text as a cell that no spreadsheet runs; `original_text` inverts it."""
    return MARK + text if text.lstrip(MARK).startswith(FORMULA_STARTS) else text


def original_text(cell: str) -> str:
    """The text of a cell that `inert_cell` made."""
    return cell[1:] if cell.startswith(MARK) and cell.lstrip(MARK).startswith(FORMULA_STARTS) else cell


def frame_to_csv(frame: pd.DataFrame) -> str:
    """A table as CSV, its texts as inert cells; numbers stay as they are and missing ones are empty."""
    return _map_texts(frame, inert_cell).to_csv(index=False)


def frame_from_csv(csv: str, texts: Sequence[str]) -> pd.DataFrame:
    """A table that `frame_to_csv` made. Every cell of the columns `texts` is a text, also `NA` and an empty one.

    In all other columns an empty cell is missing.
    """
    import pandas as pd

    columns = pd.read_csv(StringIO(csv), nrows=0).columns
    numbers = {name: [""] for name in columns if name not in texts}
    kinds = {name: str for name in texts if name in columns}
    frame = pd.read_csv(StringIO(csv), dtype=kinds, keep_default_na=False, na_values=numbers)
    return _map_texts(frame, original_text)


def _map_texts(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with every text changed; all other cells and their types stay as they are."""
    import pandas as pd

    changed = {}
    for name in frame.columns:
        if any(isinstance(cell, str) for cell in frame[name]):
            cells = [change(cell) if isinstance(cell, str) else cell for cell in frame[name]]
            changed[name] = pd.Series(cells, frame.index, frame[name].dtype)
    return frame.assign(**changed)
