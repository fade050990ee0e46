"""Types of parameters that come as text from a shell, from papermill, or from YAML."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, PlainSerializer


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _names_from_text(value: Any) -> Any:
    # papermill -p and the shell give "[a, b]" or "a" as text.
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value) if value.strip().startswith("[") else [part.strip() for part in value.split(",")]
    except yaml.YAMLError:
        raise ValueError("must look like [title, description]") from None


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if "" in names or len(set(names)) < len(names):
        raise ValueError("must be different names, none of them empty")
    return names


def _none_as_empty(value: Any) -> Any:
    return () if value is None or value == "" else value


def _as_one(names: tuple[str, ...]) -> Any:
    """In JSON none is null, and one a text, as before there could be several."""
    return list(names) if len(names) > 1 else next(iter(names), None)


def _numbers_from_text(value: Any) -> Any:
    # papermill -p and the shell give "[0, 2]", "0,2" or 2.
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, str):
        return value
    try:
        return [int(part) for part in value.strip().strip("[]").split(",")]
    except ValueError:
        raise ValueError("must look like [0, 2]") from None


def _distinct_numbers(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError("must be different numbers, at least one")
    return numbers


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Numbers = Annotated[tuple[Int, ...], BeforeValidator(_numbers_from_text), AfterValidator(_distinct_numbers)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names_from_text), AfterValidator(_distinct)]
NoneOrNames = Annotated[Names, BeforeValidator(_none_as_empty), PlainSerializer(_as_one, when_used="json")]
