"""The folds of a run together, and runs together: one prediction of all members, and what it is honestly worth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.metrics import f1_score

from goods_data import Goods, read_folds
from goods_params import GoodsError, Params, atomic_path, resolve, write_json
from goods_train import frame_logits, logits_frame, outputs_of, predict_test, score

RESAMPLES = 400  # of the rows, for the interval of a gain


# ---------------------------------------------------------------------------------------------------------------------
# 13 Ensembling
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ensemble:
    """All folds of a run together.

    oof: id, label, fold and log-probabilities fused_0 ... of each training product whose fold was trained, from the
    model that didn't see it. test: id and log-probabilities, the mean of the folds' probabilities. scores: accuracy,
    macro_f1, log_loss by fold and "oof" (rows) and output (upper columns).
    """

    oof: pd.DataFrame
    test: pd.DataFrame
    scores: pd.DataFrame
    missing: list[int]
    members: pd.DataFrame | None = None  # of a blend: scores, calibration error and weight of each, and of the blend

    @property
    def table(self) -> pd.DataFrame:
        """What to look at first: the members of a blend, else the scores by fold."""
        return self.scores if self.members is None else self.members


def ensemble_folds(p: Params, goods: Goods) -> Ensemble:
    """Mean of the probabilities of all trained folds; writes oof, test, weights and metrics to the run's ensemble/.

    Folds that have not predicted the test set yet do it first, together. A run of kind blend is made by blend_runs.

    Raises GoodsError when no fold is trained or a fold's predictions don't fit the run's folds or the test set.
    """
    if p.kind == "blend":
        return blend_runs(p, goods)
    folds = read_folds(goods, p)
    if p.kind != "linear":  # which has predicted it at once
        predict_test(p, goods)
    done = [k for k in range(p.n_folds) if (p.run_dir / f"fold{k}" / "metrics.json").is_file()]
    if not done:
        raise GoodsError(f"run '{p.run}' has no trained fold yet; run notebooks/train.ipynb with fold 0 first")
    parts = {k: _read_fold(p.run_dir / f"fold{k}", folds[folds["fold"] == k], goods.test["id"]) for k in done}
    oof = pd.concat([oof for oof, _ in parts.values()])
    oof = folds[folds["fold"].isin(done)].merge(oof.drop(columns=["label", "fold"]), on="id", validate="1:1")
    outputs = outputs_of(oof)
    test = {name: [log_softmax(frame_logits(test, name), axis=1) for _, test in parts.values()] for name in outputs}
    mean = {name: logsumexp(each, axis=0) - np.log(len(each)) for name, each in test.items()}
    result = Ensemble(
        oof=pd.concat([oof[["id", "label", "fold"]], _log_probabilities(oof)], axis=1),
        test=pd.concat([goods.test[["id"]], logits_frame(mean)], axis=1),
        scores=fold_scores(oof),
        missing=[k for k in range(p.n_folds) if k not in done],
    )
    _write_ensemble(p.run_dir / "ensemble", result, {f"fold{k}": 1 / len(done) for k in done})
    return result


def _read_fold(folder: Path, expected: pd.DataFrame, test_ids: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
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


def _log_probabilities(frame: pd.DataFrame) -> pd.DataFrame:
    return logits_frame({name: log_softmax(frame_logits(frame, name), axis=1) for name in outputs_of(frame)})


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


def _write_ensemble(folder: Path, result: Ensemble, weights: dict[str, float]) -> None:
    for name, frame in (("oof", result.oof), ("test", result.test)):
        with atomic_path(folder / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
    write_json(folder / "weights.json", weights)
    outputs, folds = outputs_of(result.oof), result.scores.index.drop("oof")
    metrics: dict[str, Any] = {name: result.scores.loc["oof", name].to_dict() for name in outputs}
    metrics["folds"] = {k: result.scores.loc[k, outputs[0]].to_dict() for k in folds}
    if result.members is not None:
        metrics["members"] = json.loads(result.members.to_json(orient="index"))
    write_json(folder / "metrics.json", metrics | {"missing_folds": result.missing})


# ---------------------------------------------------------------------------------------------------------------------
# 14 Blending runs
# ---------------------------------------------------------------------------------------------------------------------


def blend_runs(p: Params, goods: Goods) -> Ensemble:
    """A weighted mean of the log-probabilities of all members of p.runs; writes ensemble/ as ensemble_folds does.

    A member is one output of a run. The weights are not negative and make the log-loss least, so that a member that
    adds nothing drops out, and their sum sets the temperature. Out of fold, each fold is predicted with weights that
    were fitted without it; the test set with those of all rows.

    Raises GoodsError when a run is missing or unfinished, or has other products, folds or labels.
    """
    if not p.runs:
        raise GoodsError("kind blend needs runs, such as runs=linear,head: the runs to put together")
    folds = read_folds(goods, p)
    members: dict[str, np.ndarray] = {}  # (n, num_classes)
    tests: dict[str, np.ndarray] = {}
    for run in p.runs:
        oof, test = _read_run(resolve(p.outputs_dir) / run, folds, goods)
        for output in outputs_of(oof):
            members[f"{run}/{output}"], tests[f"{run}/{output}"] = frame_logits(oof, output), frame_logits(test, output)
    labels, fold = folds["label"].to_numpy(), folds["fold"].to_numpy()
    stacked = np.stack([log_softmax(values, axis=1) for values in members.values()])  # (members, n, num_classes)
    blended = np.zeros_like(stacked[0])
    for k in np.unique(fold):
        weights = fit_weights(stacked[:, fold != k], labels[fold != k])
        blended[fold == k] = np.tensordot(weights, stacked[:, fold == k], 1)
    weights = fit_weights(stacked, labels)
    on_test = np.tensordot(weights, np.stack([log_softmax(values, axis=1) for values in tests.values()]), 1)
    oof = pd.concat([folds, logits_frame({"fused": log_softmax(blended, axis=1)})], axis=1)
    result = Ensemble(
        oof=oof,
        test=pd.concat([goods.test[["id"]], logits_frame({"fused": log_softmax(on_test, axis=1)})], axis=1),
        scores=fold_scores(oof),
        missing=[],
        members=member_table(members, weights, labels, blended),
    )
    _write_ensemble(p.run_dir / "ensemble", result, dict(zip(members, weights.round(4).tolist(), strict=True)))
    return result


def _read_run(run_dir: Path, folds: pd.DataFrame, goods: Goods) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ensemble tables of a run, oof and test, checked against this run's products, folds and labels."""
    try:
        oof, test = (pd.read_parquet(run_dir / "ensemble" / f"{name}.parquet") for name in ("oof", "test"))
        labels = json.loads((run_dir / "labels.json").read_text(encoding="utf-8"))["labels"]
    except Exception:  # pyarrow raises anything on damaged bytes
        raise GoodsError(f"there is no readable ensemble in {run_dir}; run that run's pipeline first") from None
    oof = folds[["id"]].merge(oof, on="id", how="left")
    if oof["label"].isna().any():
        lost = oof.loc[oof["label"].isna(), "id"].tolist()
        raise GoodsError(f"run '{run_dir.name}' has no out-of-fold prediction of {len(lost)} products ({lost[0]} ...); "
                         "train all of its folds, on the same train.csv")  # fmt: skip
    for column in ("label", "fold"):
        other = np.flatnonzero(oof[column].to_numpy() != folds[column].to_numpy())
        if len(other):
            i = other[0]
            raise GoodsError(f"run '{run_dir.name}' has other {column}s: product {folds['id'][i]} is in {column} "
                             f"{int(oof[column][i])} there and {folds[column][i]} here; take the same seed, n_folds "
                             "and tables for all runs")  # fmt: skip
    if test["id"].tolist() != goods.test["id"].tolist():
        raise GoodsError(f"run '{run_dir.name}' has predicted another test.csv; run its pipeline again")
    if labels != goods.labels:
        raise GoodsError(f"run '{run_dir.name}' has other labels than train.csv; run its pipeline again")
    for frame in (oof, test):
        if not np.isfinite(frame.filter(regex=r"_\d+$").to_numpy()).all():
            raise GoodsError(f"run '{run_dir.name}' holds values that are not numbers; run its pipeline again")
    return oof, test


def fit_weights(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(members,) weights >= 0 of (members, n, num_classes) at which the log-loss of their weighted sum is least."""
    rows = np.arange(len(labels))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(np.tensordot(weights, log_probabilities, 1), axis=1)
        error = np.exp(log_p)
        error[rows, labels] -= 1  # (n, num_classes), the gradient by the summed logits
        gradient = np.tensordot(log_probabilities, error, 2) / len(labels)
        return float(-log_p[rows, labels].mean()), gradient

    members = len(log_probabilities)
    start = np.full(members, 1 / members)
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * members).x


def member_table(
    members: dict[str, np.ndarray], weights: np.ndarray, labels: np.ndarray, blended: np.ndarray
) -> pd.DataFrame:
    """accuracy, macro_f1, log_loss, calibration_error and weight of each member, best first, and of the blend.

    gain: the blend's macro-F1 over the member's, with its 95 % interval from paired resamples of the rows; an interval
    that holds 0 is noise.
    """
    rows = {}
    for (name, values), weight in zip(members.items(), weights, strict=True):
        rows[name] = score(labels, values) | {"calibration_error": calibration_error(labels, values), "weight": weight}
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("macro_f1", ascending=False)
    gains = {name: paired_gain(labels, blended.argmax(1), members[name].argmax(1)) for name in table.index}
    table = table.join(pd.DataFrame.from_dict(gains, orient="index", columns=["gain", "gain_low", "gain_high"]))
    table.loc["blend"] = score(labels, blended) | {"calibration_error": calibration_error(labels, blended)}
    return table.rename_axis("member")


def calibration_error(labels: np.ndarray, logits: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599): mean gap of confidence and accuracy, in equal bins."""
    probabilities = softmax(logits, axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def paired_gain(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Macro-F1 of ours less that of theirs, and its 95 % interval over resamples of the rows."""

    def gain(rows: np.ndarray) -> float:
        a, b = (f1_score(labels[rows], of[rows], average="macro", zero_division=0) for of in (ours, theirs))
        return float(a - b)

    rng = np.random.default_rng(0)
    drawn = [gain(rng.integers(len(labels), size=len(labels))) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return gain(np.arange(len(labels))), float(low), float(high)
