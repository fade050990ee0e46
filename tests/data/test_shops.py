"""The sample in the shapes of other shops' folders trains and submits with the parameters that docs/data.md names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shops import MISSING, SHAPES, train_and_submit

from goods.classify import Outputs, prepare_job
from goods.data.photos import load_or_white
from goods.data.tables import read_goods
from goods.files import ROOT
from goods.params import Params, load_params
from goods.predictor import load_predictor
from goods.run import Run

pytestmark = pytest.mark.slow

QUICK = {"num_epochs": 3, "n_folds": 2}


@pytest.fixture(scope="session")
def shaped(sample, tmp_path_factory):
    """The sample in a shape, made once."""
    made: dict[str, Path] = {}

    def shaped(name: str) -> dict:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("shop") / "goods"
            SHAPES[name].make(sample.data, made[name])
        return {"data_dir": str(made[name])} | SHAPES[name].parameters

    return shaped


@pytest.fixture
def shop(mini, shaped, tmp_path):
    return lambda name, **given: load_params(
        **mini | QUICK | shaped(name) | {"run": "shop", "outputs_dir": str(tmp_path / "out")} | given
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_folder_of_that_shape_trains_and_submits(shop, name):
    train_and_submit(p := shop(name))
    written = pd.read_csv(p.run_dir / "submission.csv", dtype=str)
    assert (list(written), len(written)) == ([p.id_column, p.label_column], 42)
    assert set(written[p.label_column]) <= {str(k) for k in range(21)}
    goods = read_goods(p)
    assert written[p.id_column].tolist() == goods.test["id"].tolist()
    assert (goods.train["image"] != "").all() and (goods.test["image"] != "").all()
    assert_predicted_as_submitted(p)


def assert_predicted_as_submitted(p: Params) -> None:
    """Its test table, as a new one, through the command's job gives what the run has submitted."""
    job = prepare_job(load_predictor(p.run_dir, num_workers=0), p.test_csv, p.run_dir / "new.parquet",
                      p.test_images_dir, precision=0.5, probabilities=True)  # fmt: skip
    job.run()
    written = pd.read_csv(p.run_dir / "submission_probs.csv", dtype={p.id_column: str})
    found = job.read()
    assert found["id"].tolist() == written[p.id_column].tolist()
    classes = [f"c{k}" for k in range(21)]
    np.testing.assert_allclose(found[classes], written[classes], rtol=0, atol=1.5e-6)  # written with six digits
    assert not Outputs(job.out).bad_images.exists()
    assert all(Path(image).is_file() for image in job.least_sure(3)["image"])  # also those inside Parquet


def test_a_backbone_is_tuned_on_three_photos_a_product(shop, monkeypatch):
    p = shop("three each", tune="last", last_blocks=1, num_epochs=1, learning_rate=1e-3)
    train_and_submit(p)
    assert Run.of(p).trained() == [0, 1]
    seen: Counter[str] = Counter()

    def counted(path: str, size: int) -> tuple:
        seen[path] += 1
        return load_or_white(path, size)

    monkeypatch.setattr("goods.data.ahead.load_or_white", counted)
    assert_predicted_as_submitted(p)
    assert len(seen) == 3 * 42 and set(seen.values()) == {1}


def test_of_several_photos_those_that_can_be_read_count(shop, tmp_path):
    train_and_submit(p := shop("three each"))
    test = read_goods(p).test.head(2)
    one, three = test["image"].tolist(), test["images"].tolist()
    broken = (three[0][0], "", b"no photo", three[0][1])
    products = test.drop(columns=["images", "shas"])
    predictor = load_predictor(p.run_dir, num_workers=0)
    found = predictor.classify(products.assign(image=[broken, ("", b"no photo")]))
    assert found.photos == ["ok | missing | unreadable: not a photo | ok", "missing | unreadable: not a photo"]
    whole = predictor.predict(products.assign(image=[three[0][:2], ""]))
    np.testing.assert_allclose(found.probabilities, whole, atol=1e-6)
    assert not np.allclose(predictor.predict(products.assign(image=one)), whole, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_the_page_names_its_parameters(name):
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert f"`{SHAPES[name].settings}`" in page


def test_photos_inside_parquet_give_what_the_files_give(shop, mini, sample, tmp_path):
    inside = train_and_submit(shop("inside Parquet"))
    outside = train_and_submit(load_params(**mini | QUICK | {"outputs_dir": str(tmp_path / "other")}))
    scores = [name for name in inside if name.startswith("c") and name[1:].isdigit()]
    assert inside["id"].tolist() == outside["id"].tolist()
    assert inside[scores].equals(outside[scores])


def test_a_shared_photo_is_one_photo(shop):
    goods = read_goods(shop("by column", kind="linear"))
    several = goods.train.groupby("image").size().max()
    assert several > 1
    assert goods.report["train"]["repeated_photos"] == (goods.train.groupby("sha")["id"].transform("size") > 1).sum()
    assert "images" not in goods.train


def test_of_three_photos_a_product_the_lost_ones_are_left_out(shop):
    goods = read_goods(p := shop("three each", kind="linear"))
    counts = goods.train["images"].map(len).tolist()
    assert counts == [2] * MISSING + [3] * (len(goods.train) - MISSING)
    assert goods.train["image"].tolist() == [images[0] for images in goods.train["images"]]
    assert goods.test["shas"].map(len).eq(3).all()
    listed = pd.read_csv(p.run_dir / "bad_images.csv", dtype=str, keep_default_na=False)
    lost = [f"missing: {i}.{row % 3}.jpg" for row, i in enumerate(goods.train["id"][:MISSING])]
    assert listed["status"].tolist() == lost
