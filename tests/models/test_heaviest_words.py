"""The table of words that speak for each class, and a run that has none."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from goods.models.tfidf import heaviest_words


def test_words_come_heaviest_first_by_their_mean_over_the_folds(tmp_path: Path) -> None:
    files = [tmp_path / f"{fold}.parquet" for fold in range(2)]
    for file, weights in zip(files, ([1.0, 2.0, 3.0], [5.0, 2.0, 3.0]), strict=True):
        table = pd.DataFrame({"label": [0, 0, 1], "word": ["boot", "shoe", "book"], "weight": weights})
        table.to_parquet(file)
    assert heaviest_words(files, ["Shoes", "Books"])["words"].to_dict() == {"Shoes": "boot, shoe", "Books": "book"}


def test_no_words_are_an_empty_table() -> None:
    assert heaviest_words([], ["Shoes", "Books"]).empty
