"""index.html of an outputs folder: all runs in one table, two of them side by side, the finding first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from goods.compare import (
    Comparison,
    Pair,
    compare,
    differing_parameters,
    finding,
    pair_finding,
    pair_table,
    read_comparison,
    turned,
    untouched_finding,
    with_interval,
)
from goods.data.products import some_products
from goods.entries import Entry, Score, when_shown
from goods.errors import GoodsError
from goods.files import resolve, write_text
from goods.page import list_html, photo_html, render, table_html, without_machine
from goods.params import Params
from goods.words import digits, duration, gib, size

INDEX, PAIRS = "index.html", "compared"  # the page of all runs, and the folder of those of two
MOST_RUNS = 5  # each of the best so many is compared with each other one
MOST_PRODUCTS = 8  # shown of each way in which two runs differ
MOST_CLASSES = 40  # shown of two runs, those that gain and lose most
DEFAULTS = Params().model_dump(mode="json")
MANY_RUNS = 5  # from which on the best one is said to be flattered by the choice
TEMPLATE = """{% extends "base" %}{% block body %}
<h1>{{ title }}</h1>
{% for line in below %}<p class="quiet">{{ line }}</p>
{% endfor %}
{% if runs %}
<h2>All runs</h2>
{{ runs }}
{% for line in apart %}<p class="missing">{{ line }}</p>
{% endfor %}
{% endif %}
{% if alike %}<details><summary>Parameters that all of them share, and not the defaults</summary>{{ alike }}</details>
{% endif %}
{% if pairs %}
{% if runs %}<h2>Side by side</h2>{% endif %}
{% if pairs|length > 1 %}<p><select class="picker" hidden aria-label="two runs">
{% for pair in pairs %}<option value="{{ loop.index }}">{{ pair.name }}</option>
{% endfor %}</select></p>{% endif %}
{% for pair in pairs %}<section data-part="{{ loop.index }}">
{% if runs %}<h3>{{ pair.finding }}</h3>{% endif %}
{% for line in pair.lines %}<p class="quiet">{{ line }}</p>
{% endfor %}
{{ pair.gains }}
<details{% if not runs %} open{% endif %}><summary>What differs in their parameters</summary>
{{ pair.parameters }}</details>
<details{% if not runs %} open{% endif %}><summary>By class: {{ pair.by_class }}</summary>{{ pair.classes }}</details>
{% for heading, cards in pair.products %}<h4>{{ heading }}</h4><div class="cards">
{% for card in cards %}<div class="card"><div>{{ card.photo }}</div><div>
<span class="id">{{ card.id }}</span> {{ card.title }}<br>given {{ card.given }}<br>
<span class="{{ card.ours_kind }}">{{ card.ours }}</span><br>
<span class="{{ card.theirs_kind }}">{{ card.theirs }}</span></div></div>
{% endfor %}</div>{% endfor %}
</section>{% endfor %}
{% endif %}
{% if more %}<p class="quiet">{{ more }}</p>{% endif %}
{% endblock %}"""


def write_index(outputs: str | Path, metric: str | None = None) -> tuple[Path, Comparison]:
    """Writes index.html of all runs in an outputs folder; raises as read_comparison does."""
    all_runs = read_comparison(outputs, metric)
    chosen = all_runs.comparable()[:MOST_RUNS]
    pairs = [pair for one, other in combinations(chosen, 2) if isinstance(pair := compare(one, other), Pair)]
    more = "Any other two: goods_utils.py compare RUN RUN" if len(all_runs.entries) > 1 else ""
    page = _page(all_runs, finding(all_runs), pairs, more, with_table=True)
    return write_text(all_runs.folder / INDEX, page), all_runs


def write_pair(outputs: str | Path, ours: str, theirs: str, metric: str | None = None) -> tuple[Path, Pair, str]:
    """Writes the page of two runs, compared/OURS,THEIRS.html; also the pair, and its finding as a sentence, with a
    second line of what is gained on the labels that nobody touched, where some were.

    Raises GoodsError where one of them isn't there, or where they can't be compared.
    """
    all_runs = read_comparison(outputs, metric)
    if ours == theirs:
        raise GoodsError(f"'{ours}' can't be compared with itself; name two runs")
    pair = compare(all_runs.entry(ours), all_runs.entry(theirs))
    if isinstance(pair, str):
        raise GoodsError(f"no comparison: {pair}")
    said = pair_finding(pair, all_runs.metric)
    page = _page(all_runs, said, [pair], "", with_table=False)
    path = write_text(all_runs.folder / PAIRS / f"{ours},{theirs}.html", page)
    return path, pair, "\n".join(filter(None, (said, untouched_finding(pair, all_runs.metric))))


# The page ------------------------------------------------------------------------------------------------------------


def _page(all_runs: Comparison, title: str, pairs: Sequence[Pair], more: str, with_table: bool) -> str:
    known = _look_up((pair.ours, clearest(pair, side)["id"]) for pair in pairs for side in ("ours", "theirs"))
    return render(
        TEMPLATE,
        title=title,
        below=_below(all_runs) if with_table else [],
        runs=_runs_table(all_runs) if with_table else None,
        apart=sorted({f"Not in the comparison: {why}." for why in all_runs.apart.values()}) if with_table else [],
        alike=_alike(all_runs.entries) if with_table else None,
        pairs=[_pair_facts(pair, all_runs.metric, known) for pair in pairs],
        more=more,
    )


def _below(all_runs: Comparison) -> list[str]:
    best = all_runs.best
    if best is None:
        return []
    folds = len(set(best.oof.folds.tolist()))
    lines = [f"{all_runs.shown_as} out of fold on {len(best.oof.ids):,} products in {folds} folds; intervals: "
             "95 %, over resamples of the products, those of gains paired."]  # fmt: skip
    if best.verdict:
        lines.insert(0, f"{best.name}: {best.verdict}")
    if len(all_runs.behind) >= MANY_RUNS - 1:
        lines.append(f"The best of {len(all_runs.behind) + 1} is flattered a little by being chosen on these scores.")
    return lines


def _runs_table(all_runs: Comparison) -> Markup:
    """All runs, each with a link to its report where there is one."""
    scores = [entry.score(all_runs.metric) for entry in all_runs.entries if entry.oof]
    least, most = min((s.low for s in scores), default=0), max((s.high for s in scores), default=1)
    rows = []
    for entry in all_runs.entries:
        link = Markup("<a href='{0}/report.html'>{0}</a>").format(entry.name)
        score, gain = entry.score(all_runs.metric) if entry.oof else None, all_runs.behind.get(entry.name)
        over = turned(gain) if gain else None
        made = [f"{name} {_value(entry, name)}" for name in differing_parameters(all_runs.entries)
                if entry.parameters.get(name) != DEFAULTS[name]]  # fmt: skip
        rows.append({
            "run": (entry.name, link if entry.run.report.is_file() else entry.name),
            all_runs.shown_as: score.value if score else None,
            "95 % interval": (score.low, _bar(score, least, most)) if score else None,
            "against the best": (over.value, with_interval(over)) if over else
                                (0, "the best") if entry is all_runs.best else None,
            "status": (entry.status, Markup("{}<br><span class='quiet'>{}</span>").format(
                entry.status, when_shown(entry.when))),
            "training": _sortable(entry.seconds, duration), "all steps": _sortable(entry.step_seconds, duration),
            "memory": _sortable(entry.peak_ram, gib), "on the GPU": _sortable(entry.peak_gpu, gib),
            "on disk": (entry.size, size(entry.size)),
            "what differs in parameters": ", ".join(made),
        })  # fmt: skip
    table = pd.DataFrame(rows).set_index("run").astype(object)
    empty = [name for name in ("training", "all steps", "memory", "on the GPU") if table[name].isna().all()]
    return table_html(table.drop(columns=empty), text=("status", "what differs in parameters"))


def _bar(score: Score, least: float, most: float) -> Markup:
    """A score's interval as a line with a dot, between the least and the most of all, and in digits."""
    value, low, high = (100 * (each - least) / ((most - least) or 1) for each in score)
    bar = Markup("<span class='bar'><i style='left:{:.1f}%;width:{:.1f}%'></i><b style='left:{:.1f}%'></b></span> {}")
    return bar.format(low, high - low, value, f"{digits(score.low)} to {digits(score.high)}")


def _sortable(value: float | None, form: Callable[[float], str]) -> tuple[float, str] | None:
    return None if value is None else (value, form(value))


def _pair_facts(pair: Pair, metric: str, known: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """What the template shows of two runs."""
    ours, theirs = pair.ours.name, pair.theirs.name
    untouched = untouched_finding(pair, metric)
    lines = [f"{untouched}.", pair.counted] if untouched else [pair.counted]
    lines += [pair.left_out.capitalize() + "."] if pair.left_out else []
    lines += [f"{entry.name}: {entry.verdict}." for entry in (pair.ours, pair.theirs) if entry.verdict]
    sure = int(beyond_noise(pair.classes).sum())
    return {
        "name": f"{ours} against {theirs}",
        "finding": pair_finding(pair, metric),
        "lines": lines,
        "gains": _gains_table(pair, metric),
        "parameters": _parameters_table(pair.ours, pair.theirs),
        "by_class": f"{sure} of {len(pair.classes)} differ beyond noise; by chance one in twenty would",
        "classes": _classes_table(pair),
        "products": _cards(pair, known),
    }


def _gains_table(pair: Pair, metric: str) -> Markup:
    """All metrics of two runs."""
    table = pair_table(pair, metric)
    return table_html(table, gains=[name for name in table if name not in (pair.ours.name, pair.theirs.name)])


def _classes_table(pair: Pair) -> Markup:
    """F1 of each class, of many those that gain and lose most."""
    table = pair.classes
    if len(table) > MOST_CLASSES:
        table = pd.concat([table.head(MOST_CLASSES // 2), table.tail(MOST_CLASSES // 2)])
    columns = {"products": table["rows"], f"F1 of {pair.ours.name}": table["ours"]}
    columns |= {f"F1 of {pair.theirs.name}": table["theirs"], "gain": table["gain"], "from": table["gain_low"]}
    columns |= {"to": table["gain_high"], "beyond noise": beyond_noise(table)}
    return table_html(pd.DataFrame(columns).rename_axis("class"), gains=("gain", "from", "to"))


def beyond_noise(classes: pd.DataFrame) -> pd.Series:
    """Of each class whether its gain's interval leaves 0 out."""
    return (classes["gain_low"] > 0) | (classes["gain_high"] < 0)


def clearest(pair: Pair, side: str) -> pd.DataFrame:
    """The rows of pair.differ that are shown of those that only this side gets right."""
    return pair.differ[pair.differ["right"] == side].head(MOST_PRODUCTS)


def _cards(pair: Pair, known: Mapping[str, tuple[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The products that only one of two runs gets right, with photos where their table still has them."""
    classes, found = list(pair.ours.classes) or list(map(str, range(pair.ours.oof.logits.shape[1]))), []
    for side, entry in (("ours", pair.ours), ("theirs", pair.theirs)):
        cards = []
        for row in clearest(pair, side).itertuples():
            title, photo = known.get(row.id, ("", ""))
            said = {name: f"{each.name}: {classes[getattr(row, name)]} {digits(getattr(row, f'{name}_sure'))}"
                    for name, each in (("ours", pair.ours), ("theirs", pair.theirs))}  # fmt: skip
            kinds = {f"{name}_kind": "better" if name == side else "worse" for name in said}
            photo = photo_html(photo)
            cards.append({"id": row.id, "title": title, "given": classes[row.label], "photo": photo} | said | kinds)
        if cards:
            of = pair.counts[f"only {side}"]
            found.append((f"Only {entry.name} gets them right: the clearest {len(cards)} of {of:,}", cards))
    return found


def errors_of(pair: Pair, side: str) -> pd.DataFrame:
    """What one run ("ours", "theirs") gets wrong and the other right, the surest first, as figures take errors.

    id, title, image, label, prediction (class indices), probability; titles and photos are those of the first few.
    """
    table = pair.differ[pair.differ["right"] != side].sort_values(f"{side}_sure", ascending=False, kind="stable")
    known = _look_up([(pair.ours, table["id"].head(MOST_PRODUCTS))])
    titles, photos = ([known.get(name, ("", ""))[place] for name in table["id"]] for place in (0, 1))
    told = {"title": titles, "image": photos, "prediction": table[side], "probability": table[f"{side}_sure"]}
    return table[["id", "label"]].assign(**told)


def _look_up(wanted: Iterable[tuple[Entry, Iterable[str]]]) -> dict[str, tuple[str, Any]]:
    """{id: (title, photo)} of products of these runs' tables, each read once; {} where none can be read any more."""
    tables: dict[tuple[Any, ...], set[str]] = {}
    for entry, ids in wanted:
        p = entry.parameters
        key = (p["train_csv"], p["id_column"], p["text_columns"][0], p["train_images_dir"], p["image_column"])
        tables.setdefault(key, set()).update(ids)
    found: dict[str, tuple[str, Any]] = {}
    for (table, id_column, text_column, photos, image_column), ids in tables.items():
        try:
            with redirect_stdout(None):  # how its cells are separated its own run has said
                rows = some_products(resolve(table), ids, id_column, text_column, resolve(photos), image_column)
        except (GoodsError, KeyError, OSError):  # moved, changed, or of a foreign run
            continue
        found |= {name: (title, photo) for name, title, photo in rows.itertuples(name=None)}
    return found


# Parameters ----------------------------------------------------------------------------------------------------------


def _value(entry: Entry, name: str) -> str:
    return without_machine(entry.parameters.get(name)) or "none"


def _alike(entries: Sequence[Entry]) -> Markup | None:
    """What all runs were made with, where it isn't the default."""
    differ = {*differing_parameters(entries), "run"}
    names = [name for name, default in DEFAULTS.items()
             if name not in differ and entries[0].parameters.get(name) != default]  # fmt: skip
    return list_html({name: _value(entries[0], name) for name in names}) if names else None


def _parameters_table(ours: Entry, theirs: Entry) -> Markup:
    def told(entry: Entry, name: str) -> str:
        return _value(entry, name) + " (default)" * (entry.parameters.get(name) == DEFAULTS[name])

    rows = {name: {entry.name: told(entry, name) for entry in (ours, theirs)}
            for name in differing_parameters([ours, theirs])}  # fmt: skip
    if not rows:
        return Markup("<p>Nothing but their names.</p>")
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameter")
    return table_html(table, text=(ours.name, theirs.name))
