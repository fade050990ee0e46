"""The model directories that parameters name, each by a name of its own: model_name, extra_embeddings ...

Of a list the first has the parameter's name, and so a run with one is recorded as runs always were; the others follow
as extra_embeddings_2, extra_embeddings_3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from goods.errors import ParameterError


def model_paths(parameters: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The paths that the parameters `names` hold, by their names."""
    return {
        name if number == 1 else f"{name}_{number}": path
        for name in names
        for number, path in enumerate(_listed(parameters[name]), 1)
    }


def parameter_of(name: str) -> str:
    """The parameter that holds a path of this name."""
    return re.sub(r"_\d+$", "", name)


def path_of(parameters: Mapping[str, Any], name: str) -> str:
    """The path of this name."""
    return model_paths(parameters, [parameter_of(name)])[name]


def with_paths(parameters: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """The parameters that hold these paths, with these in place of their own."""
    found = {}
    for parameter in dict.fromkeys(map(parameter_of, paths)):
        own = model_paths(parameters, [parameter])
        new = tuple(paths.get(name, path) for name, path in own.items())
        found[parameter] = new[0] if isinstance(parameters[parameter], str) else new
    return found


def named_paths(texts: Iterable[str]) -> dict[str, str]:
    """{name: path} of texts such as "embeddings_files=new.npz"; one without a name is a further file of the one before.

    Raises ParameterError where the first has no name, none has a path, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals and found:
            name, path = list(found)[-1], f"{list(found.values())[-1]},{text}"
        elif not name or not path or name in found:
            raise ParameterError(f"'{text}' doesn't name a model: write NAME=PATH, each name once, such as "
                                 "embeddings_files=new.npz")  # fmt: skip
        found[name] = path
    return found


def count_paths(value: Any) -> int:
    """How many paths a parameter holds."""
    return len(_listed(value))


def _listed(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
