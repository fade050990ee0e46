"""The ensemble of a run's folds: means, scores, missing folds and damaged files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Trained, put_together
from scipy.special import softmax

from goods.data.folds import read_folds
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError
from goods.metrics import fit_temperature, score
from goods.params import OUTPUTS, Params
from goods.predictions import frame_logits
from goods_utils import fit_fold

pytestmark = pytest.mark.slow

CLASSES = 21


def fold_file(p: Params, fold: int, name: str) -> Path:
    return p.run_dir / f"fold{fold}" / name


def rewrite(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Replaces a table by what `change` makes of it."""
    change(pd.read_parquet(path)).to_parquet(path, index=False)


def test_the_test_set_gets_the_mean_of_the_folds_probabilities(run: Trained) -> None:
    result = put_together(run.p, run.goods)
    assert result.missing == []
    tables = [pd.read_parquet(fold_file(run.p, k, "test.parquet")) for k in range(3)]
    assert all(table["fold"].eq(k).all() for k, table in enumerate(tables))
    assert result.test["id"].tolist() == run.goods.test["id"].tolist()
    for output in OUTPUTS:
        temperature = fit_temperature(*oof_logits(run, range(3), output))
        columns = [f"{output}_{k}" for k in range(CLASSES)]
        each = [softmax(table[columns].to_numpy(dtype=float) / temperature, axis=1) for table in tables]
        np.testing.assert_allclose(np.exp(frame_logits(result.test, output)), np.mean(each, axis=0), atol=1e-7)
    assert np.abs(each[0] - each[1]).max() > 0.01  # the folds differ, so the mean is none of them


def oof_logits(run: Trained, folds: Iterable[int], output: str = "fused") -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of these folds' validation rows, as training left them."""
    table = pd.concat([pd.read_parquet(fold_file(run.p, k, "oof.parquet")) for k in folds])
    return frame_logits(table, output), table["label"].to_numpy()


def test_out_of_fold_rows_come_from_the_fold_that_held_them_back(run: Trained) -> None:
    result, folds = put_together(run.p, run.goods), read_folds(run.goods, run.p)
    assert result.oof["id"].tolist() == run.goods.train["id"].tolist()
    assert result.oof["fold"].tolist() == folds["fold"].tolist()
    assert result.oof["label"].tolist() == run.goods.train["label"].tolist()
    for k in range(3):
        fold = pd.read_parquet(fold_file(run.p, k, "oof.parquet"))
        own = result.oof[result.oof["fold"] == k]
        assert own["id"].tolist() == fold["id"].tolist()
        temperature = fit_temperature(*oof_logits(run, {0, 1, 2} - {k}))  # of the other folds
        expected = softmax(frame_logits(fold, "fused") / temperature, axis=1)
        np.testing.assert_allclose(np.exp(frame_logits(own, "fused")), expected, atol=1e-7)


def test_scores_of_each_fold_and_of_all_rows(run: Trained) -> None:
    result = put_together(run.p, run.goods)
    assert result.scores.index.tolist() == ["0", "1", "2", "oof"]
    labels = result.oof["label"].to_numpy()
    for output in OUTPUTS:
        logits = frame_logits(result.oof, output)
        assert result.scores.loc["oof", output].to_dict() == pytest.approx(score(labels, logits))
        metrics = json.loads(fold_file(run.p, 1, "metrics.json").read_text())
        for name in ("accuracy", "macro_f1"):  # which no temperature changes
            assert result.scores.loc["1", (output, name)] == pytest.approx(metrics[output][name])
    # Macro-F1 over all rows is not the mean of the folds' own.
    assert result.scores.loc["oof", ("fused", "accuracy")] == pytest.approx(
        (frame_logits(result.oof, "fused").argmax(1) == labels).mean()
    )


def test_what_the_ensemble_leaves(run: Trained) -> None:
    result = put_together(run.p, run.goods)
    folder = run.p.run_dir / "ensemble"
    assert {f.name for f in folder.iterdir()} == {"metrics.json", "oof.parquet", "test.parquet", "method.json"}
    for name, frame in (("oof", result.oof), ("test", result.test)):
        pd.testing.assert_frame_equal(pd.read_parquet(folder / f"{name}.parquet"), frame, check_dtype=False)
    method = json.loads((folder / "method.json").read_text())
    assert method["weights"] == {f"fold{k}": 1 / 3 for k in range(3)} and method["folds"] == [0, 1, 2]
    assert list(method["temperatures"]) == [*OUTPUTS] and min(method["temperatures"].values()) > 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["fused"] == result.scores.loc["oof", "fused"].to_dict()
    assert set(metrics) == {*OUTPUTS, "folds", "missing_folds", "refit"} and not metrics["refit"]
    assert set(metrics["folds"]) == {"0", "1", "2"}


def test_folds_that_are_not_trained_yet_are_named(run: Trained, capsys: pytest.CaptureFixture) -> None:
    shutil.rmtree(run.p.run_dir / "fold1")
    fold_file(run.p, 2, "metrics.json").unlink()  # written last: a fold without it is unfinished
    result, folds = put_together(run.p, run.goods), read_folds(run.goods, run.p)
    assert result.missing == [1, 2]
    assert result.oof["id"].tolist() == folds["id"][folds["fold"] == 0].tolist()
    only = pd.read_parquet(fold_file(run.p, 0, "test.parquet"))
    expected = softmax(frame_logits(only, "fused"), axis=1)
    np.testing.assert_allclose(np.exp(frame_logits(result.test, "fused")), expected, atol=1e-7)
    assert json.loads((run.p.run_dir / "ensemble" / "metrics.json").read_text())["missing_folds"] == [1, 2]
    write_submission(run.p, run.goods)
    assert "the ensemble lacks 2 of 3 folds: 1, 2" in capsys.readouterr().out
    assert json.loads((run.p.run_dir / "ensemble" / "method.json").read_text())["weights"] == {"fold0": 1.0}
    assert result.scores.index.tolist() == ["0", "oof"]


def test_a_later_fold_joins_the_ensemble(run: Trained) -> None:
    kept = run.p.run_dir / "fold2"
    kept.rename(run.p.run_dir.parent / "kept")
    put_together(run.p, run.goods)
    (run.p.run_dir.parent / "kept").rename(kept)
    assert put_together(run.p, run.goods).missing == []


def test_probabilities_of_huge_logits_stay_numbers(run: Trained) -> None:
    put_together(run.p, run.goods)
    logits = [f"fused_{k}" for k in range(CLASSES)]
    for k in range(3):
        rewrite(fold_file(run.p, k, "test.parquet"), lambda table: table.assign(**dict.fromkeys(logits, -1e4)))
        rewrite(fold_file(run.p, k, "test.parquet"), lambda table: table.assign(fused_3=1e4))
    result = put_together(run.p, run.goods)
    submission = write_submission(run.p, run.goods)
    assert np.isfinite(frame_logits(result.test, "fused")).all()
    assert (submission["c3"] == 1).all() and (submission["categories"] == 3).all()


def with_a_nan(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[2, "text_4"] = np.nan
    return table


def with_another_id(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[0, "id"] = "foreign"
    return table


IDS, NUMBERS = "are not those of the run's folds and tables", "holds values that are not numbers"
TRAIN, REMOVE = "; train the fold again: retrain=true, --folds 1", "; remove the file, and the fold predicts"
SPOILT = {
    "oof of others": ("oof", with_another_id, f"the ids in .*fold1/oof.parquet {IDS}{TRAIN}"),
    "oof in another order": ("oof", lambda table: table[::-1], f"oof.parquet {IDS}{TRAIN}"),
    "oof of fewer": ("oof", lambda table: table.head(3), f"oof.parquet {IDS}{TRAIN}"),
    "oof with a nan": ("oof", with_a_nan, f"oof.parquet {NUMBERS}{TRAIN}"),
    "test of others": ("test", with_another_id, f"the ids in .*fold1/test.parquet {IDS}{REMOVE}"),
    "test in another order": ("test", lambda table: table[::-1], f"test.parquet {IDS}{REMOVE}"),
    "test with a nan": ("test", with_a_nan, f"test.parquet {NUMBERS}{REMOVE}"),
}


@pytest.mark.parametrize(("name", "change", "message"), SPOILT.values(), ids=SPOILT)
def test_predictions_that_fit_nothing(run: Trained, name: str, change: Callable, message: str) -> None:
    put_together(run.p, run.goods)
    before = (run.p.run_dir / "ensemble" / "test.parquet").read_bytes()
    rewrite(fold_file(run.p, 1, f"{name}.parquet"), change)
    with pytest.raises(GoodsError, match=message):
        put_together(run.p, run.goods)
    assert (run.p.run_dir / "ensemble" / "test.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "advice"), [("oof", "train the fold again: retrain=true, --folds 1"), ("test", "remove the file")]
)
def test_a_damaged_table_is_named_and_can_be_made_again(run: Trained, name: str, advice: str) -> None:
    before = put_together(run.p, run.goods)
    path = fold_file(run.p, 1, f"{name}.parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(GoodsError, match=rf"{name}\.parquet is missing or damaged; {advice}"):
        put_together(run.p, run.goods)
    if name == "test":
        path.unlink()
    else:
        fit_fold(run.p.model_copy(update={"fold": 1, "retrain": True}), run.goods)
    pd.testing.assert_frame_equal(put_together(run.p, run.goods).test, before.test)


def test_no_fold_at_all(run: Trained) -> None:
    for k in range(3):
        shutil.rmtree(run.p.run_dir / f"fold{k}")
    with pytest.raises(GoodsError, match="run 'mini' has no trained fold yet; run its pipeline, or its notebook with"):
        put_together(run.p, run.goods)
    assert not (run.p.run_dir / "ensemble").exists()
