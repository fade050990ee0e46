"""Further columns as features: categories one-hot, numbers scaled. What that takes is learned from training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goods.data.further import category_values
from goods.data.numbers import decimal_sign, read_numbers
from goods.errors import DamagedFileError
from goods.files import read_json, write_json
from goods.params import Params

MIN_PRODUCTS = 3  # of a fold's, that a value needs for a feature of its own
MOST_VALUES = 100  # of a column with a feature of their own, the most frequent ones
CLIP = 5.0  # in robust deviations: one price of a million must not swamp the others


@dataclass(frozen=True)
class Category:
    """A column of categories: a feature for each of the values in `own`, and one for all of those that are `rare`.

    A value that wasn't seen, and an empty cell, have none. width: features, those that this fold leaves idle included.
    """

    name: str
    own: tuple[str, ...]
    rare: tuple[str, ...]
    width: int

    def features(self, cells: Sequence[str]) -> np.ndarray:
        """(n, width) of a column's cells."""
        place = dict.fromkeys(self.rare, self.width - 1) | {value: k for k, value in enumerate(self.own)}
        places = [place.get(value, -1) for value in category_values(cells)]
        return (np.array(places)[:, None] == np.arange(self.width)).astype(np.float32)


@dataclass(frozen=True)
class Number:
    """A column of numbers: its deviation from the median in units of `scale`, and whether it is missing.

    A missing one is the median. What was the same in all rows learned from is 0: a scale of 0, none of them missing.
    """

    name: str
    decimal: str
    median: float
    scale: float
    marks_missing: bool
    width: int = 2

    def features(self, cells: Sequence[str]) -> np.ndarray:
        """(n, 2) of a column's cells."""
        values, _ = read_numbers(cells, self.decimal)
        missing = ~np.isfinite(values)
        deviation = np.where(missing, 0.0, values - self.median)
        scaled = np.clip(deviation / self.scale, -CLIP, CLIP) if self.scale else np.zeros(len(values))
        return np.stack([scaled, missing & self.marks_missing], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Columns:
    """The further columns of one fold, as it has learned them without a label."""

    parts: tuple[Category | Number, ...]

    @property
    def width(self) -> int:
        """How many features there are; the same for all folds."""
        return sum(part.width for part in self.parts)

    def features(self, table: pd.DataFrame) -> np.ndarray:
        """(n, width) in fp32 of a table's products, all columns side by side."""
        return np.concatenate([part.features(table[part.name].tolist()) for part in self.parts], axis=1)


def learn_columns(learned: pd.DataFrame, train: pd.DataFrame, p: Params) -> Columns | None:
    """p.category_columns and p.number_columns as the rows that a fold learns from have them; None without any.

    `train`, the whole training table, says only how many features there are, so that folds are alike.
    """
    parts = [_category(name, learned[name].tolist(), train[name].tolist()) for name in p.category_columns]
    parts += [_number(name, learned[name].tolist()) for name in p.number_columns]
    return Columns(tuple(parts)) if parts else None


def _category(name: str, cells: Sequence[str], of_all: Sequence[str]) -> Category:
    counts, whole = (Counter(value for value in category_values(of) if value) for of in (cells, of_all))
    room = min(MOST_VALUES, sum(count >= MIN_PRODUCTS for count in whole.values()))
    order = sorted((value for value, count in counts.items() if count >= MIN_PRODUCTS),
                   key=lambda value: (-counts[value], value))  # fmt: skip
    own = tuple(order[:room])
    return Category(name, own, tuple(sorted(counts.keys() - set(own))), room + 1)


def _number(name: str, cells: Sequence[str]) -> Number:
    decimal = decimal_sign(cells)
    values, _ = read_numbers(cells, decimal)
    known = values[np.isfinite(values)]
    if not len(known):
        return Number(name, decimal, 0.0, 0.0, marks_missing=False)
    low, median, high = np.percentile(known, [25, 50, 75])
    scale = (high - low) / 1.349 or known.std()  # as the deviation of a normal distribution
    return Number(name, decimal, float(median), float(scale), marks_missing=len(known) < len(values))


# As part of a fold's model.json --------------------------------------------------------------------------------------


def as_json(columns: Columns | None) -> dict[str, Any]:
    """{"columns": ...} to be written; {} without any."""
    return {"columns": [asdict(part) for part in columns.parts]} if columns else {}


def of_json(facts: dict[str, Any]) -> Columns | None:
    """What as_json gave; raises KeyError or TypeError for anything else."""
    if "columns" not in facts:
        return None
    return Columns(tuple(
        Category(**part | {"own": tuple(part["own"]), "rare": tuple(part["rare"])}) if "own" in part else Number(**part)
        for part in facts["columns"]
    ))  # fmt: skip


def save_columns(columns: Columns | None, path: Path) -> None:
    """Keeps what a fold has learned of the columns; nothing without any."""
    if columns:
        write_json(path, as_json(columns))


def load_columns(path: Path, p: Params) -> Columns | None:
    """What save_columns kept, None without any; raises DamagedFileError when it isn't that."""
    if not (p.category_columns or p.number_columns):
        return None
    again = "train the fold again: retrain=true"
    try:
        found = of_json(read_json(path, again))
    except (KeyError, TypeError):
        found = None
    if found is None:
        raise DamagedFileError(f"{path} is missing or damaged; {again}")
    return found
