"""What validation rows chose is scored at the choice of the other folds, and chance stays chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import Sample, put_together

from goods.data.tables import Goods, read_goods
from goods.ensemble.choices import chosen_by_others
from goods.members import open_run
from goods.metrics import score
from goods.params import Params, load_params
from goods.predictions import frame_logits
from goods.run import Run
from goods_utils import fit_all, fit_fold


def one_hot(right: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Logits that are right where `right` says so."""
    return {"fused": np.eye(3)[np.where(right, labels, (labels + 1) % 3)]}


def test_each_fold_is_scored_at_what_the_others_choose():
    labels = {k: np.arange(6) % 3 for k in range(3)}
    good, bad = np.ones(6, bool), np.zeros(6, bool)
    # fold 0 alone likes epoch 1; the others like epoch 2
    choices = {
        k: {
            "epoch 1": one_hot(good if k == 0 else bad, labels[k]),
            "epoch 2": one_hot(bad if k == 0 else good, labels[k]),
        }
        for k in range(3)
    }
    assert chosen_by_others(choices, labels) == {0: "epoch 2", 1: "epoch 1", 2: "epoch 1"}


@pytest.mark.parametrize(("metric", "chosen"), [("accuracy", "epoch 2"), ("log_loss", "epoch 1")])
def test_the_others_choose_by_the_metric(metric, chosen):
    labels = {k: np.arange(6) % 3 for k in range(2)}
    unsure, sure = np.array([True] * 4 + [False] * 2), np.array([True] * 5 + [False])  # sure of what is wrong, too
    epochs = {"epoch 1": one_hot(unsure, labels[0]), "epoch 2": {"fused": 50 * one_hot(sure, labels[0])["fused"]}}
    assert chosen_by_others({0: epochs, 1: epochs}, labels, metric) == {0: chosen, 1: chosen}


def test_a_single_fold_chooses_nothing():
    labels, right = np.arange(6) % 3, np.ones(6, bool)
    epochs = {"epoch 1": one_hot(right, labels), "epoch 2": one_hot(~right, labels)}
    alphas = {"alpha 1": one_hot(~right, labels), "alpha 0.5": one_hot(right, labels)}
    assert chosen_by_others({0: epochs}, {0: labels}) == {0: "epoch 2"}
    assert chosen_by_others({0: alphas}, {0: labels}) == {0: "alpha 1"}


def test_folds_that_stopped_early_share_what_they_both_have():
    labels = {k: np.arange(6) % 3 for k in range(2)}
    right = np.ones(6, bool)
    long = {f"epoch {e}": one_hot(right, labels[0]) for e in (1, 2, 3)}
    short = {"epoch 1": one_hot(~right, labels[1]), "epoch 2": one_hot(right, labels[1])}
    assert chosen_by_others({0: long, 1: short}, labels) == {0: "epoch 2", 1: "epoch 1"}


@pytest.fixture(scope="module")
def chance(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Goods]:
    """Parameters of runs on the sample with its labels shuffled: nothing can be learned from it."""
    folder = tmp_path_factory.mktemp("chance")
    given = {"data_dir": str(sample.data), "model_name": str(sample.model), "outputs_dir": str(folder), "n_folds": 3,
             "image_size": 64, "hidden_dim": 64, "batch_size": 32, "eval_batch_size": 64, "num_workers": 0}  # fmt: skip
    train = pd.read_csv(sample.data / "train.csv", dtype=str, keep_default_na=False)
    shuffled = train.assign(categories=train["categories"].sample(frac=1, random_state=3).to_numpy())
    (folder / "train.csv").write_text(shuffled.to_csv(index=False), encoding="utf-8")
    return given | {"train_csv": str(folder / "train.csv")}


def accuracy_at_chance(rows: int, classes: int = 21) -> float:
    """The most that chance gives in 999 of 1,000 cases, and a little more for classes that are not quite balanced."""
    rate = 1 / classes
    return rate + 3.3 * np.sqrt(rate * (1 - rate) / rows)


def whole(given: dict, **more) -> tuple[Params, float, pd.DataFrame]:
    p = load_params(**given | more)
    open_run(p)
    goods = read_goods(p)
    if p.runs:
        ensemble = put_together(p, goods)
    elif p.kind in ("linear", "knn"):
        fit_all(p, goods)
        ensemble = put_together(p, goods)
    else:
        for fold in range(p.n_folds):
            fit_fold(p.model_copy(update={"fold": fold}), goods)
        ensemble = put_together(p, goods)
    oof = ensemble.oof
    return p, score(oof["label"].to_numpy(), frame_logits(oof))["accuracy"], ensemble


@pytest.mark.slow
def test_no_kind_no_blend_and_no_choice_scores_above_chance(chance):
    rows = len(pd.read_csv(chance["train_csv"]))
    limit = accuracy_at_chance(rows)
    head = {"tune": "head", "num_epochs": 12, "head_learning_rate": 3e-3}
    _, own, chosen = whole(chance, run="best", keep="best", **head)
    found = {
        "keep best": own,
        "keep last": whole(chance, run="last", **head)[1],
        "linear": whole(chance, run="linear", kind="linear")[1],
        "knn": whole(chance, run="knn", kind="knn")[1],
        "blend": whole(chance, run="blend", kind="blend", runs=["best", "last", "linear", "knn"])[1],
    }
    assert {name: value for name, value in found.items() if value > limit} == {}
    table = chosen.tables["chosen"]
    assert table.loc["on the scored rows", "accuracy"] > table.loc["by the other folds", "accuracy"]
    assert Run.of(load_params(**chance, run="best")).fold(0).choices.is_file()
