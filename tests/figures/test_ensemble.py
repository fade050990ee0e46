"""Figures of the ensemble: what their titles find and what stands in them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from drawn import CLASSES, check_drawn, names, title

from goods.figures.embeddings import embedding_map
from goods.figures.ensemble import (
    acceptance,
    curves,
    method_gains,
    modality_scores,
    prediction_balance,
    reliability,
    sureness,
)


@pytest.mark.parametrize(
    ("scores", "finding"),
    [
        (
            pd.DataFrame({"fused": [0.9, 0.91], "image": [0.7, 0.7], "text": [0.8, 0.89]}, index=[0, "oof"]),
            "Fused leads with macro-F1 .910 (out of fold), ahead of text by .020 and of image by .210",
        ),
        (
            pd.DataFrame({"fused": [0.8, 0.6], "text": [0.9, 0.7], "image": [np.nan] * 2}),
            "Text leads with macro-F1 .800 (mean of 2 folds), ahead of fused by .100",
        ),
        (pd.DataFrame({"fused": [0.5]}, index=[3]), "Fused leads with macro-F1 .500 (fold 3)"),
        (pd.DataFrame(), "There are no scores to compare"),
    ],
)
def test_modality_scores_find(scores, finding, tmp_path):
    fig = modality_scores(scores)
    assert title(fig) == finding
    check_drawn(fig, tmp_path / "scores.png")


def test_prediction_balance_finds_the_largest_shift():
    fig = prediction_balance([0] * 50 + [1] * 40 + [2] * 10, [0] * 8 + [1] * 2, CLASSES[:3])
    finding = "Books shifts most: 50 % of train, 80 % of the test predictions; 1 class never predicted"
    assert title(fig) == finding
    train, test = fig.axes[0].lines
    np.testing.assert_allclose(train.get_xdata(), [0.5, 0.4, 0.1])
    np.testing.assert_allclose(test.get_xdata(), [0.8, 0.2, 0.0])
    assert title(prediction_balance([0, 1], [1, 0], CLASSES[:2])) == "Class shares are those of train"
    fig = prediction_balance([0, 1], [1, 1, 1], CLASSES[:2], what="pseudo-labels")
    assert "of the pseudo-labels" in title(fig)
    assert fig.axes[0].get_xlabel() == "share of products (2 in train, 3 pseudo-labels)"


def guesses(count=400, classes=3, seed=0):
    """Labels, and logits whose probabilities are right on average."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, classes))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.array([rng.choice(classes, p=row) for row in chances]), logits


def test_reliability_tells_honest_from_boastful(tmp_path):
    labels, logits = guesses(4000)
    fig = reliability(labels, {"before": logits * 4, "calibrated": logits})
    legend = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    before, after = (float(text.rpartition("(")[2].rstrip(")")) for text in legend)
    assert after < 0.03 < 0.1 < before
    assert title(fig) == f"The probabilities are {legend[1][-5:-1]} off on average; before: {legend[0][-5:-1]}"
    check_drawn(fig, tmp_path / "f.png")
    assert title(reliability([], {})) == "There are no predictions to judge"


def test_curves_name_the_class_found_worst(tmp_path):
    labels, logits = guesses()
    logits[:, 2] = np.random.default_rng(1).normal(size=400)  # nothing is known of it
    fig = curves(labels, logits, CLASSES[:3])
    assert "Beauty" in title(fig) or CLASSES[2] in title(fig)
    legend = [text.get_text().rpartition(" (")[0] for text in fig.axes[1].get_legend().get_texts()]
    assert legend[0] == "micro" and legend[-1] == "macro" and set(CLASSES[:3]) <= set(legend)
    check_drawn(fig, tmp_path / "f.png")
    assert title(curves([1, 1], np.zeros((2, 3)), CLASSES[:3])) == "There are fewer than two classes to tell apart"


def test_method_gains_say_what_is_noise(tmp_path):
    rows = {
        "mean": (-0.02, -0.03, -0.01, 0.78),
        "weights": (0.001, -0.01, 0.012, 0.8),
        "chosen": (0.02, 0.01, 0.03, 0.82),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["gain", "gain_low", "gain_high", "macro_f1"])
    fig = method_gains(table)
    assert title(fig) == "Together macro-F1 .820: it gains 2.0 points over the best member (1.0 to 3.0)"
    assert names(fig.axes[0]) == ["mean (.780)", "weights (.800)", "chosen (.820)"]
    check_drawn(fig, tmp_path / "f.png")
    assert "is not above the best member beyond noise" in title(method_gains(table.iloc[:2]))


def test_less_leads_and_gains_where_less_is_better():
    scores = pd.DataFrame({"fused": [0.8], "image": [1.1]}, index=["oof"])
    assert title(modality_scores(scores, "log_loss")) == (
        "Fused leads with log-loss .800 (out of fold), ahead of image by .300"
    )
    rows = {"mean": (-0.02, -0.03, 0.01, 0.6), "chosen": (0.02, 0.01, 0.03, 0.5)}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["gain", "gain_low", "gain_high", "log_loss"])
    fig = method_gains(table, "log_loss")
    assert title(fig) == "Together log-loss .500: it gains 2.0 points over the best member (1.0 to 3.0)"
    assert fig.axes[0].get_xlabel() == "points of log-loss below the best member, 95 % interval"
    assert "is not below the best member beyond noise" in title(method_gains(table.iloc[:1], "log_loss"))


def test_the_map_says_how_pure_neighbourhoods_are():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    apart = rng.normal(size=(40, 2)) + 100 * labels[:, None]
    title = embedding_map(apart, labels, ["a", "b"]).get_suptitle()
    assert title.startswith("100 % of the products lie next to one of their own class")
    mixed = embedding_map(rng.normal(size=(40, 2)), rng.integers(2, size=40), ["a", "b"]).get_suptitle()
    assert not mixed.startswith("100 %")
    assert embedding_map(apart[:1], labels[:1], ["a", "b"]).get_suptitle().startswith("There are too few")


def test_acceptance_finds_what_needs_no_look(tmp_path):
    share = np.linspace(0.01, 1, 100)
    curve = pd.DataFrame({"share": share, "precision": 1 - share / 5, "low": 0.98 - share / 5})
    rows = {0.9: (0.5, 0.91, 0.6), 0.95: (0.25, 0.96, 0.8), 0.98: (0.2, 0.97, np.nan), 0.99: (0.0, np.nan, np.nan)}
    chosen = pd.DataFrame.from_dict(rows, orient="index", columns=["share", "precision", "threshold"])
    fig = acceptance(curve, chosen)
    assert title(fig) == "At a wanted precision of 95 %, 25 % need no look, and 96 % of them are right out of fold"
    assert [text.get_text() for text in fig.axes[0].texts] == ["95 %", "90 %"]
    check_drawn(fig, tmp_path / "acceptance.png")
    near = pd.DataFrame({"share": [0.99, 0.98, 0.9], "precision": [0.962, 0.968, 0.991]}, index=[0.9, 0.95, 0.98])
    near["threshold"] = 0.5
    assert [text.get_text() for text in acceptance(curve, near).axes[0].texts] == ["98 %", "90, 95 %"]
    assert title(acceptance(curve, chosen.tail(1))) == "All accepted, 80 % are right; too few to promise more"
    assert title(acceptance(curve.head(0), chosen)) == "There are no predictions to accept"


def test_sureness_compares_new_products_with_the_known(tmp_path):
    fig = sureness(np.array([0.3, 0.5, 0.95]), np.array([0.7, 0.8, 0.9]), 0.9)
    assert title(fig) == "On new products it is less sure than out of fold; 33 % are accepted"
    check_drawn(fig, tmp_path / "sureness.png")
    assert title(sureness(np.array([0.8]), np.array([0.8]), 2.0)).endswith(
        "it is as sure as out of fold; 0 % are accepted"
    )
    assert title(sureness(np.array([]), np.array([0.8]), 0.9)) == "There are no predictions to compare"
