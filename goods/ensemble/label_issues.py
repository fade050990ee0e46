"""Labels to look at again, as a table to work through."""

from __future__ import annotations

import pandas as pd

from goods.data.mended import class_words
from goods.data.tables import Goods
from goods.ensemble.folds import Ensemble
from goods.params import Params
from goods.predictions import frame_logits, prediction_table
from goods.run import Run
from goods.sheets import write_sheet
from goods.training.rows import find_label_issues


def write_label_issues(p: Params, ensemble: Ensemble, goods: Goods) -> pd.DataFrame:
    """Products whose given label their out-of-fold prediction contradicts, worst first; also ensemble/label_issues.csv.

    Without those that a person has decided already, whose decisions the run has learned from (label_fixes).
    As goods.figures.errors.worst_errors takes them: id, title, text, image, label, prediction (the suggestion; class
    indices), given, suggested (names), margin.
    """
    issues = find_label_issues(ensemble.oof["label"].to_numpy(), frame_logits(ensemble.oof))
    if goods.fixes is not None:
        decided = ensemble.oof["id"].isin(goods.fixes["id"]).to_numpy()
        issues = issues[~decided[issues["row"]]].reset_index(drop=True)
    table = prediction_table(ensemble.oof, goods).iloc[issues["row"]].reset_index(drop=True)
    names = {"given": table["label"], "suggested": issues["suggested"]}
    words = class_words(goods.labels, goods.classes)
    named = {name: [words[k] for k in labels] for name, labels in names.items()}
    table = table.assign(prediction=issues["suggested"], margin=issues["margin"], **named)
    listed = table[["id", "given", "suggested", "margin", "title", "text", "image"]]
    write_sheet(Run.of(p).label_issues, listed)
    return table
