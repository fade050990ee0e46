"""What makes a fold, whether it is to be trained, and how it is finished: what the kinds share, torch or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from goods.data.folds import read_folds
from goods.data.tables import Goods
from goods.metrics import score
from goods.params import Params
from goods.predictions import write_predictions
from goods.run import Fold
from goods.training.refit import suggested_choice
from goods.training.rows import rows_hash


def what_makes(fold: Fold, p: Params, goods: Goods, code: str) -> dict[str, str]:
    """What a fold that is trained now comes from: its rows, the code; of the refit also what the folds suggest."""
    found = {"rows": rows_hash(p, goods, read_folds(goods, p), fold.number), "code": code}
    return found | ({"choice": suggested_choice(fold.run, p.metric)} if fold.is_refit else {})


def to_train(fold: Fold, p: Params, made_from: Mapping[str, str], say: bool = True) -> bool:
    """Whether a fold is to be trained: not yet, by p.retrain, or since it learned from other rows; says why."""
    if not fold.trained:
        return True
    before, name = fold.made_from(), f"{fold.title} of run '{fold.run.name}'"
    other = before.get("rows") != made_from["rows"] or before.get("choice") != made_from.get("choice")
    if p.retrain:
        why = f"{name} is trained again, since retrain is set; the trained one stays until then"
    elif before.get("rows") != made_from["rows"]:
        why = f"{name} learned from other rows than there are now (new pseudo-labels?): it is trained again"
    elif other:
        why = f"{name} stands at {before.get('choice') or 'the end'}, and the folds now suggest another: trained again"
    elif before.get("code") != made_from["code"]:
        why = (f"{name} is kept as it is, trained by another version of the code ({before.get('code')}, now "
               f"{made_from['code']}); retrain=true trains it again")  # fmt: skip
    else:
        return False
    if say:
        print(why, flush=True)
    return p.retrain or other


def finish_fold(
    fold: Fold,
    folds: pd.DataFrame,
    logits: dict[str, np.ndarray],
    facts: dict[str, Any],
    made_from: dict[str, str],
    metric: str,
) -> dict[str, Any]:
    """Writes a fold's oof.parquet and, last, metrics.json, which it returns; its weights are there already.

    logits: {output: (rows held back, num_classes)}; facts go into metrics.json beside the scores, the metric first. The
    refit holds nothing back and is scored on nothing.
    """
    held_back, metrics = folds[folds["fold"] == fold.number], {}
    if not fold.is_refit:
        write_predictions(fold.oof, held_back, logits)
        metrics = {name: score(held_back["label"].to_numpy(), values, metric) for name, values in logits.items()}
    metrics |= {"fold": fold.number} | facts
    fold.finish(metrics, made_from)
    return metrics
