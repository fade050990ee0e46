"""labels.json: the one reader of a competition's class names, and of those that a run has kept."""

from __future__ import annotations

import json
from pathlib import Path

from goods.errors import DamagedFileError
from goods.files import read_json
from goods.params import Params
from goods.run import Run


def read_class_names(path: Path) -> dict[int, str]:
    """Class names by integer label, from a file such as {"0": "Books", "1": "Toys"} or ["Books", "Toys"].

    Empty where there is no such file; raises DamagedFileError when it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
        names = dict(enumerate(names)) if isinstance(names, list) else names
        return {int(key): str(name) for key, name in names.items()}
    except (ValueError, AttributeError, TypeError):
        raise DamagedFileError(
            f'{path} must look like {{"0": "Books", "1": "Toys"}}; mend it or take it away'
        ) from None


def known_classes(p: Params, competition: Path) -> list[str]:
    """The class names that the run has kept, else those in the competition's labels.json; maybe none."""
    run = Run.of(p)
    if run.labels.is_file():
        return [str(name) for name in read_json(run.labels, "run eda.ipynb again").get("classes", [])]
    return list(read_class_names(competition).values())
