"""Where a folder of goods has its tables and photos: their usual names. Light: no pandas, no torch."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection
from pathlib import Path

from goods.errors import ParameterError
from goods.files import resolve

PARTS = ("train", "test")
TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".pq", ".csv.gz", ".tsv.gz", ".csv.zip", ".tsv.zip")  # the likeliest first
PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".jfif", ".avif", ".gif", ".bmp", ".tif", ".tiff")
VECTOR_ENDINGS = (".npz", ".parquet", ".pq", ".safetensors")
ID_ENDINGS = (".ids.json", ".ids.txt")  # of the file beside vectors in safetensors that has no ids in it
IMAGE_FOLDERS = ("{0}_images/{0}_images", "{0}_images", "images/{0}", "{0}/{0}", "{0}", "images/image_{0}", "image_{0}",
                 "images/{0}_images", "{0}_photos", "images", "photos")  # fmt: skip


def find_data(data_dir: str, given: Collection[str]) -> dict[str, str]:
    """train_csv, test_csv and the two photo folders below `data_dir` by their usual names, those `given` left out.

    A table in pieces (train-00000-of-00002.parquet) is named by a pattern. Raises ParameterError where there is no
    such folder, or more than one such table.
    """
    base = resolve(data_dir)
    if not base.is_dir():
        made = "the embedded sample is made by: python -m goods.data.sample"
        hint = made if "sample" in base.name else "name the folder that holds train.csv, test.csv and the photos"
        raise ParameterError(f"data_dir {base} is not a folder; {hint}")
    # Tables in the folder itself are a whole: a test.csv of another competition below it must not fill a gap.
    homes = [base]
    if not any(_table_in(base, part) for part in PARTS):
        homes = sorted(folder for folder in base.iterdir() if folder.is_dir())
    found = {}
    for part in PARTS:
        tables = [table for home in homes if (table := _table_in(home, part))]
        if len(tables) > 1 and f"{part}_csv" not in given:
            folders = ", ".join(str(table.parent) for table in tables)
            raise ParameterError(f"data_dir {base} holds more than one {tables[0].name}; name one of its folders: "
                                 f"{folders}")  # fmt: skip
        table = tables[0] if tables else base / f"{part}.csv"
        found |= {f"{part}_csv": str(table), f"{part}_images_dir": str(_images_by(table, base, part))}
    return {name: path for name, path in found.items() if name not in given}


def _table_in(folder: Path, part: str) -> Path | None:
    """The table of that name in a folder; of several kinds the likeliest."""
    for ending in TABLE_ENDINGS:
        if (folder / f"{part}{ending}").is_file():
            return folder / f"{part}{ending}"
    packed = folder / f"{part}.zip"
    if packed.is_file() and len(tables_in_zip(packed)) == 1:  # else these are the photos
        return packed
    pieces = sorted(folder.glob(f"{part}-*-of-*.parquet"))
    return folder / f"{part}-*-of-*.parquet" if len(pieces) > 1 else next(iter(pieces), None)


def _images_by(table: Path, base: Path, part: str) -> Path:
    """The folder of photos beside a table; in data_dir itself where there is none."""
    names = [name.format(part) for name in IMAGE_FOLDERS]
    places = (home / name for home in dict.fromkeys((table.parent, base)) for name in names)
    return next((place for place in places if place.is_dir()), table.parent / names[0])


def tables_in_zip(path: Path) -> list[str]:
    """The names of the tables in a zip file; none in one that is damaged."""
    try:
        with zipfile.ZipFile(path) as packed:
            names = packed.namelist()
    except (OSError, zipfile.BadZipFile):
        return []
    names = [name for name in names if not name.startswith("__MACOSX") and not Path(name).name.startswith(".")]
    return [name for name in names if name.lower().endswith((".csv", ".tsv", ".txt"))]


def table_pieces(path: Path) -> list[Path]:
    """The files of a table: one, or those that a pattern such as train-*.parquet names; none where there are none."""
    if "*" in path.name:
        return sorted(path.parent.glob(path.name))
    return [path] if path.is_file() else []


def names_vectors(path: str) -> bool:
    """Whether a path names a file of vectors, and no model directory."""
    place = resolve(path)
    return place.is_file() or (path.lower().endswith(VECTOR_ENDINGS) and not place.is_dir())


def vector_pieces(path: str | Path) -> list[Path]:
    """The files that a path of vectors means: one, or those that a pattern such as vectors-*.npz names."""
    return table_pieces(resolve(path)) or [resolve(path)]


def ids_beside(path: Path) -> Path | None:
    """The file of ids beside one of vectors, x.ids.json or x.ids.txt beside x.safetensors, where there is one."""
    return next((f for ending in ID_ENDINGS if (f := path.with_suffix(ending)).is_file()), None)


def holds_tables(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is one of goods: it has a training and a test table."""
    form = r"(train|test)(-\d+-of-\d+)?\.(csv|tsv|parquet|pq)(\.gz|\.zip)?"
    return {found[1] for name in names if (found := re.fullmatch(form, name))} == set(PARTS)
