"""Tables of predictions: logits go in and come back, products are joined to them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from conftest import Trained

from goods.params import OUTPUTS
from goods.predictions import frame_logits, logits_frame, prediction_table


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
