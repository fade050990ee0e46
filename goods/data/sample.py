"""The embedded sample: a small competition of drawn goods, and a tiny SigLIP directory, both from a seed.

`python goods_sample.py` writes data/sample and models/siglip-tiny in a few seconds, laid out like the real ones, so
that everything runs without a download. Each class is a pair of a look and a vocabulary: some classes look alike and
differ in words, others share their words and differ in looks, so neither photo nor text is enough. The same seed gives
the same bytes, with the same versions of the libraries.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import html
import io
import json
import math
import os
import random
import re
import shutil
import string
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter

from goods_params import GoodsError, resolve

STAMP = ".goods_sample.json"  # says how a folder was made, and what is in it

# name of the class, its look (LOOKS), its words (WORDS)
CLASSES = (
    ("Electronics", "screen", "gadget"),
    ("Grocery & Gourmet Food", "bottle", "treat"),
    ("Pet Supplies", "bone", "treat"),
    ("Musical Instruments", "guitar", "bow"),
    ("Automotive", "wheel", "hose"),
    ("Baby", "toy", "soft"),
    ("Beauty", "bottle", "brush"),
    ("Books", "book", "story"),
    ("Clothing, Shoes & Jewelry", "shirt", "soft"),
    ("Sports & Outdoors", "ball", "bow"),
    ("Toys & Games", "toy", "play"),
    ("Video Games", "gamepad", "gadget"),
    ("Office Products", "book", "office"),
    ("Patio, Lawn & Garden", "plant", "hose"),
    ("Tools & Home Improvement", "tool", "build"),
    ("Industrial & Scientific", "tool", "lab"),
    ("Health & Personal Care", "bottle", "vitamin"),
    ("Cell Phones & Accessories", "screen", "phone"),
    ("Arts, Crafts & Sewing", "palette", "brush"),
    ("Home & Kitchen", "mug", "bath"),
    ("All Beauty", "mirror", "bath"),
)

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

# words: nouns; sentences about them
WORDS = {
    "gadget": "wireless headset|optical mouse|mechanical keyboard|charging dock|hdmi adapter|controller|memory card;"
    "Plug and play with every console and computer|Low latency 2.4 ghz connection|The usb cable is two metres long"
    "|Rgb lights and programmable buttons",
    "treat": "chicken jerky|salmon snack|peanut biscuit|crunchy treats|dried beef strips|duck bites|pumpkin cookie;"
    "Grain free recipe rich in protein|Slowly roasted in small batches|Store in a cool dry place after opening"
    "|A tasty reward at any time of day",
    "bow": "bow|carbon string|bass case|grip tape|finger guard|shoulder strap|practice stand|stick bag;"
    "Practise every day and play with confidence|Keeps its tension for a whole season"
    "|Made for beginners and professionals|Fits right and left handed players",
    "hose": "hose|water pump|filter cartridge|spray nozzle|fuel canister|waterproof cover|drain valve|tow rope;"
    "Resists rain, frost and sunshine|Fits all common half inch connectors|Keeps the engine and the tank clean"
    "|Use it in the garage or in the yard",
    "soft": "romper|knitted socks|fleece blanket|cotton bib|hooded cardigan|sun hat|pyjamas|mittens;"
    "Soft organic cotton that is gentle to the skin|Machine washable at thirty degrees|Runs small, see the size chart"
    "|Cosy on cold mornings",
    "brush": "brush set|blending sponge|glitter powder|colour pencil|stencil kit|pigment tray|fine liner|tint;"
    "Blends smoothly without streaks|Synthetic bristles hold a lot of pigment|Twelve shades from pastel to neon"
    "|For artists of the face and of the canvas",
    "story": "novel|biography|poetry anthology|travel memoir|detective story|history of rome|essays;"
    "A bestselling author tells her most moving tale|Paperback edition with a new foreword"
    "|A chapter a night keeps you awake|Winner of a literary prize",
    "play": "jigsaw puzzle|dragon figure|board game|stacking rings|marble run|toy train|magic set|play tent;"
    "For two to four players from age three|Trains imagination and motor skills|Batteries are not needed"
    "|Hours of fun for the whole family",
    "office": "weekly planner|ring binder|stapler|sticky notes|file folder|letter tray|gel pens|desk calendar;"
    "Ruled pages of acid free paper|Keeps your desk tidy|Fits letter and legal sheets|Perforated for easy filing",
    "build": "claw hammer|cordless drill|saw blade|spirit level|socket wrench|paint roller|door hinge|sanding disc;"
    "Drop forged steel with a shock absorbing handle|For wood, drywall and masonry|Renovate like a carpenter"
    "|Screws and anchors are included",
    "lab": "digital caliper|ball bearing|silicone gasket|test tube rack|pressure gauge|hex standoff|lab pipette;"
    "Tolerance of 0.01 mm, certified to iso 9001|Stainless grade 316 for corrosive media"
    "|Autoclavable up to 121 celsius|Calibration sheet enclosed",
    "vitamin": "vitamin c|herbal cough drops|magnesium tablets|omega capsules|sleep aid|heating pad|pain relief balm;"
    "Supports your immune system|Take one capsule daily with a meal|Gluten free dietary supplement"
    "|Relieves sore muscles and joints",
    "phone": "phone case|screen protector|car charger|sim adapter|selfie stick|belt holster|ring holder;"
    "Compatible with galaxy and iphone models|Precise cutouts for camera and speaker|Slim fit with raised edges"
    "|Tempered glass with 9h hardness",
    "bath": "scented candle|bath towel|soap dish|mirror tray|cotton jar|aroma diffuser|bath salt|perfume holder;"
    "Turns the bathroom into a spa|Lavender and vanilla fragrance|Looks lovely on the vanity or on the shelf"
    "|A touch of luxury after a long day",
}

BRANDS = "Hart & Hale|Nordwind|Kitsune|Maple & Co|Zephyr|Lumina|Oakridge|Bluebird|Tessera|Ferro|Pomelo|Vireo|Halcyon"
ADJECTIVES = "Premium|Classic|New|Deluxe|Essential|Original|Compact|Professional|Everyday|Vintage|Lightweight|Genuine"
ENDINGS = ("", "", "", " - Pack of {n}", ", {n} Pieces", " ({code})", " for Men & Women", ", {colour}", ", {colour}")
GENERIC = (
    "A great gift for friends & family|Satisfaction guaranteed or your money back|Please allow 1-2 cm of deviation"
    "|Ships in a plain box|Designed in a small family business|Contact us with any question|Quality you can trust"
    "|The colour may differ from the photo|Now in a new package"
)

# share of the products with each kind of mess; at least one product of each
TEXT_MESS = {"missing": 0.05, "spaces": 0.08, "tags": 0.1, "link": 0.04, "lines": 0.06, "emoji": 0.04}
PHOTO_MESS = {"grey": 0.03, "odd": 0.03, "png": 0.0, "webp": 0.0, "alpha": 0.0, "cmyk": 0.0}
DUPLICATES = 2  # products that repeat another's text, and as many its photo, within train and from train to test

# The tower's sizes: about 0.6 M parameters, a thousandth of so400m's.
TOWER = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
VOCAB_SIZE = 1000


# ---------------------------------------------------------------------------------------------------------------------
# Photos
# ---------------------------------------------------------------------------------------------------------------------


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


def _encode(photo: Image.Image, mess: str) -> tuple[bytes, str]:
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


# ---------------------------------------------------------------------------------------------------------------------
# Texts
# ---------------------------------------------------------------------------------------------------------------------


def write_texts(rng: random.Random, words: str, colour: str, mess: str) -> tuple[str, str]:
    """Title and description of one product: `words` of WORDS, `mess` a key of TEXT_MESS or ""."""
    nouns, sentences = (part.split("|") for part in WORDS[words].split(";"))
    noun, other = rng.sample(nouns, 2)
    brand, adjective = rng.choice(BRANDS.split("|")), rng.choice(ADJECTIVES.split("|"))
    code = "".join(rng.choices(string.ascii_uppercase, k=2)) + str(rng.randrange(100, 1000))
    ending = rng.choice(ENDINGS).format(n=rng.randrange(2, 13), code=code, colour=colour.title())
    form = rng.choice(("{0} {1} {2}", "{1} {2} by {0}", "{0} {2}, {1}"))
    title = form.format(brand, adjective, noun.title()) + ending
    opening = f"The {adjective.lower()} {noun} by {brand}: a good match for our {other}"
    parts = rng.sample(sentences, rng.choice((1, 2, 2))) + rng.sample(GENERIC.split("|"), rng.choice((0, 0, 1)))
    rng.shuffle(parts)
    parts = [part + "." for part in ([opening, *parts] if rng.random() < 0.7 else parts)]
    # Shops escape their texts: a bare & is rare.
    title, parts = html.escape(title), [html.escape(part) for part in parts]
    if mess == "missing":
        return title, ""
    if mess == "tags":
        return title, "<b>Product Description</b><br/><ul>" + "".join(f"<li>{part}</li>" for part in parts) + "</ul>"
    if mess == "spaces":
        return title, "&#xA0;".join(parts) + "&#xA0;&nbsp;"
    if mess == "link":
        return title, " ".join([*parts, f"More on https://www.example.com/goods/{code}?ref=shop"])
    if mess == "lines":
        return title, f'Why "{noun}"?' + "".join(f"\n- {part}" for part in parts)
    if mess == "emoji":
        return title + rng.choice((" ✨", " 🎁", " ❤️")), " ".join(["⭐⭐⭐⭐⭐", *parts, "👍🏽"])
    return title, " ".join(parts)


def _asin(rng: random.Random) -> str:
    """Ten characters: an ISBN with its leading zero and sometimes an X at its end, or B0 and anything."""
    if rng.random() < 0.2:
        return "0" + "".join(rng.choices(string.digits, k=8)) + rng.choice("0123456789XX")
    return "B0" + "".join(rng.choices(string.ascii_uppercase + string.digits, k=7)) + rng.choice("0123456789ABCDX")


# ---------------------------------------------------------------------------------------------------------------------
# The competition
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Product:
    """One row of a table and its photo's file; the mess it was given, "" for none."""

    id: str
    label: int
    title: str
    description: str
    text_mess: str
    photo: bytes
    ending: str
    photo_mess: str


def make_competition(folder: str | os.PathLike, seed: int, train_per_class: int, test_per_class: int) -> bool:
    """Writes the sample competition, whole or not at all; False when it is there already, unchanged.

    Raises GoodsError when a class would be too small or when `folder` holds something else.
    """
    if train_per_class < 2 or test_per_class < 1:
        raise GoodsError("the sample needs at least 2 products a class for training and 1 for testing")
    counts = {"train": train_per_class, "test": test_per_class}
    with _whole_folder(folder, {"seed": seed, **counts}) as new:
        if new is None:
            return False
        tables = _all_products(seed, counts)
        for part, products in tables.items():
            images = new / f"{part}_images" / f"{part}_images"
            images.mkdir(parents=True)
            for product in products:
                (images / f"{product.id}{product.ending}").write_bytes(product.photo)
        names = {str(k): name for k, (name, _, _) in enumerate(CLASSES)}
        (new / "labels.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
        for part, products in tables.items():
            _write_table(new / f"{part}.csv", products, with_labels=part == "train")
    return True


def _all_products(seed: int, counts: dict[str, int]) -> dict[str, list[Product]]:
    """Products by table, in the tables' order; ids are unique over both, a few products repeat others."""
    used: set[str] = set()
    tables = {part: _products(seed, part, per_class, used) for part, per_class in counts.items()}
    rng = random.Random(f"{seed}/duplicates")
    for products in tables.values():
        both = [(s, p) for s in tables["train"] for p in products if s.label == p.label and s is not p]
        # None of the mess may be lost.
        pairs = [(s, p) for s, p in both if not s.text_mess and not p.text_mess]
        for source, product in rng.sample(pairs, min(DUPLICATES, len(pairs))):
            product.title, product.description = source.title, source.description
        pairs = [(s, p) for s, p in both if not s.photo_mess and not p.photo_mess]
        for source, product in rng.sample(pairs, min(DUPLICATES, len(pairs))):
            product.photo = source.photo
    for part, products in tables.items():
        random.Random(f"{seed}/{part}/order").shuffle(products)
    return tables


def _products(seed: int, part: str, per_class: int, used: set[str]) -> list[Product]:
    labels = [label for label in range(len(CLASSES)) for _ in range(per_class)]
    random.Random(f"{seed}/{part}/labels").shuffle(labels)  # the first rows get the mess
    products = []
    for row, (label, text_mess, photo_mess) in enumerate(
        zip(labels, _plan(TEXT_MESS, len(labels)), _plan(PHOTO_MESS, len(labels)), strict=True)
    ):
        rng = random.Random(f"{seed}/{part}/{row}")
        _, look, words = CLASSES[label]
        colour = rng.choice(LOOKS[look][1].split())
        title, description = write_texts(rng, words, colour, text_mess)
        size = rng.choice(((64, 120), (180, 90), (300, 240), (41, 57))) if photo_mess == "odd" else (100, 100)
        photo, ending = _encode(draw_photo(rng, look, colour, size), photo_mess)
        name = _asin(rng)
        while name in used:
            name = _asin(rng)
        used.add(name)
        products.append(Product(name, label, title, description, text_mess, photo, ending, photo_mess))
    return products


def _plan(shares: dict[str, float], rows: int) -> list[str]:
    """The mess of each row, from the first row on, and "" for the rest."""
    plan = [name for name, share in shares.items() for _ in range(max(1, math.ceil(share * rows)))]
    return plan + [""] * (rows - len(plan))


def _write_table(path: Path, products: Sequence[Product], with_labels: bool) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "title", "description"] + ["categories"] * with_labels)
        table.writerows([p.id, p.title, p.description] + [p.label] * with_labels for p in products)


def read_texts(folder: str | os.PathLike) -> list[str]:
    """Title and description of every product of a competition folder, train.csv before test.csv."""
    texts = []
    for part in ("train", "test"):
        with (resolve(folder) / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            texts += [f"{row['title']}. {row['description']}" for row in csv.DictReader(file)]
    return texts


# ---------------------------------------------------------------------------------------------------------------------
# The tiny SigLIP
# ---------------------------------------------------------------------------------------------------------------------


def make_model(folder: str | os.PathLike, texts: Sequence[str], seed: int) -> bool:
    """Writes a SigLIP directory as google/siglip-so400m-patch14-384 is laid out; False when it is there, unchanged.

    64 pixels in patches of 8, 64 tokens, a vocabulary learnt from `texts`, weights drawn from the seed.
    """
    sha = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    with _whole_folder(folder, {"seed": seed, "texts": sha}) as new:
        if new is None:
            return False
        plain = [text for text in map(_canonical, texts) if text]
        tokenizer = _train_tokenizer(plain)
        (new / "spiece.model").write_bytes(tokenizer.serialized_model_proto())
        files = _model_files(tokenizer.get_piece_size())
        for name, value in files.items():
            (new / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        embeddings = _token_embeddings(tokenizer, plain, seed)
        (new / "model.safetensors").write_bytes(_draw_weights(files["config.json"], embeddings, seed))
    return True


def _canonical(text: str) -> str:
    """The text without entities and tags, and then as SiglipTokenizer wants it: lower case, no punctuation."""
    text = re.sub(r"<[^>]+>", " ", html.unescape(text)).lower()
    return " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())


def _train_tokenizer(texts: Sequence[str]) -> Any:
    """A sentencepiece unigram processor: pad 0 (unused), eos 1, unk 2, as SigLIP's."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        # SiglipTokenizer puts "<unk>" before every text and cuts off as many pieces as it has: they must be known.
        required_chars="<>unk",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        add_dummy_prefix=False,
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _model_files(vocab_size: int) -> dict[str, dict[str, Any]]:
    """What is in the directory's JSON files."""
    text = {"model_type": "siglip_text_model", "vocab_size": vocab_size, "max_position_embeddings": 64, **TOWER}
    text |= {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 1}
    vision = {"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 8, **TOWER}
    half = [0.5, 0.5, 0.5]
    names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    flags = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False}
    added = {key: {"content": token, "special": True, **flags} for key, token in (("1", "</s>"), ("2", "<unk>"))}
    return {
        "config.json": {
            "architectures": ["SiglipModel"],
            "initializer_factor": 1.0,
            "model_type": "siglip",
            "text_config": text,
            "torch_dtype": "float32",
            "vision_config": vision,
        },
        "preprocessor_config.json": {
            **{"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": half, "image_std": half},
            **{"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"},
            **{"resample": 3, "rescale_factor": 1 / 255, "size": {"height": 64, "width": 64}},
        },
        "special_tokens_map.json": {name: {"content": token, **flags} for name, token in names.items()},
        "tokenizer_config.json": {
            **{"added_tokens_decoder": added, "clean_up_tokenization_spaces": True, "do_lower_case": True, **names},
            **{"model_input_names": ["input_ids"], "model_max_length": 64, "processor_class": "SiglipProcessor"},
            **{"sp_model_kwargs": {}, "tokenizer_class": "SiglipTokenizer"},
        },
    }


def _token_embeddings(tokenizer: Any, texts: Sequence[str], seed: int) -> np.ndarray:
    """(vocab, hidden) float32: tokens in like company lie close, so that the frozen tower knows something of words.

    Random indexing (Sahlgren 2005): a text is the sum of its tokens' random signs, a token the sum of its texts.
    """
    size = tokenizer.get_piece_size()
    count = np.zeros((len(texts), size))
    for row, text in enumerate(texts):
        count[row, tokenizer.encode(text)] = 1
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (size, TOWER["hidden_size"]))
    # Whole numbers all the way: the sums are exact, whatever the order in which BLAS adds.
    count *= np.rint(8 * np.log(len(texts) / count.sum(0).clip(1)))  # rare tokens weigh more
    embeddings = count.T @ (count @ signs)
    embeddings = embeddings * size - embeddings.sum(0)
    embeddings /= np.abs(embeddings).max(1, keepdims=True).clip(1) / 2
    embeddings[1] = 0  # padding, so that it adds nothing to the last position, which SigLIP pools
    return embeddings.astype(np.float32)


def _draw_weights(config: dict[str, Any], embeddings: np.ndarray, seed: int) -> bytes:
    """model.safetensors: every tensor but the token embeddings drawn from the seed."""
    import torch
    from safetensors.torch import save
    from transformers import SiglipConfig, SiglipModel

    with torch.device("meta"):  # names and shapes only
        model = SiglipModel(SiglipConfig(text_config=config["text_config"], vision_config=config["vision_config"]))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, meta in sorted(model.state_dict().items()):
        tensor = torch.randn(meta.shape, generator=generator)
        if name.endswith("token_embedding.weight"):
            tensor = torch.from_numpy(embeddings)
        elif name.startswith("logit_") or name.endswith("bias"):
            tensor.zero_()
        elif "norm" in name:
            tensor.fill_(1.0)
        elif name.endswith("patch_embedding.weight"):  # blocks of 4 x 4 pixels: colours and edges, not noise
            tensor = tensor[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3) * (4 / 14)
        elif "position_embedding" in name:
            tensor *= 0.5 if "vision" in name else 0.1
        elif "probe" not in name:
            tensor /= math.sqrt(meta.shape[-1])
        weights[name] = tensor.contiguous()
    return save(weights, metadata={"format": "pt"})


# ---------------------------------------------------------------------------------------------------------------------
# Folders, whole or not at all
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def _whole_folder(folder: str | os.PathLike, made_with: dict[str, Any]) -> Iterator[Path | None]:
    """A new folder beside `folder` that takes its name at the end, or vanishes when the block fails.

    None when `folder` was made with the same settings by the same code, and nothing in it changed since.
    """
    folder = resolve(folder)
    made_with = {**made_with, "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}
    stamp = folder / STAMP
    if folder.exists() and not (folder.is_dir() and (stamp.is_file() or not any(folder.iterdir()))):
        raise GoodsError(f"{folder} is there already and goods_sample.py didn't make it; name another folder")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == _stamp(folder, made_with):
        yield None
        return
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        (new / STAMP).write_text(_stamp(new, made_with), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _stamp(folder: Path, made_with: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name != STAMP):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return json.dumps({**made_with, "content": digest.hexdigest()}, indent=1) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """`python goods_sample.py`: both folders, relative paths from the project root."""
    parser = argparse.ArgumentParser(description="Writes the embedded sample competition and a tiny SigLIP.")
    parser.add_argument("--data", default="data/sample", help="folder of the competition (%(default)s)")
    parser.add_argument("--model", default="models/siglip-tiny", help="folder of the model (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)")
    parser.add_argument("--train-per-class", type=int, default=24, help="labelled products a class (%(default)s)")
    parser.add_argument("--test-per-class", type=int, default=6, help="products to predict a class (%(default)s)")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        made = {given.data: make_competition(given.data, given.seed, given.train_per_class, given.test_per_class)}
        made[given.model] = make_model(given.model, read_texts(given.data), given.seed)
    except GoodsError as error:
        raise SystemExit(f"goods_sample: {error}") from None
    new, kept = ([path for path, is_new in made.items() if is_new is flag] for flag in (True, False))
    parts = [f"made {' and '.join(new)} in {time.perf_counter() - start:.1f} s"] if new else []
    parts += [f"{' and '.join(kept)} there already, unchanged"] if kept else []
    print("; ".join(parts))


if __name__ == "__main__":
    main()
