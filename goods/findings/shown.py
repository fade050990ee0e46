"""Outputs on a notebook's page: tables with whole texts and short scores, and the sentence below each."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from goods.metric_names import SHOWN_AS, column_shown
from goods.words import digits

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler


LONG = 30  # letters of a text from which on its column is kept wide


class Sentence(str):
    """Text that Jupyter shows as it is, whatever signs are in it."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        text = _as_text(self).replace(" %", "&nbsp;%")  # no line begins with %
        return f'<p style="max-width: 60em; margin: .3em 0 .9em">{text}</p>'


def tell(output: Any, *sentences: str) -> None:
    """Shows an output (a figure, a table; nothing for None or no rows), and below it the sentences that read it out."""
    from IPython.display import display

    if output is not None and not (isinstance(output, pd.DataFrame) and output.empty):
        display(readable(output) if isinstance(output, pd.DataFrame | pd.Series) else output)
    for sentence in sentences:
        if sentence:
            display(Sentence(f"{sentence[0].upper()}{sentence[1:]}{'' if sentence[-1] in '.:!?' else '.'}"))


def so(*sentences: str) -> None:
    """Shows the notebook's answer, in two or three lines."""
    tell(None, *(f"So: {sentence}" for sentence in sentences if sentence))


def _as_text(value: object) -> str:
    """HTML that shows a text as it is; a dollar alone in its element, so that no formula is made."""
    return html.escape(str(value)).replace("$", "<span>$</span>")


def readable(table: pd.DataFrame | pd.Series) -> Styler:
    """A table for the eye: texts whole and at the left, scores as .934, counts as 1,204, nothing for what isn't there.

    A plain numbering of its rows is left out, and rows that have a name for what they are stand under it as a column;
    of titles the entities are read.
    """
    frame = table.to_frame() if isinstance(table, pd.Series) else table.copy()
    named = [name for name in frame.index.names if name is not None]
    numbered = not named and pd.api.types.is_integer_dtype(frame.index)
    if numbered or (named and not set(named) & set(frame)) or not frame.index.is_unique:
        frame = frame.reset_index(drop=numbered)
    for name in frame:
        if str(name).startswith("title"):
            frame[name] = [html.unescape(str(text)) for text in frame[name]]
    frame = frame.rename(columns=lambda name: _as_text(column_shown(str(name))))  # a Styler writes headers as they are
    for axis in (frame.index, frame.columns):
        axis.names = [None] * axis.nlevels
    words = [name for name in frame if any(isinstance(value, str) for value in frame[name])]
    long = [name for name in words if frame[name].map(lambda text: len(str(text))).max() > LONG]
    places = [number for number, name in enumerate(frame) if name in words]
    heads = [{"selector": f"th.col{number}", "props": "text-align: left"} for number in places]
    heads.append({"selector": "th.row_heading", "props": "text-align: left; vertical-align: top"})
    heads.append({"selector": "th[colspan]", "props": "text-align: center"})
    wide = [name for name in frame if name not in words and (pd.to_numeric(frame[name], "coerce").abs() >= 2).any()]
    style = frame.style.format(_cell).format(_wide_cell, subset=wide).set_table_styles(heads)
    style = style.format_index(lambda name: SHOWN_AS.get(name) or _cell(name), axis="index")
    style = style.set_properties(**{"overflow-wrap": "break-word", "vertical-align": "top", "max-width": "34em"})
    style = style.set_properties(subset=words, **{"text-align": "left"})
    style = style.set_properties(subset=long, **{"min-width": "16em"})  # else a telephone makes towers of them
    style = style.set_properties(subset=[name for name in frame if name not in words], **{"text-align": "right"})
    return style.hide(axis="index") if isinstance(frame.index, pd.RangeIndex) else style


def _wide_cell(value: Any) -> str:
    """Of a column that is no score: 5.8, 6, 2.961."""
    shown = _cell(value)
    return (shown.rstrip("0").rstrip(".") if "." in shown else shown) or "0"


def _cell(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else digits(float(value)) if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None or value is pd.NA else _as_text(value)
