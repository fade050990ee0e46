"""The heat map of an explanation lies on the photo that the model saw."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from goods.data.photos import load_photo
from goods.figures.errors import occlusion

WORDS = pd.DataFrame({"word": ["green", "tea"], "lost": [0.2, -0.1]})
PROBABILITIES = {"all": 0.9, "without image": 0.4, "without text": 0.7}


@pytest.fixture
def turned(tmp_path: Path) -> str:
    """A photo 120 wide and 80 high, lying on its side as telephones write them."""
    noise = np.random.default_rng(3).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me a quarter clockwise"
    path = tmp_path / "turned.jpg"
    Image.fromarray(noise).resize((120, 80)).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return str(path)


def drawn(image: str, patches: np.ndarray | None) -> Figure:
    return occlusion(image, patches, WORDS, PROBABILITIES, "Tea")


def test_the_picture_is_what_the_model_reads(turned: str) -> None:
    photo, heat = drawn(turned, np.eye(7)).axes[0].images
    pixels = np.asarray(photo.get_array())
    assert pixels.shape == (253, 253, 3)  # 2.3 inches of 110 dots
    assert np.array_equal(pixels, load_photo(turned, 253).permute(1, 2, 0))
    assert np.array_equal(heat.get_array(), np.eye(7))


def test_the_heat_map_covers_the_upright_photo(turned: str) -> None:
    photo, heat = drawn(turned, np.eye(7)).axes[0].images
    assert photo.get_extent() == heat.get_extent() == [-0.5, 0.5, pytest.approx(1 / 3), pytest.approx(-1 / 3)]


def test_without_patches_the_photo_is_shown_alone(turned: str) -> None:
    (photo,) = drawn(turned, None).axes[0].images
    assert np.asarray(photo.get_array()).shape == (253, 253, 3)
    assert [text.get_text() for text in drawn("", None).axes[0].texts] == ["no photo"]


@pytest.mark.filterwarnings("error:Glyph")
def test_words_are_drawn_in_letters_that_the_narrow_font_lacks(tmp_path: Path) -> None:
    words = pd.DataFrame({"word": ["Cup", "😀", "🎁", "ღ"], "lost": [0.1, 0.2, 0.3, 0.1]})
    fig = occlusion("", None, words, PROBABILITIES, "Tea")
    assert [text.get_text() for text in fig.axes[1].texts] == ["Cup", "😀", "…", "ღ"]
    fig.savefig(tmp_path / "words.png")


def test_the_title_says_what_is_left() -> None:
    title = drawn("", None).get_suptitle().replace("\n", " ")
    assert title == "Tea with probability .900: .400 without image and .700 without text"
