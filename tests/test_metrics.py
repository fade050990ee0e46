"""Scores, calibration and gains, against scikit-learn and pencil and paper."""

from __future__ import annotations

import time
from typing import get_args

import numpy as np
import pytest
import torch
from members_drawn import problem
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss

from goods.metric_names import SHOWN_AS, MetricName
from goods.metrics import (
    METRICS,
    RESAMPLES,
    calibration_error,
    fit_temperature,
    interval,
    paired_gain,
    resampled,
    score,
)


def test_a_temperature_lessens_the_log_loss_and_keeps_the_order():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 5))
    labels = np.array([rng.choice(5, p=row) for row in np.exp(log_softmax(logits, axis=1))])
    assert fit_temperature(logits * 7, labels) == pytest.approx(7, rel=0.25)
    assert fit_temperature(logits / 7, labels) == pytest.approx(1 / 7, rel=0.25)


def test_a_gain_has_its_noise():
    labels, members = problem()
    blended = np.tensordot([1, 1, 0], members, 1)
    gain, low, high = paired_gain(labels, blended, members[0])
    assert low < gain < high and low > 0
    gain, low, high = paired_gain(labels, members[0], members[1])
    assert low < 0 < high


def test_the_calibration_error_is_the_gap_of_confidence_and_accuracy():
    _, members = problem(n=20_000)
    rng = np.random.default_rng(1)
    drawn = np.array([rng.choice(5, p=row) for row in np.exp(members[0])])
    assert calibration_error(drawn, members[0]) < 0.02
    assert calibration_error(drawn, members[0] * 4) > 0.1
    sure = np.full((10, 2), [10.0, -10.0])
    assert calibration_error(np.repeat([0, 1], 5), sure) == pytest.approx(0.5, abs=1e-6)


def test_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 5, 300), rng.normal(size=(300, 6)) * 3  # class 5 is predicted, and never occurs
    logits[np.arange(300), labels] += 3
    found, predictions = score(labels, logits), logits.argmax(1)
    probabilities = torch.softmax(torch.from_numpy(logits), 1).numpy()
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert found["weighted_f1"] == pytest.approx(f1_score(labels, predictions, average="weighted"))
    assert found["log_loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(6)))
    assert len(set(found.values())) == 4 and 5 in predictions


def test_scores_of_logits_beyond_exp() -> None:
    found = score(np.array([0, 1]), np.array([[5000.0, 0.0], [5000.0, 0.0]]))
    third = pytest.approx(1 / 3)
    assert found == {"accuracy": 0.5, "macro_f1": third, "weighted_f1": third, "log_loss": 2500.0}


def test_a_lower_log_loss_is_a_gain() -> None:
    labels, sure = np.array([0, 1] * 50), np.log([[0.8, 0.2], [0.2, 0.8]] * 50)
    unsure = np.log([[0.6, 0.4], [0.4, 0.6]] * 50)
    gain, low, high = paired_gain(labels, sure, unsure, "log_loss")
    assert gain == pytest.approx(np.log(0.8 / 0.6)) and 0 < low <= high
    assert paired_gain(labels, sure, unsure, "macro_f1") == (0, 0, 0)


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_better_is_worth_more(metric: str) -> None:
    labels, members = problem()
    assert METRICS[metric].worth(labels, members[0]) > METRICS[metric].worth(labels, members[2])
    assert METRICS[metric].worth_mixed(labels, 7 * np.exp(members[0])) == pytest.approx(
        METRICS[metric].worth(labels, members[0])
    )


def test_every_metric_that_can_be_chosen_can_be_computed() -> None:
    assert set(METRICS) == set(SHOWN_AS) == set(get_args(MetricName))


def test_the_metric_is_the_first_of_the_scores() -> None:
    labels, members = problem()
    assert list(score(labels, members[0], "log_loss")) == ["log_loss", "macro_f1", "accuracy", "weighted_f1"]


def test_the_interval_of_a_score_holds_it_and_narrows_with_the_rows():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=4000)
    logits = 1.5 * np.eye(5)[labels] + rng.normal(size=(4000, 5))
    few, many = (interval(labels[:n], logits[:n], "accuracy") for n in (100, 4000))
    assert many[0] == METRICS["accuracy"].of(labels, logits)
    assert all(low < value < high for value, low, high in (few, many))
    spread = np.sqrt(many[0] * (1 - many[0]) / 4000)  # of a share
    assert many[2] - many[1] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert few[2] - few[1] > 4 * (many[2] - many[1])


@pytest.mark.parametrize("n", [300, 6000])  # few rows a group, and many
def test_resamples_draw_each_row_as_often_and_two_predictions_together(n: int):
    labels, members = problem(n=n)
    ours, theirs = members[0].argmax(1), members[1].argmax(1)
    (right, given, said), (_, same, other) = resampled(labels, ours, theirs)
    assert right.shape == given.shape == (RESAMPLES, 5) and same is given
    assert (given.sum(1) == n).all() and (said.sum(1) == n).all() and (other.sum(1) == n).all()
    hits = np.bincount(labels[ours == labels], minlength=5)
    assert right.mean(0) == pytest.approx(hits, rel=0.03)
    np.testing.assert_allclose(right.std(0), np.sqrt(hits * (1 - hits / n)), rtol=0.2)  # binomial
    assert paired_gain(labels, members[0], members[0]) == (0, 0, 0)


@pytest.mark.parametrize("metric", ["macro_f1", "weighted_f1", "accuracy"])
def test_a_gain_has_the_interval_that_rows_drawn_one_by_one_give(metric: str):
    labels, members = problem(n=2000)
    by, ours, theirs = METRICS[metric], members[0].argmax(1), members[2].argmax(1)
    rng = np.random.default_rng(1)
    drawn = [rng.integers(2000, size=2000) for _ in range(600)]
    gains = [by.over(labels[rows], ours[rows]) - by.over(labels[rows], theirs[rows]) for rows in drawn]
    low, high = np.percentile(gains, [2.5, 97.5])
    found = paired_gain(labels, members[0], members[2], metric)
    assert found == pytest.approx((by.over(labels, ours) - by.over(labels, theirs), low, high), abs=0.006)


def test_the_interval_of_fifty_thousand_rows_is_quick():
    rng = np.random.default_rng(0)
    labels = rng.integers(21, size=50_000)
    near = rng.normal(size=(21, 21)) + 4 * np.eye(21)  # some classes are alike
    ours, theirs = (near[labels] + rng.normal(size=(50_000, 21)) for _ in range(2))
    began = time.process_time()
    paired_gain(labels, ours, theirs)
    assert time.process_time() - began < 0.3  # 0.6 s where each resample counts all rows anew
