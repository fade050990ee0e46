"""Too many missing photos stop the run with the likely cause; goods without any photo are for kinds that read none."""

from __future__ import annotations

import shutil

import pytest
from competition import encoded, photo

from goods.errors import GoodsError
from goods.members import open_run, read_goods


def stopped(goods, *sentences: str, **given) -> None:
    goods.refused("12 of 12 photos of train|no training product", *sentences, **given)


def test_other_capitals(goods):
    for row in goods.train:
        row["id"] = row["id"].lower()
    stopped(goods, r"the files are there in other capitals \(000X for 000x\); write both alike")


def test_another_folder(goods):
    given = {"train_images_dir": str(goods.photos["test"]), "test_images_dir": str(goods.photos["train"])}
    stopped(goods, rf"they are in another folder: set train_images_dir={goods.photos['train']}", **given)


def test_names_that_stand_in_several_folders_below(goods):
    for size in ("large", "small"):
        for row in goods.train:
            goods.put("train", f"{size}/{row['id']}.jpg", b"")
    for path in goods.photos["train"].glob("*.jpg"):
        path.unlink()
    both = r"several times \(\S*/large/000X\.jpg, \S*/small/000X\.jpg\): set train_images_dir to one of the folders$"
    stopped(goods, both)


def test_another_ending(goods):
    for path in goods.photos["train"].iterdir():
        path.rename(path.with_suffix(".jp2"))
    stopped(goods, r"the files have another ending \(000X\.jp2\), and photos end in \.jpg, \.jpeg, \.png")


def test_another_ending_in_the_column(goods):
    for row in goods.train + goods.test:
        row["pic"] = f"{row['id']}.jpg"
    for path in goods.photos["train"].iterdir():
        path.rename(path.with_suffix(".png"))
    stopped(goods, r"the files have another ending \(000X\.png\); write it in the column", image_column="pic")


def test_a_column_that_names_them(goods):
    for row in goods.train + goods.test:
        row["pic"], row["id"] = f"{row['id']}.jpg", f"p-{row['id']}"
    stopped(goods, r"column pic names them: set image_column=pic$")


def test_a_pattern_that_names_them(goods):
    for path in goods.photos["train"].iterdir():
        path.rename(path.with_name(f"img_{path.stem}_0.jpg"))
    stopped(goods, r"the files are called img_000X_0\.jpg: set image_column=img_\{id\}_0\.jpg$")


def test_half_the_files_of_a_column_absent(goods):
    for row in goods.train + goods.test:
        row["pic"] = f"{row['id']}.jpg"
    for row in goods.train[::2]:
        (goods.photos["train"] / row["pic"]).unlink()
    goods.refused(
        r"6 of 12 photos of train are missing or can't be read \(ids 000X, 002X, 004X, 006X, 008X and 1 more\), more "
        r"than max_bad_images 0\.2 lets pass; look at train_images_dir and image_column\. With max_bad_images=1",
        image_column="pic",
    )
    assert goods.read(image_column="pic", max_bad_images=0.5).report["train"]["bad_images"] == 6


def test_unreadable_photos_count_and_the_reason_is_said(goods):
    for row in goods.train[:3]:
        goods.put("train", f"{row['id']}.jpg", b"<html>")
    goods.refused(r"3 of 12 photos of train .*; most often: unreadable: not a photo but a web page\.")
    assert goods.read(max_bad_images=0.25).report["train"]["bad_images"] == 3


@pytest.mark.parametrize(("pic", "cause"), [
    ("000x.jpg?v=1", r"other capitals \(000X\.jpg for 000x\.jpg\)"),
    ("IMG/000x.jpeg", r"other capitals \(000X for 000x\.jpeg\)"),
    ("000X.png", r"another ending \(000X\.jpg\); write it in the column"),
])  # fmt: skip
def test_addresses_whose_files_are_there_under_almost_that_name(goods, pic, cause):
    for row in goods.train + goods.test:
        row["pic"] = "https://shop.example/" + pic.replace("000x", row["id"].lower()).replace("000X", row["id"])
    stopped(goods, cause, image_column="pic")


def test_photos_by_addresses_are_to_be_downloaded_first(goods):
    for row in goods.train + goods.test:
        row["pic"] = f"https://shop.example/{row['id']}/main.jpg"
        row["id"] = f"p{row['id']}"
    goods.refused(
        r"they are addresses, and training reads every photo many times: download them to", image_column="pic"
    )


def test_products_that_name_no_photo_do_not_count(goods):
    for row in goods.train + goods.test:
        row["pic"] = f"{row['id']}.jpg"
    for row in goods.train[:6]:
        row["pic"] = ""
    assert goods.read(image_column="pic").photos["status"].tolist()[:6] == ["no photo named"] * 6


@pytest.mark.parametrize("empty", [True, False])
def test_goods_without_photos_are_for_kinds_that_read_none(goods, empty):
    goods.write()
    for folder in goods.photos.values():
        shutil.rmtree(folder.parent)
        if empty:
            folder.mkdir(parents=True)
    for kind in ("linear", "text"):
        read = read_goods(goods.params(kind=kind, run=kind))
        assert (read.train["image"] == "").all() and (read.test["sha"] == "").all()
        said = "no product has a photo: the texts alone are read, as this kind needs no more"
        assert read.report["warnings"] == [said + "; look at train_images_dir and image_column" * empty]
    for kind in ("dual", "knn"):
        with pytest.raises(GoodsError, match="no training product has a photo" if empty else "there is no folder"):
            read_goods(goods.params(kind=kind, run=kind))


def test_a_kind_that_reads_no_photo_says_why_it_finds_none(goods):
    for row in goods.train + goods.test:
        row["id"] = row["id"].lower().replace("9", "x")
    goods.write()
    (warning,) = read_goods(goods.params(kind="linear")).report["warnings"]
    assert warning.endswith("the files are there in other capitals (000X for 000x); write both alike")


def test_texts_alone_train_and_submit(goods):
    from shops import train_and_submit

    goods.train = [goods.product(f"{k:03}", k % 3) for k in range(30)]
    goods.write()
    shutil.rmtree(goods.photos["train"].parent)
    shutil.rmtree(goods.photos["test"].parent)
    assert len(train_and_submit(goods.params(kind="linear", n_folds=2, folds=[0]))) == 3


def test_a_kind_that_reads_no_photo_minds_many_missing_ones(goods):
    goods.train = [goods.product(f"{k:03}", k % 3) for k in range(30)]
    goods.write()
    goods.put("train", "000.jpg", encoded(photo()))
    open_run(p := goods.params(kind="linear"))
    with pytest.raises(GoodsError, match="29 of 30 photos of train"):
        read_goods(p)
