"""What kinds share: a fold's part of the goods, its files, folds trained in turn or side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from goods.data.folds import read_folds
from goods.data.tables import Goods, all_products
from goods.members import kind_of
from goods.metrics import score
from goods.params import Params
from goods.predictions import write_predictions
from goods.processes import in_parallel
from goods.run import Run
from goods.training.fold import to_train
from goods.training.rows import rows_hash, training_rows

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

    @property
    def held_back(self) -> pd.DataFrame:
        """The products to be scored on."""
        return self.products.iloc[self.valid]


def part_of(p: Params, goods: Goods, number: int) -> Part:
    """The part of fold `number`."""
    folds = read_folds(goods, p)
    rows, labels = training_rows(p, goods, folds, number)
    return Part(all_products(goods), rows, labels, np.flatnonzero(folds["fold"] == number), folds)


def made_from(p: Params, goods: Goods, number: int, code: str) -> dict[str, str]:
    """What a fold that is trained now comes from."""
    return {"rows": rows_hash(p, goods, read_folds(goods, p), number), "code": code}


def due_folds(p: Params, goods: Goods, numbers: list[int], code: str) -> list[int]:
    """Those of the folds that are to be trained; says why where a trained one is, or isn't though it might."""
    run = Run.of(p)
    return [k for k in numbers if to_train(run.fold(k), p, made_from(p, goods, k, code))]


def finish_fold(p: Params, goods: Goods, number: int, code: str, logits: dict[str, np.ndarray], **facts: Any) -> None:
    """Writes a fold's oof.parquet and, last, metrics.json; its weights are there already.

    logits: {output: (rows held back, num_classes)}; facts go into metrics.json beside the scores.
    """
    fold, folds = Run.of(p).fold(number), read_folds(goods, p)
    held_back = folds[folds["fold"] == number]
    write_predictions(fold.oof, held_back, logits)
    metrics = {name: score(held_back["label"].to_numpy(), values) for name, values in logits.items()}
    fold.finish(metrics | {"fold": number} | facts, made_from(p, goods, number, code))


def fit_in_turn(p: Params, goods: Goods, numbers: list[int], learn: Callable[[Part], Any]) -> None:
    """Trains those of the folds that are due, one after the other: learn(part) gives the model that the kind saves.

    The kind's own predict scores it on the rows held back, from its files, so what is scored is what is kept.
    """
    kind = kind_of(p)
    for number in numbers:
        fold = Run.of(p).fold(number)
        with fold.held():
            if due_folds(p, goods, [number], kind.code()):
                part, member = part_of(p, goods, number), kind.load()
                member.save(learn(part), fold)
                finish_fold(p, goods, number, kind.code(), member.predict(p, [fold], part.held_back)[number])


def side_by_side(fit_one: Callable[..., None], numbers: list[int], p: Params, goods: Goods, *arguments: Any) -> None:
    """fit_one(number, p, goods, *arguments) of each fold, in as many processes as there are processors."""
    jobs = max(1, min(len(numbers), os.cpu_count() or 1)) if len(goods.train) > FEW_PRODUCTS else 1
    in_parallel(fit_one, [(number, p, goods, *arguments) for number in numbers], jobs)
