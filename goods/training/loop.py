"""The training loop of one fold, which can be stopped after any step and goes on to the same numbers."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from goods.data.datasets import PhotoDataset
from goods.errors import GoodsError, OtherRunError, StoppedInTime, TimeOverError, listing
from goods.files import write_text
from goods.machine import peak_memory
from goods.metrics import METRICS, score
from goods.models.tuning import save_trained, trained_state
from goods.params import Params
from goods.predictions import main_of, write_choices
from goods.progress import progress_bar
from goods.run import Fold
from goods.training.checkpoint import (
    State,
    optimizer_tensors,
    parts_of,
    random_state,
    restore_optimizer,
    save_state,
    set_random_state,
)
from goods.training.inference import make_loader, predict
from goods.training.optim import (
    Averages,
    class_weights,
    cosine_schedule,
    make_optimizer,
    output_losses,
    swapped,
)
from goods.training.task import Task
from goods.training.tracking import NoTracker

# A line of log.jsonl, which each epoch adds; the metric follows where it isn't among them.
LOGGED = "epoch epochs train_loss valid_loss macro_f1 accuracy learning_rate gradient_norm seconds".split()


@dataclass
class TrainingState:
    """Where a training stands; saved with its tensors."""

    epoch: int = 1
    step: int = 0  # steps done in this epoch
    loss_sum: float = 0.0
    norm_sum: float = 0.0  # of the gradients, before they are clipped
    best_epoch: int = 0
    best_score: float = -math.inf  # the metric's worth: the higher the better
    micro_batch_size: int = 1
    tracked_as: str = field(default_factory=lambda: secrets.token_hex(4))  # wandb's id
    log: list[dict[str, float]] = field(default_factory=list)


class Training:
    """A model in training, and all that its steps change. Made without reading or writing anything."""

    def __init__(self, task: Task, p: Params, accelerator: Accelerator, fold: Fold) -> None:
        self.task, self.p, self.accelerator, self.fold = task, p, accelerator, fold
        self.epochs = self.last_epoch = 1 if p.debug else p.num_epochs  # the schedule's, and where to end
        self.steps = math.ceil(len(task.ids) / p.batch_size)  # per epoch
        self.model: nn.Module = accelerator.prepare_model(task.model)
        self.averages = Averages(task.model, p)  # on the device, where the model is by now
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(task.model, p))
        total = self.epochs * self.steps
        self.schedule = cosine_schedule(self.optimizer, int(p.warmup_ratio * total), total)
        self.class_weight = class_weights(task.labels["train"], p).to(accelerator.device)
        self.at = TrainingState(micro_batch_size=p.micro_batch_size or p.batch_size)
        self.tracker = NoTracker()
        self.saved_at = time.monotonic()

    @property
    def steps_done(self) -> int:
        """Optimizer steps so far, of all epochs."""
        return (self.at.epoch - 1) * self.steps + self.at.step

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or early_stopping has run out of patience."""
        patience = self.p.early_stopping if self.held_back else 0
        return self.at.epoch > self.last_epoch or 0 < patience <= self.at.epoch - 1 - self.at.best_epoch

    @property
    def held_back(self) -> int:
        """How many products the epochs are scored on; the refit has none."""
        return len(self.task.labels["valid"])


def train(training: Training, stop_at: float | None) -> None:
    """Trains to the end, the weights of the last epoch, or of the best, kept in the fold's checkpoint/.

    `stop_at`: seconds since 1970. Raises TimeOverError when it is over before the first step, and StoppedInTime, the
    state saved, when it is over later.
    """
    p, at, title = training.p, training.at, training.fold.title
    if stop_at and time.time() > stop_at:
        raise TimeOverError(f"max_hours {p.max_hours} were over before the first step of {title}; raise it")
    shown, total = training.accelerator.is_main_process, training.last_epoch * training.steps
    with progress_bar(total=total, initial=training.steps_done, desc=title, shown=shown) as bar:
        while not training.ended:
            began = time.perf_counter()
            training.model.train()
            for batch, rows in remaining_batches(training):
                loss = step(training, batch, rows)
                training.tracker.log({"loss": loss, "rate": training.schedule.get_last_lr()[-1]})
                at.loss_sum += loss
                at.step += 1
                bar.update()
                save_in_time(training, stop_at)
            end_epoch(training, time.perf_counter() - began)
            said = {name: f"{at.log[-1][name]:.3f}" for name in ("train_loss", p.metric) if name in at.log[-1]}
            said |= {"memory": memory_used()}
            bar.set_postfix(said)
            if bar.disable and shown:
                print(f"{title}, epoch {at.log[-1]['epoch']} of {training.epochs}: ", end="")
                print(*(f"{name} {value}" for name, value in said.items()), sep=", ", flush=True)


def remaining_batches(training: Training) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """What is left of the epoch: this process's share of each step's products, and the rows of all of them.

    The order depends on seed, fold and epoch alone, so an interrupted epoch goes on without reading what is done.
    """
    task, p, at = training.task, training.p, training.at
    world, rank = training.accelerator.num_processes, training.accelerator.process_index
    generator = torch.Generator().manual_seed((p.seed * 1009 + p.seed_offset) * 1009 + at.epoch)
    order = torch.randperm(len(task.ids), generator=generator)
    if (lengths := getattr(task.train, "lengths", None)) is not None:
        order = bucketed(order, lengths, p.batch_size, generator)
    batches = order.split(p.batch_size)[at.step :]
    # All processes take each step: one without a row takes the first, which weighs nothing in its loss.
    shares = [rows[rank::world].tolist() or rows[:1].tolist() for rows in batches]
    if isinstance(task.train, PhotoDataset):
        task.train.epoch = at.epoch
    yield from zip(make_loader(task.train, p, batch_sampler=shares), batches, strict=True)


def bucketed(order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """The order with texts of like length side by side, so that batches hold little padding: sorted within stretches of
    50 batches, and the batches shuffled again."""
    stretches = [rows[lengths[rows].argsort(stable=True)] for rows in order.split(50 * batch_size)]
    batches = torch.cat(stretches).split(batch_size)
    whole = len(batches) - 1  # the last batch may be smaller and stays the last
    return torch.cat([*(batches[i] for i in torch.randperm(whole, generator=generator)), batches[-1]])


# A step --------------------------------------------------------------------------------------------------------------


def step(training: Training, batch: dict[str, Tensor], rows: Tensor) -> float:
    """One optimizer step on the products of a batch, in micro batches; returns their mean main loss."""
    at, accelerator = training.at, training.accelerator
    loss = None
    while loss is None:
        try:
            loss = backward(training, batch, len(rows))
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or at.micro_batch_size == 1:
                raise
            halve_micro_batch(training)
    if not math.isfinite(loss):
        raise GoodsError(
            f"the loss of {training.fold.title} became {loss} at step {at.step + 1} of epoch {at.epoch} (ids "
            f"{', '.join(training.task.ids[rows][:8])} ...); lower the learning rates, or try mixed_precision fp32 or "
            "bf16. The last saved state is kept"
        )
    norm = accelerator.clip_grad_norm_(training.model.parameters(), training.p.max_grad_norm)
    at.norm_sum += float(norm) if math.isfinite(norm) else 0.0  # an fp16 step that overflowed is left out
    training.optimizer.step()
    training.schedule.step()
    training.optimizer.zero_grad()
    training.averages.update(training.task.model, training.steps_done + 1)
    return loss


def backward(training: Training, batch: dict[str, Tensor], count: int) -> float:
    """Gradients of the mean loss over `count` products, of which `batch` is this process's share.

    A process of a higher rank than there are products has another's, which weighs nothing.
    """
    accelerator, smoothing = training.accelerator, training.p.label_smoothing
    weight = training.class_weight * (accelerator.process_index < count)
    total = torch.zeros((), device=accelerator.device)
    size, n = training.at.micro_batch_size, len(batch["label"])
    for start in range(0, n, size):
        part = {k: v[start : start + size].to(accelerator.device, non_blocking=True) for k, v in batch.items()}
        labels = part.pop("label")
        last = start + size >= n  # processes exchange gradients once per step
        with nullcontext() if last else accelerator.no_sync(training.model):
            losses = output_losses(training.model(**part), labels, weight, smoothing, count)
            accelerator.backward(sum(losses.values()) * accelerator.num_processes)  # which DDP averages
        total += main_of(losses).detach()
    return accelerator.reduce(total, reduction="sum").item()


def halve_micro_batch(training: Training) -> None:
    """After memory ran out: half as many products at once, as many per step as before."""
    at, p = training.at, training.p
    if training.accelerator.num_processes > 1:
        raise GoodsError(f"out of memory with {at.micro_batch_size} products at once; lower micro_batch_size")
    training.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    at.micro_batch_size = math.ceil(min(at.micro_batch_size, p.batch_size) / 2)
    print(f"out of memory: going on with {at.micro_batch_size} products at once, {p.batch_size} per step as before",
          flush=True)  # fmt: skip


# An epoch's end ------------------------------------------------------------------------------------------------------


def end_epoch(training: Training, seconds: float) -> None:
    """Scores the epoch on the validation part, logs it, keeps its weights when they are to be kept."""
    at, task, accelerator = training.at, training.task, training.accelerator
    training.averages.end_epoch(task.model, at.epoch, training.epochs)
    with swapped(task.model, training.averages.kept()):
        scores = score_epoch(training) if training.held_back else {}
        chosen = at.best_epoch if scores and training.p.keep == "best" else training.last_epoch
        if accelerator.is_main_process and at.epoch == chosen:
            save_trained(task.model, training.fold.kept_weights)
    at.log.append({
        "epoch": at.epoch, "epochs": training.epochs, "train_loss": at.loss_sum / training.steps, **scores,
        "learning_rate": training.schedule.get_last_lr()[0], "gradient_norm": round(at.norm_sum / training.steps, 4),
        "seconds": round(seconds, 2),
    })  # fmt: skip
    training.tracker.log(at.log[-1])
    if accelerator.is_main_process:
        write_text(training.fold.live_log, "".join(json.dumps(line) + "\n" for line in at.log))
    accelerator.wait_for_everyone()
    at.epoch, at.step, at.loss_sum, at.norm_sum = at.epoch + 1, 0, 0.0, 0.0


def score_epoch(training: Training) -> dict[str, float]:
    """valid_loss, macro_f1, accuracy and the metric of the model on the rows held back; notes the best epoch."""
    at, task, p, accelerator = training.at, training.task, training.p, training.accelerator
    logits = predict(task.model, task.valid, p, accelerator)
    scores = score(task.labels["valid"], main_of(logits))
    if (worth := METRICS[p.metric].sign * scores[p.metric]) > at.best_score:
        at.best_epoch, at.best_score = at.epoch, worth
    if accelerator.is_main_process and p.keep == "best":
        write_choices(training.fold.epoch(at.epoch), {f"epoch {at.epoch}": logits})
    shown = {name: scores[name] for name in ("macro_f1", "accuracy", p.metric)}
    return {"valid_loss": scores["log_loss"]} | shown


# Stopping and going on -----------------------------------------------------------------------------------------------


def save_in_time(training: Training, stop_at: float | None) -> None:
    """Saves the state when it is due; raises StoppedInTime when the time is over."""
    p, at = training.p, training.at
    over = bool(stop_at and time.time() > stop_at)
    due = over or time.monotonic() - training.saved_at > 60 * p.checkpoint_minutes
    over, due = agreed(training.accelerator, over), agreed(training.accelerator, due)
    if due:
        save_training(training)
        training.saved_at = time.monotonic()
    if over:
        print(f"max_hours {p.max_hours} are over: the state of {training.fold.title} is saved at step {at.step} of "
              f"epoch {at.epoch}; the same command goes on from there", flush=True)  # fmt: skip
        training.tracker.finish()
        raise StoppedInTime


def agreed(accelerator: Accelerator, answer: bool) -> bool:
    """Whether any process says yes."""
    if accelerator.num_processes == 1:
        return answer
    return bool(accelerator.reduce(torch.tensor(int(answer), device=accelerator.device)).item())


def save_training(training: Training) -> None:
    """Saves all that a training needs to go on: weights with the heads' buffers, copies, optimizer, random numbers."""
    accelerator = training.accelerator
    tensors, scalars = optimizer_tensors(training.optimizer)
    tensors |= {f"model.{name}": t for name, t in trained_state(training.task.model).items()}
    tensors |= training.averages.tensors()
    states = gather_object([random_state()])
    tensors |= {f"random.{i}.{name}": t for i, state in enumerate(states) for name, t in state.items()}
    facts = {
        "rows": training.task.rows,
        "progress": asdict(training.at),
        "schedule": training.schedule.state_dict(),
        "scalars": scalars,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
    }
    if accelerator.is_main_process:
        save_state(training.fold, tensors, facts)
    accelerator.wait_for_everyone()


def restore_training(training: Training, saved: State) -> None:
    """Goes on from what save_training saved. Raises OtherRunError when it is of another model."""
    tensors, facts = saved
    accelerator, own = training.accelerator, trained_state(training.task.model)
    theirs = parts_of(tensors, "model.")
    if set(theirs) != set(own):
        other = listing(sorted(set(theirs) ^ set(own)), 3)
        raise OtherRunError(f"the state in {training.fold.checkpoint} is of another model (they differ in {other}): go "
                            f"on with the parameters in run.json, or remove that folder, and {training.fold.title} "
                            "alone begins anew")  # fmt: skip
    for name, tensor in own.items():
        tensor.data.copy_(theirs[name])
    training.averages.restore(tensors)
    training.schedule.load_state_dict(facts["schedule"])
    restore_optimizer(training.optimizer, {**tensors, **facts["scalars"]}, facts["schedule"]["_last_lr"])
    if accelerator.scaler and facts["scaler"]:
        accelerator.scaler.load_state_dict(facts["scaler"])
    set_random_state(parts_of(tensors, f"random.{accelerator.process_index}."))
    at = training.at = TrainingState(**facts["progress"])
    at.micro_batch_size = min(at.micro_batch_size, training.p.micro_batch_size or training.p.batch_size)


def memory_used() -> str:
    """What this process holds at most so far: of the GPU's memory where there is one, else of the machine's."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU"
    peak = peak_memory()
    return f"{peak / 2**30:.1f} GiB" if peak else "unknown"


def training_facts(training: Training) -> dict[str, Any]:
    """What metrics.json says of a training beside its scores."""
    at = training.at
    found = {"epoch": training.last_epoch, "rows": len(training.task.ids)}
    if training.held_back:
        found |= {"best_epoch": at.best_epoch}
        found |= {"epoch": at.best_epoch} if training.p.keep == "best" else {}
    return found
