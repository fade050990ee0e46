"""What may be accepted: as sure as what was right often enough out of fold, and honestly said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax
from scipy.stats import binom

from goods.accept import NEVER, Acceptance, acceptance_curve, acceptance_table, fit_acceptance, fit_threshold
from goods.accept import precision_bound as bound
from goods.errors import GoodsError
from goods.predictions import logits_frame


def drawn(rows: int = 3000, seed: int = 0, sharp: float = 3.0) -> pd.DataFrame:
    """Out-of-fold predictions of 4 classes whose probabilities can be believed, in 5 folds."""
    rng = np.random.default_rng(seed)
    logits = log_softmax(sharp * rng.normal(size=(rows, 4)), axis=1)
    labels = (rng.random((rows, 1)) > np.exp(logits).cumsum(1)).sum(1)
    head = pd.DataFrame({"id": np.arange(rows).astype(str), "label": labels, "fold": np.arange(rows) % 5})
    return pd.concat([head, logits_frame({"fused": logits})], axis=1)


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    low = float(bound(np.array([57]), np.array([60]))[0])
    assert binom.sf(56, 60, low) == pytest.approx(0.05)
    assert bound(np.array([0, 59, 1]), np.array([9, 59, 1])).round(4).tolist() == [0.0, 0.9505, 0.05]


def test_a_threshold_keeps_the_largest_share_that_is_right_often_enough() -> None:
    labels = np.zeros(300, dtype=int)
    sure = np.repeat([0.9, 0.8, 0.7], 100)  # 100 right, 100 right, 50 right
    logits = np.log(np.stack([sure, 1 - sure], axis=1))
    logits[250:] = logits[250:, ::-1]
    curve = acceptance_curve(labels, logits)
    assert curve["share"].round(3).tolist() == [0.333, 0.667, 1.0]
    assert curve["precision"].round(3).tolist() == [1.0, 1.0, 0.833]
    assert fit_threshold(curve, 0.95) == pytest.approx(0.8)
    assert fit_threshold(curve, 0.75) == pytest.approx(0.7)
    assert fit_threshold(curve, 0.999) == NEVER


def test_what_is_accepted_is_right_as_often_as_wanted() -> None:
    held = []
    for seed in range(12):
        found = fit_acceptance(drawn(seed=seed), 0.95)
        assert 0.2 < found.share < 0.9 and found.rows == 3000
        held.append(found.precision)
    assert np.mean(held) >= 0.95 and min(held) >= 0.94


def test_the_score_is_from_thresholds_that_never_saw_the_fold() -> None:
    oof = drawn()
    lies = oof.assign(label=np.where(oof["fold"] == 0, (oof["label"] + 1) % 4, oof["label"]))
    honest, others = fit_acceptance(lies, 0.9), fit_acceptance(oof[oof["fold"] > 0], 0.9)
    assert honest.threshold == NEVER or honest.threshold > others.threshold
    assert honest.precision < 0.9  # fold 0 is accepted by what the others have learned, and is wrong


def test_too_few_rows_accept_nothing_and_say_so() -> None:
    found = fit_acceptance(drawn(rows=40), 0.99)
    assert (found.threshold, found.share) == (NEVER, 0.0) and np.isnan(found.precision)
    assert found.sentence() == ("nothing is accepted: of 40 out-of-fold products no threshold leaves enough to tell "
                                "that 99 % are right")  # fmt: skip
    said = Acceptance(0.95, 0.8125, 0.5, 0.962, 480).sentence()
    assert said == ("accepted from a probability of .812 on, so that 95 % are right: out of fold, each fold under "
                    "the other folds' threshold, 50 % of 480 products were, and 96.2 % of them were right")  # fmt: skip
    for wanted in (0, 1, 95):
        with pytest.raises(GoodsError, match=f"precision {wanted} must lie between 0 and 1"):
            fit_acceptance(drawn(rows=40), wanted)


def test_a_table_of_several_precisions() -> None:
    table = acceptance_table(drawn(), (0.8, 0.9, 0.95))
    assert table.index.tolist() == [0.8, 0.9, 0.95] and table["share"].is_monotonic_decreasing
    assert table["threshold"].is_monotonic_increasing and (table["precision"] > table.index - 0.02).all()
