"""Writes the tables of parameters into the pages of docs/ anew: python docs/make_parameters.py

They stand between two comments that name the schema, <!-- Params --> and <!-- /Params -->; tests/test_docs.py compares.
"""

from __future__ import annotations

import inspect
import re
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from goods.classify import PredictParams
from goods.compress.params import CompressParams
from goods.params import RUNTIME_FIELDS, Params

DOCS = Path(__file__).resolve().parent
PAGES = {"parameters.md": Params, "texts.md": CompressParams, "predict.md": PredictParams}


def parameter_tables(schema: type[Params]) -> str:
    """The schema's fields in their order, a table for each group; a subclass shows what it adds to Params.

    A group is the class that declares the fields; its docstring is the heading.
    """
    names = [name for name in schema.model_fields if schema is Params or name not in Params.model_fields]
    parts = []
    for group, members in groupby(names, key=lambda name: declared_in(name, schema)):
        heading = [] if group is schema else [f"### {first_sentence(group)}", ""]
        rows = [parameter_row(name, schema.model_fields[name]) for name in members]
        parts.append("\n".join([*heading, "| parameter | default | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def declared_in(name: str, schema: type[Params]) -> type:
    """The class among the schema's bases, itself included, that a field comes from."""
    return next(base for base in reversed(schema.__mro__) if name in inspect.get_annotations(base))


def first_sentence(group: type) -> str:
    """What a group's docstring says first, as a heading."""
    return inspect.getdoc(group).split("\n")[0].rstrip(".")


def parameter_row(name: str, field: FieldInfo) -> str:
    """A line of a table; a star marks what may differ between two calls of one run."""
    star = " \\*" if name in RUNTIME_FIELDS else ""
    return f"| `{name}`{star} | {default_shown(field.default)} | {meaning(field)} |"


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
    """The page's text with its tables made anew."""
    begin, end = f"<!-- {schema.__name__} -->", f"<!-- /{schema.__name__} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page must have the comments {begin} and {end}")
    tables = re.sub(r"<(\w+)>", r"&lt;\1&gt;", parameter_tables(schema))  # <id> would vanish from the page as a tag
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


if __name__ == "__main__":
    for name, schema in PAGES.items():
        path = DOCS / name
        path.write_text(with_table(path.read_text(encoding="utf-8"), schema), encoding="utf-8")
