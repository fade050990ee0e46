"""Further columns of the tables: what can't be learned from is refused, what can't be read is counted."""

from __future__ import annotations

import pytest

from goods.errors import OtherRunError
from goods.files import write_json
from goods.run import Run

BRANDS = ("Acme", "acme", "Borg", "")


@pytest.fixture
def shop(goods):
    """The goods with a brand and a price, as shops write them."""
    for number, row in enumerate((*goods.train, *goods.test)):
        row |= {
            "brand": BRANDS[number % 4],
            "price": f"{number},50 €",
            "same": "x",
            "none": "",
            "few": "a" if number else "",
        }
        row |= {"sku": f"s{number}", "words": "cheap", "text": "t"}
    return goods


def given(**columns):
    return {"category_columns": columns.get("category", ()), "number_columns": columns.get("number", ())}


def test_they_stay_in_the_tables_and_belong_to_what_a_run_knows_of_them(shop):
    read = shop.read(**given(category="brand", number="price"))
    assert read.train["brand"].tolist()[:4] == list(BRANDS) and read.test["price"].tolist()[0] == "12,50 €"
    assert read.report["warnings"] == []
    before = read.report["train"]["content"]
    shop.train[0]["price"] = "99"
    assert shop.read().report["train"]["content"] == shop.read(run="b").report["train"]["content"] != before
    assert shop.read(run="c", **given(number="price")).report["train"]["content"] != before


def test_a_price_that_changed_is_refused_once_something_is_trained(shop):
    report = shop.read(**given(number="price")).report
    run = Run.of(shop.params())
    write_json(run.record_file, {"tables": {part: report[part]["content"] for part in ("train", "test")}})
    write_json(run.metrics, {})
    shop.read(**given(number="price"))
    shop.test[1]["price"] = "0"
    with pytest.raises(OtherRunError, match="was made with other goods: test changed"):
        shop.read(**given(number="price"))


REFUSED = {
    "constant": (given(category="same"), r"same is the same in all rows \(x\); leave it out of category_columns"),
    "empty": (given(number="none"), "none is empty; leave it out of number_columns"),
    "empty category": (given(category="none"), "none is empty; leave it out of category_columns"),
    "all different": (given(category="sku"), r"sku has no value that stands in two rows \(s0, s1, s2 and 9 more\)"),
    "no number": (given(number="words"), r"words has no cell that is a number \(such as cheap\)"),
    "the label": (given(category="categories"), "names categories, which is what is to be predicted"),
    "the id": (given(category="id"), "names id, which is the products' id"),
    "ours": (
        given(category="text"),
        "names text, as checked tables call a column of their own; rename it in",
    ),
    "not there": (given(category="brnd"), r"train\.csv lacks brnd; .*; set category_columns=\[brand\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_teach_nothing_is_refused(shop, what):
    columns, message = REFUSED[what]
    shop.refused(message, **columns)


def test_a_column_that_the_test_table_lacks_is_refused(shop):
    for row in shop.test:
        del row["price"]
    shop.refused(r"test\.csv lacks price", **given(number="price"))


def test_a_value_that_is_nearly_everywhere_is_taken(shop):
    assert shop.read(**given(category="few")).report["warnings"] == []


def test_what_cannot_be_read_is_counted_and_said(shop):
    shop.train[3]["price"] = "on request"
    shop.train[4]["price"] = "1-2"
    for row in shop.test:
        row |= {"price": "ask", "brand": "Other"}
    warnings = shop.read(**given(category="brand", number="price")).report["warnings"]
    assert warnings == [
        "price: 2 cells of train are no number, or may be two, and count as missing (on request, 1-2)",
        "price: 3 cells of test are no number, or may be two, and count as missing (ask)",
        "price: test has no number, and the training table has",
        "brand: 3 of 3 values of test aren't in the training table",
    ]
