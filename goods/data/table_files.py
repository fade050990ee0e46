"""The one reader of tables, all cells as text: csv, tsv and other separators, plain, .gz or in a .zip, and Parquet."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from goods.data.lost_rows import looked_through
from goods.errors import GoodsError, listing
from goods.places import TABLE_ENDINGS, table_pieces, tables_in_zip

HEAD_BYTES = 1 << 16  # of a table, to see what separates its cells
SEPARATORS = ",;\t|:^~#"
SPOKEN = {"\t": "tabs"}
# RuntimeError: a zip file that is locked, or packed in a way that zipfile doesn't know.
DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError)
csv.field_size_limit(2**31 - 1)  # descriptions may be longer than its 128 KiB
AS_CSV = "save it as CSV"
FROM_JSON = "save it as Parquet: pandas.read_json(..., dtype=False).to_parquet(...), with lines=True for JSON Lines"
UNREAD = {".xlsx": AS_CSV, ".xls": AS_CSV, ".json": FROM_JSON, ".jsonl": FROM_JSON, ".zip": "unzip it"}
CHECKED_ROWS = 65_536  # read at once where a table is looked through


def read_cells(path: Path, problems: list[str], id_column: str = "id") -> pd.DataFrame | None:
    """The whole table, as `stretches` reads it; what is wrong with it is added to `problems`, and None comes."""
    try:
        columns = check_cells(path, id_column)
        tables = list(stretches(path, CHECKED_ROWS, id_column))
    except GoodsError as error:
        problems.append(str(error))
        return None
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns, dtype=object)


def check_cells(path: Path, id_column: str) -> list[str]:
    """The columns of a table, which is looked through once: `stretches` will give each of its rows.

    Raises GoodsError where it isn't there or damaged, where a stray quote swallows rows or some have more or fewer
    cells than others, and where its pieces have other columns.
    """
    if path.is_dir():
        raise GoodsError(f"{path} is a folder; name the table in it{_other_tables(path / 'train.csv')}")
    if not (pieces := table_pieces(path)):
        raise GoodsError(f"there is no {path}" + _other_tables(path))
    found = [(list(_fields(piece)) if is_parquet(piece) else _checked(piece, id_column)) for piece in pieces]
    if other := [number for number, columns in enumerate(found) if {*columns} != {*found[0]}]:
        raise GoodsError(f"{pieces[other[0]]} has other columns than {pieces[0]}: {listing(found[other[0]])}")
    return found[0]


def stretches(
    path: Path, rows: int, id_column: str, columns: Sequence[str] | None = None, photos: bool = False
) -> Iterator[pd.DataFrame]:
    """A table in stretches of `rows`, the last one shorter, as text: nothing but an empty cell is empty.

    columns: those that are read; None for all. A list of texts in Parquet comes as one cell, with | between them;
    photos inside Parquet as empty cells, or with `photos` as they are. `id_column` helps to find out what separates
    the cells. Raises GoodsError for what can't be read.
    """
    left = []
    for piece in table_pieces(path):
        read = _parquet(piece, rows, columns, photos) if is_parquet(piece) else _text(piece, rows, columns, id_column)
        for table in read:
            left.append(table)
            if sum(map(len, left)) >= rows:
                whole = pd.concat(left, ignore_index=True)
                yield whole.iloc[:rows]
                left = [whole.iloc[rows:]]
    if sum(map(len, left)):
        yield pd.concat(left, ignore_index=True)


def rows_of(path: Path, id_column: str = "id") -> int | None:
    """Rows of a table, None where it can't be read."""
    try:
        return sum(pq.read_metadata(f).num_rows if is_parquet(f) else _count(f, id_column)
                   for f in table_pieces(path)) or None  # fmt: skip
    except (OSError, ValueError):  # check_cells says what is wrong with a table; a plan does without
        return None


def _count(path: Path, id_column: str) -> int:
    return sum(map(len, _text(path, CHECKED_ROWS, [0], id_column)))


# Text ----------------------------------------------------------------------------------------------------------------


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a table, unpacked where they are packed: the file tells, not its name.

    A first line sep=; is left out, which Excel reads. Raises GoodsError for an Excel file, and for a zip file without
    exactly one table.
    """
    with _unpacked(path) as file:
        if not file.readline(16).removeprefix(codecs.BOM_UTF8).startswith(b"sep="):
            file.seek(0)
        yield file


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(file) as unpacked:
                yield unpacked
        elif start == b"\xd0\xcf\x11\xe0":
            raise GoodsError(f"{path} is an Excel file; {AS_CSV}")
        elif start == b"PK\x03\x04":
            names = tables_in_zip(path)
            if len(names) != 1:
                if "xl/workbook.xml" in zipfile.ZipFile(file).namelist():
                    raise GoodsError(f"{path} is an Excel file; {AS_CSV}")
                raise GoodsError(f"{path} holds {len(names)} tables, and one is needed; unzip it and name the table")
            with zipfile.ZipFile(file) as packed, packed.open(names[0]) as unpacked:
                yield unpacked
        else:
            yield file


def separator_of(path: Path, id_column: str) -> str:
    """What separates a table's cells: comma (tab in a .tsv) where that finds `id_column`, else as csv.Sniffer says."""
    with open_bytes(path) as file:
        head = file.read(HEAD_BYTES).decode("utf-8-sig", errors="replace")
    usual = "\t" if ".tsv" in path.name.lower() else ","
    lines = [line for line in head.splitlines() if line.strip()][:20]
    candidates = [usual]
    with suppress(csv.Error):
        candidates.append(csv.Sniffer().sniff("\n".join(lines), SEPARATORS).delimiter)
    headers = {sign: next(csv.reader(lines[:1], delimiter=sign), []) for sign in (*candidates, *SEPARATORS)}
    named = [sign for sign, cells in headers.items() if any(_plain(cell) == _plain(id_column) for cell in cells)]
    return named[0] if named and len(headers[named[0]]) > 1 else max(headers, key=lambda sign: len(headers[sign]))


def _plain(name: str) -> str:
    return name.strip().casefold()


@contextmanager
def _in_sentences(path: Path) -> Iterator[None]:
    """What reading a table of text may raise, as GoodsErrors."""
    try:
        yield
    except UnicodeDecodeError:
        raise GoodsError(f"{path} is not UTF-8 ({_first_bad_byte(path)}); save it as UTF-8") from None
    except pd.errors.EmptyDataError:
        raise GoodsError(f"{path} is empty") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise GoodsError(f"{path} is not a CSV table: {str(error).strip()}") from None
    except DAMAGED as error:
        raise GoodsError(f"{path} can't be read: {error or type(error).__name__}") from None


def _checked(path: Path, id_column: str) -> list[str]:
    """The columns of a table of text; raises GoodsError where not each of its rows would be read as one."""
    with _in_sentences(path):
        with open_bytes(path) as file:
            if re.match(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"', file.read(HEAD_BYTES)):
                raise GoodsError(f"{path} is JSON; {FROM_JSON}")
        separator = separator_of(path, id_column)
        if separator != ("\t" if ".tsv" in path.name.lower() else ","):
            print(f"{path}: its cells are separated by {SPOKEN.get(separator, repr(separator))}", flush=True)
        with open_bytes(path) as file:
            columns = list(pd.read_csv(file, sep=separator, encoding="utf-8-sig", nrows=0))
        with open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
            if problem := looked_through(lines, separator, columns, id_column):
                raise GoodsError(f"{path}{problem}")
    return columns


def _text(path: Path, rows: int, columns: Sequence[str | int] | None, id_column: str) -> Iterator[pd.DataFrame]:
    with _in_sentences(path), open_bytes(path) as file:
        # "NA" and "null" are words here: nothing but an empty cell is empty.
        tables = pd.read_csv(file, sep=separator_of(path, id_column), dtype=str, keep_default_na=False,
                             encoding="utf-8-sig", usecols=columns, chunksize=rows)  # fmt: skip
        for table in tables:
            yield table.astype(object)


def _first_bad_byte(path: Path) -> str:
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"byte {line[error.start]:#04x} on line {number}"
    return "it changed while it was read"


def _other_tables(path: Path) -> str:
    if "sample" in path.parts:
        return "; the embedded sample is made by: python -m goods.data.sample"
    there = sorted(f.name for f in path.parent.iterdir()) if path.parent.is_dir() else []
    others = [name for name in there if name.lower().endswith(TABLE_ENDINGS)]
    left = [name for name in there if name not in [*others, "labels.json"] and Path(name).suffix.lower() in UNREAD]
    how = "; ".join(dict.fromkeys(UNREAD[Path(name).suffix.lower()] for name in left))
    named = f"; {path.parent} has {listing(others + left)}{how and ': '}{how}"
    return named if others or left else "; set data_dir to the competition's folder"


# Parquet -------------------------------------------------------------------------------------------------------------


def is_parquet(path: Path) -> bool:
    """Whether a file is a Parquet table, whatever it is called."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def holds_photos(kind: pa.DataType) -> bool:
    """Whether a Parquet column holds photos: bytes, Hugging Face's struct of bytes and path, or lists of these."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return holds_photos(kind.value_type)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _fields(path: Path) -> dict[str, pa.DataType]:
    """The columns of a Parquet table and what they hold; raises GoodsError for damaged bytes."""
    try:
        return {field.name: field.type for field in pq.read_schema(path)}
    except Exception as error:  # pyarrow raises anything on damaged bytes
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> GoodsError:
    return GoodsError(f"{path} can't be read as Parquet: {next(iter(str(error).splitlines()), type(error).__name__)}")


def _parquet(path: Path, rows: int, columns: Sequence[str] | None, photos: bool) -> Iterator[pd.DataFrame]:
    kinds = {name: kind for name, kind in _fields(path).items() if columns is None or name in columns}
    left_out = {name for name, kind in kinds.items() if holds_photos(kind) and not photos}
    try:
        for batch in pq.ParquetFile(path).iter_batches(rows, columns=[name for name in kinds if name not in left_out]):
            cells = {name: [""] * len(batch) if name in left_out else batch[name].to_pylist() if holds_photos(kind)
                     else _as_text(batch[name]) for name, kind in kinds.items()}  # fmt: skip
            yield pd.DataFrame({name: pd.Series(of, dtype=object) for name, of in cells.items()})
    except Exception as error:  # pyarrow raises anything on damaged bytes
        raise _damaged(path, error) from None


def _as_text(column: pa.Array) -> list[str]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return ["|".join(str(part) for part in cell or () if part is not None) for cell in column.to_pylist()]
    if pa.types.is_nested(kind):
        return ["" if cell is None else json.dumps(cell, default=_said, ensure_ascii=False)
                for cell in column.to_pylist()]  # fmt: skip
    column = column if pa.types.is_boolean(kind) else column.cast(pa.string())  # True and False, as in pandas' CSV
    return ["" if cell is None else str(cell) for cell in column.to_pylist()]


def _said(value: Any) -> str:
    return str(value)
