"""Labels in doubt, decided by a person one after the other: which is next, and each decision kept at once.

No widget here: goods/review_widget.py shows what this module knows, and the file can as well be edited by hand.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from goods.data.mended import STANDING, class_words, read_fixes
from goods.data.tables import Goods
from goods.errors import DamagedFileError, GoodsError
from goods.files import resolve
from goods.label_fixes import COLUMNS, DECISIONS, read_fix_table, write_fix_table
from goods.members import kind_of
from goods.models.embeddings import embed_products, embedders_of
from goods.models.encoders import SIDES
from goods.models.neighbours import joined, neighbours
from goods.params import Params
from goods.run import Run
from goods.sheets import read_sheet

NEIGHBOURS = 6
AGAIN = "run the run's pipeline with --steps ensemble --force"


@dataclass
class Review:
    """The labels in doubt of a run, and what has been decided of them.

    issues: id, given, suggested (words of classes), margin, title; the most doubtful first. decided: the rows of
    label_fixes.COLUMNS in `path`, in the order they were decided in; also of products that aren't among the issues.
    """

    path: Path
    issues: pd.DataFrame
    words: list[str]
    decided: pd.DataFrame

    @property
    def current(self) -> str | None:
        """The id to look at now: the most doubtful of those not seen yet, then those that were skipped, the first
        skipped first; None where all is decided."""
        left = self.issues["id"][~self.issues["id"].isin(self.decided["id"])]
        skipped = self._own()
        skipped = skipped["id"][skipped["decision"] == "skip"]
        return next(iter([*left.head(1), *skipped.head(1)]), None)

    @property
    def latest(self) -> str | None:
        """The id that was decided last."""
        own = self._own()["id"]
        return own.iloc[-1] if len(own) else None

    def issue(self, name: str) -> pd.Series:
        """What is known of a product in doubt."""
        return self.issues[self.issues["id"] == name].iloc[0]

    def decide(self, name: str, decision: str, label: str = "") -> None:
        """Keeps a decision, in place of an earlier one, and writes the file; `label`: the word of the new class.

        Raises GoodsError for a decision that there isn't, and for a change to no class or to the one that it has.
        """
        given = self.issue(name)["given"]
        if decision not in DECISIONS:
            raise GoodsError(f"there is no decision '{decision}', only {', '.join(DECISIONS)}")
        if decision == "change" and label not in self.words:
            raise GoodsError(f"there is no class '{label}' to change product {name} to")
        if decision == "change" and label == given:
            raise GoodsError(f"product {name} is {given} already: keep it, or choose another class")
        new = label if decision == "change" else ""
        self._write([name, given, decision, new, time.strftime("%Y-%m-%d %H:%M:%S")])

    def take_back(self) -> None:
        """Forgets the latest decision, so that its product is looked at again."""
        if self.latest is not None:
            self._write(without=self.latest)

    def counts(self) -> dict[str, int]:
        """How many of the labels in doubt are decided in each way, and how many are "left"."""
        own = self._own()["decision"]
        found = {decision: int((own == decision).sum()) for decision in DECISIONS}
        return found | {"left": len(self.issues) - len(own)}

    def table(self) -> pd.DataFrame:
        """The issues, each with its decision and new label; "" where there is none."""
        return self.issues.merge(self.decided[["id", "decision", "label"]], on="id", how="left").fillna(
            {"decision": "", "label": ""}
        )

    def _own(self) -> pd.DataFrame:
        return self.decided[self.decided["id"].isin(self.issues["id"])]

    def _write(self, row: list[str] | None = None, without: str = "") -> None:
        """Writes the file with a row more, or with one less; what was changed in it by hand meanwhile stays."""
        known = read_fix_table(self.path) if self.path.is_file() else self.decided
        table = known[known["id"] != (row[0] if row else without)]
        if row:
            table = pd.concat([table, pd.DataFrame([row], columns=COLUMNS)], ignore_index=True)
        write_fix_table(self.path, table)
        self.decided = table


def open_review(p: Params, goods: Goods) -> Review:
    """The labels in doubt of a run, and the decisions that its labels_fixed.csv has, or else p.label_fixes.

    Raises GoodsError where the run isn't put together yet, or the decisions don't fit the goods.
    """
    run, words = Run.of(p), class_words(goods.labels, goods.classes)
    train = goods.train.set_index("id")
    issues = _read_issues(run).drop(columns="given")
    if not issues["id"].isin(train.index).all() or not issues["suggested"].isin(words).all():
        raise DamagedFileError(f"{run.label_issues} names products or classes that are not there; {AGAIN}")
    given = [words[k] for k in train["label"].reindex(issues["id"])]
    issues = issues.assign(given=given)[["id", "title", "given", "suggested", "margin"]]
    if run.labels_fixed.is_file():
        read_fixes(run.labels_fixed, goods.train, goods.labels, goods.classes)
    return Review(run.labels_fixed, issues, words, _decisions(run, p.label_fixes))


def write_review_list(run: Run) -> str:
    """Writes every label in doubt that isn't decided yet into labels_fixed.csv, its decision empty, to be filled in by
    hand; returns what to say of it. What is decided there stays."""
    issues, decided = _read_issues(run), _decisions(run, run.parameters()["label_fixes"])
    left = issues[~issues["id"].isin(decided["id"])]
    table = pd.concat([decided, left[["id", "given"]].assign(decision="", label="", when="")], ignore_index=True)
    table = table.merge(issues[["id", "suggested", "title"]], on="id", how="left").fillna("")
    write_fix_table(run.labels_fixed, table)
    return (f"{run.labels_fixed}: {len(left)} labels in doubt to decide, {len(decided)} decided; fill in decision "
            "(keep, change, drop or skip), and of a change label")  # fmt: skip


def _read_issues(run: Run) -> pd.DataFrame:
    """id, given, suggested, margin, title of ensemble/label_issues.csv."""
    if not run.label_issues.is_file():
        raise GoodsError(f"run '{run.name}' has no {run.label_issues.name} yet: notebooks/ensemble.ipynb writes it; "
                         "run its pipeline to the end")  # fmt: skip
    try:
        table = read_sheet(run.label_issues, dtype=str, keep_default_na=False)
        return table[["id", "given", "suggested", "margin", "title"]].astype({"margin": float})
    except (ValueError, KeyError):
        raise DamagedFileError(f"{run.label_issues} is damaged; {AGAIN}") from None


def _decisions(run: Run, label_fixes: str | None) -> pd.DataFrame:
    """What is decided in the run's labels_fixed.csv, or else what it learned from, which goes on to hold."""
    if run.labels_fixed.is_file():
        table = read_fix_table(run.labels_fixed)
        return table[table["decision"] != ""].reset_index(drop=True)
    if not label_fixes:
        return pd.DataFrame(columns=COLUMNS, dtype=object)
    table = read_fix_table(run.label_fixes if run.label_fixes.is_file() else resolve(label_fixes))
    return table[table["decision"].isin(STANDING)].reset_index(drop=True)


# Products like the one in doubt --------------------------------------------------------------------------------------


def training_vectors(p: Params, goods: Goods) -> np.ndarray | None:
    """(n, dims) of the training products, by embeddings that are there: embed.ipynb's, kind knn's, or the cache's.

    None where there are none: nothing is embedded here.
    """
    run, ids = Run.of(p), goods.train["id"].tolist()
    try:
        if run.embeddings("train").is_file():
            with safe_open(run.embeddings("train"), framework="pt") as file:
                if json.loads(file.metadata()["ids"]) == ids:
                    return joined({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        if run.neighbours.is_file() and len(found := joined(load_file(run.neighbours))) == len(ids):
            return found
        frozen, sides = p.model_copy(update={"extra_embeddings": ()}), kind_of(p).planned or SIDES
        embedders = embedders_of(frozen, sides)
        for embedder in embedders.values():
            embedder.only_kept = True
        return joined(embed_products(frozen, goods.train, sides, embedders))
    except (GoodsError, SafetensorError, OSError, ValueError, KeyError, TypeError):  # no such model, a damaged file
        return None


def like(vectors: np.ndarray, goods: Goods, name: str) -> pd.DataFrame:
    """The products nearest to one, by embeddings: cosine, id, of_class (its name), title, image."""
    row = goods.train["id"].tolist().index(name)
    table = neighbours(vectors, row, goods.train, goods.classes, NEIGHBOURS + 1)
    table = table[table["id"] != name].head(NEIGHBOURS)
    return table.rename(columns={"class": "of_class"})
