"""Labels that a person decides: what the next run learns by them, what is refused, and which product comes next."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Trained, put_together

from goods.compare import compare, untouched_finding
from goods.data.folds import read_folds
from goods.data.mended import class_words, learned_labels, read_fixes, touched_ids
from goods.data.tables import Goods, read_goods
from goods.ensemble.label_issues import write_label_issues
from goods.entries import Entry, read_entry
from goods.errors import GoodsError, OtherRunError, ParameterError
from goods.files import write_json
from goods.label_fixes import COLUMNS, fixes_stamp, read_fix_table, write_fix_table
from goods.members import fit, open_run, step_inputs
from goods.params import Params, load_params
from goods.review import Review, like, open_review, training_vectors, write_review_list
from goods.review_widget import PAUSE, ReviewBox
from goods.run import Run
from goods.training.rows import rows_hash, training_rows

SMALL = {"kind": "linear", "n_folds": 3}
TRAIN = pd.DataFrame({"id": ["a", "b", "c", "-d"], "label": [0, 1, 1, 2]})
LABELS, CLASSES = [10, 20, 30], ["Books", "Toys", "=Tea"]


def fixes_file(path: Path, *rows: tuple[str, ...]) -> Path:
    write_fix_table(path, pd.DataFrame([(*row, "", "")[:5] for row in rows], columns=COLUMNS))
    return path


def refused(path: Path) -> str:
    with pytest.raises(GoodsError) as error:
        read_fixes(path, TRAIN, LABELS, CLASSES)
    return str(error.value)


# The file -------------------------------------------------------------------------------------------------------------


def test_decisions_are_read_by_names_or_by_labels(tmp_path):
    rows = [
        ("a", "Books", "change", "=Tea"),
        ("b", "20", "Drop"),
        ("-d", "=Tea", "keep"),
        ("c", "Toys", "change", "10"),
    ]
    fixes = read_fixes(fixes_file(tmp_path / "f.csv", *rows), TRAIN, LABELS, CLASSES)
    assert fixes["id"].tolist() == ["a", "b", "-d", "c"]
    assert fixes["label"].tolist() == [2, -1, 2, 0] and fixes["given"].tolist() == [0, 1, 2, 1]


def test_a_spreadsheet_runs_nothing_of_it_and_may_save_it_its_own_way(tmp_path):
    path = fixes_file(tmp_path / "f.csv", ("-d", "=Tea", "change", "Toys", "2026-01-02 03:04:05"))
    assert path.read_text().splitlines()[1] == "'-d,'=Tea,change,Toys,2026-01-02 03:04:05"
    saved = "\ufeff" + path.read_text().replace(",", ";")
    path.write_text(saved, encoding="utf-8")
    assert read_fix_table(path).values.tolist() == [["-d", "=Tea", "change", "Toys", "2026-01-02 03:04:05"]]


@pytest.mark.parametrize(("row", "sentence"), [
    (("x", "Books", "keep"), "1 ids are not in the training table; a spreadsheet may have rewritten them (x)"),
    (("a", "Books", "change", "Tea"), "1 new labels are no class (Tea of a)"),
    (("a", "Books", "change"), "1 new labels are no class (none of a)"),
    (("b", "Toys", "keep"), "1 ids stand there more than once (b)"),
    (("a", "Toys", "keep"), "1 given labels are no longer the training table's; look at these again (a is Books, not "),
    (("a", "Books", "delete"), "1 rows have no decision of keep, change, drop, skip (a)"),
    (("a", "Books", "", "Toys"), "1 rows have no decision of keep, change, drop, skip (a)"),
    (("a", "Books", "keep", "Toys"), "1 rows have a label, which only a change has (a)"),
])  # fmt: skip
def test_what_does_not_fit_is_said(tmp_path, row, sentence):
    path = fixes_file(tmp_path / "f.csv", ("b", "Toys", "keep"), row)
    assert sentence in refused(path) and str(path) in refused(path)


def test_all_that_does_not_fit_is_said_at_once(tmp_path):
    path = fixes_file(tmp_path / "f.csv", ("x", "Books", "keep"), ("a", "Toys", "delete"))
    assert all(word in refused(path) for word in ("not in the training table", "no decision", "a is Books, not Toys"))


def test_a_file_that_is_none_is_said(tmp_path):
    assert "there is no" in refused(tmp_path / "none.csv") and "review.ipynb" in refused(tmp_path / "none.csv")
    (tmp_path / "f.csv").write_text("id,label\na,Toys\n")
    assert "lacks given, decision; it has id, label" in refused(tmp_path / "f.csv")


def test_rows_that_nobody_has_filled_in_are_passed_over(tmp_path):
    path = fixes_file(tmp_path / "f.csv", ("a", "Books", ""), ("b", "Toys", "drop"))
    assert read_fix_table(path)["id"].tolist() == ["b"]


def test_classes_of_one_name_are_called_by_their_labels():
    assert class_words([1, 2], ["Tea", "Tea"]) == ["1", "2"]
    assert class_words([1, 2], ["Tea", "Coffee"]) == ["Tea", "Coffee"]


# What a run learns of it ----------------------------------------------------------------------------------------------


@pytest.fixture
def mended(trained: Trained) -> tuple[Trained, Goods, list[str]]:
    """The goods of the trained run, with one label changed and one row dropped; and their ids."""
    ids = trained.goods.train["id"].tolist()[:3]
    given = trained.goods.train["label"].tolist()[:3]
    fixes = pd.DataFrame({"id": ids, "given": given, "decision": ["change", "drop", "keep"],
                          "label": [(given[0] + 1) % 21, -1, given[2]], "when": ""})  # fmt: skip
    return trained, replace(trained.goods, fixes=fixes), ids


def test_changed_labels_are_learned_dropped_rows_are_not_and_folds_stay(mended):
    trained, goods, _ = mended
    p, before = trained.p, read_folds(trained.goods, trained.p)
    folds = read_folds(goods, p)
    assert folds.equals(before)
    other = next(k for k in range(3) if k not in folds["fold"][:2].tolist())
    rows, labels = training_rows(p, goods, folds, other)
    plain, plain_labels = training_rows(p, trained.goods, folds, other)
    assert set(plain) - set(rows) == {1}
    assert labels[rows == 0] == (plain_labels[plain == 0] + 1) % 21
    assert (labels[rows > 1] == plain_labels[plain > 1]).all()
    assert rows_hash(p, goods, folds, other) != rows_hash(p, trained.goods, folds, other)


def test_without_fixes_a_fold_is_known_by_the_rows_it_was_always_known_by(trained):
    folds = read_folds(trained.goods, trained.p)
    assert Run.of(trained.p).fold(0).made_from()["rows"] == rows_hash(trained.p, trained.goods, folds, 0)


def test_a_debug_run_passes_over_fixes_of_products_it_lacks(mended):
    _, goods, _ = mended
    few = replace(goods, train=goods.train.iloc[1:5])
    assert learned_labels(few).tolist() == [-1, *few.train["label"][1:]]


@pytest.fixture
def fixed(make: Callable[..., Params], tmp_path: Path) -> tuple[Params, Path]:
    """A run of three folds, and a file that changes its first label and drops its second row."""
    p = make(run="plain")
    goods = read_goods(p)
    words, (a, b) = class_words(goods.labels, goods.classes), goods.train[["id", "label"]].head(2).values.tolist()
    path = fixes_file(tmp_path / "f.csv", (a[0], words[a[1]], "change", words[(a[1] + 1) % 21]),
                      (b[0], words[b[1]], "drop"))  # fmt: skip
    return p, path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_run_learns_by_the_fixes_and_is_scored_by_the_table(fixed, make, kind):
    plain, path = fixed
    p = make(run="mended", kind=kind, label_fixes=str(path), image_size=64)
    goods, run = read_goods(p), Run.of(p)
    fit(p, goods)
    table = read_goods(plain).train
    for fold in run.folds():
        oof = fold.read("oof")
        assert oof["label"].tolist() == table.set_index("id")["label"][oof["id"]].tolist()
        dropped_here = table["id"][1] in set(oof["id"])
        assert fold.scores()["rows"] == len(table) - len(oof) - (not dropped_here)
    assert read_folds(goods, p).equals(read_folds(read_goods(plain), plain))
    assert goods.report["label_fixes"] == {"changed": 1, "dropped": 1}
    assert "1 labels are learned as label_fixes says, 1 rows not at all" in goods.report["warnings"][0]
    assert touched_ids(run) == set(table["id"][:2]) and touched_ids(Run.of(plain)) == set()
    put_together(p, goods)
    assert put_together(p, goods).missing == []


def trained_with(p: Params) -> Run:
    """The run, looking as if a fold of it were trained."""
    open_run(p)
    read_goods(p)
    run = Run.of(p)
    run.fold(0).folder.mkdir()
    run.fold(0).weights.touch()
    pd.DataFrame({"id": ["a"]}).to_parquet(run.fold(0).oof)
    run.fold(0).finish({"fold": 0, "text": {"macro_f1": 0.5}}, {"rows": "r", "code": "c"})
    return run


def test_other_fixes_are_another_run_and_more_kept_labels_are_not(fixed):
    plain, path = fixed
    p = plain.model_copy(update={"run": "mended", "label_fixes": str(path)})
    run = trained_with(p)
    before = run.record_file.read_bytes()
    table, goods = read_fix_table(path), read_goods(p)
    third = [goods.train["id"][2], class_words(goods.labels, goods.classes)[goods.train["label"][2]], "keep", "", "now"]
    write_fix_table(path, pd.concat([table, pd.DataFrame([third], columns=COLUMNS)]))
    open_run(p)
    write_fix_table(path, table.head(1))
    with pytest.raises(OtherRunError) as error:
        open_run(p)
    own = str(run.label_fixes)
    assert f"label_fixes was '{own}' and is now '{path}'. Give it back" in str(error.value)
    with pytest.raises(OtherRunError, match="label_fixes"):
        open_run(p.model_copy(update={"label_fixes": None}))
    assert run.record_file.read_bytes() == before
    open_run(p.model_copy(update={"label_fixes": own}))
    assert fixes_stamp(own) == run.record()["label_fixes"]


def test_a_run_without_fixes_takes_none_later(fixed):
    plain, path = fixed
    run = trained_with(plain)
    assert "label_fixes" not in run.record() and not run.label_fixes.exists()
    with pytest.raises(OtherRunError, match="label_fixes was None and is now"):
        open_run(plain.model_copy(update={"label_fixes": str(path)}))


def test_goods_read_without_the_fixes_leave_the_runs_own_copy(fixed):
    plain, path = fixed
    p = plain.model_copy(update={"run": "mended", "label_fixes": str(path)})
    run = trained_with(p)
    copy = run.label_fixes.read_bytes()
    assert read_goods(p.model_copy(update={"label_fixes": None})).fixes is None  # as predict.ipynb does
    assert run.label_fixes.read_bytes() == copy


def test_fixes_that_fix_nothing_and_fixes_of_a_blend_are_refused(fixed, tmp_path):
    plain, path = fixed
    table = read_fix_table(path).assign(decision="keep", label="")
    write_fix_table(path, table)
    with pytest.raises(GoodsError, match="neither changes a label nor drops a row"):
        read_goods(plain.model_copy(update={"label_fixes": str(path)}))
    with pytest.raises(ParameterError, match=r"label_fixes: .* has no effect"):
        open_run(load_params(None, kind="blend", runs="a", label_fixes=str(path), outputs_dir=str(tmp_path)))


def test_a_step_is_due_again_when_the_fixes_are_others(fixed):
    plain, path = fixed
    p = plain.model_copy(update={"label_fixes": str(path)})
    assert all(path in step_inputs(step, p).hashed for step in ("eda", "train", "baseline", "refit", "ensemble"))


def test_a_blend_is_touched_where_its_runs_are(tmp_path):
    for name, parameters, fixes in (("a", {}, "x"), ("b", {"pseudo_from": "a"}, "y"), ("ab", {"runs": ["b"]}, None)):
        record = {"parameters": parameters} | ({"label_fixes": "hash"} if fixes else {})
        write_json(tmp_path / name / "run.json", record)
        if fixes:
            fixes_file(tmp_path / name / "label_fixes.csv", (fixes, "Toys", "drop"), (f"{fixes}2", "Toys", "keep"))
    assert touched_ids(Run(tmp_path / "ab")) == {"x", "y"}


# Deciding -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def review(tmp_path: Path) -> Review:
    issues = pd.DataFrame({"id": ["a", "b", "-d"], "title": ["A", "B", "D"], "given": ["Books", "Toys", "=Tea"],
                           "suggested": ["Toys", "Books", "Toys"], "margin": [-0.9, -0.5, -0.1]})  # fmt: skip
    return Review(tmp_path / "labels_fixed.csv", issues, CLASSES, pd.DataFrame(columns=COLUMNS, dtype=object))


def again(review: Review) -> Review:
    """The same after a restart."""
    return replace(review, decided=read_fix_table(review.path))


def test_each_decision_is_written_and_the_next_product_comes(review):
    assert review.current == "a"
    review.decide("a", "change", "=Tea")
    assert review.current == "b" and again(review).current == "b"
    review.decide("b", "skip")
    review.decide("-d", "drop")
    rows = read_fix_table(review.path)[["id", "given", "decision", "label"]].values.tolist()
    assert rows == [["a", "Books", "change", "=Tea"], ["b", "Toys", "skip", ""], ["-d", "=Tea", "drop", ""]]
    assert review.current == again(review).current == "b"  # what was skipped comes back at the end
    review.decide("b", "keep")
    assert review.current is None
    assert review.counts() == {"keep": 1, "change": 1, "drop": 1, "skip": 0, "left": 0}


def test_skipped_ones_come_again_in_turn(review):
    for name in ("a", "b", "-d"):
        review.decide(name, "skip")
    assert review.current == "a"
    review.decide("a", "skip")
    assert review.current == "b"


def test_the_latest_decision_is_taken_back(review):
    review.take_back()  # none: nothing happens
    assert not review.path.exists()
    review.decide("a", "keep")
    review.decide("b", "drop")
    review.take_back()
    assert review.current == "b" and read_fix_table(review.path)["id"].tolist() == ["a"]


@pytest.mark.parametrize(("decision", "label", "sentence"), [
    ("change", "Books", "product a is Books already"),
    ("change", "Coffee", "no class 'Coffee'"),
    ("delete", "", "no decision 'delete', only keep"),
])  # fmt: skip
def test_a_decision_that_is_none_writes_nothing(review, decision, label, sentence):
    with pytest.raises(GoodsError, match=sentence):
        review.decide("a", decision, label)
    assert review.current == "a" and not review.path.exists()


def test_what_is_edited_by_hand_meanwhile_stays(review):
    review.decide("a", "keep")
    fixes_file(review.path, ("a", "Books", "drop"), ("z", "Toys", "keep"))
    review.decide("b", "drop")
    assert read_fix_table(review.path)[["id", "decision"]].values.tolist() == [
        ["a", "drop"],
        ["z", "keep"],
        ["b", "drop"],
    ]


@pytest.fixture
def doubtful(trained: Trained, tmp_path: Path) -> Trained:
    """A copy of the trained run with three labels in doubt."""
    shutil.copytree(trained.p.run_dir, tmp_path / "outputs" / trained.p.run)
    p = trained.p.model_copy(update={"outputs_dir": str(tmp_path / "outputs")})
    goods, words = trained.goods, class_words(trained.goods.labels, trained.goods.classes)
    rows = goods.train.head(3)
    listed = pd.DataFrame({"id": rows["id"], "given": [words[k] for k in rows["label"]],
                           "suggested": [words[(k + 1) % 21] for k in rows["label"]], "margin": [-0.9, -0.5, -0.1],
                           "title": rows["title"], "text": rows["text"], "image": rows["image"]})  # fmt: skip
    Run.of(p).ensemble.mkdir()
    listed.to_csv(Run.of(p).label_issues, index=False)
    return Trained(p, goods)


def test_a_list_to_fill_in_by_hand_and_the_review_go_on_from_each_other(doubtful):
    p, goods = doubtful
    run, ids = Run.of(p), goods.train["id"].tolist()
    open_review(p, goods).decide(ids[0], "keep")
    said = write_review_list(run)
    assert "2 labels in doubt to decide, 1 decided" in said
    table = pd.read_csv(run.labels_fixed, dtype=str, keep_default_na=False)
    assert table["decision"].tolist() == ["keep", "", ""] and table["suggested"].all() and table["title"].all()
    table.loc[1, "decision"] = "drop"
    table.to_csv(run.labels_fixed, index=False)
    review = open_review(p, goods)
    assert review.current == ids[2] and review.counts()["drop"] == 1
    review.decide(ids[2], "keep")
    assert read_fix_table(run.labels_fixed)["decision"].tolist() == ["keep", "drop", "keep"]
    assert review.table()["decision"].tolist() == ["keep", "drop", "keep"]


def test_a_review_begins_with_what_the_run_has_learned_from(doubtful, tmp_path):
    p, goods = doubtful
    words = class_words(goods.labels, goods.classes)
    last = goods.train.iloc[-1]
    path = fixes_file(tmp_path / "f.csv", (last["id"], words[last["label"]], "drop"))
    review = open_review(p.model_copy(update={"label_fixes": str(path)}), goods)
    review.decide(review.current, "keep")
    assert read_fix_table(review.path)["decision"].tolist() == ["drop", "keep"]
    assert review.counts() == {"keep": 1, "change": 0, "drop": 0, "skip": 0, "left": 2}


def test_a_run_without_a_list_or_with_a_damaged_one_is_said(doubtful):
    p, goods = doubtful
    run = Run.of(p)
    run.label_issues.write_text("id,given\nx,y\n")
    with pytest.raises(GoodsError, match=r"label_issues.csv is damaged"):
        open_review(p, goods)
    run.label_issues.unlink()
    with pytest.raises(GoodsError, match=r"has no label_issues.csv yet: notebooks/ensemble.ipynb"):
        open_review(p, goods)


def test_neighbours_come_from_embeddings_that_are_there(doubtful, trained, tmp_path):
    p, goods = doubtful
    Run.of(p).embeddings("train").unlink(missing_ok=True)  # which another test may have saved
    assert training_vectors(p, goods) is None  # another outputs_dir has an empty cache, and nothing is computed
    assert training_vectors(p.model_copy(update={"model_name": str(tmp_path / "none")}), goods) is None
    vectors = training_vectors(trained.p, goods)  # tune head: its folds were trained on them
    assert vectors.shape[0] == len(goods.train)
    name = goods.train["id"][0]
    near = like(vectors, goods, name)
    assert len(near) == 6 and name not in set(near["id"]) and near["cosine"].is_monotonic_decreasing
    expected = np.argsort(-(vectors @ vectors[0]), kind="stable")
    assert near["id"].tolist() == [goods.train["id"][row] for row in expected if row][:6]


# The application ------------------------------------------------------------------------------------------------------


@pytest.fixture
def box(doubtful: Trained) -> ReviewBox:
    box = ReviewBox(open_review(*doubtful), doubtful.goods, None, "train again")
    box.clock = iter(range(0, 1000, 1)).__next__  # a second between two keys
    box.show()
    return box


def decisions(box: ReviewBox) -> list[str]:
    return box.review.decided["decision"].tolist()


def test_buttons_decide_one_product_after_the_other(box, doubtful):
    titles, first = doubtful.goods.train["title"].tolist(), box.classes.value
    assert titles[0] in box.card.value and box.review.issues["suggested"][0] == first
    assert "0 of 3 decided" in box.progress.value and box.buttons["back"].disabled
    box.buttons["change"].click()
    assert titles[1] in box.card.value and "1 of 3 decided" in box.progress.value
    box.buttons["skip"].click()
    box.buttons["drop"].click()
    assert decisions(box) == ["change", "skip", "drop"] and titles[1] in box.card.value
    box.buttons["keep"].click()
    assert box.card.value == "<p><b>Nothing is left to decide.</b> train again</p>"
    assert box.buttons["keep"].disabled and not box.buttons["back"].disabled
    box.buttons["back"].click()
    assert titles[1] in box.card.value and "2 of 3 decided" in box.progress.value
    assert read_fix_table(box.review.path)["label"].tolist() == [first, ""]


def test_keys_do_the_same(box):
    for typed in ("k", "kb", "kbc", "kbcx", "kbcxD"):
        box.typing.value = typed
    assert decisions(box) == ["change", "drop"]
    box.typing.value = ""  # cleared by hand
    box.typing.value = "s"
    assert decisions(box) == ["change", "drop", "skip"]


def test_a_key_that_is_held_down_decides_once(box):
    times = iter([0, PAUSE / 4, PAUSE / 2, 3 * PAUSE])
    box.clock = times.__next__
    for typed in ("k", "kk", "kkk", "kkkk"):
        box.typing.value = typed
    assert decisions(box) == ["keep", "keep"]


def test_a_mistake_is_shown_and_the_product_stays(box, doubtful):
    box.classes.value = box.review.issues["given"][0]
    box.buttons["change"].click()
    assert "already: keep it, or choose another class" in box.said.value and decisions(box) == []


def test_texts_of_others_are_no_html(box, doubtful):
    box.goods.train.loc[0, "title"], before = "<script>x</script>", box.goods.train.loc[0, "title"]
    try:
        box.show()
    finally:
        box.goods.train.loc[0, "title"] = before
    assert "&lt;script&gt;" in box.card.value and "<script>" not in box.card.value


def test_neighbours_are_shown_with_photos_or_it_is_said_why_not(box, doubtful):
    assert "no embeddings; notebooks/embed.ipynb makes them" in box.card.value
    box.vectors = np.random.default_rng(0).normal(size=(len(doubtful.goods.train), 4))
    box.show()
    assert box.card.value.count("<img") + box.card.value.count("no photo") == 7


def test_what_is_decided_is_not_listed_again(doubtful, mended):
    trained, goods, ids = mended
    p = doubtful.p
    ensemble = put_together(p, trained.goods)
    ensemble.oof.loc[ensemble.oof["id"].isin(ids), ensemble.oof.filter(regex="fused_").columns] = -50.0
    rows = ensemble.oof["id"].isin(ids).to_numpy()
    for row in np.flatnonzero(rows):
        ensemble.oof.loc[row, f"fused_{(ensemble.oof['label'][row] + 1) % 21}"] = 0.0
    assert set(ids) <= set(write_label_issues(p, ensemble, trained.goods)["id"])
    assert not set(ids) & set(write_label_issues(p, ensemble, goods)["id"])


# What was gained ------------------------------------------------------------------------------------------------------


def scored_run(folder: Path, labels: np.ndarray, right: np.ndarray, **record: object) -> Entry:
    """A run whose files are a score: it is surest of the table's label where it is right."""
    said = np.where(right, labels, (labels + 1) % 3)
    logits = np.where(np.arange(3) == said[:, None], 3.0, 0.0)
    run = Run(folder)
    write_json(run.record_file, {"parameters": {"run": folder.name}} | record)
    write_json(run.labels, {"classes": CLASSES, "labels": LABELS})
    run.ensemble.mkdir()
    head = pd.DataFrame({"id": [str(k) for k in range(len(labels))], "label": labels, "fold": 0})
    head.assign(**{f"fused_{k}": logits[:, k] for k in range(3)}).to_parquet(run.oof)
    return read_entry(run)


def test_the_gain_is_told_on_the_labels_that_nobody_touched(tmp_path):
    labels = np.arange(60) % 3
    before = scored_run(tmp_path / "before", labels, np.arange(60) >= 10)
    after = scored_run(tmp_path / "after", labels, (np.arange(60) >= 10) | (np.arange(60) < 4), label_fixes="hash")
    fixes_file(tmp_path / "after" / "label_fixes.csv", ("0", "Books", "change", "Toys"), ("1", "Toys", "drop"),
               ("2", "=Tea", "keep"))  # fmt: skip
    pair = compare(after, before)
    assert pair.touched == 2
    assert pair.gains["accuracy"].value == pytest.approx(4 / 60)
    assert pair.untouched["accuracy"].value == pytest.approx(2 / 58)
    sentence = untouched_finding(pair, "accuracy")
    assert sentence.startswith("On the 58 labels that nobody touched after gains +.034 (")
    assert "of accuracy over before, which is noise; the 2 that were changed" in sentence
    assert untouched_finding(compare(before, before), "accuracy") == ""


def test_a_run_whose_fixes_are_gone_is_compared_all_the_same(tmp_path):
    labels = np.arange(60) % 3
    entries = [scored_run(tmp_path / name, labels, labels >= 0, label_fixes="hash") for name in "ab"]
    assert compare(*entries).untouched == {}
