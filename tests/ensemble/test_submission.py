"""The submission: one row for each test product, in the words of the tables."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Sample, Trained, put_together

from goods.data.tables import Goods, read_goods
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError
from goods.members import open_run
from goods.params import load_params
from goods.predictions import frame_logits
from goods.run import saved_files
from goods_utils import fit_fold

CLASSES = 21


def rewrite(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Replaces a table by what `change` makes of it."""
    change(pd.read_parquet(path)).to_parquet(path, index=False)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_one_row_for_each_test_product_in_its_order(run: Trained, sample: Sample) -> None:
    result = put_together(run.p, run.goods)
    submission = write_submission(run.p, run.goods)
    ids = [row[0] for row in rows_of(sample.data / "test.csv")][1:]
    head, *rows = rows_of(run.p.run_dir / "submission.csv")
    assert head == ["id", "categories"] and [row[0] for row in rows] == ids
    best = frame_logits(result.test, "fused").argmax(1)
    assert [row[1] for row in rows] == [str(k) for k in best]  # the sample's labels are 0 ... 20
    assert len(set(best)) > 5

    head, *rows = rows_of(run.p.run_dir / "submission_probs.csv")
    assert head == ["id", *(f"c{k}" for k in range(CLASSES))] and [row[0] for row in rows] == ids
    written = np.array([row[1:] for row in rows], dtype=float)
    np.testing.assert_allclose(written, np.exp(frame_logits(result.test, "fused")), atol=1e-6)
    np.testing.assert_allclose(written.sum(1), 1, atol=CLASSES * 1e-6)
    assert (submission["id"].tolist(), submission["categories"].tolist()) == (ids, best.tolist())
    np.testing.assert_allclose(submission.filter(regex=r"^c\d+$").sum(axis=1), 1, atol=1e-6)


def renamed(sample: Sample, folder: Path) -> Path:
    """The sample with the sister competition's column names and names for labels, four classes of it."""
    names = dict(enumerate(["Toys & Games", "0", "007", "books, used"]))
    for part in ("train", "test"):
        table = pd.read_csv(sample.data / f"{part}.csv", dtype=str, keep_default_na=False)
        if part == "train":
            table = table[table["categories"].astype(int) < 4]
            table["categories"] = table["categories"].astype(int).map(names)
        table = table.rename(columns={"id": "ImgId", "categories": "class, as sold", "description": "about"})
        (folder / part).mkdir(parents=True)
        table.to_csv(folder / f"{part}.csv", index=False)
    return folder


def test_labels_and_columns_come_back_as_the_tables_write_them(mini, sample: Sample, tmp_path: Path) -> None:
    folder = renamed(sample, tmp_path / "sister")
    given = {
        "train_csv": str(folder / "train.csv"), "test_csv": str(folder / "test.csv"), "id_column": "ImgId",
        "label_column": "class, as sold", "text_columns": ("title", "about"), "num_classes": 4, "num_epochs": 8,
        "outputs_dir": str(tmp_path / "outputs"), "n_folds": 2,
    }  # fmt: skip
    p = load_params(**mini | given)
    open_run(p)
    goods = read_goods(p)
    for fold in p.chosen_folds:
        fit_fold(p.model_copy(update={"fold": fold}), goods)
    put_together(p, goods)
    submission = write_submission(p, goods)
    head, *rows = rows_of(p.run_dir / "submission.csv")
    assert head == ["ImgId", "class, as sold"]
    assert [row[0] for row in rows] == [row[0] for row in rows_of(folder / "test.csv")][1:]
    order = ["0", "007", "Toys & Games", "books, used"]
    assert goods.labels == order
    best = submission[["c0", "c1", "c2", "c3"]].to_numpy().argmax(1)
    assert [row[1] for row in rows] == [order[k] for k in best] and len(set(best)) > 1
    assert rows_of(p.run_dir / "submission_probs.csv")[0] == ["ImgId", "c0", "c1", "c2", "c3"]


def test_no_ensemble_no_submission(run: Trained) -> None:
    with pytest.raises(GoodsError, match=r"run 'mini' has no ensemble yet; run notebooks/ensemble\.ipynb first"):
        write_submission(run.p, run.goods)
    assert not list(run.p.run_dir.glob("submission*"))


def with_test(goods: Goods, test: pd.DataFrame) -> Goods:
    return Goods(goods.train, test, goods.labels, goods.classes, goods.photos, goods.report)


def test_an_ensemble_of_another_test_table_is_refused(run: Trained) -> None:
    put_together(run.p, run.goods)
    write_submission(run.p, run.goods)
    before = (run.p.run_dir / "submission.csv").read_bytes()
    for test in (run.goods.test[::-1], run.goods.test.head(5)):
        with pytest.raises(GoodsError, match=r"ensemble/test\.parquet are not those of .*; run notebooks/ensemble"):
            write_submission(run.p, with_test(run.goods, test))
    rewrite(run.p.run_dir / "ensemble" / "test.parquet", lambda table: table.assign(fused_0=0.0))
    with pytest.raises(GoodsError, match=r"test\.parquet don't sum to 1; run notebooks/ensemble\.ipynb again"):
        write_submission(run.p, run.goods)
    assert (run.p.run_dir / "submission.csv").read_bytes() == before


def test_saved_files_are_listed_with_their_sizes(run: Trained) -> None:
    table = saved_files(run.p, "fold1/*", "*.json", "nothing*")
    assert {"fold1/weights.safetensors", "fold1/oof.parquet", "labels.json"} <= set(table["file"])
    size = (run.p.run_dir / "labels.json").stat().st_size / 1000
    assert table.set_index("file")["kB"]["labels.json"] == pytest.approx(size, abs=0.05)
