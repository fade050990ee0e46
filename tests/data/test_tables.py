"""Tables: competitions as they should be, and the ways they go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from competition import CLASSES, Competition, encoded, photo

from goods.data.tables import DEBUG_TEST_ROWS, report_table
from goods.data.texts import clean_text
from goods.files import write_json
from goods.members import open_run
from goods.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


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
    assert read.train["title"].tolist() == [clean_text(text) for text in texts]
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
    read = goods.read(debug=True, n_folds=2, max_bad_images=1)
    assert np.bincount(read.train["label"]).tolist() == [4, 4, 4]
    assert len(read.test) == DEBUG_TEST_ROWS
    assert (goods.outputs / "trial-debug" / "labels.json").is_file() and not (goods.outputs / "trial").exists()


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


def test_labels_that_differ_in_capitals_or_spaces_are_named(goods):
    for number, row in enumerate(goods.train):
        row["categories"] = ["Home Garden", "Toys", "Tools"][row["categories"]] if number else "HOME  GARDEN"
    said = "num_classes is 3; 'HOME  GARDEN', 'Home Garden' differ only in capitals or spaces; set num_classes to 4"
    goods.refused(said, num_classes=3)


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
        "a longer row",
        b"id,title,description,categories\n1,a,b,0\n2,a, and b,c,1\n",
        r"train\.csv: 1 rows have more or fewer cells than the header's 4 \(they end on lines 3\)",
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
    (
        "an open quote",
        b'id,title,description,categories\n1,"a\nb",b,0\n2,"a,b,1\n3,c,d,2\n',
        r"train\.csv is not a CSV table: a quote opens on line 4 and is never closed; close it there, or double it",
    ),
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
    empty = goods.folder / "empty"
    empty.mkdir()
    goods.refused(
        f"no training product has a photo <id>.jpg in {empty}; .* another folder: set train_images_dir=.*train_images",
        train_images_dir=str(empty),
    )


def test_a_run_refuses_tables_that_changed(goods):
    open_run(goods.params(kind="linear"))
    goods.read()
    goods.train[0]["categories"] = 1
    goods.read()  # nothing is trained yet
    goods.train[0]["categories"] = 0
    goods.read()
    write_json(Run.of(goods.params()).metrics, {})  # as if
    goods.train[0]["categories"] = 1
    goods.refused(
        r"run 'trial' was made with other goods: train changed since\. Name the tables",
        "or choose another name for run, such as run=trial-2$",
    )
    goods.train[0]["categories"] = 0
    goods.test.reverse()
    goods.refused("test changed since")
    goods.test.reverse()
    goods.put("train", "003X.jpg", encoded(photo(99)))
    goods.test[0]["title"] = "Another thing"
    goods.refused("train, test changed since")
    goods.read(run="another")


def test_the_id_may_be_a_text_as_well(goods):
    """Where it is a code that says something; it is then there under both names."""
    read = goods.read(text_columns=["id", "title"])
    assert read.train["text"][0] == "000X. Thing 000X"
    for row in (*goods.train, *goods.test):
        row["asin"] = row.pop("id")
    read = goods.read(id_column="asin", text_columns=["asin", "title"])
    assert read.train["text"][0] == "000X. Thing 000X" and read.train["id"][0] == "000X"


def test_goods_of_one_class_are_refused(goods):
    for row in goods.train:
        row["categories"] = 1
    goods.refused("every categories is 1; there is nothing to learn to tell apart with one class", num_classes=2)


def test_a_label_longer_than_any_number_is_a_name(goods):
    goods.train[0]["categories"] = "1" * 5000
    message = goods.refused("has 4 classes, but num_classes is 3", num_classes=3)
    assert len(message) < 500
    assert goods.read(num_classes=4).labels == ["0", "1", "1" * 5000, "2"]


def test_a_file_is_no_folder_and_a_folder_no_table(goods):
    goods.write()
    goods.refused("is a folder; name the table in it; .* has test.csv, train.csv", train_csv=str(goods.folder))
    photos = str(goods.folder / "train.csv")
    goods.refused("train.csv is a file; name the folder that the photos are in", train_images_dir=photos)
