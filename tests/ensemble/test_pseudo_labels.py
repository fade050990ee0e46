"""What a fold learns from: doubtful labels left out, pseudo-labels that leak nothing, and neighbours as a member."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Run, Sample, fit

from goods.data.folds import read_folds
from goods.data.tables import all_products, read_goods
from goods.ensemble.folds import ensemble_folds
from goods.ensemble.pseudo_labels import class_thresholds, make_pseudo_labels, pick
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError
from goods.members.knn import fit_knn, vote
from goods.metrics import score
from goods.params import Params, load_params
from goods.predictions import frame_logits, outputs_of
from goods.run import open_run
from goods.training.rows import doubtful_rows, find_label_issues, pseudo_path, training_rows
from goods_utils import fit_baseline

SMALL = {"n_folds": 3, "fold": 1, "num_workers": 0, "num_classes": 21}


# Doubtful labels


def test_flipped_labels_are_found():
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=1000)
    logits = 3 * np.eye(5)[truth] + rng.normal(size=(1000, 5))
    flipped = rng.permutation(1000)[:40]
    labels = truth.copy()
    labels[flipped] = (truth[flipped] + 1) % 5
    issues = find_label_issues(labels, logits)
    worst = issues.head(30)
    assert worst["row"].isin(flipped).mean() > 0.9 and issues["margin"].is_monotonic_increasing
    right = worst[worst["row"].isin(flipped)]
    assert (right["suggested"] == truth[right["row"]]).mean() > 0.9


def test_a_class_without_rows_is_never_suggested():
    logits = np.tile([0.0, 1.0, 5.0], (6, 1))
    assert not (find_label_issues(np.array([0, 0, 0, 1, 1, 1]), logits)["suggested"] == 2).any()


def words_table(count: int = 240, classes: int = 4) -> tuple[pd.DataFrame, np.ndarray]:
    """Products whose text says their class, all of them different."""
    labels = np.arange(count) % classes
    texts = [
        f"a fine {'cup lamp chair shoe'.split()[k]} of kind {i % 17} in colour {i % 5}" for i, k in enumerate(labels)
    ]
    table = pd.DataFrame({"id": [str(i) for i in range(count)], "title": texts, "text": texts, "image": "", "sha": ""})
    return table.assign(description=[f"number {i}" for i in range(count)]), labels


def test_doubtful_rows_are_those_whose_words_say_otherwise():
    table, labels = words_table()
    wrong = np.array([3, 50, 101, 160, 222])
    labels[wrong] = (labels[wrong] + 1) % 4
    p = Params(num_classes=4, drop_noisy=0.025)
    dropped = np.flatnonzero(doubtful_rows(table, labels, p))
    assert set(dropped) == set(wrong) and len(wrong) <= 0.025 * len(labels)


def test_of_a_small_class_half_stays():
    table, labels = words_table()
    table, labels = table.iloc[:210], labels[:210].copy()
    rare = np.flatnonzero(labels == 3)[:6]
    labels[:] = np.where(labels == 3, 2, labels)
    labels[rare] = 3
    table = table.assign(text=[f"a fine chair {i}" if labels[i] == 3 else t for i, t in enumerate(table["text"])])
    dropped = doubtful_rows(table, labels, Params(num_classes=4, drop_noisy=0.2))
    assert dropped[rare].sum() <= 3


def test_what_is_left_out_does_not_depend_on_the_rows_that_are_scored(trained: Run):
    p = trained.p.model_copy(update={"drop_noisy": 0.1})
    folds = read_folds(trained.goods, p)
    rows, labels = training_rows(p, trained.goods, folds, 1)
    lies = folds.assign(label=folds["label"].where(folds["fold"] != 1, 0))
    again, _ = training_rows(p, trained.goods, lies, 1)
    assert rows.tolist() == again.tolist() and (folds["fold"][rows] != 1).all()
    assert len(rows) < (folds["fold"] != 1).sum() and labels.tolist() == folds["label"][rows].tolist()


# Pseudo-labels


HEAD = {"tune": "head", "image_size": 64, "hidden_dim": 64, "batch_size": 32, "eval_batch_size": 64, "num_epochs": 40,
        "head_learning_rate": 3e-3, "pseudo_precision": 0.5}  # fmt: skip


def plant(sample: Sample, folder: Path, rows: pd.DataFrame) -> Path:
    """The sample with copies of these training products among its test products."""
    shutil.copytree(sample.data, folder)
    train, test = (pd.read_csv(folder / f"{part}.csv", dtype=str, keep_default_na=False) for part in ("train", "test"))
    copies = train[train["id"].isin(rows["id"])].copy()
    copies["id"] = "copy" + copies["id"]
    pd.concat([test, copies[test.columns]]).to_csv(folder / "test.csv", index=False)
    target = next((folder / "test_images").rglob("*.jpg")).parent
    for file in (folder / "train_images").rglob("*.*"):
        if file.stem in set(rows["id"]):
            shutil.copy(file, target / f"copy{file.name}")
    return folder


def teach(make, run: str, **given) -> Params:
    """A teacher with all folds trained; its run's parameters."""
    p = make(run=run, **HEAD, **given)
    for fold in range(3):
        fit(p.model_copy(update={"fold": fold}))
    return p


def test_copies_of_validation_rows_in_the_test_set_leak_nothing_and_would_fool_a_naive_loop(make, sample, tmp_path):
    teacher = teach(make, "teacher")
    goods, folds = read_goods(teacher), read_folds(read_goods(teacher), teacher)
    table = make_pseudo_labels(teacher, goods)
    assert table["kept"].sum() > 0 and table.index.tolist() == goods.classes
    student = fit(make(run="student", **HEAD, pseudo_from="teacher"))

    planted = {"data_dir": str(plant(sample, tmp_path / "planted", folds[folds["fold"] == 1]))}
    fooled = teach(make, "planted", **planted)
    with_copies = read_goods(fooled)
    assert len(with_copies.test) == len(goods.test) + (folds["fold"] == 1).sum()
    make_pseudo_labels(fooled, with_copies)
    honest = fit(make(run="honest", **HEAD, **planted, pseudo_from="planted"))
    pd.testing.assert_frame_equal(honest, student)  # the planted copies move the score of fold 1 by nothing

    mean = ensemble_folds(fooled, with_copies).test  # all models, those that saw fold 1's rows among them
    naive = with_copies.test[["id"]].assign(label=frame_logits(mean).argmax(1))
    naive.to_parquet(pseudo_path(fooled.run_dir, 1))
    leaking = fit(make(run="leaking", **HEAD, **planted, pseudo_from="planted"))
    scores = [score(oof["label"], frame_logits(oof))["accuracy"] for oof in (honest, leaking)]
    assert scores[1] > scores[0] + 0.1


def test_a_second_round_is_shown_against_the_first(make):
    teacher = teach(make, "teacher")
    goods = read_goods(teacher)
    ensemble_folds(teacher, goods)
    make_pseudo_labels(teacher, goods)
    student = teach(make, "student", pseudo_from="teacher")
    before = {k: pd.read_parquet(teacher.run_dir / "folds.parquet") for k in (0,)}[0]
    pd.testing.assert_frame_equal(pd.read_parquet(student.run_dir / "folds.parquet"), before)
    shown = ensemble_folds(student, goods).tables["teacher"]
    assert shown.index.tolist() == ["teacher", "student"] and shown.loc["student", "gain_low"] <= shown["gain"].iloc[1]
    rows, _ = training_rows(student, goods, before, 1)
    assert (rows >= len(goods.train)).any()
    assert all_products(goods)["id"].iloc[rows].is_unique
    assert make_pseudo_labels(student, goods)["kept"].sum() > 0  # and teaches a third


def test_thresholds_promise_what_out_of_fold_rows_show():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(3000, 3))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in chances])
    table = class_thresholds(labels, chances, 0.9)
    for k, (threshold, precision) in enumerate(table.to_numpy()):
        sure = (chances.argmax(1) == k) & (chances.max(1) >= threshold)
        assert precision == pytest.approx((labels[sure] == k).mean()) and 0.9 <= precision < 0.93
    assert (class_thresholds(labels, chances, 1.0)["threshold"] > chances.max(0)).any()  # never that sure
    picked = pick(chances, np.arange(3000) % 2 == 0, table["threshold"].to_numpy(), np.array([10, 1000, 0]))
    counts = picked["label"].value_counts()
    assert counts[0] == 10 and 10 < counts[1] < 1000 and 2 not in counts and (picked.index % 2 == 0).all()
    assert picked[picked["label"] == 0]["probability"].min() > 0.9


def test_pseudo_labels_that_can_not_be_used(make, trained, tmp_path):
    with pytest.raises(GoodsError, match="pseudo_from: there is no run 'teacher'"):
        make(run="student", **HEAD, pseudo_from="teacher")
    teacher = make(run="teacher", **HEAD)
    p = make(run="student", **HEAD, pseudo_from="teacher")
    with pytest.raises(
        GoodsError, match=r"there is no .*fold1\.parquet; run notebooks/pseudo_label\.ipynb with run=teacher"
    ):
        fit(p)
    with pytest.raises(GoodsError, match="has no trained fold 0 yet"):
        make_pseudo_labels(teacher, read_goods(teacher))
    with pytest.raises(GoodsError, match="a blend has no model of each fold"):
        make_pseudo_labels(teacher.model_copy(update={"kind": "blend"}), trained.goods)
    folds = read_folds(read_goods(p), p)
    path = pseudo_path(teacher.run_dir, 1)
    path.parent.mkdir(parents=True)
    test = read_goods(p).test
    folds.assign(fold=(folds["fold"] + 1) % 3).to_parquet(teacher.run_dir / "folds.parquet")
    test[["id"]].assign(label=0).to_parquet(path)
    with pytest.raises(GoodsError, match="has other folds or training rows; its labels would leak"):
        fit(p)
    folds.to_parquet(teacher.run_dir / "folds.parquet")
    for label, count, message in (
        (0, 0, "was sure of no test product for fold 1"),
        (99, 3, "names products or classes"),
    ):
        test[["id"]].head(count).assign(label=label).to_parquet(path)
        with pytest.raises(GoodsError, match=message):
            fit(p)
    path.write_bytes(b"torn")
    with pytest.raises(GoodsError, match="can't be read"):
        fit(p)


def test_a_checkpoint_of_other_pseudo_labels_is_refused(make):
    teacher = make(run="teacher", **HEAD)
    goods = read_goods(teacher)
    read_folds(goods, teacher)
    path = pseudo_path(teacher.run_dir, 1)
    path.parent.mkdir(parents=True)
    goods.test[["id"]].head(9).assign(label=3).to_parquet(path)
    recipe = HEAD | {"num_epochs": 500}
    p = make(run="student", **recipe, pseudo_from="teacher", max_hours=0.3 / 3600, checkpoint_minutes=0)
    with pytest.raises(SystemExit):
        fit(p)
    goods.test[["id"]].head(8).assign(label=3).to_parquet(path)
    with pytest.raises(GoodsError, match="training rows of fold 1 are others than those of its checkpoint"):
        fit(p)


# Neighbours


@pytest.fixture(scope="module")
def knn(mini, tmp_path_factory) -> Run:
    p = load_params(**mini | {"run": "knn", "kind": "knn"}, outputs_dir=str(tmp_path_factory.mktemp("outputs")))
    open_run(p)
    goods = read_goods(p)
    fit_baseline(p, goods)
    return Run(p, goods)


def test_neighbours_are_a_member_like_others(knn: Run):
    ensemble = ensemble_folds(knn.p, knn.goods)
    assert outputs_of(ensemble.oof) == ["fused", "image", "text"] and ensemble.missing == []
    assert ensemble.scores.loc["oof", ("fused", "accuracy")] > 0.2  # of 21 classes
    assert write_submission(knn.p, knn.goods)["id"].tolist() == knn.goods.test["id"].tolist()


def test_neighbours_of_the_fold_that_is_scored_have_no_vote(knn: Run):
    folds = read_folds(knn.goods, knn.p)
    before = pd.read_parquet(knn.p.run_dir / "fold1" / "oof.parquet")
    lies = knn.p.model_copy(update={"run": "lies"})
    open_run(lies)
    folds.assign(label=folds["label"].where(folds["fold"] != 1, 0)).to_parquet(lies.run_dir / "folds.parquet")
    fit_knn(lies, knn.goods)
    after = pd.read_parquet(lies.run_dir / "fold1" / "oof.parquet")
    np.testing.assert_array_equal(frame_logits(before), frame_logits(after))


def test_votes_count_the_nearest_that_may_be_seen():
    cosine = np.array([[0.9, 0.8, 0.7, 0.1]])
    labels, prior = np.array([[2, 0, 0, 1]]), np.full(3, 1 / 3)
    seen = np.array([[False, True, True, True]])
    probabilities = np.exp(vote(cosine, labels, seen, prior, count=2, sharpness=10.0))
    assert probabilities.sum() == pytest.approx(1) and probabilities[0, 0] > 0.8
    assert probabilities[0, 1] == pytest.approx(probabilities[0, 2])
    nobody = np.exp(vote(cosine, labels, ~np.ones((1, 4), bool), prior, 2, 10.0))
    assert nobody[0] == pytest.approx(prior)
