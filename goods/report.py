"""report.html: one page that says what a run did and where it errs, made from the run's files alone.

Nothing is drawn here: the notebooks keep each figure as a PNG when they draw it, and the page shows those.
"""

from __future__ import annotations

import base64
import os
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from goods.accept import acceptance_table
from goods.ensemble.verdict import verdict
from goods.entries import Entry, read_entry, when_shown
from goods.errors import DamagedFileError, GoodsError
from goods.files import ROOT, read_frame, read_json_if_whole, write_text
from goods.members import kind_of
from goods.metric_names import SHOWN_AS, column_shown, metric_first
from goods.metrics import calibration_error
from goods.page import list_html, photo_html, render, table_html, without_machine
from goods.params import OUTPUTS, Params
from goods.run import Run
from goods.sheets import read_sheet
from goods.words import digits, duration, gib, size

MAX_BYTES = 9_000_000  # of figures, so that the page can be mailed
SHOWN_ISSUES = 24
ACCEPTANCE = "acceptance"  # the figure that is shown with the thresholds
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
ROWS = {"chosen": "choice", "members": "member", "methods": "method", "added": "member", "teacher": "run"}
REFITTED = "; the test set is predicted by one model of all rows (refit), for which the folds' score stands"
TEMPLATE = """{% extends "base" %}{% block body %}
<h1>{{ title }}</h1>
{% if verdict %}<p class="score">{{ verdict }}</p>
{% endif %}{% if headline %}<p class="score">{{ headline }}</p>
{% endif %}
<p class="quiet">{{ made_by }}; {{ done }} of {{ n_folds }} folds{{ refit }}</p>
{% for sentence in missing %}<p class="missing">{{ sentence }}</p>
{% endfor %}
{% for heading, table in tables %}<h2>{{ heading }}</h2>{{ table }}
{% endfor %}
{% if accepted %}<h2>What needs no person's look</h2>
<p>From which probability on predictions are right often enough, each fold under the thresholds of the other folds.
Where none is given, none is enough on all rows.</p>
{{ accepted }}
{% for name, data in curve %}<div class="figures one">
<img alt="{{ name }}" src="data:image/png;base64,{{ data }}"></div>
{% endfor %}{% endif %}
{% for heading, images in figures %}<h2>{{ heading }}</h2><div class="figures">
{% for name, data in images %}<img alt="{{ name }}" src="data:image/png;base64,{{ data }}">
{% endfor %}</div>
{% endfor %}
{% if undrawn %}<p class="undrawn">Figures not drawn yet: {{ undrawn|join("; ") }}.</p>{% endif %}
{% if issues %}<h2>Labels to look at again</h2>
<p>{{ issues|length }} of {{ all_issues }}, the most doubtful first; all of them:
<a href="{{ issues_file }}">{{ issues_file }}</a>. The margin is how much surer of the suggestion it is than of the
label that was given.</p>
<div class="cards">
{% for row in issues %}<div class="card" id="label-{{ loop.index }}"><div>
{% if row.link %}<a href="{{ row.link }}">{{ row.photo }}</a>{% else %}{{ row.photo }}{% endif %}</div><div>
<a class="id" href="#label-{{ loop.index }}">{{ row.id }}</a> {{ row.title }}<br>
<span class="worse">given {{ row.given }}</span><br>
<span class="better">suggested {{ row.suggested }}</span>{% if row.margin %}, margin {{ row.margin }}{% endif %}
</div></div>
{% endfor %}</div>{% endif %}
<h2>How it was made</h2>
{{ took }}
<details open><summary>Parameters that differ from the defaults</summary>{{ changed }}</details>
<details><summary>All parameters</summary>{{ parameters }}</details>
<details><summary>Versions</summary>{{ versions }}</details>
{% if notebooks %}<p>Executed notebooks, beside this page:
{% for name in notebooks %}<a href="notebooks/{{ name|urlencode }}">{{ name }}</a> {% endfor %}</p>{% endif %}
{% endblock %}"""
MACHINE = {"platform": "system", "processor": "processor", "cpus": "cores", "memory_gib": "memory of the machine, GiB"}


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
    figures, left_out = _embedded(saved_figures(run))
    issues, count = _issues(run)
    entry, environment = read_entry(run), record.get("environment", {})
    page = render(
        TEMPLATE,
        title=run.name,
        verdict=verdict(metrics, params["metric"]),
        made_by=_made_by(p),
        done=len(run.trained()) or (p.n_folds - len(metrics.get("missing_folds", [])) if metrics else 0),
        n_folds=p.n_folds,
        refit=REFITTED if metrics.get("refit") else "",
        missing=_missing(p, metrics) + left_out,
        headline=_headline(entry, metrics, params["metric"]),
        tables=_tables(metrics),
        accepted=_accepted(run),
        curve=[image for _, images in figures for image in images if image[0] == ACCEPTANCE],
        figures=[(title, kept) for title, images in figures if (kept := [i for i in images if i[0] != ACCEPTANCE])],
        undrawn=_undrawn(run, metrics),
        issues=issues,
        all_issues=f"{count:,}",
        issues_file=run.label_issues.relative_to(run.folder).as_posix(),
        took=_took(entry, environment),
        changed=_settings(params, all_of_them=False),
        parameters=_settings(params, all_of_them=True),
        versions=list_html({name: value for name, value in environment.items() if name not in (*MACHINE, "commit")}),
        notebooks=run.executed_notebooks(),
    )  # fmt: skip
    return write_text(run.report, page)


def _made_by(p: Params) -> str:
    """The kind, and the model directory that it reads."""
    kind = kind_of(p)
    names = [path.name for path in (*kind.model_dirs(p).values(), *chain(*kind.vector_files(p).values()))]
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
        found.append("the goods (eda.ipynb, trust.ipynb)")
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


def _headline(entry: Entry, metrics: dict[str, Any], metric: str) -> str:
    if entry.oof is None:
        return ""
    labels, logits = entry.oof.labels, entry.oof.logits
    scores = metrics.get(next((name for name in OUTPUTS if name in metrics), ""), {})
    scores |= {"calibration_error": calibration_error(labels, logits)}
    names = SHOWN_AS | {"calibration_error": "calibration error"}
    between = f" ({' to '.join(map(digits, entry.score(metric)[1:]))})"
    order = metric_first(metric, "accuracy", "macro_f1", "log_loss", "calibration_error")
    each = [names[name] + f" {digits(scores[name])}" + between * (name == metric) for name in order if name in scores]
    return f"Out of fold: {', '.join(each)}, on {len(labels):,} products"


def _tables(metrics: dict[str, Any]) -> list[tuple[str, Markup]]:
    """The scores, each with its heading."""
    found = []
    if "folds" in metrics:
        found.append(("Scores by fold", _rows(metrics["folds"], "fold")))
    outputs = {name: metrics[name] for name in OUTPUTS if isinstance(metrics.get(name), dict)}
    if len(outputs) > 1:
        found.append(("Scores by what is looked at", _rows(outputs, "output")))
    if metrics.get("picked"):
        picked = {f"fold {fold}": name for fold, name in metrics["picked"].items()}
        picked["further products"] = metrics.get("method", "")
        found.append(("Ways taken, each fold's chosen on the others", _rows({"method": picked}, "for")))
    for name, title in TABLES.items():
        if metrics.get(name):
            found.append((title, _rows(metrics[name], ROWS[name])))
    return found


def _rows(rows: dict[str, dict[str, Any]], index: str) -> Markup:
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index)
    return table_html(table.rename(columns=_shown), gains=("gain", "from", "to"))


def _shown(column: str) -> str:
    """A column of metrics.json as people read it."""
    return column_shown(column).replace("_", " ")


def _accepted(run: Run) -> Markup | None:
    """From which probability on what share is accepted, at several wanted precisions."""
    try:
        table = acceptance_table(read_frame(run.oof, ["label", "fold"]))
    except DamagedFileError:
        return None
    table.index = [f"{100 * wanted:.0f} %" for wanted in table.index]
    names = {"threshold": "accepted from", "share": "share accepted", "precision": "share of them right"}
    return table_html(table.rename(columns=names).rename_axis("wanted precision"))


def _issues(run: Run) -> tuple[list[dict[str, Any]], int]:
    """The labels to look at again that are shown, and how many there are."""
    try:
        table = read_sheet(run.label_issues, dtype=str, keep_default_na=False)
        shown = table.head(SHOWN_ISSUES)
        rows = shown[["id", "title", "given", "suggested"]].to_dict("records")
    except (OSError, ValueError, KeyError):  # a damaged file leaves the rest of the page
        return [], 0
    for number, row in enumerate(rows):
        margin, photo = (shown[name].iloc[number] if name in shown else "" for name in ("margin", "image"))
        row |= {"margin": _margin(margin), "photo": photo_html(photo), "link": _link(run, photo)}
    return rows, len(table)


def _margin(text: str) -> str:
    try:
        return digits(abs(float(text)))
    except ValueError:
        return ""


def _link(run: Run, photo: str) -> str:
    """The way from the report to a photo inside the project; "" to one elsewhere, which no page is to tell of."""
    path = Path(photo)
    here = photo and path.is_relative_to(ROOT) and run.folder.is_relative_to(ROOT) and path.is_file()
    return Path(os.path.relpath(path, run.folder)).as_posix() if here else ""


def _took(entry: Entry, environment: dict[str, Any]) -> Markup:
    """What the run took, and on what machine."""
    devices = {of.get("device") for fold in entry.run.folds() if isinstance(of := fold.scores().get("resources"), dict)}
    values = {
        "trained in": duration(entry.seconds), "all steps in": duration(entry.step_seconds),
        "most memory of a fold's process": gib(entry.peak_ram), "most memory on the GPU": gib(entry.peak_gpu),
        "on disk": size(entry.size), "last change": when_shown(entry.when),
        "trained on": ", ".join(sorted(filter(None, devices))),
    }  # fmt: skip
    values |= {shown: environment.get(name) for name, shown in MACHINE.items()}
    values |= {"commit of this project": environment.get("commit")}
    return list_html({name: value for name, value in values.items() if value})


def _settings(params: dict[str, Any], all_of_them: bool) -> Markup:
    """Parameters as a list, those that aren't the defaults with what these are."""
    defaults, rows = Params().model_dump(mode="json"), {}
    for name, value in params.items():
        shown, default = without_machine(value) or "none", without_machine(defaults.get(name)) or "none"
        if value == defaults.get(name):
            rows |= {name: shown} if all_of_them else {}
        else:
            rows[name] = f"{shown} (default {default})" if name in defaults else shown
    return list_html(rows)


def _texts(**columns: dict[str, Any]) -> pd.DataFrame:
    """Values of any type as text, one row per name of the first column."""
    names = list(next(iter(columns.values())))
    texts = {column: [str(values.get(name, "")) for name in names] for column, values in columns.items()}
    return pd.DataFrame(texts, index=names, dtype=object)


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
