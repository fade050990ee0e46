"""Vectors of products that were made elsewhere: files of a matrix with ids, found by id in whatever order they stand.

.npz, Parquet and safetensors; a file is taken for what it holds. Nothing is unpickled.
"""

from __future__ import annotations

import functools
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from goods.errors import GoodsError, listing
from goods.places import ID_ENDINGS, VECTOR_ENDINGS, ids_beside, vector_pieces

IDS = ("ids", "id")  # what the ids are called, beside the table's own id column
PARTS = ("image", "text", "extra")  # the matrices that embed.ipynb writes
AS_TEXT = "save them as text: np.savez(path, ids=np.array(ids, dtype=str), embeddings=vectors)"
CHECKED = 8192  # vectors that are looked at together
Arrays = dict[str, np.ndarray]  # by name: (n, dim)


@dataclass(frozen=True)
class Matrix:
    """Vectors with ids: arrays[name] is (n, dim), the row of a product row_of[id]; `name` says in which files."""

    name: str
    row_of: dict[str, int]
    arrays: Arrays

    @property
    def dim(self) -> int:
        """How many numbers a product has, those of all arrays."""
        return sum(values.shape[1] for values in self.arrays.values())

    def lacking(self, ids: Sequence[str]) -> list[str]:
        """Those of the ids that have no vector."""
        return [name for name in ids if name not in self.row_of]

    def foreign(self, ids: Sequence[str]) -> int:
        """How many vectors are of other products than these."""
        return len(self.row_of) - len(self.row_of.keys() & set(ids))

    def of(self, ids: Sequence[str]) -> Arrays:
        """{name: (n, dim)} in fp32 of these products, in their order.

        Raises GoodsError, with ids and counts, where some have no vector, or one that isn't all numbers.
        """
        self.check_ids({"": ids})
        found = self._taken(ids)
        self._refuse(_not_finite(found, ids), len(ids))
        return found

    def _taken(self, ids: Sequence[str]) -> Arrays:
        rows = [self.row_of[name] for name in ids]
        with np.errstate(over="ignore"):  # of 64 bits, which _refuse says
            return {name: values[rows].astype(np.float32) for name, values in self.arrays.items()}

    def _refuse(self, bad: Sequence[str], count: int) -> None:
        if bad:
            raise GoodsError(f"{len(bad)} of {count} products have a vector in {self.name} that is not all numbers "
                             f"(ids {listing(bad)}): nan, infinite or too large; make theirs again, in fp32 where 16 "
                             "bits overflowed")  # fmt: skip

    def check_ids(self, tables: Mapping[str, Sequence[str]]) -> None:
        """Raises GoodsError where products of some tables, ids by what a table is called, have no vector."""
        lost = {part: self.lacking(ids) for part, ids in tables.items()}
        if some := {part: names for part, names in lost.items() if names}:
            counts = (f"{len(names)} of {len(tables[part])} {part} products".replace("  ", " ")
                      for part, names in some.items())  # fmt: skip
            ids = [name for names in some.values() for name in names]
            raise GoodsError(f"{' and '.join(counts)} have no vector in {self.name} (ids {listing(ids)})"
                             f"{self._hint(ids)}; add theirs, or name all files that hold them")  # fmt: skip

    def check(self, tables: Mapping[str, Sequence[str]]) -> None:
        """Raises GoodsError where products of some tables have no vector, or one that isn't all numbers; says how many
        vectors are of others."""
        self.check_ids(tables)
        ids = [name for own in tables.values() for name in own]
        parts = [ids[start : start + CHECKED] for start in range(0, len(ids), CHECKED)]
        self._refuse([name for part in parts for name in _not_finite(self._taken(part), part)], len(ids))
        if foreign := self.foreign(ids):
            print(f"{self.name}: {foreign:,} of {len(self.row_of):,} vectors are of products that the tables lack, and "
                  "take no part", flush=True)  # fmt: skip

    def joined(self, ids: Sequence[str]) -> np.ndarray:
        """(n, dims): as `of`, all side by side."""
        return np.concatenate(list(self.of(ids).values()), axis=1)

    def _hint(self, lost: Sequence[str]) -> str:
        """What the ids that are there look like, where they are nearly those that are not."""
        plain = {_plain(name): name for name in self.row_of}
        near = [(plain[key], name) for name in lost if (key := _plain(name)) in plain]
        if not near:
            return f"; there are such as {listing(list(self.row_of), 2)}" if len(lost) > len(self.row_of) / 2 else ""
        own, wanted = near[0]
        zeros = wanted.startswith("0") and not own.startswith("0")
        return f"; it has {own!r} for {wanted!r}" + (" (numbers lose their zeros: keep ids as text)" if zeros else "")


def _not_finite(arrays: Arrays, ids: Sequence[str]) -> list[str]:
    """The ids of rows that aren't all numbers."""
    finite = np.all([np.isfinite(values).all(1) for values in arrays.values()], axis=0)
    return [ids[row] for row in np.flatnonzero(~finite)]


def _plain(name: str) -> str:
    """An id without what often changes on the way: zeros before it, capitals, a photo's ending, spaces."""
    return re.sub(r"(\.0|\.[a-z]{3,4})$", "", name.strip().casefold()).lstrip("0")


def read_matrix(files: Sequence[str | Path], id_column: str = "id") -> Matrix:
    """The vectors in these files, which are pieces of one matrix; read once for as long as they don't change.

    Raises GoodsError, with all that is wrong: a file that is missing, damaged, or holds no matrix with ids, ids that
    are empty or stand there twice, pieces that don't fit.
    """
    paths = tuple(piece for path in files for piece in vector_pieces(path))
    if missing := [path for path in paths if not path.is_file()]:
        there = sorted(f.name for f in missing[0].parent.glob("*") if f.suffix in VECTOR_ENDINGS)
        raise GoodsError(f"there is no {listing(missing)} with vectors"
                         + (f"; {missing[0].parent} has {listing(there)}" if there else ""))  # fmt: skip
    beside = [f for path in paths if (f := ids_beside(path))]
    return _read(paths, id_column, tuple((s.st_size, s.st_mtime_ns) for f in (*paths, *beside) for s in [f.stat()]))


@functools.lru_cache(maxsize=4)
def _read(paths: tuple[Path, ...], id_column: str, _: tuple) -> Matrix:
    pieces = [_piece(path, id_column) for path in paths]
    first = {name: values.shape[1] for name, values in pieces[0][1].items()}
    for path, (_ids, arrays) in zip(paths, pieces, strict=True):
        if (shape := {name: values.shape[1] for name, values in arrays.items()}) != first:
            raise GoodsError(f"{path} holds other vectors than {paths[0]}: {_shown(shape)}, and not {_shown(first)}; "
                             "files that are named together are pieces of one matrix")  # fmt: skip
    ids = [name for own, _arrays in pieces for name in own]
    row_of = {name: row for row, name in enumerate(ids)}
    name = listing([path.name for path in paths]) if len(paths) > 1 else str(paths[0])
    if len(row_of) < len(ids):
        twice = pd.Series(ids)
        twice = twice[twice.duplicated()].unique().tolist()
        raise GoodsError(f"{len(twice)} ids stand more than once in {name} ({listing(twice)}); leave one vector each")
    arrays = {part: np.concatenate([own[part] for _ids, own in pieces]) if len(pieces) > 1 else pieces[0][1][part]
              for part in first}  # fmt: skip
    return Matrix(name, row_of, arrays)


def _shown(dims: dict[str, int]) -> str:
    return ", ".join(f"{name} of {dim} dimensions" for name, dim in dims.items())


def _piece(path: Path, id_column: str) -> tuple[list[str], Arrays]:
    """The ids and the matrices of one file."""
    with path.open("rb") as file:
        start = file.read(4)
    read = _npz if start[:2] == b"PK" else _parquet if start == b"PAR1" else _safetensors
    try:
        ids, arrays = read(path, id_column)
    except GoodsError:
        raise
    except Exception as error:  # each library has its own for damaged bytes
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise GoodsError(f"{path} can't be read as {', '.join(VECTOR_ENDINGS)}: {said[:200]}") from None
    ids = [name.strip() for name in ids]
    if empty := sum(not name for name in ids):
        raise GoodsError(f"{path}: {empty} of {len(ids)} vectors have no id")
    for name, values in arrays.items():
        if values.ndim != 2 or not _holds(values, np.floating, np.integer) or not values.shape[1]:
            raise GoodsError(f"{path}: {name} has the shape {values.shape} of {values.dtype}; a matrix of numbers is "
                             "needed, one row per id")  # fmt: skip
        if len(values) != len(ids):
            raise GoodsError(f"{path}: {name} has {len(values)} rows, and there are {len(ids)} ids; one each is needed")
    if not arrays or not ids:
        raise GoodsError(f"{path} holds no vectors")
    return ids, _named(path, arrays)


def _holds(values: np.ndarray, *types: type) -> bool:
    """Whether the values are of one of numpy's types."""
    return any(np.issubdtype(values.dtype, each) for each in types)


def _named(path: Path, arrays: Arrays) -> Arrays:
    """The matrices as the heads take them: image, text and extra in this order; a single one of any other name is
    extra."""
    if len(arrays) == 1 and not arrays.keys() & set(PARTS):
        return {"extra": next(iter(arrays.values()))}
    if unknown := sorted(arrays.keys() - set(PARTS)):
        raise GoodsError(f"{path} holds {len(arrays)} matrices ({listing(sorted(arrays))}); leave one, or call them "
                         f"{', '.join(PARTS)} ({listing(unknown)} is not known)")  # fmt: skip
    return {name: arrays[name] for name in PARTS if name in arrays}


# Kinds of files ------------------------------------------------------------------------------------------------------


def _npz(path: Path, id_column: str) -> tuple[list[str], Arrays]:
    arrays: Arrays = {}
    if not zipfile.is_zipfile(path):
        raise GoodsError(f"{path} is damaged: it ends too early")
    with np.load(path, allow_pickle=False) as stored:
        for name in stored.files:
            try:
                arrays[name] = stored[name]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise GoodsError(f"{path}: {name} is saved as Python objects, which are not read, as they can hold "
                                 f"code; {AS_TEXT}") from None  # fmt: skip
    return _ids_among(path, arrays, id_column), arrays


def _ids_among(path: Path, arrays: Arrays, id_column: str) -> list[str]:
    """Takes the ids out of the arrays."""
    name = next((name for name in (id_column, *IDS) if name in arrays), None)
    if name is None:
        raise GoodsError(f"{path} has no ids; it has {listing(sorted(arrays)) or 'nothing'}; {AS_TEXT}")
    return _id_texts(path, arrays.pop(name))


def _id_texts(path: Path, ids: np.ndarray) -> list[str]:
    if ids.ndim != 1 or not _holds(ids, np.character, np.integer):
        raise GoodsError(f"{path}: its ids have the shape {ids.shape} of {ids.dtype}; {AS_TEXT}")
    return [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in ids.tolist()]


def _safetensors(path: Path, id_column: str) -> tuple[list[str], Arrays]:
    """The ids: in the metadata, as embed.ipynb writes them, or a tensor of integers, or in a file beside."""
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise GoodsError(f"{path} is a .npy, which has no ids; {AS_TEXT}")
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        arrays = {name: _tensor(path, name) for name in file.keys()}  # noqa: SIM118
    if "ids" in metadata:
        return _texts(path, json.loads(metadata["ids"])), arrays
    if beside := ids_beside(path):
        text = beside.read_text(encoding="utf-8-sig")
        return (_texts(beside, json.loads(text)) if beside.suffix == ".json" else text.splitlines()), arrays
    if any(name in arrays for name in (id_column, *IDS)):
        return _ids_among(path, arrays, id_column), arrays
    others = " or ".join(path.with_suffix(ending).name for ending in ID_ENDINGS)
    raise GoodsError(f"{path} has no ids: put them, in the order of its rows, into {others} beside it (a list, or one "
                     'a line), or as JSON into its metadata under "ids"')  # fmt: skip


def _tensor(path: Path, name: str) -> np.ndarray:
    """A tensor as numpy has it; bf16, which numpy lacks, in fp32."""
    with safe_open(path, framework="np") as file:
        if file.get_slice(name).get_dtype() != "BF16":
            return file.get_tensor(name)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).float().numpy()


def _texts(path: Path, ids: Any) -> list[str]:
    if not isinstance(ids, list) or not all(isinstance(name, str | int) for name in ids):
        raise GoodsError(f"{path}: its ids are not a list of texts")
    return [str(name) for name in ids]


def _parquet(path: Path, id_column: str) -> tuple[list[str], Arrays]:
    """An id column, and columns of lists, or number columns that are one matrix together."""
    schema = pq.read_schema(path)
    key = next((name for name in (id_column, *IDS) if name in schema.names), None)
    if key is None:
        raise GoodsError(f"{path} has no column {id_column}; it has {listing(schema.names)}")
    lists = [field.name for field in schema if _is_list(field.type)]
    numbers = [field.name for field in schema if field.name != key and _is_number(field.type)]
    table = pq.read_table(path, columns=[key, *(lists or numbers)])
    ids = [("" if name is None else str(name)) for name in table[key].to_pylist()]
    if lists:
        return ids, {name: _list_matrix(path, name, table[name], ids) for name in lists}
    if not numbers:
        raise GoodsError(f"{path} has neither a column of lists of numbers nor number columns beside {key}")
    columns = [table[name].to_numpy(zero_copy_only=False).astype(np.float32) for name in numbers]
    return ids, {"vectors": np.stack(columns, axis=1)}


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _is_list(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and _is_number(kind.value_type)


def _list_matrix(path: Path, name: str, column: pa.ChunkedArray, ids: Sequence[str]) -> np.ndarray:
    """(n, dim) of a column of lists; raises GoodsError where they aren't all of one length."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    usual = int(np.bincount(lengths).argmax()) if len(lengths) else 0
    if other := np.flatnonzero(lengths != usual).tolist():
        raise GoodsError(f"{path}: {len(other)} vectors in {name} are not of {usual} numbers, as most are (ids "
                         f"{listing([ids[row] for row in other])})")  # fmt: skip
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return flat.reshape(len(ids), usual)
