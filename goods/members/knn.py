"""Nearest neighbours: a product's classes are those of the training products most like it. A cheap further member."""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
from torch import Tensor

from goods.data.folds import read_folds
from goods.data.tables import Goods
from goods.errors import GoodsError
from goods.files import write_json
from goods.metrics import score
from goods.models.embeddings import embed_products
from goods.models.neighbours import joined, nearest
from goods.params import Params
from goods.predictions import write_predictions

MOST = 200  # neighbours looked at; those of the folds that may not be seen are left out of them
COUNTS = (5, 10, 20, 40, 80)  # of neighbours that vote, chosen out of fold
SHARPNESS = (5.0, 10.0, 20.0, 40.0)  # a neighbour's vote is exp(sharpness x cosine)
PRIOR = 0.5  # votes shared among all classes by their frequency


def fit_knn(p: Params, goods: Goods) -> pd.DataFrame:
    """Scores and predicts all folds of p.folds by the neighbours in the frozen embeddings; returns the folds' metrics.

    Outputs: fused (image, text and extra embeddings side by side), image, text. How many neighbours vote, and how
    sharply, is chosen for each fold on the other folds, each by neighbours in neither. Writes oof.parquet, test.parquet
    and, last, metrics.json to each fold<k>.
    """
    if p.drop_noisy or p.pseudo_from:
        raise GoodsError("kind knn learns from all training labels; leave out drop_noisy and pseudo_from")
    began, folds = time.perf_counter(), read_folds(goods, p)
    train, test = embed_products(p, goods.train), embed_products(p, goods.test)
    outputs = {"fused": list(train), "image": ["image"], "text": ["text"]}
    found = {name: _predict(train, test, kinds, folds, p) for name, kinds in outputs.items()}
    for k in p.folds:
        folder, valid = p.run_dir / f"fold{k}", folds["fold"] == k
        labels = folds["label"].to_numpy()[valid]
        write_predictions(folder / "oof.parquet", folds[valid], {name: of[k][0] for name, of in found.items()})
        test_rows = goods.test[["id"]].assign(fold=k)
        write_predictions(folder / "test.parquet", test_rows, {name: of[k][1] for name, of in found.items()})
        metrics = {name: score(labels, of[k][0]) | of[k][2] for name, of in found.items()}
        metrics |= {"fold": k, "rows": int((~valid).sum())}
        metrics["resources"] = {"seconds": round((time.perf_counter() - began) / len(p.folds), 1)}
        write_json(folder / "metrics.json", metrics)
    read = [json.loads((p.run_dir / f"fold{k}" / "metrics.json").read_text(encoding="utf-8")) for k in p.folds]
    return pd.DataFrame([m["fused"] for m in read], index=pd.Index(p.folds, name="fold"))


def _predict(
    train: dict[str, Tensor], test: dict[str, Tensor], kinds: list[str], folds: pd.DataFrame, p: Params
) -> dict[int, tuple[np.ndarray, np.ndarray, dict[str, float]]]:
    """{fold: (logits of its rows, logits of the test rows, what was chosen)} from these kinds of embeddings."""
    own, other = (joined({kind: part[kind] for kind in kinds}) for part in (train, test))
    near, near_test = nearest(own, own, MOST + 1), nearest(own, other, MOST)
    labels, fold = folds["label"].to_numpy(), folds["fold"].to_numpy()
    found = {}
    for k in p.folds:
        known, valid = fold != k, fold == k
        prior = np.bincount(labels[known], minlength=p.num_classes) / known.sum()

        def logits(near: tuple[np.ndarray, np.ndarray], of: np.ndarray | None, how: tuple[int, float], k: int = k,
                   prior: np.ndarray = prior) -> np.ndarray:  # fmt: skip
            seen = fold[near[1]] != k
            if of is not None:  # nor the row's own fold, where its duplicates and itself are
                seen &= fold[near[1]] != of[:, None]
            return vote(near[0], labels[near[1]], seen, prior, *how)

        rows = [part[known] for part in near]
        tried = {how: score(labels[known], logits(rows, fold[known], how))["log_loss"]
                 for how in [(count, sharp) for count in COUNTS for sharp in SHARPNESS]}  # fmt: skip
        best = min(tried, key=lambda how: tried[how])
        chosen = {"neighbours": best[0], "sharpness": best[1]}
        found[k] = logits([part[valid] for part in near], None, best), logits(near_test, None, best), chosen
    return found


def vote(
    cosine: np.ndarray, labels: np.ndarray, seen: np.ndarray, prior: np.ndarray, count: int, sharpness: float
) -> np.ndarray:
    """(n, num_classes) log-probabilities: classes of the `count` nearest neighbours that may be seen, by their cosine.

    cosine, labels and seen are (n, neighbours), nearest first; prior is (num_classes,).
    """
    seen = seen & (np.cumsum(seen, axis=1) <= count)
    weights = np.where(seen, np.exp(sharpness * (cosine - 1)), 0)
    weights *= np.minimum(count, seen.sum(1, keepdims=True)) / np.maximum(weights.sum(1, keepdims=True), 1e-30)
    votes = np.zeros((len(cosine), len(prior)))
    np.add.at(votes, (np.arange(len(cosine))[:, None], labels), weights)
    votes += PRIOR * np.maximum(prior, 1e-3)
    return np.log(votes / votes.sum(1, keepdims=True))
