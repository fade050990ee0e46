"""Odd photos: what each becomes, and that what is left of a broken one are the whole one's pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from odd_photos import TURNS, cut, encoded, odd_photos, picture, table, turned

from goods.data import photos
from goods.data.photos import inspect_photos, load_or_white, load_photo, open_upright
from goods.files import ROOT

pytestmark = pytest.mark.slow

ODD = {odd.name: odd for odd in odd_photos()}
WHOLE = {
    "JPEG": encoded(quality=90),
    "JPEG without subsampling": encoded(quality=95, subsampling=0),
    "JPEG with restart markers": encoded(quality=90, restart_marker_rows=2),
    "grey JPEG": encoded("JPEG", picture().convert("L")),
    "PNG": encoded("PNG"),
    "palette PNG": encoded("PNG", picture().quantize(64)),
    "BMP": encoded("BMP"),
}


def status_of(path: Path) -> str:
    found = inspect_photos(pd.DataFrame({"id": ["a"], "image": [str(path)]}), path.parent / "cache")
    return found["status"].item()


@pytest.mark.parametrize("name", ODD)
def test_what_an_odd_photo_becomes(tmp_path, name):
    path = tmp_path / "photo.jpg"
    path.write_bytes(ODD[name].data)
    assert status_of(path) == ODD[name].status
    assert load_or_white(ODD[name].data, 64)[1] == ODD[name].status  # of new products' photos, the same


def test_the_page_has_the_table_of_them():
    assert table() in (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("name", WHOLE)
def test_the_salvaged_part_is_the_whole_photos_pixels(tmp_path, name, share):
    whole, part = tmp_path / "whole.jpg", tmp_path / "part.jpg"
    whole.write_bytes(WHOLE[name])
    part.write_bytes(cut(WHOLE[name], share))
    if name == "BMP":  # its rows go from below upwards
        whole_rows, rows = (np.asarray(open_upright(str(path), 400))[::-1] for path in (whole, part))
    else:
        whole_rows, rows = (np.asarray(open_upright(str(path), 400)) for path in (whole, part))
    read = int((rows == whole_rows).all(axis=(1, 2)).cumprod().sum())
    assert share - 0.06 <= read / len(rows) <= share + 0.01
    assert (rows[read:] == 255).all()
    assert status_of(part) == f"truncated, {round(100 * read / len(rows))} % read"


def test_a_jpeg_without_its_end_is_the_whole_photo(tmp_path):
    whole, part = tmp_path / "whole.jpg", tmp_path / "part.jpg"
    whole.write_bytes(WHOLE["JPEG"])
    part.write_bytes(WHOLE["JPEG"][:-2])
    assert np.array_equal(open_upright(str(part), 400), open_upright(str(whole), 400))


def test_a_large_truncated_jpeg_is_decoded_small_too(tmp_path):
    whole, part = tmp_path / "whole.jpg", tmp_path / "part.jpg"
    data = encoded("JPEG", picture((1600, 1200)))
    whole.write_bytes(data)
    part.write_bytes(cut(data, 0.5))
    small, half = (np.asarray(open_upright(str(path), 200)) for path in (whole, part))
    assert small.shape == half.shape == (300, 400, 3)  # a quarter
    assert np.array_equal(small[:130], half[:130]) and (half[160:] == 255).all()


@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_is_turned_upright(tmp_path, orientation):
    path = tmp_path / "photo.png"
    path.write_bytes(turned(orientation))
    assert np.array_equal(open_upright(str(path), 400), picture())


def test_what_is_read_looks_like_what_it_was(tmp_path):
    expected = np.asarray(picture().resize((64, 64))).astype(int)
    for name in ("AVIF called .jpg", "CMYK JPEG", "MPO (two pictures in one JPEG)", "animated WebP", "animated GIF",
                 "progressive JPEG, cut at 50 %", "TIFF"):  # fmt: skip
        path = tmp_path / "photo.jpg"
        path.write_bytes(ODD[name].data)
        seen = load_photo(str(path), 64).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(seen - expected).mean() < 12, name


def test_a_truncated_photo_is_counted_and_used(goods):
    goods.put("train", "003X.jpg", cut(WHOLE["JPEG"], 0.5))
    read = goods.read(bad_images="error")
    assert read.train["image"][3].endswith("003X.jpg") and read.train["sha"][3]
    assert (read.report["train"]["truncated_images"], read.report["train"]["bad_images"]) == (1, 0)
    assert read.report["warnings"] == [
        "1 photos end too early and are read as far as they go, the rest of them white (ids 003X)"
    ]
    listed = (goods.outputs / "trial" / "bad_images.csv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].endswith("""003X.jpg,"truncated, 48 % read\"""")


def test_a_pillow_without_avif_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "AVIF", False)
    monkeypatch.setattr(photos, "PHOTO_FORMATS", tuple(name for name in photos.PHOTO_FORMATS if name != "AVIF"))
    monkeypatch.setattr(photos, "pillow_version", "11.0.0")
    path = tmp_path / "photo.avif"
    path.write_bytes(ODD["AVIF called .jpg"].data)
    assert status_of(path) == "unreadable: AVIF, for which Pillow 11.3 is needed; this is 11.0.0"
