"""submission.csv and submission_probs.csv."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from goods.data.tables import Goods
from goods.errors import GoodsError
from goods.files import atomic_path
from goods.params import Params
from goods.predictions import frame_logits


def write_submission(p: Params, goods: Goods) -> pd.DataFrame:
    """Writes submission.csv and submission_probs.csv from the ensemble; returns id, label, c0 ... c{K-1}.

    One row for each row of test.csv, in its order, with the labels as train.csv writes them; c{k} is the probability
    of class index k. Folds that the ensemble lacks are said aloud. Raises GoodsError when the ensemble is
    missing or doesn't fit test.csv.
    """
    path = p.run_dir / "ensemble" / "test.parquet"
    if not path.is_file():
        raise GoodsError(f"run '{p.run}' has no ensemble yet; run notebooks/ensemble.ipynb first")
    test = pd.read_parquet(path)
    if test["id"].tolist() != goods.test["id"].tolist():
        raise GoodsError(f"the ids in {path} are not those of {p.test_csv}; run notebooks/ensemble.ipynb again")
    probabilities = np.exp(frame_logits(test))  # (n, num_classes)
    if not np.allclose(probabilities.sum(1), 1, atol=1e-6):
        raise GoodsError(f"the probabilities in {path} don't sum to 1; run notebooks/ensemble.ipynb again")
    missing = json.loads(path.with_name("metrics.json").read_text(encoding="utf-8"))["missing_folds"]
    if missing:
        print(f"the ensemble lacks {len(missing)} of {p.n_folds} folds: {', '.join(map(str, missing))}")
    labels = np.asarray(goods.labels, dtype=object)[probabilities.argmax(1)]
    submission = pd.DataFrame({p.id_column: test["id"], p.label_column: labels})
    columns = pd.DataFrame(probabilities, columns=[f"c{k}" for k in range(probabilities.shape[1])])
    with atomic_path(p.run_dir / "submission.csv") as temporary:
        submission.to_csv(temporary, index=False)
    with atomic_path(p.run_dir / "submission_probs.csv") as temporary:
        pd.concat([submission[[p.id_column]], columns], axis=1).to_csv(temporary, index=False, float_format="%.6f")
    return pd.concat([submission, columns], axis=1)
