"""report.html: one page that says what a run did and where it errs, made from the run's files alone."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from goods.ensemble.folds import fold_scores
from goods.errors import GoodsError
from goods.figures.eda import fold_balance
from goods.figures.ensemble import curves, method_gains, modality_scores, prediction_balance, reliability
from goods.figures.errors import class_f1, confused_pairs, confusion_matrix
from goods.figures.training import learning_curves, rates_and_gradients
from goods.files import write_text
from goods.metrics import calibration_error
from goods.params import Params
from goods.predictions import frame_logits, outputs_of
from goods.run import load_recorded
from goods.training.loop import read_logs

MAX_BYTES = 9_000_000  # of figures, so that the page can be mailed
SHOWN_ISSUES = 20
PHOTO_FIGURES = ("worst_errors", "label_issues")  # drawn by ensemble.ipynb, which has the photos at hand
TABLES = {
    "members": "Members of the blend",
    "methods": "Ways to put them together",
    "added": "What each member adds",
    "teacher": "Gain over the run that made the pseudo-labels",
}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ run }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0; }
td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #eee; }
td:first-child, th:first-child, .words td, .words th { text-align: left; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } .missing { background: #fff3cd; padding: .6rem 1rem; border-left: 4px solid #e69f00; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(460px, 1fr)); gap: 1rem; align-items: start; }
.figures img { width: 100%; } .score { font-size: 1.3rem; } details { margin: .6rem 0; }
@media (max-width: 560px) { .figures { grid-template-columns: 1fr; } }
</style></head><body>
<h1>{{ run }}</h1>
<p>kind {{ kind }}{% if model %}, {{ model }}{% endif %}; {{ done }} of {{ n_folds }} folds</p>
{% for sentence in missing %}<p class="missing">{{ sentence }}</p>{% endfor %}
{% if headline %}<p class="score">{{ headline }}</p>{% endif %}
{% for title, table in tables %}<h2>{{ title }}</h2><div class="wide">{{ table }}</div>{% endfor %}
{% if figures %}<h2>Figures</h2><div class="figures">
{% for name, data in figures %}<img alt="{{ name }}" src="data:image/png;base64,{{ data }}">
{% endfor %}</div>{% endif %}
{% if issues %}<h2>Labels to look at again</h2><div class="wide words">{{ issues }}</div>{% endif %}
<h2>How it was made</h2>
<details open><summary>Parameters that differ from the defaults</summary>{{ changed }}</details>
<details><summary>All parameters</summary>{{ parameters }}</details>
<details><summary>Environment</summary>{{ environment }}</details>
{% if notebooks %}<p>Executed notebooks, beside this page:
{% for name in notebooks %}<a href="notebooks/{{ name|urlencode }}">{{ name }}</a> {% endfor %}</p>{% endif %}
</body></html>
"""


def write_report(p: Params) -> Path:
    """Writes report.html into the run's folder, from what its files hold; what is missing is said on the page.

    Self-contained: figures are part of the page, and nothing is loaded from elsewhere.
    """
    run_dir = p.run_dir
    if not (run_dir / "params.yaml").is_file():
        raise GoodsError(f"there is no run in {run_dir}; name one with --set run=...")
    metrics, params = _json(run_dir / "ensemble" / "metrics.json"), load_recorded(run_dir / "params.yaml")
    defaults = Params().model_dump(mode="json")
    figures, left_out = _embedded(run_figures(run_dir))
    page = Environment(autoescape=True).from_string(PAGE).render(
        run=run_dir.name,
        kind=p.kind,
        model=Path(params["model_name"]).name if p.kind in ("dual", "text", "knn") else "",
        done=len(_folds(run_dir)) or (p.n_folds if p.kind == "blend" and metrics else 0),
        n_folds=p.n_folds,
        missing=_missing(p, metrics) + left_out,
        headline=_headline(run_dir),
        tables=_tables(metrics),
        figures=figures,
        issues=_issues(run_dir / "ensemble" / "label_issues.csv"),
        changed=_list({name: value for name, value in params.items() if value != defaults.get(name)}),
        parameters=_list(params),
        environment=_list(_json(run_dir / "environment.json")),
        notebooks=[file.name for file in sorted((run_dir / "notebooks").glob("*.ipynb"))],
    )  # fmt: skip
    return write_text(run_dir / "report.html", page)


def run_figures(run_dir: Path) -> dict[str, Figure | bytes]:
    """All figures of a run by name, drawn anew from its files without a model; those of photos as they were saved."""
    classes = _json(run_dir / "labels.json").get("classes", [])
    found: dict[str, Figure | bytes] = {}
    if len(logs := read_logs(run_dir)):
        found["learning_curves"] = learning_curves(logs)
        if "gradient_norm" in logs:
            found["rates_and_gradients"] = rates_and_gradients(logs)
    folds = _table(run_dir / "folds.parquet")
    if folds is not None:
        found["fold_balance"] = fold_balance(folds["fold"], folds["label"], classes)
    if (oof := _table(run_dir / "ensemble" / "oof.parquet")) is not None:
        found |= prediction_figures(run_dir, oof, classes)
    for name in PHOTO_FIGURES:
        file = run_dir / "ensemble" / "figures" / f"{name}.png"
        if file.is_file():
            found[name] = file.read_bytes()
    return found


def prediction_figures(run_dir: Path, oof: pd.DataFrame, classes: list[str]) -> dict[str, Figure]:
    """Figures of out-of-fold predictions, a table as in ensemble/oof.parquet."""
    labels, logits = oof["label"], frame_logits(oof)
    predictions, metrics = logits.argmax(1), _json(run_dir / "ensemble" / "metrics.json")
    before = [table for folder in _folds(run_dir) if (table := _table(folder / "oof.parquet")) is not None]
    outputs = {"calibrated": logits}
    if sum(map(len, before)) == len(oof):
        outputs = {"before": frame_logits(oof[["id"]].merge(pd.concat(before), on="id"))} | outputs
    found = {
        "modalities": modality_scores(fold_scores(oof).xs("macro_f1", axis=1, level=1)),
        "reliability": reliability(labels, outputs),
        "curves": curves(labels, logits, classes),
        "class_f1": class_f1(labels, predictions, classes),
        "confusion": confusion_matrix(labels, predictions, classes),
        "confused_pairs": confused_pairs(labels, predictions, classes),
    }
    if "methods" in metrics:
        found["methods"] = method_gains(pd.DataFrame.from_dict(metrics["methods"], orient="index"))
    if (test := _table(run_dir / "ensemble" / "test.parquet")) is not None:
        found["prediction_balance"] = prediction_balance(labels, frame_logits(test).argmax(1), classes)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _table(path: Path) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(path)
    except Exception:  # pyarrow raises anything on damaged bytes
        return None


def _folds(run_dir: Path) -> list[Path]:
    return sorted(file.parent for file in run_dir.glob("fold*/metrics.json"))


def _missing(p: Params, metrics: dict[str, Any]) -> list[str]:
    found = []
    done = {folder.name for folder in _folds(p.run_dir)}
    lost = [k for k in range(p.n_folds) if f"fold{k}" not in done]
    if p.kind == "blend":
        lost = metrics.get("missing_folds", [])
    if lost:
        found.append(f"Folds not trained: {', '.join(map(str, lost))}.")
    if not metrics:
        found.append("There is no ensemble yet: no honest score over all folds, and no figures of its predictions.")
    if not (p.run_dir / "submission.csv").is_file():
        found.append("There is no submission.csv yet.")
    return found


def _headline(run_dir: Path) -> str:
    oof = _table(run_dir / "ensemble" / "oof.parquet")
    if oof is None:
        return ""
    labels, logits = oof["label"].to_numpy(), frame_logits(oof)
    scores = _json(run_dir / "ensemble" / "metrics.json").get(outputs_of(oof)[0], {})
    scores |= {"calibration_error": calibration_error(labels, logits)}
    names = ("accuracy", "macro_f1", "log_loss", "calibration_error")
    shown = ", ".join(f"{name.replace('_', ' ')} {scores[name]:.3f}" for name in names if name in scores)
    return f"Out of fold: {shown}, on {len(oof):,} products".replace("macro f1", "macro-F1")


def _tables(metrics: dict[str, Any]) -> list[tuple[str, Markup]]:
    found = []
    if "folds" in metrics:
        found.append(("Scores by fold", _html(pd.DataFrame.from_dict(metrics["folds"], orient="index"))))
    outputs = {name: metrics[name] for name in ("fused", "image", "text") if isinstance(metrics.get(name), dict)}
    if len(outputs) > 1:
        found.append(("Scores by what is looked at", _html(pd.DataFrame.from_dict(outputs, orient="index"))))
    for name, title in TABLES.items():
        if metrics.get(name):
            found.append((title, _html(pd.DataFrame.from_dict(metrics[name], orient="index"))))
    return found


def _issues(path: Path) -> Markup | None:
    if not path.is_file():
        return None
    table = pd.read_csv(path, dtype=str, keep_default_na=False).head(SHOWN_ISSUES)
    return _html(table[["id", "title", "given", "suggested"]], index=False) if len(table) else None


def _list(values: dict[str, Any]) -> Markup:
    return _html(pd.DataFrame({"value": {name: str(value) for name, value in values.items()}}))


def _html(table: pd.DataFrame, index: bool = True) -> Markup:
    return Markup(table.to_html(border=0, index=index, escape=True, na_rep="", float_format="{:.4f}".format))


def _embedded(figures: dict[str, Figure | bytes]) -> tuple[list[tuple[str, str]], list[str]]:
    """Figures as base64 PNG, and a sentence on those that would make the page too heavy to mail."""
    data = {}
    for name, figure in figures.items():
        if isinstance(figure, Figure):
            stream = io.BytesIO()
            figure.savefig(stream, format="png")
            figure = stream.getvalue()
        data[name] = base64.b64encode(figure).decode()
    kept, size = [], 0
    for name, text in sorted(data.items(), key=lambda item: len(item[1])):
        size += len(text)
        if size <= MAX_BYTES:
            kept.append(name)
    lost = [name for name in data if name not in kept]
    said = [f"Figures too large for this page, see ensemble/figures: {', '.join(lost)}."] if lost else []
    return [(name, data[name]) for name in data if name in kept], said
