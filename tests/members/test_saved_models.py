"""The saved model of every kind predicts again what it predicted when it was trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Sample

from goods.data.folds import read_folds
from goods.data.tables import read_goods
from goods.errors import ParameterError
from goods.members import kind_of, predict, predict_test, predictor_of
from goods.predictions import frame_logits, outputs_of
from goods.run import Run
from goods_utils import fit_fold

SMALL = {"image_size": 64, "hidden_dim": 32, "batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "n_folds": 3,
         "num_epochs": 1, "learning_rate": 1e-3, "max_text_length": 48, "fold": 1, "last_blocks": 1}  # fmt: skip


def predicted(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {output: frame_logits(table, output) for output in outputs_of(table)}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float) -> None:
    assert list(found) == list(expected)
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, rtol=0, atol=atol, err_msg=output)


@pytest.mark.parametrize("kind", ["knn", pytest.param("linear", marks=pytest.mark.slow)])
def test_test_csv_is_predicted_again_from_the_files_alone(make, kind: str) -> None:
    p = make(kind=kind)
    goods = read_goods(p)
    fit_fold(p, goods)
    fold = Run.of(p).fold(1)
    at_once = predicted(pd.read_parquet(fold.test))  # by the model in memory
    again = predict(p, [fold], goods.test)
    assert again.keys() == {1}
    assert_close(again[1], at_once, 1e-6)
    fold.test.unlink()
    assert predict_test(p, goods) == [1]
    assert_close(predicted(pd.read_parquet(fold.test)), at_once, 1e-6)


TRAINED = [("dual", tune) for tune in ("head", "last", "lora", "full")] + [("text", "full"), ("text", "lora")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tune"), TRAINED)
def test_what_was_held_back_is_predicted_again(make, sample: Sample, encoder_dir, kind: str, tune: str) -> None:
    of_text: dict[str, Any] = {"model_name": str(encoder_dir), "lora_targets": ["query", "value"]}
    p = make(kind=kind, tune=tune, **of_text if kind == "text" else {"head_copies": 2})
    goods = read_goods(p)
    fit_fold(p, goods)
    fold = Run.of(p).fold(1)
    held_back = goods.train[(read_folds(goods, p)["fold"] == 1).to_numpy()]
    assert_close(predict(p, [fold], held_back)[1], predicted(pd.read_parquet(fold.oof)), 1e-5)
    predict_test(p, goods)
    assert_close(predict(p, [fold], goods.test)[1], predicted(pd.read_parquet(fold.test)), 1e-6)
    one = predict(p, [fold], goods.test.iloc[[3]])[1]  # other products, whatever their number
    assert_close(one, {name: values[[3]] for name, values in predicted(pd.read_parquet(fold.test)).items()}, 1e-4)


@pytest.mark.slow
def test_several_folds_predict_together_as_one_by_one(make) -> None:
    p = make(tune="head")
    goods = read_goods(p)
    for number in (0, 2):
        fit_fold(p.model_copy(update={"fold": number}), goods)
    run = Run.of(p)
    both = predict(p, [run.fold(0), run.fold(2)], goods.test)
    assert list(both) == [0, 2]
    for number in (0, 2):
        assert_close(predict(p, [run.fold(number)], goods.test)[number], both[number], 1e-6)


def test_a_blend_keeps_no_model(make) -> None:
    p = make(kind="linear").model_copy(update={"kind": "blend", "runs": ("words", "head")})
    module, fold = kind_of(p).load(), Run.of(p).fold(0)
    for call in (lambda: module.load(p, fold), lambda: predictor_of(p, [fold])):
        with pytest.raises(ParameterError, match="its runs: words, head"):
            call()
    with pytest.raises(ParameterError, match=r"no folds to train; notebooks/ensemble\.ipynb puts its runs together"):
        fit_fold(p, read_goods(p))
