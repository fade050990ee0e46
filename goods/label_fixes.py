"""labels_fixed.csv: what a person has decided of labels in doubt, a row per product, by review.ipynb or by hand.

id; given, the table's label at that time; decision; label, the new one where it is changed; when. Further columns are
passed over. Light on purpose (pandas only where a table is read), since a run is known by what it has learned of it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from goods.errors import GoodsError, listing
from goods.files import resolve
from goods.sheets import read_sheet, write_sheet

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["id", "given", "decision", "label", "when"]
NEEDED = COLUMNS[:4]
TOUCHING = ("change", "drop")  # what a run learns otherwise by
DECISIONS = ("keep", *TOUCHING, "skip")
MADE_BY = "notebooks/review.ipynb makes it, and a run that has learned from one keeps it as label_fixes.csv"


def read_fix_table(path: Path) -> pd.DataFrame:
    """COLUMNS as text, without spaces around all but ids, decisions in lower case; without rows that say nothing.

    Raises GoodsError where there is no such file or it isn't such a table.
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            header = lines.readline()
        how = {"sep": max(",;\t", key=header.count), "encoding": "utf-8-sig"}  # a spreadsheet's own may be ; or tab
        table = read_sheet(path, dtype=str, keep_default_na=False, index_col=False, **how)
    except FileNotFoundError:
        raise GoodsError(f"there is no {path}; {MADE_BY}") from None
    except (OSError, ValueError) as error:
        raise GoodsError(f"{path} can't be read as a table ({error}); {MADE_BY}") from None
    if lacking := [name for name in NEEDED if name not in table]:
        raise GoodsError(f"{path} lacks {listing(lacking)}; it has {listing(list(table.columns))}. {MADE_BY}")
    table = table.reindex(columns=COLUMNS, fill_value="").fillna("")
    table[COLUMNS[1:]] = table[COLUMNS[1:]].apply(lambda cells: cells.str.strip())  # an id is as it is
    table["decision"] = table["decision"].str.lower()
    blank = (table["decision"] == "") & (table["label"] == "")
    return table[~blank].reset_index(drop=True)


def write_fix_table(path: Path, table: pd.DataFrame) -> None:
    """Writes COLUMNS, and what else the table has, whole or not at all, and so that a spreadsheet runs none of it."""
    write_sheet(path, table[[*COLUMNS, *(name for name in table.columns if name not in COLUMNS)]])


def fixes_stamp(label_fixes: str | None) -> str | None:
    """A hash of the labels that are changed and the rows that are dropped; None where there is no file to read."""
    if not label_fixes:
        return None
    table = read_fix_table(resolve(label_fixes))
    rows = table.loc[table["decision"].isin(TOUCHING), ["id", "decision", "label"]].sort_values("id")
    return hashlib.sha256(json.dumps(rows.to_numpy().tolist()).encode()).hexdigest()[:16]
