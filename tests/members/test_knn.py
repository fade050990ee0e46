"""Kind knn: neighbours vote, and those of the scored fold have no vote."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import Trained, put_together
from safetensors.numpy import load_file

from goods.data.folds import read_folds
from goods.ensemble.submission import write_submission
from goods.members import open_run, read_goods
from goods.members.knn import vote
from goods.params import load_params
from goods.predictions import frame_logits, outputs_of
from goods.predictor import load_predictor
from goods.run import Run
from goods_utils import fit_all


@pytest.fixture(scope="module")
def knn(mini, tmp_path_factory) -> Trained:
    p = load_params(**mini | {"run": "knn", "kind": "knn"}, outputs_dir=str(tmp_path_factory.mktemp("outputs")))
    open_run(p)
    goods = read_goods(p)
    fit_all(p, goods)
    return Trained(p, goods)


def test_neighbours_are_a_member_like_others(knn: Trained):
    ensemble = put_together(knn.p, knn.goods)
    assert outputs_of(ensemble.oof) == ["fused", "image", "text"] and ensemble.missing == []
    assert ensemble.scores.loc["oof", ("fused", "accuracy")] > 0.2  # of 21 classes
    assert write_submission(knn.p, knn.goods)["id"].tolist() == knn.goods.test["id"].tolist()


def test_neighbours_of_the_fold_that_is_scored_have_no_vote(knn: Trained):
    folds = read_folds(knn.goods, knn.p)
    before = pd.read_parquet(Run.of(knn.p).fold(1).oof)
    lies, p = folds.assign(label=folds["label"].where(folds["fold"] != 1, 0)), knn.p.model_copy(update={"run": "lies"})
    open_run(p)
    lies.to_parquet(Run.of(p).folds_table)
    fit_all(p, replace(knn.goods, train=knn.goods.train.assign(label=lies["label"])))
    after = pd.read_parquet(Run.of(p).fold(1).oof)
    np.testing.assert_array_equal(frame_logits(before), frame_logits(after))


@pytest.fixture
def weighed(mini, knn: Trained, tmp_path):
    """A run on three matrices, of which the last is multiplied: weighed(1)."""
    ids = [*knn.goods.train["id"], *knn.goods.test["id"]]
    rng, paths = np.random.default_rng(0), []
    labels = np.array([*knn.goods.train["label"], *rng.integers(21, size=len(knn.goods.test))])
    signal = 6 * np.eye(21)[labels] + rng.normal(size=(len(ids), 21))
    for number, vectors in enumerate((rng.normal(size=(len(ids), 4)), signal, rng.normal(size=(len(ids), 40)))):
        paths.append(tmp_path / f"{number}.npz")
        np.savez(paths[-1], ids=np.array(ids, dtype=str), vectors=vectors.astype(np.float32))

    def run(times: float) -> Trained:
        stored = np.load(paths[2])
        path = tmp_path / f"times{times}.npz"
        np.savez(path, ids=stored["ids"], vectors=stored["vectors"] * np.float32(times))
        given = {"kind": "knn", "embeddings_files": str(paths[0]), "extra_embeddings": [str(paths[1]), str(path)]}
        p = load_params(**mini | given | {"run": f"times{times}"}, outputs_dir=str(tmp_path / "outputs"))
        open_run(p)
        goods = read_goods(p)
        fit_all(p, goods)
        put_together(p, goods)
        return Trained(p, goods)

    return run


def test_each_of_several_encoders_counts_the_same_however_long_its_vectors_are(weighed):
    plain, large = (pd.read_parquet(Run.of(weighed(times).p).oof) for times in (1, 64))
    np.testing.assert_allclose(frame_logits(large), frame_logits(plain), rtol=0, atol=1e-4)
    assert (frame_logits(large).argmax(1) == large["label"]).mean() > 0.5  # of 21 classes


def test_new_products_are_weighed_as_those_it_looks_among(weighed):
    p, goods = weighed(8)
    assert list(load_file(Run.of(p).neighbours)) == ["extra", "extra_2", "extra_3"]
    expected = np.exp(frame_logits(pd.read_parquet(Run.of(p).test)))
    np.testing.assert_allclose(load_predictor(p.run_dir).predict(goods.test), expected, rtol=0, atol=1e-6)


def test_votes_count_the_nearest_that_may_be_seen():
    cosine = np.array([[0.9, 0.8, 0.7, 0.1]])
    labels, prior = np.array([[2, 0, 0, 1]]), np.full(3, 1 / 3)
    seen = np.array([[False, True, True, True]])
    probabilities = np.exp(vote(cosine, labels, seen, prior, count=2, sharpness=10.0))
    assert probabilities.sum() == pytest.approx(1) and probabilities[0, 0] > 0.8
    assert probabilities[0, 1] == pytest.approx(probabilities[0, 2])
    nobody = np.exp(vote(cosine, labels, ~np.ones((1, 4), bool), prior, 2, 10.0))
    assert nobody[0] == pytest.approx(prior)
