"""Figures of the goods: what their titles find and what stands in them."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawn import CLASSES, LABELS, check_drawn, names, products, texts, title
from PIL import Image

from goods.figures.eda import class_balance, fold_balance, photo_sizes, sample_grid, text_lengths
from goods.figures.errors import class_f1
from goods.figures.style import VERMILION


@pytest.mark.parametrize(
    ("labels", "classes", "finding"),
    [
        ([0] * 1204 + [1] * 293, CLASSES[:2], "Books is 4.1 times as frequent as Baby (1,204 vs 293 products)"),
        ([0] * 3, CLASSES[:1], "All products are Books (3 products)"),
        ([0, 0, 1], CLASSES, "2 of 4 classes without a product; Books has the most (2)"),
        ([0] * 11 + [1] * 10, CLASSES[:2], "The 2 classes are balanced: 10 to 11 products each"),
        ([], CLASSES, "There are no products to count"),
    ],
)
def test_class_balance_finds(labels, classes, finding):
    assert title(class_balance(labels, classes)) == finding


def test_class_balance_draws_a_bar_a_class():
    (ax,) = class_balance(LABELS, CLASSES).axes
    assert names(ax) == ["Beauty", "Books", "All Beauty", "Baby"]
    assert [bar.get_width() for bar in ax.patches] == [5, 4, 2, 1]


def test_many_classes_are_cut_to_both_ends():
    labels = [index for index in range(100) for _ in range(index + 1)]
    (ax,) = class_balance(labels, [f"c{index}" for index in range(100)]).axes
    assert ax.get_ylabel() == "20 most and 20 least frequent of 100 classes"
    assert names(ax) == [f"c{index}" for index in [*range(99, 79, -1), *range(19, -1, -1)]]


def test_labels_must_have_names():
    with pytest.raises(ValueError, match="labels run from 0 to 4, but there are 4 class names"):
        class_balance([0, 4], CLASSES)
    with pytest.raises(ValueError, match="2 labels but 1 predictions"):
        class_f1([0, 1], [0], CLASSES)


def test_text_lengths_counts_what_is_cut():
    lengths = [10] * 88 + [65] * 12
    fig = text_lengths(lengths, 64)
    assert title(fig) == "12 % of texts are cut at 64 tokens (median 10, longest 65)"
    bars = fig.axes[0].patches
    red = [bar for bar in bars if matplotlib.colors.same_color(bar.get_facecolor(), VERMILION)]
    assert sum(bar.get_height() for bar in bars) == 100
    assert sum(bar.get_height() for bar in red) == 12
    assert title(text_lengths([64, 3], 64, "words")) == "No text is cut at 64 words (median 34, longest 64)"


def test_text_lengths_keeps_far_outliers_in_the_last_bar():
    fig = text_lengths([20] * 999 + [100_000], 64)
    assert sum(bar.get_height() for bar in fig.axes[0].patches) == 1000
    assert "last bar: " in fig.axes[0].get_xlabel()
    assert fig.axes[0].get_xlim()[1] < 100


@pytest.mark.parametrize(
    ("sizes", "modes", "finding"),
    [
        ([(100, 100)] * 4, ["RGB"] * 4, "All photos are 100 x 100 px (4 photos); all RGB"),
        ([(1, 1)], ["L"], "All photos are 1 x 1 px (1 photo); all L"),
        ([(9, 9)] * 3 + [(20_000, 50)], ["RGB"] * 3 + ["L"], "75 % of 4 photos are 9 x 9 px; 25 % are greyscale"),
        ([(90 + i, 200) for i in range(9)], ["RGB"] * 9, "Sides of the 9 photos run from 90 to 200 px; all RGB"),
        ([(np.nan, np.nan), (0, 0)], ["", ""], "There are no photos to measure"),
    ],
)  # fmt: skip
def test_photo_sizes_finds(sizes, modes, finding, tmp_path):
    photos = pd.DataFrame(sizes, columns=["width", "height"]).assign(mode=modes)
    fig = photo_sizes(photos)
    assert title(fig) == finding
    assert len(fig.axes) == len({*modes})  # of one mode alone no bars
    check_drawn(fig, tmp_path / "photos.png")


def test_sample_grid_shows_three_products_a_class(tmp_path):
    Image.new("RGB", (40, 80), "red").save(tmp_path / "red.jpg")
    train = products(63, 21, image=str(tmp_path / "red.jpg"))
    train.loc[0, "image"] = ""
    fig = sample_grid(train, [f"c{index}" for index in range(21)])
    assert title(fig) == "63 products of 21 classes: 1 without a photo"
    assert len(fig.axes) == 63
    assert sum(texts(ax) == ["no photo"] for ax in fig.axes) == 1
    assert [ax.get_title(loc="left") for ax in fig.axes[:4]] == ["c0 (3)", "", "", "c1 (3)"]


def test_sample_grid_limits_the_classes():
    train = products(31, 30)  # the first class has one product more
    fig = sample_grid(train, [f"c{index}" for index in range(30)], per_class=2)
    assert title(fig) == "25 products of the 24 most frequent of 30 classes: 25 without a photo"
    assert fig.axes[0].get_title(loc="left") == "c0 (2)"


def test_sample_grid_is_repeatable():
    train = products(300, 2)
    train["title"] = "title " + train["id"]
    drawn = [[ax.get_xlabel() for ax in sample_grid(train, CLASSES[:2], seed=seed).axes] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_sample_grid_marks_an_empty_class():
    fig = sample_grid(products(2, 1), CLASSES[:2])
    assert [texts(ax) for ax in fig.axes] == [["no photo"], ["no photo"], ["no product"]]


def test_fold_balance_finds_the_largest_deviation():
    labels, folds = [0] * 50 + [1] * 50, ([0] * 30 + [1] * 20) + ([0] * 20 + [1] * 30)
    fig = fold_balance(folds, labels, CLASSES[:2])
    assert title(fig) == "Class shares differ by at most 10.0 points: Books is 60 % of fold 0, 50 % of all"
    assert texts(fig.axes[0]) == ["+10.0", "-10.0", "-10.0", "+10.0"]
    even = fold_balance([0, 0, 1, 1], [0, 1, 0, 1], CLASSES[:2])
    assert title(even) == "Every class has the same share in 2 folds"
    absent = fold_balance([0, 0, 1, 1], [0, 1, 1, 1], CLASSES)
    assert title(absent).endswith("; 1 class missing from a fold")
