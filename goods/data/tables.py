"""From a competition folder to checked tables, clean texts and photos that are known to open."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goods.code_version import code_version
from goods.data.labels import read_class_names
from goods.data.photos import find_photos, inspect_photos, photos_of
from goods.data.texts import clean_text, join_texts
from goods.errors import DamagedFileError, GoodsError, OtherRunError
from goods.files import atomic_path, resolve, write_json
from goods.params import Params
from goods.run import Run

DEBUG_TEST_ROWS = 64
csv.field_size_limit(2**31 - 1)  # descriptions may be longer than its 128 KiB


@dataclass(frozen=True)
class Goods:
    """A checked competition.

    train and test have one row per product, in the tables' order: id, title (cleaned), the other text columns as given,
    text (cleaned and joined), image (path, "" when there is no usable photo), sha (of the photo's bytes); train has
    label, the class index, as well. `labels[k]` is class k's label as the tables write it, `classes[k]` its name for
    people.
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
    apart = [name for name in (p.fold_column, p.group_column, *p.group_by) if name and name not in ("photo", "text")]
    train = read_table(resolve(p.train_csv), p, list(dict.fromkeys([p.label_column, *apart])), problems)
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
    photos = pd.concat([photos_of(name, table, folders[name]) for name, table in tables.items()], ignore_index=True)
    photos = inspect_photos(photos, cache=photo_cache(p))
    for name, table in tables.items():
        own = photos[photos["table"] == name]
        usable = (own["status"] == "ok").to_numpy()
        table["image"] = np.where(usable, own["image"], "")
        table["sha"] = np.where(usable, own["sha"], "")
    classes = [named.get(label, str(label)) for label in labels]
    goods = Goods(train, test, labels, classes, photos, _report(tables, photos, labels, classes))
    _write_findings(goods, p)
    return goods


def photo_cache(p: Params) -> Path:
    """Where what is known of photos is kept, by the version of the code that looks at them."""
    return resolve(p.outputs_dir) / "cache" / "photos" / code_version(("goods.data.photos",))


def read_table(path: Path, p: Params, more: list[str], problems: list[str]) -> pd.DataFrame | None:
    """The table with all cells as text, its text joined and cleaned; what is wrong with it is added to `problems`."""
    table = read_cells(path, p.id_column, [*p.text_columns, *more], problems)
    if table is not None:
        table["text"] = join_texts(table[list(p.text_columns)])
        titles = table["title"] if "title" in table else table[p.text_columns[0]]
        table["title"] = [clean_text(title) for title in titles]
    return table


def read_cells(path: Path, id_column: str, needed: Sequence[str], problems: list[str]) -> pd.DataFrame | None:
    """The table as it stands, all cells as text, its ids called id; what is wrong with it is added to `problems`."""
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
                        f"(they end on lines {listing(ragged)})")  # fmt: skip
        return None
    missing = [name for name in (id_column, *needed) if name not in table]
    if missing:
        problems.append(f"{path} lacks {listing(missing)}; it has {listing(table.columns)} "
                        "(see id_column, text_columns, label_column, fold_column, group_column, group_by)")  # fmt: skip
    if table.empty:
        problems.append(f"{path} has no rows")
    if missing or table.empty:
        return None
    if id_column != "id":
        table = table.drop(columns="id", errors="ignore").rename(columns={id_column: "id"})
    if empty := int((table["id"].str.strip() == "").sum()):
        problems.append(f"{path}: {empty} rows have no {id_column}")
    twice = table["id"][table["id"].duplicated() & (table["id"].str.strip() != "")].unique()
    if len(twice):
        problems.append(f"{path}: {len(twice)} ids stand there more than once ({listing(twice)})")
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
        return "; the embedded sample is made by: python -m goods.data.sample"
    others = sorted(f.name for f in path.parent.glob("*.csv")) if path.parent.is_dir() else []
    return f"; {path.parent} has {listing(others)}" if others else "; set data_dir to the competition's folder"


def _class_names(path: Path, problems: list[str]) -> dict[int | str, str]:
    """Class names by integer label; what is wrong with the file is added to `problems`."""
    try:
        return dict(read_class_names(path))
    except DamagedFileError as error:
        problems.append(str(error))
        return {}


def _class_indices(
    train: pd.DataFrame, p: Params, named: dict[int | str, str], problems: list[str]
) -> tuple[pd.Series, list[int | str]]:
    """Class index of each row (0 where the label is a problem) and the label of each class index."""
    given = train[p.label_column].str.strip()
    if empty := train["id"][given == ""].tolist():
        problems.append(f"{p.train_csv}: {len(empty)} rows have no {p.label_column} (ids {listing(empty)})")
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
        problems.append(f"{p.train_csv}: {rows} rows have an unknown {p.label_column} ({listing(unknown)}); "
                        f"known are {listing(known)}{why}")  # fmt: skip
    elif len(known) != p.num_classes:
        rarest = [f"{label} ({count} rows)" for label, count in filled.value_counts().tail(3).items()]
        problems.append(f"{p.train_csv} has {len(known)} classes, but num_classes is {p.num_classes}; set num_classes "
                        f"to {len(known)}, or mend the labels (the rarest: {listing(rarest)})")  # fmt: skip
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
        report["warnings"].append(f"{len(absent)} classes have no training row: {listing(absent)}")
    if both := sorted(set(tables["train"]["id"]) & set(tables["test"]["id"])):
        report["warnings"].append(f"{len(both)} ids stand in train and in test: {listing(both)}")
    if len(bad):
        kinds = bad["status"].str.partition(":")[0].value_counts()
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        report["warnings"].append(f"{len(bad)} photos can't be used ({what}; ids {listing(bad['id'])})")
    return report


def report_table(goods: Goods) -> pd.DataFrame:
    """The counts of data_report.json, one column per table."""
    return pd.DataFrame({name: goods.report[name] for name in ("train", "test")}).drop(index="content")


def _write_findings(goods: Goods, p: Params) -> None:
    bad = goods.photos[goods.photos["status"] != "ok"]
    if len(bad) and p.bad_images == "error":
        lines = [f"- {row.table} {row.id}: {row.status}" for row in bad.head(10).itertuples()]
        raise GoodsError(f"{len(bad)} photos can't be used, and bad_images is 'error':\n" + "\n".join(lines))
    if (goods.photos[goods.photos["table"] == "train"]["status"] == "missing").all():
        raise GoodsError(f"no training product has a photo <id>.jpg in {resolve(p.train_images_dir)}; "
                         "set train_images_dir")  # fmt: skip
    run = Run.of(p)
    if differ := run.check_tables({name: goods.report[name]["content"] for name in ("train", "test")}):
        raise OtherRunError(f"run '{p.run}' was made with other goods: {listing(differ)} changed since. Name the "
                            "tables and photos that it was made with, or choose another name for run")  # fmt: skip
    write_json(run.labels, {"labels": goods.labels, "classes": goods.classes})
    with atomic_path(run.bad_images) as temporary:
        bad[["table", "id", "image", "status"]].to_csv(temporary, index=False)
    write_json(run.data_report, goods.report)


def content_stamp(table: pd.DataFrame) -> str:
    """A hash of a table's ids, texts, photos and labels, in their order."""
    columns = [name for name in ("id", "text", "sha", "label") if name in table]
    return hashlib.sha256(table[columns].to_csv(index=False).encode()).hexdigest()[:32]


def listing(items: Sequence[Any], most: int = 5) -> str:
    """The first of the items for a sentence, and how many more there are."""
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def all_products(goods: Goods) -> pd.DataFrame:
    """The training products, then the test products."""
    return pd.concat([goods.train, goods.test], ignore_index=True)
