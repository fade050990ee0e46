"""The folds of a run as one prediction, and what it is honestly worth."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from goods.data.folds import read_folds
from goods.data.tables import Goods
from goods.ensemble.blend import row_of
from goods.ensemble.choices import as_each_chose, read_oofs, read_tests
from goods.ensemble.learned import FoldMean, RunBlend, write_learned
from goods.files import read_frame, write_frame, write_json
from goods.metrics import calibrated, score
from goods.params import Params
from goods.predictions import frame_logits, logits_frame, outputs_of
from goods.run import Run


@dataclass(frozen=True)
class Ensemble:
    """All folds of a run together.

    oof: id, label, fold and calibrated log-probabilities fused_0 ... of each training product whose fold was trained,
    from the model that didn't see it. test: id and calibrated log-probabilities. scores: all metrics, p.metric first,
    by fold and "oof" (rows) and output (upper columns). uncalibrated: (n, num_classes) logits of oof's main output, as
    they were before. tables: of a blend, its "members", the "methods" to combine them, what each member has "added"; of
    a run that learned from pseudo-labels, what it gains over its "teacher".
    """

    oof: pd.DataFrame
    test: pd.DataFrame
    scores: pd.DataFrame
    missing: list[int]
    uncalibrated: np.ndarray
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """What to look at first: the members of a blend, else the scores by fold."""
        return self.tables.get("members", self.scores)


def ensemble_folds(p: Params, goods: Goods) -> Ensemble:
    """Mean of the probabilities of all trained folds; writes oof, test, weights and metrics to the run's ensemble/.

    With p.refit the test set is predicted by the model of all rows, at the temperature of the folds.

    Raises GoodsError when no fold is trained, or has predicted the test set; DamagedFileError when a fold's predictions
    don't fit the run's folds or the test set.
    """
    run, folds = Run.of(p), read_folds(goods, p)
    oofs, tests = read_oofs(run, folds, p.metric), read_tests(run.predicting_folds(p), goods)
    done = list(oofs)
    oof = pd.concat(list(oofs.values()))
    tables = _against_own_choice(run, oofs, p.metric)
    oof = folds[folds["fold"].isin(done)].merge(oof.drop(columns=["label", "fold"]), on="id", validate="1:1")
    labels, fold, outputs = oof["label"].to_numpy(), oof["fold"].to_numpy(), outputs_of(oof)
    logits = {name: frame_logits(oof, name) for name in outputs}
    scaled, temperatures = {}, {}
    for name in outputs:
        values, temperatures[name] = calibrated(logits[name], labels, fold)
        scaled[name] = log_softmax(values, axis=1)
    learned = FoldMean(tuple(tests), temperatures)
    test = learned.combine({k: {name: frame_logits(on_test, name) for name in outputs} for k, on_test in tests.items()})
    oof = pd.concat([oof[["id", "label", "fold"]], logits_frame(scaled)], axis=1)
    result = Ensemble(
        oof=oof,
        test=pd.concat([goods.test[["id"]], logits_frame(test)], axis=1),
        scores=fold_scores(oof, p.metric),
        missing=[k for k in range(p.n_folds) if k not in done],
        uncalibrated=logits[outputs[0]],
        tables=tables | _against_teacher(p, oof),
    )
    write_ensemble(run, result, learned, refit=p.refit)
    return result


def _against_teacher(p: Params, oof: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{"teacher": what this run gains over the one whose pseudo-labels it learned from}, on rows that both predict."""
    teacher = Run.named(p, str(p.pseudo_from))
    if not p.pseudo_from or not teacher.oof.is_file():
        return {}
    both = oof[["id"]].merge(
        read_frame(teacher.oof, ["id"], f"run the pipeline of run '{p.pseudo_from}' again"), on="id"
    )
    ours = oof[oof["id"].isin(both["id"])]
    labels = ours["label"].to_numpy()
    row = row_of(labels, ours["fold"].to_numpy(), frame_logits(ours), frame_logits(both), p.metric)
    before = score(labels, frame_logits(both), p.metric)
    return {"teacher": pd.DataFrame([before, row], index=pd.Index([p.pseudo_from, p.run], name="run"))}


def _against_own_choice(run: Run, oofs: dict[int, pd.DataFrame], metric: str) -> dict[str, pd.DataFrame]:
    """{"chosen": what the score gains where each fold chooses on the rows that are scored}, for runs that choose."""
    own = as_each_chose(run, oofs)
    if own is None:
        return {}
    oof = pd.concat(list(oofs.values()))
    labels, fold, honest = oof["label"].to_numpy(), oof["fold"].to_numpy(), frame_logits(oof)
    rows = [score(labels, honest, metric), row_of(labels, fold, own, honest, metric)]
    return {"chosen": pd.DataFrame(rows, index=pd.Index(["by the other folds", "on the scored rows"], name="choice"))}


def fold_scores(oof: pd.DataFrame, metric: str = "macro_f1") -> pd.DataFrame:
    """All metrics of each output, `metric` first, by fold and over all rows ("oof")."""
    parts = {str(k): part for k, part in oof.groupby("fold")} | {"oof": oof}
    rows = {
        k: {(output, name): value for output in outputs_of(oof) for name, value in _score(part, output, metric).items()}
        for k, part in parts.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("fold")


def _score(part: pd.DataFrame, output: str, metric: str) -> dict[str, float]:
    return score(part["label"].to_numpy(), frame_logits(part, output), metric)


def write_ensemble(run: Run, result: Ensemble, learned: FoldMean | RunBlend, **more: Any) -> None:
    """Writes an ensemble's tables, what it has `learned` (method.json and its arrays), and its metrics with `more`.

    One without a test set leaves none behind.
    """
    write_frame(run.oof, result.oof)
    if len(result.test):
        write_frame(run.test, result.test)
    else:
        run.test.unlink(missing_ok=True)
    write_learned(run, learned)
    outputs, folds = outputs_of(result.oof), result.scores.index.drop("oof")
    metrics: dict[str, Any] = {name: result.scores.loc["oof", name].to_dict() for name in outputs}
    metrics["folds"] = {k: result.scores.loc[k, outputs[0]].to_dict() for k in folds}
    metrics |= {name: json.loads(table.to_json(orient="index")) for name, table in result.tables.items()}
    write_json(run.metrics, metrics | {"missing_folds": result.missing} | more)
