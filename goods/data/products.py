"""A table of products to classify, of any length: checked as a whole, then read in stretches."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from goods.data.photos import find_photos
from goods.data.tables import listing
from goods.errors import GoodsError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
CHECKED_ROWS = 65_536  # read at once where only ids are looked at


@dataclass(frozen=True)
class ProductTable:
    """A table that has been checked: its rows, and the columns that are read, all as text."""

    path: Path
    columns: tuple[str, ...]
    rows: int

    def stretches(self, rows: int) -> Iterator[pd.DataFrame]:
        """The table in stretches of so many rows, the last one shorter; empty cells are ""."""
        return _stretches(self.path, self.columns, rows)


def check_products(path: Path, id_column: str, text_columns: Sequence[str], more: Sequence[str] = ()) -> ProductTable:
    """The table at `path`: .csv, .tsv or .parquet; `title` is read where it has one.

    Raises GoodsError, with all that is wrong with it: columns that are not there, ids that are empty or stand there
    twice, rows of another width, no row at all, another encoding than UTF-8.
    """
    if path.suffix not in (*SEPARATORS, ".parquet"):
        raise GoodsError(f"{path} must end in .csv, .tsv or .parquet")
    if not path.is_file():
        raise GoodsError(f"there is no table {path}")
    needed, header = list(dict.fromkeys([id_column, *text_columns, *more])), _header(path)
    if missing := [name for name in needed if name not in header]:
        raise GoodsError(f"{path} lacks {listing(missing)}, which the run was trained on; it has {listing(header)}")
    hashes, empty, rows = [], 0, 0
    for stretch in _stretches(path, (id_column,), CHECKED_ROWS):
        ids = stretch[id_column][stretch[id_column].str.strip() != ""]
        empty, rows = empty + len(stretch) - len(ids), rows + len(stretch)
        hashes.append(pd.util.hash_array(ids.to_numpy(), categorize=False))  # 8 bytes an id, whatever it is like
    problems = [f"{empty} rows have no {id_column}"] if empty else []
    if not rows:
        problems.append("it has no rows")
    elif count := rows - empty - len(np.unique(np.concatenate(hashes))):
        problems.append(f"{count} rows have an id that stands there already ({listing(_repeated(path, id_column))})")
    if problems:
        raise GoodsError(f"{path} can't be used: {'; '.join(problems)}")
    title = ["title"] if "title" in header else []
    return ProductTable(path, tuple(dict.fromkeys([*needed, *title])), rows)


def _repeated(path: Path, id_column: str, most: int = 6) -> list[str]:
    """Some ids that stand in the table more than once; no more than that many are looked for."""
    seen: set[str] = set()
    found: dict[str, None] = {}
    for stretch in _stretches(path, (id_column,), CHECKED_ROWS):
        for name in stretch[id_column]:
            if name in seen and name.strip():
                found[name] = None
            seen.add(name)
        if len(found) >= most:
            break
    return list(found)


def _header(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return list(_parquet(path).schema_arrow.names)
    with _CsvRows(path) as rows:
        return next(rows, [])


def _stretches(path: Path, columns: Sequence[str], rows: int) -> Iterator[pd.DataFrame]:
    if path.suffix == ".parquet":
        left: list[pd.DataFrame] = []
        for batch in _parquet(path).iter_batches(rows, columns=list(dict.fromkeys(columns))):
            left.append(batch.to_pandas())  # of at most `rows`: row groups may end before
            if sum(map(len, left)) >= rows:
                whole = pd.concat(left, ignore_index=True)
                yield _as_text(whole.iloc[:rows])
                left = [whole.iloc[rows:]]
        if sum(map(len, left)):
            yield _as_text(pd.concat(left, ignore_index=True))
        return
    with _CsvRows(path) as lines:
        header = next(lines)
        places = [header.index(name) for name in columns]
        while stretch := list(islice(lines, rows)):
            yield pd.DataFrame({name: [row[at] for row in stretch] for name, at in zip(columns, places, strict=True)},
                               dtype=object)  # fmt: skip


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except Exception as error:  # pyarrow raises anything on damaged bytes
        raise GoodsError(f"{path} is not a Parquet table: {str(error).splitlines()[0]}") from None


def _as_text(table: pd.DataFrame) -> pd.DataFrame:
    """All cells as text, "" where there is nothing."""
    table = table.astype(object).where(table.notna(), "").reset_index(drop=True)
    return table.map(lambda cell: cell if isinstance(cell, str) else str(cell)).astype(object)


class _CsvRows:
    """The rows of a CSV or TSV, checked for their width, with errors as sentences; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open(encoding="utf-8-sig", newline="")

    def __enter__(self) -> Iterator[list[str]]:
        return self._checked()

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def _checked(self) -> Iterator[list[str]]:
        width, reader = 0, csv.reader(self.file, delimiter=SEPARATORS[self.path.suffix])
        try:
            for row in reader:
                if not row or (len(row) == 1 and width > 1 and not row[0].strip()):
                    continue  # an empty line
                if width and len(row) != width:
                    raise GoodsError(f"{self.path}: the row that ends on line {reader.line_num} has {len(row)} cells, "
                                     f"and the header {width}")  # fmt: skip
                width = width or len(row)
                yield row
        except UnicodeDecodeError as error:
            raise GoodsError(
                f"{self.path} is not UTF-8 ({error.reason} after line {reader.line_num}); save it as UTF-8"
            ) from None
        except csv.Error as error:
            raise GoodsError(f"{self.path} is no table ({error}, line {reader.line_num})") from None


# Its photos ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhotoFinder:
    """Where the photos of products are: by their ids in a folder, or by the paths in a column of the table.

    folder: of the photos, or to which the paths are relative. found: photos of the folder by their names.
    """

    folder: Path
    column: str | None
    found: Mapping[str, str]

    def of(self, products: pd.DataFrame, id_column: str) -> list[str]:
        """(n,) paths of the products' photos; "" where there is none."""
        if self.column:
            return [str(self.folder / cell) if cell.strip() else "" for cell in products[self.column]]
        return [self.found.get(name, "") for name in products[id_column]]


def find_product_photos(table: ProductTable, id_column: str, folder: Path | None, column: str | None) -> PhotoFinder:
    """The photos of a table; raises GoodsError where not one of its products has a photo there."""
    if folder and not folder.is_dir():
        raise GoodsError(f"there is no folder {folder} with photos")
    finder = PhotoFinder(folder or table.path.parent, column, {} if column or not folder else find_photos(folder))
    for stretch in table.stretches(CHECKED_ROWS):
        if any(path and (not column or Path(path).is_file()) for path in finder.of(stretch, id_column)):
            return finder
    inner = sorted(path for path in finder.folder.iterdir() if path.is_dir())
    where = (
        f"a file that column {column} names, below {finder.folder}"
        if column
        else f"a photo <{id_column}>.jpg in {folder}"
    )
    hint = f"; did you mean {inner[0]}?" if inner and not finder.found and not column else ""
    raise GoodsError(f"no product of {table.path} has {where}{hint}")
