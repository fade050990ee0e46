"""Kind knn: a product's classes are those of the training products most like it. A cheap further member."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from goods.advice import train_again
from goods.data.folds import read_folds
from goods.data.matrices import PARTS
from goods.data.mended import DROPPED, learned_labels
from goods.data.tables import Goods
from goods.ensemble.folds import ensemble_folds as ensemble
from goods.errors import DamagedFileError, ParameterError
from goods.files import atomic_path
from goods.machine import used
from goods.members import KINDS, Predict
from goods.members.base import due_folds, finish
from goods.members.frozen import check_dims
from goods.metrics import METRICS
from goods.model_paths import parameter_of
from goods.models.neighbours import joined, nearest
from goods.params import Params
from goods.predictions import write_predictions
from goods.run import Fold, Run
from goods.training.inputs import Inputs

__all__ = ["ensemble", "fit", "load", "predictor", "save"]

MOST = 200  # neighbours looked at; those of the folds that may not be seen are left out of them
COUNTS = (5, 10, 20, 40, 80)  # of neighbours that vote, chosen out of fold
SHARPNESS = (5.0, 10.0, 20.0, 40.0)  # a neighbour's vote is exp(sharpness x cosine)
PRIOR = 0.5  # votes shared among all classes by their frequency


@dataclass(frozen=True)
class Voters:
    """A fold's model: the labels of all training products (n,), -1 where the fold may not see them, and how they vote.

    how: {output: (neighbours, sharpness)}.
    """

    labels: np.ndarray
    how: dict[str, tuple[int, float]]
    num_classes: int

    def logits(self, output: str, near: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """(n, num_classes) log-probabilities from the cosines and rows of the nearest training products."""
        known = self.labels[self.labels >= 0]
        prior = np.bincount(known, minlength=self.num_classes) / len(known)
        labels = self.labels[near[1]]
        return vote(near[0], labels, labels >= 0, prior, *self.how[output])


def fit(p: Params, goods: Goods, numbers: Sequence[int]) -> None:
    """Scores and predicts these folds by the neighbours in the frozen embeddings.

    Outputs: fused (image, text and each of extra_embeddings side by side, all at length 1), image, text. How many
    neighbours vote, and how sharply, is chosen for each fold on the other folds, each by neighbours in neither.
    """
    if p.drop_noisy or p.pseudo_from:
        raise ParameterError("kind knn learns from all training labels; leave out drop_noisy and pseudo_from")
    code, began = KINDS["knn"].code(), time.perf_counter()
    due = due_folds(p, goods, list(numbers), code)
    if not due:
        return
    folds, learned, inputs = read_folds(goods, p), learned_labels(goods), Inputs()
    train = each_embedding(p, goods.train, inputs)
    save_neighbours(Run.of(p), train)
    own = {output: joined(parts) for output, parts in by_output(train).items()}
    near = {output: nearest(vectors, vectors, MOST + 1) for output, vectors in own.items()}
    other = {output: joined(parts) for output, parts in by_output(each_embedding(p, goods.test, inputs)).items()}
    near_test = {output: nearest(own[output], vectors, MOST) for output, vectors in other.items()}
    for number in due:
        fold, valid = Run.of(p).fold(number), (folds["fold"] == number).to_numpy()
        how = {output: choose_vote(near[output], folds, learned, number, p.num_classes) for output in near}
        model = Voters(np.where(valid, -1, learned), how, p.num_classes)
        logits = {output: model.logits(output, tuple(part[valid] for part in near[output])) for output in near}
        facts = {"rows": int((model.labels >= 0).sum())}
        facts |= {"neighbours": {output: list(chosen) for output, chosen in how.items()}}
        facts |= {"resources": used((time.perf_counter() - began) / len(due))}
        test = {output: model.logits(output, near_test[output]) for output in near_test}
        with fold.held():
            fold.begin_writing()
            save(model, fold)
            finish(p, goods, fold, code, logits, **facts)
            write_predictions(fold.test, goods.test[["id"]].assign(fold=number), test)


def each_embedding(p: Params, products: pd.DataFrame, inputs: Inputs) -> dict[str, Tensor]:
    """{"image", "text", "extra", "extra_2" ...: (n, dim)} of products, those that there are, in this order.

    The heads of other kinds read all of p.extra_embeddings as one vector and learn what each is worth; here that would
    be the longest one's vote.
    """
    found = inputs.embeddings(p.model_copy(update={"extra_embeddings": ()}), products)
    given = len(found.keys() - {"image", "text"})
    for number, path in enumerate(p.extra_embeddings, given + 1):
        own = inputs.extra(p.model_copy(update={"extra_embeddings": (path,)}), products)
        found["extra" if number == 1 else f"extra_{number}"] = own["extra"]
    return found


def by_output(embeddings: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The embeddings that each output looks at; vectors made elsewhere may be neither the photo's nor the text's."""
    single = {name: {name: embeddings[name]} for name in ("image", "text") if name in embeddings}
    return {"fused": embeddings, **single}


def choose_vote(
    near: tuple[np.ndarray, np.ndarray], folds: pd.DataFrame, learned: np.ndarray, number: int, num_classes: int
) -> tuple[int, float]:
    """How many neighbours vote and how sharply: the least log-loss on the other folds, each without its own fold.

    learned: (n,) class index that each product votes for. Log-loss whatever p.metric is: votes are to be probabilities,
    and many of the ways predict nearly the same classes.
    """
    labels, fold = folds["label"].to_numpy(), folds["fold"].to_numpy()
    known = fold != number
    votes = learned[known & (learned != DROPPED)]
    prior = np.bincount(votes, minlength=num_classes) / len(votes)
    cosine, rows = (part[known] for part in near)
    # Nor the row's own fold, where its duplicates and itself are.
    seen = (fold[rows] != number) & (fold[rows] != fold[known][:, None]) & (learned[rows] != DROPPED)
    tried = {how: METRICS["log_loss"].of(labels[known], vote(cosine, learned[rows], seen, prior, *how))
             for how in [(count, sharp) for count in COUNTS for sharp in SHARPNESS]}  # fmt: skip
    return min(tried, key=lambda how: tried[how])


def save_neighbours(run: Run, embeddings: dict[str, Tensor]) -> None:
    """The training products' embeddings, which all folds share."""
    with atomic_path(run.neighbours) as temporary:
        save_file({name: values.contiguous() for name, values in embeddings.items()}, temporary)


def read_neighbours(run: Run) -> dict[str, Tensor]:
    """What save_neighbours wrote, in the order that embeddings come in; raises DamagedFileError when it isn't whole."""
    try:
        found = load_file(run.neighbours)  # which sorts by name: side by side they would be other vectors
        return {name: found[name] for part in PARTS for name in sorted(found, key=len) if parameter_of(name) == part}
    except Exception as error:  # anything at all can be wrong with a damaged file
        raise DamagedFileError(f"{run.neighbours} is missing or damaged; train one fold again: retrain=true, "
                               f"--folds {next(iter(run.trained()), 0)}") from error  # fmt: skip


def save(model: Voters, fold: Fold) -> None:
    """The labels that the fold may see, and how they vote, as weights.safetensors."""
    # One entry: safetensors writes several in an order of chance, and the same model is to be the same bytes.
    metadata = {"model": json.dumps({"how": model.how, "num_classes": model.num_classes})}
    with atomic_path(fold.weights) as temporary:
        save_file({"labels": torch.from_numpy(model.labels.astype(np.int64))}, temporary, metadata=metadata)


def load(p: Params, fold: Fold) -> Voters:
    """A trained fold's model; the neighbours' embeddings lie in the run. Raises DamagedFileError."""
    try:
        with safe_open(fold.weights, framework="np") as file:
            labels, facts = file.get_tensor("labels"), json.loads(file.metadata()["model"])
        how = {output: (int(count), float(sharp)) for output, (count, sharp) in facts["how"].items()}
        return Voters(labels, how, int(facts["num_classes"]))
    except Exception as error:  # anything at all can be wrong with a damaged file
        raise DamagedFileError(f"{fold.weights} is missing or damaged; {train_again(fold.weights)}") from error


def predictor(p: Params, folds: Sequence[Fold], inputs: Inputs) -> Predict:
    """Of a table, {fold number: {"fused", "image", "text": (n, num_classes) logits}}."""
    neighbours = read_neighbours(folds[0].run)
    dims = {name: values.shape[1] for name, values in neighbours.items()}
    own = {output: joined(parts) for output, parts in by_output(neighbours).items()}
    models = {fold.number: load(p, fold) for fold in folds}
    inputs.will_embed(p)

    def predict(products: pd.DataFrame) -> dict[int, dict[str, np.ndarray]]:
        embeddings = each_embedding(p, products, inputs)
        check_dims(p, folds[0].run, embeddings, dims)
        other = {output: joined(parts) for output, parts in by_output(embeddings).items()}
        near = {output: nearest(own[output], other[output], MOST) for output in own}
        return {k: {output: model.logits(output, near[output]) for output in near} for k, model in models.items()}

    return predict


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
