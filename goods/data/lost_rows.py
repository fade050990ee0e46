"""Rows that a stray quote swallows: a table's records against what its lines suggest."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from goods.errors import listing


class Suspect(NamedTuple):
    """A cell that runs over several lines, and lines of it that may be rows of their own."""

    line: int  # on which its quote opens
    rows: list[list[str]]  # cells of these lines, split at every separator
    sure: bool  # whether its quote is closed where no cell ends


def looked_through(lines: Iterable[str], separator: str, columns: Sequence[str] | None, id_column: str) -> str:
    """What is wrong with the rows of a table of text, to be said after its name: "" where nothing is.

    A quote that is never closed; rows that a stray quote has swallowed; rows of another length than the header's
    `columns`. None for these, where the table couldn't be read: lengths aren't looked at then.
    """
    suspects: list[Suspect] = []
    ragged: list[int] = []
    ids: set[str] = set()
    header, line, text = list(columns or ()), 1, ""
    for number, (cells, line, text) in enumerate(_records(lines, separator)):
        header = header or cells
        place = header.index(id_column) if id_column in header else 0
        if "\n" in text.rstrip("\r\n"):
            suspects += _suspects(text, line, separator, len(header))
        if number and len(cells) > place:
            ids.add(cells[place].strip())
        if len(cells) != len(header) and (len(cells) > 1 or "".join(cells).strip()):
            ragged.append(line + text.rstrip("\r\n").count("\n"))
    if open_at := [start for start, end in _quoted(text, separator) if end < 0]:
        return (f" is not a CSV table: a quote opens on line {line + text.count(chr(10), 0, open_at[0])} and is never "
                'closed; close it there, or double it ("") where it belongs to the text')  # fmt: skip
    if suspects and (problem := _swallowed(suspects, place, ids)):
        return problem
    if ragged and columns:
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


def _suspects(record: str, line: int, separator: str, width: int) -> Iterator[Suspect]:
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
            yield Suspect(line + record.count("\n", 0, start), long, sure)


def _swallowed(suspects: Sequence[Suspect], place: int, ids: set[str]) -> str:
    """The sentence for the first suspect whose lines begin like other rows, with ids that no row has."""
    lengths: dict[str, set[int]] = {}
    for name in ids:
        lengths.setdefault(_form(name), set()).add(len(name))
    for found in lengths.values():
        if len(found) > 1:  # where they vary, a little more or less is no surprise
            found |= {*range(min(found) - 1, max(found) + 2)}
    for suspect in suspects:
        names = [cells[place].strip() for cells in suspect.rows]
        new = [name for name in names if name not in ids and len(name) in lengths.get(_form(name), ())]
        if new and (suspect.sure or len(new) == len(names)):
            return (f": the quote that opens on line {suspect.line} swallows the lines after it; {len(new)} of them "
                    f"look like rows (ids {listing(new)}), which would be lost; close it there, or double it "
                    '("") where it belongs to the text')  # fmt: skip
    return ""


def _form(name: str) -> str:
    """What an id is made of: "0" for digits, "a" for letters, "x" for both, and other signs as they are."""
    return re.sub(r"[^\W_]+", lambda run: "0" if run[0].isdecimal() else "a" if run[0].isalpha() else "x", name)
