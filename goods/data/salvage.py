"""What is left of a photo that ends too early: the pixels that its bytes say, and no guess at the others.

Pillow's decoders write rows into an image as they go, and raise when the bytes end. Decoded twice, over black and over
white, the rows that were written are those that are the same. Nothing is patched in Pillow, and threads don't meet.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

ROW_BY_ROW = ("JPEG", "MPO", "PNG", "BMP", "TIFF")  # the others decode all or nothing
END_OF_JPEG = b"\xff\xd9"
PADDINGS = (b"\x00" * 256, b"\xaa\x55" * 128)  # where a JPEG's bytes end, these two go on differently
LAST_ROWS = 32  # of a JPEG's last blocks, which its decoder holds back: two rows of blocks, 16 high at most
EMPTY = 128  # the grey of a JPEG's blocks that nothing was said of


def salvage(opened: Callable[[bytes], Image.Image], data: bytes) -> tuple[Image.Image, np.ndarray, bool] | None:
    """The photo in `data` as far as it goes, where its pixels are read, (height, width) bool, and whether coarsely.

    `opened` opens bytes, not decoded yet. A progressive JPEG is read whole, but not as sharp as it was. None where
    nothing can be read.
    """
    photo = opened(data)
    if photo.format not in ROW_BY_ROW:
        return None
    image, read = _written(opened, data)
    if photo.format not in ("JPEG", "MPO"):
        return (image, read, False) if read.any() else None
    ends = [_to_the_end(opened, data + padding + END_OF_JPEG) for padding in PADDINGS]
    if None in ends:
        return (image, read, False) if read.any() else None
    same = _same(*ends)
    if photo.info.get("progressive"):
        return (ends[0], same, False) if same.all() else _coarse(opened, data)
    rows = min(_leading(same.all(axis=1)), _leading(read.all(axis=1)) + LAST_ROWS)
    return (ends[0], np.repeat(np.arange(len(same)) < rows, same.shape[1]).reshape(same.shape), False) if rows else None


def _written(opened: Callable[[bytes], Image.Image], data: bytes) -> tuple[Image.Image, np.ndarray]:
    """The photo over black, and which of its pixels the decoder has written."""
    images = []
    for fill in (0, 255):
        image = opened(data)
        level = 257 * fill if image.mode.startswith("I") else fill
        image.im = Image.new(image.mode, image.size, (level,) * len(image.getbands())).im
        images.append(_loaded(image))
    return images[0], _same(*images)


def _to_the_end(opened: Callable[[bytes], Image.Image], data: bytes) -> Image.Image | None:
    try:
        image = opened(data)
        image.load()
        return image
    except Exception:  # libjpeg takes almost anything, but not all
        return None


def _loaded(image: Image.Image) -> Image.Image:
    """The image with what its decoder has written before it gave up."""
    try:
        image.load()
    except Exception:  # Pillow raises anything on damaged bytes
        image.tile = []  # it is not to try again
    return image


def _same(one: Image.Image, other: Image.Image) -> np.ndarray:
    """(height, width) bool: where two images have the same pixels."""
    same = np.asarray(one) == np.asarray(other)
    return same if same.ndim == 2 else same.all(axis=2)


def _leading(rows: np.ndarray) -> int:
    """How many of the rows, from the first on, are True."""
    return len(rows) if rows.all() else int(rows.argmin())


def _coarse(opened: Callable[[bytes], Image.Image], data: bytes) -> tuple[Image.Image, np.ndarray, bool] | None:
    """A progressive JPEG's scans up to where it ends; the rows below the first scan's end are grey."""
    image = _to_the_end(opened, data + END_OF_JPEG)
    if image is None:
        return None
    empty = np.asarray(image.convert("RGB") if image.mode != "L" else image) == EMPTY
    rows = empty.reshape(len(empty), -1).all(axis=1)
    read = len(rows) - _leading(rows[::-1])
    return (image, np.repeat(np.arange(len(rows)) < read, image.width).reshape(-1, image.width), True) if read else None
