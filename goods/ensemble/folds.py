"""The folds of a run together, and runs together: one prediction of all members, and what it is honestly worth."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax, logsumexp

from goods.data.folds import read_folds
from goods.data.tables import Goods
from goods.ensemble.blend import METHODS, added_by, blend_members, method_table, row_of
from goods.errors import GoodsError
from goods.files import atomic_path, resolve, write_json
from goods.metrics import calibrated, calibration_error, macro_f1, score
from goods.params import Params
from goods.predictions import frame_logits, logits_frame, outputs_of
from goods.training.inference import predict_test


@dataclass(frozen=True)
class Ensemble:
    """All folds of a run together.

    oof: id, label, fold and calibrated log-probabilities fused_0 ... of each training product whose fold was trained,
    from the model that didn't see it. test: id and calibrated log-probabilities. scores: accuracy, macro_f1, log_loss
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

    Folds that have not predicted the test set yet do it first, together. A run of kind blend is made by blend_runs.

    Raises GoodsError when no fold is trained or a fold's predictions don't fit the run's folds or the test set.
    """
    if p.kind == "blend":
        return blend_runs(p, goods)
    folds = read_folds(goods, p)
    if p.kind in ("dual", "text"):  # the others have predicted it at once
        predict_test(p, goods)
    done = [k for k in range(p.n_folds) if (p.run_dir / f"fold{k}" / "metrics.json").is_file()]
    if not done:
        raise GoodsError(f"run '{p.run}' has no trained fold yet; run notebooks/train.ipynb with fold 0 first")
    parts = {k: read_fold(p.run_dir / f"fold{k}", folds[folds["fold"] == k], goods.test["id"]) for k in done}
    oof = pd.concat([oof for oof, _ in parts.values()])
    oof = folds[folds["fold"].isin(done)].merge(oof.drop(columns=["label", "fold"]), on="id", validate="1:1")
    labels, fold, outputs = oof["label"].to_numpy(), oof["fold"].to_numpy(), outputs_of(oof)
    logits = {name: frame_logits(oof, name) for name in outputs}
    scaled, test = {}, {}
    for name in outputs:
        values, temperature = calibrated(logits[name], labels, fold)
        scaled[name] = log_softmax(values, axis=1)
        each = [log_softmax(frame_logits(table, name) / temperature, axis=1) for _, table in parts.values()]
        test[name] = logsumexp(each, axis=0) - np.log(len(each))
    oof = pd.concat([oof[["id", "label", "fold"]], logits_frame(scaled)], axis=1)
    result = Ensemble(
        oof=oof,
        test=pd.concat([goods.test[["id"]], logits_frame(test)], axis=1),
        scores=fold_scores(oof),
        missing=[k for k in range(p.n_folds) if k not in done],
        uncalibrated=logits[outputs[0]],
        tables=_against_teacher(p, oof),
    )
    _write_ensemble(p.run_dir / "ensemble", result, {f"fold{k}": 1 / len(done) for k in done})
    return result


def _against_teacher(p: Params, oof: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{"teacher": what this run gains over the one whose pseudo-labels it learned from}, on rows that both predict."""
    path = resolve(p.outputs_dir) / str(p.pseudo_from) / "ensemble" / "oof.parquet"
    if not p.pseudo_from or not path.is_file():
        return {}
    both = oof[["id"]].merge(pd.read_parquet(path), on="id")
    ours = oof[oof["id"].isin(both["id"])]
    row = row_of(ours["label"].to_numpy(), ours["fold"].to_numpy(), frame_logits(ours), frame_logits(both))
    before = score(ours["label"].to_numpy(), frame_logits(both))
    return {"teacher": pd.DataFrame([before, row], index=pd.Index([p.pseudo_from, p.run], name="run"))}


def read_fold(folder: Path, expected: pd.DataFrame, test_ids: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A fold's oof and test tables, checked against the rows that they must hold."""
    frames = []
    for name, ids, again in (
        ("oof", expected["id"], f"delete {folder} and train the fold again"),
        ("test", test_ids, "delete it, and the fold predicts the test set again"),
    ):
        path = folder / f"{name}.parquet"
        try:
            frame = pd.read_parquet(path)
        except Exception:  # pyarrow raises anything on damaged bytes
            raise GoodsError(f"{path} is missing or damaged; {again}") from None
        if frame["id"].tolist() != ids.tolist():
            raise GoodsError(f"the ids in {path} are not those of the run's folds and tables; {again}")
        if not np.isfinite(frame.filter(regex=r"_\d+$").to_numpy()).all():
            raise GoodsError(f"{path} holds values that are not numbers; {again}")
        frames.append(frame)
    return frames[0], frames[1]


def fold_scores(oof: pd.DataFrame) -> pd.DataFrame:
    """accuracy, macro_f1 and log_loss of each output, by fold and over all rows ("oof")."""
    parts = {str(k): part for k, part in oof.groupby("fold")} | {"oof": oof}
    rows = {
        k: {(name, metric): value for name in outputs_of(oof) for metric, value in _score(part, name).items()}
        for k, part in parts.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("fold")


def _score(part: pd.DataFrame, output: str) -> dict[str, float]:
    return score(part["label"].to_numpy(), frame_logits(part, output))


def _write_ensemble(folder: Path, result: Ensemble, weights: dict[str, float], **more: Any) -> None:
    for name, frame in (("oof", result.oof), ("test", result.test)):
        with atomic_path(folder / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
    write_json(folder / "weights.json", weights)
    outputs, folds = outputs_of(result.oof), result.scores.index.drop("oof")
    metrics: dict[str, Any] = {name: result.scores.loc["oof", name].to_dict() for name in outputs}
    metrics["folds"] = {k: result.scores.loc[k, outputs[0]].to_dict() for k in folds}
    metrics |= {name: json.loads(table.to_json(orient="index")) for name, table in result.tables.items()}
    write_json(folder / "metrics.json", metrics | {"missing_folds": result.missing} | more)


def blend_runs(p: Params, goods: Goods) -> Ensemble:
    """All members of p.runs as one prediction (goods.ensemble.blend); writes ensemble/ as ensemble_folds does.

    A member is one output of a run. Out of fold, each fold is predicted by a method that was chosen, fitted and
    calibrated without it; the test set by the method that all rows choose.

    Raises GoodsError when a run is missing or unfinished, or has other products, folds or labels.
    """
    if not p.runs:
        raise GoodsError("kind blend needs runs, such as runs=linear,head: the runs to put together")
    folds = read_folds(goods, p)
    members: dict[str, np.ndarray] = {}  # (n, num_classes) log-probabilities, nan where there are none
    tests: dict[str, np.ndarray] = {}
    for run in p.runs:
        oof, test = _read_run(resolve(p.outputs_dir) / run, folds, goods, p.allow_missing_folds)
        for output in outputs_of(oof):
            for part, table in ((members, oof), (tests, test)):
                part[f"{run}/{output}"] = log_softmax(frame_logits(table, output), axis=1)
    stacked = np.stack(list(members.values()))  # (members, n, num_classes)
    known = np.isfinite(stacked).all((0, 2))
    if not known.any():
        raise GoodsError("no product is predicted out of fold by all runs; train the same folds in each")
    stacked, folds = stacked[:, known], folds[known].reset_index(drop=True)
    labels, fold = folds["label"].to_numpy(), folds["fold"].to_numpy()
    made = blend_members(stacked, labels, fold, tuple(METHODS) if p.blend_method == "auto" else (p.blend_method,))
    oof = pd.concat([folds, logits_frame({"fused": log_softmax(made.oof, axis=1)})], axis=1)
    on_test = log_softmax(made.predict(np.stack(list(tests.values()))), axis=1)
    best = max(stacked, key=lambda values: macro_f1(labels, values.argmax(1)))
    named = dict(zip(members, stacked, strict=True))
    result = Ensemble(
        oof=oof,
        test=pd.concat([goods.test[["id"]], logits_frame({"fused": on_test})], axis=1),
        scores=fold_scores(oof),
        missing=[k for k in range(p.n_folds) if k not in fold],
        uncalibrated=made.uncalibrated,
        tables={
            "members": member_table(named, made.combiner.weights, made.oof, labels),
            "methods": method_table(made, labels, fold, best),
            "added": added_by(named, labels, fold),
        },
    )
    weights = dict(zip(members, made.combiner.weights.round(4).tolist(), strict=True))
    picked = {str(k): name for k, name in made.picked.items()}
    _write_ensemble(p.run_dir / "ensemble", result, weights, method=made.method, picked=picked)
    return result


def _read_run(run_dir: Path, folds: pd.DataFrame, goods: Goods, incomplete: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ensemble tables of a run, oof and test, checked against this run's products, folds and labels.

    With `incomplete`, products that the run has no out-of-fold prediction of have nan.
    """
    name = run_dir.name
    try:
        oof, test = (pd.read_parquet(run_dir / "ensemble" / f"{part}.parquet") for part in ("oof", "test"))
        labels = json.loads((run_dir / "labels.json").read_text(encoding="utf-8"))["labels"]
    except Exception:  # pyarrow raises anything on damaged bytes
        raise GoodsError(f"there is no readable ensemble in {run_dir}; run that run's pipeline first") from None
    if oof["id"].duplicated().any():
        raise GoodsError(f"run '{name}' predicts product {oof['id'][oof['id'].duplicated()].iloc[0]} more than once; "
                         "run its pipeline again")  # fmt: skip
    for frame in (oof, test):
        if not np.isfinite(frame.filter(regex=r"_\d+$").to_numpy()).all():
            raise GoodsError(f"run '{name}' holds values that are not numbers; run its pipeline again")
    if labels != goods.labels or frame_logits(oof).shape[1] != len(labels):
        raise GoodsError(f"run '{name}' has other labels than train.csv; run its pipeline again")
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
        raise GoodsError(f"run '{name}' has predicted another test.csv; run its pipeline again")
    return oof, test


def member_table(
    members: dict[str, np.ndarray], weights: np.ndarray, oof: np.ndarray, labels: np.ndarray
) -> pd.DataFrame:
    """accuracy, macro_f1, log_loss, calibration_error and weight of each member, best first, and of the blend."""
    rows = {}
    for (name, values), weight in zip(members.items(), weights, strict=True):
        rows[name] = score(labels, values) | {"calibration_error": calibration_error(labels, values), "weight": weight}
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("macro_f1", ascending=False, kind="stable")
    table.loc["blend"] = score(labels, oof) | {"calibration_error": calibration_error(labels, oof)}
    return table.rename_axis("member")
