"""What a wrong parameter most likely should have been: the column that fits, why photos aren't found."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from goods.data.fetch import is_uri
from goods.data.photo_files import PhotoFolder, file_name, find_photos
from goods.places import PHOTO_ENDINGS

LOOKED_AT = 500  # missing photos whose names are tried
MOST_FOLDERS = 60  # in which they are looked for


def fitting_columns(missing: Sequence[str], there: Sequence[str], asked: Mapping[str, Any]) -> str:
    """The parameters to set where a table has a missing column under almost that name: "label_column=Category".

    asked: parameters and the column or columns that they name; text columns that nothing fits are left out; "" where
    nothing fits at all.
    """
    named = {name for value in asked.values() for name in ([value] if isinstance(value, str) else value or ())}
    free = [name for name in there if name not in named]
    fits = {name: fit for name in missing if (fit := nearest_column(name, free))}
    settings = []
    for parameter, value in asked.items():
        if isinstance(value, str) and value in fits:
            settings.append(f"{parameter}={_quoted(fits[value])}")
        elif not isinstance(value, str):
            kept = [fits.get(name, name) for name in value or ()
                    if name in fits or name not in missing or parameter != "text_columns"]  # fmt: skip
            if kept and kept != list(value):
                settings.append(f"{parameter}=[{', '.join(map(_quoted, kept))}]")
    return " ".join(settings)


def nearest_column(name: str, there: Sequence[str]) -> str | None:
    """The column that is called almost so, if there is one."""
    plain = {_plain(other): other for other in reversed(there)}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.75)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"\w[\w{}.-]*", name) else f'"{name}"'


def likely_cause(part: str, names: Sequence[str], table: pd.DataFrame, folder: Path, other: Path) -> str:
    """Why the photos called so aren't found in `folder`, as a sentence's end; what to look at where that isn't clear.

    part: "train" or "test"; names: of the missing photos, ids or a column's; other: the other table's folder.
    """
    given = [name for name in names if name][:LOOKED_AT]
    names = [file_name(name) for name in given]  # of an address the last part
    files = sorted(f.name for f in folder.iterdir() if f.is_file()) if folder.is_dir() else []
    found = find_photos(folder) if folder.is_dir() else {}
    below = PhotoFolder(folder).below
    folded = {name.casefold(): name for name in found or below}
    ways = (
        lambda: _in_other_capitals(names, folded),
        lambda: _several_times(part, names, below),
        lambda: _in_another_folder(part, names, folder, other),
        lambda: _with_another_ending(names, files, found),
        lambda: _by_a_column(table, found),
        lambda: _by_a_pattern(names, files),
    )
    last = f"look at {part}_images_dir and image_column"
    if _most(sum(map(is_uri, given)), len(given)):
        last = f"they are addresses, and training reads every photo many times: download them to {folder} first"
    return next((cause for way in ways if names and (cause := way())), last)


def _most(hits: int, of: int) -> bool:
    return 2 * hits >= of > 0


def _in_other_capitals(names: Sequence[str], folded: Mapping[str, str]) -> str:
    near = {name: folded.get(name.casefold()) or folded.get(Path(name).stem.casefold()) for name in names}
    hits = [name for name, there in near.items() if there and there != Path(name).stem]  # else in another ending
    if not _most(len(hits), len(near)):
        return ""
    return f"the files are there in other capitals ({near[hits[0]]} for {hits[0]}); write both alike"


def _several_times(part: str, names: Sequence[str], below: Mapping[str, Sequence[str]]) -> str:
    hits = [paths for name in names if len(paths := below.get(name, ())) > 1]
    if not _most(len(hits), len(names)):
        return ""
    return (
        f"their names stand there several times ({', '.join(hits[0][:2])}): set {part}_images_dir to one of the folders"
    )


def _in_another_folder(part: str, names: Sequence[str], folder: Path, other: Path) -> str:
    for place in dict.fromkeys([other, *_around(folder)]):
        if place != folder and place.is_dir():
            there = find_photos(place)
            if _most(sum(Path(name).name in there or name in there for name in names), len(names)):
                return f"they are in another folder: set {part}_images_dir={place}"
    return ""


def _around(folder: Path) -> Iterator[Path]:
    """Folders below a folder, beside it, and below those, not too many."""
    seen, waiting = 0, [folder, folder.parent]
    while waiting and seen < MOST_FOLDERS:
        place = waiting.pop(0)
        inner = sorted(f for f in place.iterdir() if f.is_dir()) if place.is_dir() else []
        seen += len(inner)
        yield from inner
        waiting += [f for f in inner if f.parent == folder.parent or f.parent == folder]


def _with_another_ending(names: Sequence[str], files: Sequence[str], found: Mapping[str, str]) -> str:
    stems = {Path(file).stem: file for file in reversed(files)}
    hits = [stems[stem] for name in names if (stem := name if name in stems else Path(name).stem) in stems]
    if not _most(len(hits), len(names)):
        return ""
    ending = Path(hits[0]).suffix
    if ending.lower() in PHOTO_ENDINGS:
        return f"the files have another ending ({hits[0]}); write it in the column, or leave the ending out there"
    return f"the files have another ending ({hits[0]}), and photos end in {', '.join(PHOTO_ENDINGS)}; rename them"


def _by_a_column(table: pd.DataFrame, found: Mapping[str, str]) -> str:
    for column in table.columns.drop(["text", "image"], errors="ignore"):
        cells = [cell for cell in table[column].head(LOOKED_AT) if isinstance(cell, str) and cell]
        if _most(sum(re.split(r"[ |,;]", cell.strip())[0].rsplit("/", 1)[-1] in found for cell in cells), len(cells)):
            return f"column {column} names them: set image_column={_quoted(str(column))}"
    return ""


def _by_a_pattern(names: Sequence[str], files: Sequence[str]) -> str:
    stem = names[0]
    for file in files:
        parts = re.split(rf"(?<![^\W_]){re.escape(stem)}(?![^\W_])", file)
        if len(parts) == 2 and Path(file).suffix.lower() in PHOTO_ENDINGS:
            there = set(files)
            if _most(sum(name.join(parts) in there for name in names), len(names)):
                return f"the files are called {file}: set image_column={_quoted('{id}'.join(parts))}"
    return ""
