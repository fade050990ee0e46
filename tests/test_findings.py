"""What notebooks say below their outputs: each sentence has the numbers that were put in."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from goods.findings import of_goods, of_products, of_runs
from goods.findings.shown import Sentence, readable
from goods.trust import write_pairs
from goods.words import count, digits, joined, percent

CLASSES = ["Books", "Toys", "Tools"]
PAIRS = pd.DataFrame({
    "kind": ["photo", "photo", "photo", "text"], "bits": [3, 5, 9, 0], "across": [False, False, True, False],
    "conflict": [False, True, False, False], "table_a": "train", "id_a": list("abcd"), "title_a": "A",
    "image_a": "", "label_a": [0, 1, 2, 0], "table_b": ["train", "train", "test", "train"], "id_b": list("efgh"),
    "title_b": "B", "image_b": "", "label_b": [0, 0, -1, 0],
})  # fmt: skip


def test_numbers_as_words() -> None:
    assert [digits(value) for value in (0.934, -0.012, 1.106, 0.9996)] == [".934", "-.012", "1.106", "1.000"]
    assert [percent(value) for value in (0.5, 0.042, 0.0004)] == ["50 %", "4.2 %", "<0.1 %"]
    assert (count(1, "class", "classes"), count(2, "class", "classes")) == ("1 class", "2 classes")
    assert joined(["a", "b", "c"]) == "a, b and c"


def test_what_is_found_in_goods() -> None:
    assert of_goods.balance([0, 0, 1, 1, 2, 2], CLASSES).startswith("The 3 classes are alike in size")
    assert of_goods.balance([0] * 20 + [1] * 9 + [2], CLASSES) == (
        "1 class holds half of the products; 1 class has fewer than a fifth of the average."
    )
    assert of_goods.cut([10, 20, 30, 40], 30) == (
        "25 % of the texts are cut, 10 % of all tokens are lost; text_windows=2 would read 95 % of the texts whole."
    )
    assert of_goods.cut_by_class([10, 40, 10, 10], [0, 0, 1, 1], CLASSES, 30) == (
        "Books loses most (50 % of its texts), Toys least (0 %)."
    )
    shift = pd.DataFrame({"name": ["photo_width", "word: kitsune"], "weight": [1.0, -0.5]})
    assert of_goods.shift(0.7, shift).startswith(
        "AUC .700: the test set differs clearly, by photo width and word: kitsune"
    )


def test_pairs_of_two_classes_are_counted_named_and_listed_first(tmp_path) -> None:
    assert of_goods.duplicates(PAIRS) == (
        "3 pairs of photos and 1 pair of texts are nearly the same, 1 across train and test, where a label may be "
        "known already."
    )
    assert of_goods.conflicts(PAIRS, CLASSES, "photo").startswith(
        "1 of 2 pairs inside train have two classes, such as Books and Toys: a wrong label"
    )
    assert of_goods.conflicts(PAIRS, CLASSES, "text") == "1 pair lies inside train, each of one class."
    write_pairs(PAIRS, CLASSES, tmp_path / "pairs.csv")
    listed = pd.read_csv(tmp_path / "pairs.csv", keep_default_na=False)
    assert listed[["id_a", "class_a", "class_b", "conflict"]].iloc[0].tolist() == ["b", "Toys", "Books", True]
    assert listed["class_b"].tolist()[1] == "" and len(listed) == 4


def test_what_a_run_has_come_to() -> None:
    logs = pd.DataFrame({"epoch": [1, 2, 3], "macro_f1": [0.2, 0.4, 0.6], "valid_loss": [3, 2, 1.0]})
    assert (
        of_runs.converged(logs, "macro_f1") == "It gained .200 of macro-F1 in its last 1 epoch: more epochs may help."
    )
    logs = logs.assign(macro_f1=[0.2, 0.6, 0.5], valid_loss=[2, 1, 1.5])
    assert of_runs.converged(logs, "macro_f1") == (
        "Its best epoch was 2 of 3, and the validation loss rises again, so it begins to learn by heart."
    )
    scores = {"fused": {"macro_f1": 0.9}, "image": {"macro_f1": 0.7}, "text": {"macro_f1": 0.8}}
    assert (
        of_runs.outputs(scores, "macro_f1") == "Together they have macro-F1 .900, which gains .100 over the text alone."
    )
    assert of_runs.mistaken([0, 0, 1, 2], [1, 0, 0, 2], CLASSES) == (
        "Books and Toys are taken for each other 2 times: 100 % of 2 mistakes."
    )
    assert of_runs.hard_classes([0, 0, 1, 2], [1, 0, 1, 2], CLASSES).startswith("Hardest are Books (.667), Toys (.667)")
    methods = pd.DataFrame({"gain": [0.008], "gain_low": [-0.003], "gain_high": [0.019]}, index=["average"])
    assert of_runs.ways(methods, "macro_f1") == (
        "“average” gains 0.8 points of macro-F1 over the best member (-0.3 to 1.9): not beyond noise."
    )


def test_what_each_member_adds_takes_or_hardly_changes() -> None:
    gains = {"gain_low": [0.01, -0.02, -0.01], "gain_high": [0.03, -0.01, 0.01]}
    table = pd.DataFrame(gains, index=["head", "linear", "knn"])
    assert of_runs.added(table) == (
        "beyond noise, head adds to the whole; linear takes from it; leaving out knn would hardly be seen."
    )
    assert of_runs.added(table.tail(1)) == "beyond noise, no member adds anything."


def test_the_strongest_word_may_speak_against_the_class() -> None:
    words = pd.DataFrame({"word": ["Board", "Bluebird"], "lost": [-0.3, -0.04]})
    said = of_runs.why({"all": 0.7, "without image": 0.1}, words)
    assert (
        said
        == "Without the image .600 of its probability is gone. The strongest word, “Board”, speaks against it (-.300)."
    )


def test_a_precision_without_a_threshold_is_named() -> None:
    table = pd.DataFrame({"threshold": [0.5, np.nan], "share": [0.9, 0.2], "precision": [0.96, 0.98]}, [0.95, 0.99])
    said = of_runs.accepted(table)
    assert said.endswith("10 % go to a person. At 99 % nothing can be promised: no threshold holds on all rows.")
    assert of_runs.accepted(table.tail(1)) == "No threshold promises even 99 %: every prediction needs a look."


def test_the_answer_names_a_precision_that_can_be_promised() -> None:
    wanted = pd.DataFrame({"threshold": [0.9, np.nan], "share": [0.4, 0.1], "precision": [0.9, 0.9]}, [0.9, 0.95])
    issues = pd.DataFrame({"given": ["Books"]})
    said = of_runs.together({"macro_f1": 0.6}, 50, "macro_f1", wanted, issues)
    assert said[1] == "40 % of such products need no person's look, if 90 % right is enough."
    said = of_runs.together({"macro_f1": 0.6}, 50, "macro_f1", wanted.tail(1), issues)
    assert said[1] == "each of such products needs a person's look."


def test_what_occurs_once_is_not_called_most_often() -> None:
    issues = pd.DataFrame({"given": ["Books", "Toys"], "suggested": ["Toys", "Books"]})
    assert of_goods.doubted_share(issues, 100) == "2 of 100 labels (2 %), such as Books → Toys"
    assert of_runs.doubted(issues) == "Each of the 2 shown is given as another class."


def test_folds_that_are_not_trained_yet_are_named() -> None:
    said = of_runs.honest({"macro_f1": 0.5}, 60, [1, 3])
    assert said == "Out of fold, on 60 products: macro-F1 .500. Not trained yet: fold 1 and 3."


def test_what_is_said_of_products() -> None:
    tables = [pd.DataFrame({"class": ["Books", "Books", "Toys"], "cosine": [1, 0.9, 0.8]})]
    assert (
        of_products.nearest(tables) == "1 of 2 neighbours are of the product's own class, at cosines of .800 or more."
    )
    said = of_products.known_already([1.0, 0.995, 0.5])
    assert said.startswith("1 of 3 test products have a training product with the same embedding, 2 have")
    assert of_products.shares([0, 0, 1, 1], [0, 0, 0, 1], CLASSES).endswith("Books is more common here.")


def test_a_table_shows_texts_whole_scores_short_and_no_markup() -> None:
    table = pd.DataFrame({"title": ["Men &amp; Women"],
                          "text": ["<b>" + "long " * 40], "score": [0.934], "rows": [1204],
                          "cost": [3.0]})  # fmt: skip
    page = readable(table).to_html()
    assert "long " * 39 in page and ">.934<" in page and ">1,204<" in page and ">3<" in page
    assert "&lt;b&gt;" in page and "Men &amp; Women" in page and "amp;amp;" not in page


def test_a_table_has_one_line_of_heads_with_the_name_of_its_rows() -> None:
    rows = pd.Index([0, 1], name="fold")
    page = readable(pd.DataFrame({"score": [0.934, 0.9]}, rows)).to_html()
    heads = re.findall(r"<th[^>]*>(.*?)</th>", page)
    assert heads == ["fold", "score"] and page.count("<tr>") == 3
    counted = pd.DataFrame([[1, 2]], pd.Index(["ok"], name="status"), pd.Index(["train", "test"], name="table"))
    assert re.findall(r"<th[^>]*>(.*?)</th>", readable(counted).to_html()) == ["status", "train", "test"]
    both = readable(counted.rename(columns={"train": "status"})).to_html()  # a column has that name already
    assert re.findall(r"<th[^>]*>(.*?)</th>", both) == ["&nbsp;", "status", "test", "ok"]


def test_scores_have_the_names_that_people_use() -> None:
    table = pd.DataFrame({"macro_f1": [0.9], "log_loss_without": [0.1], "gain_low": [0.0], "id_a": [1]}, ["accuracy"])
    heads = re.findall(r"<th[^>]*>(.*?)</th>", readable(table).to_html())
    assert heads == ["&nbsp;", "macro-F1", "log-loss without it", "from", "id_a", "accuracy"]


def test_no_line_of_a_sentence_begins_with_a_percent_sign() -> None:
    assert "37&nbsp;%" in Sentence("37 % of them")._repr_html_()


def test_a_zero_among_large_numbers_is_shown() -> None:
    assert re.findall(r"<td[^>]*>(.*?)</td>", readable(pd.DataFrame({"kB": [0.0, 57.4]})).to_html()) == ["0", "57.4"]


def test_a_column_of_long_texts_stays_wide_on_a_narrow_screen() -> None:
    page = readable(pd.DataFrame({"text": ["long " * 40, ""], "class": ["Books", "Toys"]})).to_html()
    assert re.findall(r"row\d_col\d", re.search(r"(.*) {[^}]*min-width", page)[1]) == ["row0_col0", "row1_col0"]


def test_a_sentence_is_shown_as_it_is() -> None:
    """Markup is no element, and no element holds two dollars, between which a page would read a formula."""
    page = Sentence("<script> $x^2$")._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<span>$</span>") == page.count("$") == 2


def test_one_class_one_row_and_nothing_stop_no_sentence() -> None:
    empty = PAIRS.head(0)
    assert of_goods.duplicates(empty) == "No two products are nearly the same."
    assert of_goods.conflicts(empty, CLASSES, "photo") == "No two training products have nearly the same photo."
    assert of_runs.mistaken([0], [0], ["Books"]) == "Nothing is mistaken."
    assert of_runs.found(np.zeros(2, int), np.zeros((2, 1)), ["Books"]) == ""
    assert of_products.grown([0, 0], [], ["Books"]) == "No class grows."
    issues = pd.DataFrame({"given": [], "suggested": []})
    assert of_goods.doubts(issues, 5) == "The words contradict none of 5 labels."
