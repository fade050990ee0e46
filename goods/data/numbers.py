"""Numbers as shops write them: "12,99 €", "$1,299.00", "1 299,00". What is unambiguous is read, the rest counted.

"1,299" alone may be either: the column's other cells tell whether its decimal sign is the point or the comma.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

MISSING = frozenset(("", "-", "nan", "na", "n/a", "null", "none", "<na>"))  # in place of a number nothing is meant
UNITS = frozenset((
    "usd eur gbp jpy cny rmb inr rs rs. chf sek nok dkk kr kr. pln zł czk kč huf ft brl r$ us$ cad ca$ c$ aud au$ a$ "
    "mxn rub руб руб. krw sgd s$ hkd hk$ twd nt$ try tl ron lei лв 元 円 原 원 euro euros"
).split())  # fmt: skip
_UNIT = r"(?:[^\d+.,-]*[^\W\d_]\.)?[^\d+.,-]*"  # before a number: a point in it follows a letter, as in Rs.
_SHAPE = re.compile(rf"(?P<before>{_UNIT})(?P<sign>[+-]?)(?P<more>{_UNIT})(?P<number>[.,]?\d[\d.,' ]*)(?P<after>\D*)")
_GROUPED = re.compile(r"\d{1,3}(?:[ ']\d{3})+(?:[.,]\d+)?")
_SIGNS = ".,"
_LONGEST = 40  # signs of a number with its currency


def read_numbers(cells: Sequence[str], decimal: str) -> tuple[np.ndarray, list[str]]:
    """(n,) numbers, nan where there is none, and the cells that are no number or may be two.

    decimal: what decimal_sign says of the column.
    """
    known: dict[str, float | None] = {cell: _number(cell, decimal)[0] for cell in dict.fromkeys(cells)}
    values = np.array([known[cell] if known[cell] is not None else math.nan for cell in cells], dtype=np.float64)
    return values, [cell for cell in cells if known[cell] is None]


def decimal_sign(cells: Sequence[str]) -> str:
    """The point or the comma, whichever the unambiguous cells have for a decimal sign; "" where none or both do."""
    found = {_number(cell, "")[1] for cell in dict.fromkeys(cells)} - {""}
    return found.pop() if len(found) == 1 else ""


def _number(cell: str, decimal: str) -> tuple[float | None, str]:
    """What a cell says, nan for nothing and None where that isn't clear, and the decimal sign that it shows."""
    text = unicodedata.normalize("NFKC", cell).replace("−", "-").replace("’", "'").strip()
    if text.casefold() in MISSING:
        return math.nan, ""
    if re.fullmatch(r"[+-]?\d+(\.\d+)?[eE][+-]?\d{1,3}", text):
        return (value, "") if math.isfinite(value := float(text)) else (None, "")
    text = re.sub(r"(?<=\d)[.,](-|–|—)(?=\D*$)", "", text)  # 12,- is a price without cents
    shape = _SHAPE.fullmatch(text) if len(text) <= _LONGEST else None
    if not shape or not all(_is_unit(shape[part]) for part in ("before", "more", "after")):
        return None, ""
    digits, sign = _plain(shape["number"].strip(), decimal)
    return (None if digits is None else float(shape["sign"] + digits)), sign


def _is_unit(text: str) -> bool:
    """Whether it is a currency or a percent sign, or nothing."""
    text = text.strip()
    return text.casefold() in UNITS or all(unicodedata.category(sign) == "Sc" or sign == "%" for sign in text)


def _plain(number: str, decimal: str) -> tuple[str | None, str]:
    """The number as Python writes it, None where it isn't clear, and the decimal sign that it shows."""
    if _GROUPED.fullmatch(number):
        number, grouped = re.sub("[ ']", "", number), True
    else:
        grouped = False
    signs = [sign for sign in number if sign not in "0123456789"]
    if set(signs) - set(_SIGNS):
        return None, ""
    if not signs:
        return number, ""
    last = signs[-1]
    other = _SIGNS.replace(last, "")
    whole, _, rest = number.rpartition(last)
    if len(set(signs)) == 2:
        fits = signs.count(last) == 1 and rest and _in_groups(whole, other)
        return (f"{whole.replace(other, '')}.{rest}", last) if fits else (None, "")
    if len(signs) > 1:
        return (number.replace(last, ""), other) if _in_groups(number, last) else (None, "")
    if grouped or len(rest) != 3 or len(whole) > 3 or not whole.strip("0"):  # no thousands
        return f"{whole or '0'}.{rest or '0'}", last if rest else ""
    if not decimal:
        return None, ""
    return (f"{whole}.{rest}" if decimal == last else whole + rest), ""


def _in_groups(number: str, sign: str) -> bool:
    """Whether digits stand in threes between these signs; or as in India, but for the last three in twos."""
    return bool(re.fullmatch(rf"\d{{1,3}}(\{sign}\d{{3}})+|\d{{1,2}}(\{sign}\d{{2}})*\{sign}\d{{3}}", number))
