"""Writes the tables of parameters into docs/parameters.md and docs/texts.md anew: python docs/make_parameters.py

A table stands between two comments that name it, <!-- Params --> and <!-- /Params -->; tests/test_docs.py compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from goods.compress.params import CompressParams
from goods.params import Params

DOCS = Path(__file__).resolve().parent
PAGES = {"parameters.md": Params, "texts.md": CompressParams}


def parameter_rows(schema: type[Params]) -> list[str]:
    """The lines of a schema's table in the order of its fields; a subclass shows what it adds to Params."""
    fields = {name: f for name, f in schema.model_fields.items() if schema is Params or name not in Params.model_fields}
    rows = [f"| `{name}` | {default_shown(f.default)} | {meaning(f)} |" for name, f in fields.items()]
    return ["| parameter | default | meaning |", "|---|---|---|", *rows]


def default_shown(value: Any) -> str:
    """A default as a YAML file would say it; nothing for null."""
    if value is None:
        return ""
    return ", ".join(value) if isinstance(value, tuple) else yaml.safe_dump(value).splitlines()[0]


def meaning(field: FieldInfo) -> str:
    """A field's description, and the values it may have where these are few."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    said = f"{field.description} ({', '.join(choices)})" if choices else str(field.description)
    return said.replace("|", "\\|")


def with_table(page: str, schema: type[Params]) -> str:
    """The page's text with its table made anew."""
    begin, end = f"<!-- {schema.__name__} -->", f"<!-- /{schema.__name__} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page must have the comments {begin} and {end}")
    # <id> would vanish from the page as a tag
    table = re.sub(r"<(\w+)>", r"&lt;\1&gt;", "\n".join(parameter_rows(schema)))
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


if __name__ == "__main__":
    for name, schema in PAGES.items():
        path = DOCS / name
        path.write_text(with_table(path.read_text(encoding="utf-8"), schema), encoding="utf-8")
