"""The model directories that parameters name, each by a name of its own: model_name, extra_embeddings ...

Of a list the first has the parameter's name, and so a run with one is recorded as runs always were; the others follow
as extra_embeddings_2, extra_embeddings_3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


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


def count_paths(value: Any) -> int:
    """How many paths a parameter holds."""
    return len(_listed(value))


def _listed(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
