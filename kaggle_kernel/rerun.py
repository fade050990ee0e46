"""What a kernel does that only predicts: attached weights of any kind, and the test set there is, often a hidden one.

Nothing is trained, and of the training table nothing is read: a Predictor, made from the attached files alone, writes
submission.csv and submission_probs.csv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goods.data.photo_files import columns_of
from goods.data.products import check_products, find_product_photos
from goods.ensemble.learned import RunBlend, read_learned
from goods.ensemble.runs import learn_blend
from goods.ensemble.submission import write_rows
from goods.errors import OtherRunError
from goods.files import resolve
from goods.members import kind_of, open_run
from goods.params import Params
from goods.predictor import Predictor, check_run, load_predictor, parameters_of, whole_runs
from goods.progress import progress_bar
from goods.run import Run
from goods.training.inputs import AND
from kaggle_kernel.attached import earlier_run, link, link_runs, named_run, the_contents, the_vectors

Attached = Mapping[str, Sequence[Path]]
SETTINGS = ("eval_batch_size", "num_workers")  # that count as the kernel gives them, not as the run had them


def attached_predictor(p: Params, attached: Attached, inputs: Path, scratch: Path, hidden: bool) -> Predictor | None:
    """The attached run called p.run, or the blend of attached runs, ready to predict; None where it is to be made here.

    An export always predicts; `hidden`, in a scoring re-run, so does any finished run. Loads all models, so that what
    isn't attached is said before the work starts: raises GoodsError.
    """
    before = earlier_run(attached["run"], p)
    if before and before.put_together and (hidden or before.exported):
        run = _gathered(p, before, attached["run"], scratch)
        if names := run.differing(p):
            raise OtherRunError(f"the attached {before.folder} was made with other parameters: {', '.join(names)}. "
                                "Give them as they were, or attach another run")  # fmt: skip
    elif p.runs and _are_to_predict(p, attached, hidden):
        open_run(p)
        run = learn_blend(p)
    else:
        return None
    predictor = _load(p, run, attached["model"], inputs)
    print(f"{before.folder if before else run.folder} predicts, and nothing is trained")
    return predictor


def _are_to_predict(p: Params, attached: Attached, hidden: bool) -> bool:
    """Whether a blend's runs have yet to predict the test set there is; they are put where they are looked for."""
    link_runs(p, attached["run"])
    return hidden or not all(Run.named(p, name).test.is_file() for name in p.runs)


def submit(p: Params, predictor: Predictor) -> pd.DataFrame:
    """Predicts the test set and writes the run's submission.csv and submission_probs.csv; returns what it wrote.

    Raises GoodsError with all that is wrong with the table. Photos that are missing or can't be read are counted.
    """
    column = predictor.image_column if predictor.reads_photos else None
    named = [*predictor.further_columns, *(columns_of(column) if column else [])]
    table = check_products(resolve(p.test_csv), p.id_column, predictor.text_columns, named)
    if predictor.reads_vectors:
        predictor.check_vectors(table.ids())
    folder = resolve(p.test_images_dir)
    finder = find_product_photos(table, p.id_column, folder, column) if predictor.reads_photos else None
    ids, parts, bad = [], [], 0
    with progress_bar(total=table.rows, desc=f"run {p.run}", unit=" products") as bar:
        for products in table.stretches(predictor.rows):
            images = finder.of(products, p.id_column) if finder else [""] * len(products)
            found = predictor.classify(products.assign(image=pd.Series(images, index=products.index, dtype=object)))
            bad += sum(not {*said.split(AND)} <= {"ok", ""} for said in found.photos)
            parts.append(found.probabilities)
            ids += products[p.id_column].tolist()
            bar.update(len(products))
    if bad:
        print(f"{bad:,} of {len(ids):,} products lack a photo, or have one that is damaged: predicted by what is left")
    return write_rows(Run.of(p), ids, np.concatenate(parts), predictor.labels, (p.id_column, p.label_column))


def _gathered(p: Params, before: Run, folders: Sequence[Path], scratch: Path) -> Run:
    """A finished run under its own name, and beside it those of a blend that aren't inside it."""
    home = scratch / "weights"
    link(home / p.run, before.folder)
    learned = read_learned(check_run(before))
    for name in learned.runs if isinstance(learned, RunBlend) else ():
        if not before.inner(name).exists:
            link(home / name, named_run(folders, p, name).folder)
    return Run(home / p.run)


def _load(p: Params, run: Run, folders: Sequence[Path], inputs: Path) -> Predictor:
    """The predictor of a run whose model directories are among the attached ones, and its vectors below `inputs`."""
    models: dict[str, Any] = {}
    for part, learned in whole_runs(run):
        of = parameters_of(part, {})
        for name in () if isinstance(learned, RunBlend) else part.record().get("models", {}):
            vectors = kind_of(of).vector_files(of).get(name)
            found = [the_vectors(path, inputs) for path in vectors] if vectors else the_contents(folders, part, name)
            models[f"{part.name}/{name}"] = found
    given = {name: getattr(p, name) for name in SETTINGS if name in p.model_fields_set}
    return load_predictor(run.folder, models, **given)
