"""submission.csv and submission_probs.csv."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from goods.data.tables import Goods
from goods.errors import GoodsError
from goods.files import atomic_path, read_frame, read_json
from goods.params import Params
from goods.predictions import frame_logits
from goods.run import Run


def write_submission(p: Params, goods: Goods) -> pd.DataFrame:
    """Writes submission.csv and submission_probs.csv from the ensemble; returns id, label, c0 ... c{K-1}.

    One row for each row of test.csv, in its order, with the labels as train.csv writes them; c{k} is the probability
    of class index k. Folds that the ensemble lacks are said aloud. Raises GoodsError when the ensemble is
    missing or doesn't fit test.csv.
    """
    run, again = Run.of(p), "run notebooks/ensemble.ipynb again"
    if not run.test.is_file():
        raise GoodsError(f"run '{p.run}' has no ensemble yet; run notebooks/ensemble.ipynb first")
    test = read_frame(run.test, ["id"], again)
    if test["id"].tolist() != goods.test["id"].tolist():
        raise GoodsError(f"the ids in {run.test} are not those of {p.test_csv}; {again}")
    probabilities = np.exp(frame_logits(test))  # (n, num_classes)
    if not np.allclose(probabilities.sum(1), 1, atol=1e-6):
        raise GoodsError(f"the probabilities in {run.test} don't sum to 1; {again}")
    if missing := read_json(run.metrics, again).get("missing_folds"):
        print(f"the ensemble lacks {len(missing)} of {p.n_folds} folds: {', '.join(map(str, missing))}")
    return write_rows(run, test["id"].tolist(), probabilities, goods.labels, (p.id_column, p.label_column))


def write_rows(
    run: Run, ids: Sequence[str], probabilities: np.ndarray, labels: Sequence[int | str], names: tuple[str, str]
) -> pd.DataFrame:
    """Writes the run's submission.csv and submission_probs.csv; returns id, label, c0 ... c{K-1}.

    probabilities: (n, num_classes), class k's label being labels[k]. names: the columns of ids and labels.
    """
    predicted = np.asarray(labels, dtype=object)[probabilities.argmax(1)]
    submission = pd.DataFrame(dict(zip(names, (list(ids), predicted), strict=True)))
    columns = pd.DataFrame(probabilities, columns=[f"c{k}" for k in range(probabilities.shape[1])])
    with atomic_path(run.submission) as temporary:
        submission.to_csv(temporary, index=False)
    with atomic_path(run.submission_probs) as temporary:
        pd.concat([submission[[names[0]]], columns], axis=1).to_csv(temporary, index=False, float_format="%.6f")
    return pd.concat([submission, columns], axis=1)


def named_classes(submission: pd.DataFrame, goods: Goods) -> pd.DataFrame:
    """What write_submission gave for people, in its order: id, title, image, first and second (names of the likeliest
    classes), probability (of the first)."""
    probabilities = submission.filter(regex=r"^c\d+$").to_numpy()
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    names = np.asarray(goods.classes, dtype=object)[order]
    columns = [name for name in ("id", "title", "image") if name in goods.test]
    return (
        goods.test[columns]
        .reset_index(drop=True)
        .assign(first=names[:, 0], second=names[:, 1], probability=probabilities.max(1))
    )
