"""From a competition folder to checked tables, clean texts and photos that are known to open."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goods.advice import other_name
from goods.code_version import code_version
from goods.data.advice import fitting_columns, likely_cause
from goods.data.further import further_columns, further_problems, further_warnings
from goods.data.labels import read_class_names
from goods.data.mended import STANDING, fix_counts, keep_fixes, read_fixes
from goods.data.photo_files import (
    NONE_NAMED,
    Cell,
    PhotoFolder,
    cells_of,
    columns_of,
    outside,
    photos_of,
    unpack_photos,
)
from goods.data.photos import inspect_photos, photos_in, usable
from goods.data.table_files import read_cells
from goods.data.texts import clean_text, join_texts
from goods.errors import DamagedFileError, GoodsError, OtherRunError, listing
from goods.files import resolve, write_json
from goods.params import Params
from goods.run import Run
from goods.sheets import write_sheet

INTEGER = r"-?(0|[1-9][0-9]{0,4000})(\.0+)?"  # a label of this form; int() reads no longer one
DEBUG_TEST_ROWS = 64
COLUMNS = ("id_column", "text_columns", "label_column", "image_column", "fold_column", "group_column",
           "category_columns", "number_columns")  # fmt: skip


@dataclass(frozen=True)
class Goods:
    """A checked competition.

    train and test have one row per product, in the tables' order: id, title (cleaned), the other text columns as given,
    text (cleaned and joined), image (path, "" when there is no usable photo), sha (of the photo's bytes); train has
    label, the class index, as well. `labels[k]` is class k's label as the tables write it, `classes[k]` its name for
    people. Where some products have several photos, images and shas are tuples of all usable ones, and image and sha
    the first of them.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    labels: list[int | str]
    classes: list[str]
    photos: pd.DataFrame  # table, id, image, sha, status, width, height, mode: one row per photo, or per lack of one
    report: dict[str, Any] = field(default_factory=dict)
    fixes: pd.DataFrame | None = None  # what p.label_fixes says of the training products, as read_fixes gives it


def read_goods(p: Params, photos_needed: bool = True) -> Goods:
    """Reads and checks both tables and all photos; writes data_report.json, labels.json and bad_images.csv to the run.

    Without `photos_needed`, goods of which none has a photo are texts alone. Raises GoodsError with every problem of
    both tables at once, and where more than p.max_bad_images of a table's photos are missing or can't be read.
    """
    problems: list[str] = []
    tables, cells, named, labels = _read_tables(p, problems)
    folders = {"train": resolve(p.train_images_dir), "test": resolve(p.test_images_dir)}
    problems += _photo_problems(tables, cells, folders, photos_needed)
    problems += further_problems(tables["train"], p) if "train" in tables else []
    classes = [named.get(label, str(label)) for label in labels]
    fixes = None if problems else _label_fixes(p, tables["train"], labels, classes, problems)
    if problems:
        raise GoodsError("the goods can't be used:\n" + "\n".join(f"- {problem}" for problem in problems))

    for name, table in tables.items():
        if p.debug:
            kept = table.groupby("label").head(2 * p.n_folds) if name == "train" else table.head(DEBUG_TEST_ROWS)
            cells[name] = cells[name] and [cells[name][row] for row in kept.index]
            tables[name] = kept.reset_index(drop=True)
    found = [photos_of(name, table, folders[name], cells[name]) for name, table in tables.items()]
    photos = inspect_photos(pd.concat(found, ignore_index=True), cache=photo_cache(p))
    _give_photos(tables, photos)
    goods = Goods(**tables, labels=labels, classes=classes, photos=photos,
                  report=_report(tables, photos, labels, classes, p, fixes), fixes=fixes)  # fmt: skip
    _refuse_bad_photos(goods, p, folders, photos_needed)
    _write_findings(goods, p)
    return goods


def _read_tables(
    p: Params, problems: list[str]
) -> tuple[dict[str, pd.DataFrame], dict[str, list[Cell] | None], dict[int | str, str], list[int | str]]:
    """Train and test as far as they can be read, what each says of its photos, the class names, and the labels."""
    apart = [name for name in (p.fold_column, p.group_column, *p.group_by) if name and name not in ("photo", "text")]
    photo_columns = columns_of(p.image_column) if p.image_column else []
    both = [*photo_columns, *further_columns(p)]
    needed = {"train": list(dict.fromkeys([p.label_column, *apart, *both])), "test": both}
    tables, cells = {}, {}
    for name, columns in needed.items():
        path = resolve(getattr(p, f"{name}_csv"))
        if (table := read_table(path, p, columns, problems)) is not None:
            cells[name] = _photo_cells(path, table, p)
            tables[name] = table.drop(columns=["images", "shas"], errors="ignore")  # these names are ours
    named = _class_names(resolve(p.train_csv).parent / "labels.json", problems)
    labels: list[int | str] = []
    if "train" in tables:
        tables["train"]["label"], labels = _class_indices(tables["train"], p, named, problems)
    return tables, cells, named, labels


def _photo_cells(path: Path, table: pd.DataFrame, p: Params) -> list[Cell] | None:
    """What a table says of its photos, by p.image_column; None: they are found by id."""
    if not p.image_column:
        return None
    unpacked = unpack_photos(path, p.image_column, unpacked_cache(p))
    return cells_of(table, p.image_column, p.id_column) if unpacked is None else unpacked


def _give_photos(tables: dict[str, pd.DataFrame], photos: pd.DataFrame) -> None:
    """Gives each product the photos that can be used: image and sha; images and shas where some have several."""
    good = photos[usable(photos)]
    several = bool(good.duplicated(["table", "id"]).any())
    for name, table in tables.items():
        own = good[good["table"] == name]
        for column in ("image", "sha"):
            first = own.drop_duplicates("id").set_index("id")[column]
            table[column] = first.reindex(table["id"], fill_value="").to_numpy(dtype=object)
            if several:
                every = own.groupby("id", sort=False)[column].agg(tuple)
                table[f"{column}s"] = [found if isinstance(found, tuple) else () for found in table["id"].map(every)]


def photo_cache(p: Params) -> Path:
    """Where what is known of photos is kept, by the version of the code that looks at them."""
    return resolve(p.outputs_dir) / "cache" / "photos" / code_version(("goods.data.photos",))


def unpacked_cache(p: Params) -> Path:
    """Where photos lie that were inside a table."""
    return resolve(p.outputs_dir) / "cache" / "unpacked"


def read_table(path: Path, p: Params, more: list[str], problems: list[str]) -> pd.DataFrame | None:
    """The table with all cells as text, its text joined and cleaned; what is wrong with it is added to `problems`."""
    if (table := read_cells(path, problems, p.id_column)) is None:
        return None
    if missing := [name for name in dict.fromkeys((p.id_column, *p.text_columns, *more)) if name not in table]:
        asked = {name: getattr(p, name) for name in COLUMNS} | {"group_by": set(p.group_by) - {"photo", "text"}}
        fitting = fitting_columns(missing, list(table.columns), asked)
        advice = f"; set {fitting}" if fitting else f" (see {', '.join(asked)})"
        problems.append(f"{path} lacks {listing(missing)}; it has {listing(table.columns)}{advice}")
    if table.empty:
        problems.append(f"{path} has no rows")
    if missing or table.empty:
        return None
    if p.id_column != "id":
        table = table.assign(id=table[p.id_column])  # it keeps its own name, too: it may be read as a text
    if empty := int((table["id"].str.strip() == "").sum()):
        problems.append(f"{path}: {empty} rows have no {p.id_column}")
    twice = table["id"][table["id"].duplicated() & (table["id"].str.strip() != "")].unique()
    if len(twice):
        problems.append(f"{path}: {len(twice)} ids stand there more than once ({listing(twice)})")
    table["text"] = join_texts(table[list(p.text_columns)])
    titles = table["title"] if "title" in table else table[p.text_columns[0]]
    table["title"] = [clean_text(title) for title in titles]
    return table


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
    if filled.str.fullmatch(INTEGER).all():  # "007" is a name, and comes back as it is
        filled = filled.map(lambda label: int(label.partition(".")[0]))
    used: list[int | str] = sorted(set(filled))
    keys = filled.to_dict()
    known = _known_labels(used, named, p.num_classes)
    unknown = [label for label in used if label not in known]
    if len(used) == 1:
        problems.append(f"{p.train_csv}: every {p.label_column} is {str(used[0])[:40]}; there is nothing to "
                        "learn to tell apart with one class")  # fmt: skip
    elif unknown:
        rows = sum(keys[i] in set(unknown) for i in keys)
        why = "" if named else f", since num_classes is {p.num_classes}; the table has {len(used)} different ones"
        problems.append(f"{p.train_csv}: {rows} rows have an unknown {p.label_column} ({listing(unknown)}); "
                        f"known are {listing(known)}{why}")  # fmt: skip
    elif len(known) != p.num_classes:
        rarest = [f"{label} ({count} rows)" for label, count in filled.value_counts().tail(3).items()]
        problems.append(f"{p.train_csv} has {len(known)} classes, but num_classes is {p.num_classes}; "
                        f"{_twins(known)}set num_classes to {len(known)}, or mend the labels (the rarest: "
                        f"{listing(rarest)})")  # fmt: skip
    index = {label: k for k, label in enumerate(known)}
    return pd.Series([index.get(keys.get(i), 0) for i in train.index], index=train.index), known


def _twins(labels: list[int | str]) -> str:
    """Two labels that differ only in capitals or spaces, as a sentence's part; "" without any."""
    seen: dict[str, int | str] = {}
    for label in labels:
        other = seen.setdefault("".join(str(label).casefold().split()), label)
        if other != label:
            return f"{listing([repr(other), repr(label)])} differ only in capitals or spaces; "
    return ""


def _known_labels(used: list[int | str], named: dict[int | str, str], num_classes: int) -> list[int | str]:
    """What a label may be: labels.json's keys or names, 0 ... num_classes-1, or just those that are used."""
    if named:
        integers = all(isinstance(label, int) for label in used)
        return sorted(named) if integers else [named[key] for key in sorted(named)]
    sparse = len(used) == num_classes and used[-1] != num_classes - 1  # product codes such as 10, 40, 2905
    if all(isinstance(label, int) for label in used) and not sparse:
        return list(range(num_classes))
    return used


def _label_fixes(
    p: Params, train: pd.DataFrame, labels: list[int | str], classes: list[str], problems: list[str]
) -> pd.DataFrame | None:
    """What p.label_fixes says of the training table; what doesn't fit is added to `problems`."""
    if not p.label_fixes:
        return None
    try:
        fixes = read_fixes(resolve(p.label_fixes), train, labels, classes)
    except GoodsError as error:
        problems.append(str(error))
        return None
    if not any(fix_counts(fixes).values()):
        problems.append(f"label_fixes {p.label_fixes} neither changes a label nor drops a row; decide some, or leave "
                        "label_fixes out")  # fmt: skip
    return fixes[fixes["decision"].isin(STANDING)]


def _photo_problems(
    tables: dict[str, pd.DataFrame], cells: dict[str, list[Cell] | None], folders: dict[str, Path], needed: bool
) -> list[str]:
    """Photo folders that aren't there; paths that lead out of them."""
    problems = []
    inside = [name for name in tables if cells[name] and not any(isinstance(cell, str) for cell in cells[name])]
    for folder in dict.fromkeys(folder for name, folder in folders.items() if name not in inside):
        if needed and not folder.is_dir():
            problems.append(f"{folder} is a file; name the folder that the photos are in" if folder.is_file()
                            else f"there is no folder {folder} with photos")  # fmt: skip
    for name, table in tables.items():
        if cells[name] and (ids := outside(table["id"], cells[name], PhotoFolder(folders[name]))):
            problems.append(f"{name}: {len(ids)} products name photos by absolute paths or out of {folders[name]} "
                            f"(ids {listing(ids)}); name them from that folder on")  # fmt: skip
    return problems


def _report(
    tables: dict[str, pd.DataFrame],
    photos: pd.DataFrame,
    labels: list,
    classes: list[str],
    p: Params,
    fixes: pd.DataFrame | None = None,
) -> dict[str, Any]:
    bad, cut = photos[~usable(photos)], photos[usable(photos) & (photos["status"] != "ok")]
    counts = np.bincount(tables["train"]["label"], minlength=len(labels))
    report: dict[str, Any] = {
        name: {
            "rows": len(table),
            "empty_texts": int((table["text"] == "").sum()),
            "repeated_texts": int(table["text"].duplicated(keep=False).sum()),
            "repeated_photos": _repeated(pd.Series(photos_in(table, "sha"))),
            "bad_images": int((bad["table"] == name).sum()),
            "truncated_images": int((cut["table"] == name).sum()),
            "content": content_stamp(table, further_columns(p)),
        }
        for name, table in tables.items()
    }
    report["class_counts"] = dict(zip(classes, counts.tolist(), strict=True))
    report["warnings"] = []
    if fixes is not None:
        report["label_fixes"] = fix_counts(fixes)
        report["warnings"].append("{changed} labels are learned as label_fixes says, {dropped} rows not at all; scores "
                                  "go by the table's labels".format(**fix_counts(fixes)))  # fmt: skip
    if absent := [name for name, count in zip(classes, counts, strict=True) if not count]:
        report["warnings"].append(f"{len(absent)} classes have no training row: {listing(absent)}")
    if both := sorted(set(tables["train"]["id"]) & set(tables["test"]["id"])):
        report["warnings"].append(f"{len(both)} ids stand in train and in test: {listing(both)}")
    if len(bad) and not _lacking(photos).all():  # else _refuse_bad_photos says so
        kinds = bad["status"].str.partition(":")[0].value_counts()
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        report["warnings"].append(f"{len(bad)} photos can't be used ({what}; ids {listing(bad['id'])})")
    if len(cut):
        report["warnings"].append(f"{len(cut)} photos end too early and are read as far as they go, the rest of them "
                                  f"white (ids {listing(cut['id'])})")  # fmt: skip
    report["warnings"] += further_warnings(tables, p)
    return report


def _repeated(shas: pd.Series) -> int:
    """Products that share a photo with another one; of several photos, any."""
    each = shas.explode().replace("", np.nan).dropna().reset_index().drop_duplicates()
    return int(each.loc[each[0].duplicated(keep=False), "index"].nunique())


def report_table(goods: Goods) -> pd.DataFrame:
    """The counts of data_report.json, one column per table, named in words."""
    counts = pd.DataFrame({name: goods.report[name] for name in ("train", "test")}).drop(index="content")
    return counts.rename(index=lambda name: name.replace("_", " "))


def _refuse_bad_photos(goods: Goods, p: Params, folders: dict[str, Path], needed: bool) -> None:
    """Raises GoodsError where more photos are bad than p.bad_images and p.max_bad_images let pass."""
    photos, good = goods.photos, usable(goods.photos)
    if not good.all() and p.bad_images == "error":
        lines = [f"- {row.table} {row.id}: {row.status}" for row in photos[~good].head(10).itertuples()]
        raise GoodsError(f"{(~good).sum()} photos can't be used, and bad_images is 'error':\n" + "\n".join(lines))
    lacking = _lacking(photos)
    if lacking.all() and not needed:
        why = f"; {_cause(goods, 'train', folders)}" if folders["train"].is_dir() else ""
        said = f"no product has a photo: the texts alone are read, as this kind needs no more{why}"
        goods.report["warnings"].append(said)
        return
    for name, folder in folders.items():
        own = (photos["table"] == name) & (photos["status"] != NONE_NAMED)
        lost = photos[own & ~good]
        none = name == "train" and lacking[photos["table"] == name].all()
        if not none and len(lost) <= p.max_bad_images * own.sum():
            continue
        cause = _cause(goods, name, folders)
        if none:
            what = f"that {p.image_column} names" if p.image_column else "<id>.jpg"
            raise GoodsError(f"no training product has a photo {what} in {folder}; {cause}")
        raise GoodsError(f"{len(lost)} of {own.sum()} photos of {name} are missing or can't be read (ids "
                         f"{listing(lost['id'])}), more than max_bad_images {p.max_bad_images:g} lets pass; {cause}. "
                         "With max_bad_images=1 each is a white one")  # fmt: skip


def _lacking(photos: pd.DataFrame) -> pd.Series:
    return photos["status"].str.startswith(("missing", NONE_NAMED))


def _cause(goods: Goods, name: str, folders: dict[str, Path]) -> str:
    """Why photos of a table can't be used, most likely."""
    photos = goods.photos[goods.photos["table"] == name]
    lost = photos[~usable(photos) & (photos["status"] != NONE_NAMED)]
    missing = lost[_lacking(lost)]
    if 2 * len(missing) <= len(lost):
        return f"most often: {lost['status'].mode()[0]}" if len(lost) else "the column is empty"
    said = missing["status"].str.partition(": ")[2]
    names = said.where(said != "", missing["id"]).tolist()
    table, other = getattr(goods, name), folders["test" if name == "train" else "train"]
    return likely_cause(name, names, table[table["id"].isin(missing["id"])], folders[name], other)


def _write_findings(goods: Goods, p: Params) -> None:
    bad = goods.photos[goods.photos["status"] != "ok"]
    run = Run.of(p)
    if differ := run.check_tables({name: goods.report[name]["content"] for name in ("train", "test")}):
        raise OtherRunError(f"run '{p.run}' was made with other goods: {listing(differ)} changed since. Name the "
                            f"tables and photos that it was made with, or {other_name(run.folder)}")  # fmt: skip
    write_json(run.labels, {"labels": goods.labels, "classes": goods.classes})
    keep_fixes(run, p.label_fixes)
    write_sheet(run.bad_images, bad[["table", "id", "image", "status"]])
    write_json(run.data_report, goods.report)


def content_stamp(table: pd.DataFrame, further: Sequence[str] = ()) -> str:
    """A hash of a table's ids, texts, photos, labels and further columns, in their order."""
    columns = [name for name in dict.fromkeys(("id", "text", "sha", "shas", "label", *further)) if name in table]
    return hashlib.sha256(table[columns].to_csv(index=False).encode()).hexdigest()[:32]


def all_products(goods: Goods) -> pd.DataFrame:
    """The training products, then the test products."""
    return pd.concat([goods.train, goods.test], ignore_index=True)
