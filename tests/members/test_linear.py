"""Kind linear: the text baseline, its files, and that it learns nothing from what it is scored on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import put_together

from goods.data.folds import read_folds
from goods.data.tables import read_goods
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError
from goods.metrics import score
from goods.models.tfidf import COSTS
from goods.predictions import frame_logits, outputs_of
from goods.run import Run
from goods_utils import fit_all, fit_fold, read_logs

SMALL = {"kind": "linear", "n_folds": 3}


@pytest.mark.slow
def test_all_folds_are_scored_and_predicted(make):
    p = make()
    goods = read_goods(p)
    table = fit_all(p, goods)
    assert table.index.tolist() == [0, 1, 2] and set(table["cost"]) <= set(COSTS)
    assert table["accuracy"].min() > 0.4  # of 21 classes; half of them look alike in words
    ensemble = put_together(p, goods)
    assert len(ensemble.oof) == len(goods.train) and len(ensemble.test) == len(goods.test)
    assert outputs_of(ensemble.oof) == ["text"]
    submission = write_submission(p, goods)
    assert submission["id"].tolist() == goods.test["id"].tolist()


@pytest.mark.slow
def test_folds_trained_side_by_side_are_those_trained_in_turn(make, monkeypatch):
    in_turn, beside = make(run="in-turn"), make(run="side-by-side")
    goods = read_goods(in_turn)
    fit_all(in_turn, goods)
    monkeypatch.setattr("goods.members.base.FEW_PRODUCTS", 0)  # as if there were many
    fit_all(beside, goods)
    for one, other in zip(Run.of(in_turn).folds(), Run.of(beside).folds(), strict=True):
        assert one.weights.read_bytes() == other.weights.read_bytes()
        assert one.oof.read_bytes() == other.oof.read_bytes() and one.test.read_bytes() == other.test.read_bytes()


@pytest.mark.slow
def test_it_learns_nothing_from_the_rows_it_is_scored_on(make):
    p = make(run="honest", skip_folds=2)
    goods = read_goods(p)
    folds = read_folds(goods, p)
    fit_all(p, goods)
    other = make(run="tampered", skip_folds=2)
    wrong = np.where(folds["fold"] == 2, 0, folds["label"])  # the held-back labels are lies
    (other.run_dir / "folds.parquet").unlink(missing_ok=True)
    folds.assign(label=wrong).to_parquet(other.run_dir / "folds.parquet")
    fit_all(other, replace(goods, train=goods.train.assign(label=wrong)))
    logits = [frame_logits(pd.read_parquet(q.run_dir / "fold2" / "oof.parquet")) for q in (p, other)]
    np.testing.assert_array_equal(logits[0], logits[1])


def test_there_are_no_epochs_to_show_and_the_sentence_names_the_notebooks(make):
    with pytest.raises(GoodsError, match="no log of training epochs; kind linear is shown by the notebooks baseline"):
        read_logs(make(run="no-epochs"), 0)


@pytest.mark.slow
def test_a_finished_fold_is_not_trained_again(make):
    p = make(folds=[2])
    goods, fold = read_goods(p), Run.of(p).fold(2)
    fit_all(p, goods)
    before = {path: path.stat().st_mtime_ns for path in fold.folder.iterdir()}
    fit_all(p, goods)
    assert {path: path.stat().st_mtime_ns for path in fold.folder.iterdir()} == before


@pytest.mark.slow
def test_texts_without_a_word_are_a_sentence(make):
    p = make(folds=[0])
    goods = read_goods(p)
    empty = replace(goods, train=goods.train.assign(text="", title=""))
    with pytest.raises(GoodsError, match="no word occurs in two training texts"):
        fit_all(p, empty)


@pytest.mark.slow
def test_one_fold_is_fitted_as_all_are(make):
    p = make(fold=1)
    metrics = fit_fold(p, read_goods(p))
    assert Run.of(p).trained() == [1] and metrics["text"]["accuracy"] > 0.4


@pytest.mark.slow
def test_metrics_say_what_was_chosen(make):
    p = make(skip_folds=2)
    fit_all(p, read_goods(p))
    metrics = json.loads((p.run_dir / "fold2" / "metrics.json").read_text())
    oof = pd.read_parquet(p.run_dir / "fold2" / "oof.parquet")
    assert metrics["text"] == pytest.approx(score(oof["label"], frame_logits(oof)))
    assert metrics["cost"] in COSTS
