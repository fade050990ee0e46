"""The recipe's parts: each does what its parameter says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fit
from safetensors.torch import load_file
from torch import nn

from goods.data.tables import read_goods
from goods.errors import GoodsError, ParameterError
from goods.members import predict_test
from goods.models.backbone import load_backbone
from goods.models.heads import GoodsClassifier, GoodsHeads
from goods.params import load_params
from goods.predictions import read_choices
from goods.run import Run
from goods.training.fold import read_logs
from goods.training.optim import Averages
from goods_utils import fit_fold

SMALL = {"image_size": 64, "hidden_dim": 32, "batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "n_folds": 3,
         "num_epochs": 2, "learning_rate": 1e-3, "max_text_length": 64, "fold": 1}  # fmt: skip


def logits(oof: pd.DataFrame) -> np.ndarray:
    return oof.filter(regex=r"_\d+$").to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["last", "lora"])
def test_only_what_was_trained_is_saved_and_it_predicts_the_same(make, tune):
    p = make(tune=tune, num_epochs=1, last_blocks=1)
    oof, goods = fit(p), read_goods(p)
    whole = sum(t.numel() for t in load_backbone(p.model_name).parameters())
    kept = load_file(p.run_dir / "fold1" / "weights.safetensors")
    backbone = {name: t for name, t in kept.items() if name.startswith("encoder.")}
    assert 0 < sum(t.numel() for t in backbone.values()) < 0.6 * whole
    assert {t.dtype for t in backbone.values()} == {torch.float16}
    assert predict_test(p, goods) == [1]
    test = pd.read_parquet(p.run_dir / "fold1" / "test.parquet")
    assert test["id"].tolist() == goods.test["id"].tolist() and np.isfinite(logits(test)).all()
    assert np.abs(logits(oof)).max() > 0


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch(make):
    whole = fit(make(run="whole", dropout=0.0))
    parts = fit(make(run="parts", dropout=0.0, micro_batch_size=3, gradient_checkpointing=True))
    np.testing.assert_allclose(logits(parts), logits(whole), atol=1e-4)


@pytest.mark.slow
def test_out_of_memory_halves_what_is_done_at_once(make, monkeypatch, capsys):
    forward = GoodsClassifier.forward

    def small_gpu(self, pixels, input_ids):
        if self.training and len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, pixels, input_ids)

    monkeypatch.setattr(GoodsClassifier, "forward", small_gpu)
    p = make(dropout=0.0, num_epochs=1)
    small = fit(p)
    assert fit_fold(p, read_goods(p))["resources"]["micro_batch_size"] == 4
    assert "going on with 4 products at once, 16 per step as before" in capsys.readouterr().out
    monkeypatch.undo()
    np.testing.assert_allclose(logits(small), logits(fit(make(run="b", dropout=0.0, num_epochs=1))), atol=1e-4)


def test_early_stopping_stops(make):
    p = make(tune="head", num_epochs=50, keep="best", early_stopping=2, head_learning_rate=1e-9)
    fit(p)
    assert len(read_logs(Run.of(p))) == 3  # nothing gets better after the first


@pytest.mark.slow
def test_a_warm_start_begins_where_the_heads_left_off(make):
    cold = make(run="cold", tune="last", num_epochs=1, learning_rate=1e-9, head_learning_rate=1e-9)
    warm = make(
        run="warm", tune="last", num_epochs=1, learning_rate=1e-9, head_learning_rate=1e-9,
        warm_start_epochs=30, warm_start_learning_rate=1e-2,
    )  # fmt: skip
    metrics = [fit_fold(p, read_goods(p))["fused"]["log_loss"] for p in (cold, warm)]
    assert metrics[1] < metrics[0] - 0.1


@pytest.mark.slow
def test_wise_ft_keeps_the_best_mix_and_the_predictions_of_all(make):
    p = make(tune="full", wise_ft=True, warm_start_epochs=20, learning_rate=0.05, num_epochs=1)
    metrics = fit_fold(p, read_goods(p))
    assert list(metrics["choices"]) == ["alpha 1", "alpha 0.25", "alpha 0.5", "alpha 0.75"]
    assert metrics["fused"]["macro_f1"] == pytest.approx(max(metrics["choices"].values()), abs=0.02)  # fp16 on its way
    kept = read_choices(Run.of(p).fold(1).choices)
    assert list(kept) == list(metrics["choices"]) and kept["alpha 0.5"]["fused"].shape[1] == 21


@pytest.mark.slow
def test_the_average_of_weights_differs_from_the_last_ones(make):
    plain, averaged = fit(make(run="a")), fit(make(run="b", ema_decay=0.9))
    assert np.abs(logits(plain) - logits(averaged)).max() > 1e-3


def test_modality_dropout_takes_one_input_of_some_products_in_training_only(make):
    heads = GoodsHeads(6, 4, make(modality_dropout=0.5, num_classes=21))
    given = {"image": torch.ones(4000, 6), "text": torch.ones(4000, 4), "columns": torch.ones(4000, 2)}
    *dropped, columns = heads.train()._drop_modality(given)
    lost = [(part == 0).all(1) for part in dropped]
    assert not (lost[0] & lost[1]).any() and columns.all()
    assert all(0.2 < part.float().mean() < 0.3 for part in lost)
    assert heads.eval()._drop_modality(given)[0] is given["image"]


@pytest.mark.slow
def test_mirrored_photos_are_averaged_in(make):
    plain, flipped = fit(make(run="a")), fit(make(run="b", test_time_flip=True))
    assert np.abs(logits(plain)[:, 42:] - logits(flipped)[:, 42:]).max() < 1e-5  # the text's stay
    assert np.abs(logits(plain)[:, :21] - logits(flipped)[:, :21]).max() > 1e-4


def test_a_nan_loss_names_the_step_and_its_products(make):
    p = make(learning_rate=1e30, head_learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(GoodsError, match=r"became (nan|inf) at step \d+ of epoch 1 \(ids \w+"):
        fit(p)


@pytest.mark.slow
def test_a_soup_is_the_mean_of_the_second_half_of_the_epochs(make):
    p = make(tune="head", num_epochs=4, soup=True)
    averages, model = Averages(nn.Linear(2, 1), p), nn.Linear(2, 1)
    seen = []
    for epoch in range(1, 5):
        nn.init.constant_(model.weight, float(epoch))
        averages.end_epoch(model, epoch, epochs=4)
        seen.append(averages.kept()["weight"].mean().item() if averages.kept() else None)
    assert seen == [None, None, 3.0, 3.5]
    fit(p)
    assert not Run.of(p).fold(1).choices.exists()  # nothing was chosen


def test_the_best_epoch_and_the_predictions_of_every_epoch_are_kept(make):
    p = make(tune="head", num_epochs=4, keep="best", head_learning_rate=3e-3)
    metrics = fit_fold(p, read_goods(p))
    log, kept = read_logs(Run.of(p)), read_choices(Run.of(p).fold(1).choices)
    assert list(kept) == ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]
    assert list(metrics["choices"].values()) == pytest.approx(log["macro_f1"].tolist())
    assert metrics["epoch"] == log["epoch"][log["macro_f1"].idxmax()]
    oof = pd.read_parquet(Run.of(p).fold(1).oof)
    np.testing.assert_allclose(kept[f"epoch {metrics['epoch']}"]["fused"], logits(oof)[:, :21], atol=1e-5)


def test_the_best_epoch_is_that_of_the_metric(make):
    p = make(tune="head", num_epochs=50, keep="best", early_stopping=3, head_learning_rate=0.1, metric="log_loss")
    metrics, log = fit_fold(p, read_goods(p)), read_logs(Run.of(p))
    assert list(metrics["choices"].values()) == pytest.approx(log["log_loss"].tolist())
    best = log["log_loss"].idxmin()
    assert metrics["epoch"] == log["epoch"][best] and len(log) == best + 1 + 3  # and three epochs of patience
    assert best != log["macro_f1"].idxmax()
    assert list(metrics["fused"]) == ["log_loss", "macro_f1", "accuracy", "weighted_f1"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"early_stopping": 2}, "set keep=best with it"),
        ({"keep": "best", "soup": True}, "soup begins where all epochs are done"),
        ({"keep": "best", "wise_ft": True}, "wise_ft begins where all epochs are done"),
    ],
)
def test_what_can_not_be_scored_is_not_chosen(given, sentence):
    with pytest.raises(ParameterError, match=sentence):
        load_params(**given)
