"""Scripts that the usual font lacks: drawn where a font has them, readable where none has, and a line says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from drawn import names
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from goods.figures import fonts
from goods.figures.eda import class_balance
from goods.figures.style import short

HINT = (
    "The fonts here lack {} letters of some names, so figures show others in their place; "
    "install {} (Debian, Ubuntu: {}) and draw again."
)


def install(name: str, letters: str) -> Path:
    """A font of squares, in the user's folder of fonts."""
    pen = TTGlyphPen(None)
    for step, corner in enumerate([(50, 0), (50, 700), (750, 700), (750, 0)]):
        pen.lineTo(corner) if step else pen.moveTo(corner)
    pen.closePath()
    order = [".notdef", *(f"glyph{number}" for number in range(len(letters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord(letter): order[number + 1] for number, letter in enumerate(letters)})
    builder.setupGlyf({glyph: pen.glyph() for glyph in order})
    builder.setupHorizontalMetrics(dict.fromkeys(order, (800, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = Path.home() / ".local" / "share" / "fonts" / f"{name}.ttf"
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)
    return path


@pytest.fixture(autouse=True)
def only_dejavu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with matplotlib's own fonts alone, whatever this one has."""
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in str(entry.fname)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    here = str(Path.home() / ".local" / "share" / "fonts")
    listed = lambda: [os.path.join(here, name) for name in os.listdir(here)] if os.path.isdir(here) else []  # noqa: E731
    monkeypatch.setattr(font_manager, "findSystemFonts", listed)
    del fonts.FONTS[1:]
    fonts.drawable.cache_clear()
    fonts._say_missing.cache_clear()
    yield
    del fonts.FONTS[1:]
    fonts.drawable.cache_clear()


def test_a_font_installed_after_matplotlibs_list_was_made_is_found(capsys: pytest.CaptureFixture) -> None:
    path = install("Late Han", "商品图")
    try:
        (ax,) = class_balance([0, 0, 1], ["商品", "Books"]).axes
        assert names(ax) == ["商品", "Books"]
        assert ax.get_yticklabels()[0].get_fontfamily() == ["DejaVu Sans", "Late Han"]
        assert capsys.readouterr().out == ""
    finally:
        path.unlink()


def test_what_no_font_has_is_put_into_latin_letters_or_a_box_and_said_once(capsys: pytest.CaptureFixture) -> None:
    assert [short(name) for name in ("한국 tea", "カメラ", "商品 A", "商品")] == ["hangug tea", "kamera", "□ A", "□"]
    said = capsys.readouterr().out.splitlines()
    cjk = ("Noto Sans CJK", "fonts-noto-cjk")
    assert said == [HINT.format(name, *cjk) for name in ("Korean", "Japanese", "Chinese")]
    assert short("กา") == "□"
    assert capsys.readouterr().out.strip() == HINT.format("Thai", "Noto Sans Thai", "fonts-noto-core")


def test_an_emoji_that_no_font_has_falls_away_with_its_space(capsys: pytest.CaptureFixture) -> None:
    assert [short(name) for name in ("Cup 🎁", "🎁 Cup 👍🏽 red", "🎁", "Cup 😀")] == ["Cup", "Cup red", "", "Cup 😀"]
    said = "The fonts here lack emoji of some names, so figures leave them out; "
    assert capsys.readouterr().out.strip() == said + "install Symbola (Debian, Ubuntu: fonts-symbola) and draw again."


def test_arabic_and_the_older_emoji_need_no_other_font(capsys: pytest.CaptureFixture) -> None:
    assert (short("مرحبا"), short("😀")) == ("مرحبا", "😀")
    assert capsys.readouterr().out == ""
