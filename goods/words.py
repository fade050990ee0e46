"""Numbers as people read them. Light: nothing is imported."""

from __future__ import annotations


def digits(value: float) -> str:
    """A score with three decimals and no zero before the point: ".742", "-.018"."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def signed(value: float) -> str:
    """A gain, with its sign: "+.008"."""
    text = digits(value)
    return text if text.startswith("-") else f"+{text}"


def duration(seconds: float | None) -> str:
    """A time: 4.2 s, 75 s, 12 min, 3.4 h; "" for none."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """So many bytes: 4.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def gib(value: float | None) -> str:
    """So many GiB; "" for none."""
    return "" if value is None else f"{value:.1f} GiB" if value >= 0.1 else "under .1 GiB"
