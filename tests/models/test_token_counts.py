"""Tokens counted once: the features of any rows are those that scikit-learn makes of their texts."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer

from goods.data.tables import read_goods
from goods.errors import GoodsError
from goods.models.token_counts import COLUMNS, MIN_PRODUCTS, PARTS, count_tokens, fit_tfidf, tfidf_columns

SMALL = {"kind": "linear", "n_folds": 3}
ODD = [
    "",
    "  ",
    "a",
    "Ünïcode  ÜNÏCODE\tcafé, café!",
    "İstanbul x-y 日本語 日本語",
    "a\nb  c",
    "1 22 333 4444 55555 666666",
]


@pytest.fixture
def texts(make) -> pd.DataFrame:
    """The sample's texts, and odd ones."""
    odd = pd.DataFrame({"text": ODD, "title": ODD[::-1]})
    return pd.concat([tfidf_columns(read_goods(make()).train), odd, odd], ignore_index=True)


def test_features_of_some_rows_are_scikit_learns(texts):
    rows = np.flatnonzero(np.arange(len(texts)) % 3 != 1)
    others = np.setdiff1d(np.arange(len(texts)), rows)
    parts = {name: TfidfVectorizer(**PARTS[name], min_df=MIN_PRODUCTS[name]) for name in PARTS}
    learned = hstack([part.fit_transform(texts[COLUMNS[name]][rows]) for name, part in parts.items()])
    unseen = hstack([part.transform(texts[COLUMNS[name]][others]) for name, part in parts.items()])
    counts = count_tokens(texts)
    tfidf = fit_tfidf(counts, rows)
    for name, part in tfidf.vectorizers(counts).items():
        assert part.get_feature_names_out().tolist() == parts[name].get_feature_names_out().tolist()
    np.testing.assert_allclose(tfidf.features(counts, rows).toarray(), learned.toarray(), atol=1e-6)
    np.testing.assert_allclose(tfidf.features(counts, others).toarray(), unseen.toarray(), atol=1e-6)


def test_what_a_fold_learns_does_not_depend_on_other_rows(texts):
    rows = np.arange(60)
    tampered = texts.copy()
    tampered.loc[60:, ["text", "title"]] = "altogether other words altogether"
    found = []
    for table in (texts, tampered):
        counts = count_tokens(table)
        tfidf = fit_tfidf(counts, rows)
        found.append(
            (tfidf.features(counts, rows).toarray(), {n: t.idf_ for n, t in tfidf.vectorizers(counts).items()})
        )
    np.testing.assert_array_equal(found[0][0], found[1][0])
    for name, idf in found[0][1].items():
        np.testing.assert_array_equal(idf, found[1][1][name])


def test_titles_without_a_word_have_no_features():
    counts = count_tokens(pd.DataFrame({"text": ["red shoe", "red boot"], "title": ["", "?"]}))
    assert list(fit_tfidf(counts, np.arange(2)).columns) == ["words", "characters"]


def test_rows_that_share_no_word_are_a_sentence():
    counts = count_tokens(pd.DataFrame({"text": ["red shoe", "red boot", "cup"], "title": ""}))
    with pytest.raises(GoodsError, match="no word occurs in two training texts"):
        fit_tfidf(counts, np.array([1, 2]))


def test_texts_without_a_word_are_a_sentence():
    counts = count_tokens(pd.DataFrame({"text": ["", "?"], "title": ["", "!"]}))
    with pytest.raises(GoodsError, match="no word occurs in two training texts"):
        fit_tfidf(counts, np.arange(2))


def test_filed_counts_are_the_same_and_no_process_holds_them(tmp_path):
    texts = ["red mug \r\u2028 é", "red cup \r\u2028 é"]
    counts = count_tokens(tfidf_columns(pd.DataFrame({"text": texts, "title": ["", ""]})))
    filed = counts.filed(tmp_path)
    again = pickle.loads(pickle.dumps(filed))
    assert len(pickle.dumps(again)) < 1000 and any("é" in token for token in counts.tokens["characters"])
    for name, weights in counts.weights.items():  # that of the titles, which have no word, is empty
        assert again.tokens[name].tolist() == counts.tokens[name].tolist()
        np.testing.assert_array_equal(again.weights[name].toarray(), weights.toarray())
        assert isinstance(again.weights[name].data.base.base, np.memmap)
