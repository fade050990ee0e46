"""Photos of every kind: found, looked at once, and read upright on white."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from competition import encoded, photo, png_header
from PIL import Image

from goods.data.photo_files import find_photos
from goods.data.photos import inspect_photos, load_photo

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
BAD_PHOTOS = [
    ("missing", None, "^missing$"),
    ("empty", b"", "^empty file$"),
    ("a JPEG's head", encoded(photo(size=(64, 64)))[:100], "^unreadable: "),
    ("half a WebP", encoded(photo(size=(64, 64)), "WEBP")[:300], "^unreadable: "),
    ("a page instead", b"<html>404</html>", "^unreadable: not a photo but a web page$"),
    ("anything", b"broken", "^unreadable: not a photo$"),
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
    read = goods.read(max_bad_images=1)
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


def test_photos_are_found_by_any_ending(goods):
    names = ["000X.jpg", "001X.JPEG", "002X.png", "003X.WebP", "004X.jpeg", "005X.Jpg", "006X.jfif", "007X.gif",
             "008X.bmp", "009X.tif", "010X.avif"]  # fmt: skip
    forms = {"png": "PNG", "WebP": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "avif": "AVIF"}
    for name in (*names, "011X.txt", "011X"):
        (goods.photos["train"] / f"{name[:4]}.jpg").unlink(missing_ok=True)
        goods.put("train", name, encoded(photo(), forms.get(name[5:], "JPEG")))
    read = goods.read()
    assert [Path(path).name for path in read.train["image"][:11] if path] == names
    assert read.train["image"][11] == ""


def test_find_photos_prefers_jpg_and_knows_whole_names(tmp_path):
    for name in ("a.png", "a.jpg", "b.webp", "b.png", "c.1.jpg", "d.txt", "a.heic", "e.HEIC"):
        (tmp_path / name).touch()
    found = {name: Path(path).name for name, path in find_photos(tmp_path).items()}
    assert found["a"] == "a.jpg" and found["a.png"] == "a.png" and found["b"] == "b.png"
    assert found["c.1"] == "c.1.jpg" and found["e"] == "e.HEIC"
    assert "d" not in found


def test_a_heic_photo_beside_jpegs_is_unreadable_not_missing(goods):
    path = goods.photos["train"] / "000X.jpg"
    path.with_suffix(".HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    path.unlink()
    assert goods.read().photos["status"][0].startswith("unreadable: HEIC")


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
