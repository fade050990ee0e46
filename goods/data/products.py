"""A table of products to classify, of any length: checked as a whole, then read in stretches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from goods.data.advice import nearest_column
from goods.data.fetch import NotFetchedError, check_schemes, fetched, is_uri
from goods.data.photo_files import (
    UNPACKED_AT_ONCE,
    PhotoFolder,
    cells_of,
    columns_of,
    names_in,
    outside,
    photos_in_cell,
    photos_inside,
)
from goods.data.photos import as_tuples
from goods.data.table_files import CHECKED_ROWS, check_cells, stretches
from goods.data.texts import clean_text
from goods.errors import GoodsError, listing
from goods.files import file_hash
from goods.places import table_pieces

Photos = str | bytes | tuple[str | bytes, ...]  # of a product: a path, URI or a photo's bytes; "" for none; or several
PROBED = 8  # photos that are fetched beforehand, where there are none but by URIs


@dataclass(frozen=True)
class ProductTable:
    """A table that has been checked: its rows, and the columns that are read, as text but for photos inside."""

    path: Path
    columns: tuple[str, ...]
    rows: int
    id_column: str = "id"

    def stretches(self, rows: int) -> Iterator[pd.DataFrame]:
        """The table in stretches of so many rows, the last one shorter; empty cells are ""."""
        return stretches(self.path, rows, self.id_column, self.columns, photos=True)

    def ids(self) -> list[str]:
        """The ids of all its products."""
        columns = [self.id_column]
        read = stretches(self.path, CHECKED_ROWS, self.id_column, columns)
        return [name for stretch in read for name in stretch[self.id_column]]

    def contents(self) -> str:
        """A hash of its bytes; of a table in pieces one of each."""
        return " ".join(map(file_hash, table_pieces(self.path)))


def check_products(path: Path, id_column: str, text_columns: Sequence[str], more: Sequence[str] = ()) -> ProductTable:
    """The table at `path`, of any kind that goods.data.table_files reads; `title` is read where it has one.

    Raises GoodsError, with all that is wrong with it: what goods.data.table_files.check_cells finds, columns that are
    not there, ids that are empty or stand there twice, no row at all.
    """
    needed, header = list(dict.fromkeys([id_column, *text_columns, *more])), check_cells(path, id_column)
    if missing := [name for name in needed if name not in header]:
        free = [name for name in header if name not in needed]
        fits = [f"{near} to {name}" for name in missing if (near := nearest_column(name, free))]
        raise GoodsError(f"{path} lacks {listing(missing)}, which the run reads; it has {listing(header)}"
                         + (f"; rename {listing(fits)}" if fits else ""))  # fmt: skip
    hashes, empty, rows = [], 0, 0
    for stretch in stretches(path, CHECKED_ROWS, id_column, [id_column]):
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
    return ProductTable(path, tuple(dict.fromkeys([*needed, *title])), rows, id_column)


def _repeated(path: Path, id_column: str, most: int = 6) -> list[str]:
    """Some ids that stand in the table more than once; no more than that many are looked for."""
    seen: set[str] = set()
    found: dict[str, None] = {}
    for stretch in stretches(path, CHECKED_ROWS, id_column, [id_column]):
        for name in stretch[id_column]:
            if name in seen and name.strip():
                found[name] = None
            seen.add(name)
        if len(found) >= most:
            break
    return list(found)


# Its photos ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhotoFinder:
    """Where the photos of products are: in a folder by their ids or as `column` says, or `inside` the table.

    copies: the folder holds copies of what URIs name, as far as it goes.
    """

    within: PhotoFolder
    column: str | None
    inside: bool = False
    copies: bool = False

    @property
    def folder(self) -> Path:
        """In which the photos are."""
        return self.within.folder

    def of(self, products: pd.DataFrame, id_column: str) -> list[Photos]:
        """(n,) the photos of products; one that isn't there is "", so that each has its place."""
        if not self.column:
            return [self.within.by_id(name) for name in products[id_column]]
        if self.inside:
            found = [tuple(self._find(name) if data is None else data for data, name in photos_in_cell(cell))
                     for cell in products[self.column]]  # fmt: skip
        else:
            cells = cells_of(products, self.column, "id")
            found = [tuple(map(self._find, names_in(cell, self.within))) for cell in cells]
        return [photos if len(photos) > 1 else (*photos, "")[0] for photos in found]

    def _find(self, name: str) -> str:
        """The path of a photo, or the URI that it can be fetched from; "" where there is none."""
        if is_uri(name) and not self.copies:
            return name
        return self.within.find(name) or (name if is_uri(name) else "")


def find_product_photos(table: ProductTable, id_column: str, folder: Path | None, column: str | None) -> PhotoFinder:
    """The photos of a table; raises GoodsError where not one of its products has a photo there.

    column: that names them, below `folder` or else beside the table, or by URIs, or a pattern of columns; or that holds
    them. Paths that lead out of the folder are refused, and URIs that nothing here can read.
    """
    inside = bool(column) and photos_inside(table.path, column)
    if folder and not folder.is_dir() and not inside:
        raise GoodsError(f"there is no folder {folder} with photos")
    finder = PhotoFinder(PhotoFolder(folder or table.path.parent), column, inside, copies=bool(folder))
    columns, found, leaving = [id_column, *(columns_of(column) if column else [])], False, []
    probed: list[str] = []
    rows = UNPACKED_AT_ONCE if inside else CHECKED_ROWS
    for stretch in stretches(table.path, rows, table.id_column, columns, photos=True):
        if column and not inside:
            leaving += outside(stretch[id_column], cells_of(stretch, column, "id"), finder.within)
        photos = [photo for own in as_tuples(finder.of(stretch, id_column)) for photo in own]
        uris = [photo for photo in photos if is_uri(photo)]
        check_schemes(uris)
        probed = (probed + uris)[:PROBED]
        found = found or any(photo and not is_uri(photo) for photo in photos)
        if (found or uris) and (inside or not column):
            break
    if leaving:
        raise GoodsError(f"{len(leaving)} products of {table.path} name photos by absolute paths or out of "
                         f"{finder.folder} (ids {listing(leaving)}); name them from that folder on")  # fmt: skip
    if not found:
        answers = fetched(probed)
        if all(isinstance(answer, NotFetchedError) for answer in answers):  # also where there are none
            raise GoodsError(_none_found(table, id_column, finder) if not probed else (
                f"none of the first {len(probed)} photos that {table.path} names by URIs can be fetched "
                f"({probed[0]}: {answers[0]}); look at column {column}, or predict without photos"))  # fmt: skip
    return finder


def _none_found(table: ProductTable, id_column: str, finder: PhotoFinder) -> str:
    where = f"a photo <{id_column}>.jpg in {finder.folder}"
    if finder.column:
        where = f"a file that image_column {finder.column} names, below {finder.folder}"
    return f"no product of {table.path} has {where}"


def some_products(
    path: Path, ids: Collection[str], id_column: str, title_column: str, folder: Path, image_column: str | None
) -> pd.DataFrame:
    """title and photo (a path, bytes, "" for none), by id, of those of the products that the table holds.

    Nothing is checked and nothing written: to show a few of a table that a run has read. Raises GoodsError where it
    can't be read any more.
    """
    header, inside = check_cells(path, id_column), bool(image_column) and photos_inside(path, image_column)
    title = "title" if "title" in header else title_column
    asked = [id_column, title, *(columns_of(image_column) if image_column else [])]
    columns = [name for name in dict.fromkeys(asked) if name in header]
    finder, found, left = PhotoFinder(PhotoFolder(folder), image_column, inside), [], set(ids)
    for stretch in stretches(path, UNPACKED_AT_ONCE if inside else CHECKED_ROWS, id_column, columns, photos=True):
        own = stretch[stretch[id_column].isin(left)]
        photos = [each[0] if isinstance(each, tuple) else each for each in finder.of(own, id_column)]
        titles = [clean_text(str(each)) for each in own[title]] if title in own else [""] * len(own)
        found.append(pd.DataFrame({"title": titles, "photo": pd.Series(photos, dtype=object)}).set_axis(own[id_column]))
        left -= set(own[id_column])
        if not left:
            break
    return pd.concat(found) if found else pd.DataFrame({"title": [], "photo": []})
