"""A trained run as a function of products: made from its files alone, it classifies any further goods.

    predictor = load_predictor("outputs/blend")
    probabilities = predictor.predict(products)  # (n, num_classes)

Test set and catalogue go one way: the members' own predictors, the trained folds' probabilities averaged and calibrated
as the run's ensemble was. Nothing is trained, and nothing is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from goods.data.further import further_columns
from goods.data.photos import as_tuples
from goods.data.texts import clean_text, join_texts
from goods.ensemble.learned import FoldMean, RunBlend, read_learned
from goods.errors import GoodsError, OtherRunError, ParameterError, listing
from goods.files import file_hash, folder_hash, read_json, resolve
from goods.members import kind_of, predictor_of, vectors_hash
from goods.model_paths import path_of, with_paths
from goods.params import RUNTIME_FIELDS, Params, load_params
from goods.places import table_pieces, vector_pieces
from goods.predictions import main_of
from goods.run import VERSION, Fold, Run
from goods.training.inputs import SharedInputs

GIVEN = "embeddings_files"  # of all that names vectors, the parameter that may name several files
SETTINGS = RUNTIME_FIELDS | {"mixed_precision"}  # what may differ from the run's own


class Classified(NamedTuple):
    """What became of a table of products.

    probabilities: (n, num_classes), calibrated. photos: (n,) "ok", "missing", or what is wrong with a photo, where the
    run looks at photos; else "". Of several photos each in its place: "ok | missing".
    """

    probabilities: np.ndarray
    photos: list[str]


class Predictor:
    """A finished run, ready to classify products.

    labels[k] is class k's label as train.csv writes it, classes[k] its name for people. text_columns and
    further_columns are the columns that products must have, `rows` how many of them are best given at once,
    `fingerprint` a hash of all that the probabilities depend on beside the products.
    """

    def __init__(self, run: Run, source: _Source, inputs: SharedInputs) -> None:
        known = read_json(run.labels, "copy it back, or run eda.ipynb of the run again")
        self.run, self.labels, self.classes = run, list(known["labels"]), list(known["classes"])
        self._source, self._inputs = source, inputs
        self.p, self.text_columns, self.fingerprint = source.p, source.columns, source.fingerprint
        self.further_columns = source.further

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.labels)

    @property
    def reads_photos(self) -> bool:
        """Whether any of its models looks at photos."""
        return self._inputs.reads_photos

    @property
    def reads_vectors(self) -> bool:
        """Whether any of its models reads vectors that were made elsewhere."""
        return self._inputs.reads_vectors

    def check_vectors(self, ids: Sequence[str]) -> None:
        """Raises GoodsError where products have no vector among those that were given."""
        self._inputs.check_vectors(ids)

    @property
    def rows(self) -> int:
        """How many products are worked on at once: more of them take no more memory."""
        return self._inputs.rows

    @property
    def image_column(self) -> str | None:
        """What names the photos of the goods it was trained on."""
        return self._source.image_column

    def predict(self, products: pd.DataFrame) -> np.ndarray:
        """(n, num_classes) calibrated probabilities of products, whatever their number, in their order.

        products: the text columns as the run's tables have them; `image`, the path or URI of a photo or its bytes, ""
        for none, a tuple of several; and the id column, by which errors name a product. What is not there is taken as
        empty, but for the text columns: raises GoodsError without them.
        """
        return self.classify(products).probabilities

    def classify(self, products: pd.DataFrame) -> Classified:
        """`predict`, and what its photos were like."""
        most = max((len(photos) for photos in as_tuples(_filled(products, "image"))), default=1)
        rows = max(1, self.rows // most)
        parts = [self._chunk(products.iloc[at : at + rows]) for at in range(0, len(products), rows)]
        if not parts:
            self._columns_of(products)
            return Classified(np.zeros((0, self.num_classes)), [])
        return Classified(np.concatenate([part.probabilities for part in parts]), [s for p in parts for s in p.photos])

    def _chunk(self, products: pd.DataFrame) -> Classified:
        tables = Tables(self._columns_of(products), self.p.id_column)
        probabilities = np.exp(main_of(self._source(tables)))
        return Classified(probabilities, self._inputs.photo_status(tables.images) or [""] * len(products))

    def _columns_of(self, products: pd.DataFrame) -> pd.DataFrame:
        needed = dict.fromkeys((*self.text_columns, *self.further_columns))
        if missing := [name for name in needed if name not in products]:
            raise GoodsError(f"the products lack {listing(missing)}, which run '{self.run.name}' was trained on; they "
                             f"have {listing(products.columns)}")  # fmt: skip
        return products


class Tables:
    """Products as the runs' models take them, once for each choice of text columns and of further ones."""

    def __init__(self, products: pd.DataFrame, id_column: str) -> None:
        self._products, self._made = products, dict[tuple[tuple[str, ...], ...], pd.DataFrame]()
        self.images = as_tuples(_filled(products, "image"))
        own = id_column in products
        self._ids = [str(name) for name in products[id_column]] if own else [str(row) for row in products.index]

    def of(self, columns: tuple[str, ...], further: tuple[str, ...] = ()) -> pd.DataFrame:
        """id, title (cleaned), text (cleaned and joined), image; images, tuples, where some have several; the further
        columns as they are."""
        if (columns, further) not in self._made:
            raw = pd.DataFrame({name: [str(cell) for cell in _filled(self._products, name)] for name in columns})
            titles = _filled(self._products, "title" if "title" in self._products else columns[0])
            made = {"id": self._ids, "title": [clean_text(str(title)) for title in titles], "text": join_texts(raw)}
            made["image"] = pd.Series([photos[0] for photos in self.images], dtype=object)
            if any(len(photos) > 1 for photos in self.images):
                made["images"] = pd.Series(self.images, dtype=object)
            made |= {name: [str(cell) for cell in _filled(self._products, name)] for name in further if name != "title"}
            self._made[columns, further] = pd.DataFrame(made)
        return self._made[columns, further]


def _filled(products: pd.DataFrame, column: str) -> list[Any]:
    """The cells of a column, "" where they are empty or the column isn't there."""
    if column not in products:
        return [""] * len(products)
    return products[column].astype(object).where(products[column].notna(), "").tolist()


# From files ----------------------------------------------------------------------------------------------------------


Named = str | Path | Sequence[str | Path]  # of one parameter


def load_predictor(folder: str | Path, models: Mapping[str, Named] | None = None, **settings: Any) -> Predictor:
    """The finished run in `folder`, of any kind, as a function of products.

    A blend's runs lie beside it, or inside an exported folder. models: where a model directory is that isn't at the
    path the run was trained with, by its name (model_name, extra_embeddings, extra_embeddings_2 of several) or, of one
    run of a blend, by "run/name". So are files with the vectors of further products, which no run can make
    (embeddings_files, or the name of an extra_embeddings). settings: parameters that change no result, such as
    eval_batch_size and num_workers, and mixed_precision.

    Raises GoodsError for a folder that holds no run, an unfinished one, or one of another version, OtherRunError for a
    model directory whose contents aren't those that the run was trained with.
    """
    if unknown := sorted(set(settings) - SETTINGS):
        raise ParameterError(f"{listing(unknown)} can't be set for a trained run; settings are such as eval_batch_size")
    run, inputs = Run(resolve(folder)), SharedInputs()
    loader = _Loader(inputs, dict(models or {}), settings)
    source = loader.load(run)
    loader.check_all_used()
    return Predictor(run, source, inputs)


class _FoldsSource:
    """The trained folds of one run."""

    def __init__(self, run: Run, p: Params, learned: FoldMean, inputs: SharedInputs, models: dict[str, str]) -> None:
        self.p, self._learned, self.columns, self.image_column = p, learned, tuple(p.text_columns), p.image_column
        self.further = tuple(further_columns(p))
        folds = whole_folds(run, learned)
        self._predict = predictor_of(p, folds, inputs)
        made_from = {fold.folder.name: fold.made_from() for fold in folds}
        self.fingerprint = _hash(file_hash(run.method), models, made_from, p.mixed_precision, p.text_columns)

    def __call__(self, tables: Tables) -> dict[str, np.ndarray]:
        return self._learned.combine(self._predict(tables.of(self.columns, self.further)))


class _BlendSource:
    """Runs under what a blend has learned."""

    def __init__(self, run: Run, p: Params, learned: RunBlend, runs: dict[str, _Source]) -> None:
        self.p, self._learned, self._runs = p, learned, runs
        self.columns = tuple(dict.fromkeys(column for each in runs.values() for column in each.columns))
        self.further = tuple(dict.fromkeys(column for each in runs.values() for column in each.further))
        named = (each.image_column for each in runs.values())
        self.image_column = p.image_column or next(filter(None, named), None)
        prints = [each.fingerprint for each in runs.values()]
        self.fingerprint = _hash(file_hash(run.method), file_hash(run.blend_weights), prints)

    def __call__(self, tables: Tables) -> dict[str, np.ndarray]:
        made = {name: run(tables) for name, run in self._runs.items()}
        outputs = {f"{name}/{output}": values for name, of in made.items() for output, values in of.items()}
        if lacking := [name for name in self._learned.members if name not in outputs]:
            raise OtherRunError(f"the blend was put together from {lacking[0]}, which that run no longer predicts; put "
                                "it together again")  # fmt: skip
        return self._learned.combine(outputs)


_Source = _FoldsSource | _BlendSource


class _Loader:
    """What loading one predictor needs to remember: runs and model directories that are there already."""

    def __init__(self, inputs: SharedInputs, models: dict[str, Named], settings: dict[str, Any]) -> None:
        self.models, self.used, self.refused = models, set[str](), dict[str, str]()
        self.vectors: dict[str, str] = {}  # what the runs learned from that read these vectors, by their key
        self._inputs, self._settings, self._runs = inputs, settings, dict[Path, _Source]()

    def load(self, run: Run) -> _Source:
        """A run's folds, or its runs, as one."""
        if run.folder not in self._runs:
            learned, p = read_learned(check_run(run)), parameters_of(run, self._settings)
            if isinstance(learned, RunBlend):
                runs = {name: self.load(run.member(name)) for name in learned.runs}
                self._runs[run.folder] = _BlendSource(run, p, learned, runs)
            else:
                p, hashes = self._with_models(run, p)
                self._runs[run.folder] = _FoldsSource(run, p, learned, self._inputs, hashes)
        return self._runs[run.folder]

    def _with_models(self, run: Run, p: Params) -> tuple[Params, dict[str, str]]:
        """The parameters with the paths of what they name as it lies now, and the hashes of that."""
        hashes, vectors = dict(run.record().get("models", {})), kind_of(p).vector_files(p)
        files = {name: self._vectors(run, p, name, of) for name, of in hashes.items() if name in vectors}
        paths = {name: str(self._model_dir(run, p, name, of)) for name, of in hashes.items() if name not in files}
        self._inputs.hashes |= {path: hashes[name] for name, path in paths.items()}
        hashes |= {name: vectors_hash(_pieces(of)) for name, of in files.items()}
        given = {name: of for name, of in files.items() if name == GIVEN}
        further = {name: of[0] for name, of in files.items() if name != GIVEN}
        return p.model_copy(update=with_paths(dict(p), paths | further) | given), hashes

    def _vectors(self, run: Run, p: Params, name: str, contents: str) -> tuple[str, ...]:
        """The files of vectors that are given, for whatever products; else those that the run was trained with.

        Raises OtherRunError where they aren't there or have changed since.
        """
        given = self._given_vectors(run, name, contents)
        files = given or (p.embeddings_files if name == GIVEN else (path_of(dict(p), name),))
        if missing := [path for path in _pieces(files) if not path.is_file()]:
            raise OtherRunError(f"run '{run.name}' reads vectors of products, and there is no file {missing[0]}; name "
                                f"what holds those of the products to predict: {_how_to_name(name)}")  # fmt: skip
        if not given and (now := vectors_hash(_pieces(files))) != contents:
            raise OtherRunError(f"run '{run.name}' was trained with vectors of hash {contents}, and those in "
                                f"{listing(files)} have hash {now}. Put those back, or if they are by the same "
                                f"model, of further products, say so: {_how_to_name(name)}")  # fmt: skip
        return files

    def _given_vectors(self, run: Run, name: str, contents: str) -> tuple[str, ...]:
        """The files of vectors that were given under this name; () without any.

        Raises ParameterError where runs would read one's for another's, and for several files where one is meant.
        """
        key = next((key for key in (f"{run.name}/{name}", name) if key in self.models), "")
        if not key:
            return ()
        self.used.add(key)
        if self.vectors.setdefault(key, contents) != contents:
            raise ParameterError(f"models names {key} for runs that learned from different vectors; name those of "
                                 f"each: {run.name}/{name}=FILE and so on")  # fmt: skip
        given = self.models[key]
        files = _listed(given) if isinstance(given, str | Path) else tuple(map(str, given))
        if name != GIVEN and len(files) > 1:
            raise ParameterError(f"models names {len(files)} files for {key}, which is one; name them by a pattern, "
                                 "such as vectors-*.npz")  # fmt: skip
        return files

    def _model_dir(self, run: Run, p: Params, name: str, contents: str) -> Path:
        """The directory that holds the model that the run was trained with; raises OtherRunError, with both hashes."""
        for key in (f"{run.name}/{name}", name):
            if key in self.models:
                path = resolve(self.models[key])
                self.refused[key] = _other_model(run, name, path, contents)
                if not self.refused[key]:
                    self.used.add(key)
                    return path
        path = resolve(path_of(dict(p), name))
        if why := _other_model(run, name, path, contents):
            raise OtherRunError(next(filter(None, self.refused.values()), why))
        return path

    def check_all_used(self) -> None:
        """Raises a GoodsError where a model directory was given that no run wants."""
        for key in sorted(set(self.models) - self.used):
            if self.refused.get(key):
                raise OtherRunError(self.refused[key])
            raise ParameterError(f"models names {key}, which none of the runs reads")


def _pieces(files: Sequence[str]) -> list[Path]:
    return [piece for path in files for piece in vector_pieces(path)]


def _listed(given: str | Path) -> tuple[str, ...]:
    """Several files in one text have commas between them."""
    return (str(given),) if table_pieces(resolve(given)) else tuple(part.strip() for part in str(given).split(","))


def _how_to_name(name: str) -> str:
    return f"models={{'{name}': path}}, --models {name}=PATH"


def _other_model(run: Run, name: str, path: Path, contents: str) -> str:
    """A sentence where `path` doesn't hold the model of hash `contents`; "" where it does."""
    if not path.is_dir():
        found = f"there is no directory {path}"
    else:
        memory = run.folder.parent / "cache" / "hashes.json"  # which a run has where it was trained
        now = folder_hash(path, memory=memory if memory.is_file() else None)
        found = "" if now == contents else f"those of {path} have hash {now}"
    said = f"run '{run.name}' was trained with files of hash {contents} in {name}, and {found}. Put those there"
    return found and f"{said}, or say where they are: {_how_to_name(name)}"


def check_run(run: Run) -> Run:
    """Raises GoodsError where the folder holds no run, or one of another version."""
    if not run.exists:
        raise GoodsError(f"there is no run in {run.folder}: it has no {run.record_file.name}; name the folder of one")
    version = run.record().get("version")
    if version != VERSION:
        raise OtherRunError(f"run '{run.name}' in {run.folder} has files of version {version}, and this project reads "
                            f"version {VERSION}: load it with what made it, or train it again")  # fmt: skip
    return run


def whole_folds(run: Run, learned: FoldMean) -> list[Fold]:
    """The folds that a run predicts with; raises GoodsError where the model of one isn't there."""
    folds = [run.fold(number) for number in learned.folds]
    if lost := [fold for fold in folds if not fold.predicts]:
        raise GoodsError(f"run '{run.name}' in {run.folder} is not whole: its ensemble is of {lost[0].title}, too, "
                         "which has no weights there; train it, or copy it whole")  # fmt: skip
    return folds


def whole_runs(run: Run) -> Iterator[tuple[Run, FoldMean | RunBlend]]:
    """A finished run and, of a blend, those that it is put together from, with what each has learned.

    Nothing is loaded. Raises as load_predictor does, for a model directory that isn't there apart.
    """
    learned = read_learned(check_run(run))
    yield run, learned
    if isinstance(learned, RunBlend):
        for name in learned.runs:
            yield from whole_runs(run.member(name))
    else:
        whole_folds(run, learned)


def parameters_of(run: Run, settings: Mapping[str, Any]) -> Params:
    """The parameters of a run that lies in any folder, with other `settings`."""
    checked = load_params(**settings)
    try:
        known = {name: value for name, value in run.parameters().items() if name in Params.model_fields}
        p = Params(**known | {name: getattr(checked, name) for name in settings})
    except ValueError as error:
        raise ParameterError(f"the parameters in {run.record_file} can't be used: {error}") from None
    return p.model_copy(update={"outputs_dir": str(run.folder.parent), "run": run.folder.name, "debug": False})


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
