"""Figures of the errors: what their titles find and what stands in them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from drawn import CLASSES, LABELS, PREDICTIONS, check_drawn, names, products, texts, title

from goods.figures.errors import class_f1, confused_pairs, confusion_matrix, least_sure, worst_errors


def test_confusion_matrix_rows_are_percent_of_the_class():
    fig = confusion_matrix(LABELS, PREDICTIONS, [*CLASSES, "Toys"])
    assert title(fig) == "Beauty is most often taken for All Beauty (3 of 5)"
    values = fig.axes[0].images[0].get_array()
    np.testing.assert_allclose(values[:4].sum(axis=1), 100)
    assert values.mask[4].all() and not values.mask[:4].any()
    assert sorted(texts(fig.axes[0])) == sorted(["75", "25", "100", "40", "60", "50", "50"])
    counts = confusion_matrix(LABELS, PREDICTIONS, CLASSES, normalise=False).axes[0].images[0].get_array()
    assert counts.sum() == 12 and counts[2, 3] == 3


def test_confusion_matrix_has_numbers_only_where_they_fit():
    for size, numbers, labels in ((25, 25, 25), (26, 0, 26), (101, 0, 51)):
        every = list(range(size))
        fig = confusion_matrix(every, every, [f"c{index}" for index in every])
        assert title(fig) == f"No mistakes: {size} predictions, all right"
        assert (len(fig.axes[0].texts), len(names(fig.axes[0]))) == (numbers, labels)


def test_class_f1_is_sorted_and_agrees_with_scikit_learn():
    from sklearn.metrics import f1_score

    fig = class_f1(LABELS, PREDICTIONS, [*CLASSES, "Toys"])
    each = f1_score(LABELS, PREDICTIONS, average=None, zero_division=0)
    macro = f"{f1_score(LABELS, PREDICTIONS, average='macro', zero_division=0):.3f}".removeprefix("0")
    assert title(fig) == f"Hardest is All Beauty: F1 .333 with 2 products; macro-F1 {macro}"
    assert [bar.get_width() for bar in fig.axes[0].patches] == pytest.approx(sorted(each))
    assert "1 class without products left out" in fig.axes[0].get_xlabel()
    columns = texts(fig.axes[0])[-8:]  # F1 and support, in the order of the bars
    assert columns[1::2] == ["2", "5", "1", "4"] and columns[0] == ".333"
    assert title(class_f1([0, 1], [0, 1], CLASSES)) == "Every class has F1 1.000 (2 products)"


def test_confused_pairs_counts_them():
    fig = confused_pairs(LABELS, PREDICTIONS, CLASSES, top=2)
    assert title(fig) == "2 pairs hold 80 % of 5 errors; Beauty → All Beauty leads (3 of 5)"
    assert names(fig.axes[0]) == ["Beauty → All Beauty", "Books → Baby"]
    assert texts(fig.axes[0]) == ["3 of 5 (60 %)", "1 of 4 (25 %)"]
    assert title(confused_pairs(LABELS, LABELS, CLASSES)) == "There are no mistakes"


def test_worst_errors_come_surest_first():
    frame = products(12, 4).assign(label=LABELS, prediction=PREDICTIONS, probability=np.linspace(0.5, 0.94, 12))
    fig = worst_errors(frame, CLASSES, top=3)
    assert title(fig) == "Surest of 5 errors: All Beauty taken for Books at 94 %"
    shown = [texts(ax)[1:] for ax in fig.axes]  # after the "no photo"
    assert shown[0] == ["given: All Beauty", "predicted: Books", "94 %"]
    assert [row[0] for row in shown] == ["given: All Beauty", "given: Beauty", "given: Beauty"]
    right = frame[frame["label"] == frame["prediction"]]
    assert title(worst_errors(right, CLASSES)) == "There are no mistakes"


def test_worst_errors_are_called_what_they_are():
    frame = products(1, 1).assign(label=0, prediction=1, probability=0.9)
    assert title(worst_errors(frame, CLASSES, what="doubtful label")).startswith("Surest of 1 doubtful label: Books")


def test_long_names_of_classes_stay_whole_and_beside_each_other():
    classes = ["Tools & Home Improvement", "Cell Phones & Accessories"]
    frame = products(4, 2).assign(prediction=[1, 0, 1, 0], probability=0.9)
    fig = worst_errors(frame, classes)
    shown = [text for ax in fig.axes for text in ax.texts if text.get_text().startswith("predicted")]
    assert [text.get_text() for text in shown[:2]] == [f"predicted: {name}" for name in reversed(classes)]
    boxes = [text.get_window_extent() for text in shown]
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_least_sure_shows_the_two_classes_they_lie_between(tmp_path):
    frame = products(10, 3).assign(first="Books", second="Toys & Games", probability=[0.5 - k / 100 for k in range(10)])
    fig = least_sure(frame, 4)
    assert title(fig) == "Least sure: Books or Toys & Games at 41 %"
    assert [texts(ax)[-1] for ax in fig.axes] == ["41 %", "42 %", "43 %", "44 %"]
    check_drawn(fig, tmp_path / "least_sure.png")
    assert title(least_sure(frame.head(0))) == "There are no predictions to look at"
