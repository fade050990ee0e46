"""The test set is predicted stretch by stretch, inside the hours there are, and gone on with in the next call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import Trained

from goods import members
from goods.errors import StoppedInTime, TimeOverError
from goods.members import Logits, Predict, dual, predict_test
from goods.params import Params
from goods.run import Run
from goods.training.inputs import Inputs

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The miniature experiment, to predict its 42 test products in stretches of 16, with an hour to do it in."""
    shutil.copytree(trained.p.outputs_dir, tmp_path / "outputs")
    given = {"outputs_dir": str(tmp_path / "outputs"), "eval_batch_size": 8, "max_hours": 1.0}
    p = trained.p.model_copy(update=given)
    for fold in Run.of(p).folds():
        fold.test.unlink(missing_ok=True)
    monkeypatch.setattr(members, "TEST_ROWS", 20)  # two batches of 8 and a bit
    return Trained(p, trained.goods)


def tables(p: Params) -> dict[int, bytes]:
    return {fold.number: fold.test.read_bytes() for fold in Run.of(p).folds() if fold.predicted}


def begun(p: Params) -> list[int]:
    """How many test products each fold has predicted of those it isn't through with."""
    return [len(pd.read_parquet(f.begun_test)) if f.begun_test.is_file() else 0 for f in Run.of(p).folds()]


def over_after(looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that predict_test looks at shows the end of all time after so many looks."""
    clock: Iterator[float] = chain(repeat(0.0, looks), repeat(float("inf")))
    monkeypatch.setattr(members, "time", SimpleNamespace(time=lambda: next(clock)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], int]]:
    """What has been predicted: the folds, and of how many products."""
    calls, original = [], dual.predictor

    def predictor(p: Params, folds: list, inputs: Inputs) -> Predict:
        predict = original(p, folds, inputs)

        def counted(products: pd.DataFrame) -> Logits:
            calls.append(([fold.number for fold in folds], len(products)))
            return predict(products)

        return counted

    monkeypatch.setattr(dual, "predictor", predictor)
    return calls


def test_time_that_is_over_leaves_the_rest_for_the_next_call(copy: Trained, asked, monkeypatch, capsys) -> None:
    p, goods = copy
    assert predict_test(p, goods) == [0, 1, 2]
    whole = tables(p)
    assert asked == [([0, 1, 2], 16), ([0, 1, 2], 16), ([0, 1, 2], 10)] and begun(p) == [0, 0, 0]
    for fold in Run.of(p).folds():
        fold.test.unlink()
    asked.clear()
    with monkeypatch.context() as patched, pytest.raises(StoppedInTime):
        over_after(2, patched)
        predict_test(p, goods)
    assert "max_hours 1.0 are over: what is predicted of the test set is saved" in capsys.readouterr().out
    assert begun(p) == [32, 32, 32] and tables(p) == {}
    assert predict_test(p, goods) == [0, 1, 2]
    assert asked == [([0, 1, 2], 16), ([0, 1, 2], 16), ([0, 1, 2], 10)]  # nothing twice
    assert tables(p) == whole and begun(p) == [0, 0, 0]
    assert predict_test(p, goods) == []


def test_stretches_give_what_the_whole_test_set_gives(copy: Trained, monkeypatch) -> None:
    predict_test(*copy)
    stretches = tables(copy.p)
    for fold in Run.of(copy.p).folds():
        fold.test.unlink()
    monkeypatch.setattr(members, "TEST_ROWS", 1000)
    predict_test(*copy)
    assert tables(copy.p) == stretches


def test_time_that_is_over_before_the_first_stretch_is_an_error(copy: Trained, asked, monkeypatch) -> None:
    over_after(0, monkeypatch)
    with pytest.raises(TimeOverError, match=r"max_hours 1\.0 were over before the test set was predicted; raise it"):
        predict_test(*copy)
    assert not asked


def test_folds_that_got_less_far_catch_up(copy: Trained, asked, monkeypatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(StoppedInTime):
        over_after(1, patched)
        predict_test(*copy)
    first, second, _ = Run.of(copy.p).folds()
    first.begun_test.write_bytes(b"damaged")
    other = pd.read_parquet(second.begun_test)
    other.assign(id=other["id"][::-1].to_numpy()).to_parquet(second.begun_test)  # of another test set
    asked.clear()
    predict_test(*copy)
    assert asked == [([0, 1], 16), ([0, 1, 2], 16), ([0, 1, 2], 10)]


def test_a_fold_that_is_trained_again_begins_its_test_set_anew(copy: Trained) -> None:
    fold = Run.of(copy.p).fold(0)
    fold.begun_test.write_bytes(b"of weights that are no more")
    fold.finish(fold.scores(), fold.made_from())
    assert not fold.begun_test.exists()
