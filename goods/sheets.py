"""CSV files that people open in a spreadsheet, which runs a cell that begins with = + - or @ as a formula.

Titles, ids and class names come from others. Such a cell gets an apostrophe in front, after which a spreadsheet takes
it for text; read_sheet takes it away again. submission.csv and Parquet files are as the tables are.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from goods.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
# Also in their wide forms, which some programs read as the narrow ones; an apostrophe of the cell's own gets another,
# so that none is taken away that was there before.
FORMULA = re.compile(rf"(?!{NUMBER}\Z)'*(?:\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")


def as_sheet(table: pd.DataFrame, exact: Collection[str] = ()) -> pd.DataFrame:
    """The table with no text cell that would be run; columns named in `exact` stay as they are."""
    return table.assign(**{name: table[name].map(_safe) for name in _text_columns(table) if name not in exact})


def write_sheet(path: Path, table: pd.DataFrame, exact: Collection[str] = ()) -> None:
    """Writes a table as CSV for people, whole or not at all; see as_sheet."""
    with atomic_path(path) as temporary:
        as_sheet(table, exact).to_csv(temporary, index=False)


def read_sheet(path: Path, **how: object) -> pd.DataFrame:
    """A table that write_sheet wrote, its cells as they were before; `how` is handed to pandas."""
    import pandas as pd

    table = pd.read_csv(path, **how)
    return table.assign(**{name: table[name].map(_as_it_was) for name in _text_columns(table)})


def _text_columns(table: pd.DataFrame) -> list[str]:
    return list(table.select_dtypes(exclude=["number", "bool"]).columns)


def _safe(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


def _as_it_was(cell: object) -> object:
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and FORMULA.match(cell) else cell
