"""Plans of vectors made elsewhere and of further columns: counted as they are, and nothing of them embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from goods.cost.gpus import GIB, Gpu
from goods.cost.plan import plan_run
from goods.errors import GoodsError
from goods.members import fit, kind_of, open_run, read_goods
from goods.params import Params, load_params
from goods.run import Run
from goods_utils import show_plan

COLUMNS = {"category_columns": "brand", "number_columns": "price"}


@pytest.fixture(scope="module")
def beside(sample: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sample's tables with two further columns, and a matrix of 24 numbers for each of their products."""
    folder, ids = tmp_path_factory.mktemp("beside"), []
    for part in ("train", "test"):
        table = pd.read_csv(sample.data / f"{part}.csv", dtype=str, keep_default_na=False)
        brands = [f"brand {row % 40}" for row in range(len(table))]
        table.assign(brand=brands, price=[str(row) for row in range(len(table))]).to_csv(
            folder / f"{part}.csv", index=False
        )
        ids += table["id"].tolist()
    vectors = np.random.default_rng(0).normal(size=(len(ids), 24)).astype(np.float16)
    np.savez(folder / "vectors.npz", ids=np.array(ids, dtype=str), vectors=vectors)
    tables = {f"{part}_csv": str(folder / f"{part}.csv") for part in ("train", "test")}
    return tables | {"vectors": str(folder / "vectors.npz")}


@pytest.fixture
def of(mini: dict[str, Any], beside: dict[str, str], tmp_path: Path) -> Any:
    """Parameters of a miniature run on these: of(name=value ...); `vectors` stands for the matrix."""
    tables = {name: path for name, path in beside.items() if name != "vectors"}

    def make(**given: Any) -> Params:
        named = {name: beside["vectors"] if value == "vectors" else value for name, value in given.items()}
        small = {"outputs_dir": str(tmp_path / "outputs"), "num_epochs": 1, "folds": [0]}
        return load_params(**mini | tables | small | named)

    return make


WAYS = {
    "vectors": {"kind": "embeddings", "embeddings_files": "vectors"},
    "vectors twice": {"kind": "embeddings", "embeddings_files": "vectors", "extra_embeddings": "vectors"},
    "vectors and columns": {"kind": "embeddings", "embeddings_files": "vectors"} | COLUMNS,
    "head": {"extra_embeddings": "vectors"} | COLUMNS,
    "last": {"extra_embeddings": "vectors", "tune": "last", "last_blocks": 1, "head_copies": 2} | COLUMNS,
}


@pytest.mark.parametrize("way", WAYS)
def test_as_many_parameters_are_planned_as_are_saved(of: Any, way: str) -> None:
    p = of(**WAYS[way])
    open_run(p)
    goods = read_goods(p)
    fit(p, goods)
    planned, saved = plan_run(p, "T4", sides=kind_of(p).planned), load_file(Run.of(p).fold(0).weights)
    scale = {name for name in saved if name.endswith(("_mean", "_std"))}
    assert sum(tensor.numel() for name, tensor in saved.items() if name not in scale) == planned.trainable
    assert sum(saved[name].numel() for name in scale) == 2 * sum(planned.dims.values())
    assert planned.rows == (len(goods.train), len(goods.test))
    if p.tune == "head":
        assert planned.disk["weights of all folds"] == sum(4 * tensor.numel() for tensor in saved.values()) / 1e9


def test_what_the_heads_read_is_said(of: Any) -> None:
    # 40 brands, of which the first 6 stand in four rows and the others in three; one feature more for rare ones.
    said = str(show_plan(of(**WAYS["vectors and columns"]), "T4"))
    assert "heads on vectors.npz, on one T4" in said
    assert "the heads read of each product 24 of extra, 43 of columns" in said
    assert show_plan(of(**WAYS["head"]), "T4").dims == {"image": 96, "text": 96, "extra": 24, "columns": 43}
    assert max(map(len, said.splitlines())) <= 80


def test_nothing_is_embedded_for_vectors(of: Any) -> None:
    made = show_plan(of(**WAYS["vectors"]), "T4")
    assert set(made.hours) == {"heads"} and set(made.flops) == {"heads"}
    assert set(made.memory) == {"training", "optimizer", "evaluation"}
    assert set(made.disk) == {"weights of all folds", "states of a fold in training"}
    steps = 2 / 3 * 126 / 32  # a fold's of the one epoch
    assert made.hours["heads"] == pytest.approx(steps * 0.004 / 3600, rel=0.01)
    assert made.trainable == 2 * 24 + 24 * 64 + 64 + 64 * 21 + 21


def test_a_matrix_beside_an_encoder_is_not_embedded(of: Any) -> None:
    plain, beside = (show_plan(of(**given), "T4") for given in ({}, {"extra_embeddings": "vectors"}))
    assert (beside.memory, beside.flops, beside.hours) == (plain.memory, plain.flops, plain.hours)
    assert beside.disk["embeddings"] == plain.disk["embeddings"]
    assert beside.trainable - plain.trainable == 24 * (2 + 64)
    assert not any("further text encoders" in note for note in beside.notes)


def test_the_machine_holds_the_vectors(of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, dims = 2 * 24 * 168, 24  # 16 bits as in the file; fp32 of the training products, twice
    assert show_plan(of(**WAYS["vectors"]), "T4").vectors * GIB == pytest.approx(stored + 2 * 4 * 126 * dims)
    tuned = of(extra_embeddings="vectors", tune="last", last_blocks=1)
    assert show_plan(tuned, "T4").vectors * GIB == pytest.approx(stored + 4 * 126 * dims)
    plain = show_plan(of(**WAYS["vectors"]), "T4")
    monkeypatch.setattr("goods.cost.plan.find_gpu", lambda name: Gpu("CPU", plain.allocated_gib + 0.6, tflops_32=0.1))
    here = show_plan(of(**WAYS["vectors"]))
    assert here.total_gib == pytest.approx(plain.total_gib + plain.vectors) and not here.fits


def test_columns_of_a_table_that_is_not_there_are_assumed(of: Any, tmp_path: Path) -> None:
    made = show_plan(of(**WAYS["head"] | {"train_csv": str(tmp_path / "none.csv")}), "T4")
    assert made.dims["columns"] == 101 + 2
    assert "each of the category_columns is assumed to have as many values as count" in made.notes
    with pytest.raises(GoodsError, match=r"train\.csv has no column colour; it has id, title"):
        show_plan(of(category_columns="colour"), "T4")


def test_what_no_plan_can_be_made_of_is_said(of: Any, tmp_path: Path) -> None:
    with pytest.raises(GoodsError, match=r"there is no .*none\.npz with vectors"):
        show_plan(of(kind="embeddings", embeddings_files=str(tmp_path / "none.npz")), "T4")
    with pytest.raises(GoodsError, match="needs embeddings_files"):
        show_plan(of(kind="embeddings"), "T4")
    with pytest.raises(GoodsError, match=r"hidden_dim 2,000,000,000: .* takes [\d,]+ GB of memory"):
        open_run(of(**WAYS["vectors"] | {"hidden_dim": 2 * 10**9}))
