"""Tables of predictions: logits go in and come back, products are joined to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from conftest import Trained

from goods.members import knn
from goods.params import OUTPUTS
from goods.predictions import frame_logits, logits_frame, prediction_table, read_choices, write_choices
from goods.run import Run


def test_logits_come_back_from_a_table_in_the_order_of_classes() -> None:
    logits = {name: np.random.default_rng(k).normal(size=(4, 12)) for k, name in enumerate(OUTPUTS)}
    frame = logits_frame(logits)
    assert list(frame)[:3] == ["fused_0", "fused_1", "fused_2"] and frame.shape == (4, 36)
    for name, values in logits.items():
        np.testing.assert_array_equal(frame_logits(frame, name), values)


def test_a_prediction_table_joins_the_products(trained: Trained) -> None:
    oof = pd.read_parquet(trained.p.run_dir / "fold1" / "oof.parquet")
    table = prediction_table(oof, trained.goods)
    product = trained.goods.train.set_index("id").loc[table["id"]]
    for name in ("title", "text", "image", "label"):
        assert table[name].tolist() == product[name].tolist()
    probabilities = torch.softmax(torch.tensor(frame_logits(oof, "fused")), 1)
    np.testing.assert_allclose(table["probability"], probabilities.max(1).values)
    assert table["prediction"].tolist() == probabilities.argmax(1).tolist()
    assert not prediction_table(oof, trained.goods, "text")["prediction"].equals(table["prediction"])


def test_what_is_kept_beside_tensors_makes_no_other_bytes(tmp_path: Path) -> None:
    choices = {name: {"fused": np.ones((2, 3)), "text": np.zeros((2, 3))} for name in ("epoch 1", "epoch 2")}
    voters = knn.Voters(np.array([0, 1, -1]), {"fused": (5, 10.0)}, 2)
    fold, seen = Run(tmp_path).fold(0), set()
    for _ in range(12):
        write_choices(fold.choices, choices)
        knn.save(voters, fold)
        seen.add((fold.choices.read_bytes(), fold.weights.read_bytes()))
    assert len(seen) == 1
    kept = read_choices(fold.choices)
    assert list(kept) == ["epoch 1", "epoch 2"] and list(kept["epoch 1"]) == ["fused", "text"]
