"""goods_data: competitions made here, the ways they go wrong, clean text, folds, and photos of every kind."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from goods.data.datasets import PhotoDataset, TensorsDataset, collate
from goods.data.folds import MAX_SHARED, duplicate_groups, make_folds, product_groups, rare_classes, read_folds
from goods.data.photos import find_photos, inspect_photos, load_photo
from goods.data.tables import DEBUG_TEST_ROWS, Goods, read_goods, report_table
from goods.data.texts import clean_text, join_texts
from goods.errors import GoodsError
from goods.params import Params, load_params

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
CLASSES = ("Books", "Toys", "Tools")


def photo(seed: int = 0, size: tuple[int, int] = (12, 8), mode: str = "RGB") -> Image.Image:
    """A photo of noise, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is as large as that."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
             for kind, data in (*chunks, (b"IEND", b""))]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Competition:
    """A competition of 3 classes, 4 + 1 products each, that a test changes before it is written and read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outputs = folder / "goods", folder / "outputs"
        self.train = [self.product(f"0{n:02}X", n % 3) for n in range(12)]
        self.test = [{k: v for k, v in self.product(f"9{n:02}", n).items() if k != "categories"} for n in range(3)]
        self.photos = {"train": self.folder / "train_images" / "train_images",
                       "test": self.folder / "test_images" / "test_images"}  # fmt: skip
        for number, (part, row) in enumerate([("train", r) for r in self.train] + [("test", r) for r in self.test]):
            self.put(part, f"{row['id']}.jpg", encoded(photo(number)))

    @staticmethod
    def product(name: str, k: int) -> dict[str, Any]:
        return {"id": name, "title": f"Thing {name}", "description": f"A thing of class {k}.", "categories": k}

    def put(self, part: str, name: str, data: bytes) -> Path:
        path = self.photos[part] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def write(self) -> None:
        """The tables as they stand now."""
        for part, rows in (("train", self.train), ("test", self.test)):
            with (self.folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)

    def params(self, **given: Any) -> Params:
        values = {"data_dir": str(self.folder), "outputs_dir": str(self.outputs), "num_classes": 3, "run": "trial"}
        return load_params(**values | given)

    def read(self, write: bool = True, **given: Any) -> Goods:
        if write:
            self.write()
        return read_goods(self.params(**given))

    def refused(self, *sentences: str, write: bool = True, **given: Any) -> str:
        """Reads, and checks that it is refused in these words (patterns) and leaves nothing half-written."""
        before = self.run_files()
        with pytest.raises(GoodsError) as refused:
            self.read(write, **given)
        message = str(refused.value)
        for sentence in sentences:
            assert re.search(sentence, message), message
        assert self.run_files() == before
        assert not list(self.outputs.rglob("*.tmp"))
        return message

    def run_files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (self.outputs / "trial").rglob("*") if path.is_file()}


@pytest.fixture
def goods(tmp_path: Path) -> Competition:
    return Competition(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# 3 Read and check goods
# ---------------------------------------------------------------------------------------------------------------------


def test_a_competition_is_read_whole(goods):
    read = goods.read()
    assert read.train["id"].tolist() == [f"0{n:02}X" for n in range(12)]
    assert read.test["id"].tolist() == ["900", "901", "902"]
    assert read.train["label"].tolist() == [0, 1, 2] * 4
    assert (read.labels, read.classes) == ([0, 1, 2], ["0", "1", "2"])
    assert read.train["text"][0] == "Thing 000X. A thing of class 0."
    assert "label" not in read.test
    assert read.train["image"][0] == str(goods.photos["train"] / "000X.jpg")
    assert read.train["sha"].nunique() == 12 and read.train["sha"].str.len().eq(32).all()
    assert read.photos.columns.tolist() == ["table", "id", "image", "sha", "status", "width", "height", "mode"]
    assert read.photos["table"].tolist() == ["train"] * 12 + ["test"] * 3
    assert read.photos[["status", "width", "height", "mode"]].drop_duplicates().to_numpy().tolist() == [
        ["ok", 12, 8, "RGB"]
    ]
    assert read.report["warnings"] == []


def test_what_was_found_is_written_to_the_run(goods):
    read = goods.read()
    run = goods.outputs / "trial"
    assert sorted(path.name for path in run.iterdir()) == ["bad_images.csv", "data_report.json", "labels.json"]
    assert json.loads((run / "labels.json").read_text()) == {"labels": [0, 1, 2], "classes": ["0", "1", "2"]}
    assert (run / "bad_images.csv").read_text() == "table,id,image,status\n"
    report = json.loads((run / "data_report.json").read_text())
    assert report == read.report
    assert report["class_counts"] == {"0": 4, "1": 4, "2": 4}
    assert (report["train"]["rows"], report["test"]["rows"], report["train"]["bad_images"]) == (12, 3, 0)
    assert report_table(read).loc["rows"].to_dict() == {"train": 12, "test": 3}
    files = goods.run_files()
    goods.read()
    assert goods.run_files() == files


def test_ids_stay_text(goods):
    ids = ["0123456789", "012345678X", "1e5", "007", "NA", "null", "true", "1.0", "B00ÄÖ", "a b", "12.5", "-1"]
    for row, name in zip(goods.train, ids, strict=True):
        row["id"] = name
        goods.put("train", f"{name}.jpg", encoded(photo()))
    read = goods.read()
    assert read.train["id"].tolist() == ids
    assert (read.train["image"] != "").all()


def test_columns_may_have_other_names(goods):
    for rows in (goods.train, goods.test):
        for number, row in enumerate(rows):
            row["ImgId"] = row["id"]
            row["id"] = number  # a column that only looks like the ids
            row["name"] = row.pop("title")
            row.pop("description")
    for row in goods.train:
        row["label"] = CLASSES[row.pop("categories")]
    read = goods.read(id_column="ImgId", label_column="label", text_columns=["name"])
    assert read.train["id"][:2].tolist() == ["000X", "001X"]
    assert read.train["text"][0] == read.train["title"][0] == "Thing 000X"
    assert read.classes == ["Books", "Tools", "Toys"]
    assert read.train["label"][:3].tolist() == [0, 2, 1]


LABELS = [
    ("integers", [0, 1, 2], {}, [0, 1, 2], ["0", "1", "2"]),
    ("from one", [1, 2, 3], {}, [1, 2, 3], ["1", "2", "3"]),
    ("as floats", ["0.0", "1.0", "2.0"], {}, [0, 1, 2], ["0", "1", "2"]),
    ("product codes", [2905, 10, 40], {}, [10, 40, 2905], ["10", "40", "2905"]),
    ("long codes", [2**53 + 1, 2**53, 2**70], {}, [2**53, 2**53 + 1, 2**70], [str(2**53), str(2**53 + 1), str(2**70)]),
    ("names", ["Toys", "Books", "NA"], {}, ["Books", "NA", "Toys"], ["Books", "NA", "Toys"]),
    ("with spaces around", [" Toys", "Books ", "Tools"], {}, ["Books", "Tools", "Toys"], ["Books", "Tools", "Toys"]),
    ("with leading zeros", ["02", "01", "10"], {}, ["01", "02", "10"], ["01", "02", "10"]),
    ("integers with labels.json", [0, 1, 2], {"0": "Books", "1": "Toys", "2": "Tools"}, [0, 1, 2], list(CLASSES)),
    ("names with labels.json", ["Tools", "Toys", "Books"], dict(enumerate(CLASSES)), list(CLASSES), list(CLASSES)),
    ("labels.json as a list", [0, 1, 2], list(CLASSES), [0, 1, 2], list(CLASSES)),
]


@pytest.mark.parametrize(
    ("given_labels", "named", "labels", "classes"), [row[1:] for row in LABELS], ids=[row[0] for row in LABELS]
)
def test_labels(goods, given_labels, named, labels, classes):
    for row in goods.train:
        row["categories"] = given_labels[row["categories"]]
    if named:
        (goods.folder / "labels.json").write_text(json.dumps(named))
    read = goods.read()
    assert (read.labels, read.classes) == (labels, classes)
    back = [labels[k] for k in read.train["label"]]  # a class index leads back to the label as the table writes it
    assert [str(label) for label in back] == [str(label).strip().removesuffix(".0") for label in given_labels] * 4


def test_a_class_without_rows_is_warned_of(goods):
    goods.train = [row for row in goods.train if row["categories"] != 1]
    read = goods.read()
    assert read.labels == [0, 1, 2]
    assert read.report["class_counts"] == {"0": 4, "1": 0, "2": 4}
    assert read.report["warnings"] == ["1 classes have no training row: 1"]


def test_cells_of_every_kind(goods):
    texts = [
        'Two\nlines, "quoted"',
        "",
        "NA",
        "null",
        "5\" pipe, 3' long",
        "x" * 200_000,
        "Café – ½ 日本",
        "a\r\nb",
        "  spaced  ",
        "=1+1",
        "a\tb\x07",
        "NaN",
    ]
    for row, text in zip(goods.train, texts, strict=True):
        row["title"], row["description"] = text, ""
    read = goods.read()
    assert read.train["title"].tolist() == texts
    assert read.train["text"].tolist() == [clean_text(text) for text in texts]
    assert read.train["text"][0] == 'Two lines, "quoted"'
    assert read.report["train"]["empty_texts"] == 1


@pytest.mark.parametrize("header", ["id,title,description,categories", '"id","title","description","categories"'])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_other_line_ends(goods, header, end):
    goods.write()
    lines = (goods.folder / "train.csv").read_text().splitlines()
    text = "\ufeff" + end.join([header, *lines[1:], "", "  ", ""])
    (goods.folder / "train.csv").write_bytes(text.encode())
    assert goods.read(write=False).train["id"].tolist() == [f"0{n:02}X" for n in range(12)]


def test_duplicates_and_shared_ids_are_counted(goods):
    goods.train[1]["title"], goods.train[1]["description"] = goods.train[0]["title"], goods.train[0]["description"]
    for name in ("002X", "003X", "004X"):
        goods.put("train", f"{name}.jpg", encoded(photo(77)))
    goods.test[0]["id"] = "000X"
    goods.put("test", "000X.jpg", encoded(photo(78)))
    report = goods.read().report
    assert (report["train"]["repeated_texts"], report["train"]["repeated_photos"]) == (2, 3)
    assert report["warnings"] == ["1 ids stand in train and in test: 000X"]


def test_debug_reads_a_few_rows_into_a_run_of_its_own(goods):
    read = goods.read(debug=True, n_folds=2)
    assert np.bincount(read.train["label"]).tolist() == [4, 4, 4]
    goods.train += [Competition.product(f"x{n}", 0) for n in range(60)]
    goods.test += [{k: v for k, v in Competition.product(f"y{n}", 0).items() if k != "categories"} for n in range(70)]
    goods.outputs = goods.folder / "others"
    read = goods.read(debug=True, n_folds=2)
    assert np.bincount(read.train["label"]).tolist() == [4, 4, 4]
    assert len(read.test) == DEBUG_TEST_ROWS
    assert (goods.outputs / "trial-debug" / "labels.json").is_file() and not (goods.outputs / "trial").exists()


# What is done to a sound competition, and what is then said.


def _without(column: str, part: str = "train") -> Callable[[Competition], None]:
    def change(goods: Competition) -> None:
        for row in getattr(goods, part):
            row.pop(column)

    return change


def _cell(column: str, value: Any, *numbers: int, part: str = "train") -> Callable[[Competition], None]:
    def change(goods: Competition) -> None:
        for number in numbers or range(len(getattr(goods, part))):
            getattr(goods, part)[number][column] = value

    return change


BAD_TABLES = [
    ("no id column", _without("id"), {}, r"train\.csv lacks id; it has title, description, categories"),
    ("no label column", _without("categories"), {}, r"train\.csv lacks categories; it has .*see id_column"),
    ("no text column", _without("title", "test"), {}, r"test\.csv lacks title"),
    (
        "another label column",
        lambda goods: None,
        {"label_column": "label"},
        r"train\.csv lacks label; it has id, title",
    ),
    ("id twice", _cell("id", "000X", 3, 5), {}, r"train\.csv: 1 ids stand there more than once \(000X\)"),
    (
        "id twice in test",
        _cell("id", "900", 1, part="test"),
        {},
        r"test\.csv: 1 ids stand there more than once \(900\)",
    ),
    ("no id in a row", _cell("id", " ", 3, 5), {}, r"train\.csv: 2 rows have no id"),
    ("no label", _cell("categories", "", 3, 5), {}, r"2 rows have no categories \(ids 003X, 005X\)"),
    ("no labels at all", _cell("categories", " "), {}, r"12 rows have no categories \(ids 000X, .* and 7 more\)"),
    (
        "unknown label",
        _cell("categories", 7, 3, 5),
        {},
        r"2 rows have an unknown categories \(7\); known are 0, 1, 2, since num_classes is 3; the table has 4 ",
    ),
    ("negative label", _cell("categories", -1, 3), {}, r"1 rows have an unknown categories \(-1\)"),
    (
        "a word among integers",
        _cell("categories", "1x", 3),
        {},
        r"has 4 classes, but num_classes is 3; set num_classes to 4, or mend the labels \(the rarest: .*1x \(1 rows\)",
    ),
    ("too many classes", lambda goods: None, {"num_classes": 2}, r"4 rows have an unknown categories \(2\).* is 2"),
]


@pytest.mark.parametrize(
    ("change", "given", "sentence"), [row[1:] for row in BAD_TABLES], ids=[r[0] for r in BAD_TABLES]
)
def test_a_bad_table_is_refused(goods, change, given, sentence):
    change(goods)
    goods.refused("^the goods can't be used:", sentence, **given)


def test_names_and_num_classes_must_agree(goods):
    for row in goods.train:
        row["categories"] = CLASSES[row["categories"]]
    goods.refused(r"train\.csv has 3 classes, but num_classes is 21; set num_classes to 3", num_classes=21)
    (goods.folder / "labels.json").write_text(json.dumps({"0": "Books", "1": "Toys"}))
    goods.refused(r"4 rows have an unknown categories \(Tools\); known are Books, Toys$", num_classes=2)


@pytest.mark.parametrize("text", ["", "{", "[1, [2]", '{"Books": 0}', "3", '"Books"', b"\xff"])
def test_a_spoilt_labels_json_is_refused(goods, text):
    (goods.folder / "labels.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    goods.refused(r'labels\.json must look like {"0": "Books", "1": "Toys"}; mend it or take it away')


BAD_FILES = [
    ("zero bytes", b"", r"train\.csv is empty"),
    ("blank lines", b"\n\n \n", r"train\.csv (is empty|lacks id)"),
    ("a header only", b"id,title,description,categories\n", r"train\.csv has no rows"),
    (
        "Latin-1",
        "id,title,description,categories\n1,caf\xe9,,0\n".encode("latin-1"),
        r"not UTF-8 \(byte 0xe9 on line 2\)",
    ),
    ("UTF-16", "id,title,description,categories\n1,a,b,0\n".encode("utf-16"), r"not UTF-8 \(byte 0xff on line 1\)"),
    (
        "Latin-1 far down",
        b"id,title,description,categories\n" + b"1,a,b,0\n" * 50_000 + b"2,caf\xe9,,0\n",
        r"not UTF-8 \(byte 0xe9 on line 50002\); save it as UTF-8",
    ),
    (
        "semicolons",
        b"id;title;description;categories\n1;a;b;0\n",
        r"lacks id, .*it has id;title;description;categories",
    ),
    (
        "a longer row",
        b"id,title,description,categories\n1,a,b,0\n2,a, and b,c,1\n",
        r"train\.csv is not a CSV table: .*Expected 4 fields in line 3, saw 5",
    ),
    (
        "longer rows from the first",  # which pandas would take for an index, and shift
        b'id,title,description,categories\n1,"a\nb",c,0,\n2,a,b,1,\n',
        r"train\.csv: 2 rows have more or fewer cells than the header's 4 \(they end on lines 3, 4\)",
    ),
    (
        "cut off",
        b"id,title,description,categories\n1,a,b,0\n2,a,b,1\n3,some ti",
        r"train\.csv: 1 rows have more or fewer cells than the header's 4 \(they end on lines 4\)",
    ),
    ("an open quote", b'id,title,description,categories\n1,a,b,0\n2,"a,b,1\n', r"not a CSV table: .*EOF inside string"),
]


@pytest.mark.parametrize(("data", "sentence"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES])
def test_a_bad_file_is_refused(goods, data, sentence):
    goods.write()
    (goods.folder / "train.csv").write_bytes(data)
    goods.refused(sentence, write=False)


def test_a_missing_table_says_what_is_there(goods):
    goods.write()
    (goods.folder / "test.csv").rename(goods.folder / "Test.csv")
    goods.refused(r"there is no .*goods/test\.csv; .*goods has Test\.csv, train\.csv", write=False)
    paths = {"train_csv": "nowhere/train.csv", "test_csv": "data/sample/nowhere.csv"}
    goods.refused("set data_dir to the", "made by: python -m goods.data.sample", write=False, data_dir=None, **paths)


def test_all_problems_are_told_at_once(goods):
    goods.train[2]["id"] = "001X"
    goods.train[3]["categories"] = ""
    goods.train[4]["categories"] = 9
    for row in goods.test:
        row.pop("title")
    (goods.folder / "labels.json").write_text("{")
    message = goods.refused(train_images_dir="nowhere")
    for sentence in ("001X", "no categories", "unknown categories", "lacks title", "labels.json must", "no folder"):
        assert len([line for line in message.splitlines() if sentence in line and line.startswith("- ")]) == 1, message


def test_photo_folders_must_be_there(goods):
    message = goods.refused("there is no folder .*nowhere", train_images_dir="nowhere", test_images_dir="nowhere")
    assert message.count("nowhere with photos") == 1
    outer = goods.photos["train"].parent
    goods.refused(
        f"{outer} has no photos, only folders; did you mean {outer / 'train_images'}", train_images_dir=str(outer)
    )
    empty = goods.folder / "empty"
    empty.mkdir()
    goods.refused(
        f"no training product has a photo <id>.jpg in {empty}; set train_images_dir", train_images_dir=str(empty)
    )


BAD_PHOTOS = [
    ("missing", None, "^missing$"),
    ("empty", b"", "^empty file$"),
    ("truncated JPEG", encoded(photo(size=(64, 64)))[:-500], "^unreadable: image file is truncated"),
    ("truncated PNG", encoded(photo(size=(64, 64)), "PNG")[:5000], "^unreadable: "),
    ("a page instead", b"<html>404</html>", "^unreadable: not a photo$"),
    ("a TIFF", encoded(photo(), "TIFF"), "^unreadable: not a photo$"),
    ("a bomb", png_header(60_000, 60_000), "^unreadable: Image size .3600000000 pixels. exceeds limit"),
    ("half a bomb", png_header(10_000, 12_000), "^unreadable: 10000 x 12000 pixels are too many$"),
    ("a header alone", png_header(10, 10), "^unreadable: "),
    ("a spoilt checksum", encoded(photo(), "PNG").replace(b"IDAT", b"IDXT"), "^unreadable: "),
]


def test_a_bad_photo_is_blank(goods):
    for row, (_, data, _) in zip(goods.train, BAD_PHOTOS, strict=False):
        path = goods.photos["train"] / f"{row['id']}.jpg"
        path.unlink() if data is None else path.write_bytes(data)
    folder = goods.photos["train"] / f"{goods.train[10]['id']}.jpg"
    folder.unlink()
    folder.mkdir()
    read = goods.read()
    status = read.photos["status"].tolist()
    for (name, _, pattern), found in zip(BAD_PHOTOS, status, strict=False):
        assert re.search(pattern, found), (name, found)
    assert re.search("^unreadable: .*Is a directory", status[10])
    assert status[11:] == ["ok"] * 4
    assert read.train["image"].tolist()[:11] == [""] * 11 and read.train["image"][11]
    assert read.train["sha"].tolist()[:11] == [""] * 11
    assert read.report["train"]["bad_images"] == 11
    assert read.report["warnings"] == [
        "11 photos can't be used (9 unreadable, 1 missing, 1 empty file; ids 000X, 001X, 002X, 003X, 004X and 6 more)"
    ]
    listed = pd.read_csv(goods.outputs / "trial" / "bad_images.csv", dtype=str)
    assert listed["id"].tolist() == read.train["id"].tolist()[:11]
    assert listed["status"].tolist() == status[:11]
    assert not any("0x" in text for text in status)  # an address in memory, another one each time


@pytest.mark.parametrize(("data", "pattern"), [row[1:] for row in BAD_PHOTOS], ids=[row[0] for row in BAD_PHOTOS])
def test_a_bad_photo_can_be_an_error(goods, data, pattern):
    path = goods.photos["test"] / "901.jpg"
    path.unlink() if data is None else path.write_bytes(data)
    line = "(?m)^- test 901: " + pattern.removeprefix("^")
    goods.refused("^1 photos can't be used, and bad_images is 'error':", line, bad_images="error")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read anything")
def test_a_photo_that_may_not_be_read_is_no_empty_file(goods):
    goods.put("test", "901.jpg", encoded(photo())).chmod(0)
    assert "Permission denied" in goods.read().photos["status"].iloc[13]


def test_a_run_refuses_tables_that_changed(goods):
    goods.read()
    goods.train[0]["categories"] = 1
    goods.refused(r"run 'trial' was made with other goods: train changed since\. Choose another name")
    goods.train[0]["categories"] = 0
    goods.test.reverse()
    goods.refused("test changed since")
    goods.test.reverse()
    goods.put("train", "003X.jpg", encoded(photo(99)))
    goods.test[0]["title"] = "Another thing"
    goods.refused("train, test changed since")
    goods.read(run="another")


def test_photos_are_found_by_any_ending(goods):
    names = ["000X.jpg", "001X.JPEG", "002X.png", "003X.WebP", "004X.jpeg", "005X.Jpg"]
    for name in (*names, "006X.gif", "007X.txt", "007X"):
        (goods.photos["train"] / f"{name[:4]}.jpg").unlink(missing_ok=True)
        goods.put("train", name, encoded(photo(), {"p": "PNG", "W": "WEBP"}.get(name[5:6], "JPEG")))
    read = goods.read()
    assert [Path(path).name for path in read.train["image"][:6]] == names
    assert read.train["image"][6:8].tolist() == ["", ""]


def test_find_photos_prefers_jpg_and_knows_whole_names(tmp_path):
    for name in ("a.png", "a.jpg", "b.webp", "b.png", "c.1.jpg", "d.txt"):
        (tmp_path / name).touch()
    found = {name: Path(path).name for name, path in find_photos(tmp_path).items()}
    assert found["a"] == "a.jpg" and found["a.png"] == "a.png" and found["b"] == "b.png"
    assert found["c.1"] == "c.1.jpg"
    assert "d" not in found


def test_photos_are_decoded_once_and_changes_are_seen(goods, tmp_path):
    names = ["900", "901"]
    table = pd.DataFrame({"id": names, "image": [str(goods.photos["test"] / f"{name}.jpg") for name in names]})
    first = inspect_photos(table, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    stamp = kept.stat().st_mtime_ns
    pd.testing.assert_frame_equal(inspect_photos(table, tmp_path / "cache"), first, check_dtype=False)
    assert kept.stat().st_mtime_ns == stamp
    goods.put("test", "901.jpg", b"broken")
    assert inspect_photos(table, tmp_path / "cache")["status"].tolist() == ["ok", "unreadable: not a photo"]


# ---------------------------------------------------------------------------------------------------------------------
# 4 Text cleaning
# ---------------------------------------------------------------------------------------------------------------------

TEXTS = [
    ("Tom &amp; Jerry&#39;s &quot;best&quot;", 'Tom & Jerry\'s "best"'),
    ("Bed &amp;amp; Bath", "Bed & Bath"),  # Amazon escapes twice
    ("&lt;b&gt;Bold&lt;/b&gt; <br/>\n<p class='x'>Text</p>", "Bold Text"),
    ("a<!-- hidden\n -->b", "a b"),
    ("I <3 you, 4 > 3 and 2 < 3", "I <3 you, 4 > 3 and 2 < 3"),
    ("see https://a.b/c?d=1&amp;e=2 and www.shop.com now", "see and now"),
    ("a\tb\r\n\r\nc\u2028d\x0be\xa0f", "a b c d e f"),
    ("\ufeffzero\u200bwidth\xad", "zerowidth"),
    ("ｆｕｌｌ width ﬁt ２", "full width fit 2"),
    ("cafe\u0301", "café"),
    ("e\u200b\u0301", "é"),
    ("family 👩\u200d👧", "family 👩\u200d👧"),  # the joiner makes one sign of two
    ("a\x00b\x07c\ufffdd", "a b c d"),
    ("bad &#0; &#xD800; &#xFFFFFFFF; &nosuch;", "bad &nosuch;"),
    (f"&#{'9' * 5000}; &amp;#{'9' * 5000};", ""),
    ("日本語 – Straße", "日本語 – Straße"),
    ("", ""),
    (" \n ", ""),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS, ids=[ascii(text)[1:21] for text, _ in TEXTS])
def test_clean_text(text, expected):
    assert clean_text(text) == expected


MARKUP = (
    "& &amp; &lt; &#10; &#x2028; &# ; < > </b> <b <!-- --> http:// www. e\u0301 \u200b \r\n \ud800 \ufdfa 🏳️‍🌈".split(
        " "
    )
)
anything = st.lists(st.one_of(st.text(st.characters(), max_size=8), st.sampled_from(MARKUP))).map("".join)


@given(anything)
@settings(max_examples=300, deadline=None)
def test_clean_text_is_one_line_without_control_characters(text):
    cleaned = clean_text(text)
    assert cleaned == cleaned.strip() and "  " not in cleaned
    assert len(cleaned.splitlines()) <= 1
    assert not {unicodedata.category(letter) for letter in cleaned} & {"Cc", "Cs"}
    cleaned.encode("utf-8")


@given(anything)
@settings(max_examples=300, deadline=None)
def test_clean_text_leaves_clean_text_alone(text):
    cleaned = clean_text(text)
    if not re.search(r"[&<]|https?://|www\.", cleaned):  # what is left of markup may look like markup
        assert clean_text(cleaned) == cleaned


def test_texts_are_joined_without_the_empty_ones():
    table = pd.DataFrame({"a": ["One", "", "<br>", ""], "b": ["two", "three", "four", " "], "c": ["", "4", "", ""]})
    assert join_texts(table) == ["One. two", "three. 4", "four", ""]


# ---------------------------------------------------------------------------------------------------------------------
# 5 Folds
# ---------------------------------------------------------------------------------------------------------------------

keys = st.lists(st.tuples(st.sampled_from(["", *"abcdef"]), st.sampled_from(["", *"uvwxyz"])), max_size=30)


@given(keys)
@settings(max_examples=100, deadline=None)
def test_products_share_a_group_when_a_chain_of_duplicates_ties_them(pairs):
    groups = duplicate_groups([text for text, _ in pairs], [sha for _, sha in pairs])
    expected = list(range(len(pairs)))  # groups by merging until nothing changes
    for (i, a), (j, b) in itertools.combinations(enumerate(pairs), 2):
        if (a[0] and a[0] == b[0]) or (a[1] and a[1] == b[1]):
            expected = [expected[i] if group == expected[j] else group for group in expected]
    same = np.equal.outer(np.array(expected, dtype=int), np.array(expected, dtype=int))
    np.testing.assert_array_equal(np.equal.outer(groups, groups), same)


@pytest.mark.parametrize(("shared", "count"), [(MAX_SHARED, 1), (MAX_SHARED + 1, MAX_SHARED + 1)])
def test_a_placeholder_ties_nothing(shared, count):
    own = [f"own {n}" for n in range(shared)]
    assert len(set(duplicate_groups(["no description"] * shared, own))) == count
    assert len(set(duplicate_groups(own, ["the same grey photo"] * shared))) == count


def test_duplicate_groups_goes_by_position_not_by_index():
    texts, shas = (pd.Series(values, index=[7, 8, 9]) for values in (["a", "b", "a"], ["", "", ""]))
    assert duplicate_groups(texts, shas)[0] == duplicate_groups(texts, shas)[2]


def test_chosen_columns_do_not_move_a_products_fold():
    table = pd.DataFrame({"title": ["cup", "cup", "mug"], "description": ["red", "red", "red"], "sha": ["x", "y", "z"]})
    short = table.assign(text=["drinking vessel"] * 3)
    assert product_groups(short).tolist() == product_groups(table.assign(text=["a", "b", "c"])).tolist()
    assert len(set(product_groups(short))) == 2
    assert len(set(product_groups(short.drop(columns="description")))) == 1  # other tables: by what is read


@st.composite
def catalogues(draw, of_one_class: bool = False) -> tuple[list[str], np.ndarray, np.ndarray, int]:
    """ids, labels, groups, n_folds; with `of_one_class`, all of a group has the same label."""
    n_folds = draw(st.integers(2, 6))
    groups = np.array(draw(st.lists(st.integers(0, 40), min_size=n_folds, max_size=80)))
    groups[:n_folds] = np.arange(n_folds)
    count = 41 if of_one_class else len(groups)
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    numbers = draw(st.lists(st.integers(0, 9999), min_size=len(groups), max_size=len(groups), unique=True))
    return [f"{number:05}" for number in numbers], labels[groups] if of_one_class else labels, groups, n_folds


@given(catalogues(), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_folds_part_the_products_and_keep_groups_whole(catalogue, seed):
    ids, labels, groups, n_folds = catalogue
    folds = make_folds(ids, labels, groups, n_folds, seed)
    assert len(folds) == len(ids)
    assert set(folds) == set(range(n_folds))  # none is empty
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))


@given(catalogues(of_one_class=True), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_folds_have_of_each_class_alike_up_to_one_group(catalogue, seed):
    ids, labels, groups, n_folds = catalogue
    folds = make_folds(ids, labels, groups, n_folds, seed)
    for label in set(labels):
        per_fold = np.bincount(folds[labels == label], minlength=n_folds)
        assert np.ptp(per_fold) <= np.bincount(groups[labels == label]).max()


@given(catalogues(), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_folds_do_not_depend_on_the_order_of_rows_or_the_numbers_of_groups(catalogue, seed, random):
    ids, labels, groups, n_folds = catalogue
    folds = make_folds(ids, labels, groups, n_folds, seed)
    order = random.sample(range(len(ids)), len(ids))
    renamed = np.array(random.sample(range(100), 41))[groups]
    again = make_folds([ids[i] for i in order], labels[order], renamed[order], n_folds, seed)
    assert again.tolist() == folds[order].tolist()


def test_folds_are_the_same_everywhere():
    """Kaggle's versions of numpy and scikit-learn are older; an ensemble needs the same folds from both."""
    ids, labels = [f"B{n:02}" for n in range(15)], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3]
    groups = [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10, 11]
    folds = make_folds(ids, labels, groups, 3, seed=42)
    assert folds.tolist() == [1, 1, 0, 2, 0, 2, 2, 2, 1, 0, 1, 0, 0, 1, 2]
    assert folds.tolist() != make_folds(ids, labels, groups, 3, seed=43).tolist()


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_a_rare_class_is_spread_as_far_as_it_goes(rows):
    labels = [0] * 50 + [1] * 20 + [2] * rows
    folds = make_folds([str(n) for n in range(len(labels))], labels, range(len(labels)), 5, seed=1)
    assert len(set(folds[-rows:])) == rows
    assert np.bincount(folds[:50]).tolist() == [10] * 5


def test_classes_of_one_product_each_still_fill_all_folds():
    folds = make_folds(list("abcdefgh"), range(8), range(8), 4, seed=1)
    assert np.bincount(folds).tolist() == [2, 2, 2, 2]


def test_too_few_products_for_the_folds():
    with pytest.raises(GoodsError, match="2 different products can't fill 3 folds; lower n_folds"):
        make_folds(list("abcd"), [0, 0, 1, 1], [0, 0, 1, 1], 3, seed=1)


def test_a_runs_folds_are_made_once(goods):
    goods.train[3]["title"], goods.train[3]["description"] = goods.train[0]["title"], goods.train[0]["description"]
    goods.put("train", "006X.jpg", (goods.photos["train"] / "003X.jpg").read_bytes())
    read, p = goods.read(), goods.params(n_folds=3)
    folds = read_folds(read, p)
    assert folds.columns.tolist() == ["id", "label", "fold"]
    assert folds["id"].tolist() == read.train["id"].tolist()
    assert folds["fold"][[0, 3, 6]].nunique() == 1  # one text, one photo
    assert set(folds["fold"]) == {0, 1, 2}
    stamp = (p.run_dir / "folds.parquet").stat().st_mtime_ns
    assert read_folds(read, goods.params(n_folds=3, seed=1)).equals(folds)  # saved is saved; open_run guards the seed
    assert (p.run_dir / "folds.parquet").stat().st_mtime_ns == stamp


def test_rare_classes_are_named(goods):
    (goods.folder / "labels.json").write_text(json.dumps(CLASSES))
    assert rare_classes(goods.read(), 4) == []
    assert rare_classes(goods.read(), 5)[1] == "Toys has 4 rows for 5 folds: some folds have none of it"


# ---------------------------------------------------------------------------------------------------------------------
# 6 Images and datasets
# ---------------------------------------------------------------------------------------------------------------------

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def sixteen_bits(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, dtype=np.uint16))


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([*BLUE, *RED])
    return encoded(image, "PNG", **({"transparency": b"\xff\x80"} if transparent else {}))


PHOTOS = [
    ("RGB JPEG", encoded(Image.new("RGB", (8, 8), RED), quality=95), RED),
    ("RGB WebP", encoded(Image.new("RGB", (8, 8), RED), "WEBP", lossless=True), RED),
    ("RGB GIF", encoded(Image.new("RGB", (8, 8), RED), "GIF"), RED),
    ("grey JPEG", encoded(Image.new("L", (8, 8), 77)), (77, 77, 77)),
    ("grey PNG", encoded(Image.new("L", (8, 8), 77), "PNG"), (77, 77, 77)),
    ("grey, half transparent", encoded(Image.new("LA", (8, 8), (0, 128)), "PNG"), (127, 127, 127)),
    ("palette", palette(False), RED),
    ("palette, half transparent", palette(True), (255, 127, 127)),
    ("RGBA, transparent", encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG"), WHITE),
    ("RGBA, half transparent", encoded(Image.new("RGBA", (8, 8), (0, 0, 255, 128)), "PNG"), (127, 127, 255)),
    ("RGBA WebP, transparent", encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "WEBP", lossless=True), WHITE),
    ("RGB, one colour transparent", encoded(Image.new("RGB", (8, 8), RED), "PNG", transparency=RED), WHITE),
    ("grey, one level transparent", encoded(Image.new("L", (8, 8), 5), "PNG", transparency=5), WHITE),
    ("CMYK", encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95), RED),
    ("16 bits, dark", encoded(sixteen_bits(77 * 257), "PNG"), (77, 77, 77)),
    ("16 bits, white", encoded(sixteen_bits(65535), "PNG"), WHITE),
    ("1 bit, white", encoded(Image.new("1", (8, 8), 1), "PNG"), WHITE),
    ("1 bit, black", encoded(Image.new("1", (8, 8), 0), "PNG"), (0, 0, 0)),
    ("one pixel", encoded(Image.new("RGB", (1, 1), RED), "PNG"), RED),
    ("a line", encoded(Image.new("RGB", (300, 1), RED), "PNG"), RED),
]


def loaded(path: str, size: int) -> np.ndarray:
    """What load_photo gives, as rows of RGB pixels: (size, size, 3) uint8."""
    return load_photo(path, size).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("data", "colour"), [row[1:] for row in PHOTOS], ids=[row[0] for row in PHOTOS])
def test_photos_of_every_mode(tmp_path, data, colour):
    path = tmp_path / "photo.jpg"  # whatever it holds
    path.write_bytes(data)
    table = inspect_photos(pd.DataFrame({"id": ["a"], "image": [str(path)]}), tmp_path / "cache")
    assert table["status"].tolist() == ["ok"]
    pixels = loaded(str(path), 16)
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), np.uint8)
    np.testing.assert_allclose(pixels.reshape(-1, 3).mean(0), colour, atol=2)


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")]
)
def test_photos_are_turned_as_their_exif_says(tmp_path, form, mode):
    upright = Image.new("RGB", (16, 16), "white")
    upright.paste("black", (0, 0, 16, 8))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me a quarter clockwise"
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(upright.rotate(90).convert(mode), form, exif=exif))
    pixels = loaded(str(path), 16).astype(int)
    assert pixels[:7].mean() < 10 and pixels[9:].mean() > 245


@pytest.mark.parametrize(
    "exif", [b"", b"garbage", b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01", b"MM\x00*\xff\xff\xff\xff"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_spoilt_exif_costs_no_photo(tmp_path, exif):
    data, segment = encoded(photo()), b"Exif\x00\x00" + exif
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    table = inspect_photos(pd.DataFrame({"id": ["a"], "image": [str(path)]}), tmp_path / "cache")
    assert table["status"].tolist() == ["ok"]
    assert loaded(str(path), 8).shape == (8, 8, 3)


def test_a_photo_is_squashed_not_cropped(tmp_path):
    wide = Image.new("RGB", (90, 30), "white")
    wide.paste(RED, (0, 0, 30, 30))
    wide.paste(BLUE, (60, 0, 90, 30))
    wide.save(tmp_path / "wide.png")
    pixels = loaded(str(tmp_path / "wide.png"), 30)
    assert (tuple(pixels[15, 2]), tuple(pixels[15, 15]), tuple(pixels[15, 27])) == (RED, WHITE, BLUE)


def test_no_photo_is_white():
    pixels = loaded("", 5)
    assert (pixels.shape, pixels.dtype, pixels.min()) == ((5, 5, 3), np.uint8, 255)


@pytest.mark.parametrize("size", [64, 100, 224, 384])
def test_a_large_jpeg_decoded_small_looks_the_same(tmp_path, size):
    y, x = np.mgrid[0:900, 0:1400]
    waves = [127 + 120 * np.sin(x / 40) * np.cos(y / 60), x * 255 / 1400, 127 + 100 * np.sin((x + y) / 25)]
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(tmp_path / "large.jpg", quality=92)
    with Image.open(tmp_path / "large.jpg") as image:
        plain = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    pixels = loaded(str(tmp_path / "large.jpg"), size)
    assert np.abs(pixels.astype(int) - plain.astype(int)).mean() < 1


def test_photos_come_in_batches_with_what_stands_beside_them(tmp_path):
    photo(1).save(tmp_path / "a.png")
    columns = {"row": torch.arange(3), "tokens": torch.arange(12).reshape(3, 4)}
    dataset = PhotoDataset([str(tmp_path / "a.png"), "", str(tmp_path / "a.png")], 16, **columns)
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=collate))
    assert [tuple(batch["pixels"].shape) for batch in batches] == [(2, 3, 16, 16), (1, 3, 16, 16)]
    assert batches[0]["pixels"].dtype == torch.uint8
    assert batches[0]["pixels"][1].min() == 255
    np.testing.assert_array_equal(batches[1]["pixels"][0].permute(1, 2, 0), loaded(str(tmp_path / "a.png"), 16))
    assert batches[1]["row"].tolist() == [2] and batches[1]["tokens"].tolist() == [[8, 9, 10, 11]]


def test_tensors_come_in_whole_batches():
    dataset = TensorsDataset(x=torch.arange(10).reshape(5, 2), label=torch.arange(5))
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=collate))
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 2], [3, 4]]
    assert batches[1]["x"].tolist() == [[6, 7], [8, 9]]
