"""The training of one fold, which can be stopped at any moment and goes on to the same numbers."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

try:
    import resource
except ImportError:  # Windows
    resource = None

from goods.cost.plan import plan_run
from goods.data.datasets import PhotoDataset, TokensDataset
from goods.data.folds import read_folds
from goods.data.tables import Goods
from goods.errors import GoodsError
from goods.files import atomic_path, write_json
from goods.metrics import score
from goods.models.tuning import load_trained, save_trained
from goods.params import Params
from goods.predictions import main_of, prediction_table, write_predictions
from goods.progress import progress_bar
from goods.run import deadline
from goods.training.checkpoint import adopt_fold, load_state, random_state, remove_state, save_state, set_random_state
from goods.training.inference import make_accelerator, make_loader, predict
from goods.training.optim import (
    class_weights,
    cosine_schedule,
    make_optimizer,
    output_losses,
    set_weights,
    swapped,
    trainable_parameters,
)
from goods.training.task import Task, make_task
from goods.training.tracking import NoTracker, make_tracker

try:
    import resource
except ImportError:  # Windows
    resource = None


def fit_fold(p: Params, goods: Goods) -> dict[str, Any]:
    """Trains fold p.fold and predicts its validation part; returns its metrics.

    Writes model.safetensors, log.jsonl, oof.parquet and, last, metrics.json to the run's fold<k>. A fold that has its
    metrics.json is finished: it is loaded, not trained again. An unfinished one goes on from its checkpoint. Exits with
    status 0 when p.max_hours are over, the state saved.
    """
    if p.kind not in ("dual", "text"):
        where = "ensemble.ipynb" if p.kind == "blend" else "baseline.ipynb, all folds at once"
        raise GoodsError(f"kind {p.kind} is trained by notebooks/{where}")
    folder = p.run_dir / f"fold{p.fold}"
    folds = read_folds(goods, p)
    adopt_fold(p)
    if (folder / "metrics.json").is_file():
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    began = time.perf_counter()
    accelerator = make_accelerator(p)
    task = make_task(p, goods, folds)
    set_seed(p.seed + p.fold)  # only now: whether embeddings came from the cache must not matter
    trainer = Trainer(task, p, accelerator, folder)
    if accelerator.is_main_process:
        trainer.tracker = make_tracker(p, trainer.at.tracked_as)
    trainer.run()
    load_trained(task.model, folder / "model.safetensors")  # what is predicted with is what is kept
    alpha = choose_alpha(trainer, folder / "model.safetensors") if p.wise_ft else None
    logits = predict(task.model, task.valid, p, accelerator)

    metrics: dict[str, Any] = {name: score(task.labels["valid"], values) for name, values in logits.items()}
    metrics |= {"fold": p.fold, "best_epoch": trainer.at.best_epoch, "rows": len(task.ids)}
    metrics |= {"wise_ft_alpha": alpha} if p.wise_ft else {}
    metrics |= {"soup_epochs": trainer.at.soup_epochs} if p.soup else {}
    metrics["resources"] = resources(p, trainer) | {"seconds": round(time.perf_counter() - began, 1)}
    if accelerator.is_main_process:
        write_predictions(folder / "oof.parquet", folds[folds["fold"] == p.fold], logits)
        (folder / "test.parquet").unlink(missing_ok=True)  # it would be from weights that are no more
        write_json(folder / "metrics.json", metrics)
        remove_state(folder)
        table = prediction_table(pd.read_parquet(folder / "oof.parquet"), goods)
        trainer.tracker.finish(
            metrics=metrics, oof=str(folder / "oof.parquet"), classes=goods.classes, errors=worst(table, goods.classes)
        )
    accelerator.wait_for_everyone()
    return metrics


def worst(table: pd.DataFrame, classes: list[str], top: int = 24) -> list[dict[str, Any]]:
    """The wrong predictions it was surest of: id, image, title, given, predicted (names), probability."""
    errors = table[table["label"] != table["prediction"]].nlargest(top, "probability")
    names = {"given": [classes[k] for k in errors["label"]], "predicted": [classes[k] for k in errors["prediction"]]}
    return errors.assign(**names)[["id", "image", "title", *names, "probability"]].to_dict("records")


@dataclass
class TrainingState:
    """Where a training stands; saved with its state."""

    epoch: int = 1
    step: int = 0  # steps done in this epoch
    loss_sum: float = 0.0
    norm_sum: float = 0.0  # of the gradients, before they are clipped
    best_epoch: int = 0
    best_score: float = -1.0
    soup_epochs: int = 0  # that the kept weights are the mean of
    micro_batch_size: int = 1
    tracked_as: str = field(default_factory=lambda: secrets.token_hex(4))  # wandb's id
    log: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """The training of one fold, which can be stopped after any step and goes on exactly from its saved state."""

    def __init__(self, task: Task, p: Params, accelerator: Accelerator, folder: Path) -> None:
        self.task, self.p, self.accelerator, self.folder = task, p, accelerator, folder
        self.rows = hashlib.sha256("|".join([*task.ids, *map(str, task.labels["train"])]).encode()).hexdigest()[:16]
        self.epochs = 1 if p.debug else p.num_epochs
        self.steps = math.ceil(len(task.ids) / p.batch_size)
        self.stop_at, self.saved_at = deadline(p), time.monotonic()
        self.start = (
            {name: t.detach().clone() for name, t in trainable_parameters(task.model).items()} if p.wise_ft else {}
        )
        self.model = accelerator.prepare_model(task.model)
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(task.model, p))
        total = self.epochs * self.steps
        self.schedule = cosine_schedule(self.optimizer, int(p.warmup_ratio * total), total)
        self.class_weight = class_weights(task.labels["train"], p).to(accelerator.device)
        self.ema = (
            {name: t.detach().clone() for name, t in trainable_parameters(task.model).items()} if p.ema_decay else {}
        )
        self.soup: dict[str, Tensor] = {}
        self.at = TrainingState(micro_batch_size=p.micro_batch_size or p.batch_size)
        self.tracker = NoTracker()
        self._restore()

    def run(self) -> None:
        """Trains to the end, keeping the weights of the best epoch in model.safetensors.

        Exits with status 0, the state saved, when the time is over.
        """
        if self.stop_at and time.time() > self.stop_at:
            raise GoodsError(
                f"max_hours {self.p.max_hours} were over before the first step of fold {self.p.fold}; raise it"
            )
        at = self.at
        shown = self.accelerator.is_main_process
        done = (at.epoch - 1) * self.steps + at.step
        with progress_bar(total=self.epochs * self.steps, initial=done, desc=f"fold {self.p.fold}", shown=shown) as bar:
            while at.epoch <= self.epochs and not self._out_of_patience():
                began = time.perf_counter()
                self.model.train()
                for batch, rows in self._batches():
                    loss = self._step(batch, rows)
                    self.tracker.log({"loss": loss, "rate": self.schedule.get_last_lr()[-1]})
                    at.loss_sum += loss
                    at.step += 1
                    bar.update()
                    self._save_in_time()
                self._end_epoch(time.perf_counter() - began)
                said = {name: f"{at.log[-1][name]:.3f}" for name in ("train_loss", "macro_f1")} | {
                    "memory": memory_used()
                }
                bar.set_postfix(said)
                if bar.disable and shown:
                    print(f"fold {self.p.fold}, epoch {at.log[-1]['epoch']} of {self.epochs}: ", end="")
                    print(*(f"{name} {value}" for name, value in said.items()), sep=", ", flush=True)

    def _out_of_patience(self) -> bool:
        return 0 < self.p.early_stopping <= self.at.epoch - 1 - self.at.best_epoch

    def _batches(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """What is left of the epoch: this process's share of each step's products, and the rows of all of them.

        The order depends on seed, fold and epoch alone, so an interrupted epoch goes on without reading what is done.
        """
        p, world, rank = self.p, self.accelerator.num_processes, self.accelerator.process_index
        generator = torch.Generator().manual_seed((p.seed * 1009 + p.fold) * 1009 + self.at.epoch)
        order = torch.randperm(len(self.task.ids), generator=generator)
        if isinstance(self.task.train, TokensDataset):
            order = bucketed(order, self.task.train.lengths, p.batch_size, generator)
        batches = order.split(p.batch_size)[self.at.step :]
        shares = [rows[rank::world].tolist() or rows[:1].tolist() for rows in batches]  # all processes take each step
        if isinstance(self.task.train, PhotoDataset):
            self.task.train.epoch = self.at.epoch
        yield from zip(make_loader(self.task.train, p, batch_sampler=shares), batches, strict=True)

    def _step(self, batch: dict[str, Tensor], rows: Tensor) -> float:
        """One optimizer step on the products of a batch, in micro batches; returns their mean fused loss."""
        loss = None
        while loss is None:
            try:
                loss = self._backward(batch, len(rows))
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or self.at.micro_batch_size == 1:
                    raise
                self._halve_micro_batch()
        if not math.isfinite(loss):
            raise GoodsError(
                f"the loss of fold {self.p.fold} became {loss} at step {self.at.step + 1} of epoch {self.at.epoch} "
                f"(ids {', '.join(self.task.ids[rows][:8])} ...); lower the learning rates, or try mixed_precision "
                "fp32 or bf16. The last saved state is kept"
            )
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.p.max_grad_norm)
        self.at.norm_sum += float(norm) if math.isfinite(norm) else 0.0  # an fp16 step that overflowed is left out
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        for name, tensor in trainable_parameters(self.task.model).items() if self.ema else ():
            self.ema[name].lerp_(tensor.detach(), 1 - self._ema_decay())
        return loss

    def _backward(self, batch: dict[str, Tensor], count: int) -> float:
        """Gradients of the mean loss over `count` products, of which `batch` is this process's share."""
        accelerator, total = self.accelerator, torch.zeros((), device=self.accelerator.device)
        size, n = self.at.micro_batch_size, len(batch["label"])
        for start in range(0, n, size):
            part = {k: v[start : start + size].to(accelerator.device, non_blocking=True) for k, v in batch.items()}
            labels = part.pop("label")
            last = start + size >= n  # processes exchange gradients once a step
            with nullcontext() if last else accelerator.no_sync(self.model):
                losses = output_losses(self.model(**part), labels, self.class_weight, self.p.label_smoothing, count)
                accelerator.backward(sum(losses.values()) * accelerator.num_processes)  # which DDP averages
            total += main_of(losses).detach()
        return accelerator.reduce(total, reduction="sum").item()

    def _halve_micro_batch(self) -> None:
        if self.accelerator.num_processes > 1:
            raise GoodsError(f"out of memory with {self.at.micro_batch_size} products at once; lower micro_batch_size")
        self.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.at.micro_batch_size = math.ceil(min(self.at.micro_batch_size, self.p.batch_size) / 2)
        print(f"out of memory: going on with {self.at.micro_batch_size} products at once, "
              f"{self.p.batch_size} a step as before", flush=True)  # fmt: skip

    def _ema_decay(self) -> float:
        steps = (self.at.epoch - 1) * self.steps + self.at.step + 1
        return min(self.p.ema_decay, (1 + steps) / (10 + steps))  # early on, the start is forgotten sooner

    def _end_epoch(self, seconds: float) -> None:
        """Scores the epoch on the validation part, logs it, keeps its weights when they are the best so far."""
        at, accelerator = self.at, self.accelerator
        scores: dict[str, float] = {}
        for epochs, weights in self._candidates():
            with swapped(self.task.model, weights):
                logits = predict(self.task.model, self.task.valid, self.p, accelerator)
                found = score(self.task.labels["valid"], main_of(logits))
                if found["macro_f1"] > at.best_score:
                    at.best_epoch, at.best_score, at.soup_epochs = at.epoch, found["macro_f1"], epochs
                    if self.p.soup:
                        kept = trainable_parameters(self.task.model).items()
                        self.soup = {name: t.detach().to("cpu", copy=True) for name, t in kept}
                    if accelerator.is_main_process:
                        save_trained(self.task.model, self.folder / "model.safetensors")
            scores = scores or found
        at.log.append({"epoch": at.epoch, "epochs": self.epochs, "train_loss": at.loss_sum / self.steps,
                       "valid_loss": scores["log_loss"], "macro_f1": scores["macro_f1"],
                       "accuracy": scores["accuracy"], "learning_rate": self.schedule.get_last_lr()[0],
                       "gradient_norm": round(at.norm_sum / self.steps, 4),
                       "seconds": round(seconds, 2)})  # fmt: skip
        self.tracker.log(at.log[-1])
        if accelerator.is_main_process:
            with atomic_path(self.folder / "log.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in at.log), encoding="utf-8")
        accelerator.wait_for_everyone()
        at.epoch, at.step, at.loss_sum, at.norm_sum = at.epoch + 1, 0, 0.0, 0.0

    def _candidates(self) -> list[tuple[int, dict[str, Tensor]]]:
        """Weights to score at an epoch's end, and of how many epochs: its own, and with p.soup the mean with the kept.

        Averages often beat the best epoch (Wortsman et al., arXiv 2203.05482); this one is kept only where it does.
        """
        own, kept = self.ema or trainable_parameters(self.task.model), self.at.soup_epochs
        mixed = {name: t.to(own[name].device).lerp(own[name].detach(), 1 / (kept + 1)) for name, t in self.soup.items()}
        return [(1, self.ema)] + ([(kept + 1, mixed)] if mixed else [])

    def _save_in_time(self) -> None:
        over = bool(self.stop_at and time.time() > self.stop_at)
        due = over or time.monotonic() - self.saved_at > 60 * self.p.checkpoint_minutes
        over, due = self._agreed(over), self._agreed(due)
        if due:
            self._save()
            self.saved_at = time.monotonic()
        if over:
            where = f"step {self.at.step} of epoch {self.at.epoch}"
            print(f"max_hours {self.p.max_hours} are over: the state of fold {self.p.fold} is saved at {where}; "
                  "the same command goes on from there", flush=True)  # fmt: skip
            self.tracker.finish()
            raise SystemExit(0)

    def _agreed(self, answer: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return answer
        return bool(self.accelerator.reduce(torch.tensor(int(answer), device=self.accelerator.device)).item())

    def _save(self) -> None:
        optimizer = self.optimizer.state_dict()
        tensors = {f"model.{name}": t for name, t in trainable_parameters(self.task.model).items()}
        tensors |= {f"ema.{name}": t for name, t in self.ema.items()}
        tensors |= {f"soup.{name}": t for name, t in self.soup.items()}
        scalars: dict[str, Any] = {}
        for i, values in optimizer["state"].items():
            for name, value in values.items():
                (tensors if isinstance(value, Tensor) else scalars)[f"optimizer.{i}.{name}"] = value
        states = gather_object([random_state()])
        tensors |= {f"random.{i}.{name}": t for i, state in enumerate(states) for name, t in state.items()}
        facts = {
            "rows": self.rows,
            "progress": asdict(self.at),
            "schedule": self.schedule.state_dict(),
            "scalars": scalars,
        }
        facts["scaler"] = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        if self.accelerator.is_main_process:
            save_state(self.folder, tensors, facts)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        saved = load_state(self.folder)
        if saved is None:
            return
        tensors, facts = saved
        model = trainable_parameters(self.task.model)
        if {n.removeprefix("model.") for n in tensors if n.startswith("model.")} != set(model):
            raise GoodsError(f"the checkpoint in {self.folder} belongs to other parameters; delete {self.folder}")
        if facts.get("rows", self.rows) != self.rows:
            raise GoodsError(f"the training rows of fold {self.p.fold} are others than those of its checkpoint "
                             f"(are the pseudo-labels new?); delete {self.folder}")  # fmt: skip
        for kind, own in (("model", model), ("ema", self.ema)):
            for name, tensor in own.items():
                tensor.data.copy_(tensors[f"{kind}.{name}"])
        self.soup = {n.removeprefix("soup."): t for n, t in tensors.items() if n.startswith("soup.")}
        state: dict[int, dict[str, Any]] = {}
        for key, value in [*tensors.items(), *facts["scalars"].items()]:
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                index, _, name = rest.partition(".")
                state.setdefault(int(index), {})[name] = value
        self.schedule.load_state_dict(facts["schedule"])
        groups = self.optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, facts["schedule"]["_last_lr"], strict=True):
            group["lr"] = rate
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.accelerator.scaler and facts["scaler"]:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        rank = f"random.{self.accelerator.process_index}."
        set_random_state({n.removeprefix(rank): t for n, t in tensors.items() if n.startswith(rank)})
        self.at = TrainingState(**facts["progress"])
        self.at.micro_batch_size = min(self.at.micro_batch_size, self.p.micro_batch_size or self.p.batch_size)
        print(f"fold {self.p.fold} goes on after step {self.at.step} of epoch {self.at.epoch}", flush=True)


def memory_used() -> str:
    """What this process holds at most so far: of the GPU's memory where there is one, else of the machine's."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU"
    if resource is None:  # Windows
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GiB"


def bucketed(order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """The order with texts of like length side by side, so that batches hold little padding: sorted within stretches of
    50 batches, and the batches shuffled again."""
    stretches = [rows[lengths[rows].argsort(stable=True)] for rows in order.split(50 * batch_size)]
    batches = torch.cat(stretches).split(batch_size)
    whole = len(batches) - 1  # the last batch may be smaller and stays the last
    return torch.cat([*(batches[i] for i in torch.randperm(whole, generator=generator)), batches[-1]])


def resources(p: Params, trainer: Trainer) -> dict[str, Any]:
    """What the training took; on a GPU, the measured peak of its memory beside the planned one, GiB."""
    found: dict[str, Any] = {"micro_batch_size": min(trainer.at.micro_batch_size, p.batch_size)}
    if torch.cuda.is_available() and p.kind == "dual":  # which is what is planned
        measured = torch.cuda.max_memory_allocated() / 2**30
        planned = plan_run(p.model_copy(update={"micro_batch_size": found["micro_batch_size"]})).allocated_gib
        found |= {"peak_gib": round(measured, 2), "planned_gib": round(planned, 2)}
        found["plan_error"] = round(planned / measured - 1, 3)
    return found


def read_logs(run_dir: Path) -> pd.DataFrame:
    """The training logs of a run's folds: fold, epoch, train_loss, valid_loss, macro_f1 ..."""
    files = sorted(run_dir.glob("fold*/log.jsonl"))
    logs = [pd.read_json(f, lines=True).assign(fold=int(f.parent.name.removeprefix("fold"))) for f in files]
    return pd.concat(logs, ignore_index=True) if logs else pd.DataFrame()


WISE_FT_ALPHAS = (0.25, 0.5, 0.75)  # besides 1, the tuned weights as they are


def choose_alpha(trainer: Trainer, path: Path) -> float:
    """WiSE-FT (arXiv 2109.01903): alpha times the tuned plus 1 - alpha times the start's weights, best on validation.

    The best weights are left in the model and in `path`.
    """
    task, p, accelerator = trainer.task, trainer.p, trainer.accelerator
    tuned = {name: t.detach().clone() for name, t in trainable_parameters(task.model).items()}
    best_alpha, best = 1.0, trainer.at.best_score
    for alpha in WISE_FT_ALPHAS:
        mixed = {name: trainer.start[name].to(t.device).lerp(t, alpha) for name, t in tuned.items()}
        with swapped(task.model, mixed):
            logits = main_of(predict(task.model, task.valid, p, accelerator))
        if (macro_f1 := score(task.labels["valid"], logits)["macro_f1"]) > best:
            best_alpha, best = alpha, macro_f1
    if best_alpha < 1:
        set_weights(task.model, {n: trainer.start[n].to(t.device).lerp(t, best_alpha) for n, t in tuned.items()})
        if accelerator.is_main_process:
            save_trained(task.model, path)
        accelerator.wait_for_everyone()
        load_trained(task.model, path)
    return best_alpha
