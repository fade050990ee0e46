"""Texts are cleaned to one line, and cleaning them again changes nothing."""

from __future__ import annotations

import re
import time
import unicodedata

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goods.data.texts import clean_text, join_texts
from goods.figures.style import short

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
TEXTS = [
    ("Tom &amp; Jerry&#39;s &quot;best&quot;", 'Tom & Jerry\'s "best"'),
    ("Bed &amp;amp; Bath", "Bed & Bath"),  # Amazon escapes twice
    ("&lt;b&gt;Bold&lt;/b&gt; <br/>\n<p class='x'>Text</p>", "Bold Text"),
    ("a<!-- hidden\n -->b", "a b"),
    ("a <!-- ends --> b <i>c</i> <!-- doesn't <b>d</b>", "a b c <!-- doesn't d"),
    ("I <3 you, 4 > 3 and 2 < 3", "I <3 you, 4 > 3 and 2 < 3"),
    ("see https://a.b/c?d=1&amp;e=2 and www.shop.com now", "see and now"),
    ("a\tb\r\n\r\nc\u2028d\x0be\xa0f", "a b c d e f"),
    ("\ufeffzero\u200bwidth\xad", "zerowidth"),
    ("ｆｕｌｌ width ﬁt ２", "full width fit 2"),
    ("cafe\u0301", "café"),
    ("e\u200b\u0301", "é"),
    ("family 👩\u200d👧", "family 👩\u200d👧"),  # the joiner makes one sign of two
    ("a\x00b\x07c\ufffdd", "a b c d"),
    ("bad &#0; &#xD800; &#xFFFFFFFF; &nosuch;", "bad &nosuch;"),
    (f"&#{'9' * 5000}; &amp;#{'9' * 5000};", ""),
    ("日本語 – Straße", "日本語 – Straße"),
    ("", ""),
    (" \n ", ""),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS, ids=[ascii(text)[1:21] for text, _ in TEXTS])
def test_clean_text(text, expected):
    assert clean_text(text) == expected


def seconds(clean, text):
    """The least of three measurements, of this process alone."""
    took = []
    for _ in range(3):
        begun = time.process_time()
        clean(text)
        took.append(time.process_time() - begun)
    return min(took)


@pytest.mark.parametrize("clean", [clean_text, short], ids=["clean_text", "in_a_figure"])
@pytest.mark.parametrize(
    "part", ["<!--", "<!-- x --", "&amp;lt;!--", "<a ", "&lt;", "&#1", "e\u0301\u0316", "\u0327\u0301"]
)
def test_the_work_grows_with_the_length_of_a_text(part, clean):
    """Eight times the text takes about eight times as long; by the square it would be 64."""
    some = part * (4000 // len(part))
    assert seconds(clean, 8 * some) < 24 * max(seconds(clean, some), 1e-4)


MARKUP = (
    "& &amp; &lt; &#10; &#x2028; &# ; < > </b> <b <!-- --> http:// www. e\u0301 \u200b \r\n \ud800 \ufdfa 🏳️‍🌈".split(
        " "
    )
)
anything = st.lists(st.one_of(st.text(st.characters(), max_size=8), st.sampled_from(MARKUP))).map("".join)


@given(anything)
@settings(max_examples=300, deadline=None)
def test_clean_text_is_one_line_without_control_characters(text):
    cleaned = clean_text(text)
    assert cleaned == cleaned.strip() and "  " not in cleaned
    assert len(cleaned.splitlines()) <= 1
    assert not {unicodedata.category(letter) for letter in cleaned} & {"Cc", "Cs"}
    cleaned.encode("utf-8")


@given(anything)
@settings(max_examples=300, deadline=None)
def test_clean_text_leaves_clean_text_alone(text):
    cleaned = clean_text(text)
    if not re.search(r"[&<]|https?://|www\.", cleaned):  # what is left of markup may look like markup
        assert clean_text(cleaned) == cleaned


@given(anything)
@settings(max_examples=300, deadline=None)
def test_plain_lines_are_cleaned_as_others_are(text):
    plain = text.encode("ascii", "ignore").decode()
    assert clean_text(plain) == clean_text(f"\u200b {plain}")  # nothing that is seen, but no ASCII


def test_texts_are_joined_without_the_empty_ones():
    table = pd.DataFrame({"a": ["One", "", "<br>", ""], "b": ["two", "three", "four", " "], "c": ["", "4", "", ""]})
    assert join_texts(table) == ["One. two", "three. 4", "four", ""]
