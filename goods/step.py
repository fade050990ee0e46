"""A step of the pipeline: a notebook through papermill in a process of its own, which ends with its pipeline.

    python -m goods.step SOURCE EXECUTED SETTINGS RESULT...

How a notebook ended is told by the type of the error, in a small JSON file, not by the words of its output: inside the
kernel, tell_ends() writes it. The executed notebook takes its name only when it ran to its end; what ran before stays
until then, and a notebook that didn't is beside it as NAME.unfinished.ipynb.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from goods.errors import DiskFullError, GoodsError, StoppedInTime, TimeOverError, UnwritableError
from goods.files import read_json_if_whole, sentence, unwritable, write_json
from goods.kernels import LESS_MEMORY, death_sentence, shell, watched_kernel
from goods.machine import memory_of_machine, peak_memory
from goods.processes import end_with_parent, speak_plainly

STATUS = "GOODS_STATUS"  # environment variable: the file that says how the notebook ended
CANT_WRITE = 100  # an exit status of as much more than the system's number of the error, since no file can say it
CELL_SECONDS = "GOODS_CELL_SECONDS"  # environment variable: how long a cell may run; none: without end


def ends_as(error: BaseException) -> dict[str, str]:
    """How a notebook that met this error ended: "stopped" in time, "not begun" for lack of it, "refused", "failed"."""
    if isinstance(error, StoppedInTime):
        return {"outcome": "stopped"}
    if isinstance(error, SystemExit):
        return {"outcome": "failed", "message": "a cell ended the notebook by sys.exit"}
    outcome = "not begun" if isinstance(error, TimeOverError) else "refused"
    if isinstance(error, GoodsError):
        return {"outcome": outcome, "error": type(error).__name__, "message": str(error)}
    message = f"{type(error).__name__}: {error}"
    if lacks_memory(error):
        message = (f"memory ran out: this machine has {memory_of_machine() / 1e9:.1f} GB, of which the notebook had "
                   f"{peak_memory() / 1e9:.1f} at most; {LESS_MEMORY} ({message})")  # fmt: skip
    elif isinstance(error, OSError) and unwritable(error):
        message = sentence(error)
    return {"outcome": "failed", "error": type(error).__name__, "message": message}


def lacks_memory(error: BaseException) -> bool:
    """Whether there was no memory left: Python's own error, the system's, or torch's, which has no type for it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = ("out of memory", "can't allocate memory") if isinstance(error, RuntimeError) else ()
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def tell_ends() -> None:
    """In a step's kernel: from now on says how a cell that fails ended, and ends when the step's process is gone."""
    path, found = os.environ.get(STATUS), shell()
    if not path or found is None or getattr(found, "goods_tells_ends", False):
        return
    found.goods_tells_ends = True
    end_with_parent()

    def tell(result: Any) -> None:
        if error := result.error_in_exec or result.error_before_exec:
            write_json(path, ends_as(error))

    found.events.register("post_run_cell", tell)


def without_link_grammar() -> None:
    """Spares jsonschema, which papermill imports, a grammar of international links: 1.3 s of a core, and no notebook's
    format asks for one. Where the package is missing, jsonschema does without as well."""
    sys.modules.setdefault("rfc3987_syntax", None)  # so that importing it fails


def execute(source: str, running: Path, parameters: dict[str, Any]) -> tuple[str, bool]:
    """Executes a notebook to the path `running`; returns what stopped it, "" when nothing did, and whether that was
    the end of its kernel, of which no cell can tell.

    Raises OSError where the executed notebook can't be written.
    """
    without_link_grammar()
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    kernel, seconds = watched_kernel(), os.environ.get(CELL_SECONDS)
    limit = max(1, int(float(seconds))) if seconds else None
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, running)]  # papermill fills them in
    try:
        papermill.execute_notebook(*paths, parameters, kernel_name="python3", language="python", progress_bar=False,
                                   execution_timeout=limit, kernel_manager_class=kernel)  # fmt: skip
    except DeadKernelError:
        return death_sentence(kernel.exit_status), True
    except CellTimeoutError:
        return (f"a cell took longer than the {limit / 3600:.3g} hours it may (max_cell_hours, or what is left of "
                "max_hours and half an hour), and its kernel was ended"), True  # fmt: skip
    except papermill.PapermillExecutionError as error:
        return str(error), False
    except Exception as error:  # there is no kernel, or it doesn't start
        if isinstance(error, OSError) and unwritable(error):
            raise
        return f"{type(error).__name__}: {error}", False
    return "", False


def main(source: str, executed: str, settings: str, *results: str) -> int:
    """Executes a notebook with the parameters in a YAML file, to leave these results; returns the exit status.

    It is 1 when the notebook didn't run to its end, CANT_WRITE and the system's number where it can't be written.
    """
    end_with_parent()  # before papermill is imported, which takes half a second
    speak_plainly()
    path, status = Path(executed), Path(os.environ[STATUS])
    running, unfinished = (path.with_suffix(f".{word}.ipynb") for word in ("running", "unfinished"))
    try:
        unfinished.unlink(missing_ok=True)
        stopped_by, died = execute(source, running, yaml.safe_load(Path(settings).read_text(encoding="utf-8")))
        if stopped_by:
            print(stopped_by, file=sys.stderr)
        if stopped_by and (died or not status.is_file()):  # no cell has said how it ended
            write_json(status, {"outcome": "failed", "message": stopped_by.strip().splitlines()[-1]})
        whole = not stopped_by and not read_json_if_whole(status) and all(map(os.path.isfile, results))
        if running.is_file():
            os.replace(running, path if whole else unfinished)
    except OSError as error:
        if not unwritable(error):
            raise
        running.unlink(missing_ok=True)  # of which only a part was written
        return CANT_WRITE + unwritable(error)
    except UnwritableError as error:
        return CANT_WRITE + (errno.ENOSPC if isinstance(error, DiskFullError) else errno.EROFS)
    return int(bool(stopped_by))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
