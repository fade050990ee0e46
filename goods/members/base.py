"""What kinds share: a fold's part of the goods, its files, folds trained in turn or side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from goods.data.folds import read_folds
from goods.data.tables import Goods, all_products
from goods.machine import used
from goods.members import kind_of, predict
from goods.models.columns import Columns, learn_columns
from goods.params import Params
from goods.processes import in_parallel
from goods.run import Fold, Run
from goods.training.due import finish_fold, to_train, what_makes
from goods.training.rows import training_rows

FEW_PRODUCTS = 500  # a fold of no more is trained before another process, which imports all anew, could begin


@dataclass(frozen=True)
class Part:
    """What one fold learns from and is scored on."""

    products: pd.DataFrame  # all of them, train then test
    rows: np.ndarray  # (n,) rows of `products` to learn from
    labels: np.ndarray  # (n,) their class indices
    valid: np.ndarray  # (m,) rows held back
    folds: pd.DataFrame  # id, label, fold of the training products

    @property
    def learned(self) -> pd.DataFrame:
        """The products to learn from."""
        return self.products.iloc[self.rows]

    def learn_columns(self, p: Params) -> Columns | None:
        """What the fold may learn of further columns."""
        return learn_columns(self.learned, self.products.iloc[: len(self.folds)], p)

    @property
    def held_back(self) -> pd.DataFrame:
        """The products to be scored on."""
        return self.products.iloc[self.valid]

    @property
    def targets(self) -> dict[str, np.ndarray]:
        """The class indices "train" learns from and "valid" is scored on."""
        return {"train": self.labels, "valid": self.folds["label"].to_numpy()[self.valid]}


def part_of(p: Params, goods: Goods, number: int) -> Part:
    """The part of fold `number`."""
    folds = read_folds(goods, p)
    rows, labels = training_rows(p, goods, folds, number)
    return Part(all_products(goods), rows, labels, np.flatnonzero(folds["fold"] == number), folds)


def due_folds(p: Params, goods: Goods, numbers: list[int], code: str) -> list[int]:
    """Those of the folds that are to be trained; says why where a trained one is, or isn't though it might."""
    each = [Run.of(p).fold(number) for number in numbers]
    return [fold.number for fold in each if to_train(fold, p, what_makes(fold, p, goods, code))]


def finish(p: Params, goods: Goods, fold: Fold, code: str, logits: dict[str, np.ndarray], **facts: Any) -> None:
    """Writes a fold's oof.parquet and, last, metrics.json; see goods.training.fold.finish_fold."""
    finish_fold(fold, read_folds(goods, p), logits, facts, what_makes(fold, p, goods, code), p.metric)


def fit_in_turn(p: Params, goods: Goods, numbers: list[int], learn: Callable[[Part], Any]) -> None:
    """Trains those of the folds that are due, one after the other: learn(part) gives the model that the kind saves.

    The kind's own predictor scores it on the rows held back, from its files, so what is scored is what is kept.
    """
    kind = kind_of(p)
    for number in numbers:
        fold = Run.of(p).fold(number)
        with fold.held():
            if due_folds(p, goods, [number], kind.code()):
                began, part = time.perf_counter(), part_of(p, goods, number)
                kind.load().save(learn(part), fold)
                logits = {} if fold.is_refit else predict(p, [fold], part.held_back)[number]
                finish(p, goods, fold, kind.code(), logits, resources=used(time.perf_counter() - began))


def fit_in_parallel(fit_one: Callable[..., None], numbers: list[int], p: Params, goods: Goods, *arguments: Any) -> None:
    """fit_one(number, p, goods, *arguments) of each fold, in as many processes as there are processors."""
    jobs = max(1, min(len(numbers), os.cpu_count() or 1)) if len(goods.train) > FEW_PRODUCTS else 1
    in_parallel(fit_one, [(number, p, goods, *arguments) for number in numbers], jobs)
