"""Figures of a training: what their titles find and what stands in them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from drawn import check_drawn, title

from goods.figures.training import learning_curves, rates_and_gradients


def logs(scores):
    rows = [(fold, e, 1 / e, 1.1 / e, f1) for fold, row in enumerate(scores) for e, f1 in enumerate(row, start=1)]
    return pd.DataFrame(rows, columns=["fold", "epoch", "train_loss", "valid_loss", "macro_f1"])


@pytest.mark.parametrize(
    ("scores", "finding"),
    [
        ([[0.5, 0.8, 0.9, 0.912, 0.911]], "Best macro-F1 .912 at epoch 4 of 5"),
        ([[0.5, 0.7], [0.6, 0.5]], "Best macro-F1 .600 to .700 at epochs 1 to 2 of 2 (2 folds)"),
        ([[0.5]] * 12, "Best macro-F1 .500 at epoch 1 of 1 (12 folds)"),
        ([[np.nan]], "No epoch has been logged"),
        ([], "No epoch has been logged"),
    ],
)
def test_learning_curves_find(scores, finding, tmp_path):
    fig = learning_curves(logs(scores))
    assert title(fig) == finding
    check_drawn(fig, tmp_path / "curves.png")
    if not finding.startswith("No"):
        assert [len(ax.lines) for ax in fig.axes] == [2 * len(scores), len(scores)]
    assert title(learning_curves(pd.DataFrame())) == "No epoch has been logged"


def test_learning_curves_are_of_the_metric():
    table = logs([[0.9, 0.4, 0.6]]).rename(columns={"macro_f1": "log_loss"})
    assert title(learning_curves(table, "log_loss")) == "Best log-loss .400 at epoch 2 of 3"


def test_rates_and_gradients_find_the_largest(tmp_path):
    logs = pd.DataFrame(
        {"fold": 0, "epoch": [1, 2, 3], "learning_rate": [1e-3, 5e-4, 0], "gradient_norm": [2.0, 9.5, 1.0]}
    )
    fig = rates_and_gradients(logs)
    assert title(fig) == "Gradients are largest in epoch 2: norm 9.5, at the end 1"
    check_drawn(fig, tmp_path / "f.png")
    assert title(rates_and_gradients(logs.drop(columns="gradient_norm"))) == "No gradients have been logged"
