"""The embedded sample: a small competition of drawn goods, and a tiny SigLIP directory, both from a seed.

`python -m goods.data.sample` writes data/sample and models/siglip-tiny in a few seconds, laid out like the real ones,
so that everything runs without a download. Each class is a pair of a look and a vocabulary: some classes look alike and
differ in words, others share their words and differ in looks, so neither photo nor text is enough. The same seed gives
the same bytes, with the same versions of the libraries.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import math
import os
import random
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from goods.data.sample_files import whole_folder
from goods.data.sample_model import make_model
from goods.data.sample_photos import LOOKS, draw_photo, encode
from goods.errors import GoodsError
from goods.files import resolve, sentence

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
        raise GoodsError("the sample needs at least 2 products per class for training and 1 for testing")
    counts = {"train": train_per_class, "test": test_per_class}
    with whole_folder(folder, {"seed": seed, **counts}) as new:
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
        zip(labels, _messes(TEXT_MESS, len(labels)), _messes(PHOTO_MESS, len(labels)), strict=True)
    ):
        rng = random.Random(f"{seed}/{part}/{row}")
        _, look, words = CLASSES[label]
        colour = rng.choice(LOOKS[look][1].split())
        title, description = write_texts(rng, words, colour, text_mess)
        size = rng.choice(((64, 120), (180, 90), (300, 240), (41, 57))) if photo_mess == "odd" else (100, 100)
        photo, ending = encode(draw_photo(rng, look, colour, size), photo_mess)
        name = _asin(rng)
        while name in used:
            name = _asin(rng)
        used.add(name)
        products.append(Product(name, label, title, description, text_mess, photo, ending, photo_mess))
    return products


def _messes(shares: dict[str, float], rows: int) -> list[str]:
    """The mess of each row, from the first row on, and "" for the rest."""
    named = [name for name, share in shares.items() for _ in range(max(1, math.ceil(share * rows)))]
    return named + [""] * (rows - len(named))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m goods.data.sample`: both folders, relative paths from the project root."""
    parser = argparse.ArgumentParser(description="Writes the embedded sample competition and a tiny SigLIP.")
    parser.add_argument("--data", default="data/sample", help="folder of the competition (%(default)s)")
    parser.add_argument("--model", default="models/siglip-tiny", help="folder of the model (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)")
    parser.add_argument("--train-per-class", type=int, default=24, help="labelled products per class (%(default)s)")
    parser.add_argument("--test-per-class", type=int, default=6, help="products to predict a class (%(default)s)")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        made = {given.data: make_competition(given.data, given.seed, given.train_per_class, given.test_per_class)}
        made[given.model] = make_model(given.model, read_texts(given.data), given.seed)
    except (GoodsError, OSError) as error:
        raise SystemExit(f"goods.data.sample: {sentence(error)}") from None
    new, kept = ([path for path, is_new in made.items() if is_new is flag] for flag in (True, False))
    parts = [f"made {' and '.join(new)} in {time.perf_counter() - start:.1f} s"] if new else []
    parts += [f"{' and '.join(kept)} there already, unchanged"] if kept else []
    print("; ".join(parts))


if __name__ == "__main__":
    main()
