"""Pseudo-labels: they leak nothing, promise a precision, and are refused where they don't fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Sample, fit, put_together

from goods.data.folds import read_folds
from goods.data.tables import all_products, read_goods
from goods.ensemble.pseudo_labels import class_thresholds, make_pseudo_labels, pick
from goods.errors import GoodsError, ParameterError
from goods.files import write_json
from goods.members import predict_test
from goods.metrics import score
from goods.params import Params
from goods.predictions import frame_logits
from goods.run import Run
from goods.training.rows import training_rows

pytestmark = pytest.mark.slow

SMALL = {"n_folds": 3, "fold": 1, "num_workers": 0, "num_classes": 21}
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
    """A teacher with all folds trained and the test set predicted; its run's parameters."""
    p = make(run=run, **HEAD, **given)
    for fold in range(3):
        fit(p.model_copy(update={"fold": fold}))
    predict_test(p, read_goods(p))
    return p


@pytest.mark.slow
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

    mean = put_together(fooled, with_copies).test  # all models, those that saw fold 1's rows among them
    naive = with_copies.test[["id"]].assign(label=frame_logits(mean).argmax(1))
    naive.to_parquet(Run(fooled.run_dir).pseudo(1))
    leaking = fit(make(run="leaking", **HEAD, **planted, pseudo_from="planted"))
    scores = [score(oof["label"], frame_logits(oof))["accuracy"] for oof in (honest, leaking)]
    assert scores[1] > scores[0] + 0.1


@pytest.mark.slow
def test_a_second_round_is_shown_against_the_first(make):
    teacher = teach(make, "teacher")
    goods = read_goods(teacher)
    put_together(teacher, goods)
    make_pseudo_labels(teacher, goods)
    student = teach(make, "student", pseudo_from="teacher")
    before = {k: pd.read_parquet(teacher.run_dir / "folds.parquet") for k in (0,)}[0]
    pd.testing.assert_frame_equal(pd.read_parquet(student.run_dir / "folds.parquet"), before)
    shown = put_together(student, goods).tables["teacher"]
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
    folds = read_folds(read_goods(p), p)
    path = Run(teacher.run_dir).pseudo(1)
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
    with pytest.raises(
        GoodsError, match=r"fold1\.parquet is missing or damaged; run notebooks/pseudo_label\.ipynb again"
    ):
        fit(p)


def test_a_blend_has_no_folds_that_could_label(make):
    p = make(run="both", kind="linear").model_copy(update={"runs": ("teacher", "words")})
    write_json(Run.of(p).metrics, {"missing_folds": []})  # what the ensemble of a blend leaves
    with pytest.raises(
        ParameterError, match=r"has no folds of its own; make pseudo-labels by one of .*: teacher, words"
    ):
        make_pseudo_labels(p, read_goods(p))


@pytest.mark.slow
def test_a_state_of_other_pseudo_labels_is_left_and_the_fold_begun_again(make, capsys):
    teacher = make(run="teacher", **HEAD)
    goods = read_goods(teacher)
    read_folds(goods, teacher)
    path = Run(teacher.run_dir).pseudo(1)
    path.parent.mkdir(parents=True)
    goods.test[["id"]].head(9).assign(label=3).to_parquet(path)
    recipe = HEAD | {"num_epochs": 500}
    p = make(run="student", **recipe, pseudo_from="teacher", max_hours=0.3 / 3600, checkpoint_minutes=0)
    with pytest.raises(SystemExit):
        fit(p)
    assert Run.of(p).fold(1).resumable
    goods.test[["id"]].head(8).assign(label=3).to_parquet(path)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        fit(p)
    said = capsys.readouterr().out
    assert "the saved state of fold 1 learned from other rows than there are now (new pseudo-labels?)" in said
    assert "goes on after step" not in said
