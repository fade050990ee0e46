"""The training of a fold, from its goods to its files."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Trained, put_together
from PIL import Image

from goods.data.folds import read_folds
from goods.data.tables import Goods, read_goods
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError
from goods.members import open_run
from goods.members.dual import make_task
from goods.metrics import score
from goods.models.tuning import load_trained
from goods.params import OUTPUTS, Params, load_params
from goods.predictions import frame_logits, logits_frame
from goods.run import Run
from goods.training.fold import read_logs
from goods.training.inference import make_accelerator, predict
from goods.training.loop import bucketed
from goods_utils import fit_fold


def test_buckets_hold_texts_of_like_length_and_every_row_once():
    lengths = torch.randint(1, 200, (1003,), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    order = bucketed(torch.randperm(1003, generator=generator), lengths, 8, generator)
    assert sorted(order.tolist()) == list(range(1003))
    padding = sum((lengths[rows].max() - lengths[rows]).sum() for rows in order.split(8))
    assert padding < 0.1 * lengths.sum()
    firsts = [lengths[rows].float().mean() for rows in order.split(8)]
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.3  # long and short batches in any order


CLASSES = 21
MODES = pytest.mark.parametrize("mode", ["trained", pytest.param("tuned", marks=pytest.mark.slow)])
LOGITS = [f"{output}_{k}" for output in OUTPUTS for k in range(CLASSES)]


def params(mini: dict[str, Any], outputs: Path, **given: Any) -> Params:
    """Parameters of a run of its own below `outputs`, opened."""
    p = load_params(**{**mini, "outputs_dir": str(outputs), **given})
    open_run(p)
    return p


def fit(p: Params, goods: Goods | None = None) -> dict[str, Any]:
    return fit_fold(p, goods or read_goods(p))


def files(p: Params) -> dict[str, bytes]:
    """The bytes of a run's predictions and weights."""
    found = [*p.run_dir.glob("fold*/*.parquet"), *p.run_dir.glob("fold*/*.safetensors"), *p.run_dir.glob("*.csv")]
    return {path.relative_to(p.run_dir).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="session")
def tuned(mini: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One fold with all of the backbone trained."""
    given = {"run": "tuned", "tune": "full", "num_epochs": 8, "learning_rate": 1e-3, "fold": 1}
    p = params(mini, tmp_path_factory.mktemp("outputs"), **given)
    goods = read_goods(p)
    fit(p, goods)
    return Trained(p, goods)


def log_of(p: Params) -> pd.DataFrame:
    return pd.read_json(p.run_dir / f"fold{p.fold}" / "log.jsonl", lines=True)


@MODES
def test_what_a_fold_leaves(mode: str, request: pytest.FixtureRequest) -> None:
    p, goods = request.getfixturevalue(mode)
    folder = p.run_dir / f"fold{p.fold}"
    assert {f.name for f in folder.iterdir()} - {"test.parquet"} == {
        "log.jsonl", "metrics.json", "weights.safetensors", "oof.parquet",
    }  # fmt: skip
    oof, folds = pd.read_parquet(folder / "oof.parquet"), read_folds(goods, p)
    assert list(oof) == ["id", "label", "fold", *LOGITS]
    own = folds[folds["fold"] == p.fold]
    pd.testing.assert_frame_equal(oof[["id", "label", "fold"]], own.reset_index(drop=True), check_dtype=False)
    labels = goods.train.set_index("id").loc[oof["id"], "label"]
    assert oof["label"].tolist() == labels.tolist()
    assert np.isfinite(oof[LOGITS].to_numpy()).all()

    metrics = json.loads((folder / "metrics.json").read_text())
    for output in OUTPUTS:
        expected = score(oof["label"].to_numpy(), frame_logits(oof, output))
        assert metrics[output] == pytest.approx(expected, abs=1e-6)
    assert (metrics["fold"], metrics["rows"]) == (p.fold, len(folds) - len(own))
    assert metrics["resources"]["seconds"] > 0


@MODES
def test_the_log_has_a_line_per_epoch_and_the_last_is_kept(mode: str, request: pytest.FixtureRequest) -> None:
    p, _ = request.getfixturevalue(mode)
    lines = (p.run_dir / f"fold{p.fold}" / "log.jsonl").read_text().splitlines()
    names = "epoch epochs train_loss valid_loss macro_f1 accuracy learning_rate gradient_norm seconds".split()
    assert all(list(json.loads(line)) == names for line in lines)
    log, metrics = log_of(p), json.loads((p.run_dir / f"fold{p.fold}" / "metrics.json").read_text())
    assert log["epoch"].tolist() == list(range(1, p.num_epochs + 1)) and (log["epochs"] == p.num_epochs).all()
    assert metrics["best_epoch"] == log["epoch"][log["macro_f1"].idxmax()]  # the first of equals
    # In full mode the weights are rounded to fp16 on their way through the file.
    near = pytest.approx(log["macro_f1"].iloc[-1], abs=1e-9 if mode == "trained" else 0.03)
    assert metrics["fused"]["macro_f1"] == near
    assert log["learning_rate"].iloc[-1] < 1e-6 < log["learning_rate"].max()


@MODES
def test_the_kept_weights_reproduce_the_predictions(mode: str, request: pytest.FixtureRequest) -> None:
    p, goods = request.getfixturevalue(mode)
    task = make_task(p, goods, read_folds(goods, p), {})
    load_trained(task.model, p.run_dir / f"fold{p.fold}" / "weights.safetensors")
    logits = predict(task.model, task.valid, p, make_accelerator(p))
    oof = pd.read_parquet(p.run_dir / f"fold{p.fold}" / "oof.parquet")
    np.testing.assert_allclose(logits_frame(logits), oof[LOGITS], rtol=0, atol=1e-5)


def test_the_best_epoch_is_not_the_last_one_here(trained: Trained) -> None:
    best = [json.loads((trained.p.run_dir / f"fold{k}" / "metrics.json").read_text())["best_epoch"] for k in range(3)]
    assert min(best) < trained.p.num_epochs  # else the tests above could not tell them apart


@MODES
def test_training_learns(mode: str, request: pytest.FixtureRequest) -> None:
    p, _ = request.getfixturevalue(mode)
    log = log_of(p)
    chance = 1 / CLASSES
    assert log["train_loss"].iloc[0] == pytest.approx(math.log(CLASSES), abs=0.5)
    if mode == "trained":
        assert log["train_loss"].iloc[-1] < 0.2 * log["train_loss"].iloc[0]
        assert log["macro_f1"].max() > 8 * chance
    else:
        assert log["train_loss"].iloc[-1] < 0.8 * log["train_loss"].iloc[0]
        assert log["accuracy"].max() > 3 * chance


def test_both_together_beat_each_alone(trained: Trained) -> None:
    scores = put_together(trained.p, trained.goods).scores.xs("macro_f1", axis=1, level=1).loc["oof"]
    assert scores["fused"] > scores["image"] + 0.05 and scores["fused"] > scores["text"] + 0.05


def test_a_finished_fold_is_loaded_not_trained(trained: Trained) -> None:
    folder = trained.p.run_dir / "fold0"

    def state() -> dict[str, tuple[int, bytes]]:
        names = ("weights.safetensors", "oof.parquet", "metrics.json", "log.jsonl")
        return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in names}

    before = state()
    metrics = fit(trained.p, trained.goods)
    assert metrics == json.loads((folder / "metrics.json").read_text()) and state() == before


def test_an_unfinished_fold_is_trained_again(trained: Trained, tmp_path: Path) -> None:
    p = copy_of(trained, tmp_path)
    expected, folder = files(p)["fold0/oof.parquet"], p.run_dir / "fold0"
    (folder / "metrics.json").unlink()
    for name in ("oof", "test"):
        (folder / f"{name}.parquet").write_bytes(b"of another time")
    fit(p, trained.goods)
    assert files(p)["fold0/oof.parquet"] == expected
    assert not (folder / "test.parquet").exists()  # the ensemble asks for what these weights say


def copy_of(run: Trained, folder: Path) -> Params:
    """A copy of a run and of its embeddings, to be changed."""
    shutil.copytree(run.p.outputs_dir, folder / "copy")
    return run.p.model_copy(update={"outputs_dir": str(folder / "copy")})


def whole_run(p: Params) -> dict[str, bytes]:
    goods = read_goods(p)
    for fold in (0, 2):
        fit(p.model_copy(update={"fold": fold}), goods)
    put_together(p, goods)
    write_submission(p, goods)
    return files(p) | {"ensemble": (p.run_dir / "ensemble" / "test.parquet").read_bytes()}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(mini: dict[str, Any], tmp_path: Path) -> None:
    given = {"num_epochs": 3}
    cold = whole_run(params(mini, tmp_path, **given))
    assert {"fold2/oof.parquet", "fold2/test.parquet", "fold0/weights.safetensors", "submission.csv"} <= set(cold)
    torch.manual_seed(1)  # whatever was drawn before
    warm = whole_run(params(mini, tmp_path, **given, run="again"))  # its embeddings come from the cache
    assert warm == cold
    other = whole_run(params(mini, tmp_path, **given, run="other", seed=43))
    same = {name for name in cold if other[name] == cold[name]}
    assert same <= {"bad_images.csv"}  # no photo is bad in either


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_when_the_backbone_is_tuned(mini: dict[str, Any], tmp_path: Path) -> None:
    given = {"tune": "full", "num_epochs": 1, "hidden_dim": 16}
    first, second, other = (
        params(mini, tmp_path / name, **given, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for p in (first, second, other):
        fit(p)
    assert files(first)["fold0/oof.parquet"] == files(second)["fold0/oof.parquet"]
    assert files(first)["fold0/weights.safetensors"] == files(second)["fold0/weights.safetensors"]
    assert files(first)["fold0/oof.parquet"] != files(other)["fold0/oof.parquet"]


def with_sentinel(goods: Goods, row: int, folder: Path) -> Goods:
    """The goods with another label, text and photo in one row."""
    table = goods.train.copy()
    path = folder / f"sentinel{row}.png"
    Image.new("RGB", (64, 64), (255, 0, 200)).save(path)
    changes = {"label": (table["label"][row] + 1) % CLASSES, "text": "sentinel", "title": "sentinel"}
    for name, value in {**changes, "image": str(path), "sha": "sentinel"}.items():
        table.loc[row, name] = value
    return dataclasses.replace(goods, train=table)


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["head", "full"])
def test_what_is_held_back_teaches_nothing(mini: dict[str, Any], trained: Trained, tmp_path: Path, tune: str) -> None:
    folds = read_folds(trained.goods, trained.p)

    def weights(name: str, row: int | None) -> dict[str, bytes]:
        # One epoch, so that the choice of the best one, which may look at what is held back, has no say.
        p = params(mini, tmp_path, run=name, tune=tune, num_epochs=1, hidden_dim=16)
        goods = trained.goods if row is None else with_sentinel(trained.goods, row, tmp_path)
        folds.assign(label=goods.train["label"]).to_parquet(p.run_dir / "folds.parquet")
        fit(p, goods)
        return {"weights": files(p)["fold0/weights.safetensors"], "oof": files(p)["fold0/oof.parquet"]}

    held_back, learnt_from = (folds.index[(folds["fold"] == 0) == flag][3] for flag in (True, False))
    plain, held, learnt = weights("plain", None), weights("held", held_back), weights("learnt", learnt_from)
    assert held["weights"] == plain["weights"] and held["oof"] != plain["oof"]
    assert learnt["weights"] != plain["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["head", "full"])
def test_bf16_works_on_a_cpu_too_after_fp32(mini: dict[str, Any], trained: Trained, tmp_path: Path, tune: str) -> None:
    make_accelerator(trained.p)  # a kernel that trained in fp32 before
    given = {"tune": tune, "num_epochs": 1, "hidden_dim": 16}
    p = params(mini, tmp_path, **given, mixed_precision="bf16")
    metrics = fit(p)
    plain = params(mini, tmp_path, **given, run="plain", mixed_precision="fp32")
    assert fit(plain)["fused"]["log_loss"] == pytest.approx(metrics["fused"]["log_loss"], rel=0.05)
    assert files(p)["fold0/oof.parquet"] != files(plain)["fold0/oof.parquet"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 works on a GPU")
def test_fp16_without_a_gpu_is_refused_at_once(mini: dict[str, Any], tmp_path: Path) -> None:
    p = params(mini, tmp_path, mixed_precision="fp16")
    with pytest.raises(GoodsError, match="mixed_precision fp16 needs a GPU, and there is none; take auto"):
        fit(p)
    assert not (p.run_dir / "fold0").exists()


@pytest.mark.parametrize("rates", [{"head_learning_rate": 1e30}, {"tune": "full", "learning_rate": 1e30}])
def test_a_loss_that_is_not_a_number_is_an_error(mini: dict[str, Any], tmp_path: Path, rates: dict[str, Any]) -> None:
    p = params(mini, tmp_path, **rates)
    with pytest.raises(GoodsError, match=r"the loss of fold 0 became (nan|inf) at step \d+ of epoch 1 .*; lower the"):
        fit(p)
    assert not (p.run_dir / "fold0" / "metrics.json").exists() and not list(p.run_dir.rglob("*.tmp"))


def only_some_classes(goods: Goods) -> Goods:
    """The goods without most products of class 0: one row for three folds."""
    rows = goods.train.index[goods.train["label"] == 0][1:]
    return dataclasses.replace(goods, train=goods.train.drop(index=rows).reset_index(drop=True))


def only_two(goods: Goods) -> Goods:
    """Only two test products."""
    return dataclasses.replace(goods, test=goods.test.head(2))


@pytest.mark.parametrize("change", [only_some_classes, only_two])
def test_folds_without_a_class_and_tiny_test_sets(
    mini: dict[str, Any], tmp_path: Path, change: Callable[[Goods], Goods]
) -> None:
    p = params(mini, tmp_path, num_epochs=2)
    goods = change(read_goods(p))
    for fold in p.chosen_folds:
        metrics = fit(p.model_copy(update={"fold": fold}), goods)
        assert math.isfinite(metrics["fused"]["log_loss"])
    assert len(put_together(p, goods).test) == len(goods.test)


def test_a_batch_larger_than_the_training_set_is_one_step(mini: dict[str, Any], tmp_path: Path) -> None:
    p = params(mini, tmp_path, num_epochs=2, batch_size=4096, eval_batch_size=4096)
    assert fit(p)["rows"] == 84 and len(log_of(p)) == 2


def test_a_debug_run_is_one_epoch_in_a_folder_of_its_own(mini: dict[str, Any], tmp_path: Path) -> None:
    p = params(mini, tmp_path, debug=True)
    assert p.run_dir.name == "mini-debug"
    fit(p)
    assert log_of(p)[["epoch", "epochs"]].values.tolist() == [[1, 1]]


def test_logs_of_all_folds_together(trained: Trained, tmp_path: Path) -> None:
    logs = read_logs(Run.of(trained.p))
    assert logs.groupby("fold").size().to_dict() == dict.fromkeys(range(3), trained.p.num_epochs)
    assert read_logs(Run(tmp_path)).empty
