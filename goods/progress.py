"""The one progress bar."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(*args: Any, shown: bool = True, **kwargs: Any) -> Any:
    """A tqdm bar that moves in a notebook and in a terminal, and says nothing where its movements would fill a log."""
    from tqdm.auto import tqdm  # pipeline.py does without

    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(*args, disable=not (shown and watched), **kwargs)
