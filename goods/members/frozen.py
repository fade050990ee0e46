"""Members on frozen embeddings: what a fold trains, further columns beside them, vectors of other dimensions."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from goods.data.datasets import TensorsDataset
from goods.data.tables import Goods
from goods.errors import GoodsError, listing
from goods.members.base import part_of
from goods.models.columns import Columns
from goods.models.embeddings import embed_products
from goods.models.heads import make_heads
from goods.params import Params
from goods.places import names_vectors
from goods.run import Run
from goods.training.task import Task, as_tensors


def frozen_task(p: Params, goods: Goods, sides: tuple[str, ...] = ()) -> Task:
    """Heads on frozen embeddings of fold p.fold, of these sides of a product, or on those in p.embeddings_files."""
    part = part_of(p, goods, p.fold)
    labels = part.targets
    targets = as_tensors(labels)
    products = part.products if p.pseudo_from else goods.train
    columns = part.learn_columns(p)
    embeddings = embed_products(p, products, sides) | columns_of(products, columns)
    heads = make_heads({name: values[part.rows] for name, values in embeddings.items()}, p)
    of_train, of_valid = (
        TensorsDataset(**{name: values[rows] for name, values in embeddings.items()}, label=targets[of])
        for rows, of in ((part.rows, "train"), (part.valid, "valid"))
    )
    return Task(heads, of_train, of_valid, part.learned["id"].to_numpy(), labels, sides, columns)


def columns_of(products: pd.DataFrame, columns: Columns | None) -> dict[str, Tensor]:
    """{"columns": (n, width)} of products; {} where nothing of further columns was learned."""
    return {"columns": torch.from_numpy(columns.features(products))} if columns else {}


def with_columns(dataset: TensorsDataset, products: pd.DataFrame, columns: Columns | None) -> TensorsDataset:
    """A dataset of products with what a fold makes of their further columns."""
    return TensorsDataset(**dataset.columns, **columns_of(products, columns)) if columns else dataset


def check_dims(p: Params, run: Run, found: dict[str, Tensor], learned: dict[str, int]) -> None:
    """Raises GoodsError where embeddings aren't of the dimensions that a run has learned from: other vectors were
    given."""
    dims = {name: values.shape[1] for name, values in found.items()}
    if dims != learned:
        now, before = (", ".join(f"{name} of {dim}" for name, dim in of.items()) for of in (dims, learned))
        files = [*p.embeddings_files, *filter(names_vectors, p.extra_embeddings)]
        raise GoodsError(f"the vectors in {listing(files)} have other dimensions ({now}) than run "
                         f"'{run.name}' learned from ({before}); name vectors by the same model")  # fmt: skip
