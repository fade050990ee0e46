"""Folds: duplicates stay together, classes are spread evenly, and a run's folds stay."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from competition import CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st

from goods.data.folds import (
    MAX_SHARED,
    duplicate_groups,
    given_folds,
    make_folds,
    product_groups,
    rare_classes,
    read_folds,
)
from goods.errors import DamagedFileError, GoodsError, OtherRunError, ParameterError
from goods.files import write_json
from goods.params import load_params
from goods.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
keys = st.lists(st.tuples(st.sampled_from(["", *"abcdef"]), st.sampled_from(["", *"uvwxyz"])), max_size=30)


@given(keys)
@settings(max_examples=100, deadline=None)
def test_products_share_a_group_when_a_chain_of_duplicates_ties_them(pairs):
    groups = duplicate_groups([text for text, _ in pairs], [sha for _, sha in pairs])
    expected = list(range(len(pairs)))  # groups by merging until nothing changes
    for (i, a), (j, b) in itertools.combinations(enumerate(pairs), 2):
        if (a[0] and a[0] == b[0]) or (a[1] and a[1] == b[1]):
            expected = [expected[i] if group == expected[j] else group for group in expected]
    same = np.equal.outer(np.array(expected, dtype=int), np.array(expected, dtype=int))
    np.testing.assert_array_equal(np.equal.outer(groups, groups), same)


@pytest.mark.parametrize(("shared", "count"), [(MAX_SHARED, 1), (MAX_SHARED + 1, MAX_SHARED + 1)])
def test_a_placeholder_ties_nothing(shared, count):
    own = [f"own {n}" for n in range(shared)]
    assert len(set(duplicate_groups(["no description"] * shared, own))) == count
    assert len(set(duplicate_groups(own, ["the same grey photo"] * shared))) == count


def test_duplicate_groups_goes_by_position_not_by_index():
    texts, shas = (pd.Series(values, index=[7, 8, 9]) for values in (["a", "b", "a"], ["", "", ""]))
    assert duplicate_groups(texts, shas)[0] == duplicate_groups(texts, shas)[2]


def test_chosen_columns_do_not_move_a_products_fold():
    table = pd.DataFrame({"title": ["cup", "cup", "mug"], "description": ["red", "red", "red"], "sha": ["x", "y", "z"]})
    short, p = table.assign(text=["drinking vessel"] * 3), load_params()
    assert product_groups(short, p).tolist() == product_groups(table.assign(text=["a", "b", "c"]), p).tolist()
    assert len(set(product_groups(short, p))) == 2
    assert len(set(product_groups(short.drop(columns="description"), p))) == 1  # other tables: by what is read


GOODS = pd.DataFrame({
    "title": ["Cup", "cup!", "mug", "jar", "pot"], "description": ["red", "Red.", "red", "red", ""],
    "sha": ["x", "y", "z", "x", ""], "text": "", "seller": ["a", "b", "a", "b", ""],
})  # fmt: skip


@pytest.mark.parametrize(
    ("given", "groups"),
    [
        ({}, [0, 0, 1, 0, 2]),  # texts are the same but for case and punctuation; one photo
        ({"group_by": "photo"}, [0, 1, 2, 0, 3]),
        ({"group_by": "text"}, [0, 0, 1, 2, 3]),
        ({"group_by": "title"}, [0, 0, 1, 2, 3]),
        ({"group_by": "description"}, [0, 0, 0, 0, 1]),
        ({"group_by": "photo", "group_column": "seller"}, [0, 1, 0, 0, 2]),
    ],
)
def test_what_counts_as_a_copy_is_a_parameter(given, groups):
    table = GOODS if given.get("group_column") is None else GOODS.assign(sha=["x", "y", "z", "v", ""])
    if given.get("group_column"):
        groups = [0, 1, 0, 1, 2]
    found = product_groups(table, load_params(**given))
    assert pd.factorize(found)[0].tolist() == groups


def test_a_seller_of_any_number_of_products_stays_in_one_fold():
    many = pd.DataFrame({"title": [f"t{i}" for i in range(300)], "description": "", "sha": "", "text": ""})
    groups = product_groups(many.assign(seller=["big"] * 200 + [""] * 100), load_params(group_column="seller"))
    assert len(set(groups[:200])) == 1 and len(set(groups)) == 101


@pytest.mark.parametrize(
    ("values", "folds"), [(["2", "10", "2", "0"], [1, 2, 1, 0]), (["b", "a", "c", "a"], [1, 0, 2, 0])]
)
def test_folds_are_taken_as_given(values, folds):
    train = pd.DataFrame({"split": values})
    assert given_folds(train, load_params(fold_column="split", n_folds=3)).tolist() == folds


@pytest.mark.parametrize("values", [["0", "1", "1"], ["0", "", "1"], ["0", "1", "2", "3"]])
def test_given_folds_that_are_not_n_folds_are_refused(values):
    with pytest.raises(ParameterError, match=r"fold_column split has \d different values \(.*\), and n_folds is 3"):
        given_folds(pd.DataFrame({"split": values}), load_params(fold_column="split", n_folds=3))


@st.composite
def catalogues(draw, of_one_class: bool = False) -> tuple[list[str], np.ndarray, np.ndarray, int]:
    """ids, labels, groups, n_folds; with `of_one_class`, all of a group has the same label."""
    n_folds = draw(st.integers(2, 6))
    groups = np.array(draw(st.lists(st.integers(0, 40), min_size=n_folds, max_size=80)))
    groups[:n_folds] = np.arange(n_folds)
    count = 41 if of_one_class else len(groups)
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    numbers = draw(st.lists(st.integers(0, 9999), min_size=len(groups), max_size=len(groups), unique=True))
    return [f"{number:05}" for number in numbers], labels[groups] if of_one_class else labels, groups, n_folds


@given(catalogues(), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_folds_part_the_products_and_keep_groups_whole(catalogue, seed):
    ids, labels, groups, n_folds = catalogue
    folds = make_folds(ids, labels, groups, n_folds, seed)
    assert len(folds) == len(ids)
    assert set(folds) == set(range(n_folds))  # none is empty
    assert len(set(zip(groups, folds, strict=True))) == len(set(groups))


@given(catalogues(of_one_class=True), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_folds_have_of_each_class_alike_up_to_one_group(catalogue, seed):
    ids, labels, groups, n_folds = catalogue
    folds = make_folds(ids, labels, groups, n_folds, seed)
    for label in set(labels):
        per_fold = np.bincount(folds[labels == label], minlength=n_folds)
        assert np.ptp(per_fold) <= np.bincount(groups[labels == label]).max()


@given(catalogues(), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_folds_do_not_depend_on_the_order_of_rows_or_the_numbers_of_groups(catalogue, seed, random):
    ids, labels, groups, n_folds = catalogue
    folds = make_folds(ids, labels, groups, n_folds, seed)
    order = random.sample(range(len(ids)), len(ids))
    renamed = np.array(random.sample(range(100), 41))[groups]
    again = make_folds([ids[i] for i in order], labels[order], renamed[order], n_folds, seed)
    assert again.tolist() == folds[order].tolist()


def test_folds_are_the_same_everywhere():
    """Kaggle's versions of numpy and scikit-learn are older; an ensemble needs the same folds from both."""
    ids, labels = [f"B{n:02}" for n in range(15)], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3]
    groups = [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10, 11]
    folds = make_folds(ids, labels, groups, 3, seed=42)
    assert folds.tolist() == [1, 1, 0, 2, 0, 2, 2, 2, 1, 0, 1, 0, 0, 1, 2]
    assert folds.tolist() != make_folds(ids, labels, groups, 3, seed=43).tolist()


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_a_rare_class_is_spread_as_far_as_it_goes(rows):
    labels = [0] * 50 + [1] * 20 + [2] * rows
    folds = make_folds([str(n) for n in range(len(labels))], labels, range(len(labels)), 5, seed=1)
    assert len(set(folds[-rows:])) == rows
    assert np.bincount(folds[:50]).tolist() == [10] * 5


def test_classes_of_one_product_each_still_fill_all_folds():
    folds = make_folds(list("abcdefgh"), range(8), range(8), 4, seed=1)
    assert np.bincount(folds).tolist() == [2, 2, 2, 2]


def test_too_few_products_for_the_folds():
    with pytest.raises(GoodsError, match="2 different products can't fill 3 folds; lower n_folds"):
        make_folds(list("abcd"), [0, 0, 1, 1], [0, 0, 1, 1], 3, seed=1)


def test_a_runs_folds_are_made_once(goods):
    goods.train[3]["title"], goods.train[3]["description"] = goods.train[0]["title"], goods.train[0]["description"]
    goods.put("train", "006X.jpg", (goods.photos["train"] / "003X.jpg").read_bytes())
    read, p = goods.read(), goods.params(n_folds=3)
    folds = read_folds(read, p)
    assert folds.columns.tolist() == ["id", "label", "fold"]
    assert folds["id"].tolist() == read.train["id"].tolist()
    assert folds["fold"][[0, 3, 6]].nunique() == 1  # one text, one photo
    assert set(folds["fold"]) == {0, 1, 2}
    stamp = (p.run_dir / "folds.parquet").stat().st_mtime_ns
    assert read_folds(read, goods.params(n_folds=3, seed=1)).equals(folds)  # saved is saved; open_run guards the seed
    assert (p.run_dir / "folds.parquet").stat().st_mtime_ns == stamp


FOREIGN = {
    "shuffled rows": (
        lambda folds: folds.sample(frac=1, random_state=0),
        OtherRunError,
        "of other products, labels or",
    ),
    "fewer rows": (lambda folds: folds.iloc[:7], OtherRunError, "of other products, labels or another order than"),
    "more rows": (lambda folds: pd.concat([folds, folds.assign(id="x" + folds["id"])]), OtherRunError, "of other prod"),
    "other labels": (lambda folds: folds.assign(label=2 - folds["label"]), OtherRunError, "of other products, labels"),
    "a fold outside": (lambda folds: folds.assign(fold=folds["fold"] + 1), OtherRunError, "are not 0 to 2, as n_folds"),
    "fewer folds": (lambda folds: folds.assign(fold=folds["fold"] % 2), OtherRunError, "are not 0 to 2, as n_folds"),
    "no fold": (lambda folds: folds.drop(columns="fold"), DamagedFileError, r"folds\.parquet lacks fold"),
    "no row": (lambda folds: folds.iloc[:0], OtherRunError, "of other products, labels or another order than"),
}


@pytest.mark.parametrize(("change", "error", "sentence"), FOREIGN.values(), ids=FOREIGN)
def test_folds_that_are_not_those_of_the_tables_are_refused(goods, change, error, sentence):
    read, p = goods.read(), goods.params(n_folds=3)
    folds = read_folds(read, p)
    change(folds).to_parquet(Run.of(p).folds_table)
    with pytest.raises(error, match=sentence) as refused:
        read_folds(read, p)
    assert str(refused.value).endswith("remove it, and the folds are drawn anew, the same for the same tables and seed")
    if error is OtherRunError:  # of a run that is taken, new folds would be none of those that were trained
        write_json(Run.of(p).metrics, {})
        with pytest.raises(error, match=r"give back the tables and n_folds .* or choose another name for run, such as"):
            read_folds(read, p)
        Run.of(p).metrics.unlink()
    Run.of(p).folds_table.unlink()
    assert read_folds(read, p).equals(folds)


@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PAR1" * 9])
def test_damaged_folds_are_one_sentence(goods, harm):
    read, p = goods.read(), goods.params(n_folds=3)
    read_folds(read, p)
    path = Run.of(p).folds_table
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(
        DamagedFileError, match=r"folds\.parquet is missing or damaged; remove it, and the folds are dr"
    ):
        read_folds(read, p)


def test_rare_classes_are_named(goods):
    (goods.folder / "labels.json").write_text(json.dumps(CLASSES))
    assert rare_classes(goods.read(), 4) == []
    assert rare_classes(goods.read(), 5)[1] == "Toys has 4 rows for 5 folds: some folds have none of it"


def test_products_that_share_any_of_their_photos_share_a_group():
    photos = [("a", "b"), ("c",), (), ("d", "b"), ("c", "e"), (), ("f", "f")]
    assert duplicate_groups(photos).tolist() == [0, 1, 2, 0, 1, 3, 4]
    table = pd.DataFrame({"sha": "", "shas": photos, "text": [f"thing {k}" for k in range(7)]})
    assert product_groups(table, load_params()).tolist() == [0, 1, 2, 0, 1, 3, 4]


def test_a_photo_of_many_products_is_no_copy_wherever_it_stands():
    photos = [("placeholder", str(k)) for k in range(MAX_SHARED + 1)]
    assert len(set(duplicate_groups(photos))) == MAX_SHARED + 1
    assert len(set(duplicate_groups(photos[1:]))) == 1
