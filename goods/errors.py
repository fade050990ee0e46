"""What can go wrong, as types: control flow asks for the class of an error, never for its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_SHOWN = 100  # characters of a value in a sentence


def plain(value: Any) -> str:
    """A value of a table in one line: what steers a terminal (colours, cursor) shows as its code."""
    text = str(value)
    text = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listing(items: Sequence[Any], most: int = 5) -> str:
    """The first of the items for a sentence, and how many more there are."""
    items = [plain(item) for item in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


class GoodsError(ValueError):
    """A mistake the user can mend; its text says what is wrong, where, and what to do."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks the exception for its own rendering: a sentence instead of forty lines of frames.
        return [f"GoodsError: {self}"]


class ParameterError(GoodsError):
    """A parameter that is unknown, of the wrong type, or doesn't fit the others or the model."""


class DamagedFileError(GoodsError):
    """A file of the project's own making that is missing or isn't what was written."""


class OtherRunError(GoodsError):
    """A run's name, folds or weights are of other parameters, goods or backbones."""


class HeldError(GoodsError):
    """Another process is at work on the same run or fold."""


class UnwritableError(GoodsError):
    """The disk is read-only, or this user may not write there; what was saved before is intact."""


class DiskFullError(UnwritableError):
    """There is no room left."""


class TimeOverError(GoodsError):
    """max_hours were over before anything was begun, so there is nothing to go on from."""


class StoppedInTime(SystemExit):  # no error
    """max_hours are over and the state is saved: the process ends well, and the same command goes on."""

    def __init__(self) -> None:
        super().__init__(0)
