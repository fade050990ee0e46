"""Columns beside texts and photos that models may learn from: categories such as a brand, numbers such as a price.

What is looked at here needs no label: whether the tables have something in them that can be learned at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from goods.contradictions import OWN_COLUMNS
from goods.data.numbers import decimal_sign, read_numbers
from goods.data.texts import clean_text
from goods.errors import listing
from goods.params import Params

OURS = ("id", "label", *OWN_COLUMNS)  # what checked tables call their own columns


def further_columns(p: Params) -> list[str]:
    """The names of the columns, each once."""
    return list(dict.fromkeys((*p.category_columns, *p.number_columns)))


def category_values(cells: Sequence[str]) -> list[str]:
    """Values as they are compared: cleaned, without regard to capitals; "" for none."""
    known = {cell: clean_text(cell).casefold() for cell in dict.fromkeys(cells)}
    return [known[cell] for cell in cells]


def further_problems(train: pd.DataFrame, p: Params) -> list[str]:
    """What is wrong with the columns in the training table, a sentence each; those that aren't there are said already.

    One that is empty or the same everywhere would teach nothing, and most likely is another than was meant.
    """
    problems = []
    for parameter in ("category_columns", "number_columns"):
        for name in getattr(p, parameter):
            if name in (p.label_column, p.id_column):
                what = "what is to be predicted" if name == p.label_column else "the products' id"
                problems.append(f"{parameter} names {name}, which is {what}; leave it out")
            elif name in OURS:
                problems.append(f"{parameter} names {name}, as checked tables call a column of their own; rename it in "
                                "both tables")  # fmt: skip
            elif name in train and (why := _WHY[parameter](train[name].tolist())):
                problems.append(f"{p.train_csv}: {name} {why}; leave it out of {parameter}")
    return problems


def _why_no_category(cells: list[str]) -> str:
    """Why a column can't be learned from as categories; "" where it can."""
    values = category_values(cells)
    counts = pd.Series(values).value_counts()
    if len(counts) == 1:
        return "is empty" if values[0] == "" else f"is the same in all rows ({cells[0]})"
    if counts.drop("", errors="ignore").max() == 1:
        return f"has no value that stands in two rows ({listing(cells, 3)})"
    return ""


def _why_no_number(cells: list[str]) -> str:
    """Why a column can't be learned from as numbers; "" where it can."""
    values, unread = read_numbers(cells, decimal_sign(cells))
    known = values[np.isfinite(values)]
    if not len(known):
        some = listing(list(dict.fromkeys(unread)), 3)
        return f"has no cell that is a number (such as {some})" if unread else "is empty"
    if known.min() == known.max() and len(known) == len(values):
        return f"is the same in all rows ({cells[0]})"
    return ""


_WHY = {"category_columns": _why_no_category, "number_columns": _why_no_number}


def further_warnings(tables: Mapping[str, pd.DataFrame], p: Params) -> list[str]:
    """What of the columns can't be used and is taken as missing, counted, a sentence each."""
    warnings, train = [], tables["train"]
    for name in p.number_columns:
        decimal = decimal_sign(train[name].tolist())
        for part, table in tables.items():
            values, unread = read_numbers(table[name].tolist(), decimal)
            if unread:
                warnings.append(f"{name}: {len(unread)} cells of {part} are no number, or may be two, and count as "
                                f"missing ({listing(list(dict.fromkeys(unread)))})")  # fmt: skip
            if len(table) and not np.isfinite(values).any():
                warnings.append(f"{name}: {part} has no number, and the training table has")
    for name in p.category_columns:
        known = set(category_values(train[name].tolist()))
        for part, table in tables.items():
            values = [value for value in category_values(table[name].tolist()) if value]
            unseen = sum(value not in known for value in values)
            if not values or 2 * unseen > len(values):
                said = f"{unseen} of {len(values)} values of {part} aren't in the training table" if values else (
                    f"{part} has no value, and the training table has")  # fmt: skip
                warnings.append(f"{name}: {said}")
    return warnings
