"""Letters of any script: drawn where a font here has them, else Latin letters or a box, and a line to say so."""

from __future__ import annotations

import contextlib
import functools
import re
import unicodedata
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FONTS = ["DejaVu Sans"]  # comes with matplotlib; what names and titles turn out to need is added behind it
# What people call a script, the font to install, and the package that brings it on Debian and Ubuntu.
CJK = ("Noto Sans CJK", "fonts-noto-cjk")
SCRIPTS = {
    "CJK": ("Chinese", *CJK),
    "HIRAGANA": ("Japanese", *CJK),
    "KATAKANA": ("Japanese", *CJK),
    "KATAKANA-HIRAGANA": ("Japanese", *CJK),
    "HANGUL": ("Korean", *CJK),
    "FULLWIDTH": ("full-width", *CJK),
    "emoji": ("emoji", "Symbola", "fonts-symbola"),
}
KATAKANA_SIGNS = {"ー": "-", "・": " ", "゛": "", "゜": ""}


@functools.cache
def drawable() -> frozenset[int]:
    """Code points that our fonts can draw."""
    paths = [font_manager.findfont(font_manager.FontProperties(family=name)) for name in FONTS]
    return frozenset(code for path in paths for code in font_manager.get_font(path).get_charmap())


def script_of(letter: str) -> str:
    """A letter's script, as the first word of its Unicode name says it; "emoji" for pictures."""
    if unicodedata.category(letter) == "So" or 0x1F000 <= ord(letter) < 0x1FB00:
        return "emoji"
    return unicodedata.name(letter, "other").split()[0]


def written(text: str) -> str:
    """The text as it can be drawn here: a font that has its letters is looked for, and what none has is replaced.

    Korean and Japanese syllables become Latin letters, emoji fall away, everything else is a box for each run.
    """
    if all(ord(letter) in drawable() for letter in text):
        return text
    lost = {letter for letter in text if ord(letter) not in drawable()}
    for script in sorted({script_of(letter) for letter in lost}):
        _look_for_font(script, frozenset(letter for letter in lost if script_of(letter) == script))
    shown = re.sub("□+", "□", "".join(c if ord(c) in drawable() else latin(c) for c in text))
    return " ".join(shown.split())  # without the spaces around an emoji that has fallen away


def latin(letter: str) -> str:
    """A syllable in Latin letters, by its Unicode name; nothing for an emoji, which only adorns; else a box."""
    if letter in KATAKANA_SIGNS or script_of(letter) == "emoji":
        return KATAKANA_SIGNS.get(letter, "")
    name = unicodedata.name(letter, "")
    found = re.match(r"(?:HANGUL SYLLABLE|(?:HIRAGANA|KATAKANA) LETTER(?: SMALL)?) (\w+)$", name)
    return found[1].lower() if found else "□"


def _look_for_font(script: str, letters: frozenset[str]) -> None:
    """Adds the font that has most of the letters to FONTS; where none has any, says once which to install."""
    entries = _fonts_here()
    found = max(entries, key=lambda name: len(_covered(entries[name], letters)), default=None)
    if found and _covered(entries[found], letters):
        if found not in FONTS:
            FONTS.append(found)
            drawable.cache_clear()
    else:
        _say_missing(*SCRIPTS.get(script, (script.capitalize(), f"Noto Sans {script.capitalize()}", "fonts-noto-core")))


@functools.cache
def _say_missing(called: str, font: str, package: str) -> None:
    what, instead = f"{called} letters", "show others in their place"
    if called == "emoji":
        what, instead = called, "leave them out"
    print(f"The fonts here lack {what} of some names, so figures {instead}; install {font} "
          f"(Debian, Ubuntu: {package}) and draw again.", flush=True)  # fmt: skip


def _fonts_here() -> dict[str, str]:
    """{family: file} of the fonts installed now, upright ones of normal weight, Noto's first.

    matplotlib keeps a list from when it was first used; a font that was installed later is added to it.
    """
    manager = font_manager.fontManager
    known = {str(entry.fname) for entry in manager.ttflist}
    for path in set(font_manager.findSystemFonts()) - known:
        with contextlib.suppress(Exception):  # no font, or one that FreeType can't read
            manager.addfont(path)
    entries = [entry for entry in manager.ttflist if entry.style == "normal" and "Last Resort" not in entry.name]
    entries.sort(key=lambda entry: (not entry.name.startswith("Noto Sans"), entry.weight not in (400, "normal")))
    return {entry.name: str(entry.fname) for entry in reversed(entries)}


@functools.lru_cache(2000)
def _charmap(path: str) -> frozenset[int]:
    """The code points of a font of outlines; none where its letters are pictures, or where it can't be read."""
    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except Exception:  # a file that is gone, or is no font
        return frozenset()


def _covered(path: str, letters: Iterable[str]) -> list[str]:
    return [letter for letter in letters if ord(letter) in _charmap(path)]
