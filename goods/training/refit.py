"""The model that learns from all rows: it holds none back to choose by, so the folds say where it stops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from goods.errors import GoodsError
from goods.metrics import METRICS
from goods.predictions import main_of, read_choices
from goods.run import Run

Choices = dict[str, dict[str, np.ndarray]]  # {"epoch 3": {output: (n, num_classes) logits}}


def suggested_choice(run: Run, metric: str) -> str:
    """The choice ("epoch 7", "alpha 0.5") with the best mean metric over all trained folds; empty where they had none.

    Raises GoodsError when no fold is trained, or the folds share no choice.
    """
    if not run.trained():
        raise GoodsError(f"run '{run.name}' has no trained fold yet, and a refit goes by what the folds suggest; train "
                         "the folds first")  # fmt: skip
    worth = []
    for fold in map(run.fold, run.trained()):
        if fold.choices.is_file():
            labels = fold.read("oof")["label"].to_numpy()
            worth.append(worth_of_choices(read_choices(fold.choices), labels, metric))
    if not worth:
        return ""
    if not (best := best_on_average(worth)):
        raise GoodsError(f"the folds of run '{run.name}' share no epoch: they stopped too early; leave out "
                         "early_stopping")  # fmt: skip
    return best


def worth_of_choices(choices: Choices, labels: np.ndarray, metric: str) -> dict[str, float]:
    """What each choice is worth by the metric: the higher the better."""
    return {name: METRICS[metric].worth(labels, main_of(made)) for name, made in choices.items()}


def best_on_average(worth: Sequence[dict[str, float]]) -> str:
    """Of the choices that all folds had, the one of the highest mean worth; of equals the first. Empty without any."""
    shared = [name for name in worth[0] if all(name in other for other in worth)]
    return max(shared, key=lambda name: np.mean([each[name] for each in worth]), default="")
