"""Numbers as words: counts with their noun, shares, scores, spans. Figures and sentences say them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 fold", "1,204 products"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def percent(share: float) -> str:
    """A share as a percentage: "37 %", "4.2 %", "<0.1 %"."""
    points = 100 * float(share)
    if 0 < points < 0.1 or 99.9 < points < 100:
        return "<0.1 %" if points < 1 else ">99.9 %"
    return (f"{points:.0f}" if 10 <= points <= 90 else f"{points:.1f}".removesuffix(".0")) + " %"


def digits(value: float) -> str:
    """A score with three decimals and no zero before the point: ".742", "-.012"."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def span(values: Sequence[float], form: Callable[[float], str]) -> str:
    """From the least to the most of the values: "3 to 7", or "3" where both read the same."""
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"


def joined(words: Sequence[str]) -> str:
    """Words as a list in a sentence: "a", "a and b", "a, b and c"."""
    *most, last = words or ["none"]
    return f"{', '.join(most)} and {last}" if most else last
