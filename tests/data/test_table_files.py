"""Tables of every kind are read alike, all cells as text; what can't be read is said with its line."""

from __future__ import annotations

import gzip
import io
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from goods.compress.params import CompressParams
from goods.data.table_files import read_cells, rows_of, stretches
from goods.errors import GoodsError
from goods.params import load_params

ROWS = [["007", "Mug, blue", '5" high\nand round', "NA"], ["008", "", "plain", "1.50"]]
COLUMNS = ["id", "title", "description", "categories"]


def text_of(separator: str = ",") -> bytes:
    return pd.DataFrame(ROWS, columns=COLUMNS).to_csv(sep=separator, index=False).encode()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, data in files.items():
            packed.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def marked(data: bytes, place: int, mark: int) -> bytes:
    """A zip file of one table with another byte in both of its headers; `place` as in the first."""
    changed = bytearray(data)
    changed[place] = changed[data.index(b"PK\x01\x02") + place + 2] = mark
    return bytes(changed)


FILES = {
    "train.csv": text_of(),
    "train.tsv": text_of("\t"),
    "semicolons.csv": text_of(";"),
    "bars.txt": text_of("|"),
    "excel's.csv": b"\xef\xbb\xbfsep=;\r\n" + text_of(";"),
    "tabs.csv": text_of("\t"),
    "carets.csv": text_of("^"),
    "train.csv.gz": gzip.compress(text_of()),
    "really gzip.csv": gzip.compress(text_of(";")),
    "train.csv.zip": zipped(train__csv=text_of()),
    "train.zip": zipped(some__tsv=text_of("\t"), __MACOSX=b"x"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_text_gives_the_same_cells(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    problems: list[str] = []
    table = read_cells(tmp_path / name, problems)
    assert problems == []
    assert (list(table), table.to_numpy().tolist()) == (COLUMNS, ROWS)
    assert rows_of(tmp_path / name) == 2


def test_another_separator_is_said_aloud(tmp_path, capsys):
    for name in ("semicolons.csv", "tabs.csv", "train.csv", "train.tsv"):
        (tmp_path / name).write_bytes(FILES[name])
        read_cells(tmp_path / name, [])
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'semicolons.csv'}: its cells are separated by ';'",
        f"{tmp_path / 'tabs.csv'}: its cells are separated by tabs",
    ]


def test_parquet_is_read_as_text(tmp_path):
    columns = {
        "id": pa.array([7, 2**60]), "title": ["NA", None], "label": pa.array([3, None]), "price": [1.5, 2.0],
        "names": pa.array([["a.jpg", "b.jpg"], None]), "brand": pa.array(["x", "y"]).dictionary_encode(),
        "photo": pa.array([{"bytes": b"1", "path": "a.jpg"}, None]), "new": [True, False],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    table = read_cells(tmp_path / "train.parquet", [])
    assert list(table) == list(columns)
    assert table.to_numpy().tolist() == [
        ["7", "NA", "3", "1.5", "a.jpg|b.jpg", "x", "", "True"],
        [str(2**60), "", "", "2" if table["price"][1] == "2" else "2.0", "", "y", "", "False"],
    ]
    assert rows_of(tmp_path / "train.parquet") == 2


def test_a_table_in_pieces_is_one_table(tmp_path):
    for piece in (0, 1):
        ids = [f"{piece}{k}" for k in range(3)]
        pq.write_table(pa.table({"id": ids}), tmp_path / f"train-0000{piece}-of-2.parquet")
    assert read_cells(tmp_path / "train-*-of-*.parquet", [])["id"].tolist() == ["00", "01", "02", "10", "11", "12"]
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "train-00002-of-2.parquet")
    problems: list[str] = []
    assert read_cells(tmp_path / "train-*-of-*.parquet", problems) is None
    assert "train-00002-of-2.parquet has other columns than" in problems[0] and problems[0].endswith(": name")


@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_a_table_in_stretches_is_the_table(tmp_path, rows):
    ids = [f"{k:03}" for k in range(20)]
    for piece, some in enumerate((ids[:9], ids[9:])):
        table = pa.table({"id": some, "photo": [k.encode() for k in some], "title": [f"{k}\nhigh" for k in some]})
        pq.write_table(table, tmp_path / f"new-{piece}.parquet", row_group_size=5)
    table.to_pandas().drop(columns="photo").to_csv(tmp_path / "new.csv", index=False)
    sizes = [min(rows, 20 - at) for at in range(0, 20, rows)]
    found = list(stretches(tmp_path / "new-*.parquet", rows, "id", ["id", "photo"], photos=True))
    assert [len(part) for part in found] == sizes
    assert pd.concat(found)["id"].tolist() == ids == [photo.decode() for photo in pd.concat(found)["photo"]]
    assert [part.index.tolist() for part in found] == [list(range(size)) for size in sizes]
    text = pd.concat(stretches(tmp_path / "new.csv", rows, "id"), ignore_index=True)
    assert text.equals(read_cells(tmp_path / "new.csv", [])) and text["title"][0] == "009\nhigh"


DAMAGED = {
    "cut.csv.gz": (gzip.compress(text_of() * 50)[:-20], r"cut\.csv\.gz can't be read: Compressed file ended"),
    "two.zip": (zipped(a__csv=text_of(), b__csv=text_of()), r"two\.zip holds 2 tables, and one is needed; unzip it"),
    "locked.zip": (marked(zipped(a__csv=text_of()), 6, 1), r"locked\.zip can't be read: .*password required"),
    "packed anew.zip": (marked(zipped(a__csv=text_of()), 8, 99), r"packed anew\.zip can't be read: .*not supported"),
    "none.zip": (zipped(a__jpg=b"x"), r"none\.zip holds 0 tables"),
    "json.csv": (b'[\n {"id": "007"}]', r"json\.csv is JSON; save it as Parquet: pandas\.read_json\("),
    "lines.csv.gz": (gzip.compress(b'{"id": "7"}\n{"id": "8"}\n'), r"lines\.csv\.gz is JSON; save it"),
    "excel.csv": (zipped(**{"xl/workbook__xml": b"<x/>"}), r"excel\.csv is an Excel file; save it as CSV$"),
    "old.xls": (b"\xd0\xcf\x11\xe0" + bytes(50), r"old\.xls is an Excel file; save it as CSV$"),
    "cut.parquet": (b"PAR1" + bytes(50), r"cut\.parquet can't be read as Parquet: "),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_a_sentence(tmp_path, name):
    data, sentence = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    problems: list[str] = []
    assert read_cells(tmp_path / name, problems) is None
    assert pd.Series(problems).str.contains(sentence).tolist() == [True]


NAMES = ["train.tsv", "train.csv.gz", "train.parquet", "train.zip", "train-00000-of-00001.parquet"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("home", ["", "data"])
def test_data_dir_finds_tables_of_every_kind(tmp_path, name, home):
    folder = tmp_path / home
    folder.mkdir(exist_ok=True)
    for part in ("train", "test"):
        data = zipped(some__csv=text_of()) if name.endswith(".zip") else b""
        (folder / name.replace("train", part)).write_bytes(data)
    p = load_params(data_dir=str(tmp_path))
    assert p.train_csv == str(folder / name) and p.test_csv == str(folder / name.replace("train", "test"))


def test_a_zip_of_photos_is_no_table(tmp_path):
    (tmp_path / "train.zip").write_bytes(zipped(a__jpg=b"x", b__jpg=b"y"))
    (tmp_path / "test.csv").write_bytes(text_of())
    assert load_params(data_dir=str(tmp_path)).train_csv == str(tmp_path / "train.csv")


RENAMED = [
    ({"categories": "Category"}, {}, r"lacks categories; it has .*; set label_column=Category$"),
    ({"title": " Title"}, {}, r'test\.csv lacks title; .*; set text_columns=\[" Title", description\]'),
    ({"title": "Name"}, {}, r"test\.csv lacks title; .*; set text_columns=\[description\]$"),
    ({"title": "Name", "description": "About"}, {}, r"lacks title, description; it has .* \(see id_column, text_col"),
    ({"title": "Name", "description": "Descripton"}, {}, r"set text_columns=\[Descripton\]$"),
    ({"id": "ID "}, {}, r'lacks id; .*; set id_column="ID "'),
    ({"id": "ImgId"}, {"id_column": "img_id"}, r"lacks img_id; .*; set id_column=ImgId"),
    ({"categories": "kind"}, {}, r"lacks categories; it has id, title, description, kind \(see id_column, text_col"),
]


@pytest.mark.parametrize(("names", "given", "sentence"), RENAMED)
def test_a_column_that_almost_fits_is_named_with_its_parameter(goods, names, given, sentence):
    for rows in (goods.train, goods.test):
        for number, row in enumerate(rows):
            rows[number] = {names.get(name, name): value for name, value in row.items()}
    goods.refused("(?m)" + sentence, **given)


def test_a_compressed_table_keeps_the_columns_of_any_kind(tmp_path, monkeypatch):
    from goods.compress import job

    for part in ("train", "test"):
        (tmp_path / f"{part}.tsv").write_bytes(text_of("\t"))
    p = CompressParams(
        train_csv=str(tmp_path / "train.tsv"), test_csv=str(tmp_path / "test.tsv"), outputs_dir=str(tmp_path / "out")
    )
    texts = pd.concat([table.assign(table=name) for name, table in job._read_tables(p).items()], ignore_index=True)
    texts[list(job.ADDED_COLUMNS)] = ["short", "ok"]
    job._write(p, texts, pd.Series(dtype=object))
    written = pd.read_csv(p.compressed_dir / "train.csv", dtype=str, keep_default_na=False)
    assert written[COLUMNS].to_numpy().tolist() == ROWS and written["compressed_text"].tolist() == ["short"] * 2


def test_a_missing_table_names_tables_of_all_kinds(tmp_path):
    (tmp_path / "Train.tsv").write_bytes(text_of("\t"))
    problems: list[str] = []
    assert read_cells(tmp_path / "train.csv", problems) is None
    assert problems == [f"there is no {tmp_path / 'train.csv'}; {tmp_path} has Train.tsv"]


def test_a_missing_table_names_files_that_can_be_made_one(tmp_path):
    for name in ("labels.json", "train.xlsx", "test.xlsx", "train_images.zip", "a.jpg"):
        (tmp_path / name).touch()
    problems: list[str] = []
    assert read_cells(tmp_path / "train.csv", problems) is None
    how = "has test.xlsx, train.xlsx, train_images.zip: save it as CSV; unzip it"
    assert problems == [f"there is no {tmp_path / 'train.csv'}; {tmp_path} {how}"]


def test_a_semicolon_table_trains_like_any(goods):
    goods.write()
    for part in ("train", "test"):
        path = goods.folder / f"{part}.csv"
        pd.read_csv(path, dtype=str).to_csv(path, sep=";", index=False)
    assert goods.read(write=False).train["text"][0] == "Thing 000X. A thing of class 0."
    with pytest.raises(GoodsError, match="lacks about"):
        goods.read(write=False, text_columns=["about"])
