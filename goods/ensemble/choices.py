"""What validation rows have chosen (an epoch, an interpolation), scored at the choice that the other folds made.

The score at a choice that was made on the very rows that are scored is too high, and a blend that is fitted on such
predictions trusts that member too much.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from goods.data.tables import Goods
from goods.errors import DamagedFileError, GoodsError
from goods.metrics import METRICS
from goods.predictions import frame_logits, logits_frame, main_of, read_choices
from goods.run import Fold, Run

Choices = dict[str, dict[str, np.ndarray]]  # {"epoch 3": {output: (n, num_classes) logits}}


def read_folds_parts(
    run: Run, folds: pd.DataFrame, goods: Goods, metric: str
) -> dict[int, tuple[pd.DataFrame, pd.DataFrame]]:
    """{fold: (oof, test)} of the trained folds, checked; oof at the choice that the other folds make by the metric, if
    there is one.

    Raises GoodsError when no fold is trained or one has not predicted the test set, DamagedFileError when a fold's
    predictions don't fit the run's folds or the test set.
    """
    done = run.trained()
    if not done:
        raise GoodsError(f"run '{run.name}' has no trained fold yet; run notebooks/train.ipynb with fold 0 first")
    parts = {k: read_fold(run.fold(k), folds, goods) for k in done}
    choices = {k: read_fold_choices(run.fold(k), parts[k][0]) for k in done}
    labels = {k: oof["label"].to_numpy() for k, (oof, _) in parts.items()}
    for k, choice in chosen_by_others(choices, labels, metric).items():
        oof, test = parts[k]
        parts[k] = pd.concat([oof[["id", "label", "fold"]], logits_frame(choices[k][choice])], axis=1), test
    return parts


def read_fold(fold: Fold, folds: pd.DataFrame, goods: Goods) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A fold's oof and test tables as it left them, checked against the rows that they must hold."""
    if not fold.predicted:
        raise GoodsError(f"fold {fold.number} of run '{fold.run.name}' has not predicted the test set yet: "
                         "gu.predict_test(p, goods), as notebooks/ensemble.ipynb does")  # fmt: skip
    held_back = folds.loc[folds["fold"] == fold.number, "id"]
    return fold.read("oof", held_back), fold.read("test", goods.test["id"])


def read_fold_choices(fold: Fold, oof: pd.DataFrame) -> Choices:
    """The fold's predictions at each choice it had; empty where it had none."""
    if not fold.choices.is_file():
        return {}
    choices = read_choices(fold.choices)
    if any(len(main_of(made)) != len(oof) for made in choices.values()):
        raise DamagedFileError(f"{fold.choices} is of other rows than {fold.oof}; train the fold again: retrain=true")
    return choices


def chosen_by_others(
    choices: dict[int, Choices], labels: dict[int, np.ndarray], metric: str = "macro_f1"
) -> dict[int, str]:
    """For each fold that had choices, the one with the best mean metric over the other folds; of equals the first.

    With no other fold nothing is chosen: the last epoch, or the tuned weights as they are.
    """
    worth = {k: {name: METRICS[metric].worth(labels[k], main_of(made)) for name, made in of.items()}
             for k, of in choices.items()}  # fmt: skip
    found = {}
    for k, own in worth.items():
        others = [worth[j] for j in worth if j != k and worth[j]]
        shared = [name for name in own if all(name in other for other in others)]
        if others and shared:
            found[k] = max(shared, key=lambda name: np.mean([other[name] for other in others]))
        elif own:
            found[k] = next(iter(own)) if "alpha 1" in own else list(own)[-1]
    return found


def as_each_chose(run: Run, parts: dict[int, tuple[pd.DataFrame, pd.DataFrame]]) -> np.ndarray | None:
    """(n, num_classes) main logits of the oof rows, fold after fold, at the choice that each fold made on them itself;
    None where no fold had a choice."""
    if not any(run.fold(k).choices.is_file() for k in parts):
        return None
    return np.concatenate([frame_logits(run.fold(k).read("oof", oof["id"])) for k, (oof, _) in parts.items()])
