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
    vectors: np.ndarray, row: int, table: pd.DataFrame, classes: Sequence[str], top: int = 5
) -> pd.DataFrame:
    """The products nearest to that in `row` of `table`, itself first: cosine, id, class, title, image."""
    cosine, rows = nearest(vectors, vectors[row : row + 1], top)
    return _described(cosine[0], table.iloc[rows[0]], classes)


def known_already(
    test: np.ndarray,
    train: np.ndarray,
    test_table: pd.DataFrame,
    train_table: pd.DataFrame,
    classes: Sequence[str],
    top: int = 4,
) -> tuple[np.ndarray, list[pd.DataFrame]]:
    """Cosines (m,) of all test products to their nearest training product, and of the `top` nearest of them a table
    each, as `neighbours`: the test product, of no class, and the training products nearest to it."""  # fmt: skip
    cosine, rows = nearest(train, test, 4)
    tables = []
    for k in np.argsort(-cosine[:, 0], kind="stable")[:top]:
        own = _described(np.ones(1), test_table.iloc[[k]].assign(label=-1), [*classes, ""])
        tables.append(pd.concat([own, _described(cosine[k], train_table.iloc[rows[k]], classes)], ignore_index=True))
    return cosine[:, 0], tables


def _described(cosine: np.ndarray, products: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    facts = {name: products[name].tolist() for name in ("id", "title", "image")}
    return pd.DataFrame({"cosine": cosine, "class": [classes[k] for k in products["label"]], **facts})


def nearest(among: np.ndarray, of: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows, (n, top) each and the nearest first, of what in `among` is nearest to each of the n in `of`."""
    search = NearestNeighbors(n_neighbors=min(top, len(among)), metric="cosine", algorithm="brute").fit(among)
    distance, rows = search.kneighbors(of)
    return 1 - distance, rows
