"""Further columns as features: what is learned of them, and from which rows."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from goods.errors import DamagedFileError
from goods.models.columns import CLIP, MOST_VALUES, as_json, learn_columns, load_columns, of_json, save_columns
from goods.params import Params

P = Params(category_columns="brand", number_columns="price")
BRANDS = ["Acme"] * 5 + ["borg", "Borg ", "BORG"] + ["Rare", "Seldom", "", ""]
TABLE = pd.DataFrame({"brand": BRANDS, "price": [*"12345678", "9", "1000", "", "ask"]})


def features(columns, brands, prices):
    return columns.features(pd.DataFrame({"brand": brands, "price": prices})).tolist()


def test_categories_are_one_hot_and_numbers_scaled():
    columns = learn_columns(TABLE, TABLE, P)
    assert columns.width == 3 + 2  # acme, borg, other; price, price is missing
    found = features(columns, ["ACME", "Borg", "rare", "New", ""], ["5.5", "", "1e9", "0", "5.5"])
    assert [row[:3] for row in found] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert found[0][3:] == found[4][3:] == [0, 0]  # the median
    assert found[1][3:] == [0, 1] and found[2][3:] == [CLIP, 0] and -2 < found[3][3] < -1


def test_where_none_is_missing_a_missing_one_is_the_median_alone():
    columns = learn_columns(TABLE.head(10), TABLE, P)
    assert features(columns, ["acme"], [""])[0][-2:] == [0, 0]


def test_a_fold_learns_from_its_own_rows_alone_and_folds_are_of_one_width():
    part = TABLE.drop(index=[5, 8])  # one of three of borg, and the only rare
    columns = learn_columns(part, TABLE, P)
    category, number = columns.parts
    assert category.own == ("acme",) and category.rare == ("borg", "seldom")
    assert features(columns, ["Rare", "Borg"], ["5", "5"])[0][:3] == [0, 0, 0]  # unseen
    assert number.median == np.median([1, 2, 3, 4, 5, 7, 8, 1000])
    assert columns.width == learn_columns(TABLE, TABLE, P).width


def test_how_many_values_count_is_bounded():
    many = pd.DataFrame({"brand": [f"b{k:04}" for k in range(300)] * 3 + ["b0299"], "price": "1"})
    category = learn_columns(many, many, P).parts[0]
    assert category.width == MOST_VALUES + 1 and category.own[0] == "b0299" and len(category.rare) == 200


def test_a_column_that_is_constant_in_a_fold_does_no_harm():
    part = pd.DataFrame({"brand": ["x", "y"], "price": ["ask", ""]})
    columns = learn_columns(part, TABLE, P)
    assert np.isfinite(columns.features(TABLE)).all() and columns.features(TABLE)[:, 3:].any() == 0


def test_it_comes_back_from_its_file(tmp_path):
    columns, path = learn_columns(TABLE, TABLE, P), tmp_path / "model.json"
    save_columns(columns, path)
    assert load_columns(path, P) == columns == of_json(json.loads(json.dumps(as_json(columns))))
    assert load_columns(tmp_path / "none.json", Params()) is None and learn_columns(TABLE, TABLE, Params()) is None
    path.write_text('{"columns": [{"own": []}]}')
    with pytest.raises(DamagedFileError, match="is missing or damaged; train the fold again"):
        load_columns(path, P)
