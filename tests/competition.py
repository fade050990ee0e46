"""Competitions made here, for tests to spoil."""

from __future__ import annotations

import csv
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goods.data.tables import Goods, read_goods
from goods.errors import GoodsError
from goods.params import Params, load_params

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
