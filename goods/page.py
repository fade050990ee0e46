"""What the project's pages share: one look, tables that scroll and sort, photos inside the page. Nothing is loaded.

Ids, titles and names of classes come from anywhere: everything is escaped, and no script but the page's own may run.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import DictLoader, Environment
from markupsafe import Markup

from goods.data.photos import open_upright
from goods.files import ROOT
from goods.words import digits, signed

PHOTO_SIDE = 128  # pixels of a photo inside a page; it is shown half as large, for screens of two dots a pixel
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1340px; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: .2rem; }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; } h3 { margin: 1.6rem 0 .4rem; }
a { color: #0072b2; }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0; }
td, th { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid #eee; vertical-align: top;
  white-space: nowrap; }
td:first-child, th:first-child, .text { text-align: left; }
.text { white-space: normal; min-width: 10rem; } td.text:last-child { min-width: 15rem; }
.wide { overflow-x: auto; max-width: 100%; }
.wide td:first-child, .wide th:first-child { position: sticky; left: 0; background: #fff; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th button::after { content: " \\2195"; color: #999; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: #222; }
th[aria-sort=descending] button::after { content: " \\2193"; color: #222; }
.id { font-family: ui-monospace, monospace; font-size: .92em; white-space: nowrap; }
.score { font-size: 1.2rem; margin: .4rem 0; } .quiet { color: #666; font-size: 13px; }
.better { color: #0072b2; } .worse { color: #d55e00; }
.missing { background: #fff3cd; padding: .6rem 1rem; border-left: 4px solid #e69f00; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 1rem;
  align-items: start; }
.figures img { width: 100%; } .figures.one { max-width: 660px; } details { margin: .6rem 0; }
dl { display: grid; grid-template-columns: fit-content(50%) 1fr; gap: .1rem 1rem; font-size: 13px; margin: .4rem 0; }
dt { font-weight: 600; overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr)); gap: .8rem; }
.card { display: grid; grid-template-columns: 64px 1fr; gap: .7rem; font-size: 13px; border: 1px solid #e4e4e4;
  border-radius: 6px; padding: .5rem; min-width: 0; }
.card > div { min-width: 0; }
.photo { width: 64px; height: 64px; object-fit: contain; display: block; background: #f6f6f6; }
.nophoto { width: 64px; height: 64px; background: #eee; color: #666; font-size: 11px; display: grid;
  place-items: center; }
.bar { position: relative; display: inline-block; width: 70px; height: 10px; vertical-align: middle; }
.bar i { position: absolute; top: 4px; height: 2px; background: #999; } .bar b { position: absolute; top: 1px;
  width: 8px; height: 8px; margin-left: -4px; border-radius: 50%; background: #0072b2; }
select { font: inherit; max-width: 100%; }
@media (max-width: 560px) { body { margin: 1rem auto; padding: 0 .7rem; } h1 { font-size: 1.3rem; }
  dl { grid-template-columns: 1fr; } dd { margin: 0 0 .4rem 1rem; } }
@media print { th button::after { content: ""; } }
"""
SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, at) => row.cells[at].dataset.v ?? row.cells[at].textContent.trim();
  const order = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a, at), y = key(b, at);
        return x === "" || y === "" ? (x === "") - (y === "") : sign * order(x, y);  // what is empty comes last
      });
      body.append(...rows);
    });
  });
}
for (const picker of document.querySelectorAll("select.picker")) {
  const parts = [...document.querySelectorAll("[data-part]")];
  const show = () => parts.forEach((part) => { part.hidden = part.dataset.part !== picker.value; });
  picker.hidden = false;
  picker.addEventListener("change", show);
  show();
}
"""
ALLOWED = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
BASE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{ALLOWED}'">
<title>{{{{ title }}}}</title>
<style>{STYLE}</style></head><body>
{{% block body %}}{{% endblock %}}
<script>{SCRIPT}</script></body></html>
"""


def render(template: str, **facts: Any) -> str:
    """A page made of a template that extends "base"; whatever isn't Markup is escaped."""
    environment = Environment(autoescape=True, loader=DictLoader({"base": BASE, "page": template}), trim_blocks=True)
    return environment.get_template("page").render(**facts)


def table_html(
    table: pd.DataFrame, index: bool = True, text: Collection[str] = (), gains: Collection[str] = ()
) -> Markup:
    """A table, escaped, that scrolls inside the page and sorts.

    The columns of `text` wrap, those of `gains` have signs. A tuple in a cell is what it sorts by, and what is shown,
    which may be Markup.
    """
    names = ([str(table.index.name or "")] if index else []) + [str(name) for name in table.columns]
    heads = [Markup("<th{}>{}</th>").format(Markup(" class='text'") if name in text else "", name) for name in names]
    rows = []
    for row in table.itertuples(index=index, name=None):
        cells = [
            _cell(value, name in text, name in gains, name == "id") for name, value in zip(names, row, strict=True)
        ]
        rows.append(Markup("<tr>{}</tr>\n").format(Markup("").join(cells)))
    made = Markup(
        "<div class='wide'><table class='sortable'><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table></div>"
    )
    return made.format(Markup("").join(heads), Markup("").join(rows))


def _cell(value: Any, is_text: bool, is_gain: bool, is_id: bool) -> Markup:
    key, shown = value if isinstance(value, tuple) else (value, value)
    if value is None or value != value:  # nan
        key, shown = "", ""
    elif isinstance(value, bool | np.bool_):
        shown = "yes" if value else "no"
    elif isinstance(value, float | int | np.number):
        shown = f"{value:,}" if isinstance(value, int | np.integer) else signed(value) if is_gain else digits(value)
    kind = Markup(" class='{}'").format("text" if is_text else "id") if is_text or is_id else ""
    return Markup("<td{} data-v='{}'>{}</td>").format(kind, "" if key is None else key, shown)


def list_html(values: Mapping[str, Any]) -> Markup:
    """Names and values as a list, which a narrow screen shows whole."""
    items = [Markup("<dt>{}</dt><dd>{}</dd>\n").format(name, value) for name, value in values.items()]
    return Markup("<dl>{}</dl>").format(Markup("").join(items))


def photo_html(photo: Any, side: int = PHOTO_SIDE) -> Markup:
    """A small copy of a photo (a path, or its bytes) inside the page; a grey box where there is none to be read."""
    try:
        image = open_upright(photo, side)
        image.thumbnail((side, side))
        image.save(packed := io.BytesIO(), "JPEG", quality=80)
    except Exception:  # Pillow raises anything on broken files, and no photo is worth losing the page
        return Markup("<div class='nophoto'>no photo</div>")
    data = base64.b64encode(packed.getvalue()).decode()
    return Markup("<img class='photo' alt='' src='data:image/jpeg;base64,{}'>").format(data)


# Values for people ---------------------------------------------------------------------------------------------------


def without_machine(value: Any) -> str:
    """A parameter as text; of a path of this machine only what lies in the project, else its last part."""
    if isinstance(value, list | tuple):
        return ", ".join(map(without_machine, value))
    text = "" if value is None else str(value)
    if not (PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("~")):
        return text
    path = Path(text)
    inside = path.is_relative_to(ROOT) and path != ROOT
    return path.relative_to(ROOT).as_posix() if inside else f".../{PureWindowsPath(text).name}"
