"""Runs together: the outputs of several finished runs as one prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from goods.data.folds import read_folds
from goods.data.tables import Goods
from goods.ensemble.blend import METHODS, Blend, added_by, blend_members, method_table
from goods.ensemble.combine import AVERAGE, BEST, Combiner
from goods.ensemble.folds import Ensemble, fold_scores, write_ensemble
from goods.ensemble.learned import RunBlend
from goods.errors import DamagedFileError, GoodsError, ParameterError
from goods.files import read_frame, read_json, write_json
from goods.metrics import METRICS, calibration_error, score
from goods.params import Params
from goods.predictions import frame_logits, logits_frame, outputs_of
from goods.run import Run

AGAIN = "run that run's pipeline first, or once more with --steps ensemble --force"
MADE_WITH = "take the tables that it was made with, or make it anew under another name"
NO_RUNS = "a blend needs runs, such as runs=linear,head: the runs to put together"


def blend_runs(p: Params, goods: Goods) -> Ensemble:
    """All members of p.runs as one prediction (goods.ensemble.blend); writes ensemble/ as ensemble_folds does.

    A member is one output of a run. Out of fold, each fold is predicted by a method that was fitted, calibrated and, of
    several, chosen without it; the test set by the method on all rows.

    Raises GoodsError when a run is missing or unfinished, or has other products, folds or labels.
    """
    folds = read_folds(goods, p)
    members = _read_oofs(p, folds, goods.labels)
    tests: dict[str, np.ndarray] = {}  # (n, num_classes) log-probabilities
    for name in p.runs:
        tests |= _outputs(name, _read_test(Run.named(p, name), goods))
    result, learned, more = _blend(p, members, folds)
    result = replace(result, test=pd.concat([goods.test[["id"]], logits_frame(learned.combine(tests))], axis=1))
    write_ensemble(Run.of(p), result, learned, **more)
    return result


def learn_blend(p: Params) -> Run:
    """Puts runs together by their out-of-fold predictions alone; a Predictor of it predicts as blend_runs does.

    For runs whose tables of the test set are of another one, or were left behind. Writes labels.json and ensemble/, but
    for its test.parquet. Raises as blend_runs does.
    """
    if not p.runs:
        raise ParameterError(NO_RUNS)
    run, first = Run.of(p), Run.named(p, p.runs[0])
    known = read_json(first.labels, AGAIN)
    folds = read_frame(first.oof, ["id", "label", "fold"], AGAIN)[["id", "label", "fold"]]
    lost = sorted(set(range(p.n_folds)) - set(folds["fold"]))
    if lost and not p.allow_missing_folds:
        raise GoodsError(f"run '{first.name}' has no out-of-fold predictions of fold {lost[0]}; train all of its "
                         "folds, or set allow_missing_folds")  # fmt: skip
    result, learned, more = _blend(p, _read_oofs(p, folds, known["labels"]), folds)
    write_json(run.labels, known)
    write_ensemble(run, result, learned, **more)
    return run


def _blend(p: Params, members: dict[str, np.ndarray], folds: pd.DataFrame) -> tuple[Ensemble, RunBlend, dict[str, Any]]:
    """Members as one prediction out of fold, what it has learned, and what else is worth keeping; no test set yet.

    members: (n, num_classes) log-probabilities, nan where there are none.
    """
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
    named = dict(zip(members, stacked, strict=True))
    best = max(named, key=lambda name: METRICS[p.metric].worth(labels, named[name]))
    result = Ensemble(
        oof=oof,
        test=pd.DataFrame(),
        scores=fold_scores(oof, p.metric),
        missing=[k for k in range(p.n_folds) if k not in fold],
        uncalibrated=made.uncalibrated,
        tables={
            "members": member_table(named, made.combiner.weights, made.oof, labels, p.metric),
            "methods": method_table(made, labels, fold, named[best], p.metric),
            "added": added_by(named, labels, fold, p.metric),
        },
    )
    learned = _learned(tuple(members), made)
    return result, learned, {"method": made.method, "best_member": best, **learned.choices}


def _learned(members: tuple[str, ...], made: Blend) -> RunBlend:
    """What predicts further products: of the best member alone nothing but it, so that no other run is asked."""
    combiner = made.combiner
    if made.method == BEST:
        members, combiner = (members[int(combiner.weights.argmax())],), Combiner(BEST, np.ones(1))
    return RunBlend(members, combiner, made.temperature, made.picked)


def _read_oofs(p: Params, folds: pd.DataFrame, labels: list[int | str]) -> dict[str, np.ndarray]:
    """{"head/fused": (n, num_classes) log-probabilities} of the runs' outputs, nan where there are none."""
    if not p.runs:
        raise ParameterError(NO_RUNS)
    members: dict[str, np.ndarray] = {}
    for name in p.runs:
        members |= _outputs(name, _read_oof(Run.named(p, name), folds, labels, p.allow_missing_folds))
    return members


def _outputs(name: str, table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {f"{name}/{output}": log_softmax(frame_logits(table, output), axis=1) for output in outputs_of(table)}


def _finite(run: Run, path: Path, columns: list[str]) -> pd.DataFrame:
    """A table of a run's predictions; raises GoodsError where some are not numbers."""
    frame = read_frame(path, columns, AGAIN)
    if not np.isfinite(frame.filter(regex=r"_\d+$").to_numpy()).all():
        raise GoodsError(f"run '{run.name}' holds values that are not numbers; {AGAIN}")
    return frame


def _read_test(run: Run, goods: Goods) -> pd.DataFrame:
    """What a run has predicted of the test set."""
    test = _finite(run, run.test, ["id"])
    if test["id"].tolist() != goods.test["id"].tolist():
        raise GoodsError(f"run '{run.name}' has predicted another test.csv; {MADE_WITH}")
    return test


def _read_oof(run: Run, folds: pd.DataFrame, labels: list[int | str], incomplete: bool) -> pd.DataFrame:
    """A run's out-of-fold predictions, checked against this run's products, folds and labels.

    With `incomplete`, products that the run has no out-of-fold prediction of have nan.
    """
    name, oof = run.name, _finite(run, run.oof, ["id", "label", "fold"])
    if oof["id"].duplicated().any():
        twice = oof["id"][oof["id"].duplicated()].iloc[0]
        raise DamagedFileError(f"run '{name}' predicts product {twice} more than once; {AGAIN}")
    if read_json(run.labels, AGAIN).get("labels") != labels or frame_logits(oof).shape[1] != len(labels):
        raise GoodsError(f"run '{name}' has other labels than train.csv; {MADE_WITH}")
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
    return oof


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
