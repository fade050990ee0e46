"""Losses, class weights, and the rate and decay of each parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Trained
from torch.nn import functional as F

from goods.data.folds import read_folds
from goods.members.dual import make_task
from goods.params import OUTPUTS, Params
from goods.training.optim import class_weights, make_optimizer, output_losses


def test_rare_classes_weigh_more_by_the_root_of_their_count() -> None:
    labels = np.repeat([0, 1, 3], [100, 25, 1])  # class 2 has no row here
    weights = class_weights(labels, Params(num_classes=4)).numpy()
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(2) and weights[3] / weights[0] == pytest.approx(10)
    assert np.isfinite(weights).all() and weights.shape == (4,)
    plain = class_weights(labels, Params(num_classes=4, use_class_weight=False))
    assert torch.equal(plain, torch.ones(4))


@pytest.mark.parametrize("metric", ["accuracy", "weighted_f1", "log_loss"])
def test_classes_weigh_alike_for_a_metric_that_counts_products(metric: str) -> None:
    labels = np.repeat([0, 1, 3], [100, 25, 1])
    assert torch.equal(class_weights(labels, Params(num_classes=4, metric=metric)), torch.ones(4))
    given = class_weights(labels, Params(num_classes=4, metric=metric, use_class_weight=True))
    assert torch.equal(given, class_weights(labels, Params(num_classes=4)))  # what is asked for is done


def test_losses_are_cross_entropy_weighted_row_by_row() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(10, 4, generator=generator) for name in OUTPUTS}
    labels = torch.randint(0, 4, (10,), generator=generator)
    losses = output_losses(logits, labels, torch.ones(4), 0.1, 10)
    assert set(losses) == set(OUTPUTS)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, F.cross_entropy(logits[name], labels, label_smoothing=0.1))

    weight = torch.tensor([1.0, 2.0, 0.5, 3.0])
    each = F.cross_entropy(logits["text"], labels, reduction="none") * weight[labels]
    found = output_losses(logits, labels, weight, 0.0, 10)["text"]
    torch.testing.assert_close(found, each.mean())
    halves = [output_losses(logits, labels, weight, 0.0, 20)["text"] for _ in range(2)]
    torch.testing.assert_close(sum(halves), each.mean())  # a share of a step counts as such


def test_rates_and_decay_of_each_parameter(trained: Trained) -> None:
    given = {"tune": "full", "learning_rate": 1e-5, "head_learning_rate": 1e-2, "weight_decay": 0.3}
    p = trained.p.model_copy(update=given)
    model = make_task(p, trained.goods, read_folds(trained.goods, p), {}).model
    optimizer = make_optimizer(model, p)
    found = {id(w): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for w in g["params"]}
    names = {name: found.pop(id(w)) for name, w in model.named_parameters() if w.requires_grad}
    assert not found
    assert names["encoder.backbone.text_model.encoder.layers.0.mlp.fc1.weight"] == (1e-5, 0.3)
    assert names["encoder.backbone.text_model.encoder.layers.0.mlp.fc1.bias"] == (1e-5, 0)
    assert names["encoder.backbone.vision_model.encoder.layers.0.layer_norm1.weight"] == (1e-5, 0)
    assert names["heads.fused.1.weight"] == (1e-2, 0.3) and names["heads.image.1.bias"] == (1e-2, 0)
    assert names["heads.fused.0.weight"] == (1e-2, 0)  # a LayerNorm's
    rates = {name.startswith("heads."): rate for name, (rate, _) in names.items()}
    assert rates == {True: 1e-2, False: 1e-5}
