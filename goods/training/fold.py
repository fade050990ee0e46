"""A fold trained from its task to its files: weights, predictions of the held-back rows, metrics."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor

from goods.cost.plan import plan_run
from goods.data.folds import read_folds
from goods.data.tables import Goods
from goods.errors import GoodsError
from goods.files import atomic_path
from goods.machine import used
from goods.metrics import METRICS
from goods.models.columns import save_columns
from goods.models.tuning import load_trained, save_trained
from goods.params import Params
from goods.predictions import main_of, prediction_table, read_choices, write_choices
from goods.run import Fold, Run, deadline
from goods.training.checkpoint import State, load_state, parts_of
from goods.training.due import finish_fold, to_train, what_makes
from goods.training.inference import make_accelerator, predict
from goods.training.loop import LOGGED, Training, restore_training, train, training_facts
from goods.training.optim import copied, set_weights, swapped
from goods.training.task import Task
from goods.training.tracking import make_tracker

WISE_FT_ALPHAS = (1, 0.25, 0.5, 0.75)  # 1: the tuned weights as they are; of equals the first is taken

# From parameters, goods, folds and the heads' tensors of a saved state (empty at the start) to what is trained.
TaskMaker = Callable[[Params, Goods, pd.DataFrame, dict[str, Tensor]], Task]


def fit_fold(p: Params, goods: Goods, make_task: TaskMaker, code: str) -> dict[str, Any]:
    """Trains fold p.fold and predicts its validation part; returns its metrics. `code`: version of what trains it.

    Writes weights.safetensors, log.jsonl, oof.parquet and, last, metrics.json to the run's fold<k>; what an earlier
    training left there stays until then. A trained fold is loaded, an unfinished one goes on from its checkpoint.
    Raises StoppedInTime when p.max_hours are over, the state saved, and HeldError when another process trains the fold.
    """
    fold, folds = Run.of(p).fold(p.fold), read_folds(goods, p)
    made_from = what_makes(fold, p, goods, code)
    if not to_train(fold, p, made_from):
        return fold.scores()
    accelerator = make_accelerator(p)
    with held_together(fold, accelerator):
        if to_train(fold, p, made_from, say=False):  # whoever held it may have trained it meanwhile
            _fit(p, goods, folds, fold, accelerator, make_task, made_from)
        accelerator.wait_for_everyone()
    return fold.scores()


@contextmanager
def held_together(fold: Fold, accelerator: Accelerator) -> Iterator[None]:
    """Inside, the processes that train together hold the fold, by the main one; what keeps it from that, all raise."""
    with ExitStack() as stack:
        error = None
        if accelerator.is_main_process:
            try:
                stack.enter_context(fold.held())
            except (GoodsError, OSError) as found:  # alone, it would leave the others waiting for it
                error = found
        if accelerator.num_processes > 1:
            [error] = broadcast_object_list([error])
        if error:
            raise error
        yield


def _fit(
    p: Params,
    goods: Goods,
    folds: pd.DataFrame,
    fold: Fold,
    accelerator: Accelerator,
    make_task: TaskMaker,
    made_from: dict[str, str],
) -> None:
    began = time.perf_counter()
    saved = state_of(fold, made_from["rows"])
    task = make_task(p, goods, folds, parts_of(saved[0], "model.") if saved else {})
    task.rows = made_from["rows"]
    set_seed(p.seed + p.seed_offset)  # only now: whether embeddings came from the cache must not matter
    stop_at = deadline(p)
    training = Training(task, p, accelerator, fold)
    if fold.is_refit and p.keep == "best":
        training.last_epoch = int(made_from["choice"].removeprefix("epoch "))
    if saved:
        restore_training(training, saved)
        print(f"{fold.title} goes on after step {training.at.step} of epoch {training.at.epoch}", flush=True)
    if accelerator.is_main_process:
        training.tracker = make_tracker(p, training.at.tracked_as)
    train(training, stop_at)
    weights, choices = choose_weights(training, made_from.get("choice", ""))
    logits = predict(task.model, task.valid, p, accelerator) if training.held_back else {}
    facts = training_facts(training)
    facts |= {"choices": {n: METRICS[p.metric].of(task.labels["valid"], main_of(made)) for n, made in choices.items()}}
    facts |= {"resources": resources(p, training) | used(time.perf_counter() - began)}
    if accelerator.is_main_process:
        with atomic_path(fold.weights) as temporary:
            shutil.copyfile(weights, temporary)
            fold.begin_writing()
        save_columns(task.columns, fold.details)
        if choices:
            write_choices(fold.choices, choices)
        metrics = finish_fold(fold, folds, logits, facts, made_from, p.metric)
        training.tracker.finish(metrics=metrics, **what_is_shown(fold, goods))


def what_is_shown(fold: Fold, goods: Goods) -> dict[str, Any]:
    """What a tracker gets of a fold's predictions; empty of the refit."""
    if fold.is_refit:
        return {}
    table = prediction_table(pd.read_parquet(fold.oof), goods)
    return {"oof": str(fold.oof), "classes": goods.classes, "errors": worst(table, goods.classes)}


def state_of(fold: Fold, rows: str) -> State | None:
    """The fold's saved state, unless it is of other training rows than there are now."""
    saved = load_state(fold)
    if saved and saved[1]["rows"] != rows:
        print(f"the saved state of {fold.title} learned from other rows than there are now (new pseudo-labels?): "
              "it is trained from its start", flush=True)  # fmt: skip
        return None
    return saved


def choose_weights(training: Training, suggested: str) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """Leaves in the model the weights to predict with; returns their file, and the predictions at each choice.

    Choices are the epochs (keep best) or the alphas of WiSE-FT (arXiv 2109.01903); the one whose metric is best on the
    validation part is kept, and goods.ensemble.choices scores the fold at the one that the other folds make. The refit,
    which has no such part, takes what the folds have `suggested`.
    """
    fold, p = training.fold, training.p
    load_trained(training.task.model, fold.kept_weights)  # what is predicted with is what is kept
    if fold.is_refit:
        return (mixed(training, float(suggested.removeprefix("alpha "))) if p.wise_ft else fold.kept_weights), {}
    if p.keep == "best":
        epochs = [fold.epoch(number) for number in range(1, training.at.epoch)]
        return fold.kept_weights, {name: made for path in epochs for name, made in read_choices(path).items()}
    return choose_alpha(training) if p.wise_ft else (fold.kept_weights, {})


def choose_alpha(training: Training) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """choose_weights of WiSE-FT: the best of alpha times the tuned plus 1 - alpha times the start's weights."""
    task, p, accelerator = training.task, training.p, training.accelerator
    tuned, choices = copied(task.model), {}
    for alpha in WISE_FT_ALPHAS:
        with swapped(task.model, training.averages.interpolated(tuned, alpha)):
            choices[f"alpha {alpha}"] = predict(task.model, task.valid, p, accelerator)
    worth = [METRICS[p.metric].worth(task.labels["valid"], main_of(made)) for made in choices.values()]
    return mixed(training, WISE_FT_ALPHAS[int(np.argmax(worth))]), choices


def mixed(training: Training, alpha: float) -> Path:
    """Leaves alpha times the tuned plus 1 - alpha times the start's weights in the model; returns their file."""
    model, accelerator, fold = training.task.model, training.accelerator, training.fold
    if alpha == 1:
        return fold.kept_weights
    set_weights(model, training.averages.interpolated(copied(model), alpha))
    if accelerator.is_main_process:
        save_trained(model, fold.mixed_weights)
    accelerator.wait_for_everyone()
    load_trained(model, fold.mixed_weights)
    return fold.mixed_weights


def resources(p: Params, training: Training) -> dict[str, Any]:
    """What the training took; on a GPU, the measured peak of its memory beside the planned one, GiB."""
    found: dict[str, Any] = {"micro_batch_size": min(training.at.micro_batch_size, p.batch_size)}
    found["device"] = torch.cuda.get_device_name() if training.accelerator.device.type == "cuda" else "cpu"
    if torch.cuda.is_available() and training.task.sides:
        measured = torch.cuda.max_memory_allocated() / 2**30
        p = p.model_copy(update={"micro_batch_size": found["micro_batch_size"]})
        planned = plan_run(p, sides=training.task.sides).allocated_gib
        found |= {"peak_gib": round(measured, 2), "planned_gib": round(planned, 2)}
        found["plan_error"] = round(planned / measured - 1, 3)
    return found


def worst(table: pd.DataFrame, classes: list[str], top: int = 24) -> list[dict[str, Any]]:
    """The wrong predictions it was surest of: id, image, title, given, predicted (names), probability."""
    errors = table[table["label"] != table["prediction"]].nlargest(top, "probability")
    names = {"given": [classes[k] for k in errors["label"]], "predicted": [classes[k] for k in errors["prediction"]]}
    return errors.assign(**names)[["id", "image", "title", *names, "probability"]].to_dict("records")


def read_logs(run: Run) -> pd.DataFrame:
    """The training logs of a run's folds: fold, epoch, train_loss, valid_loss, macro_f1 ..., and the run's metric.

    A damaged log costs its curves only: it is said and left out.
    """
    logs = []
    for fold in run.folds():
        path = fold.log if fold.trained else fold.latest_log
        if path.is_file():
            try:
                lines = [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
                table = pd.DataFrame(lines)
                more = [name for name in METRICS if name in table and name not in LOGGED]
                logs.append(table[[*LOGGED, *more]].assign(fold=fold.number))
            except (ValueError, TypeError, KeyError):
                print(f"{path} is damaged; its curves are left out", flush=True)
    return pd.concat(logs, ignore_index=True) if logs else pd.DataFrame()
