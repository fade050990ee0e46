"""Runs together: the outputs of several finished runs as one prediction."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from goods.data.folds import read_folds
from goods.data.tables import Goods
from goods.ensemble.blend import METHODS, added_by, blend_members, method_table
from goods.ensemble.combine import AVERAGE
from goods.ensemble.folds import Ensemble, fold_scores, write_ensemble
from goods.ensemble.learned import RunBlend
from goods.errors import DamagedFileError, GoodsError, ParameterError
from goods.files import read_frame, read_json
from goods.metrics import METRICS, calibration_error, score
from goods.params import Params
from goods.predictions import frame_logits, logits_frame, outputs_of
from goods.run import Run


def blend_runs(p: Params, goods: Goods) -> Ensemble:
    """All members of p.runs as one prediction (goods.ensemble.blend); writes ensemble/ as ensemble_folds does.

    A member is one output of a run. Out of fold, each fold is predicted by a method that was fitted and calibrated, and
    with blend_method=choose chosen, without it; the test set by the method on all rows.

    Raises GoodsError when a run is missing or unfinished, or has other products, folds or labels.
    """
    if not p.runs:
        raise ParameterError("a blend needs runs, such as runs=linear,head: the runs to put together")
    folds = read_folds(goods, p)
    members: dict[str, np.ndarray] = {}  # (n, num_classes) log-probabilities, nan where there are none
    tests: dict[str, np.ndarray] = {}
    for run in p.runs:
        oof, test = _read_run(Run.named(p, run), folds, goods, p.allow_missing_folds)
        for output in outputs_of(oof):
            for part, table in ((members, oof), (tests, test)):
                part[f"{run}/{output}"] = log_softmax(frame_logits(table, output), axis=1)
    stacked = np.stack(list(members.values()))  # (members, n, num_classes)
    known = np.isfinite(stacked).all((0, 2))
    if not known.any():
        raise GoodsError("no product is predicted out of fold by all runs; train the same folds in each")
    _check_folds(members, folds, known)
    stacked, folds = stacked[:, known], folds[known].reset_index(drop=True)
    labels, fold = folds["label"].to_numpy(), folds["fold"].to_numpy()
    several = {"auto": (*METHODS, AVERAGE), "choose": tuple(METHODS)}
    methods = several.get(p.blend_method, (p.blend_method,))
    made = blend_members(stacked, labels, fold, methods, p.metric)
    oof = pd.concat([folds, logits_frame({"fused": log_softmax(made.oof, axis=1)})], axis=1)
    learned = RunBlend(tuple(members), made.combiner, made.temperature, made.picked)
    on_test = learned.combine(tests)
    best = max(stacked, key=lambda values: METRICS[p.metric].worth(labels, values))
    named = dict(zip(members, stacked, strict=True))
    result = Ensemble(
        oof=oof,
        test=pd.concat([goods.test[["id"]], logits_frame(on_test)], axis=1),
        scores=fold_scores(oof, p.metric),
        missing=[k for k in range(p.n_folds) if k not in fold],
        uncalibrated=made.uncalibrated,
        tables={
            "members": member_table(named, made.combiner.weights, made.oof, labels, p.metric),
            "methods": method_table(made, labels, fold, best, p.metric),
            "added": added_by(named, labels, fold, p.metric),
        },
    )
    write_ensemble(Run.of(p), result, learned, method=made.method, **learned.choices)
    return result


def _read_run(run: Run, folds: pd.DataFrame, goods: Goods, incomplete: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ensemble tables of a run, oof and test, checked against this run's products, folds and labels.

    With `incomplete`, products that the run has no out-of-fold prediction of have nan.
    """
    name, made_with = run.name, "take the tables that it was made with, or make it anew under another name"
    again = "run that run's pipeline first, or once more with --steps ensemble --force"
    oof, test = read_frame(run.oof, ["id", "label", "fold"], again), read_frame(run.test, ["id"], again)
    labels = read_json(run.labels, again).get("labels")
    if oof["id"].duplicated().any():
        twice = oof["id"][oof["id"].duplicated()].iloc[0]
        raise DamagedFileError(f"run '{name}' predicts product {twice} more than once; {again}")
    for frame in (oof, test):
        if not np.isfinite(frame.filter(regex=r"_\d+$").to_numpy()).all():
            raise GoodsError(f"run '{name}' holds values that are not numbers; {again}")
    if labels != goods.labels or frame_logits(oof).shape[1] != len(labels):
        raise GoodsError(f"run '{name}' has other labels than train.csv; {made_with}")
    oof = folds[["id"]].merge(oof, on="id", how="left")
    lost = oof["label"].isna().to_numpy()
    if lost.any() and not incomplete:
        raise GoodsError(f"run '{name}' has no out-of-fold prediction of {lost.sum()} products "
                         f"({oof['id'][lost].iloc[0]} ...); train all of its folds, on the same train.csv, or set "
                         "allow_missing_folds")  # fmt: skip
    for column in ("label", "fold"):
        other = np.flatnonzero((oof[column].to_numpy() != folds[column].to_numpy()) & ~lost)
        if len(other):
            i = other[0]
            raise GoodsError(f"run '{name}' has other {column}s: product {folds['id'][i]} is in {column} "
                             f"{int(oof[column][i])} there and {folds[column][i]} here; take the same seed, n_folds "
                             "and tables for all runs")  # fmt: skip
    if test["id"].tolist() != goods.test["id"].tolist():
        raise GoodsError(f"run '{name}' has predicted another test.csv; {made_with}")
    return oof, test


def _check_folds(members: dict[str, np.ndarray], folds: pd.DataFrame, known: np.ndarray) -> None:
    """Raises GoodsError where all members together have but one fold: each is scored by fits on the others."""
    if folds["fold"][known].nunique() > 1:
        return
    of_run = {}
    for name, logits in members.items():
        found = np.unique(folds["fold"][np.isfinite(logits).all(1)])
        of_run[name.split("/")[0]] = f"{name.split('/')[0]} has {', '.join(map(str, found))}"
    raise GoodsError(f"only fold {folds['fold'][known].iloc[0]} is predicted out of fold by all runs, and a blend is "
                     f"scored on folds that it wasn't fitted on: train two or more folds that all runs share "
                     f"({'; '.join(of_run.values())})")  # fmt: skip


def member_table(
    members: dict[str, np.ndarray], weights: np.ndarray, oof: np.ndarray, labels: np.ndarray, metric: str = "macro_f1"
) -> pd.DataFrame:
    """All metrics, calibration_error and weight of each member, the best by `metric` first, and of the blend."""
    rows = {}
    for (name, values), weight in zip(members.items(), weights, strict=True):
        rows[name] = score(labels, values, metric)
        rows[name] |= {"calibration_error": calibration_error(labels, values), "weight": weight}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table = table.sort_values(metric, ascending=METRICS[metric].sign < 0, kind="stable")
    table.loc["blend"] = score(labels, oof) | {"calibration_error": calibration_error(labels, oof)}
    return table.rename_axis("member")
