"""Exploring the goods, and its figures: what they find where it was put in, and that odd goods stop nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from conftest import Trained
from PIL import Image, ImageDraw, ImageEnhance

from goods.eda import (
    empty_cells,
    odd_ids,
    product_facts,
    split_by_class,
    telling_words,
    train_test_shift,
)
from goods.figures.eda import duplicate_pairs, lengths_by_class, shift_drivers, words_by_class

matplotlib.use("Agg")


from goods.data.tables import Goods
from goods.files import ROOT
from goods.trust import _near, doubtful_labels, near_duplicates, photo_hashes, shared_across_folds

DATA, MODEL = os.environ.get("GOODS_REAL_DATA"), os.environ.get("GOODS_REAL_MODEL")


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def title(fig) -> str:
    return fig.get_suptitle().replace("\n", " ")


def goods_of(train: list[dict], test: list[dict], classes: list[str]) -> Goods:
    """Goods as read_goods makes them, from a few facts a product."""
    tables = {}
    for name, rows in (("train", train), ("test", test)):
        basic = {"title": "", "text": "", "image": "", "description": "", "label": 0}
        tables[name] = pd.DataFrame([basic | {"id": f"{name}{k}"} | row for k, row in enumerate(rows)])
    photos = pd.concat([t[["id", "image"]].assign(table=n) for n, t in tables.items()], ignore_index=True)
    photos["status"] = np.where(photos["image"] == "", "missing", "ok")
    photos = photos.assign(width=0, height=0, mode="")
    return Goods(tables["train"], tables["test"].drop(columns="label"), list(range(len(classes))), classes, photos)


def drawing(path: Path, seed: int) -> Image.Image:
    rng, image = np.random.default_rng(seed), Image.new("RGB", (120, 160), "white")
    for _ in range(12):
        x, y, w, h = rng.integers(0, 100, 4).tolist()
        ImageDraw.Draw(image).ellipse((x, y, x + w, y + h), tuple(rng.integers(0, 255, 3).tolist()))
    image.save(path)
    return image


def test_a_changed_copy_is_found_and_nothing_else(tmp_path: Path) -> None:
    images = [drawing(tmp_path / f"{k}.png", k) for k in range(12)]
    small = tmp_path / "small.jpg"
    ImageEnhance.Brightness(images[3]).enhance(0.8).resize((60, 80)).save(small, quality=60)
    train = [{"image": str(tmp_path / f"{k}.png"), "label": k % 2, "text": f"thing {k}"} for k in range(12)]
    goods = goods_of(train, [{"image": str(small), "text": "THING 5"}, {"text": "thing 7", "image": ""}], ["a", "b"])
    pairs = near_duplicates(goods)
    photo, text = (pairs[pairs["kind"] == kind] for kind in ("photo", "text"))
    assert photo[["id_a", "id_b", "across", "label_b"]].to_numpy().tolist() == [["train3", "test0", True, -1]]
    assert sorted(zip(text["id_a"], text["id_b"], strict=True)) == [("train5", "test0"), ("train7", "test1")]
    assert title(duplicate_pairs(pairs, ["a", "b"])) == ("1 pair of photos nearly the same, 1 across train and test")


def test_hashes_of_odd_photos(tmp_path: Path) -> None:
    Image.new("L", (1, 1), 7).save(tmp_path / "dot.png")
    Image.new("L", (20_000, 300), 90).save(tmp_path / "huge.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    names = ["dot.png", "huge.png", "broken.jpg"]
    hashes = photo_hashes([str(tmp_path / name) for name in names] + [""])
    assert hashes.shape == (4, 256) and not hashes[2:].any()
    assert photo_hashes([]).shape == (0, 256)


def test_distances_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.random((70, 256)) < 0.5
    hashes[61] = hashes[4]
    hashes[61, :9] ^= True
    monkeypatch.setattr("goods.trust.HASH_CHUNK", 16)
    assert [part.tolist() for part in _near(hashes, 30)] == [[4], [61], [9]]


def test_telling_words_are_those_of_the_class() -> None:
    texts = ["red boot leather the", "blue boot leather the", "paper book the", "thick book paper the"] * 10
    words = telling_words(texts, [0, 0, 1, 1] * 10, ["Shoes", "Books"])
    best = words.groupby("class")["word"].agg(set)
    assert {"boot", "leather"} <= best["Shoes"] and {"book", "paper"} <= best["Books"]
    assert "the" not in set(words["word"]) and (words.loc[words["word"] == "boot", "share"] == 1).all()
    assert telling_words(["", " "], [0, 1], ["a", "b"]).empty
    assert telling_words(["🎁 שלום", "🎁 مرحبا"] * 20, [0, 1] * 20, ["a", "b"])["word"].tolist() == [
        "שלום",
        "مرحبا",
    ]


@pytest.mark.parametrize("differ", [True, False])
def test_a_shift_is_seen_where_there_is_one(differ: bool) -> None:
    rng = np.random.default_rng(1)
    words = np.array("red blue green soft hard wide thin long".split())
    rows = [{"text": " ".join(rng.choice(words, 4)), "title": "x" * int(rng.integers(3, 9))} for _ in range(300)]
    test = [row | {"text": row["text"] + " refurbished"} if differ else row for row in rows[200:]]
    found = train_test_shift(goods_of(rows[:200], test, ["a"]))
    if differ:
        assert found.auc > 0.99 and (found.drivers["weight"][:2] > 0).all()
        assert set(found.drivers["name"][:2]) == {"text_characters", "word: refurbished"}
        assert title(shift_drivers(*found)).endswith("most by text characters")
    else:
        assert 0.4 < found.auc < 0.6
        assert title(shift_drivers(*found)).startswith("Train and test can't be told apart: AUC .")


def test_odd_goods_stop_nothing() -> None:
    """A test set without photos, one class, hundreds of classes, emoji, right-to-left and empty texts."""
    texts = ["", "🎁🎁", "שלום עולם", "$x^2$ {0}", "a" * 5000]
    many = [f"class {k}" for k in range(500)]
    for classes in (["only"], many):
        rows = [{"text": text, "title": text, "label": k % len(classes)} for k, text in enumerate(texts * 100)]
        goods = goods_of(rows, [{"text": "?"}, {"text": ""}], classes)
        lengths, labels = goods.train["text"].str.len(), goods.train["label"]
        assert title(duplicate_pairs(near_duplicates(goods), classes)) == "No two photos are nearly the same"
        assert title(words_by_class(telling_words(goods.train["text"], labels, classes)))
        assert title(lengths_by_class(lengths, labels, classes, 64))
        assert title(shift_drivers(*train_test_shift(goods)))
    assert title(shift_drivers(*train_test_shift(goods_of([{}, {}], [{}], ["a"])))).startswith("Too few")


def test_empty_cells_and_forms_of_ids(trained: Trained) -> None:
    goods = goods_of([{"description": " "}, {"description": "x", "title": "y"}], [{"title": "z"}], ["a"])
    assert empty_cells(goods, ["title", "description"]).loc["description"].tolist() == [1, 1, 2]
    goods.train["id"], goods.test["id"] = ["B00X", "0123"], ["9876"]
    assert odd_ids(goods)[["train", "test"]].loc["digits, 4 long"].tolist() == [1, 1]
    assert odd_ids(trained.goods)[["train", "test"]].to_numpy().sum() == 168


def test_each_class_has_a_table_of_its_titles(tmp_path: Path) -> None:
    rows = [{"title": "tea & cake", "label": 0}, {"title": "شاي", "label": 1}, {"title": "=1+1", "label": 0}]
    table = split_by_class(goods_of(rows, [{}], ["Food / Drinks", "茶"]), tmp_path)
    assert table["rows"].tolist() == [2, 1] and table["file"].tolist() == ["000-Food-Drinks.csv", "001-茶.csv"]
    assert pd.read_csv(tmp_path / table["file"][0])["title"].tolist() == ["tea & cake", "'=1+1"]
    assert pd.read_csv(tmp_path / table["file"][1])["title"].tolist() == ["شاي"]


def test_lengths_by_class_says_who_loses() -> None:
    fig = lengths_by_class([10, 20, 70, 80], [0, 0, 1, 1], ["short", "long"], 64)
    assert title(fig) == "long is cut most: 100 % of its texts; short least: 0 %"


EXPECTED = {
    "eda": "Description is empty most often: in <0.1 % of the products",
    "trust": "24 pairs of photos and 6 pairs of texts are nearly the same, 11 across train and test",
}


@pytest.mark.slow
@pytest.mark.skipif(not (DATA and MODEL), reason="needs GOODS_REAL_DATA and GOODS_REAL_MODEL")
@pytest.mark.parametrize("name", ["eda", "trust"])
def test_the_whole_notebook_on_real_products(tmp_path: Path, name: str) -> None:
    """Within 90 seconds they find the empty descriptions, and the near-duplicate photos."""
    began, out = time.monotonic(), tmp_path / "out.ipynb"
    given = {"config": "params/head.yaml", "run": "eda", "data_dir": DATA, "model_name": MODEL, "outputs_dir": tmp_path}
    command = [sys.executable, "-m", "papermill", f"notebooks/{name}.ipynb", str(out)]
    for parameter, value in given.items():
        command += ["-p", parameter, str(value)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-2000:]
    text = out.read_text(encoding="utf-8")
    print(f"{name}.ipynb took {seconds:.0f} s")
    assert seconds < 90
    assert EXPECTED[name] in text


def test_products_with_a_copy_in_another_fold_are_counted_and_scored() -> None:
    rows = [{"title": title, "description": "red"} for title in ("cup", "Cup!", "mug", "jar")]
    goods = goods_of([row | {"sha": ""} for row in rows], [{"title": "z"}], ["a", "b"])
    folds = pd.DataFrame({"fold": [0, 1, 0, 0]})
    found = shared_across_folds(goods, folds)
    assert found.loc["title", "products"] == 2 and found.loc["description", "products"] == 4
    assert found.loc["photo", "products"] == 0
    right = np.array([1, 1, 0, 0]) * 2.0 - 1
    labels = goods.train["label"].to_numpy()
    logits = np.where(np.eye(2)[labels] == 1, right[:, None], -right[:, None])
    oof = pd.DataFrame({"id": goods.train["id"], "label": labels, "text_0": logits[:, 0], "text_1": logits[:, 1]})
    scored = shared_across_folds(goods, folds, oof)
    assert scored.loc["title", ["accuracy", "accuracy of others"]].tolist() == [1.0, 0.0]


def test_copies_are_found_among_several_photos(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{k}.png") for k in range(4)]
    for k, path in enumerate(paths):
        drawing(Path(path), 3 if k == 2 else k)  # 2 and 3 are alike
    images = [(paths[0], paths[2]), (paths[1], paths[3]), (), (paths[2], paths[3])]
    train = [{"image": each[0] if each else "", "images": each, "shas": each} for each in images]
    goods = goods_of(train, [{"image": "", "images": (), "shas": ()}], ["a"])
    pairs = near_duplicates(goods)
    photos = pairs[pairs["kind"] == "photo"]
    assert sorted(zip(photos["id_a"], photos["id_b"], strict=True)) == [
        ("train0", "train1"), ("train0", "train3"), ("train1", "train3"),
    ]  # fmt: skip
    first = photos[(photos["id_a"] == "train0") & (photos["id_b"] == "train1")].iloc[0]
    assert (first["image_a"], first["image_b"]) == (paths[2], paths[3])
    assert product_facts(goods, "train")["no_photo"].tolist() == [0, 0, 1, 0]
    folds = pd.DataFrame({"fold": [0, 1, 0, 1]})
    assert shared_across_folds(goods, folds).loc["photo", "products"] == 2  # 0 and 3 share paths[2]


def test_words_doubt_the_label_that_was_changed(trained: Trained) -> None:
    """Before anything is trained; a tool among the books is found by its words, and what it is is suggested."""
    kinds = [("a hammer of steel", 1), ("a novel to read", 0), ("a doll to play", 2)] * 12
    told = [{"id": f"{k}", "title": words, "text": words, "description": f"{words} number{k}", "label": label,
             "sha": f"{k}"}
            for k, (words, label) in enumerate(kinds)]  # fmt: skip
    told[0]["label"] = 0
    goods = goods_of(told, [{}], ["Books", "Tools", "Toys"])
    issues, judged = doubtful_labels(goods, trained.p.model_copy(update={"num_classes": 3}))
    assert judged == 36
    assert issues[["id", "given", "suggested"]].iloc[0].tolist() == ["0", "Books", "Tools"]


def test_near_copies_of_two_classes_are_a_conflict_inside_train_alone() -> None:
    rows = [{"text": "the same words", "label": k} for k in (0, 1)]
    pairs = near_duplicates(goods_of(rows, [{"text": "The same words", "label": -1}], ["a", "b"]))
    assert pairs.sort_values("across")[["conflict", "across"]].to_numpy().tolist() == [[True, False], [False, True]]
