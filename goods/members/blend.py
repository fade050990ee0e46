"""Kind blend: the outputs of several finished runs as one prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from goods.data.tables import Goods
from goods.ensemble.runs import blend_runs as ensemble
from goods.errors import ParameterError
from goods.params import Params
from goods.run import Fold
from goods.training.inputs import Inputs

__all__ = ["ensemble", "fit", "load", "predictor", "save"]


def fit(p: Params, goods: Goods, numbers: Sequence[int]) -> NoReturn:
    """A blend has no folds of its own: raises ParameterError."""
    raise ParameterError("kind blend has no folds to train; notebooks/ensemble.ipynb puts its runs together")


def save(model: Any, fold: Fold) -> NoReturn:
    """What a blend learns is written by its ensemble, to ensemble/method.json: raises ParameterError."""
    raise ParameterError("kind blend keeps no fold; its ensemble writes ensemble/method.json")


def load(p: Params, fold: Fold) -> NoReturn:
    """A blend has no folds of its own: raises ParameterError."""
    raise ParameterError(f"kind blend has no folds to load; name one of its runs: {', '.join(p.runs)}")


def predictor(p: Params, folds: Sequence[Fold], inputs: Inputs) -> NoReturn:
    """A blend predicts by its runs, as goods.predictor does: raises ParameterError."""
    raise ParameterError(f"kind blend predicts by its runs: {', '.join(p.runs)}")
