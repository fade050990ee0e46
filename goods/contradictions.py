"""Parameters that contradict one another, or name what can't be: refused as they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from goods.errors import ParameterError
from goods.files import resolve

if TYPE_CHECKING:
    from goods.params import Params

OWN_COLUMNS = ("text", "image", "sha", "images", "shas")  # of the project's, in the tables that it reads


def refuse_contradictions(p: Params) -> None:
    """Raises ParameterError for a fold that isn't there, a choice that nothing can score, a column that would be taken
    for what it isn't, and a folder that can't be made."""
    _check_folds(p)
    _check_choices(p)
    _check_columns(p)
    _check_folder(p)


def _check_folds(p: Params) -> None:
    """Raises ParameterError where fold, folds or skip_folds don't fit n_folds."""
    if p.fold >= p.n_folds:
        raise ParameterError(
            f"fold {p.fold} is out of range: with n_folds {p.n_folds} it goes from 0 to {p.n_folds - 1}"
        )
    if outside := [k for k in p.folds or () if not 0 <= k < p.n_folds]:
        raise ParameterError(
            f"there is no fold {outside[0]} in folds: with n_folds {p.n_folds} they go from 0 to {p.n_folds - 1}"
        )
    if p.skip_folds >= p.n_folds:
        raise ParameterError(f"skip_folds {p.skip_folds} leaves nothing: n_folds is {p.n_folds}")


def _check_choices(p: Params) -> None:
    """Raises ParameterError where something would be chosen that nothing can score."""
    if p.early_stopping and p.keep == "last":
        raise ParameterError("early_stopping ends at an epoch that validation rows choose: set keep=best with it")
    if p.keep == "best" and (p.soup or p.wise_ft):
        name = "soup" if p.soup else "wise_ft"
        raise ParameterError(f"{name} begins where all epochs are done: with keep=best leave it out")


def _check_columns(p: Params) -> None:
    """Raises ParameterError where a column would be taken for what it isn't; reads the parameters that name columns."""
    for name in ("label_column", "fold_column", "group_column"):
        if (column := getattr(p, name)) in OWN_COLUMNS:
            raise ParameterError(f"{name} is '{column}', a name that the project gives a column of its own: call the "
                                 "table's otherwise")  # fmt: skip
    if p.label_column == p.id_column:
        raise ParameterError(f"label_column and id_column are both '{p.id_column}'; an id is no class")
    if p.label_column in p.text_columns:
        raise ParameterError(f"label_column '{p.label_column}' is one of text_columns, too: the text would hold the "
                             "answer, but not the test set's; leave it out there")  # fmt: skip


def _check_folder(p: Params) -> None:
    """Raises ParameterError where outputs_dir can't be a folder."""
    folder = resolve(p.outputs_dir)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise ParameterError(f"outputs_dir {folder} can't be made: {there} is a file; name a folder")
