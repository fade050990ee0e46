"""The one reader of tables, all cells as text: csv, tsv and other separators, plain, .gz or in a .zip, and Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
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
DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError)  # RuntimeError: locked
csv.field_size_limit(2**31 - 1)  # descriptions may be longer than its 128 KiB


def read_cells(path: Path, problems: list[str], id_column: str = "id") -> pd.DataFrame | None:
    """The table as text, nothing but an empty cell empty; what is wrong with it is added to `problems`, and None comes.

    A list of texts in Parquet comes as one cell, with | between them; photos inside Parquet as empty cells (see
    goods.data.photo_files.unpack_photos). `id_column` helps to find out what separates the cells.
    """
    pieces = table_pieces(path)
    if not pieces:
        problems.append(f"there is no {path}" + _other_tables(path))
        return None
    found = [_parquet(piece, problems) if is_parquet(piece) else _separated(piece, problems, id_column)
             for piece in pieces]  # fmt: skip
    tables = [table for table in found if table is not None]
    if len(tables) < len(pieces):
        return None
    if other := [piece for piece, table in zip(pieces, tables, strict=True) if {*table} != {*tables[0]}]:
        problems.append(f"{other[0]} has other columns than {pieces[0]}: {listing(tables[pieces.index(other[0])])}")
        return None
    return pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]


def rows_of(path: Path, id_column: str = "id") -> int | None:
    """Rows of a table, None where it can't be read."""
    try:
        pieces = table_pieces(path)
        return sum(pq.read_metadata(f).num_rows if is_parquet(f) else _count(f, id_column) for f in pieces) or None
    except (*DAMAGED, ValueError):  # read_cells says what is wrong with a table; a plan does without
        return None


def _count(path: Path, id_column: str) -> int:
    separator = separator_of(path, id_column)
    with open_bytes(path) as file:
        return len(pd.read_csv(file, sep=separator, usecols=[0], dtype=str, encoding="utf-8-sig"))


# Text ----------------------------------------------------------------------------------------------------------------


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a table, unpacked where they are packed: the file tells, not its name.

    Raises GoodsError for a zip file without exactly one table.
    """
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(file) as unpacked:
                yield unpacked
        elif start == b"PK\x03\x04":
            names = tables_in_zip(path)
            if len(names) != 1:
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


def _separated(path: Path, problems: list[str], id_column: str) -> pd.DataFrame | None:
    try:
        separator = separator_of(path, id_column)
        if separator != ("\t" if ".tsv" in path.name.lower() else ","):
            print(f"{path}: its cells are separated by {SPOKEN.get(separator, repr(separator))}", flush=True)
        with open_bytes(path) as file:
            # "NA" and "null" are words here: nothing but an empty cell is empty.
            table = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        problem = _lost_rows(path, separator, list(table.columns), id_column)
    except UnicodeDecodeError:
        problem = f"{path} is not UTF-8 ({_first_bad_byte(path)}); save it as UTF-8"
    except pd.errors.EmptyDataError:
        problem = f"{path} is empty"
    except pd.errors.ParserError as error:
        problem = _lost_rows(path, separator, None, id_column)
        problem = problem or f"{path} is not a CSV table: {str(error).strip()}"
    except GoodsError as error:
        problem = str(error)
    except DAMAGED as error:
        problem = f"{path} can't be read: {error or type(error).__name__}"
    if problem:
        problems.append(problem)
        return None
    return table.astype(object)


def _lost_rows(path: Path, separator: str, columns: list[str] | None, id_column: str) -> str:
    with open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        problem = looked_through(lines, separator, columns, id_column)
    return f"{path}{problem}" if problem else ""


def _first_bad_byte(path: Path) -> str:
    with open_bytes(path) as file:
        data = file.read()  # whole: pandas counts from the start of its buffer
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"byte {data[error.start]:#04x} on line {line}"
    return "it changed while it was read"


def _other_tables(path: Path) -> str:
    if "sample" in path.parts:
        return "; the embedded sample is made by: python -m goods.data.sample"
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    others = sorted(f.name for f in there if f.name.lower().endswith(TABLE_ENDINGS))
    return f"; {path.parent} has {listing(others)}" if others else "; set data_dir to the competition's folder"


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


def _parquet(path: Path, problems: list[str]) -> pd.DataFrame | None:
    try:
        file = pq.ParquetFile(path)
        photos = [field.name for field in file.schema_arrow if holds_photos(field.type)]
        table = file.read([field.name for field in file.schema_arrow if field.name not in photos])
        cells = {name: _as_text(table[name]) for name in table.column_names}
        rows = file.metadata.num_rows
    except Exception as error:  # pyarrow raises anything on damaged bytes
        problems.append(f"{path} can't be read as Parquet: {str(error).splitlines()[0] or type(error).__name__}")
        return None
    cells |= {name: [""] * rows for name in photos}
    return pd.DataFrame({field.name: cells[field.name] for field in file.schema_arrow}, dtype=object)


def _as_text(column: pa.ChunkedArray) -> list[str]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return ["|".join(str(part) for part in cell or () if part is not None) for cell in column.to_pylist()]
    if pa.types.is_nested(kind):
        return ["" if cell is None else json.dumps(cell, default=_said, ensure_ascii=False)
                for cell in column.to_pylist()]  # fmt: skip
    return ["" if cell is None else cell for cell in column.cast(pa.string()).to_pylist()]


def _said(value: Any) -> str:
    return str(value)
