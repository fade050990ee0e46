"""What is attached to a kernel, found by its files, wherever it is mounted."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from goods.errors import GoodsError
from goods.files import folder_hash, resolve
from goods.model_paths import path_of
from goods.params import Params
from goods.places import PHOTO_ENDINGS, holds_tables, ids_beside, vector_pieces
from goods.run import MARKERS, Run

MOST_DEPTH = 8  # models/<owner>/<model>/<framework>/<variation>/<version> lies six deep
NEEDS_MODEL = "make kernel MODEL=owner/dataset, or owner/model/framework/variation/version; several with commas"
NEEDS_RUN = ("Attach that of the notebook that made it (Add Input, Your Work), or the dataset of make kaggle-weights "
             "(make kernel WEIGHTS=owner/dataset; several with commas)")  # fmt: skip


def find_inputs(root: Path) -> dict[str, list[Path]]:
    """Folders below `root` by kind: "competition" (train and test tables), "model" (config.json and weights), "run".

    Mounts have moved between /kaggle/input/<slug> and several levels below it, so files tell, not paths. Each folder
    is listed once and those of photos are not entered: 100,000 files cost a second or less.
    """
    found = defaultdict(list)
    seen: set[str] = set()
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:  # one place mounted under two names
            continue
        seen.add(real)
        kind, inner = _look_into(folder)
        if kind:
            found[kind].append(folder)
        elif depth < MOST_DEPTH:
            waiting += [(folder / name, depth + 1) for name in inner]
    return {kind: sorted(found[kind]) for kind in ("competition", "model", "run")}


def _look_into(folder: Path) -> tuple[str, list[str]]:
    """The kind of a folder by its marker files (empty when it has none), and its folders that may hold others."""
    names, inner = set(), []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.lower().endswith(PHOTO_ENDINGS):
                    names.add(entry.name)
                    if "image" not in entry.name and not entry.name.startswith(".") and entry.is_dir():
                        inner.append(entry.name)
    except OSError:
        return "", []
    if holds_tables(names):
        return "competition", []
    if names >= MARKERS:
        return "run", []
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return "model", []
    return "", inner


def the_competition(folders: Sequence[Path], root: Path) -> Path:
    """The one competition folder. Raises GoodsError when none or several are attached."""
    if not folders:
        raise GoodsError(f"no competition is attached: below {root} no folder has both train.csv and test.csv. "
                         "Add one (Add Input, or make kernel COMPETITION=slug) and accept its rules")  # fmt: skip
    if len(folders) > 1:
        raise GoodsError(f"{len(folders)} competitions are attached: {', '.join(map(str, folders))}. Remove all but "
                         'one, or name one in the parameters cell: settings = {"data_dir": "..."}')  # fmt: skip
    return folders[0]


def the_model(folders: Sequence[Path], name: str, root: Path) -> Path:
    """The folder with the backbone called `name`: its path, or the name in its config.json, holds all of its words.

    Raises GoodsError when none does, or several do.
    """
    words = _words(name)
    fitting = [folder for folder in folders if words <= _words(f"{folder.relative_to(root)} {_own_name(folder)}")]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise GoodsError(f"the weights of {name} are attached more than once: {', '.join(map(str, fitting))}. "
                         "Remove all but one")  # fmt: skip
    attached = f"attached are those of another: {', '.join(map(str, folders))}" if folders else "none are attached"
    raise GoodsError(f"the config needs the weights of {name}, but {attached}. Attach a dataset or model of that name "
                     f"({NEEDS_MODEL})")  # fmt: skip


def _words(text: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", text.lower())) - {""}


def _own_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def the_contents(folders: Sequence[Path], run: Run, name: str) -> Path:
    """The folder with the very files that a run was trained with under the `name` of a model directory.

    Raises GoodsError when none is attached. Those whose names fit are looked into first: reading gigabytes takes time.
    """
    path, contents = Path(path_of(run.parameters(), name)), run.record()["models"][name]
    fitting = sorted(folders, key=lambda folder: not _words(path.name) <= _words(f"{folder} {_own_name(folder)}"))
    for folder in fitting:
        if folder_hash(folder) == contents:
            return folder
    attached = f"attached are others: {', '.join(map(str, folders))}" if folders else "no weights are attached"
    raise GoodsError(f"run '{run.name}' was trained with files of hash {contents} in {name} ({path.name}), and "
                     f"{attached}. Attach those files ({NEEDS_MODEL})")  # fmt: skip


def earlier_run(folders: Sequence[Path], p: Params) -> Run | None:
    """The attached one of the runs called p.run that got furthest, an export before all others; or None."""
    recorded = {run: run.parameters() for run in map(Run, folders)}
    own = [run for run, was in recorded.items() if (was["run"], was["debug"]) == (p.run, p.debug)]
    done = {
        run: (run.exported, len(run.trained()), run.put_together, sum(fold.resumable for fold in run.folds()))
        for run in own
    }
    return max(done, key=done.get, default=None)


def named_run(folders: Sequence[Path], p: Params, name: str) -> Run:
    """The attached run that another one needs. Raises GoodsError when it isn't attached."""
    if run := earlier_run(folders, p.model_copy(update={"run": name})):
        return run
    raise GoodsError(f"the config needs the run '{name}', and no attached output has it. {NEEDS_RUN}")


def link(place: Path, target: Path) -> None:
    """Makes `place` another name of the attached folder `target`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target, target_is_directory=True)


def link_models(p: Params, wanted: Mapping[str, Path], folders: Sequence[Path], root: Path) -> None:
    """Puts attached weights where the config expects them, so that a run has the same parameters everywhere.

    wanted: the model directories that are read, by parameter. Raises GoodsError when one isn't attached.
    """
    for path in wanted.values():
        if not path.is_dir() or path.is_symlink():
            link(path, the_model(folders, path.name, root))


def link_vectors(wanted: Iterable[Path], root: Path) -> None:
    """Puts attached files of vectors, and of ids beside them, where the config expects them.

    Raises GoodsError when one isn't attached.
    """
    for path in wanted:
        if not path.is_file() or path.is_symlink():
            for found in vector_pieces(the_vectors(path, root)):
                for file in filter(None, (found, ids_beside(found))):
                    link(path.with_name(file.name), file)


def the_vectors(path: Path, root: Path) -> Path:
    """The file of vectors below `root` that is called as `path` is, or the pattern that it is, in the folder that has
    such files; of several folders in the one called alike.

    Raises GoodsError when there is none, or there are several.
    """
    found = sorted(Path(folder) for folder, _, names in os.walk(root) if fnmatch.filter(names, path.name))
    pairs = {folder: zip(reversed(folder.parts), reversed(path.parent.parts), strict=False) for folder in found}
    alike = {folder: len(list(takewhile(lambda pair: pair[0] == pair[1], of))) for folder, of in pairs.items()}
    fitting = [folder for folder in found if alike[folder] == max(alike.values())]
    if len(fitting) > 1:
        raise GoodsError(f"the vectors {path.name} are attached more than once, in {', '.join(map(str, fitting))}. "
                         "Remove all but one, or give them a name of their own")  # fmt: skip
    if not fitting:
        raise GoodsError(f"the config needs the vectors in {path.name}, and no file below {root} is called so. Attach "
                         "a dataset with it (make kaggle-backbone sends it; make kernel MODEL=owner/name)")  # fmt: skip
    return fitting[0] / path.name


def link_runs(p: Params, folders: Sequence[Path]) -> None:
    """Puts the attached runs that the parameters name where they are looked for, to be read.

    Raises GoodsError when one isn't attached, or has no labels to teach with.
    """
    for name in filter(None, (*p.runs, p.pseudo_from)):
        place = resolve(p.outputs_dir) / name
        if not place.is_dir() or place.is_symlink():  # else it was made in this session
            link(place, named_run(folders, p, name).folder)
    if p.pseudo_from:
        _check_teacher(Run.named(p, p.pseudo_from), p.n_folds)


def _check_teacher(run: Run, n_folds: int) -> None:
    """Raises GoodsError where a run has not labelled the test products for each fold."""
    for path in (run.folds_table, *map(run.pseudo, range(n_folds))):
        if not path.is_file():
            raise GoodsError(f"the attached run '{run.name}' has no {path.relative_to(run.folder)}, so pseudo_from has "
                             "nothing to learn from. Label the test products with it at home "
                             f"(notebooks/pseudo_label.ipynb), make kaggle-weights RUN={run.name}, and attach that "
                             "dataset")  # fmt: skip
