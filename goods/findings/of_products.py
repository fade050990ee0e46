"""What embeddings, predictions and rewritten texts of products come to, in sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from goods.words import count, digits, joined, percent


def embedded(embeddings: Mapping[str, Mapping[str, Any]]) -> str:
    """How many products were embedded, and how wide."""
    rows = {part: len(next(iter(tensors.values()))) for part, tensors in embeddings.items()}
    widths = {name: values.shape[1] for name, values in next(iter(embeddings.values())).items()}
    said = joined([f"{number:,} of {part}" for part, number in rows.items()])
    return f"{said}; {joined([f'{width:,} numbers per {name}' for name, width in widths.items()])}."


def neighbourhood(share: float, classes: int) -> str:
    """How pure neighbourhoods are, against chance; share: of the products that lie next to one of their class."""
    verdict = (
        "the embeddings know the classes" if share > 0.7 else "they know some" if share > 0.3 else "they hardly do"
    )
    chance = f"where chance gives about {percent(1 / classes)}"
    return f"{percent(share)} lie next to one of their own class, {chance}: {verdict}."


def nearest(tables: Sequence[pd.DataFrame]) -> str:
    """How many neighbours are of the product's class; tables: of each product its neighbours, itself first."""
    classes = [table["class"].tolist() for table in tables]
    same = sum(name == own for own, *others in classes for name in others)
    total = sum(len(of) - 1 for of in classes)
    low = min(float(table["cosine"].iloc[-1]) for table in tables)
    return f"{same} of {total} neighbours are of the product's own class, at cosines of {digits(low)} or more."


def known_already(cosines: Sequence[float]) -> str:
    """How many test products are in the training set, or nearly; cosine to the nearest one, of each."""
    cosines = np.asarray(cosines, dtype=float)
    same, near = int((cosines >= 0.9999).sum()), int((cosines >= 0.99).sum())
    half = f"half have one at {digits(float(np.median(cosines)))} or more"
    return (f"{same:,} of {len(cosines):,} test products have a training product with the same embedding, {near:,} "
            f"have one at a cosine of .990 or more; {half}.")  # fmt: skip


def labelled(table: pd.DataFrame) -> str:
    """How many classes can be labelled at all; table: threshold, precision, kept by class, means over the folds."""
    never = int((table["threshold"] > 1).sum())
    most = table["kept"].idxmax()
    rest = (
        f"; of {count(never, 'class', 'classes')} it isn't sure enough"
        if never
        else "; it is sure enough of each class"
    )
    return (f"{table['kept'].sum():,.0f} test products are labelled for an average fold, the most of class {most} "
            f"({table['kept'].max():,.0f}){rest}.")  # fmt: skip


def sure_of(pseudo: pd.DataFrame) -> str:
    """How sure the run is of what it has labelled; pseudo: label, probability."""
    if pseudo.empty:
        return "Nothing is labelled for this fold."
    low = float(pseudo["probability"].min())
    return f"{len(pseudo):,} products are labelled for this fold, the least sure at a probability of {digits(low)}."


def grown(before: Sequence[int], new: Sequence[int], classes: Sequence[str]) -> str:
    """Which class grows most, as a share of its training products; class indices of both."""
    if not len(new):
        return "No class grows."
    was, more = (np.bincount(np.asarray(of, dtype=int), minlength=len(classes)) for of in (before, new))
    growth = more / np.maximum(was, 1)
    k = int(growth.argmax())
    none = int((more == 0).sum())
    rest = f"{count(none, 'class', 'classes')} not at all" if none else "every class grows"
    return f"{classes[k]} grows most, by {percent(growth[k])}; {rest}."


def shares(before: Sequence[int], predicted: Sequence[int], classes: Sequence[str]) -> str:
    """How far predicted class shares are from those of the training products; class indices of both."""
    was, now = (np.bincount(np.asarray(of, dtype=int), minlength=len(classes)) for of in (before, predicted))
    shift = now / max(1, now.sum()) - was / max(1, was.sum())
    k = int(np.abs(shift).argmax())
    moved = 0.5 * float(np.abs(shift).sum())
    way = "more" if shift[k] > 0 else "less"
    more = f"{classes[k]} is {way} common here"
    return f"{percent(moved)} of the products would have to change class for the same shares; {more}."


def surer(new: Sequence[float], known: Sequence[float]) -> str:
    """Whether new products are predicted as surely as the training ones out of fold; probabilities of both."""
    low, was = float((np.asarray(new) < 0.5).mean()), float((np.asarray(known) < 0.5).mean())
    return f"{percent(low)} of the new products have no class at a probability of .500, out of fold {percent(was)}."


def least(table: pd.DataFrame) -> str:
    """Between which classes the least sure predictions lie; table: first, second, probability."""
    if table.empty:
        return "There is none."
    pairs = pd.Series([" and ".join(sorted(pair)) for pair in zip(table["first"], table["second"], strict=True)])
    common = pairs.value_counts()
    often = f" {common.iloc[0]} of {len(table)} lie between {common.index[0]}." if common.iloc[0] > 1 else ""
    return f"The least sure has {digits(float(table['probability'].min()))} for {table['first'].iloc[0]}.{often}"


def submitted(named: pd.DataFrame) -> str:
    """How sure the rows of a submission are; named: goods.ensemble.submission.named_classes."""
    sure = named["probability"]
    half = f"half of the rows have a probability of {digits(sure.median())} or more"
    return f"{half}; {(sure < 0.5).sum():,} have less than .500."


def answered(statuses: pd.Series) -> str:
    """How many texts were rewritten, and what became of most others; statuses: "ok", or why a text stayed as it was."""
    good = int((statuses == "ok").sum())
    rest = statuses[statuses != "ok"].value_counts()
    others = f", {rest.iloc[0]:,} are “{rest.index[0]}” and stay as they were" if len(rest) else ""
    return f"{good:,} of {len(statuses):,} texts are rewritten{others}."


def shorter(before: Sequence[int], after: Sequence[int], limit: int) -> str:
    """How many more texts fit; tokens of the texts before and after."""
    before, after = np.asarray(before), np.asarray(after)
    fit = (before <= limit).mean(), (after <= limit).mean()
    return (f"{percent(fit[1])} now fit in {limit} tokens, before {percent(fit[0])}; the median went from "
            f"{np.median(before):,.0f} to {np.median(after):,.0f} tokens.")  # fmt: skip
