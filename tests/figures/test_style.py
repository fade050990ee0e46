"""All figures: no input makes them warn, fail or pile up."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import CLASSES, LABELS, check_drawn, products, texts, title
from PIL import Image

from goods.figures import eda, embeddings, ensemble, errors, training
from goods.figures.eda import class_balance, fold_balance, sample_grid, text_lengths
from goods.figures.ensemble import prediction_balance
from goods.figures.errors import class_f1, confused_pairs, confusion_matrix, worst_errors
from goods.figures.style import read_photo, read_photos, short
from goods.files import ROOT

ODD_NAMES = [
    "$cash$ and $x^2$",
    "_hidden",
    "商品",
    "🐱👍🏽",
    "مرحبا بالعالم",
    "",
    "x" * 200,
    "a\tb\nc\x00",
    "\\$ {0} %d",
    "$",
]


def every_figure(labels, predictions, classes, frame):
    """All figures that know classes, drawn from the same products."""
    folds = [index % 3 for index in range(len(labels))]
    yield class_balance(labels, classes)
    yield sample_grid(frame, classes)
    yield fold_balance(folds, labels, classes)
    yield confusion_matrix(labels, predictions, classes)
    yield class_f1(labels, predictions, classes)
    yield confused_pairs(labels, predictions, classes)
    yield worst_errors(frame.assign(prediction=predictions, probability=0.5), classes)
    yield prediction_balance(labels, predictions, classes)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [["Books"], [f"class {index}" for index in range(500)], ODD_NAMES])
def test_any_classes(classes, tmp_path):
    frame = products(400, max(1, len(classes) - 1))  # the last of several classes has no product
    frame["title"] = [ODD_NAMES[index % len(ODD_NAMES)] for index in range(400)]
    labels = frame["label"].to_numpy()
    for number, fig in enumerate(every_figure(labels, (labels * 7) % len(classes), classes, frame)):
        check_drawn(fig, tmp_path / f"{number}.png")


@pytest.mark.parametrize("classes", [[], CLASSES])
def test_nothing_to_show(classes, tmp_path):
    figures = [*every_figure([], [], classes, products(0, 1)), text_lengths([], 64)]
    for number, fig in enumerate(figures):
        assert title(fig).startswith("There are no ")
        assert texts(fig.axes[0]) == ["nothing to show"]
        check_drawn(fig, tmp_path / f"{number}.png")


def test_names_are_kept_from_mathtext_and_shortened():
    (ax,) = class_balance([0, 0, 1, 2, 3], ["$a$ $b$", "_x", "y" * 50, "🪭🪭"]).axes
    drawn = [label._preprocess_math(label.get_text()) for label in ax.get_yticklabels()]
    assert drawn == [("$a$ $b$", False), ("_x", False), ("y" * 29 + "…", False), ("class 3", False)]


def test_any_photo(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "tiny.png")
    Image.new("RGB", (20_000, 100), "red").save(tmp_path / "wide.jpg")
    Image.new("L", (20_000, 1)).save(tmp_path / "line.png")
    Image.new("RGBA", (30, 60), (255, 0, 0, 90)).save(tmp_path / "clear.png")
    Image.new("I;16", (30, 60), 40_000).save(tmp_path / "deep.png")
    Image.new("CMYK", (30, 60)).save(tmp_path / "print.jpg")
    Image.new("P", (30, 60)).save(tmp_path / "palette.gif")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    (tmp_path / "empty.jpg").touch()
    files = sorted(path.name for path in tmp_path.iterdir())
    frame = products(len(files) + 2, 1)
    frame["image"] = [str(tmp_path / name) for name in [*files, "missing.jpg"]] + [""]
    fig = sample_grid(frame, ["Books"], per_class=len(frame))
    assert title(fig) == f"{len(frame)} products of 1 class: 4 without a photo"
    check_drawn(fig, tmp_path / "grid.png")
    assert read_photo(str(tmp_path / "tiny.png"), 8).tolist() == [[[255, 0, 0]] * 8] * 8


def test_a_picture_larger_than_pillow_allows_is_no_photo(tmp_path, monkeypatch):
    Image.new("RGB", (60, 60)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_photo(str(tmp_path / "bomb.png"), 8) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3600)
    assert read_photo(str(tmp_path / "bomb.png"), 8).shape == (8, 8, 3)


def test_the_style_holds_whatever_the_caller_set():
    with plt.rc_context({"axes.labelsize": 30, "ytick.labelsize": 30, "axes.facecolor": "k", "text.parse_math": True}):
        (ax,) = class_balance(LABELS, CLASSES).axes
        assert {ax.yaxis.label.get_size(), ax.get_yticklabels()[0].get_size()} == {8.5, 8.0}
        assert ax.get_facecolor() == (1, 1, 1, 1)


def test_public_functions_are_typed_and_described():
    public = [
        f
        for room in (eda, embeddings, training, errors, ensemble)
        for name, f in vars(room).items()
        if inspect.isfunction(f) and f.__module__ == room.__name__ and name[0] != "_"
    ]
    assert len(public) == 26
    for function in public:
        assert inspect.signature(function).return_annotation == "Figure"
        assert len(inspect.getdoc(function).splitlines()) >= 3


@pytest.mark.slow
def test_a_notebook_shows_each_figure_once_and_keeps_its_own_plots(tmp_path):
    import nbclient
    import nbformat

    cells = [
        "from goods.figures.eda import class_balance",
        "class_balance([0, 0, 1], ['a', 'b'])",
        "class_balance([], ['a'])",
        "fig = class_balance([0], ['a'])\nfor _ in range(25):\n    class_balance([0], ['a'])",
        "fig",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # of zmq and asyncio, none of ours
        nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(ROOT)}}).execute()
    pictures = [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in notebook.cells]
    assert pictures == [0, 1, 1, 0, 1, 1]
    assert not [output for cell in notebook.cells for output in cell.outputs if output.output_type == "stream"]


def test_titles_are_shown_as_people_read_them():
    assert short("Men &amp; Women") == "Men & Women"


def test_capitals_take_more_room_than_small_letters():
    assert short("conan structure sweater", 23) == "conan structure sweater"
    assert short("CONAN STRUCTURE SWEATER", 23, lines=2) == "CONAN STRUCTURE\nSWEATER"
    assert short("Tools & Home Improvement", 24) == "Tools & Home Improvement"


def test_several_photos_of_a_product_are_shown_in_a_grid(tmp_path):
    paths = [str(tmp_path / f"{colour}.png") for colour in ("red", "lime", "blue")]
    for path in paths:
        Image.new("RGB", (8, 8), Path(path).stem).save(path)
    shown = read_photos((*paths, str(tmp_path / "gone.png")), 20)
    assert shown.shape == (20, 20, 3)
    corners = [shown[5, 5], shown[5, 15], shown[15, 5], shown[15, 15]]
    assert [corner.tolist() for corner in corners] == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255] * 3]
    assert np.array_equal(read_photos((paths[0],), 20), read_photo(paths[0], 20)) and read_photos((), 20) is None
    frame = products(2, 1).assign(image=paths[0], images=[tuple(paths), ()])
    drawn = [ax.images[0].get_array() for ax in sample_grid(frame, ["Books"], per_class=2).axes if ax.images]
    assert sorted(len(np.unique(np.asarray(pixels).reshape(-1, 3), axis=0)) for pixels in drawn) == [1, 4]
