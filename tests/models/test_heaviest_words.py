"""The table of words that speak for each class, and a run that has none."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from goods.models.tfidf import heaviest_words
from goods.params import Params


def test_words_come_heaviest_first_by_their_mean_over_the_folds(tmp_path: Path) -> None:
    p = Params(run="words", outputs_dir=str(tmp_path))
    for fold, weights in enumerate(([1.0, 2.0, 3.0], [5.0, 2.0, 3.0])):
        (p.run_dir / f"fold{fold}").mkdir(parents=True)
        table = pd.DataFrame({"label": [0, 0, 1], "word": ["boot", "shoe", "book"], "weight": weights})
        table.to_parquet(p.run_dir / f"fold{fold}" / "words.parquet")
    assert heaviest_words(p, ["Shoes", "Books"])["words"].to_dict() == {"Shoes": "boot, shoe", "Books": "book"}


def test_a_run_without_words_has_an_empty_table(tmp_path: Path) -> None:
    assert heaviest_words(Params(run="near", outputs_dir=str(tmp_path)), ["Shoes", "Books"]).empty
