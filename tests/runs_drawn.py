"""Finished runs written down without training: their record, predictions and scores, as the real ones leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goods.files import write_frame, write_json
from goods.metrics import score
from goods.params import Params
from goods.predictions import logits_frame
from goods.run import VERSION, Run

CLASSES = ("Books", "Toys & Games", "<b>Tools</b>")


def goods_of(n: int = 300, seed: int = 0) -> pd.DataFrame:
    """id, label and fold of products of three classes, in five folds."""
    labels = np.random.default_rng(seed).integers(len(CLASSES), size=n)
    return pd.DataFrame({"id": [f"p{k}" for k in range(n)], "label": labels, "fold": np.arange(n) % 5})


def write_run(outputs: Path, name: str, goods: pd.DataFrame, skill: float, seed: int = 0, **parameters: Any) -> Run:
    """A run whose out-of-fold predictions are the better, the greater its skill; of the same seed they are alike."""
    run = Run(outputs / name)
    given = {
        "run": name,
        "num_classes": len(CLASSES),
        "outputs_dir": str(outputs),
        "train_csv": str(outputs / "none.csv"),
    }
    write_json(
        run.record_file, {"version": VERSION, "parameters": Params(**given | parameters).model_dump(mode="json")}
    )
    write_json(run.labels, {"labels": list(range(len(CLASSES))), "classes": list(CLASSES)})
    truth = np.eye(len(CLASSES))[goods["label"]]
    logits = skill * truth + np.random.default_rng(seed).normal(size=truth.shape)
    write_frame(run.oof, pd.concat([goods, logits_frame({"fused": logits})], axis=1))
    write_json(run.metrics, {"fused": score(goods["label"].to_numpy(), logits), "missing_folds": []})
    write_json(run.method, {"weights": {}})
    run.submission.write_text("id,label\n")
    return run
