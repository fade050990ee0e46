"""Tokens of all products counted once, and TF-IDF features of any rows of them: the features of kind linear.

Counting takes most of the time and knows no fold. What a fold learns, which tokens are frequent enough and how much
each weighs, comes from its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.preprocessing import normalize

from goods.errors import GoodsError

_WORDS = {"ngram_range": (1, 2), "sublinear_tf": True, "dtype": np.float32}
PARTS = {"words": _WORDS, "characters": _WORDS | {"ngram_range": (3, 5), "analyzer": "char_wb"}, "title": _WORDS}
# The title has features of its own: what a thing is called weighs more than a word somewhere in its description.
COLUMNS = {"words": "text", "characters": "text", "title": "title"}
STRETCH = 2048  # rows whose features are made at once
MIN_PRODUCTS = {"words": 2, "characters": 2, "title": 1}  # of a fold's, that a token must occur in


def tfidf_columns(table: pd.DataFrame, further: Sequence[str] = ()) -> pd.DataFrame:
    """What the features are made of: the whole text, and the title once more; and further columns, as they are."""
    return pd.DataFrame({name: table[name].tolist() for name in dict.fromkeys(("text", "title", *further))})


@dataclass(frozen=True)
class TokenCounts:
    """Of each part, its tokens in order, and weights (n, tokens): 1 + log of how often a product has a token."""

    tokens: Mapping[str, np.ndarray]
    weights: Mapping[str, csr_matrix]

    def filed(self, folder: Path) -> TokenCounts:
        """The same in files below this folder, read where they are used: processes share them, and none holds them."""
        for name, weights in self.weights.items():
            np.save(folder / f"{name}-data.npy", weights.data)
            np.save(folder / f"{name}-indices.npy", weights.indices)
            np.save(folder / f"{name}-indptr.npy", weights.indptr)
            (folder / f"{name}.txt").write_bytes("\n".join(self.tokens[name]).encode())
        sizes = {name: weights.shape for name, weights in self.weights.items()}
        return TokenCounts(_FiledTokens(folder, sizes), _FiledWeights(folder, sizes))


class _Filed(Mapping[str, Any]):
    """By parts of these sizes (products, tokens), what `filed` has written."""

    def __init__(self, folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
        self.folder, self.sizes = folder, sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


class _FiledTokens(_Filed):
    def __getitem__(self, name: str) -> np.ndarray:
        text = (self.folder / f"{name}.txt").read_bytes().decode()
        return np.array(text.split("\n") if self.sizes[name][1] else [], dtype=object)


class _FiledWeights(_Filed):
    def __getitem__(self, name: str) -> csr_matrix:
        parts = (np.load(self.folder / f"{name}-{part}.npy", mmap_mode="r") for part in ("data", "indices", "indptr"))
        return csr_matrix(tuple(parts), self.sizes[name])


def count_tokens(texts: pd.DataFrame) -> TokenCounts:
    """The tokens of tfidf_columns' table, less those of too few products for any fold."""
    tokens, weights = {}, {}
    for name in PARTS:
        found, counts = _counter(name)(texts[COLUMNS[name]])
        kept = _products_with(counts) >= MIN_PRODUCTS[name]
        tokens[name], counts = np.array(found, dtype=object)[kept], counts[:, kept]
        counts.sort_indices()
        counts.data = 1 + np.log(counts.data)
        weights[name] = counts
    return TokenCounts(tokens, weights)


def weigh_tokens(name: str, texts: Iterable[str], place_of: Mapping[str, int]) -> csr_matrix:
    """(n, tokens) weights of a part's known tokens, by their places; what isn't known is left out."""
    found, counts = _counter(name)(texts)
    places = np.array([place_of.get(token, -1) for token in found], dtype=np.int64)
    counts = counts[:, places >= 0].astype(np.float64)
    weights, columns = 1 + np.log(counts.data), places[places >= 0][counts.indices]
    return csr_matrix((weights, columns, counts.indptr), shape=(counts.shape[0], len(place_of)))


def _counter(name: str) -> Callable[[Iterable[str]], tuple[list[str], csr_matrix]]:
    return _count_characters if name == "characters" else _count_words


def _count_words(texts: Iterable[str]) -> tuple[list[str], csr_matrix]:
    return _counted(CountVectorizer(ngram_range=PARTS["words"]["ngram_range"], dtype=np.float32), texts)


def _count_characters(texts: Iterable[str]) -> tuple[list[str], csr_matrix]:
    """As CountVectorizer's char_wb, which looks at each word by itself: counted once for each different word."""
    words, of_text = _counted(CountVectorizer(analyzer=_lower_words, dtype=np.float32), texts)
    own = {name: PARTS["characters"][name] for name in ("analyzer", "ngram_range", "dtype")}
    tokens, of_word = _counted(CountVectorizer(**own, lowercase=False), words)
    return tokens, of_text @ of_word  # (n, tokens)


def _lower_words(text: str) -> list[str]:
    return text.lower().split()


def _counted(vectorizer: CountVectorizer, texts: Iterable[str]) -> tuple[list[str], csr_matrix]:
    """Tokens and (n, tokens) counts; where there is no token at all, none."""
    texts = list(texts)
    try:
        counts = csr_matrix(vectorizer.fit_transform(texts))
    except ValueError:  # scikit-learn's "empty vocabulary"
        return [], csr_matrix((len(texts), 0), dtype=np.float32)
    return vectorizer.get_feature_names_out().tolist(), counts


def _products_with(counts: csr_matrix) -> np.ndarray:
    return np.bincount(counts.indices, minlength=counts.shape[1])  # (tokens,)


@dataclass(frozen=True)
class Tfidf:
    """The features of a fold, learned from its rows without a label.

    Of each part: columns, the tokens of the counts that are frequent enough, and their inverse document frequency.
    """

    columns: dict[str, np.ndarray]
    idf: dict[str, np.ndarray]

    def features(self, counts: TokenCounts, rows: np.ndarray) -> csr_matrix:
        """(rows, features) of these rows of the counts: each part's at length 1, side by side, in 64 bits.

        Made a stretch of rows at a time, straight to its place: no more memory than the features themselves.
        """
        most = sum(int(np.diff(counts.weights[name].indptr)[rows].sum()) for name in self.columns)
        # What turns out not to be needed at the end is never touched, so it takes no memory.
        data, indices, ends = np.empty(most), np.empty(most, dtype=np.int32), [np.zeros(1, dtype=np.int64)]
        for at in range(0, len(rows), STRETCH):
            part = self._stretch(counts, rows[at : at + STRETCH])
            start = int(ends[-1][-1])
            data[start : start + part.nnz], indices[start : start + part.nnz] = part.data, part.indices
            ends.append(start + part.indptr[1:])
        indptr, features = np.concatenate(ends), sum(map(len, self.columns.values()))
        return csr_matrix((data[: indptr[-1]], indices[: indptr[-1]], indptr), shape=(len(rows), features))

    def _stretch(self, counts: TokenCounts, rows: np.ndarray) -> csr_matrix:
        parts = []
        for name, columns in self.columns.items():
            part = counts.weights[name][rows][:, columns]
            part.data *= self.idf[name][part.indices]
            parts.append(normalize(part, copy=False))
        # LinearSVC would make a copy of numbers in 32 bits.
        return csr_matrix(hstack(parts, format="csr", dtype=np.float64))

    def vectorizers(self, counts: TokenCounts) -> dict[str, TfidfVectorizer]:
        """Of each part, what makes the same features from texts."""
        return {name: vectorizer_of(name, counts.tokens[name][columns].tolist(), self.idf[name])
                for name, columns in self.columns.items()}  # fmt: skip


def fit_tfidf(counts: TokenCounts, rows: np.ndarray) -> Tfidf:
    """Document frequencies of these rows, as scikit-learn's TfidfVectorizer has them.

    Raises GoodsError where there are no words to learn from.
    """
    columns, idf = {}, {}
    for name, weights in counts.weights.items():
        frequency = _products_with(weights[rows])
        found = np.flatnonzero(frequency >= MIN_PRODUCTS[name])
        if len(found):
            columns[name] = found
            idf[name] = (1 + np.log((1 + len(rows)) / (1 + frequency[found]))).astype(np.float32)
        elif name != "title":
            raise GoodsError(
                "no word occurs in two training texts; kind linear and drop_noisy need texts to learn from"
            )
    return Tfidf(columns, idf)


def vectorizer_of(name: str, tokens: list[str], idf: np.ndarray) -> TfidfVectorizer:
    """A part's vectorizer with these tokens and frequencies, as fitting leaves one."""
    vectorizer = TfidfVectorizer(**PARTS[name], vocabulary=tokens)
    vectorizer.idf_ = idf
    return vectorizer
