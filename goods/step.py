"""A step of the pipeline: a notebook through papermill in a process of its own, which ends with its pipeline.

    python -m goods.step SOURCE EXECUTED SETTINGS RESULT...

How a notebook ended is told by the type of the error, in a small JSON file, not by the words of its output: inside the
kernel, tell_ends() writes it. The executed notebook takes its name only when it ran to its end; what ran before stays
until then, and a notebook that didn't is beside it as NAME.unfinished.ipynb.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from goods.errors import GoodsError, StoppedInTime, TimeOverError
from goods.files import read_json_if_whole, write_json
from goods.processes import end_with_parent

STATUS = "GOODS_STATUS"  # environment variable: the file that says how the notebook ended


def ends_as(error: BaseException) -> dict[str, str]:
    """How a notebook that met this error ended: "stopped" in time, "not begun" for lack of it, "refused", "failed"."""
    if isinstance(error, StoppedInTime):
        return {"outcome": "stopped"}
    if isinstance(error, SystemExit):
        return {"outcome": "failed", "message": "a cell ended the notebook by sys.exit"}
    outcome = "not begun" if isinstance(error, TimeOverError) else "refused"
    if isinstance(error, GoodsError):
        return {"outcome": outcome, "error": type(error).__name__, "message": str(error)}
    return {"outcome": "failed", "error": type(error).__name__, "message": f"{type(error).__name__}: {error}"}


def tell_ends() -> None:
    """In a step's kernel: from now on says how a cell that fails ended, and ends when the step's process is gone."""
    path, shell = os.environ.get(STATUS), _shell()
    if not path or shell is None or getattr(shell, "goods_tells_ends", False):
        return
    shell.goods_tells_ends = True
    end_with_parent()

    def tell(result: Any) -> None:
        if error := result.error_in_exec or result.error_before_exec:
            write_json(path, ends_as(error))

    shell.events.register("post_run_cell", tell)


def _shell() -> Any:
    """IPython's shell where this process is a kernel, else None."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def without_link_grammar() -> None:
    """Spares jsonschema, which papermill imports, a grammar of international links: 1.3 s of a core, and no notebook's
    format asks for one. Where the package is missing, jsonschema does without as well."""
    sys.modules.setdefault("rfc3987_syntax", None)  # so that importing it fails


def main(source: str, executed: str, settings: str, *results: str) -> int:
    """Executes a notebook with the parameters in a YAML file, to leave these results; returns the exit status."""
    end_with_parent()  # before the import, which takes half a second
    without_link_grammar()
    import papermill

    path = Path(executed)
    running, unfinished = (path.with_suffix(f".{word}.ipynb") for word in ("running", "unfinished"))
    unfinished.unlink(missing_ok=True)
    parameters = yaml.safe_load(Path(settings).read_text(encoding="utf-8"))
    failed = False
    try:
        papermill.execute_notebook(source, running, parameters, kernel_name="python3", progress_bar=False)
    except Exception as error:  # of a cell, or of the kernel: it died, or there is none
        failed = True
        print(error, file=sys.stderr)
    whole = not failed and not read_json_if_whole(Path(os.environ[STATUS])) and all(map(os.path.isfile, results))
    if running.is_file():
        os.replace(running, path if whole else unfinished)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
