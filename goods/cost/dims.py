"""How many numbers of each product the heads read, by where these come from, and what holds them before a run."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from goods.cost.empty import read_config
from goods.data.further import further_columns
from goods.data.matrices import Matrix, read_matrix
from goods.data.table_files import CHECKED_ROWS, stretches
from goods.errors import GoodsError, listing
from goods.files import resolve
from goods.models.columns import MOST_VALUES, learn_columns
from goods.models.text_encoding import read_encoding
from goods.params import Params
from goods.places import names_vectors


def given_dims(p: Params) -> dict[str, int]:
    """{"image", "text", "extra": dimensions}, those that there are, of the vectors in p.embeddings_files.

    Raises GoodsError where none are named, or they can't be read.
    """
    if not p.embeddings_files:
        raise GoodsError("a plan of heads on vectors needs embeddings_files, the files of these")
    return {name: values.shape[1] for name, values in read_matrix(p.embeddings_files, p.id_column).arrays.items()}


def encoded_dim(p: Params) -> int:
    """How many numbers per product the text encoders among p.extra_embeddings make, which the cache keeps."""
    encoders = [name for name in p.extra_embeddings if not names_vectors(name)]
    return sum(read_encoding(resolve(name)).dim_of(read_config(name).hidden_size) for name in encoders)


def further_dim(p: Params) -> int:
    """How many numbers per product the heads get of p.extra_embeddings: of encoders, and of vectors made elsewhere."""
    return encoded_dim(p) + sum(matrix.dim for matrix in _matrices(p))


def columns_dim(p: Params) -> int:
    """How many features p.category_columns and p.number_columns make, of the training table.

    Where that isn't there yet, each of the categories is taken as having as many values as count.
    """
    if not (names := further_columns(p)):
        return 0
    path = resolve(p.train_csv)
    first = next(stretches(path, 1, p.id_column), None)
    if first is None:
        return (MOST_VALUES + 1) * len(p.category_columns) + 2 * len(p.number_columns)
    if missing := [name for name in names if name not in first]:
        raise GoodsError(f"{path} has no column {listing(missing)}; it has {listing(first.columns)}")
    table = pd.concat(stretches(path, CHECKED_ROWS, p.id_column, names), ignore_index=True)
    columns = learn_columns(table, table, p)
    return columns.width if columns else 0


def vectors_bytes(p: Params, dims: dict[str, int], once: Collection[str], rows: int) -> int:
    """Bytes of the machine's memory for what the heads read of `rows` training products, where they learn from it.

    dims: by where it comes from; once: the sides of a product that are embedded once. Files of vectors stay as they
    were read. All training products stand there in fp32, and, unless a backbone under the heads is tuned, once more as
    the parts that a fold learns from and is scored on.
    """
    files = [*_matrices(p), *([read_matrix(p.embeddings_files, p.id_column)] if p.embeddings_files else [])]
    stored = sum(values.nbytes for matrix in files for values in matrix.arrays.values())
    held = sum(dim for name, dim in dims.items() if p.tune == "head" or name in ("extra", "columns", *once))
    return stored + 4 * rows * held * (2 if p.tune == "head" else 1)


def _matrices(p: Params) -> list[Matrix]:
    return [read_matrix([name], p.id_column) for name in p.extra_embeddings if names_vectors(name)]
