"""From a competition folder to checked tables, clean text, leak-free folds and decoded photos."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import math
import random
import re
import unicodedata
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import ExifTags, Image, ImageEnhance, ImageFile, ImageFilter, ImageOps, UnidentifiedImageError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from goods_params import GoodsError, Params, atomic_path, file_stamp, resolve, write_json

PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # what a file with such an ending may really hold
MAX_SHARED = 50  # a photo or text shared by more products than this is a placeholder, not a duplicate
DEBUG_TEST_ROWS = 64

csv.field_size_limit(2**31 - 1)  # descriptions may be longer than its 128 KiB
ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # _open refuses such photos itself


# ---------------------------------------------------------------------------------------------------------------------
# 3 Read and check goods
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goods:
    """A checked competition.

    train and test have one row per product, in the tables' order: id, title, the text columns as given, text (cleaned
    and joined), image (path, "" when there is no usable photo), sha (of the photo's bytes); train has label, the class
    index, as well. `labels[k]` is class k's label as the tables write it, `classes[k]` its name for people.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    labels: list[int | str]
    classes: list[str]
    photos: pd.DataFrame  # table, id, image, sha, status, width, height, mode
    report: dict[str, Any] = field(default_factory=dict)


def read_goods(p: Params) -> Goods:
    """Reads and checks both tables and all photos; writes data_report.json, labels.json and bad_images.csv to the run.

    Raises GoodsError with every problem of both tables at once.
    """
    problems: list[str] = []
    train = read_table(resolve(p.train_csv), p, [p.label_column], problems)
    test = read_table(resolve(p.test_csv), p, [], problems)
    named = _class_names(resolve(p.train_csv).parent / "labels.json", problems)
    labels: list[int | str] = []
    if train is not None and p.label_column in train:
        train["label"], labels = _class_indices(train, p, named, problems)
    folders = {"train": resolve(p.train_images_dir), "test": resolve(p.test_images_dir)}
    problems += [problem for folder in dict.fromkeys(folders.values()) if (problem := _folder_problem(folder))]
    if problems:
        raise GoodsError("the goods can't be used:\n" + "\n".join(f"- {problem}" for problem in problems))

    if p.debug:
        train = train.groupby("label").head(2 * p.n_folds).reset_index(drop=True)
        test = test.head(DEBUG_TEST_ROWS)
    tables = {"train": train, "test": test}
    photos = pd.concat([_photos_of(name, table, folders[name]) for name, table in tables.items()], ignore_index=True)
    photos = inspect_photos(photos, cache=resolve(p.outputs_dir) / "cache" / "photos")
    for name, table in tables.items():
        own = photos[photos["table"] == name]
        usable = (own["status"] == "ok").to_numpy()
        table["image"] = np.where(usable, own["image"], "")
        table["sha"] = np.where(usable, own["sha"], "")
    classes = [named.get(label, str(label)) for label in labels]
    goods = Goods(train, test, labels, classes, photos, _report(tables, photos, labels, classes))
    _write_findings(goods, p)
    return goods


def read_table(path: Path, p: Params, more: list[str], problems: list[str]) -> pd.DataFrame | None:
    """The table with all cells as text, its text joined and cleaned; what is wrong with it is added to `problems`."""
    if not path.is_file():
        problems.append(f"there is no {path}" + (_other_tables(path)))
        return None
    try:
        # "NA" and "null" are words here: nothing but an empty cell is empty.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig").astype(object)
    except UnicodeDecodeError:
        problems.append(f"{path} is not UTF-8 ({_first_bad_byte(path)}); save it as UTF-8")
        return None
    except pd.errors.EmptyDataError:
        problems.append(f"{path} is empty")
        return None
    except pd.errors.ParserError as error:
        problems.append(f"{path} is not a CSV table: {str(error).strip()}")
        return None
    if ragged := _ragged_lines(path, len(table.columns)):
        problems.append(f"{path}: {len(ragged)} rows have more or fewer cells than the header's {len(table.columns)} "
                        f"(they end on lines {_listing(ragged)})")  # fmt: skip
        return None
    missing = [name for name in (p.id_column, *p.text_columns, *more) if name not in table]
    if missing:
        problems.append(f"{path} lacks {_listing(missing)}; it has {_listing(table.columns)} "
                        "(see id_column, text_columns, label_column)")  # fmt: skip
    if table.empty:
        problems.append(f"{path} has no rows")
    if missing or table.empty:
        return None
    if p.id_column != "id":
        table = table.drop(columns="id", errors="ignore").rename(columns={p.id_column: "id"})
    if empty := int((table["id"].str.strip() == "").sum()):
        problems.append(f"{path}: {empty} rows have no {p.id_column}")
    twice = table["id"][table["id"].duplicated() & (table["id"].str.strip() != "")].unique()
    if len(twice):
        problems.append(f"{path}: {len(twice)} ids stand there more than once ({_listing(twice)})")
    table["text"] = join_texts(table[list(p.text_columns)])
    if "title" not in table:
        table["title"] = table[p.text_columns[0]]
    return table


def _first_bad_byte(path: Path) -> str:
    data = path.read_bytes()  # whole: pandas counts from the start of its buffer
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"byte {data[error.start]:#04x} on line {line}"
    return "it changed while it was read"


def _ragged_lines(path: Path, width: int) -> list[int]:
    """Lines of a CSV on which a row ends that hasn't `width` cells: pandas fills short ones and shifts long ones."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        return [rows.line_num for row in rows if len(row) != width and (len(row) > 1 or "".join(row).strip())]


def _other_tables(path: Path) -> str:
    if "sample" in path.parts:
        return "; the embedded sample is made by: python goods_sample.py"
    others = sorted(f.name for f in path.parent.glob("*.csv")) if path.parent.is_dir() else []
    return f"; {path.parent} has {_listing(others)}" if others else "; set data_dir to the competition's folder"


def _class_names(path: Path, problems: list[str]) -> dict[int | str, str]:
    """Class names by integer label, from the competition's labels.json where there is one."""
    if not path.is_file():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
        names = dict(enumerate(names)) if isinstance(names, list) else names
        return {int(key): str(name) for key, name in names.items()}
    except (ValueError, AttributeError, TypeError):
        problems.append(f'{path} must look like {{"0": "Books", "1": "Toys"}}; mend it or take it away')
        return {}


def _class_indices(
    train: pd.DataFrame, p: Params, named: dict[int | str, str], problems: list[str]
) -> tuple[pd.Series, list[int | str]]:
    """Class index of each row (0 where the label is a problem) and the label of each class index."""
    given = train[p.label_column].str.strip()
    if empty := train["id"][given == ""].tolist():
        problems.append(f"{p.train_csv}: {len(empty)} rows have no {p.label_column} (ids {_listing(empty)})")
    filled = given[given != ""]
    if filled.str.fullmatch(r"-?(0|[1-9][0-9]*)(\.0+)?").all():  # "007" is a name, and comes back as it is
        filled = filled.map(lambda label: int(label.partition(".")[0]))
    used: list[int | str] = sorted(set(filled))
    keys = filled.to_dict()
    known = _known_labels(used, named, p.num_classes)
    unknown = [label for label in used if label not in known]
    if unknown:
        rows = sum(keys[i] in set(unknown) for i in keys)
        why = "" if named else f", since num_classes is {p.num_classes}; the table has {len(used)} different ones"
        problems.append(f"{p.train_csv}: {rows} rows have an unknown {p.label_column} ({_listing(unknown)}); "
                        f"known are {_listing(known)}{why}")  # fmt: skip
    elif len(known) != p.num_classes:
        rarest = [f"{label} ({count} rows)" for label, count in filled.value_counts().tail(3).items()]
        problems.append(f"{p.train_csv} has {len(known)} classes, but num_classes is {p.num_classes}; set num_classes "
                        f"to {len(known)}, or mend the labels (the rarest: {_listing(rarest)})")  # fmt: skip
    index = {label: k for k, label in enumerate(known)}
    return pd.Series([index.get(keys.get(i), 0) for i in train.index], index=train.index), known


def _known_labels(used: list[int | str], named: dict[int | str, str], num_classes: int) -> list[int | str]:
    """What a label may be: labels.json's keys or names, 0 ... num_classes-1, or just those that are used."""
    if named:
        integers = all(isinstance(label, int) for label in used)
        return sorted(named) if integers else [named[key] for key in sorted(named)]
    sparse = len(used) == num_classes and used[-1] != num_classes - 1  # product codes such as 10, 40, 2905
    if all(isinstance(label, int) for label in used) and not sparse:
        return list(range(num_classes))
    return used


def _folder_problem(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"there is no folder {folder} with photos"
    inner = sorted(f for f in folder.iterdir() if f.is_dir())
    if inner and not find_photos(folder):
        return f"{folder} has no photos, only folders; did you mean {inner[0]}?"
    return None


def find_photos(folder: Path) -> dict[str, str]:
    """Path of each photo of a folder by its file name and by the name without its ending; .jpg before .png."""
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in PHOTO_ENDINGS]
    files.sort(key=lambda f: PHOTO_ENDINGS.index(f.suffix.lower()), reverse=True)
    return {name: str(f) for f in files for name in (f.stem, f.name)}


def _photos_of(name: str, table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    found = find_photos(folder)
    return pd.DataFrame({"table": name, "id": table["id"], "image": [found.get(i, "") for i in table["id"]]})


def inspect_photos(photos: pd.DataFrame, cache: Path) -> pd.DataFrame:
    """Decodes every photo once: adds sha (of its bytes), status ("ok" or what is wrong), width, height, mode.

    What was found is kept below `cache` until a file's name, size or time changes.
    """
    path = cache / f"{file_stamp([f for f in photos['image'] if f])}.parquet"
    if path.is_file():
        known = pd.read_parquet(path)
    else:
        files = [f for f in photos["image"].unique() if f]
        with ThreadPoolExecutor() as pool:  # Pillow lets go of the GIL while it decodes
            found = list(pool.map(_inspect, files, chunksize=64))
        known = pd.DataFrame(found, columns=["sha", "status", "width", "height", "mode"])
        known.insert(0, "image", files)
        with atomic_path(path) as temporary:
            known.to_parquet(temporary, index=False)
    photos = photos.merge(known, on="image", how="left")
    photos["status"] = photos["status"].fillna("missing")
    photos[["sha", "mode"]] = photos[["sha", "mode"]].fillna("")
    photos[["width", "height"]] = photos[["width", "height"]].fillna(0).astype(int)
    return photos


def _inspect(path: str) -> tuple[str, str, int, int, str]:
    data = b""
    try:
        data = Path(path).read_bytes()
        with _open(io.BytesIO(data)) as image:
            facts = image.width, image.height, image.mode
            _to_rgb(image)  # all that load_photo does, so that it won't fail later
        status = "ok"
    except UnidentifiedImageError:  # its own text is the address of a buffer
        facts, status = (0, 0, ""), "unreadable: not a photo" if data else "empty file"
    except Exception as error:  # Pillow's plugins raise anything on damaged bytes; none of it may stop a run
        facts, status = (0, 0, ""), f"unreadable: {error or type(error).__name__}"
    return hashlib.sha256(data).hexdigest()[:32], status, *facts


def _report(tables: dict[str, pd.DataFrame], photos: pd.DataFrame, labels: list, classes: list[str]) -> dict[str, Any]:
    bad = photos[photos["status"] != "ok"]
    counts = np.bincount(tables["train"]["label"], minlength=len(labels))
    report: dict[str, Any] = {
        name: {
            "rows": len(table),
            "empty_texts": int((table["text"] == "").sum()),
            "repeated_texts": int(table["text"].duplicated(keep=False).sum()),
            "repeated_photos": int(table["sha"][table["sha"] != ""].duplicated(keep=False).sum()),
            "bad_images": int((bad["table"] == name).sum()),
            "content": content_stamp(table),
        }
        for name, table in tables.items()
    }
    report["class_counts"] = dict(zip(classes, counts.tolist(), strict=True))
    report["warnings"] = []
    if absent := [name for name, count in zip(classes, counts, strict=True) if not count]:
        report["warnings"].append(f"{len(absent)} classes have no training row: {_listing(absent)}")
    if both := sorted(set(tables["train"]["id"]) & set(tables["test"]["id"])):
        report["warnings"].append(f"{len(both)} ids stand in train and in test: {_listing(both)}")
    if len(bad):
        kinds = bad["status"].str.partition(":")[0].value_counts()
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        report["warnings"].append(f"{len(bad)} photos can't be used ({what}; ids {_listing(bad['id'])})")
    return report


def report_table(goods: Goods) -> pd.DataFrame:
    """The counts of data_report.json, one column a table."""
    return pd.DataFrame({name: goods.report[name] for name in ("train", "test")}).drop(index="content")


def _write_findings(goods: Goods, p: Params) -> None:
    bad = goods.photos[goods.photos["status"] != "ok"]
    if len(bad) and p.bad_images == "error":
        lines = [f"- {row.table} {row.id}: {row.status}" for row in bad.head(10).itertuples()]
        raise GoodsError(f"{len(bad)} photos can't be used, and bad_images is 'error':\n" + "\n".join(lines))
    if (goods.photos[goods.photos["table"] == "train"]["status"] == "missing").all():
        raise GoodsError(f"no training product has a photo <id>.jpg in {resolve(p.train_images_dir)}; "
                         "set train_images_dir")  # fmt: skip
    known = p.run_dir / "data_report.json"
    if known.is_file() and (differ := _changed_tables(known, goods.report)):
        raise GoodsError(f"run '{p.run}' was made with other goods: {_listing(differ)} changed since. "
                         f"Choose another name for run, or delete {p.run_dir}")  # fmt: skip
    write_json(p.run_dir / "labels.json", {"labels": goods.labels, "classes": goods.classes})
    with atomic_path(p.run_dir / "bad_images.csv") as temporary:
        bad[["table", "id", "image", "status"]].to_csv(temporary, index=False)
    write_json(known, goods.report)


def _changed_tables(path: Path, report: dict[str, Any]) -> list[str]:
    before = pd.read_json(path, typ="series")
    return [name for name in ("train", "test") if before.get(name, {}).get("content") != report[name]["content"]]


def content_stamp(table: pd.DataFrame) -> str:
    """A hash of a table's ids, texts, photos and labels, in their order."""
    columns = [name for name in ("id", "text", "sha", "label") if name in table]
    return hashlib.sha256(table[columns].to_csv(index=False).encode()).hexdigest()[:32]


def _listing(items: Sequence[Any], most: int = 5) -> str:
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


# ---------------------------------------------------------------------------------------------------------------------
# 4 Text cleaning
# ---------------------------------------------------------------------------------------------------------------------

_TAG = re.compile(r"<(?:/?[a-zA-Z][^<>]*|!--.*?--)>", re.DOTALL)
_URL = re.compile(r"(?:https?://|www\.)\S+")
_NO_CODE = re.compile(r"&#[0-9]{20,};?")  # beyond Unicode, and int() refuses thousands of digits
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufffd]")
_INVISIBLE = re.compile(r"[\xad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")  # not the joiner that emoji need


def clean_text(text: str) -> str:
    """One line of plain text: HTML entities read (twice: Amazon escapes twice), NFKC, no tags, URLs, control codes."""
    for _ in range(2):
        text = html.unescape(_NO_CODE.sub(" ", text))
    text = _URL.sub(" ", _TAG.sub(" ", text))
    text = _INVISIBLE.sub("", _CONTROL.sub(" ", text))  # before NFKC: what they kept apart may become one letter
    return " ".join(unicodedata.normalize("NFKC", text).split())


def titles_of(table: pd.DataFrame) -> list[str]:
    """The cleaned titles of a table's products."""
    return [clean_text(title) for title in table["title"]]


def join_texts(columns: pd.DataFrame) -> list[str]:
    """The cleaned text of each row: its columns' texts, the empty ones left out, joined by ". "."""
    cleaned = [[clean_text(text) for text in columns[name]] for name in columns]
    return [". ".join(text for text in row if text) for row in zip(*cleaned, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# 5 Folds
# ---------------------------------------------------------------------------------------------------------------------


def duplicate_groups(texts: Sequence[str], shas: Sequence[str]) -> np.ndarray:
    """(n,) group number of each product; products with the same text or the same photo share one.

    Empty texts, missing photos and what more than MAX_SHARED products share (placeholders) tie nothing together.
    """
    n = len(texts)
    rows, columns = [], []
    for offset, keys in ((0, pd.Series(list(texts))), (n, pd.Series(list(shas)))):
        count = keys.map(keys.value_counts())
        ties = keys[(keys != "") & (count > 1) & (count <= MAX_SHARED)]
        rows.append(ties.index.to_numpy())
        columns.append(n + offset + pd.factorize(ties)[0])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(row)), (row, column)), shape=(3 * n, 3 * n))
    return connected_components(graph, directed=False)[1][:n]


def all_products(goods: Goods) -> pd.DataFrame:
    """The training products, then the test products."""
    return pd.concat([goods.train, goods.test], ignore_index=True)


def product_groups(train: pd.DataFrame) -> np.ndarray:
    """duplicate_groups of a table by the texts it came with: other text_columns must not move a product's fold."""
    columns = list(Params.model_fields["text_columns"].default)
    own = all(name in train for name in columns)
    return duplicate_groups(join_texts(train[columns]) if own else train["text"], train["sha"])


def make_folds(ids: Sequence[str], labels: Sequence[int], groups: Sequence[int], n_folds: int, seed: int) -> np.ndarray:
    """(n,) validation fold of each product: stratified by label, groups whole, the same for any order of the rows.

    A class with fewer rows than folds is spread as far as it goes.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    if len(np.unique(groups)) < n_folds:
        raise GoodsError(f"{len(np.unique(groups))} different products can't fill {n_folds} folds; lower n_folds")
    order = np.argsort(np.asarray(ids, dtype=str), kind="stable")
    order = order[np.random.RandomState(seed).permutation(len(order))]  # RandomState: the same in every numpy
    group = pd.factorize(groups[order])[0]  # numbered anew, by what comes first in this order
    counts = np.zeros((group.max() + 1, labels.max() + 1), dtype=np.int64)  # (groups, classes)
    np.add.at(counts, (group, labels[order]), 1)
    in_fold = np.zeros((n_folds, counts.shape[1]), dtype=np.int64)  # (folds, classes)
    fold_of = np.zeros(len(counts), dtype=np.int64)
    # Whole numbers only, and not scikit-learn's StratifiedGroupKFold, whose folds differ between versions.
    for g in np.argsort(-counts.sum(1), kind="stable"):  # the largest groups first
        fold_of[g] = np.lexsort((in_fold.sum(1), in_fold @ counts[g]))[0]  # fewest of its classes; then the smallest
        in_fold[fold_of[g]] += counts[g]
    folds = np.zeros(len(order), dtype=np.int64)
    folds[order] = fold_of[group]
    return folds


def read_folds(goods: Goods, p: Params) -> pd.DataFrame:
    """The run's folds, id, label, fold in train.csv's order; made once and saved in folds.parquet."""
    path = p.run_dir / "folds.parquet"
    if not path.is_file():
        train = goods.train
        folds = make_folds(train["id"], train["label"], product_groups(train), p.n_folds, p.seed)
        with atomic_path(path) as temporary:
            train[["id", "label"]].assign(fold=folds).to_parquet(temporary, index=False)
    return pd.read_parquet(path)


def rare_classes(goods: Goods, n_folds: int) -> list[str]:
    """A sentence for each class with fewer rows than folds."""
    counts = goods.report["class_counts"].items()
    return [f"{name} has {n} rows for {n_folds} folds: some folds have none of it" for name, n in counts if n < n_folds]


# ---------------------------------------------------------------------------------------------------------------------
# 6 Images and datasets
# ---------------------------------------------------------------------------------------------------------------------


class Augment(NamedTuple):
    """Strengths of the changes made to photos in training; 0 is off."""

    crop: float = 0.0  # largest share of the area cut away
    flip: float = 0.0  # share mirrored
    colour: float = 0.0  # largest relative change of brightness, contrast and saturation
    blur: float = 0.0  # share blurred
    jpeg: float = 0.0  # share compressed once more


def load_photo(path: str, size: int, augment: Augment | None = None, seed: Sequence[int] = ()) -> torch.Tensor:
    """(3, size, size) uint8 RGB: the whole photo squashed to a square, as SigLIP was trained; white when path is "".

    A large JPEG is decoded at the smallest of its eighths that is still `size` wide (Pillow's draft mode), and torch's
    antialiased bicubic does what Pillow's does, vectorised. With `augment` a random part is taken and changed, the same
    for the same seed.
    """
    if not path:
        return torch.full((3, size, size), 255, dtype=torch.uint8)
    rng = random.Random(repr(tuple(seed)))
    crop = augment.crop if augment else 0.0
    with _open(path) as image:
        side = int(size / math.sqrt(1 - crop))  # so that the smallest crop is still `size` wide
        draft = image.draft("RGB", (side, side))
        image = _random_crop(_upright(_whole_pixels(_to_rgb(image), draft and draft[1]), image), rng, crop)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, height, width), channels last
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
    return _change(pixels[0], rng, augment) if augment else pixels[0]


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


class PhotoDataset(Dataset):
    """Photos read when asked for, and what stands beside them: pixels (3, size, size) uint8, columns[name][row].

    With `augment`, a photo's changes depend on seed, epoch and row alone, not on which worker reads it.
    """

    def __init__(
        self, images: Sequence[str], size: int, augment: Augment | None = None, seed: int = 0, **columns: torch.Tensor
    ) -> None:
        self.images, self.size, self.augment, self.seed, self.columns = list(images), size, augment, seed, columns
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        pixels = load_photo(self.images[row], self.size, self.augment, seed=(self.seed, self.epoch, row))
        return {"pixels": pixels} | {name: column[row] for name, column in self.columns.items()}


class TensorsDataset(Dataset):
    """Tensors of equal length, taken a whole batch at a time: one indexing instead of a thousand."""

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {name: column[rows] for name, column in self.columns.items()}


class TokensDataset(Dataset):
    """Texts as token ids, padded to the longest of a batch; lengths (n,) serves to put like with like."""

    def __init__(self, tokens: Sequence[Sequence[int]], pad_token_id: int, **columns: torch.Tensor) -> None:
        self.tokens, self.pad_token_id, self.columns = [torch.tensor(ids) for ids in tokens], pad_token_id, columns
        self.lengths = torch.tensor([len(ids) for ids in self.tokens])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        batch = [self.tokens[row] for row in rows]
        padded = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=self.pad_token_id)
        return {"input_ids": padded} | {name: column[rows] for name, column in self.columns.items()}


def collate(items: Any) -> dict[str, torch.Tensor]:
    """Stacks PhotoDataset's items; those of the other datasets are a batch already."""
    return items if isinstance(items, dict) else default_collate(items)
