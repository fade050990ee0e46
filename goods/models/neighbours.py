"""What embeddings tell of products: a map of them, and which are nearest to one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

MAP_ROWS = 2000  # products on the map; more take minutes and hide each other


def joined(embeddings: dict[str, Tensor]) -> np.ndarray:
    """(n, dims) rows of length 1: each kind of embedding at length 1, side by side, so that each counts alike."""
    parts = [F.normalize(values.float(), dim=-1) for values in embeddings.values()]
    return F.normalize(torch.cat(parts, dim=-1), dim=-1).numpy()


def map_points(vectors: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m,) of at most MAP_ROWS products, and their places (m, 2) on a t-SNE map (van der Maaten, JMLR 2008)."""
    from sklearn.manifold import TSNE  # half a second that only the map pays

    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:MAP_ROWS])
    perplexity = min(30, max(1, (len(rows) - 1) // 3))
    return rows, TSNE(random_state=seed, init="pca", perplexity=perplexity).fit_transform(vectors[rows])


def neighbours(
    vectors: np.ndarray, row: int, table: pd.DataFrame, classes: Sequence[str], top: int = 6
) -> pd.DataFrame:
    """The products nearest to that in `row` of `table`, itself first: cosine, id, class, title."""
    near = nearest(vectors, vectors[row : row + 1], top)
    frame = table.iloc[near[1][0]]
    return pd.DataFrame({"cosine": near[0][0].round(3), "id": frame["id"].tolist(),
                         "class": [classes[k] for k in frame["label"]], "title": frame["title"].tolist()})  # fmt: skip


def nearest_products(
    test: np.ndarray, train: np.ndarray, test_table: pd.DataFrame, train_table: pd.DataFrame, top: int = 10
) -> pd.DataFrame:
    """The test products with the nearest training products, nearest first: cosine, ids and titles of both."""
    cosine, rows = nearest(train, test, 1)
    order = np.argsort(-cosine[:, 0], kind="stable")[:top]
    a, b = test_table.iloc[order], train_table.iloc[rows[order, 0]]
    return pd.DataFrame({"cosine": cosine[order, 0].round(3), "test id": a["id"].tolist(), "test": a["title"].tolist(),
                         "train id": b["id"].tolist(), "train": b["title"].tolist()})  # fmt: skip


def nearest(among: np.ndarray, of: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows, (n, top) each and the nearest first, of what in `among` is nearest to each of the n in `of`."""
    search = NearestNeighbors(n_neighbors=min(top, len(among)), metric="cosine", algorithm="brute").fit(among)
    distance, rows = search.kneighbors(of)
    return 1 - distance, rows
