"""A finished run as a folder to hand on: all that a Predictor is made from and a model card, and nothing else.

load_predictor(folder) takes it as it takes a run. A blend holds its runs; backbones stay where they are, known by the
hash of their files. Of products it holds what the models themselves are (the vocabulary of kind linear, the embeddings
of kind knn) and ids, labels and out-of-fold probabilities: what may be accepted is learned from them, and a blend.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from goods.ensemble.learned import FoldMean, RunBlend
from goods.errors import GoodsError, ParameterError, listing
from goods.files import atomic_folder, file_hash, read_frame, read_json_if_whole, write_json, write_text
from goods.members import kind_of
from goods.model_card import model_card
from goods.params import Params
from goods.predictor import parameters_of, whole_runs
from goods.run import VERSION, Run

Parts = Sequence[tuple[Run, FoldMean | RunBlend]]
LOCAL = ("data_dir", "train_csv", "test_csv", "train_images_dir", "test_images_dir", "label_fixes", "outputs_dir",
         "resume_from")  # fmt: skip


def export_run(run: Run, to: Path, merge: bool = False) -> str:
    """Writes the folder `to`, whole or not at all; returns what to say of it.

    merge: LoRA adapters are added into the weights that they change, so that the folder loads without peft.

    Raises GoodsError for a run that is unfinished or of another version, and where `to` is there already and isn't this
    very export; ParameterError for `merge` without adapters.
    """
    parts = list(whole_runs(run))
    if merge and not any(_adapted(part) for part, _ in parts):
        raise ParameterError(f"--merge: run '{run.name}' has no LoRA adapters to merge; leave it out")
    record = {"version": VERSION, "run": run.name, "merged": merge, "made_from": _made_from(parts)}
    if _is_there(Run(to), record):
        return f"{to} is there already, and is this export: nothing was written"
    with atomic_folder(to) as temporary:
        copy = Run(temporary)
        _copy_parts(run, copy, {part.folder: learned for part, learned in parts}, merge)
        oof = read_frame(run.oof, ["id", "label", "fold"], "put the run together again: --steps ensemble --force")
        shutil.copyfile(run.oof, copy.oof)
        write_json(copy.export_record, record | {"files": _hashes(temporary)})
        write_text(copy.card, model_card(copy, list(whole_runs(copy)), oof, run.name))
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    return f"{to}: {size / 1e6:,.1f} MB; {Run(to).card.name} says what it is, and its license is to be filled in"


def _copy_parts(run: Run, copy: Run, learned: dict[Path, FoldMean | RunBlend], merge: bool) -> None:
    """One run's own files, and of a blend those of its runs below it; learned: by the runs' folders."""
    own = learned[run.folder]
    folds = list(own.folds) if isinstance(own, FoldMean) else []
    merged = {run.fold(number).weights for number in folds} if merge and _adapted(run) else set()
    for file in run.model_files(folds):
        place = copy.folder / file.relative_to(run.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file not in merged:
            shutil.copyfile(file, place)
    for number in folds if merged else ():
        _save_merged(run, number, copy.fold(number).weights)
    record = run.record()
    defaults = Params().model_dump(mode="json")
    parameters = record["parameters"] | {name: defaults[name] for name in LOCAL}  # no paths of this machine
    write_json(copy.record_file, record | {"parameters": parameters})
    for name in own.runs if isinstance(own, RunBlend) else ():
        _copy_parts(run.member(name), copy.inner(name), learned, merge)


# Adapters ------------------------------------------------------------------------------------------------------------


def _adapted(run: Run) -> bool:
    """Whether the run's folds hold adapters."""
    from goods.models.tuning import has_adapters

    return any(has_adapters(fold.weights) for fold in (*run.folds(), run.refit) if fold.predicts)


def _save_merged(run: Run, number: int, place: Path) -> None:
    """A fold's weights with the adapters merged, by the kind's own model, computed in fp32."""
    from goods.models.tuning import save_merged

    p = parameters_of(run, {"mixed_precision": "fp32"})
    save_merged(kind_of(p).load().load(p, run.fold(number)), place)


# What is there already -----------------------------------------------------------------------------------------------


def _made_from(parts: Parts) -> str:
    """A hash of all small files of the runs: one that was trained or put together again has others."""
    digest = hashlib.sha256()
    for run, learned in parts:
        folds = learned.folds if isinstance(learned, FoldMean) else ()
        heavy = {run.neighbours, *(run.fold(number).weights for number in folds)}
        for file in (file for file in run.model_files(folds) if file not in heavy):
            digest.update(f"{run.name}/{file.relative_to(run.folder)}\0{file_hash(file)}\0".encode())
    return digest.hexdigest()[:16]


def _hashes(folder: Path) -> dict[str, str]:
    """{path below the folder: SHA-256} of its files, the card and the record apart, which may be edited."""
    own = {Run(folder).card, Run(folder).export_record}
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file not in own)
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in files}


def _is_there(there: Run, record: dict[str, object]) -> bool:
    """Whether the folder is this export already; raises GoodsError where it is something else."""
    folder = there.folder
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = read_json_if_whole(there.export_record)
    files = found.pop("files", {})
    if not found:
        raise GoodsError(f"{folder} is there already, and is no export; name a folder that isn't there")
    if differ := [name for name in record if found.get(name) != record[name]]:
        raise GoodsError(f"{folder} is the export of another run, or of another state of it ({', '.join(differ)} "
                         "differ); name a folder that isn't there")  # fmt: skip
    if files != (now := _hashes(folder)):
        differ = sorted(name for name in {**files, **now} if files.get(name) != now.get(name))
        raise GoodsError(f"{folder} is this export, but {listing(differ)} isn't what was written; export to a folder "
                         f"that isn't there, and copy {'it' if len(differ) == 1 else 'them'} from there")  # fmt: skip
    return True
