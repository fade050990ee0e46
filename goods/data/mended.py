"""What a run learns by labels that a person has looked at again; scores go by the table's labels all the same.

Those who mend labels see what a model makes of them, so that on mended labels any model like it would look better than
it is. By the table's labels, and on the folds drawn by them, every run has the same yardstick.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from goods.errors import GoodsError, listing
from goods.files import resolve
from goods.label_fixes import COLUMNS, DECISIONS, TOUCHING, fixes_stamp, read_fix_table, write_fix_table
from goods.run import Run

if TYPE_CHECKING:
    from goods.data.tables import Goods

DROPPED = -1  # in place of a class index: the row is not learned from
STANDING = ("keep", *TOUCHING)  # decisions that stand; what is skipped is looked at again


def class_words(labels: Sequence[int | str], classes: Sequence[str]) -> list[str]:
    """What each class is called where people write: its name, or where two share one, its label."""
    return list(classes) if len(set(classes)) == len(classes) else [str(label) for label in labels]


def class_of_words(labels: Sequence[int | str], classes: Sequence[str]) -> dict[str, int]:
    """The class index of all that people may write for a class: its label, or what class_words calls it."""
    indices = {str(label): k for k, label in enumerate(labels)}
    return indices | {word.strip(): k for k, word in enumerate(class_words(labels, classes))}


# The file of a person's decisions ------------------------------------------------------------------------------------


def read_fixes(path: Path, train: pd.DataFrame, labels: Sequence[int | str], classes: Sequence[str]) -> pd.DataFrame:
    """The decisions that a file holds of the products in `train` (id, label as class index), in the file's order.

    id, given and label as class indices (label is DROPPED where the row is dropped, else what is learned), decision,
    when. Raises GoodsError with all that doesn't fit.
    """
    table, known = read_fix_table(path), class_of_words(labels, classes)
    own = train.set_index("id")["label"]
    own = own[~own.index.duplicated()]
    given, label, changed = table["given"].map(known), table["label"].map(known), table["decision"] == "change"
    there, decided = table["id"].isin(own.index), table["decision"].isin(DECISIONS)
    word_of = dict(enumerate(class_words(labels, classes)))
    is_now = [f"{row.id} is {word_of[own[row.id]]}, not {row.given or 'empty'}"
              for row in table[there & (given != table["id"].map(own))].itertuples()]  # fmt: skip
    unknown = [f"{row.label or 'none'} of {row.id}" for row in table[changed & label.isna()].itertuples()]
    findings = [
        ("ids stand there more than once", table["id"][table["id"].duplicated()]),
        ("ids are not in the training table; a spreadsheet may have rewritten them", table["id"][~there]),
        (f"rows have no decision of {', '.join(DECISIONS)}", table["id"][~decided]),
        ("rows have a label, which only a change has", table["id"][decided & ~changed & (table["label"] != "")]),
        ("new labels are no class", unknown),
        ("given labels are no longer the training table's; look at these again", is_now),
    ]
    if problems := [f"{len(found)} {what} ({listing(list(found))})" for what, found in findings if len(found)]:
        raise GoodsError(f"{path}: {'; '.join(problems)}")
    learned = label.where(changed, given).mask(table["decision"] == "drop", DROPPED)
    return table.assign(given=given.astype(int), label=learned.astype(int))[COLUMNS]


def keep_fixes(run: Run, label_fixes: str | None) -> None:
    """Keeps the decisions that the run is recorded to learn from in the run, word for word; removes what is left of a
    call that has trained nothing."""
    recorded = run.record().get("label_fixes")
    if not recorded:
        run.label_fixes.unlink(missing_ok=True)
    elif label_fixes and fixes_stamp(label_fixes) == recorded:
        table = read_fix_table(resolve(label_fixes))
        write_fix_table(run.label_fixes, table[table["decision"].isin(STANDING)])


# What is learned of it -----------------------------------------------------------------------------------------------


def learned_labels(goods: Goods) -> np.ndarray:
    """(n,) class index that each training product is learned as, DROPPED where it isn't learned from."""
    labels = goods.train["label"].to_numpy().copy()
    if goods.fixes is not None:
        place = pd.Series(np.arange(len(labels)), index=goods.train["id"])
        fixes = goods.fixes[goods.fixes["id"].isin(place.index)]  # a debug run has but some of the products
        labels[place[fixes["id"]].to_numpy()] = fixes["label"]
    return labels


def fix_counts(fixes: pd.DataFrame) -> dict[str, int]:
    """How many labels are changed and rows dropped."""
    return {"changed": int((fixes["decision"] == "change").sum()), "dropped": int((fixes["decision"] == "drop").sum())}


def touched_ids(run: Run) -> set[str]:
    """The training products whose label the run, or one that it was put together or learned from, didn't take as the
    table has it.

    Raises GoodsError where a run has learned from label fixes and its label_fixes.csv is gone.
    """
    found: set[str] = set()
    if "label_fixes" in run.record():
        table = read_fix_table(run.label_fixes)
        found |= set(table["id"][table["decision"].isin(TOUCHING)])
    parameters = run.parameters()
    for name in filter(None, (*parameters["runs"], parameters["pseudo_from"])):
        found |= touched_ids(run.member(name))
    return found
