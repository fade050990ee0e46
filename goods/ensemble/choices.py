"""What validation rows have chosen (an epoch, an interpolation), scored at the choice that the other folds made.

The score at a choice that was made on the very rows that are scored is too high, and a blend that is fitted on such
predictions trusts that member too much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from goods.advice import train_again
from goods.data.tables import Goods
from goods.errors import DamagedFileError, GoodsError
from goods.predictions import frame_logits, logits_frame, main_of, read_choices
from goods.run import Fold, Run
from goods.training.refit import Choices, best_on_average, worth_of_choices


def read_oofs(run: Run, folds: pd.DataFrame, metric: str) -> dict[int, pd.DataFrame]:
    """{fold: oof} of the trained folds, checked; where there was a choice, at the one that the other folds make.

    Raises GoodsError when no fold is trained, DamagedFileError when a fold's predictions don't fit the run's folds.
    """
    done = run.trained()
    if not done:
        raise GoodsError(f"run '{run.name}' has no trained fold yet; run its pipeline, or its notebook with fold 0")
    oofs = {k: run.fold(k).read("oof", folds.loc[folds["fold"] == k, "id"]) for k in done}
    choices = {k: read_fold_choices(run.fold(k), oofs[k]) for k in done}
    labels = {k: oof["label"].to_numpy() for k, oof in oofs.items()}
    for k, choice in chosen_by_others(choices, labels, metric).items():
        oofs[k] = pd.concat([oofs[k][["id", "label", "fold"]], logits_frame(choices[k][choice])], axis=1)
    return oofs


def read_tests(folds: Sequence[Fold], goods: Goods) -> dict[int, pd.DataFrame]:
    """{fold: its predictions of the test set}, checked.

    Raises GoodsError when one has not predicted the test set, DamagedFileError when its predictions don't fit it.
    """
    for fold in folds:
        if not fold.predicted:
            raise GoodsError(f"{fold.title} of run '{fold.run.name}' has not predicted the test set yet: "
                             "gu.predict_test(p, goods), as notebooks/ensemble.ipynb does")  # fmt: skip
    return {fold.number: fold.read("test", goods.test["id"]) for fold in folds}


def read_fold_choices(fold: Fold, oof: pd.DataFrame) -> Choices:
    """The fold's predictions at each choice it had; empty where it had none."""
    if not fold.choices.is_file():
        return {}
    choices = read_choices(fold.choices)
    if any(len(main_of(made)) != len(oof) for made in choices.values()):
        raise DamagedFileError(f"{fold.choices} is of other rows than {fold.oof}; {train_again(fold.choices)}")
    return choices


def chosen_by_others(
    choices: dict[int, Choices], labels: dict[int, np.ndarray], metric: str = "macro_f1"
) -> dict[int, str]:
    """For each fold that had choices, the one with the best mean metric over the other folds; of equals the first.

    With no other fold nothing is chosen: the last epoch, or the tuned weights as they are.
    """
    worth = {k: worth_of_choices(of, labels[k], metric) for k, of in choices.items()}
    found = {}
    for k, own in worth.items():
        others = [{n: v for n, v in worth[j].items() if n in own} for j in worth if j != k and worth[j]]
        if others and (best := best_on_average(others)):
            found[k] = best
        elif own:
            found[k] = next(iter(own)) if "alpha 1" in own else list(own)[-1]
    return found


def as_each_chose(run: Run, oofs: dict[int, pd.DataFrame]) -> np.ndarray | None:
    """(n, num_classes) main logits of the oof rows, fold after fold, at the choice that each fold made on them itself;
    None where no fold had a choice."""
    if not any(run.fold(k).choices.is_file() for k in oofs):
        return None
    return np.concatenate([frame_logits(run.fold(k).read("oof", oof["id"])) for k, oof in oofs.items()])
