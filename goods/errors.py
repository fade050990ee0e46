"""What can go wrong, as types: control flow asks for the class of an error, never for its words."""

from __future__ import annotations


class GoodsError(ValueError):
    """A mistake the user can mend; its text says what is wrong, where, and what to do."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks the exception for its own rendering: a sentence instead of forty lines of frames.
        return [f"GoodsError: {self}"]
