"""Texts as a model reads them: one clean line."""

from __future__ import annotations

import html
import re
import string
import unicodedata

import pandas as pd

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_TAG_OR_COMMENT = re.compile(r"<(?:/?[a-zA-Z][^<>]*|!--.*?--)>", re.DOTALL)
_URL = re.compile(r"(?:https?://|www\.)\S+")
_MARKUP = re.compile(r"[&<]|https?://|www\.")  # what may be left to clean in a printable line of ASCII
_NO_CODE = re.compile(r"&#[0-9]{20,};?")  # beyond Unicode, and int() refuses thousands of digits
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufffd]")
_INVISIBLE = re.compile(r"[\xad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")  # not the joiner that emoji need
_PIECES = re.compile(r"\s+|\S{1,1000}")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_text(text: str) -> str:
    """One line of plain text: HTML entities read (twice: Amazon escapes twice), NFKC, no tags, URLs, control codes."""
    if text.isascii() and text.isprintable() and not _MARKUP.search(text):
        return " ".join(text.split())  # as most are, in a tenth of the time
    for _ in range(2):
        text = html.unescape(_NO_CODE.sub(" ", text))
    text = _URL.sub(" ", _without_tags(text))
    text = _INVISIBLE.sub("", _CONTROL.sub(" ", text))  # before NFKC: what they kept apart may become one letter
    # Piece by piece: sorting a run of accents takes the square of its length, and some texts are nothing else.
    pieces = _PIECES.findall(text) if len(text) > 1000 else [text]
    return " ".join("".join(unicodedata.normalize("NFKC", piece) for piece in pieces).split())


def _without_tags(text: str) -> str:
    """The text with a space for each tag and comment; a comment that never ends is no comment.

    Comments are looked for up to the last end of one, or each of many beginnings would look through all the rest.
    """
    end = text.rfind("-->") + 3 if "-->" in text else 0
    return _TAG_OR_COMMENT.sub(" ", text[:end]) + _TAG.sub(" ", text[end:])


def join_texts(columns: pd.DataFrame) -> list[str]:
    """The cleaned text of each row: its columns' texts, the empty ones left out, joined by ". "."""
    cleaned = [[clean_text(text) for text in columns[name]] for name in columns]
    return [". ".join(text for text in row if text) for row in zip(*cleaned, strict=True)]


def canonical(text: str) -> str:
    """A text as SigLIP 1 reads it: lower case, without punctuation and stray spaces."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())
