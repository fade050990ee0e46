"""The one reader of photos: checks them, opens them upright on white, and changes them for training.

No other module opens an image file, so that the model, the figures and the search for near-duplicates see the same.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import ExifTags, Image, ImageEnhance, ImageFile, ImageFilter, ImageOps, UnidentifiedImageError, features
from PIL import __version__ as pillow_version

from goods.data.fetch import NotFetchedError
from goods.data.salvage import salvage
from goods.errors import DamagedFileError
from goods.files import file_stamp, read_frame, write_frame

if TYPE_CHECKING:  # to show photos takes no torch, and importing it takes seconds
    import torch

FACTS = ["sha", "status", "width", "height", "mode"]  # what is known of a photo
AVIF = "avif" in features.modules and features.check("avif")  # Pillow has it from 11.3 on
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(["AVIF"] if AVIF else []))  # whatever a file is called

ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # _open refuses such photos itself
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # odd metadata spoil no photo


def photos_in(table: pd.DataFrame, column: str = "image") -> list[str | tuple[str, ...]]:
    """Of each product the photo's path, or with column "sha" its hash; tuples of them where some have several."""
    return table[f"{column}s" if f"{column}s" in table else column].tolist()


def as_tuples(images: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The photos of each product as a tuple, never an empty one: "" stands for none."""
    return [(tuple(image) or ("",)) if isinstance(image, tuple | list) else (image,) for image in images]


def inspect_photos(photos: pd.DataFrame, cache: Path) -> pd.DataFrame:
    """Decodes every photo once: adds sha (of its bytes), status ("ok" or what is wrong), width, height, mode.

    The status that `photos` has already stays where there is no photo to look at; "missing" without one. What was
    found is kept below `cache` until a file's name, size or time changes.
    """
    path = cache / f"{file_stamp([f for f in photos['image'] if f])}.parquet"
    try:
        known = read_frame(path, ["image", *FACTS])
    except DamagedFileError:  # not there yet, most often
        files = [f for f in photos["image"].unique() if f]
        with ThreadPoolExecutor() as pool:  # Pillow lets go of the GIL while it decodes
            found = list(pool.map(_inspect, files, chunksize=64))
        known = pd.DataFrame(found, columns=FACTS)
        known.insert(0, "image", files)
        write_frame(path, known)
    photos = photos.rename(columns={"status": "without"}).merge(known, on="image", how="left")
    photos["status"] = photos["status"].fillna(photos.pop("without") if "without" in photos else "missing")
    photos[["sha", "mode"]] = photos[["sha", "mode"]].fillna("")
    photos[["width", "height"]] = photos[["width", "height"]].fillna(0).astype(int)
    return photos


def usable(photos: pd.DataFrame) -> pd.Series:
    """(n,) bool: the photos that can be shown, those that end too early among them."""
    return photos["status"].map(can_be_shown).astype(bool)


def can_be_shown(status: str) -> bool:
    """Whether a photo of that status is ok, or ends too early."""
    return status == "ok" or status.startswith("truncated")


def _inspect(photo: str | bytes) -> tuple[str, str, int, int, str]:
    data = b""
    try:
        data = _bytes_of(photo)
        with _open(io.BytesIO(data)) as image:
            facts = image.width, image.height, image.mode
            status = _status(image, data)
    except UnidentifiedImageError:  # its own text is the address of a buffer
        facts, status = (0, 0, ""), f"unreadable: {_what_else(data)}" if data else "empty file"
    except Exception as error:  # Pillow's plugins raise anything on damaged bytes; none of it may stop a run
        facts, status = (0, 0, ""), f"unreadable: {error or type(error).__name__}"
    return hashlib.sha256(data).hexdigest()[:32], status, *facts


def _status(image: Image.Image, data: bytes) -> str:
    """Of an opened photo; raises what Pillow raises where nothing of it can be read."""
    try:
        _to_rgb(image)  # all that open_upright does, so that it won't fail later
        return "ok"
    except Exception:
        found = salvage(lambda data: _open(io.BytesIO(data)), data)
        if not found:
            raise
        _, read, coarse = found
        if read.all() and not coarse:  # the bytes that are missing said nothing more
            return "ok"
        share = 100 if read.all() else min(max(round(100 * read.mean()), 1), 99)
        return f"truncated, {share} % read" + (", coarsely" if coarse else "")


def _what_else(data: bytes) -> str:
    """What a file holds that no decoder knows."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "not a photo but an SVG drawing"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "not a photo but a web page"
    if data[4:8] == b"ftyp":  # the container of AVIF, HEIC and videos
        if b"avif" in data[8:32] or b"avis" in data[8:32]:
            return "a damaged AVIF" if AVIF else f"AVIF, for which Pillow 11.3 is needed; this is {pillow_version}"
        return "HEIC or a video, which Pillow can't read; convert it to JPEG"
    return "not a photo"


class Augment(NamedTuple):
    """Strengths of the changes made to photos in training; 0 is off."""

    crop: float = 0.0  # largest share of the area cut away
    flip: float = 0.0  # share mirrored
    colour: float = 0.0  # largest relative change of brightness, contrast and saturation
    blur: float = 0.0  # share blurred
    jpeg: float = 0.0  # share compressed once more


def open_upright(path: str | bytes, side: int) -> Image.Image:
    """The RGB photo at `path`, or in these bytes, turned as its EXIF data say, white where it is transparent.

    A large JPEG is decoded at the smallest of its eighths that is still `side` wide and high (Pillow's draft mode);
    any other photo has its own size. What a photo that ends too early lacks is white. Raises whatever Pillow raises on
    a file of which nothing can be read.
    """
    return _read(path, side)[0]


def _read(path: str | bytes, side: int) -> tuple[Image.Image, bool]:
    """open_upright's photo, and whether its decoder came to its end."""
    with _open(io.BytesIO(path) if isinstance(path, bytes) else path) as photo:
        draft, whole = photo.draft("RGB", (side, side)), True
        try:
            image = _to_rgb(photo)
        except Exception:
            image, whole = _salvaged(path, side), False
            if not image:
                raise
        return _upright(_whole_pixels(image, draft and draft[1]), photo), whole


def _bytes_of(photo: str | bytes) -> bytes:
    return photo if isinstance(photo, bytes) else Path(photo).read_bytes()


def _salvaged(path: str | bytes, side: int) -> Image.Image | None:
    def opened(data: bytes) -> Image.Image:
        image = _open(io.BytesIO(data))
        image.draft("RGB", (side, side))
        return image

    if not (found := salvage(opened, _bytes_of(path))):
        return None
    image, read, _ = found
    image = _to_rgb(image)
    image.paste("white", mask=Image.fromarray(np.where(read, 0, 255).astype(np.uint8)))
    return image


def squash(image: Image.Image, size: int) -> torch.Tensor:
    """(3, size, size) uint8 of an RGB image: the whole of it squashed to a square, as SigLIP was trained.

    torch's antialiased bicubic does what Pillow's does, vectorised.
    """
    import torch
    from torch.nn import functional as F

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, height, width), channels last
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
    return pixels[0]


def load_photo(path: str, size: int, augment: Augment | None = None, seed: Sequence[int] = ()) -> torch.Tensor:
    """(3, size, size) uint8 RGB of a photo, squashed to a square; white when path is "".

    With `augment` a random part is taken and changed, the same for the same seed.
    """
    if not path:
        import torch

        return torch.full((3, size, size), 255, dtype=torch.uint8)
    rng = random.Random(repr(tuple(seed)))
    crop = augment.crop if augment else 0.0
    image = open_upright(path, int(size / math.sqrt(1 - crop)))  # so that the smallest crop is still `size` wide
    pixels = squash(_random_crop(image, rng, crop), size)
    return _change(pixels, rng, augment) if augment else pixels


def load_or_white(path: str | bytes | NotFetchedError, size: int) -> tuple[torch.Tensor, str]:
    """load_photo's pixels and inspect_photos' status; white ones where there is no photo, or none can be read.

    path: the photo's, or its bytes, or why there are none at its URI.
    """
    if isinstance(path, NotFetchedError):
        return load_photo("", size), f"missing: {path}"
    if path == "":
        return load_photo("", size), "missing"
    try:
        image, whole = _read(path, size)
        return squash(image, size), "ok" if whole else _inspect(path)[1]
    except FileNotFoundError:
        return load_photo("", size), "missing"
    except Exception as error:  # Pillow's plugins raise anything on damaged bytes; none of it may stop a run
        status = _inspect(path)[1]
        return load_photo("", size), f"unreadable: {error}" if can_be_shown(status) else status


def _whole_pixels(image: Image.Image, box: tuple[float, ...] | None) -> Image.Image:
    """An image decoded small without what was added at its right and lower edge to fill the last pixels up."""
    if not box or box[2:] == image.size:
        return image
    return image.resize((math.ceil(box[2]), math.ceil(box[3])), Image.Resampling.BICUBIC, box)


def _random_crop(image: Image.Image, rng: random.Random, crop: float) -> Image.Image:
    """A random part of at least 1 - crop of the area, its sides' ratio changed by at most 4 to 3."""
    if not crop:
        return image
    area, ratio = rng.uniform(1 - crop, 1) * image.width * image.height, math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
    ratio *= image.width / image.height
    width, height = min(image.width, round(math.sqrt(area * ratio))), min(image.height, round(math.sqrt(area / ratio)))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + max(width, 1), top + max(height, 1)))


def _change(pixels: torch.Tensor, rng: random.Random, augment: Augment) -> torch.Tensor:
    """Mirrors, colours, blurs and compresses (3, size, size) pixels at random."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if rng.random() < augment.flip:
        image = ImageOps.mirror(image)
    if augment.colour:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(1 + rng.uniform(-augment.colour, augment.colour))
    if rng.random() < augment.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.002, 0.01) * image.width))
    if rng.random() < augment.jpeg:
        image.save(packed := io.BytesIO(), "JPEG", quality=rng.randint(30, 90))
        image = Image.open(packed)
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _open(source: Any) -> Image.Image:
    image = Image.open(source, formats=PHOTO_FORMATS)
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too many")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits a channel; convert() would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:  # transparent means white, as shops show it
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _upright(image: Image.Image, photo: Image.Image) -> Image.Image:
    """The image turned as the EXIF data of the photo it was made from say; conversions may have lost them."""
    try:
        if photo.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        image.info |= photo.info
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises anything on damaged EXIF; the photo is good all the same
        return image
