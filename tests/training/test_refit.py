"""The refit: one more model on all rows, as long as the folds suggest, which predicts in their place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Stopped, Trained, put_together, stopped_after
from safetensors.numpy import load_file
from scipy.special import log_softmax

from goods.data.tables import read_goods
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError, ParameterError
from goods.members import fit, notebooks_of, open_run, predict_test, refit, step_inputs
from goods.params import REFIT, Params, load_params
from goods.predictions import frame_logits, write_choices
from goods.predictor import load_predictor
from goods.run import Run
from goods.training.refit import suggested_choice

pytestmark = pytest.mark.slow

SMALL = {"image_size": 64, "hidden_dim": 32, "batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "n_folds": 3,
         "num_epochs": 2, "learning_rate": 1e-3, "max_text_length": 48, "last_blocks": 1, "refit": True}  # fmt: skip
KINDS = [("dual", "head"), ("dual", "last"), ("text", "full"), ("linear", "head"), ("knn", "head")]


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Trained:
    """The miniature experiment with its folds trained, to be refitted."""
    shutil.copytree(trained.p.outputs_dir, tmp_path / "outputs")
    given = {"outputs_dir": str(tmp_path / "outputs"), "refit": True}
    return Trained(trained.p.model_copy(update=given), trained.goods)


def test_it_learns_from_all_rows_and_alone_predicts_the_test_set(copy: Trained) -> None:
    p, goods = copy
    run = Run.of(p)
    for fold in run.folds():
        fold.test.unlink(missing_ok=True)
    refit(p, goods)
    metrics = run.refit.scores()
    assert metrics["rows"] == len(goods.train) and metrics["epoch"] == 40
    assert "fused" not in metrics and not run.refit.oof.exists()  # nothing was held back to score it on
    assert predict_test(p, goods) == [-1] and not run.fold(0).test.exists()
    ensemble = put_together(p, goods)
    assert len(ensemble.oof) == len(goods.train)  # the folds' score stands
    alone = frame_logits(pd.read_parquet(run.refit.test))
    np.testing.assert_array_equal(frame_logits(ensemble.test).argmax(1), alone.argmax(1))
    assert len(write_submission(p, goods)) == len(goods.test)
    products = pd.read_csv(p.test_csv, dtype=str, keep_default_na=False).assign(image=goods.test["image"])
    handed_on = load_predictor(run.folder).predict(products)  # as a function of any goods it is the refit, too
    np.testing.assert_allclose(handed_on, np.exp(frame_logits(ensemble.test)), rtol=0, atol=1e-6)
    assert json.loads(run.method.read_text())["weights"] == {"refit": 1.0}
    assert json.loads(run.metrics.read_text())["refit"] is True


def test_the_folds_predict_again_where_refit_is_left_out(copy: Trained) -> None:
    p, goods = copy
    before = frame_logits(put_together(p.model_copy(update={"refit": False}), goods).test)
    refit(p, goods)
    other = frame_logits(put_together(p, goods).test)
    assert np.abs(np.exp(before) - np.exp(other)).max() > 1e-3
    np.testing.assert_array_equal(frame_logits(put_together(p.model_copy(update={"refit": False}), goods).test), before)
    assert predict_test(p, goods, by_folds=True) == []  # what pseudo-labels need is there


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tune"), KINDS)
def test_every_kind_refits(make: Callable[..., Params], encoder_dir: Path, kind: str, tune: str) -> None:
    of_text: dict[str, Any] = {"model_name": str(encoder_dir)} if kind == "text" else {}
    p = make(kind=kind, tune=tune, num_epochs=1, **of_text)
    goods, run = read_goods(p), Run.of(p)
    fit(p, goods, [0, 1, 2])
    refit(p, goods)
    assert run.refit.trained and run.refit.scores()["rows"] == len(goods.train) == 126
    assert run.trained() == [0, 1, 2]
    changed = run.refit.metrics.stat().st_mtime_ns
    refit(p, goods)
    assert run.refit.metrics.stat().st_mtime_ns == changed  # it stays as it is
    put_together(p, goods)
    assert np.isfinite(frame_logits(pd.read_parquet(run.refit.test))).all()


def choose(run: Run, scores: dict[str, list[int]]) -> None:
    """Gives the folds choices, each with as many right predictions as `scores` says for each fold."""
    for number in range(3):
        fold = run.fold(number)
        labels = fold.read("oof")["label"].to_numpy()
        made = {}
        for name, right in scores.items():
            predictions = np.where(np.arange(len(labels)) < right[number], labels, (labels + 1) % 21)
            made[name] = {"fused": log_softmax(5 * np.eye(21)[predictions], axis=1)}
        write_choices(fold.choices, made)


def test_it_ends_at_the_epoch_that_is_best_for_all_folds_together(copy: Trained) -> None:
    p, goods = copy
    run, best = Run.of(p), p.model_copy(update={"keep": "best", "num_epochs": 5})
    choose(run, {"epoch 1": [1, 1, 1], "epoch 2": [30, 30, 20], "epoch 3": [40, 5, 5], "epoch 4": [5, 40, 5]})
    assert suggested_choice(run, "macro_f1") == "epoch 2"  # though it is the best one for fold 2 alone
    refit(best, goods)
    lines = [json.loads(line) for line in run.refit.log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and "macro_f1" not in lines[-1]
    assert run.refit.scores()["epoch"] == 2 and run.refit.scores()["made_from"]["choice"] == "epoch 2"


def test_it_is_trained_again_when_the_folds_suggest_another_epoch(copy: Trained, capsys) -> None:
    p, goods = copy
    run, best = Run.of(p), p.model_copy(update={"keep": "best", "num_epochs": 3})
    choose(run, {"epoch 1": [9, 9, 9], "epoch 2": [1, 1, 1]})
    refit(best, goods)
    before = load_file(run.refit.weights)
    choose(run, {"epoch 1": [1, 1, 1], "epoch 2": [9, 9, 9]})
    refit(best, goods)
    assert "stands at epoch 1, and the folds now suggest another: trained again" in capsys.readouterr().out
    after = load_file(run.refit.weights)
    assert any((after[name] != before[name]).any() for name in after)


@pytest.mark.slow
def test_wise_ft_mixes_as_the_folds_suggest(make: Callable[..., Params]) -> None:
    recipe = {"tune": "last", "wise_ft": True, "warm_start_epochs": 2, "num_epochs": 1, "learning_rate": 1e-2}
    weights = {}
    for alpha in ("alpha 1", "alpha 0.25"):
        p = make(run=alpha.replace(" ", ""), **recipe)
        goods, run = read_goods(p), Run.of(p)
        fit(p, goods, [0, 1, 2])
        choose(run, {other: [20, 20, 20] if other == alpha else [1, 1, 1] for other in ("alpha 1", "alpha 0.25")})
        refit(p, goods)
        weights[alpha] = load_file(run.refit.weights)
    moved = [name for name in weights["alpha 1"] if (weights["alpha 1"][name] != weights["alpha 0.25"][name]).any()]
    assert any(name.startswith("encoder.") for name in moved)


def test_without_folds_there_is_nothing_to_go_by(make: Callable[..., Params]) -> None:
    p = make(tune="head")
    with pytest.raises(GoodsError, match="has no trained fold yet, and a refit goes by what the folds suggest"):
        refit(p, read_goods(p))


def test_a_refit_that_is_wanted_and_not_there_is_said(copy: Trained) -> None:
    p, goods = copy
    with pytest.raises(GoodsError, match=r"isn't trained yet; run notebooks/refit\.ipynb, or leave out refit"):
        put_together(p, goods)


def test_the_pipeline_refits_after_the_folds_and_a_blend_leaves_it_to_its_runs(make: Callable[..., Params]) -> None:
    assert notebooks_of(load_params(refit=True)) == ["eda", "trust", "train", "refit", "ensemble", "submission"]
    assert notebooks_of(load_params(refit=True, kind="linear")) == ["baseline", "refit", "ensemble", "submission"]
    with pytest.raises(ParameterError, match="refit: True has no effect: a blend predicts as its runs do"):
        make(kind="blend", runs=["a"])


def test_the_ensemble_depends_on_the_refit_and_the_refit_on_the_folds(copy: Trained) -> None:
    run = Run.of(copy.p)
    assert run.fold(1).metrics in step_inputs("refit", copy.p).hashed
    assert run.refit.metrics in step_inputs("ensemble", copy.p).hashed


def test_it_goes_where_the_folds_go(copy: Trained, tmp_path: Path) -> None:
    p, goods = copy
    refit(p, goods)
    run = Run.of(p)
    assert run.refit.weights in run.model_files([REFIT])
    other = p.model_copy(update={"outputs_dir": str(tmp_path / "other"), "resume_from": str(run.folder)})
    open_run(other)
    theirs, own = run.refit, Run.of(other).refit
    assert own.trained and own.weights.read_bytes() == theirs.weights.read_bytes()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_killed_and_gone_on_with_it_has_the_same_bytes(copy: Trained, monkeypatch, capsys, keep: str) -> None:
    given = {"keep": keep, "ema_decay": 0.9, "num_epochs": 6, "checkpoint_minutes": 0.0}
    p, goods = copy.p.model_copy(update=given), copy.goods
    run = Run.of(p)
    if keep == "best":
        choose(run, {"epoch 4": [1, 1, 1], "epoch 5": [9, 9, 9]})
    refit(p, goods)
    whole = run.refit.weights.read_bytes()
    shutil.rmtree(run.refit.folder)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stopped_after(10, patched)  # in the third epoch
        refit(p, goods)
    assert not run.refit.trained and run.refit.resumable
    refit(p, goods)
    assert "the refit goes on after step 2 of epoch 3" in capsys.readouterr().out
    assert run.refit.weights.read_bytes() == whole
