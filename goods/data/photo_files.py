"""Which photos a product has: by its id, by a column or a pattern of columns, in a folder or inside Parquet."""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pyarrow.parquet as pq

from goods.data.fetch import is_uri
from goods.data.table_files import holds_photos, is_parquet, stretches
from goods.errors import DamagedFileError
from goods.files import atomic_path, file_stamp, read_json, write_json
from goods.places import PHOTO_ENDINGS, table_pieces

NONE_NAMED = "no photo named"  # the status of a product that its table gives no photo
FOUND_ENDINGS = (*PHOTO_ENDINGS, ".heic", ".heif")  # the last ones can't be read, and are said to be so
UNPACKED_AT_ONCE = 64  # photos inside Parquet held in memory
_BEFORE_ADDRESS = re.compile(r"(?:[,;]\s*|\s+)(?=[A-Za-z][A-Za-z0-9+.-]*://)")

Cell = str | tuple[str | Path, ...]  # what a table says of a product's photos: to be looked up, or files already


def find_photos(folder: Path) -> dict[str, str]:
    """Path of each photo of a folder by its file name and by the name without its ending; .jpg before .png."""
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in FOUND_ENDINGS]
    files.sort(key=lambda f: FOUND_ENDINGS.index(f.suffix.lower()), reverse=True)
    return {name: str(f) for f in files for name in (f.stem, f.name)}


class PhotoFolder:
    """A folder of photos, asked by names; it and each of the folders below are listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[str, dict[str, str]] = {}

    def __reduce__(self) -> tuple[type[PhotoFolder], tuple[Path]]:
        return PhotoFolder, (self.folder,)  # another process lists what it is asked for

    def find(self, name: str) -> str:
        """The path of a photo, "" where there is none: a file name, with or without its ending, or a path.

        A path may begin with the folder's own name, as it does where it was meant from further up.
        """
        if leaves_folder(name):
            return ""
        parts = PurePosixPath(posixpath.normpath(file_name(name))).parts
        for start in range(len(parts)):
            if start == 0 or self.folder.parts[-start:] == parts[:start]:
                inner, last = "/".join(parts[start:-1]), parts[-1]
                found = self._names(inner).get(last, "") or self._other(inner, last)
                if found:
                    return found
        return ""

    def by_id(self, name: str) -> str:
        """The path of the photo that is called by a product's id, "" where there is none or several are below."""
        if "/" in name:
            return self.find(name)
        below = self._names("").get(name) or self.below.get(name, ())
        return below if isinstance(below, str) else below[0] if len(below) == 1 else ""

    @functools.cached_property
    def below(self) -> dict[str, tuple[str, ...]]:
        """All photos in the folders below, by name as find_photos has them; of none where the folder itself has any."""
        found: dict[str, tuple[str, ...]] = {}
        for place, folders, _ in os.walk(self.folder) if not self._names("") else ():
            folders.sort()
            for name, path in find_photos(Path(place)).items():
                found[name] = (*found.get(name, ()), path)
        return found

    def _names(self, inner: str) -> dict[str, str]:
        if inner not in self._listed:
            folder = self.folder / inner
            self._listed[inner] = find_photos(folder) if folder.is_dir() else {}
        return self._listed[inner]

    def _other(self, inner: str, last: str) -> str:
        """A file of any ending, named in full."""
        path = self.folder / inner / last
        return str(path) if path.suffix.lower() not in FOUND_ENDINGS and path.is_file() else ""


def file_name(name: str) -> str:
    """A photo's name with slashes; of a URI the last part."""
    if is_uri(name):
        return unquote(urlsplit(name).path.rsplit("/", 1)[-1]) or "."
    return name.replace("\\", "/")


def leaves_folder(name: str) -> bool:
    """Whether a path leads out of the folder that it begins in."""
    path = file_name(name)
    absolute = PurePosixPath(path).is_absolute() or bool(PureWindowsPath(path).drive)
    return absolute or "\0" in path or posixpath.normpath(path).split("/")[0] == ".."


def names_in(cell: str, folder: PhotoFolder) -> list[str]:
    """The names of photos in a cell: one, or several in a list, split by |, spaces, commas or semicolons."""
    cell = cell.strip()
    if cell.startswith("[") and cell.endswith("]"):
        names = [a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", cell)] or cell[1:-1].split(",")
    else:
        names = cell.split("|") if "|" in cell else _split(cell, folder)
    return list(dict.fromkeys(name for part in names if (name := part.strip())))


def _split(cell: str, folder: PhotoFolder) -> list[str]:
    """The names in a cell without |: an address keeps its commas, and what is found as it stands is one name."""
    parts = _BEFORE_ADDRESS.split(cell)
    if len(parts) == 1 and (not re.search(r"[\s,;]", cell) or _found(cell, folder)):
        return parts
    cell = cell.strip(",; ")
    if len(parts) == 1 and not is_uri(cell):
        parts = [part for part in re.split(r"\s*[,;]\s*", cell) if part]
        if not all(_ends_as_photo(part) or _found(part, folder) for part in parts):
            parts = [cell]
    if len(parts) == 1:
        parts = [part.rstrip(",;") for part in cell.split()]
        if not (all(map(_ends_as_photo, parts)) or any(_found(part, folder) for part in parts)):
            parts = [cell]  # one name with spaces
    return [name for part in parts for name in _split(part, folder)] if len(parts) > 1 else parts


def _ends_as_photo(name: str) -> bool:
    return name.lower().endswith(FOUND_ENDINGS)


def _found(name: str, folder: PhotoFolder) -> bool:
    return not leaves_folder(name) and bool(folder.find(name))


def columns_of(image_column: str) -> list[str]:
    """The columns that image_column asks for: itself, or those in a pattern's brackets."""
    return re.findall(r"\{([^{}]+)\}", image_column) or [image_column]


def cells_of(table: pd.DataFrame, image_column: str, id_column: str) -> list[str]:
    """What image_column says of each product's photos; a pattern such as {shop}/{id}.jpg is filled in."""
    names = columns_of(image_column)
    own = {name: table["id" if name == id_column else name].str.strip() for name in names}
    if names == [image_column]:
        return own[image_column].tolist()
    parts = re.split(r"\{([^{}]+)\}", image_column)  # text, name, text, name, ..., text
    rows = zip(*(own[part] for part in parts[1::2]), strict=True)
    return ["".join(a + b for a, b in zip(parts[::2], (*row, ""), strict=True)) for row in rows]


def photos_of(name: str, table: pd.DataFrame, folder: Path, cells: Sequence[Cell] | None = None) -> pd.DataFrame:
    """table, id, image, status of each photo of a table, at least one row per product, in the table's order.

    image is the photo's path, "" where there is none; status says then what is wrong, "" else. With `cells` the photos
    that these name, else <id>.jpg.
    """
    within = PhotoFolder(folder)
    if cells is None:
        images = [within.by_id(i) for i in table["id"]]
        status = ["" if image else "missing" for image in images]
        return pd.DataFrame({"table": name, "id": table["id"], "image": images, "status": status})
    rows = [(i, *photo) for i, cell in zip(table["id"], cells, strict=True) for photo in _photos_in(cell, within)]
    photos = pd.DataFrame(rows, columns=["id", "image", "status"], dtype=object)
    photos.insert(0, "table", name)
    return photos


def _photos_in(cell: Cell, folder: PhotoFolder) -> list[tuple[str, str]]:
    """(path, what is wrong) of each photo of a product."""
    found = []
    for name in names_in(cell, folder) if isinstance(cell, str) else cell:
        if isinstance(name, Path):
            found.append((str(name), ""))
        else:
            path = folder.find(name)
            found.append((path, "" if path else f"missing: {name}"))
    return found or [("", NONE_NAMED)]


def outside(ids: Sequence[str], cells: Sequence[Cell], within: PhotoFolder) -> list[str]:
    """The ids of products whose photos are named by paths that lead out of the photo folder."""
    named = ([name for name in (names_in(cell, within) if isinstance(cell, str) else cell) if isinstance(name, str)]
             for cell in cells)  # fmt: skip
    return [i for i, names in zip(ids, named, strict=True) if any(leaves_folder(name) for name in names)]


# Inside Parquet ------------------------------------------------------------------------------------------------------


def unpack_photos(table: Path, column: str, folder: Path) -> list[Cell] | None:
    """The photos inside a Parquet table's column, each written to `folder` once, by the hash of its bytes.

    One cell per row: the files, and names where a photo is given by its path alone. None where the column holds no
    photos. What was unpacked is known by the table's name, size and time.
    """
    if not photos_inside(table, column):
        return None
    pieces = table_pieces(table)
    index = folder / f"{hashlib.sha256(f'{file_stamp(pieces)} {column}'.encode()).hexdigest()[:32]}.json"
    try:
        rows = read_json(index)["rows"]
    except (DamagedFileError, KeyError):
        rows = [row for piece in pieces for row in _unpacked(piece, column, folder)]
        write_json(index, {"rows": rows})
    return [tuple(folder / name if here else name for here, name in row) for row in rows]


def photos_inside(table: Path, column: str) -> bool:
    """Whether a table is Parquet, with photos in that column."""
    pieces = table_pieces(table)
    return bool(pieces) and all(is_parquet(piece) and _has_photos(piece, column) for piece in pieces)


def _has_photos(piece: Path, column: str) -> bool:
    schema = pq.read_schema(piece)
    return column in schema.names and holds_photos(schema.field(column).type)


def photos_in_cell(cell: Any) -> list[tuple[bytes | None, str]]:
    """The photos of a cell of Parquet: the bytes, None where a photo is given by its path alone, and the path."""
    photos = cell if isinstance(cell, list) else [cell]
    pairs = [(photo.get("bytes"), photo.get("path")) if isinstance(photo, dict) else (photo, "") for photo in photos]
    return [(data, str(name or "")) for data, name in pairs if data is not None or name]


def _unpacked(piece: Path, column: str, folder: Path) -> Iterator[list[tuple[bool, str]]]:
    """Of each row its photos: whether it is a file of `folder`, and its name."""
    for table in stretches(piece, UNPACKED_AT_ONCE, "", [column], photos=True):
        for cell in table[column]:
            yield [(data is not None, name if data is None else write_photo(data, folder, name))
                   for data, name in photos_in_cell(cell)]  # fmt: skip


def write_photo(data: bytes, folder: Path, name: str = "") -> str:
    """Writes a photo to `folder` once, by the hash of its bytes; returns its path from there on."""
    file = hashlib.sha256(data).hexdigest()[:32] + _ending(name)
    path = folder / file[:2] / file
    if not path.is_file() or path.stat().st_size != len(data):
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    return f"{file[:2]}/{file}"


def _ending(name: str) -> str:
    ending = Path(name).suffix.lower()
    return ending if ending in PHOTO_ENDINGS else ".jpg"
