"""Tracking with wandb that can never stop, delay or wake a training: wandb lives in a process of its own.

The training puts lines into a queue, a thread writes them to that process's pipe. Whatever happens there (no network, a
client that raises or hangs, a full disk) costs at most WAIT_SECONDS at the end, and is said only where something of the
run is lost. Where wandb has neither a key nor a setting, it isn't asked at all.
"""

from __future__ import annotations

import functools
import json
import netrc
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from goods.files import ROOT, write_text
from goods.params import OUTPUTS, Params
from goods.run import Run

WAIT_SECONDS = 4.0  # at the end of a fold, for wandb to write what is left
PROBE_SECONDS = 1.0  # for the answer to: is there a network?
LINGER_SECONDS = 600  # an upload may go on so long after the training
MAX_POINTS = 10_000  # of the curves that wandb draws
SETTINGS = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY")  # of the environment
HOW_TO_TRACK = "wandb is off; `wandb login` or wandb_mode=offline turns it on"
LOST = "lost.txt"  # in the folder of the tracking: what failed after the training had stopped waiting
PLACES = frozenset(
    "outputs_dir data_dir train_csv test_csv train_images_dir test_images_dir label_fixes resume_from".split()
)


class NoTracker:
    """Tracks nothing."""

    def log(self, values: dict[str, Any]) -> None:
        """Takes metrics of a step or an epoch."""

    def finish(self, **last: Any) -> None:
        """Takes what is known at the end; nothing when the training stops to go on later."""


class Tracker(NoTracker):
    """One wandb run, fed line by line: {"log": ...} while training, then {"finish": ...}."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"WANDB_SILENT": "true", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "goods.training.tracking", json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder, env=environment,
            text=True, encoding="utf-8", start_new_session=True,  # an interrupt of the training is not wandb's
        )  # fmt: skip
        self.lost = folder / LOST
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.writer.start()

    def log(self, values: dict[str, Any]) -> None:
        """Takes metrics of a step or an epoch; returns at once."""
        self.waiting.put(json.dumps({"log": values}))

    def finish(self, **last: Any) -> None:
        """Hands over what is known at the end and waits at most WAIT_SECONDS; what is lost is said once.

        A process that has taken everything finishes by itself; if it fails, the run's next tracker says so.
        """
        if last:
            self.waiting.put(json.dumps({"finish": last}))
        self.waiting.put(None)
        try:
            status = self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            if self.writer.is_alive():
                print(f"wandb has not taken all of this fold after {WAIT_SECONDS:.0f} s; the run goes on without it, "
                      "and wandb_mode=disabled spares the wait", flush=True)  # fmt: skip
            return
        if status:
            self.lost.unlink(missing_ok=True)  # it is said now
            said = (self.process.stderr.read().strip().splitlines() or [f"status {status}"])[-1]
            print(f"wandb failed, the run goes on without it: {said[:200]}", flush=True)

    def _write(self) -> None:
        try:
            while (line := self.waiting.get()) is not None:
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()
            self.process.stdin.close()
        except (OSError, ValueError):  # it is gone; finish() says so
            pass


def make_tracker(p: Params, run_id: str) -> NoTracker:
    """The tracker of fold p.fold: a wandb run in the group of p.run, or one that tracks nothing.

    The same run_id again goes on with that wandb run.
    """
    mode = pick_mode(p.wandb_mode, named=p.wandb_project != Params.model_fields["wandb_project"].default)
    if mode == "disabled":
        if p.wandb_mode == "auto" and "WANDB_MODE" not in os.environ:
            say_once(HOW_TO_TRACK)
        return NoTracker()
    config = p.model_dump(mode="json", exclude=PLACES)  # where things lie on a machine is nobody's business
    run = Run.of(p)
    folder, name = run.tracking, f"{p.run}-{run.fold(p.fold).folder.name}"
    settings = {"project": p.wandb_project, "group": p.run, "name": name, "id": run_id,
                "resume": "allow", "mode": mode, "config": config, "dir": str(p.run_dir)}  # fmt: skip
    try:
        if (folder / LOST).is_file():
            print(f"wandb failed after an earlier fold: {(folder / LOST).read_text(encoding='utf-8')}", flush=True)
            (folder / LOST).unlink()
        return Tracker(settings, folder)
    except OSError as error:
        print(f"wandb failed, the run goes on without it: {error}", flush=True)
        return NoTracker()


@functools.cache
def say_once(sentence: str) -> None:
    """Prints a sentence, the first time in a process."""
    print(sentence, flush=True)


def pick_mode(wanted: str, key_follows: bool = False, named: bool = False) -> str:
    """online, offline or disabled. auto: as WANDB_MODE says, else disabled where wandb has neither key nor settings.

    Else online with a key and a network, and offline without. With `key_follows` the key is taken for granted; `named`
    says that the run names a project, which is a setting, too.
    """
    wanted = os.environ.get("WANDB_MODE", wanted) if wanted == "auto" else wanted
    if wanted not in ("auto", "online"):
        return wanted if wanted in ("offline", "disabled") else "offline"
    if wanted == "auto" and not (key_follows or named or has_settings()):
        return "disabled"
    return "online" if (key_follows or has_key()) and _has_network() else "offline"


def has_settings() -> bool:
    """Whether wandb has been set up here: in the environment, by `wandb login`, or in its file of settings."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    return any(os.environ.get(name) for name in SETTINGS) or has_key() or (folder / "settings").is_file()


def _server() -> tuple[str, int]:
    """Host and port of wandb's server."""
    base = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    return base.hostname or "api.wandb.ai", base.port or (80 if base.scheme == "http" else 443)


def has_key() -> bool:
    """Whether wandb finds a key: WANDB_API_KEY, or that of its server in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(_server()[0]) is not None
    except (OSError, ValueError, netrc.NetrcParseError):  # ValueError: it isn't UTF-8
        return False


def _has_network() -> bool:
    """Whether wandb's server takes a connection."""

    def connect() -> bool:
        socket.create_connection(_server(), PROBE_SECONDS).close()
        return True

    return bool(answer_within(PROBE_SECONDS, connect))  # looking up a name has no time limit of its own


def answer_within(seconds: float, ask: Callable[[], Any]) -> Any:
    """What `ask` returns, or None when it raises or takes longer; it is then left behind in a thread of its own."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(ask())
        except Exception:
            answers.put(None)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return None


def _serve(settings: dict[str, Any]) -> None:
    import wandb

    run = wandb.init(**settings, settings=wandb.Settings(
        console="off", disable_git=True, save_code=False, x_disable_meta=True, x_disable_machine_info=True,
        x_disable_stats=True))  # fmt: skip
    for line in sys.stdin:
        message = json.loads(line)
        if "log" in message:
            run.log(message["log"])
        else:
            run.summary.update(message["finish"].pop("metrics"))
            if message["finish"]:  # the refit predicts nothing whose label is known
                _show(wandb, run, **message["finish"])
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(LINGER_SECONDS)
    run.finish()


def _give_up(*_: Any) -> None:
    raise TimeoutError(f"not done {LINGER_SECONDS} s after the training")


def _show(wandb: Any, run: Any, oof: str, classes: list[str], errors: list[dict]) -> None:
    """Curves, the table of the worst errors with pictures, and the predictions as an artifact."""
    import numpy as np
    import pandas as pd
    from scipy.special import softmax

    table = pd.read_parquet(oof)
    some = table.sample(min(len(table), MAX_POINTS), random_state=0)
    main = next(name for name in OUTPUTS if f"{name}_0" in some)
    logits, labels = some.filter(regex=rf"^{main}_\d+$").to_numpy(), some["label"].to_numpy()
    probabilities = softmax(logits, axis=1)
    run.log({
        "confusion": wandb.plot.confusion_matrix(
            y_true=labels.tolist(), preds=probabilities.argmax(1).tolist(), class_names=classes),
        "roc": wandb.plot.roc_curve(labels, probabilities, labels=classes, classes_to_plot=np.unique(labels).tolist()),
        "pr": wandb.plot.pr_curve(labels, probabilities, labels=classes, classes_to_plot=np.unique(labels).tolist()),
    })  # fmt: skip
    columns = ["id", "title", "given", "predicted", "probability"]
    photos = [  # beside the table: in an offline run's table pictures are but the word "Image"
        wandb.Image(e["image"], caption=f"{e['id']}: {e['given']} taken for {e['predicted']}")
        for e in errors
        if e["image"]
    ]
    run.log({
        "worst_errors": wandb.Table(columns=columns, data=[[e[c] for c in columns] for e in errors]),
        "worst_photos": photos,
    })  # fmt: skip
    artifact = wandb.Artifact(f"{run.name}-predictions", type="predictions")
    artifact.add_file(oof)
    run.log_artifact(artifact)


if __name__ == "__main__":
    try:
        _serve(json.loads(sys.argv[1]))
    except Exception as error:
        write_text(Path(LOST), f"{type(error).__name__}: {error}"[:200])
        raise
