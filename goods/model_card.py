"""The model card of an exported run: README.md with Hugging Face's metadata, made from the run's files alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from goods.data.further import further_columns
from goods.ensemble.learned import FoldMean, RunBlend
from goods.files import read_json
from goods.members import kind_of
from goods.metric_names import SHOWN_AS, metric_first
from goods.metrics import METRICS, interval
from goods.model_paths import path_of
from goods.params import REFIT, Params
from goods.predictions import frame_logits
from goods.run import Run

Parts = Sequence[tuple[Run, FoldMean | RunBlend]]
HUB_TYPES = {"macro_f1": "f1", "weighted_f1": "f1", "accuracy": "accuracy", "log_loss": "log_loss"}
CARD = """---
{metadata}---
# {name}

Classifies goods by {reads}: {classes} classes, calibrated probabilities. {made}

## How to load it

With [goods-classification](#versions) installed, and the model directories below where they were, or named:

```python
from goods.predictor import load_predictor

predictor = load_predictor("path/to/this/folder"{models})
probabilities = predictor.predict(products)  # (n, {classes}); predictor.labels[k] is class k
```

`products` is a pandas DataFrame with {columns}{image}. Any other version of the files is refused.

## Scores

{scored} Intervals: 95 %, over resamples of the products.

{scores}

{folds}

## Data

{products:,} labelled products of {classes} classes: {labels}.

## What it was not tested on

- Goods of other shops, languages, price ranges or years than the training table's, and photos of another kind.
- Products of none of the classes: each product gets one of them, however unlike the training goods it is.
- The test products of the competition: their labels are not known here.
- Whether its errors fall on some sellers or groups of buyers more than on others.

## What it is made of

{parts}

## Versions

{versions}

License: to be filled in, here and above; the training data and the backbones have their own.
"""


VECTORS = ", and their ids; `models` names the files with their vectors, by the model that made those it learned from"


def model_card(run: Run, parts: Parts, oof: pd.DataFrame, name: str) -> str:
    """The card of an exported run called `name`.

    parts: it and, of a blend, its runs, with what each has learned. oof: id, label, fold and calibrated
    log-probabilities of its main output.
    """
    parameters, known = run.parameters(), read_json(run.labels)
    kinds = [(kind_of(of), of) for of in (_params(part) for part, _ in parts)]
    vectors = any(kind.vector_files(of) for kind, of in kinds)
    photos = any(kind.photos and not of.embeddings_files for kind, of in kinds)
    texts = (part.parameters()["text_columns"] for part, _ in parts)
    columns = list(dict.fromkeys((*chain(*texts), *chain(*(further_columns(of) for _, of in kinds)))))
    labels, logits = oof["label"].to_numpy(), frame_logits(oof)
    order = metric_first(parameters["metric"], *METRICS)
    scores = {metric: interval(labels, logits, metric) for metric in order}
    called = {part.folder: name if part is parts[0][0] else part.name for part, _ in parts}
    models = [row for part, each in parts if isinstance(each, FoldMean) for row in _models(part, called[part.folder])]
    given = ", models={" + ", ".join(f'"{key}": ...' for key in _model_keys(models)) + "}" if models else ""
    return CARD.format(
        metadata=yaml.safe_dump(_metadata(name, photos, scores, len(oof)), sort_keys=False, allow_unicode=True),
        name=name,
        reads=("photo and text" if photos else "text") + (", and by vectors made elsewhere" if vectors else ""),
        classes=len(known["labels"]),
        made=_made(run, parts[0][1]),
        models=given,
        columns=" and ".join(f"`{column}`" for column in columns),
        image=(", and `image`, the path of a photo or its bytes" if photos else "") + (VECTORS if vectors else ""),
        scored=_scored(oof, parts),
        scores=_table(_score_row(metric, *scores[metric]) for metric in order),
        folds=_by_fold(run, order),
        products=len(oof),
        labels="; ".join(map(str, known["classes"])),
        parts=_parts(parts, models),
        versions=_table({"package": k, "version": str(v)} for k, v in run.record().get("environment", {}).items()),
    )  # fmt: skip


def _metadata(name: str, photos: bool, scores: dict[str, tuple[float, float, float]], products: int) -> dict[str, Any]:
    """The YAML at the top, as the Hub reads it; the license is left to whoever hands the folder on."""
    task = "image-classification" if photos else "text-classification"
    found = [
        {"type": HUB_TYPES[metric], "value": round(value, 4),
         "name": f"{SHOWN_AS[metric]} out of fold, 95 % interval {low:.4f} to {high:.4f}"}
        for metric, (value, low, high) in scores.items()
    ]  # fmt: skip
    tags = ["product-classification", "calibrated", *(["image-text", "multimodal"] if photos else ["text"])]
    dataset = {"type": "goods", "name": f"the training table, {products} products out of fold"}
    result = {"task": {"type": task, "name": "product classification"}, "dataset": dataset, "metrics": found}
    return {"library_name": "goods-classification", "pipeline_tag": task, "license": "other",
            "license_name": "to-be-filled-in", "tags": tags, "metrics": sorted({row["type"] for row in found}),
            "model-index": [{"name": name, "results": [result]}]}  # fmt: skip


def _made(run: Run, learned: FoldMean | RunBlend) -> str:
    """How its models become one prediction, in a sentence."""
    if isinstance(learned, RunBlend):
        return f"{len(learned.runs)} runs put together by '{learned.combiner.method}': {', '.join(learned.runs)}."
    if REFIT in learned.folds:
        return "One model that learned from all products predicts; its scores are those of the folds before it."
    return f"The mean of {len(learned.folds)} models, each of which left out one fold of {run.parameters()['n_folds']}."


def _scored(oof: pd.DataFrame, parts: Parts) -> str:
    """What the scores rest on."""
    folds = oof["fold"].nunique()
    said = f"Out of fold: each of {len(oof):,} products was scored by models that hadn't seen it, in {folds} folds."
    if isinstance(parts[0][1], RunBlend):
        said += " The blend was chosen and fitted for each fold on the others."
    return said


def _score_row(metric: str, value: float, low: float, high: float) -> dict[str, str]:
    return {"metric": SHOWN_AS[metric], "out of fold": f"{value:.4f}", "95 % interval": f"{low:.4f} to {high:.4f}"}


def _by_fold(run: Run, order: Sequence[str]) -> str:
    """The scores of each fold."""
    folds = read_json(run.metrics, "put the run together again").get("folds", {})
    return _table({"fold": fold} | {SHOWN_AS[name]: f"{of[name]:.4f}" for name in order if name in of}
                  for fold, of in folds.items())  # fmt: skip


def _models(run: Run, called: str) -> list[dict[str, str]]:
    """The model directories that a run reads, by the hash of their files."""
    rows, parameters = [], run.parameters()
    for name, contents in run.record().get("models", {}).items():
        paths = parameters[name] if name == "embeddings_files" else [path_of(parameters, name)]
        where = {"directory": ", ".join(Path(path).name for path in paths), "hash of its files": contents}
        rows.append({"run": called, "parameter": name, **where})
    return rows


def _model_keys(models: Sequence[dict[str, str]]) -> list[str]:
    """What load_predictor calls them: by the parameter alone where it means one directory, else by the run, too."""
    contents = {row["parameter"]: {r["hash of its files"] for r in models if r["parameter"] == row["parameter"]}
                for row in models}  # fmt: skip
    keys = (row["parameter"] if len(contents[row["parameter"]]) == 1 else f"{row['run']}/{row['parameter']}"
            for row in models)  # fmt: skip
    return list(dict.fromkeys(keys))


def _parts(parts: Parts, models: Sequence[dict[str, str]]) -> str:
    """The runs, and the model directories that they read, which are not part of the folder."""
    what = {part.name: kind_of(_params(part)).what for part, _ in parts}
    lines = [f"- `{part.name}`: {what[part.name]}" for part, each in parts if isinstance(each, FoldMean)]
    if len(parts) == 1:
        lines = [f"One run: {what[parts[0][0].name]}."]
    tables = ["", "Model directories and vectors that it reads, not part of the folder:", "", _table(models)]
    return "\n".join(lines + (tables if models else []))


def _params(run: Run) -> Params:
    return Params(**{name: value for name, value in run.parameters().items() if name in Params.model_fields})


def _table(rows: Any) -> str:
    """Rows as a Markdown table."""
    rows = list(rows)
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, row.values())) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
