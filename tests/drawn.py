"""What tests read off a drawn figure, and products to draw."""

from __future__ import annotations

import pandas as pd
from PIL import Image

CLASSES = ["Books", "Baby", "Beauty", "All Beauty"]
#         given: 4 Books, 1 Baby, 5 Beauty, 2 All Beauty
LABELS = [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3]
PREDICTIONS = [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 0]


def title(fig):
    return fig.get_suptitle().replace("\n", " ")


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def check_drawn(fig, path):
    """The saved picture holds something, also outside the style it was drawn in."""
    fig.savefig(path, dpi=50)
    with Image.open(path) as image:
        assert image.convert("L").getextrema()[0] < 200
    assert fig.get_suptitle()


def products(count, classes, image=""):
    label = [index % classes for index in range(count)]
    return pd.DataFrame(
        {"id": [str(index) for index in range(count)], "title": "A thing", "label": label, "image": image}
    )
