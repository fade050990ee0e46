"""report.html: one page that says what a run did and where it errs, made from the run's files alone.

Nothing is drawn here: the notebooks keep each figure as a PNG when they draw it, and the page shows those.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

from goods.errors import DamagedFileError, GoodsError
from goods.files import read_frame, read_json_if_whole, write_text
from goods.members import kind_of
from goods.metric_names import SHOWN_AS, metric_first
from goods.metrics import calibration_error
from goods.params import OUTPUTS, Params
from goods.predictions import frame_logits, outputs_of
from goods.run import Run
from goods.sheets import read_sheet

if TYPE_CHECKING:
    from IPython.display import HTML

MAX_BYTES = 9_000_000  # of figures, so that the page can be mailed
SHOWN_ISSUES = 20
FIGURES = (  # in the order of the page; those with other names come after them
    "methods modalities acceptance reliability curves class_f1 confusion confused_pairs worst_errors label_issues "
    "prediction_balance learning_curves rates_and_gradients occlusion class_balance fold_balance"
).split()
TABLES = {
    "chosen": "The choice of the other folds, and the one made on the scored rows",
    "members": "Members of the blend",
    "methods": "Ways to put them together",
    "added": "What each member adds",
    "teacher": "Gain over the run that made the pseudo-labels",
}
REFITTED = "; the test set is predicted by one model of all rows (refit), for which the folds' score stands"
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
<p>{{ made_by }}; {{ done }} of {{ n_folds }} folds{{ refit }}</p>
{% for sentence in missing %}<p class="missing">{{ sentence }}</p>{% endfor %}
{% if headline %}<p class="score">{{ headline }}</p>{% endif %}
{% for title, table in tables %}<h2>{{ title }}</h2><div class="wide">{{ table }}</div>{% endfor %}
{% for title, images in figures %}<h2>{{ title }}</h2><div class="figures">
{% for name, data in images %}<img alt="{{ name }}" src="data:image/png;base64,{{ data }}">
{% endfor %}</div>{% endfor %}
{% if undrawn %}<p class="undrawn">Figures not drawn yet: {{ undrawn|join("; ") }}.</p>{% endif %}
{% if issues %}<h2>Labels to look at again</h2><div class="wide words">{{ issues }}</div>{% endif %}
<h2>How it was made</h2>
<details open class="words"><summary>Parameters that differ from the defaults</summary>{{ changed }}</details>
<details class="words"><summary>All parameters</summary>{{ parameters }}</details>
<details class="words"><summary>Environment</summary>{{ environment }}</details>
{% if notebooks %}<p>Executed notebooks, beside this page:
{% for name in notebooks %}<a href="notebooks/{{ name|urlencode }}">{{ name }}</a> {% endfor %}</p>{% endif %}
</body></html>
"""


def write_report(p: Params) -> Path:
    """Writes report.html into the run's folder, from what its files hold; what is missing is said on the page.

    Self-contained: figures are part of the page, and nothing is loaded from elsewhere. Reads of `p` where the run lies,
    its kind and how many folds it has.
    """
    run = Run.of(p)
    if not run.exists:
        raise GoodsError(f"there is no run in {run.folder}; name one with --set run=...")
    record = run.record()
    metrics, params = read_json_if_whole(run.metrics), run.parameters()
    settings = settings_table(params)
    figures, left_out = _embedded(saved_figures(run))
    page = Environment(autoescape=True).from_string(PAGE).render(
        run=run.name,
        made_by=_made_by(p),
        done=len(run.trained()) or (p.n_folds - len(metrics.get("missing_folds", [])) if metrics else 0),
        n_folds=p.n_folds,
        refit=REFITTED if metrics.get("refit") else "",
        missing=_missing(p, metrics) + left_out,
        headline=_headline(run, params["metric"]),
        tables=_tables(metrics),
        figures=figures,
        undrawn=_undrawn(run, metrics),
        issues=_issues(run.label_issues),
        changed=_html(settings[settings["value"] != settings["default"]]),
        parameters=_html(settings),
        environment=_html(_texts(value=record.get("environment", {}))),
        notebooks=run.executed_notebooks(),
    )  # fmt: skip
    return write_text(run.report, page)


def _made_by(p: Params) -> str:
    """The kind, and the model directory that it reads."""
    kind = kind_of(p)
    names = [path.name for path in kind.model_dirs(p).values()]
    return ", ".join([f"kind {kind.name}", *names])


def settings_table(params: dict[str, Any]) -> pd.DataFrame:
    """Parameters as text, one row each: the value it has and its default."""
    return _texts(value=params, default=Params().model_dump(mode="json"))


def saved_figures(run: Run) -> dict[str, list[Path]]:
    """The figures that notebooks have kept in a run, by what they show: all folds together, each fold, the goods."""
    folders = {"All folds together": run.figures}
    folders |= {f"Fold {fold.number}": fold.figures for fold in run.folds()}
    folders["The goods"] = run.goods_figures
    place = {name: number for number, name in enumerate(FIGURES)}
    found = {}
    for title, folder in folders.items():
        found[title] = sorted(folder.glob("*.png"), key=lambda file: (place.get(file.stem, len(place)), file.name))
    return {title: files for title, files in found.items() if files}


def _undrawn(run: Run, metrics: dict[str, Any]) -> list[str]:
    """What no notebook has kept a figure of, and which one would."""
    drawn, found = saved_figures(run), []
    if metrics and "All folds together" not in drawn:
        found.append("all folds together (ensemble.ipynb)")
    learned = [fold.number for fold in run.folds() if fold.log.is_file()]
    if lost := [str(number) for number in learned if f"Fold {number}" not in drawn]:
        found.append(f"the training of fold {', '.join(lost)} (train.ipynb)")
    if "The goods" not in drawn:
        found.append("the goods (eda.ipynb)")
    return found


def _missing(p: Params, metrics: dict[str, Any]) -> list[str]:
    """What the run lacks, a sentence each."""
    run, found = Run.of(p), []
    lost = [k for k in range(p.n_folds) if k not in run.trained()]
    if p.runs:  # a blend's folds are those of its runs
        lost = metrics.get("missing_folds", [])
    if lost:
        found.append(f"Folds not trained: {', '.join(map(str, lost))}.")
    if not metrics:
        found.append("There is no ensemble yet: no honest score over all folds, and no figures of its predictions.")
    if not run.submission.is_file():
        found.append("There is no submission.csv yet.")
    return found


def _oof(run: Run) -> pd.DataFrame | None:
    """The out-of-fold predictions of all folds together, where they are there and whole."""
    try:
        return read_frame(run.oof, ["id", "label"])
    except DamagedFileError:
        return None


def _headline(run: Run, metric: str) -> str:
    oof = _oof(run)
    if oof is None:
        return ""
    labels, logits = oof["label"].to_numpy(), frame_logits(oof)
    scores = read_json_if_whole(run.metrics).get(outputs_of(oof)[0], {})
    scores |= {"calibration_error": calibration_error(labels, logits)}
    names = SHOWN_AS | {"calibration_error": "calibration error"}
    order = metric_first(metric, "accuracy", "macro_f1", "log_loss", "calibration_error")
    shown = ", ".join(f"{names[name]} {scores[name]:.3f}" for name in order if name in scores)
    return f"Out of fold: {shown}, on {len(oof):,} products"


def _tables(metrics: dict[str, Any]) -> list[tuple[str, Markup]]:
    found = []
    if "folds" in metrics:
        found.append(("Scores by fold", _html(pd.DataFrame.from_dict(metrics["folds"], orient="index"))))
    outputs = {name: metrics[name] for name in OUTPUTS if isinstance(metrics.get(name), dict)}
    if len(outputs) > 1:
        found.append(("Scores by what is looked at", _html(pd.DataFrame.from_dict(outputs, orient="index"))))
    for name, title in TABLES.items():
        if metrics.get(name):
            found.append((title, _html(pd.DataFrame.from_dict(metrics[name], orient="index"))))
    return found


def _issues(path: Path) -> Markup | None:
    if not path.is_file():
        return None
    try:
        table = read_sheet(path, dtype=str, keep_default_na=False).head(SHOWN_ISSUES)
        return _html(table[["id", "title", "given", "suggested"]], index=False) if len(table) else None
    except (ValueError, KeyError):  # a damaged file leaves the rest of the page
        return None


def _texts(**columns: dict[str, Any]) -> pd.DataFrame:
    """Values of any type as text, one row per name of the first column."""
    names = list(next(iter(columns.values())))
    texts = {column: [str(values.get(name, "")) for name in names] for column, values in columns.items()}
    return pd.DataFrame(texts, index=names, dtype=object)


def whole_table(table: pd.DataFrame, index: bool = True) -> HTML:
    """A table for a notebook, its long texts not cut; what looks like HTML in a cell or a header is shown as text."""
    from IPython.display import HTML

    with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
        return HTML(table.to_html(index=index, escape=True, justify="left"))


def _html(table: pd.DataFrame, index: bool = True) -> Markup:
    return Markup(table.to_html(border=0, index=index, escape=True, na_rep="", float_format="{:.4f}".format))


def _embedded(figures: dict[str, list[Path]]) -> tuple[list[tuple[str, list[tuple[str, str]]]], list[str]]:
    """Figures as (title, [(name, base64 PNG)]), and a sentence on those that would make the page too heavy to mail."""
    data = {file: base64.b64encode(file.read_bytes()).decode() for files in figures.values() for file in files}
    kept, size = set(), 0
    for file in sorted(data, key=lambda file: len(data[file])):
        size += len(data[file])
        if size <= MAX_BYTES:
            kept.add(file)
    shown = [(title, [(file.stem, data[file]) for file in files if file in kept]) for title, files in figures.items()]
    lost = [f"{file.parent.parent.name}/figures/{file.name}" for file in data if file not in kept]
    said = [f"Figures too large for this page, see {', '.join(lost)}."] if lost else []
    return [(title, images) for title, images in shown if images], said
