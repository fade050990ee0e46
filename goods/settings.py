"""Settings as text: YAML files, and name=value on a command line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import yaml

from goods.errors import ParameterError
from goods.files import ROOT, resolve

ODD_NUMBER = re.compile(r"[-+]?(?:0[0-9_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)")


def parse_settings(texts: Iterable[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The settings of a command line; `elsewhere` says of which names there is an option of their own."""
    settings = {}
    for text in texts:
        name, value = parse_setting(text)
        if name in elsewhere:
            raise ParameterError(f"--set {text}: {name} has an option of its own, {elsewhere[name]}")
        if name in settings:
            raise ParameterError(f"--set gives {name} twice, at last as {text}; leave one of them out")
        settings[name] = value
    return settings


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value` from a command line, the value read as YAML: `("num_epochs", 3)`."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ParameterError(f"'{text}' is not a setting; write it as name=value, such as num_epochs=3")
    try:
        read, node = yaml.safe_load(value), yaml.compose(value, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):  # ValueError: 2024-13-45 looks like a date
        raise ParameterError(f"the value in '{text}' is not valid YAML; close its brackets, or quote it twice: "
                         f"""{name}='"..."'""") from None  # fmt: skip
    _refuse_odd_numbers(node, f"'{text}'", f"""{name}='"..."'""")
    return name, read


def read_yaml(config: str) -> dict[str, Any]:
    """What a YAML file of parameters says. Raises ParameterError where it isn't there or isn't one."""
    path = resolve(config)
    if path.is_dir():
        raise ParameterError(f"config {path} is a folder; name a YAML file")
    if not path.is_file():
        known = ", ".join(sorted(f"params/{f.name}" for f in (ROOT / "params").glob("*.yaml")))
        raise ParameterError(f"there is no config {path}; in params/ there are: {known or 'none'}")
    try:
        text = path.read_text(encoding="utf-8")
        values, node = yaml.safe_load(text) or {}, yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ParameterError(f"config {path} is not valid YAML: {error}") from None
    _refuse_odd_numbers(node, f"config {path}", '"..."')
    if not isinstance(values, dict):
        raise ParameterError(f"config {path} must hold lines of 'name: value'")
    names = Counter(name.value for name, _ in node.value) if node else {}
    if twice := [name for name, count in names.items() if count > 1]:  # YAML would take the last
        raise ParameterError(f"config {path} says {', '.join(twice)} more than once")
    return values


def _refuse_odd_numbers(node: yaml.Node | None, where: str, quoted: str) -> None:
    """Raises ParameterError for what YAML 1.1 reads as another number than stands there: 010 is 8, 1:30 is 90."""
    if isinstance(node, yaml.CollectionNode):
        for inner in node.value:
            for each in inner if isinstance(inner, tuple) else [inner]:
                _refuse_odd_numbers(each, where, quoted)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and ODD_NUMBER.fullmatch(node.value):
        read = yaml.safe_load(node.value)
        if not isinstance(read, str):  # 08 has a digit that octal numbers don't have
            raise ParameterError(f"{where}: {node.value} is {read} in YAML; write {read} or what is meant, or as text "
                                 f"{quoted.replace('...', node.value)}")  # fmt: skip
