"""Photos as shops serve them: their bytes, and what the one reader makes of them; docs/data.md has the table."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SIZE = (400, 300)
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth colours without any symmetry."""
    noise = np.random.default_rng(5).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(form: str = "JPEG", image: Image.Image | None = None, **options: Any) -> bytes:
    (image or picture()).save(buffer := io.BytesIO(), form, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded("PNG", picture().transpose(TURNS[orientation]), exif=exif)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


class Odd(NamedTuple):
    """A photo, its status, and how it looks ("" for as it was meant)."""

    name: str
    data: bytes
    status: str
    seen: str = ""


def odd_photos() -> list[Odd]:
    jpeg, png, late = encoded(quality=90), encoded("PNG"), encoded(quality=90, progressive=True)
    clear = picture().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(SIZE))
    grey = Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)
    printed = encoded("JPEG", picture().convert("CMYK"))
    frames = [picture().rotate(90 * k) for k in range(3)]
    white = "as far as it goes, white below"
    return [
        Odd("JPEG, cut at 10 %", cut(jpeg, 0.1), "truncated, 5 % read", white),
        Odd("JPEG, cut at 50 %", cut(jpeg, 0.5), "truncated, 48 % read", white),
        Odd("JPEG, cut at 97 %", cut(jpeg, 0.97), "truncated, 96 % read", white),
        Odd("JPEG without its last two bytes (EOI)", jpeg[:-2], "ok"),
        Odd("JPEG, cut within its head", jpeg[:120], "unreadable: Truncated File Read", "white"),
        Odd("PNG, cut at 10 %", cut(png, 0.1), "truncated, 10 % read", white),
        Odd("PNG, cut at 50 %", cut(png, 0.5), "truncated, 50 % read", white),
        Odd("PNG, cut at 97 %", cut(png, 0.97), "truncated, 96 % read", white),
        Odd("PNG without its last chunk", png[:-12], "ok"),
        Odd("progressive JPEG", late, "ok"),
        Odd("progressive JPEG, cut at 50 %", cut(late, 0.5), "truncated, 100 % read, coarsely", "whole, less sharp"),
        Odd("progressive JPEG without its last two bytes", late[:-2], "ok"),
        Odd("AVIF called .jpg", encoded("AVIF", quality=90), "ok"),
        Odd("AVIF, cut at 50 %", cut(encoded("AVIF"), 0.5), "unreadable: a damaged AVIF", "white"),
        Odd("WebP, cut at 50 %", cut(encoded("WEBP"), 0.5), "unreadable: could not create decoder object", "white"),
        Odd("grey PNG of 16 bits", encoded("PNG", grey), "ok", "its upper 8 bits"),
        Odd("palette with alpha", encoded("PNG", clear.quantize(64)), "ok", "on white"),
        Odd("RGB with alpha", encoded("PNG", clear), "ok", "on white"),
        Odd("CMYK JPEG", printed, "ok"),
        Odd("CMYK JPEG, cut at 50 %", cut(printed, 0.5), "truncated, 48 % read", white),
        Odd("MPO (two pictures in one JPEG)", encoded("MPO", save_all=True, append_images=frames[1:2]), "ok",
            "the first"),
        *(Odd(f"EXIF {number}", turned(number), "ok", "upright") for number in TURNS),
        Odd("1 x 4000 pixels", encoded("PNG", picture((1, 4000))), "ok", "squashed"),
        Odd("animated GIF", encoded("GIF", save_all=True, append_images=frames[1:]), "ok", "the first frame"),
        Odd("animated WebP", encoded("WEBP", save_all=True, append_images=frames[1:]), "ok", "the first frame"),
        Odd("TIFF", encoded("TIFF"), "ok"),
        Odd("BMP", encoded("BMP"), "ok"),
        Odd("web page under .jpg", b"<!DOCTYPE html><p>404</p>", "unreadable: not a photo but a web page", "white"),
        Odd("SVG", b'<?xml version="1.0"?><svg/>', "unreadable: not a photo but an SVG drawing", "white"),
        Odd("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "unreadable: HEIC or a video, which Pillow can't read; convert it to JPEG", "white"),
        Odd("no bytes", b"", "empty file", "white"),
    ]  # fmt: skip


def table() -> str:
    """The table of docs/data.md."""
    rows = [f"| {odd.name} | `{odd.status}` | {odd.seen or 'as it was meant'} |" for odd in odd_photos()]
    return "\n".join(["| photo | status | what is seen |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(table())
