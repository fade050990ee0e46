"""Drawn photos of the embedded sample."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter

# look: its glyphs, its first and its second colours
LOOKS = {
    "screen": ("phone tablet", "navy blue", "white grey"),
    "bottle": ("bottle pump jar", "green lime", "amber navy"),
    "bone": ("bone paw", "tan amber", "brown rose"),
    "guitar": ("guitar drum", "brown amber", "red white"),
    "wheel": ("wheel car", "grey black", "red yellow"),
    "toy": ("teddy blocks", "yellow rose", "blue orange"),
    "book": ("book notebook", "navy purple", "yellow lime"),
    "shirt": ("shirt dress", "blue teal", "rose white"),
    "ball": ("ball dumbbell", "orange lime", "black white"),
    "gamepad": ("gamepad", "black purple", "lime teal"),
    "plant": ("plant flower", "green teal", "yellow rose"),
    "tool": ("hammer wrench screwdriver", "red orange", "black grey"),
    "palette": ("palette yarn", "teal purple", "yellow red"),
    "mug": ("mug pan", "white grey", "teal navy"),
    "mirror": ("lipstick compact", "rose red", "purple rose"),
}

COLOURS = {
    "amber": "#d9a441", "black": "#33363f", "blue": "#3f7fd0", "brown": "#8a5a36", "green": "#3f8f4f",
    "grey": "#8f98a3", "lime": "#7fb83a", "navy": "#2b3f6b", "orange": "#ec7f2c", "purple": "#7d52a8",
    "red": "#cf3a3a", "rose": "#e58ba6", "tan": "#cda878", "teal": "#2f9a95", "white": "#eceae4",
    "yellow": "#f0c93a",
}  # fmt: skip
# A glyph is drawn on a square of 100 x 100: shape, colour, numbers. Shapes: e ellipse (corners), r rounded rectangle
# (corners, radius), p polygon (points), l line (width, points), o outline of an ellipse (width, corners). Colours: a
# and b the product's own, k dark, w light, g metal, s wood, x nothing (cuts a hole).
GLYPHS = {
    "phone": "r k 29 4 71 96 8; r a 32 12 68 86 2; e g 47 88 53 94; l g 2 44 8 56 8; r w 37 18 46 27 2;"
    "r b 54 18 63 27 2; r b 37 34 46 43 2; r w 54 34 63 43 2; r w 37 72 63 80 3",
    "tablet": "r k 6 16 94 84 6; r a 12 22 88 78 1; e w 62 28 76 42; p b 12 78 12 62 36 42 54 62 68 52 88 70 88 78",
    "bottle": "r b 41 4 59 18 2; r a 44 16 56 34 0; r a 29 30 71 97 11; r w 29 50 71 82 0; e b 41 56 59 76;"
    "l w 2 35 38 35 46",
    "pump": "l g 4 50 8 50 24; r g 26 5 56 12 3; r b 41 18 59 30 2; r a 30 28 70 97 8; r w 36 44 64 84 3;"
    "l b 3 42 56 58 56; l b 3 42 66 58 66; l b 3 42 76 52 76",
    "jar": "r b 26 12 74 28 3; r a 22 26 78 95 10; r w 22 46 78 78 0; e b 38 50 62 74; l w 2 28 34 28 42",
    "bone": "e a 6 26 34 54; e a 6 46 34 74; e a 66 26 94 54; e a 66 46 94 74; r a 20 39 80 61 3; l w 2 32 45 66 45",
    "paw": "e a 28 46 72 90; e a 6 34 30 60; e a 26 10 48 40; e a 52 10 74 40; e a 70 34 94 60; e b 40 60 60 80",
    "guitar": "r k 46 2 54 50 1; r k 42 2 58 14 3; e a 29 40 71 72; e a 22 56 78 98; e k 41 56 59 74;"
    "r k 38 84 62 88 1; l w 1 48 8 48 86; l w 1 52 8 52 86",
    "drum": "l s 3 6 4 52 30; l s 3 94 4 48 30; e a 12 70 88 96; r a 12 34 88 84 0; e w 12 22 88 48;"
    "o g 3 12 22 88 48; l b 2 14 42 32 90 50 50 68 90 86 42",
    "wheel": "e k 4 4 96 96; e g 20 20 80 80; e a 25 25 75 75; l g 6 50 22 50 78; l g 6 23 42 77 58;"
    "l g 6 23 58 77 42; e k 43 43 57 57; o g 1 10 10 90 90",
    "car": "p a 18 52 32 28 66 28 82 52; r a 4 48 96 74 8; p w 26 50 35 33 48 33 48 50; p w 53 50 53 33 64 33 74 50;"
    "e k 16 60 40 84; e g 23 67 33 77; e k 62 60 86 84; e g 69 67 79 77; e b 88 54 96 61; l k 1 50 50 50 72",
    "teddy": "e a 14 6 38 30; e a 62 6 86 30; e a 24 46 76 98; e a 4 50 32 72; e a 68 50 96 72; e a 20 12 80 60;"
    "e w 36 36 64 56; e k 46 37 54 43; e k 35 26 42 33; e k 58 26 65 33; e w 37 62 63 90; p b 50 60 38 54 38 66;"
    "p b 50 60 62 54 62 66",
    "blocks": "r a 8 52 48 92 3; r b 52 52 92 92 3; r w 30 10 70 50 3; e w 18 62 38 82; p w 72 60 62 82 82 82;"
    "p a 50 16 54 27 64 27 56 33 59 44 50 37 41 44 44 33 36 27 46 27; o k 1 18 62 38 82",
    "book": "r w 24 12 84 92 1; r a 18 8 80 88 3; r b 18 8 28 88 2; r w 36 22 72 42 2; l b 3 42 29 66 29;"
    "l b 3 42 36 60 36; e b 45 56 63 74",
    "notebook": "r w 24 12 86 92 2; r a 20 8 82 88 3; r w 36 20 74 36 2; l g 3 12 18 26 18; l g 3 12 32 26 32;"
    "l g 3 12 46 26 46; l g 3 12 60 26 60; l g 3 12 74 26 74; r b 68 8 74 88 0",
    "shirt": "p a 30 10 70 10 97 34 84 52 74 44 74 94 26 94 26 44 16 52 3 34; e x 40 2 60 22; l b 5 26 58 74 58;"
    "l b 5 26 70 74 70",
    "dress": "p a 34 6 40 6 50 22 60 6 66 6 66 40 90 94 10 94 34 40; l b 5 34 42 66 42; l b 2 40 50 30 92;"
    "l b 2 50 50 50 92; l b 2 60 50 70 92",
    "ball": "e a 6 6 94 94; l k 2 50 6 50 94; l k 2 6 50 94 50; l k 2 19 20 31 34 35 50 31 66 19 80;"
    "l k 2 81 20 69 34 65 50 69 66 81 80; o k 2 6 6 94 94",
    "dumbbell": "r g 20 44 80 56 2; r a 14 22 32 78 4; r a 68 22 86 78 4; r k 5 34 15 66 3; r k 85 34 95 66 3;"
    "l w 2 20 28 20 72; l w 2 74 28 74 72",
    "gamepad": "e a 4 34 42 90; e a 58 34 96 90; r a 8 24 92 70 20; r k 18 42 40 50 2; r k 25 35 33 57 2;"
    "e b 69 34 77 42; e b 69 50 77 58; e w 61 42 69 50; e w 77 42 85 50; e k 36 56 48 68; e k 52 56 64 68;"
    "l g 3 44 36 56 36",
    "plant": "l a 3 50 62 50 14; e a 12 18 46 40; e a 54 8 88 30; e a 10 42 46 62; e a 54 34 90 56; e a 38 2 60 26;"
    "p s 28 64 72 64 64 97 36 97; r s 24 58 76 70 2; l b 1 50 36 80 44; l b 1 50 50 20 52; l b 1 50 28 20 29",
    "flower": "l a 4 50 40 50 72; e a 22 50 48 64; e a 52 48 78 62; e b 30 6 52 28; e b 48 6 70 28; e b 24 22 46 44;"
    "e b 54 22 76 44; e b 39 32 61 54; e w 41 20 59 38; p s 30 70 70 70 62 97 38 97; r s 27 66 73 74 2",
    "hammer": "r a 44 28 56 97 4; p g 18 10 68 10 68 30 18 30; p g 68 10 92 26 68 26; r k 44 66 56 94 3;"
    "r g 12 6 22 34 2",
    "wrench": "r a 43 30 57 76 2; e g 26 2 74 46; p x 41 -4 59 -4 59 24 41 24; e g 32 66 68 99; e x 43 76 57 90;"
    "l w 1 47 42 47 66",
    "screwdriver": "r a 37 3 63 46 8; l k 2 44 8 44 40; l k 2 56 8 56 40; r k 42 46 58 52 1; r g 46 52 54 86 0;"
    "p g 43 84 57 84 54 98 46 98",
    "palette": "e s 4 16 96 88; e x 54 58 74 76; e a 16 40 32 56; e b 28 24 44 40; e w 48 20 64 36; e k 68 30 84 46;"
    "e a 24 60 42 76; l b 4 96 4 60 58; p k 60 58 68 50 56 64",
    "yarn": "l s 3 4 6 60 60; l s 3 96 6 40 60; e a 12 18 88 94; o b 2 12 34 88 78; o b 2 30 18 70 94;"
    "o w 1 20 26 62 88; o w 1 40 26 82 88; l a 3 70 88 92 96",
    "mug": "o a 8 52 34 94 76; r a 14 22 70 92 7; e k 18 19 66 32; e b 20 21 64 30; p b 42 76 28 58 42 50 56 58;"
    "l g 2 32 14 36 4; l g 2 46 14 50 4",
    "pan": "r k 60 44 98 56 5; e k 4 20 66 82; e a 9 25 61 77; o b 1 16 32 54 70; e w 22 38 48 62; e b 30 45 40 55",
    "lipstick": "p a 41 40 41 18 59 6 59 40; r g 38 36 62 58 0; r k 33 54 67 97 3; l w 2 45 22 45 36;r b 33 62 67 67 0",
    "compact": "e k 18 2 82 52; e w 24 7 76 47; l g 2 36 36 58 16; r g 40 48 60 56 2; e k 10 50 90 98;"
    "e a 16 54 84 94; l b 2 22 74 78 74; e b 54 62 72 86",
}


def draw_photo(rng: random.Random, look: str, colour: str, size: tuple[int, int] = (100, 100)) -> Image.Image:
    """An RGB shop photo of one product, or of a pair of them: `size` pixels, `look` of LOOKS, `colour` of COLOURS."""
    canvas = _background(rng, (2 * size[0], 2 * size[1]))  # drawn at twice the size and shrunk: smooth edges
    glyphs, _, seconds = (names.split() for names in LOOKS[look])
    pair = rng.random() < 0.08
    side = round(min(canvas.size) * rng.uniform(0.84, 1.0) * (0.7 if pair else 1))
    layer = _draw_glyph(rng.choice(glyphs), colour, rng.choice(seconds), side, rng.uniform(0.85, 1.12))
    layer = layer.rotate(rng.gauss(0, 7), Image.Resampling.BICUBIC)
    shadow = layer.getchannel("A").filter(ImageFilter.GaussianBlur(side / 30)).point(lambda v: v * 0.35)
    for shift in (-0.3, 0.3) if pair else (0,):
        x = round((canvas.width - side) * (0.5 + shift + rng.uniform(-0.35, 0.35) * (not pair)))
        y = round((canvas.height - side) * (0.5 + shift * 0.4 + rng.uniform(-0.35, 0.35)))
        canvas.paste((40, 40, 60), (x + side // 40, y + side // 25), shadow)
        canvas.paste(layer, (x, y), layer)
    photo = canvas.resize(size, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, 2.5, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(photo) + noise).clip(0, 255).astype(np.uint8))


def _background(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new("RGB", size, "white")
    kind, tint = rng.random(), tuple(rng.randint(205, 250) for _ in range(3))
    if kind > 0.85:  # a wall and a table
        canvas.paste(tint, (0, 0, *size))
        canvas.paste(tuple(int(v * 0.84) for v in tint), (0, round(size[1] * rng.uniform(0.6, 0.75)), *size))
    elif kind > 0.55:  # a studio: white fades into a tint; the rest are cut out, on white
        canvas.paste(tint, (0, 0), Image.linear_gradient("L").resize(size))
    return canvas


def _draw_glyph(glyph: str, colour: str, second: str, side: int, tone: float) -> Image.Image:
    """The glyph as an RGBA square of `side` pixels, lit from above, its colours made brighter by `tone`."""
    inks = {"k": "#2c2f38", "w": "#f7f5ef", "g": "#a9b1bb", "s": "#b98a5a", "a": COLOURS[colour], "b": COLOURS[second]}
    paint = {key: (*(min(255, round(v * tone)) for v in ImageColor.getrgb(ink)), 255) for key, ink in inks.items()}
    paint["x"] = (0, 0, 0, 0)
    layer = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(layer)
    for shape in GLYPHS[glyph].split(";"):
        kind, ink, *numbers = shape.split()
        # 100 units are 90 % of the square: room for the corners when it is turned
        n = [side * (0.05 + 0.009 * float(number)) for number in numbers]
        unit = side * 0.009
        if kind == "e":
            pen.ellipse(n, paint[ink])
        elif kind == "r":
            pen.rounded_rectangle(n[:4], unit * float(numbers[4]), paint[ink])
        elif kind == "p":
            pen.polygon(n, paint[ink])
        elif kind == "l":
            pen.line(n[1:], paint[ink], max(1, round(unit * float(numbers[0]))), joint="curve")
        else:
            pen.ellipse(n[1:], outline=paint[ink], width=max(1, round(unit * float(numbers[0]))))
    light = Image.linear_gradient("L").resize(layer.size).point(lambda v: 255 - v * 0.3)
    lit = ImageChops.multiply(layer.convert("RGB"), Image.merge("RGB", [light] * 3))
    lit.putalpha(layer.getchannel("A"))
    return lit


def encode(photo: Image.Image, mess: str) -> tuple[bytes, str]:
    """The bytes of the photo's file and its ending; `mess` is a key of PHOTO_MESS or ""."""
    form, ending, options = "JPEG", ".jpg", {"quality": 88}
    if mess == "grey":
        photo = photo.convert("L")
    elif mess == "cmyk":
        photo = photo.convert("CMYK")
    elif mess == "png":  # the ending lies, as it does in scraped data
        form, options = "PNG", {}
    elif mess == "webp":
        form, ending = "WEBP", ".webp"
    elif mess == "alpha":
        photo.putalpha(photo.convert("L").point(lambda v: 0 if v > 235 else 255))
        form, ending, options = "PNG", ".png", {}
    buffer = io.BytesIO()
    photo.save(buffer, form, **options)
    return buffer.getvalue(), ending
