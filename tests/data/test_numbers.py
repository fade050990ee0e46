"""Numbers as shops write them: what is unambiguous is read, what may be two numbers is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from goods.data.numbers import decimal_sign, read_numbers

READ = {
    "12": 12, "-3.5": -3.5, "12,99": 12.99, "12.99 €": 12.99, "$1,299.00": 1299, "1.299,00 EUR": 1299, "€ 5": 5,
    "-$5.25": -5.25, "$-5.25": -5.25, "1 299,00": 1299, "1\u00a0299\u202f000": 1_299_000, "1'299.50": 1299.5,
    "1,29,900.00": 129_900, "1,299,000": 1_299_000, "1.5e3": 1500, "12,-": 12, ".5": 0.5, "12.": 12, "0.125": 0.125,
    "0,125": 0.125, "1234,567": 1234.567, "１２．５": 12.5, "Rs.500": 500, "Rs. 1,29,900": 129_900, "US$ 7": 7,
    "30%": 30, "−4": -4, "+4": 4, "20,00 kr.": 20, "0": 0,
}  # fmt: skip
UNREAD = ["on request", "1,299", "1.299", "12 99", "12-15", "2021-05-01", "5 kg", "12.99/kg", "1.2.3", "1,2,3",
          "1,29.9.9", "inf", "1e999", "from 5", "$", "1,299,00", "12..5", "A12", "1'29", "a " * 50_000]  # fmt: skip


@pytest.mark.parametrize("cell", READ)
def test_what_is_unambiguous_is_read(cell):
    values, unread = read_numbers([cell], "")
    assert (values.tolist(), unread) == ([pytest.approx(READ[cell])], [])


@pytest.mark.parametrize("cell", UNREAD)
def test_what_may_be_something_else_is_not(cell):
    values, unread = read_numbers([cell], "")
    assert math.isnan(values[0]) and unread == [cell]


def test_missing_ones_are_no_mistakes():
    values, unread = read_numbers(["", " ", "NaN", "null", "N/A", "-", "7"], "")
    assert np.isnan(values).tolist() == [True] * 6 + [False] and unread == []


@pytest.mark.parametrize(("cells", "sign", "thousands"), [
    (["12.99", "1,299"], ".", [12.99, 1299]), (["12,99", "1,299"], ",", [12.99, 1.299]),
    (["1,299.00", "1.299"], ".", [1299, 1.299]), (["1.299.000", "1.299"], ",", [1_299_000, 1299]),
])  # fmt: skip
def test_a_column_tells_what_its_sign_is(cells, sign, thousands):
    assert decimal_sign(cells) == sign
    assert read_numbers(cells, sign)[0].tolist() == pytest.approx(thousands)


def test_a_column_that_has_both_tells_nothing():
    assert decimal_sign(["12,99", "12.99", "1,299"]) == ""
    assert decimal_sign(["12", "1,299"]) == ""
