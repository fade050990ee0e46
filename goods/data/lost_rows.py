"""Rows that a stray quote swallows: a table's records against what its lines suggest."""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from goods.errors import listing

HELD = 10_000  # suspects; of more those are dropped that look like no row so far


class Suspect(NamedTuple):
    """A cell that runs over several lines, and lines of it that may be rows of their own."""

    line: int  # on which its quote opens
    ids: list[str]  # what these lines have where a row has its id
    sure: bool  # whether its quote is closed where no cell ends


class _Ids:
    """The ids of a table of any length: 8 bytes of each, and what forms they have."""

    def __init__(self) -> None:
        self._lengths: dict[str, set[int]] = {}  # by form
        self._hashes = array("q")

    def add(self, name: str) -> None:
        self._hashes.append(hash(name))
        self._lengths.setdefault(_form(name), set()).add(len(name))

    def alike(self, name: str) -> bool:
        """Whether a name looks like an id."""
        found = self._lengths.get(_form(name), set())
        # Where they vary, a little more or less is no surprise.
        return len(name) in found or (len(found) > 1 and min(found) - 1 <= len(name) <= max(found) + 1)

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of the names that look like ids, and that no row has."""
        found = [name for name in names if self.alike(name)]
        there = np.isin([hash(name) for name in found], np.asarray(self._hashes))
        return [name for name, known in zip(found, there, strict=True) if not known]


def looked_through(lines: Iterable[str], separator: str, header: Sequence[str], id_column: str) -> str:
    """What is wrong with the rows of a table of text, to be said after its name: "" where nothing is.

    A quote that is never closed; rows that a stray quote has swallowed; rows of another length than the header's.
    """
    suspects: list[Suspect] = []
    ragged: list[int] = []
    ids, most, line, text = _Ids(), HELD, 1, ""
    place = header.index(id_column) if id_column in header else 0
    for number, (cells, line, text) in enumerate(_records(lines, separator)):
        if "\n" in text.rstrip("\r\n"):
            suspects += _suspects(text, line, separator, len(header), place)
            if len(suspects) > most:
                suspects = [suspect for suspect in suspects if any(map(ids.alike, suspect.ids))]
                most = 2 * len(suspects) + HELD
        if number and len(cells) > place:
            ids.add(cells[place].strip())
        if len(cells) != len(header) and (len(cells) > 1 or "".join(cells).strip()):
            ragged.append(line + text.rstrip("\r\n").count("\n"))
    if open_at := [start for start, end in _quoted(text, separator) if end < 0]:
        return (f" is not a CSV table: a quote opens on line {line + text.count(chr(10), 0, open_at[0])} and is never "
                'closed; close it there, or double it ("") where it belongs to the text')  # fmt: skip
    if problem := _swallowed(suspects, ids):
        return problem
    if ragged:
        return (f": {len(ragged)} rows have more or fewer cells than the header's {len(header)} "
                f"(they end on lines {listing(ragged)})")  # fmt: skip
    return ""


def _records(lines: Iterable[str], separator: str) -> Iterator[tuple[list[str], int, str]]:
    """Each record's cells, the line that it begins on, and its text."""
    own: list[str] = []

    def kept() -> Iterator[str]:
        for line in lines:
            own.append(line)
            yield line

    rows = csv.reader(kept(), delimiter=separator)
    for cells in rows:
        yield cells, rows.line_num - len(own) + 1, "".join(own)
        own.clear()


def _quoted(record: str, separator: str) -> Iterator[tuple[int, int]]:
    """Where each quoted cell of a record opens, and where its quote is closed: -1 for never."""
    at = 0
    while True:
        if record.startswith('"', at):
            end = record.find('"', at + 1)
            while end >= 0 and record.startswith('"', end + 1):  # a doubled one is text
                end = record.find('"', end + 2)
            yield at, end
            if end < 0:
                return
            at = end + 1
        following = record.find(separator, at)
        if following < 0:
            return
        at = following + 1


def _suspects(record: str, line: int, separator: str, width: int, place: int) -> Iterator[Suspect]:
    """The cells of a record that run over several lines of which some, or where all is well closed all, may be rows."""
    for start, end in _quoted(record, separator):
        if end < 0 or "\n" not in record[start:end]:
            continue
        sure = record[end + 1 : end + 2] not in ("", separator, "\r", "\n")
        last = record.find("\n", end)
        later = record[start : last if last >= 0 else len(record)].split("\n")[1:]
        rows = [text.rstrip("\r").split(separator) for text in later]
        long = [cells for cells in rows if len(cells) >= width]
        if long and (sure or len(long) == len(rows)):
            names = [cells[place].strip() for cells in long]
            yield Suspect(line + record.count("\n", 0, start), names, sure)


def _swallowed(suspects: Sequence[Suspect], ids: _Ids) -> str:
    """The sentence for the first suspect whose lines begin like other rows, with ids that no row has."""
    unknown = set(ids.unknown(name for suspect in suspects for name in suspect.ids))
    for suspect in suspects:
        new = [name for name in suspect.ids if name in unknown]
        if new and (suspect.sure or len(new) == len(suspect.ids)):
            return (f": the quote that opens on line {suspect.line} swallows the lines after it; {len(new)} of them "
                    f"look like rows (ids {listing(new)}), which would be lost; close it there, or double it "
                    '("") where it belongs to the text')  # fmt: skip
    return ""


def _form(name: str) -> str:
    """What an id is made of: "0" for digits, "a" for letters, "x" for both, and other signs as they are."""
    return re.sub(r"[^\W_]+", lambda run: "0" if run[0].isdecimal() else "a" if run[0].isalpha() else "x", name)
