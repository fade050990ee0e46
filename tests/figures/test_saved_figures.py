"""save_figure keeps a figure for the report and gives it back for the notebook to show."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pytest
from PIL import Image

from goods.figures.eda import class_balance
from goods.figures.style import save_figure


def test_a_kept_figure_is_a_png_and_is_given_back(tmp_path: Path) -> None:
    figure, path = class_balance([0, 0, 1], ["a", "b"]), tmp_path / "fold0" / "figures" / "balance.png"
    assert save_figure(path, figure) is figure
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (660, 209))  # 6.0 x 1.9 inches of 110 dots


def test_a_figure_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    class Broken:
        def savefig(self, path: Path, format: str) -> None:
            path.write_bytes(b"half")
            raise OSError("disk full")

    path = tmp_path / "balance.png"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="disk full"):
        save_figure(path, Broken())
    assert path.read_bytes() == b"before" and [file.name for file in tmp_path.iterdir()] == ["balance.png"]
