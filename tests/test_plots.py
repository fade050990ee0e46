"""Figures: what their titles find, what stands in them, and that no input makes them warn, fail or pile up."""

import inspect
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from goods.files import ROOT

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from goods.figures import eda, ensemble, errors, training
from goods.figures.eda import class_balance, fold_balance, photo_sizes, sample_grid, text_lengths
from goods.figures.ensemble import curves, embedding_map, method_gains, modality_scores, prediction_balance, reliability
from goods.figures.errors import class_f1, confused_pairs, confusion_matrix, worst_errors
from goods.figures.style import VERMILION, read_photo, short
from goods.figures.training import learning_curves, rates_and_gradients

CLASSES = ["Books", "Baby", "Beauty", "All Beauty"]
#         given: 4 Books, 1 Baby, 5 Beauty, 2 All Beauty
LABELS = [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3]
PREDICTIONS = [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 0]
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


@pytest.fixture(autouse=True)
def strict():
    """Every warning is an error, and every figure function leaves pyplot and the style as they were."""
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


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


# ---------------------------------------------------------------------------------------------------------------------
# The goods
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes", "finding"),
    [
        ([0] * 1204 + [1] * 293, CLASSES[:2], "Books is 4.1 times as frequent as Baby (1,204 vs 293 products)"),
        ([0] * 3, CLASSES[:1], "All products are Books (3 products)"),
        ([0, 0, 1], CLASSES, "2 of 4 classes without a product; Books has the most (2)"),
        ([0] * 11 + [1] * 10, CLASSES[:2], "The 2 classes are balanced: 10 to 11 products each"),
        ([], CLASSES, "There are no products to count"),
    ],
)
def test_class_balance_finds(labels, classes, finding):
    assert title(class_balance(labels, classes)) == finding


def test_class_balance_draws_a_bar_a_class():
    (ax,) = class_balance(LABELS, CLASSES).axes
    assert names(ax) == ["Beauty", "Books", "All Beauty", "Baby"]
    assert [bar.get_width() for bar in ax.patches] == [5, 4, 2, 1]


def test_many_classes_are_cut_to_both_ends():
    labels = [index for index in range(100) for _ in range(index + 1)]
    (ax,) = class_balance(labels, [f"c{index}" for index in range(100)]).axes
    assert ax.get_ylabel() == "20 most and 20 least frequent of 100 classes"
    assert names(ax) == [f"c{index}" for index in [*range(99, 79, -1), *range(19, -1, -1)]]


def test_labels_must_have_names():
    with pytest.raises(ValueError, match="labels run from 0 to 4, but there are 4 class names"):
        class_balance([0, 4], CLASSES)
    with pytest.raises(ValueError, match="2 labels but 1 predictions"):
        class_f1([0, 1], [0], CLASSES)


def test_text_lengths_counts_what_is_cut():
    lengths = [10] * 88 + [65] * 12
    fig = text_lengths(lengths, 64)
    assert title(fig) == "12 % of texts are cut at 64 tokens (median 10, longest 65)"
    bars = fig.axes[0].patches
    red = [bar for bar in bars if matplotlib.colors.same_color(bar.get_facecolor(), VERMILION)]
    assert sum(bar.get_height() for bar in bars) == 100
    assert sum(bar.get_height() for bar in red) == 12
    assert title(text_lengths([64, 3], 64, "words")) == "No text is cut at 64 words (median 34, longest 64)"


def test_text_lengths_keeps_far_outliers_in_the_last_bar():
    fig = text_lengths([20] * 999 + [100_000], 64)
    assert sum(bar.get_height() for bar in fig.axes[0].patches) == 1000
    assert "last bar: " in fig.axes[0].get_xlabel()
    assert fig.axes[0].get_xlim()[1] < 100


@pytest.mark.parametrize(
    ("sizes", "modes", "finding"),
    [
        ([(100, 100)] * 4, ["RGB"] * 4, "All photos are 100 x 100 px (4 photos); all RGB"),
        ([(1, 1)], ["L"], "All photos are 1 x 1 px (1 photo); all L"),
        ([(9, 9)] * 3 + [(20_000, 50)], ["RGB"] * 3 + ["L"], "75 % of 4 photos are 9 x 9 px; 25 % are greyscale"),
        ([(90 + i, 200) for i in range(9)], ["RGB"] * 9, "Sides of the 9 photos run from 90 to 200 px; all RGB"),
        ([(np.nan, np.nan), (0, 0)], ["", ""], "There are no photos to measure"),
    ],
)  # fmt: skip
def test_photo_sizes_finds(sizes, modes, finding, tmp_path):
    photos = pd.DataFrame(sizes, columns=["width", "height"]).assign(mode=modes)
    fig = photo_sizes(photos)
    assert title(fig) == finding
    check_drawn(fig, tmp_path / "photos.png")


def test_sample_grid_shows_three_products_a_class(tmp_path):
    Image.new("RGB", (40, 80), "red").save(tmp_path / "red.jpg")
    train = products(63, 21, image=str(tmp_path / "red.jpg"))
    train.loc[0, "image"] = ""
    fig = sample_grid(train, [f"c{index}" for index in range(21)])
    assert title(fig) == "63 products of 21 classes: 1 without a photo"
    assert len(fig.axes) == 63
    assert sum(texts(ax) == ["no photo"] for ax in fig.axes) == 1
    assert [ax.get_title(loc="left") for ax in fig.axes[:4]] == ["c0 (3)", "", "", "c1 (3)"]


def test_sample_grid_limits_the_classes():
    train = products(31, 30)  # the first class has one product more
    fig = sample_grid(train, [f"c{index}" for index in range(30)], per_class=2)
    assert title(fig) == "25 products of the 24 most frequent of 30 classes: 25 without a photo"
    assert fig.axes[0].get_title(loc="left") == "c0 (2)"


def test_sample_grid_is_repeatable():
    train = products(300, 2)
    train["title"] = "title " + train["id"]
    drawn = [[ax.get_xlabel() for ax in sample_grid(train, CLASSES[:2], seed=seed).axes] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_sample_grid_marks_an_empty_class():
    fig = sample_grid(products(2, 1), CLASSES[:2])
    assert [texts(ax) for ax in fig.axes] == [["no photo"], ["no photo"], ["no product"]]


def test_fold_balance_finds_the_largest_deviation():
    labels, folds = [0] * 50 + [1] * 50, ([0] * 30 + [1] * 20) + ([0] * 20 + [1] * 30)
    fig = fold_balance(folds, labels, CLASSES[:2])
    assert title(fig) == "Class shares differ by at most 10.0 points: Books is 60 % of fold 0, 50 % of all"
    assert texts(fig.axes[0]) == ["+10.0", "-10.0", "-10.0", "+10.0"]
    even = fold_balance([0, 0, 1, 1], [0, 1, 0, 1], CLASSES[:2])
    assert title(even) == "Every class has the same share in 2 folds"
    absent = fold_balance([0, 0, 1, 1], [0, 1, 1, 1], CLASSES)
    assert title(absent).endswith("; 1 class missing from a fold")


# ---------------------------------------------------------------------------------------------------------------------
# Training and errors
# ---------------------------------------------------------------------------------------------------------------------


def logs(scores):
    rows = [(fold, e, 1 / e, 1.1 / e, f1) for fold, row in enumerate(scores) for e, f1 in enumerate(row, start=1)]
    return pd.DataFrame(rows, columns=["fold", "epoch", "train_loss", "valid_loss", "macro_f1"])


@pytest.mark.parametrize(
    ("scores", "finding"),
    [
        ([[0.5, 0.8, 0.9, 0.912, 0.911]], "Best macro-F1 .912 at epoch 4 of 5"),
        ([[0.5, 0.7], [0.6, 0.5]], "Best macro-F1 .600 to .700 at epochs 1 to 2 of 2 (2 folds)"),
        ([[0.5]] * 12, "Best macro-F1 .500 at epoch 1 of 1 (12 folds)"),
        ([[np.nan]], "No epoch has been logged"),
        ([], "No epoch has been logged"),
    ],
)
def test_learning_curves_find(scores, finding, tmp_path):
    fig = learning_curves(logs(scores))
    assert title(fig) == finding
    check_drawn(fig, tmp_path / "curves.png")
    if not finding.startswith("No"):
        assert [len(ax.lines) for ax in fig.axes] == [2 * len(scores), len(scores)]
    assert title(learning_curves(pd.DataFrame())) == "No epoch has been logged"


def test_confusion_matrix_rows_are_percent_of_the_class():
    fig = confusion_matrix(LABELS, PREDICTIONS, [*CLASSES, "Toys"])
    assert title(fig) == "Beauty is most often taken for All Beauty (3 of 5)"
    values = fig.axes[0].images[0].get_array()
    np.testing.assert_allclose(values[:4].sum(axis=1), 100)
    assert values.mask[4].all() and not values.mask[:4].any()
    assert sorted(texts(fig.axes[0])) == sorted(["75", "25", "100", "40", "60", "50", "50"])
    counts = confusion_matrix(LABELS, PREDICTIONS, CLASSES, normalise=False).axes[0].images[0].get_array()
    assert counts.sum() == 12 and counts[2, 3] == 3


def test_confusion_matrix_has_numbers_only_where_they_fit():
    for size, numbers, labels in ((25, 25, 25), (26, 0, 26), (101, 0, 51)):
        every = list(range(size))
        fig = confusion_matrix(every, every, [f"c{index}" for index in every])
        assert title(fig) == f"No mistakes: {size} predictions, all right"
        assert (len(fig.axes[0].texts), len(names(fig.axes[0]))) == (numbers, labels)


def test_class_f1_is_sorted_and_agrees_with_scikit_learn():
    from sklearn.metrics import f1_score

    fig = class_f1(LABELS, PREDICTIONS, [*CLASSES, "Toys"])
    each = f1_score(LABELS, PREDICTIONS, average=None, zero_division=0)
    macro = f"{f1_score(LABELS, PREDICTIONS, average='macro', zero_division=0):.3f}".removeprefix("0")
    assert title(fig) == f"Hardest is All Beauty: F1 .333 with 2 products; macro-F1 {macro}"
    assert [bar.get_width() for bar in fig.axes[0].patches] == pytest.approx(sorted(each))
    assert "1 class without products left out" in fig.axes[0].get_xlabel()
    assert texts(fig.axes[0])[-4:] == ["2", "5", "1", "4"]  # the support, in the order of the bars
    assert title(class_f1([0, 1], [0, 1], CLASSES)) == "Every class has F1 1.000 (2 products)"


def test_confused_pairs_counts_them():
    fig = confused_pairs(LABELS, PREDICTIONS, CLASSES, top=2)
    assert title(fig) == "2 pairs hold 80 % of 5 errors; Beauty → All Beauty leads (3 of 5)"
    assert names(fig.axes[0]) == ["Beauty → All Beauty", "Books → Baby"]
    assert texts(fig.axes[0]) == ["3 of 5 (60 %)", "1 of 4 (25 %)"]
    assert title(confused_pairs(LABELS, LABELS, CLASSES)) == "There are no mistakes"


def test_worst_errors_come_surest_first():
    frame = products(12, 4).assign(label=LABELS, prediction=PREDICTIONS, probability=np.linspace(0.5, 0.94, 12))
    fig = worst_errors(frame, CLASSES, top=3)
    assert title(fig) == "Surest of 5 errors: All Beauty taken for Books at 94 %"
    shown = [texts(ax)[1:] for ax in fig.axes]  # after the "no photo"
    assert shown[0] == ["given: All Beauty", "predicted: Books", "94 %"]
    assert [row[0] for row in shown] == ["given: All Beauty", "given: Beauty", "given: Beauty"]
    right = frame[frame["label"] == frame["prediction"]]
    assert title(worst_errors(right, CLASSES)) == "There are no mistakes"


# ---------------------------------------------------------------------------------------------------------------------
# Ensemble and submission
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "finding"),
    [
        (
            pd.DataFrame({"fused": [0.9, 0.91], "image": [0.7, 0.7], "text": [0.8, 0.89]}, index=[0, "oof"]),
            "Fused leads with macro-F1 .910 (out of fold), ahead of text by .020 and of image by .210",
        ),
        (
            pd.DataFrame({"fused": [0.8, 0.6], "text": [0.9, 0.7], "image": [np.nan] * 2}),
            "Text leads with macro-F1 .800 (mean of 2 folds), ahead of fused by .100",
        ),
        (pd.DataFrame({"fused": [0.5]}, index=[3]), "Fused leads with macro-F1 .500 (fold 3)"),
        (pd.DataFrame(), "There are no scores to compare"),
    ],
)
def test_modality_scores_find(scores, finding, tmp_path):
    fig = modality_scores(scores)
    assert title(fig) == finding
    check_drawn(fig, tmp_path / "scores.png")


def test_prediction_balance_finds_the_largest_shift():
    fig = prediction_balance([0] * 50 + [1] * 40 + [2] * 10, [0] * 8 + [1] * 2, CLASSES[:3])
    finding = "Books shifts most: 50 % of train, 80 % of the test predictions; 1 class never predicted"
    assert title(fig) == finding
    train, test = fig.axes[0].lines
    np.testing.assert_allclose(train.get_xdata(), [0.5, 0.4, 0.1])
    np.testing.assert_allclose(test.get_xdata(), [0.8, 0.2, 0.0])
    assert title(prediction_balance([0, 1], [1, 0], CLASSES[:2])) == "Class shares are those of train"


# ---------------------------------------------------------------------------------------------------------------------
# Whatever comes
# ---------------------------------------------------------------------------------------------------------------------


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
    assert drawn == [("$a$ $b$", False), ("_x", False), ("y" * 27 + "…", False), ("class 3", False)]


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


def guesses(count=400, classes=3, seed=0):
    """Labels, and logits whose probabilities are right on average."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, classes))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.array([rng.choice(classes, p=row) for row in chances]), logits


def test_reliability_tells_honest_from_boastful(tmp_path):
    labels, logits = guesses(4000)
    fig = reliability(labels, {"before": logits * 4, "calibrated": logits})
    legend = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    before, after = (float(text.rpartition("(")[2].rstrip(")")) for text in legend)
    assert after < 0.03 < 0.1 < before
    assert title(fig) == f"The probabilities are {legend[1][-5:-1]} off on average, those of before {legend[0][-5:-1]}"
    check_drawn(fig, tmp_path / "f.png")
    assert title(reliability([], {})) == "There are no predictions to judge"


def test_curves_name_the_class_found_worst(tmp_path):
    labels, logits = guesses()
    logits[:, 2] = np.random.default_rng(1).normal(size=400)  # nothing is known of it
    fig = curves(labels, logits, CLASSES[:3])
    assert "Beauty" in title(fig) or CLASSES[2] in title(fig)
    legend = [text.get_text().rpartition(" (")[0] for text in fig.axes[1].get_legend().get_texts()]
    assert legend[0] == "micro" and legend[-1] == "macro" and set(CLASSES[:3]) <= set(legend)
    check_drawn(fig, tmp_path / "f.png")
    assert title(curves([1, 1], np.zeros((2, 3)), CLASSES[:3])) == "There are fewer than two classes to tell apart"


def test_method_gains_say_what_is_noise(tmp_path):
    rows = {
        "mean": (-0.02, -0.03, -0.01, 0.78),
        "weights": (0.001, -0.01, 0.012, 0.8),
        "chosen": (0.02, 0.01, 0.03, 0.82),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["gain", "gain_low", "gain_high", "macro_f1"])
    fig = method_gains(table)
    assert title(fig) == "Together macro-F1 .820: it gains 2.0 points over the best member (1.0 to 3.0)"
    assert names(fig.axes[0]) == ["mean (.780)", "weights (.800)", "chosen (.820)"]
    check_drawn(fig, tmp_path / "f.png")
    assert "is not above the best member beyond noise" in title(method_gains(table.iloc[:2]))


def test_rates_and_gradients_find_the_largest(tmp_path):
    logs = pd.DataFrame(
        {"fold": 0, "epoch": [1, 2, 3], "learning_rate": [1e-3, 5e-4, 0], "gradient_norm": [2.0, 9.5, 1.0]}
    )
    fig = rates_and_gradients(logs)
    assert title(fig) == "Gradients are largest in epoch 2: norm 9.5, at the end 1"
    check_drawn(fig, tmp_path / "f.png")
    assert title(rates_and_gradients(logs.drop(columns="gradient_norm"))) == "No gradients have been logged"


def test_public_functions_are_typed_and_described():
    public = [
        f
        for room in (eda, training, errors, ensemble)
        for name, f in vars(room).items()
        if inspect.isfunction(f) and f.__module__ == room.__name__ and name[0] != "_"
    ]
    assert len(public) == 22
    for function in public:
        assert inspect.signature(function).return_annotation == "Figure"
        assert len(inspect.getdoc(function).splitlines()) >= 3


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


def test_the_map_says_how_pure_neighbourhoods_are():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    apart = rng.normal(size=(40, 2)) + 100 * labels[:, None]
    title = embedding_map(apart, labels, ["a", "b"]).get_suptitle()
    assert title.startswith("100 % of the products lie next to one of their own class")
    mixed = embedding_map(rng.normal(size=(40, 2)), rng.integers(2, size=40), ["a", "b"]).get_suptitle()
    assert not mixed.startswith("100 %")
    assert embedding_map(apart[:1], labels[:1], ["a", "b"]).get_suptitle().startswith("There are too few")


def test_titles_are_shown_as_people_read_them():
    assert short("Men &amp; Women") == "Men & Women"
