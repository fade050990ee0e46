"""The linear classifier on words: its scores for absent classes, and the words that weigh most."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from goods.data.tables import read_goods
from goods.models.tfidf import COSTS, LinearFolds, LinearModel, choose_cost, heaviest_words, make_svm, svm_logits
from goods.models.token_counts import count_tokens, fit_tfidf
from goods.params import Params
from goods.run import Run
from goods_utils import fit_all

SMALL = {"kind": "linear", "n_folds": 3}


@pytest.mark.slow
def test_the_telling_words_are_those_of_the_class(make):
    p = make()
    goods = read_goods(p)
    fit_all(p, goods)
    words = heaviest_words([fold.words for fold in Run.of(p).folds()], goods.classes)
    assert words.index.tolist() == goods.classes
    of_class = goods.train.groupby("label")["text"].agg(" ".join).str.lower()
    heaviest = words["words"].str.split(", ").str[0]
    assert np.mean([word in of_class[k] for k, word in enumerate(heaviest)]) == 1


@pytest.mark.parametrize("seen", [[0, 2, 3], [1, 3]])
def test_a_class_that_is_absent_from_a_fold_comes_last(seen, make):
    rng = np.random.default_rng(0)
    labels = np.repeat(seen, 10)
    x = csr_matrix(np.eye(4)[labels] + rng.normal(size=(len(labels), 4)) / 10)
    values = svm_logits(make_svm(1.0, make()).fit(x, labels), x, 4)
    assert values.shape == (len(labels), 4) and (values.argmax(1) == labels).all()
    absent = [k for k in range(4) if k not in seen]
    assert values[:, absent].max(1).tolist() < values[:, seen].min(1).tolist()


def test_classes_weigh_as_the_metric_asks():
    weights = {metric: make_svm(1.0, Params(metric=metric)).class_weight for metric in ("macro_f1", "accuracy")}
    assert weights == {"macro_f1": "balanced", "accuracy": None}
    assert make_svm(1.0, Params(metric="accuracy", use_class_weight=True)).class_weight == "balanced"


@pytest.mark.parametrize(("metric", "chosen"), [("macro_f1", 1.0), ("log_loss", 0.3)])
def test_the_cost_is_that_of_the_best_metric(metric, chosen):
    rng = np.random.default_rng(0)
    labels, inner = np.minimum(rng.geometric(0.5, size=300) - 1, 3), np.arange(300) % 3
    x = csr_matrix(np.eye(4)[labels] + rng.normal(size=(300, 4)))
    p = Params(num_classes=4, metric=metric, use_class_weight=True)
    assert choose_cost(lambda rows: x[rows], labels, inner, p)[0] == chosen


@pytest.mark.parametrize(("enough", "folds"), [(10_000, 3), (100, 1), (101, 2), (300, 3)])
def test_the_cost_is_chosen_on_no_more_inner_folds_than_are_needed(enough, folds, make, monkeypatch):
    fits = []
    rng = np.random.default_rng(0)
    labels, inner = rng.integers(4, size=300), np.arange(300) % 3
    x = csr_matrix(np.eye(4)[labels] + rng.normal(size=(300, 4)))

    def counted(cost, p):
        fits.append(cost)
        return make_svm(cost, p)

    monkeypatch.setattr("goods.models.tfidf.HELD_OUT", enough)
    monkeypatch.setattr("goods.models.tfidf.make_svm", counted)
    cost, temperature = choose_cost(lambda rows: x[rows], labels, inner, make(num_classes=4))
    assert fits == list(COSTS) * folds and cost in COSTS and 0.1 < temperature < 10


def test_folds_over_one_count_of_tokens_are_what_each_is_alone() -> None:
    rng = np.random.default_rng(0)
    words = np.array("red blue cup mug lamp desk toy car".split())
    titles = [" ".join(rng.choice(words, 2)) for _ in range(60)]
    texts = pd.DataFrame({"text": [f"{title} {rng.choice(words)} for you" for title in titles], "title": titles})
    labels, counts, models = rng.integers(3, size=60), count_tokens(texts), []
    for rows in (np.arange(40), np.arange(10, 60)[labels[10:] > 0]):  # the second never sees a class
        tfidf = fit_tfidf(counts, rows)
        svm = make_svm(1.0, Params()).fit(tfidf.features(counts, rows), labels[rows])
        models.append(LinearModel(tfidf.vectorizers(counts), svm.coef_, svm.intercept_, svm.classes_, 0.5, 3))
    new = pd.DataFrame({"text": ["a red cup, unheard of", "", *texts["text"][:9]], "title": ["", "", *titles[:9]]})
    found = LinearFolds(models).logits(new)
    for model, logits in zip(models, found, strict=True):
        np.testing.assert_allclose(logits, model.logits(new), rtol=0, atol=1e-6)
    np.testing.assert_allclose(LinearFolds(models).logits(new.iloc[[5]])[0], found[0][[5]], rtol=0, atol=1e-9)
