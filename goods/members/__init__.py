"""The kinds of model: one file each in this room, and their registry.

Light to import (no torch), since pipeline.py asks which notebooks a kind takes and what they read. A kind's module is
imported when something is fitted or predicted. It offers:

    fit(p, goods, numbers)              trains these folds, each to its files: weights, oof, metrics
    save(model, fold), load(p, fold)    a fold's model to its files and back
    predictor(p, folds, inputs)         holds these folds' models; from a table of products to Logits
    ensemble(p, goods)                  the run's folds, or its runs, as one prediction

No other room asks which kind a run is. docs/CONTRIBUTING.md adds a kind in ten lines.
"""

from __future__ import annotations

import difflib
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from goods.code_version import code_version
from goods.errors import ParameterError, StoppedInTime, TimeOverError
from goods.files import files_hash, folder_hash, resolve
from goods.members.idle import refuse_idle
from goods.model_paths import model_paths
from goods.params import OUTPUTS, REFIT, Params
from goods.places import ids_beside, names_vectors, table_pieces, vector_pieces
from goods.run import Fold, Run, deadline

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from goods.data.tables import Goods
    from goods.ensemble.folds import Ensemble
    from goods.training.inputs import Inputs

TRAINING = ("train", "baseline", "refit")  # the notebooks that train
Logits = dict[int, dict[str, "np.ndarray"]]  # {fold number: {output: (n, num_classes)}}
Predict = Callable[["pd.DataFrame"], Logits]  # of a table with id, title, text, image, and sha of a run's own
LOOKS = {  # the notebooks that look at the goods, with the code of what they find
    "eda": ("goods.eda", "goods.data.tables", "goods.models.encoders"),
    "trust": ("goods.trust", "goods.eda", "goods.data.folds"),
}
DATA = ("train_csv", "test_csv", "train_images_dir", "test_images_dir")
ENSEMBLE_CODE = ("goods.ensemble.folds", "goods.ensemble.label_issues")
PSEUDO_CODE, EMBED_CODE = ("goods.ensemble.pseudo_labels",), ("goods.models.embeddings",)
SUBMISSION_CODE = ("goods.ensemble.submission",)
FURTHER = "extra_embeddings"  # beside encoders, and beside vectors in their place
USUAL = {  # up to these a run's memory isn't counted before it
    "image_size": 1024, "hidden_dim": 16_384, "head_copies": 64, "text_windows": 64, "lora_rank": 1024,
    "batch_size": 1024, "micro_batch_size": 1024, "eval_batch_size": 1024, "num_classes": 5000, "num_workers": 64,
}  # fmt: skip
USUAL_PIXELS = 2**26  # of a batch's photos
TEST_ROWS = 4096  # test products between two looks at the clock: on a T4, with five folds of so400m, ten minutes


@dataclass(frozen=True)
class Kind:
    """What everybody may know of a kind without loading its module."""

    name: str
    what: str
    module: str
    notebooks: tuple[str, ...]  # in sequence; "train" runs once per fold
    models: tuple[str, ...] = ()  # the parameters that name model directories it reads
    vectors: bool = False  # whether it can do with embeddings_files in place of a model_name
    planned: tuple[str, ...] | None = None  # the sides of a product that it looks at, where goods.cost can count it
    tracked: bool = False  # whether wandb follows its training
    photos: bool = False  # whether it can't do without photos
    counted: str = ""  # what of it goods.cost.limits can count

    @property
    def by_fold(self) -> bool:
        """Whether its folds are trained one by one, by train.ipynb."""
        return "train" in self.notebooks

    def load(self) -> ModuleType:
        """The kind's module."""
        return importlib.import_module(self.module)

    def code(self) -> str:
        """The version of the code that its weights come from."""
        return code_version((self.module,))

    def model_dirs(self, p: Params) -> dict[str, Path]:
        """The model directories that it reads, by their names: the parameter's, and further ones of a list numbered.

        With p.embeddings_files it reads no encoder.
        """
        names = [name for name in self.models if name == FURTHER or not self._reads_given(p)]
        named = model_paths(dict(p), names)
        return {name: resolve(path) for name, path in named.items() if not names_vectors(path)}

    def vector_files(self, p: Params) -> dict[str, list[Path]]:
        """The files of vectors that it reads, by what names them: embeddings_files, extra_embeddings and so on."""
        further = model_paths(dict(p), [name for name in self.models if name == FURTHER])
        named = {name: [path] for name, path in further.items() if names_vectors(path)}
        named |= {"embeddings_files": p.embeddings_files} if self._reads_given(p) else {}
        return {name: [piece for path in paths for piece in vector_pieces(path)] for name, paths in named.items()}

    def _reads_given(self, p: Params) -> bool:
        return bool(self.vectors and p.embeddings_files)

    def model_hashes(self, p: Params) -> dict[str, str]:
        """The hash of each of those that are there, vectors as well."""
        memory = resolve(p.outputs_dir) / "cache" / "hashes.json"
        found = {name: folder_hash(path, memory=memory) for name, path in self.model_dirs(p).items() if path.is_dir()}
        return found | {name: vectors_hash(files, memory) for name, files in self.vector_files(p).items()
                        if all(path.is_file() for path in files)}  # fmt: skip


def vectors_hash(files: Sequence[Path], memory: Path | None = None) -> str:
    """The hash of files of vectors, those with their ids beside them as well."""
    return files_hash([*files, *filter(None, map(ids_beside, files))], memory)


ENCODERS = ("model_name", "text_model_name", FURTHER)
ALL_AT_ONCE = ("baseline", "ensemble", "submission")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("dual", "image and text encoder under fused heads", "goods.members.dual",
             ("eda", "trust", "train", "ensemble", "submission"), ENCODERS, planned=("image", "text"), tracked=True,
             photos=True, counted="training"),
        Kind("image", "an image encoder under a head", "goods.members.image",
             ("train", "ensemble", "submission"), ("model_name",), planned=("image",), tracked=True, photos=True,
             counted="training"),
        Kind("text", "a text encoder under a head", "goods.members.text",
             ("train", "ensemble", "submission"), ("model_name",), tracked=True, counted="texts"),
        Kind("embeddings", "heads on vectors made elsewhere", "goods.members.embeddings", ALL_AT_ONCE,
             (FURTHER,), vectors=True, planned=(), tracked=True, counted="heads"),
        Kind("linear", "a linear classifier on TF-IDF", "goods.members.linear", ALL_AT_ONCE),
        Kind("knn", "the nearest neighbours' vote", "goods.members.knn", ALL_AT_ONCE, ENCODERS, vectors=True,
             photos=True, counted="embedding"),
        Kind("blend", "other runs put together", "goods.members.blend", ("ensemble", "submission")),
    )
}  # fmt: skip


def notebooks_of(p: Params) -> list[str]:
    """The notebooks of the run that the parameters describe, in sequence."""
    names = list(kind_of(p).notebooks)
    if p.refit:
        names.insert(names.index("ensemble"), "refit")
    asked = {"pseudo_label": p.make_pseudo_labels, "embed": p.save_embeddings}
    return [*names, *(name for name, wanted in asked.items() if wanted)]


def kind_of(p: Params) -> Kind:
    """The kind of the run that the parameters describe; raises ParameterError when there is none of that name."""
    if p.kind not in KINDS:
        near = difflib.get_close_matches(p.kind, KINDS, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(KINDS)}"
        raise ParameterError(f"there is no kind '{p.kind}'; {advice}")
    return KINDS[p.kind]


def open_run(p: Params) -> Path:
    """The run's folder, made on first use; see Run.open. With p.resume_from, the folds of that run are taken over.

    Raises OtherRunError when something was trained under this name with other parameters, models or folds, and
    ParameterError where a parameter would have no effect.
    """
    run = Run.of(p)
    refuse_idle(p)
    refuse_large(p)
    run.open(p, kind_of(p).model_hashes(p))
    if p.resume_from and (adopted := run.adopt(p, Run(resolve(p.resume_from)))):
        names = ["the refit" if number == REFIT else str(number) for number in adopted]
        print(f"taken over from {p.resume_from}: folds {', '.join(names)}", flush=True)
    return run.folder


def refuse_large(p: Params) -> None:
    """Raises GoodsError where parameters that are larger than usual need more memory than there is."""
    kind = kind_of(p)
    large = {name: value for name, usual in USUAL.items() if (value := getattr(p, name) or 0) > usual}
    at_once = max(p.eval_batch_size, 0 if p.tune == "head" else min(p.micro_batch_size or p.batch_size, p.batch_size))
    if kind.photos and not large and (p.image_size or 0) ** 2 * at_once > USUAL_PIXELS:
        large = {"image_size": p.image_size}
    if large:
        from goods.cost.limits import refuse_too_large

        whole = all((path / "config.json").is_file() for path in kind.model_dirs(p).values())
        refuse_too_large(p, large, kind.counted if whole else "", kind.planned)


def read_goods(p: Params) -> Goods:
    """The checked tables and photos of a run; goods without a single photo only for a kind that reads none.

    Raises GoodsError where the vectors that it reads aren't those of its products.
    """
    from goods.data import matrices, tables

    kind = kind_of(p)
    goods = tables.read_goods(p, photos_needed=kind.photos and not p.embeddings_files)
    for files in kind.vector_files(p).values():
        ids = {"training": goods.train["id"].tolist(), "test": goods.test["id"].tolist()}
        matrices.read_matrix(files, p.id_column).check(ids)
    return goods


def fit(p: Params, goods: Goods, numbers: list[int] | None = None) -> None:
    """Trains folds of the run, those that the parameters choose by default; trained ones stay as they are."""
    kind_of(p).load().fit(p, goods, list(p.chosen_folds if numbers is None else numbers))


def refit(p: Params, goods: Goods) -> None:
    """Trains the model that learns from all rows, once the folds have said how long; one that is trained stays."""
    fit(p, goods, [REFIT])


def predict_test(p: Params, goods: Goods, by_folds: bool = False) -> list[int]:
    """Writes test.parquet of every trained fold that lacks one, or of the refit where p.refit is set; returns which.

    `by_folds`: of the folds all the same, as pseudo-labels need it. All of them together, so that photos are decoded
    and texts tokenised once, and stretch by stretch: what is predicted is kept, and the next call goes on from there.
    Raises StoppedInTime when p.max_hours are over between two stretches, and TimeOverError when they are before the
    first one.
    """
    p = p.model_copy(update={"refit": p.refit and not by_folds})
    due = [fold for fold in Run.of(p).predicting_folds(p) if not fold.predicted]
    stop_at, begun, loaded = deadline(p), False, {}
    while left := [fold for fold in due if not fold.predicted]:
        if stop_at and time.time() > stop_at:
            if not begun:
                raise TimeOverError(f"max_hours {p.max_hours} were over before the test set was predicted; raise it")
            print(f"max_hours {p.max_hours} are over: what is predicted of the test set is saved, and the same command "
                  "goes on from there", flush=True)  # fmt: skip
            raise StoppedInTime
        _predict_stretch(p, left, goods.test, loaded)
        begun = True
    return [fold.number for fold in due]


def _predict_stretch(p: Params, folds: list[Fold], test: pd.DataFrame, loaded: dict[tuple[int, ...], Predict]) -> None:
    """The next TEST_ROWS or fewer test products, by those of the folds that have predicted the fewest.

    loaded: what holds the models of the last stretch, by its folds.
    """
    from goods.predictions import read_begun, write_predictions

    begun = {fold.number: read_begun(fold.begun_test, test["id"]) for fold in folds}
    start = min(map(len, begun.values()))
    end = start + max(1, TEST_ROWS // p.eval_batch_size) * p.eval_batch_size  # whole batches: the same as all at once
    together, products = [fold for fold in folds if len(begun[fold.number]) == start], test.iloc[start:end]
    key = tuple(fold.number for fold in together)
    if key not in loaded:
        loaded.clear()
        loaded[key] = predictor_of(p, together)
    logits = loaded[key](products)
    for fold in together:
        path = fold.test if end >= len(test) else fold.begun_test
        head = products[["id"]].assign(fold=fold.number)
        write_predictions(path, head, logits[fold.number], below=begun[fold.number])
        if fold.predicted:
            fold.begun_test.unlink(missing_ok=True)


def predictor_of(p: Params, folds: Sequence[Fold], inputs: Inputs | None = None) -> Predict:
    """The function that these trained folds are, of the run's own products, or of those that `inputs` are made for."""
    from goods.training.inputs import Inputs

    return kind_of(p).load().predictor(p, folds, inputs or Inputs())


def predict(p: Params, folds: Sequence[Fold], products: pd.DataFrame) -> Logits:
    """The logits of a table of the run's own products, by each of these folds."""
    return predictor_of(p, folds)(products)


def ensemble_run(p: Params, goods: Goods) -> Ensemble:
    """The run's folds, or its runs, as one prediction with its honest score; writes the run's ensemble/."""
    return kind_of(p).load().ensemble(p, goods)


def fold_scores_of(p: Params) -> pd.DataFrame:
    """The main scores of the trained folds, and what was chosen for each; one row per fold."""
    import pandas as pd

    from goods.predictions import main_of

    run = Run.of(p)
    rows = {}
    for number in run.trained():
        scores = run.fold(number).scores()
        plain = {name: value for name, value in scores.items() if isinstance(value, float | int) and name != "fold"}
        rows[number] = main_of({name: scores[name] for name in OUTPUTS if name in scores}) | plain
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("fold")


# What the steps of a run depend on -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepInputs:
    """What a step's result depends on beside its parameters and its notebook."""

    stamped: tuple[Path, ...] = ()  # tables and photo folders: names, sizes and times
    hashed: tuple[Path, ...] = ()  # small files of runs: their bytes
    models: tuple[tuple[str, str], ...] = ()  # hashes of model directories
    code: str = ""  # version of the code that the result comes from, figures apart


def step_inputs(step: str, p: Params) -> StepInputs:
    """What a step of the pipeline reads, so that it runs again when something of it has changed."""
    kind, run = kind_of(p), Run.of(p)
    data = tuple(path for name in DATA for path in _files_of(resolve(getattr(p, name))))
    models = tuple(sorted(kind.model_hashes(p).items()))
    teacher = Run.named(p, p.pseudo_from) if p.pseudo_from else None
    fixes = (resolve(p.label_fixes),) if p.label_fixes else ()
    if step in LOOKS:
        return StepInputs(data, fixes, models if step == "eda" else (), code_version(LOOKS[step]))
    if step == "embed":
        return StepInputs(data, (), models, code_version(EMBED_CODE))
    folds = [path for k in run.trained() for path in (run.fold(k).oof, run.fold(k).metrics)]
    if step == "pseudo_label":
        return StepInputs(data, tuple(folds), models, code_version((kind.module, *PSEUDO_CODE)))
    if step in TRAINING:
        learned = tuple(teacher.pseudo(k) for k in range(p.n_folds)) if teacher else ()
        return StepInputs(data, (*learned, *fixes, *(folds if step == "refit" else ())), models, kind.code())
    if step == "ensemble":
        read = [*folds, *fixes, *([run.refit.metrics] if p.refit else [])]
        others = [*(Run.named(p, name) for name in p.runs), *([teacher] if teacher else [])]
        read += [path for other in others for path in (other.oof, other.test)]
        return StepInputs(data, tuple(read), models, code_version((kind.module, *ENSEMBLE_CODE)))
    tables = tuple(path for name in DATA[:2] for path in _files_of(resolve(getattr(p, name))))
    return StepInputs(tables, (run.oof, run.test, run.metrics), (), code_version(SUBMISSION_CODE))


def _files_of(path: Path) -> list[Path]:
    """A table's files where it comes in pieces, else the table or folder itself, there or not."""
    return table_pieces(path) if "*" in path.name else [path]


def result_files(step: str, fold: int | None, p: Params) -> list[Path]:
    """The files that a finished step has left."""
    run = Run.of(p)
    if step == "refit":
        return [run.refit.weights, run.refit.metrics]
    if step in TRAINING:
        numbers = p.chosen_folds if fold is None else [fold]
        return [path for k in numbers for path in (run.fold(k).weights, run.fold(k).oof, run.fold(k).metrics)]
    if step == "pseudo_label":
        return [run.pseudo(k) for k in range(p.n_folds)]
    if step == "embed":
        return [run.embeddings(part) for part in ("train", "test")]
    ensemble, submission = [run.oof, run.test, run.metrics], [run.submission, run.submission_probs]
    return {"ensemble": ensemble, "submission": submission}.get(step, [])


def learned_from(p: Params) -> dict[str, Any]:
    """For people: the kind's sentence, and the model directories by parameter."""
    kind = kind_of(p)
    files = {name: ", ".join(map(str, paths)) for name, paths in kind.vector_files(p).items()}
    return {"kind": kind.what, **{name: str(path) for name, path in kind.model_dirs(p).items()}, **files}
