"""Photos by a column: names, paths, several of them, patterns; below the photo folder and nowhere else."""

from __future__ import annotations

import pickle
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from competition import encoded, photo

from goods.data.photo_files import PhotoFolder, cells_of, leaves_folder, names_in, unpack_photos


@pytest.fixture
def folder(tmp_path: Path) -> PhotoFolder:
    names = "a.jpg|b.png|blue shirt.jpg|c.jpg|c.png|shoes/d.jpg|scan.bin|tall, thin.jpg|e, f.jpg|f.jpg"
    for name in names.split("|"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return PhotoFolder(tmp_path / "photos")


FOUND = {
    "a.jpg": "a.jpg", "a": "a.jpg", "c": "c.jpg", "c.png": "c.png", "./a.jpg": "a.jpg", "shoes/d.jpg": "shoes/d.jpg",
    "shoes/d": "shoes/d.jpg", "shoes\\d.jpg": "shoes/d.jpg", "photos/a.jpg": "a.jpg",
    "photos/shoes/d.jpg": "shoes/d.jpg", "shoes/../a.jpg": "a.jpg", "scan.bin": "scan.bin",
    "https://shop.example/i/a.jpg?w=9": "a.jpg", "s3://bucket/x/a.jpg": "a.jpg", "blue shirt": "blue shirt.jpg",
    "d.jpg": "", "scan": "", "A.jpg": "", "../photos/a.jpg": "", "other/a.jpg": "", "": "", ".": "", "shoes": "",
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_a_name_finds_its_photo(folder, name):
    assert folder.find(name) == (str(folder.folder / FOUND[name]) if FOUND[name] else "")


LEAVES = ["/a.jpg", "../a.jpg", "x/../../a.jpg", "..\\a.jpg", "C:\\a.jpg", "C:a.jpg", "\\\\server\\a.jpg", "a\0.jpg"]


@pytest.mark.parametrize("name", LEAVES)
def test_paths_that_leave_the_folder_are_seen(name):
    assert leaves_folder(name) and not leaves_folder(name.strip("./\\").replace("C:", "").replace("\0", "")[-5:])


CELLS = {
    "a.jpg": ["a.jpg"],
    "a.jpg|b.png": ["a.jpg", "b.png"],
    " a.jpg | b.png |": ["a.jpg", "b.png"],
    "a.jpg b.png": ["a.jpg", "b.png"],
    "a b": ["a", "b"],
    "a.jpg a.jpg": ["a.jpg"],
    "blue shirt.jpg": ["blue shirt.jpg"],
    "no such shirt": ["no such shirt"],
    "gone.jpg gone.png": ["gone.jpg", "gone.png"],
    "['a.jpg', 'b.png']": ["a.jpg", "b.png"],
    '["a.jpg", "blue shirt.jpg"]': ["a.jpg", "blue shirt.jpg"],
    "[a.jpg, b.png]": ["a.jpg", "b.png"],
    "https://x.y/a?b=1 s3://x/c": ["https://x.y/a?b=1", "s3://x/c"],
    "https://x.y/blue shirt.jpg": ["https://x.y/blue shirt.jpg"],
    "https://x.y/a.jpg,https://x.y/w_9,h_9/b;s3://x/c": ["https://x.y/a.jpg", "https://x.y/w_9,h_9/b", "s3://x/c"],
    "https://x.y/a.jpg, https://x.y/blue shirt.jpg,": ["https://x.y/a.jpg", "https://x.y/blue shirt.jpg"],
    "https://x.y/w_9,h_9/b.png": ["https://x.y/w_9,h_9/b.png"],
    "a.jpg, gone.jpg; c.png,": ["a.jpg", "gone.jpg", "c.png"],
    "a.jpg,b": ["a.jpg", "b"],
    "gone.jpg,gone.HEIC": ["gone.jpg", "gone.HEIC"],
    "a, b, gone": ["a", "b", "gone"],
    "a.jpg b.png,c.png": ["a.jpg", "b.png", "c.png"],
    "blue shirt.jpg; a.jpg": ["blue shirt.jpg", "a.jpg"],
    "red, large.jpg": ["red, large.jpg"],
    "tall, thin.jpg": ["tall, thin.jpg"],
    "e, f.jpg": ["e, f.jpg"],
    ", ;": [],
    "": [],
    "[]": [],
}


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_may_name_several(folder, cell):
    assert names_in(cell, folder) == CELLS[cell]


def test_photos_by_id_are_found_in_folders_below(folder):
    above = pickle.loads(pickle.dumps(PhotoFolder(folder.folder.parent)))
    assert [above.by_id(name) for name in ("d", "b.png", "blue shirt")] == [
        str(folder.folder / name) for name in ("shoes/d.jpg", "b.png", "blue shirt.jpg")
    ]
    (folder.folder / "shoes" / "a.png").touch()
    above = PhotoFolder(folder.folder.parent)
    assert above.by_id("a") == "" and above.by_id("a.png") != ""  # several are called a
    assert above.by_id("photos/a") == folder.by_id("a") and above.by_id("../photos/a") == ""
    assert folder.by_id("d") == "" and folder.by_id("shoes/d") != ""  # it has photos of its own


def test_photos_by_id_are_read_from_folders_by_their_beginnings(goods):
    flat = goods.read()
    for path in list(goods.photos["train"].iterdir()):
        (to := path.parent / path.name[:2]).mkdir(exist_ok=True)
        path.rename(to / path.name)
    assert goods.read().train["sha"].tolist() == flat.train["sha"].tolist()


def test_a_pattern_is_filled_from_columns():
    table = pd.DataFrame({"id": ["1", "2"], "shop": ["x", " y "]})
    assert cells_of(table, "{shop}/{ImgId}_0.jpg", "ImgId") == ["x/1_0.jpg", "y/2_0.jpg"]
    assert cells_of(table, "shop", "ImgId") == ["x", "y"]


def test_photos_inside_parquet_are_written_once(tmp_path):
    data = [encoded(photo(k)) for k in range(2)]
    several = [[{"bytes": data[0], "path": "a.png"}, {"bytes": data[1], "path": None}], [], None,
               [{"bytes": None, "path": "b.jpg"}], [{"bytes": data[0], "path": "../../c.png"}]]  # fmt: skip
    pq.write_table(pa.table({"id": list("vwxyz"), "photo": several}), tmp_path / "train.parquet", row_group_size=2)
    cells = unpack_photos(tmp_path / "train.parquet", "photo", tmp_path / "out")
    assert [len(cell) for cell in cells] == [2, 0, 0, 1, 1]
    assert [cells[0][0].read_bytes(), cells[0][1].read_bytes()] == data
    assert (cells[3], cells[4][0]) == (("b.jpg",), cells[0][0])
    assert {path.suffix for path in cells[0]} == {".png", ".jpg"}
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    assert unpack_photos(tmp_path / "train.parquet", "photo", tmp_path / "out") == cells
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == written
    assert unpack_photos(tmp_path / "train.parquet", "id", tmp_path / "out") is None


def test_plain_bytes_inside_parquet_are_photos_too(goods):
    goods.write()
    for part in ("train", "test"):
        table = pd.read_csv(goods.folder / f"{part}.csv", dtype=str)
        table["photo"] = [(goods.photos[part] / f"{i}.jpg").read_bytes() for i in table["id"]]
        table.to_parquet(goods.folder / f"{part}.parquet")
        (goods.folder / f"{part}.csv").unlink()
    by_id = goods.read(write=False)
    nowhere = {"train_images_dir": "nowhere", "test_images_dir": "nowhere", "run": "other"}
    inside = goods.read(write=False, image_column="photo", **nowhere)
    assert inside.train["sha"].tolist() == by_id.train["sha"].tolist()
    assert inside.report["train"]["content"] == by_id.report["train"]["content"]


def test_photos_are_named_by_a_column(goods):
    for number, row in enumerate(goods.train):
        row["pic"] = f"{number % 4}.jpg"  # three products share each
        goods.put("train", f"{number % 4}.jpg", encoded(photo(50 + number % 4)))
    for row in goods.test:
        row["pic"] = f"{row['id']}.jpg"
    goods.test[1]["pic"] = ""
    read = goods.read(image_column="pic")
    assert [Path(path).name for path in read.train["image"]] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"] * 3
    assert read.report["train"]["repeated_photos"] == 12
    assert read.photos["status"].tolist()[12:] == ["ok", "no photo named", "ok"]
    assert "images" not in read.train


def test_several_photos_stand_beside_the_first(goods):
    for row in goods.train + goods.test:
        row["images"] = f"{row['id']}.jpg"
    goods.train[0]["images"] = "000X.jpg|gone.jpg|001X.jpg"
    goods.train[1]["images"] = "gone.jpg"
    read = goods.read(image_column="images")
    shas = read.train["sha"].tolist()
    assert read.train["shas"].tolist()[:3] == [(shas[0], read.photos["sha"][2]), (), (shas[2],)]
    assert read.test["images"].tolist() == [(path,) for path in read.test["image"]]
    assert read.photos[read.photos["id"] == "000X"]["status"].tolist() == ["ok", "missing: gone.jpg", "ok"]
    goods.train[0]["images"] = "000X.jpg|002X.jpg"
    other = goods.read(image_column="images")
    assert other.report["train"]["content"] != read.report["train"]["content"]


def test_paths_out_of_the_folder_are_refused(goods):
    for row in goods.train + goods.test:
        row["pic"] = f"{row['id']}.jpg"
    goods.train[3]["pic"], goods.train[4]["pic"] = "../../test_images/test_images/900.jpg", "/etc/passwd"
    sentence = r"- train: 2 products name photos by absolute paths or out of .* \(ids 003X, 004X\)"
    goods.refused(sentence, image_column="pic")


def test_an_image_column_that_is_not_there_is_said(goods):
    goods.refused(r"train\.csv lacks pic", r"test\.csv lacks pic", image_column="pic")
    goods.refused(r"test\.csv lacks categories", image_column="{categories}/{id}.jpg")
