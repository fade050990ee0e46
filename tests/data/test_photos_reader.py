"""One reader of photos: what the model, the figures and the near-duplicate hashes see of a file is the same."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goods.data.photos import load_photo, open_upright, squash
from goods.figures.style import read_photo
from goods.trust import photo_hashes

GOODS = Path(__file__).resolve().parents[2] / "goods"
ORIENTATION = 0x0112
QUARTER_CLOCKWISE = 6  # "turn me a quarter clockwise to see me upright"


def picture(size: tuple[int, int] = (120, 80)) -> Image.Image:
    """Smooth colours without any symmetry."""
    noise = np.random.default_rng(3).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def turned(tmp_path: Path) -> str:
    """A photo that lies on its side, as telephones write them."""
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER_CLOCKWISE
    picture().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    return str(tmp_path / "turned.png")


@pytest.fixture
def upright(tmp_path: Path) -> str:
    """The same photo, saved as it is seen."""
    picture().save(tmp_path / "upright.png")
    return str(tmp_path / "upright.png")


def test_a_turned_photo_is_opened_upright(turned: str) -> None:
    image = open_upright(turned, 64)
    assert (image.mode, image.size) == ("RGB", (120, 80))
    assert np.array_equal(image, picture())


def test_figures_show_a_turned_photo_upright(turned: str, upright: str) -> None:
    shown = read_photo(turned, 60)
    assert shown.shape == (60, 60, 3) and np.array_equal(shown, read_photo(upright, 60))
    assert (shown[:10] == 255).all() and not (shown[10:50] == 255).all(axis=(1, 2)).any()  # wide, not high


def test_a_turned_photo_has_the_hash_of_its_upright_copy(turned: str, upright: str) -> None:
    hashes = photo_hashes([turned, upright])
    assert hashes[0].any() and np.array_equal(hashes[0], hashes[1])


def test_the_model_reads_what_is_opened(turned: str) -> None:
    pixels = load_photo(turned, 32)
    assert tuple(pixels.shape) == (3, 32, 32)
    assert np.array_equal(pixels, squash(open_upright(turned, 32), 32))


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [("RGBA", (255, 0, 0, 0), 255), ("LA", (0, 128), 127), ("I;16", 77 * 257, 77), ("L", 30, 30)],
)
def test_model_figures_and_hashes_see_the_same_colours(tmp_path: Path, mode: str, colour, seen: int) -> None:
    path, same = str(tmp_path / "photo.png"), str(tmp_path / "same.png")
    image = Image.new(mode, (16, 16), colour)
    if mode == "I;16":
        image = Image.fromarray(np.full((16, 16), colour, dtype=np.uint16))
    image.save(path)
    Image.new("L", (16, 16), seen).save(same)
    assert np.unique(load_photo(path, 16)).tolist() == [seen]
    assert np.unique(read_photo(path, 16)).tolist() == [seen]
    assert np.array_equal(*photo_hashes([path, same]))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_the_model_can_not_read_no_figure_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "huge.png")
    Image.new("RGB", (60, 60), "red").save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ValueError, match="60 x 60 pixels are too many"):
        load_photo(path, 16)
    assert read_photo(path, 16) is None and not photo_hashes([path]).any()


def test_no_other_module_opens_an_image() -> None:
    found = [
        f"{path.relative_to(GOODS)}:{node.lineno}"
        for path in sorted(GOODS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("Image.open", "PIL.Image.open", "plt.imread")
    ]
    assert {place.split(":")[0] for place in found} == {"data/photos.py"}
