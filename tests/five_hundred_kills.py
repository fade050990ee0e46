"""Five hundred SIGKILLs at random moments of a small run: whatever was cut off, the submission has the same bytes.

    .venv/bin/python tests/five_hundred_kills.py [--kills 500] [--minutes 60] [--seed 0]

On demand, since it takes ten minutes or more of a core. The whole road of a tuned dual encoder and of a linear run:
photos and tables read, embeddings cached, two folds trained with a state saved after every step, the ensemble, the
submission, and the prediction of a table by the finished run. Each kill falls into a step chosen at random, at a
random moment of it; the same call is then given again, until it gets to its end, and what it leaves is compared with
what a run that nobody killed has left.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers.models.siglip.modeling_siglip  # noqa: F401 - not in each of the forks

from goods.classify import prepare_job
from goods.data.sample import make_competition, read_texts
from goods.data.sample_model import make_model
from goods.ensemble.submission import write_submission
from goods.members import ensemble_run, fit, open_run, predict_test, read_goods
from goods.models.embeddings import embed_products
from goods.params import Params, load_params
from goods.predictor import load_predictor

STEPS = ("read", "embed", "train", "ensemble", "submission", "predict")
COMPARED = ("submission.csv", "submission_probs.csv", "predictions.parquet")
SMALL = {"n_folds": 2, "image_size": 32, "hidden_dim": 32, "batch_size": 16, "eval_batch_size": 32, "num_workers": 0,
         "checkpoint_minutes": 0.0, "wandb_mode": "disabled"}  # fmt: skip
ROADS = {
    "tuned": {"tune": "last", "last_blocks": 1, "warm_start_epochs": 2, "num_epochs": 2, "learning_rate": 1e-3},
    "linear": {"kind": "linear"},
}


def road(p: Params, mark: Callable[[str], None]) -> None:
    """All steps of a run; `mark` is told when each begins."""
    mark("read")
    open_run(p)
    goods = read_goods(p)
    mark("embed")
    if p.kind == "dual":
        embed_products(p, goods.train)
    mark("train")
    fit(p, goods)
    mark("ensemble")
    predict_test(p, goods)
    ensemble_run(p, goods)
    mark("submission")
    write_submission(p, goods)
    mark("predict")
    predictor = load_predictor(p.run_dir)
    out = p.run_dir / "predictions.parquet"
    prepare_job(predictor, p.test_csv, out, p.test_images_dir if predictor.reads_photos else "none").run()


class Call:
    """A fork of this process that goes the road, and says which step it is at."""

    def __init__(self, p: Params) -> None:
        self.pipe, say = os.pipe()
        self.process = os.fork()
        if not self.process:
            os.close(self.pipe)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                road(p, lambda step: os.write(say, bytes([STEPS.index(step)])))
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        os.close(say)

    def at(self, step: str) -> bool:
        """Waits until the step begins; False when the road ended before."""
        while said := os.read(self.pipe, 1):
            if said[0] >= STEPS.index(step):
                return True
        return False

    def kill(self) -> bool:
        """Kills it; whether it was still at work. Raises AssertionError where it had failed by itself."""
        os.kill(self.process, signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Waits for its end; its exit status, negative for a signal."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self.pipe)
        assert status in (0, -signal.SIGKILL), f"a call ended with status {status}"
        return status


def timed(p: Params) -> dict[str, float]:
    """Goes the road once, without kills; seconds of each step."""
    call, began = Call(p), {}
    for step in STEPS:
        assert call.at(step)
        began[step] = time.monotonic()
    assert call.end() == 0
    ends = [*list(began.values())[1:], time.monotonic()]
    return {step: end - start for (step, start), end in zip(began.items(), ends, strict=True)}


def killed_on(p: Params, seconds: dict[str, float], draw: random.Random, most: int) -> Counter[str]:
    """Gives the same call until it gets to its end, killing `most` of them or fewer; the kills by step.

    What is done is done: no kill falls into a step before that of the last one, which the next call passes in no time.
    """
    kills: Counter[str] = Counter()
    first = 0
    while sum(kills.values()) < most:
        call, step = Call(p), draw.choice(STEPS[first : first + 3])
        if not call.at(step):
            assert call.end() == 0
            return kills
        time.sleep(draw.uniform(0, seconds[step]))
        if not call.kill():
            return kills
        kills[step] += 1
        first = STEPS.index(step)
    assert Call(p).end() == 0
    return kills


def contents(p: Params) -> dict[str, bytes]:
    """The files that are compared."""
    return {name: (p.run_dir / name).read_bytes() for name in COMPARED}


def main() -> None:
    """Kills calls of both roads in turn until there were enough, or the time is over."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given, began = parser.parse_args(), time.monotonic()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # threads of this process would be missing in its forks
    draw, done, runs = random.Random(given.seed), Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        data, model = Path(folder, "data"), Path(folder, "siglip-tiny")
        make_competition(data, seed=7, train_per_class=6, test_per_class=2)
        make_model(model, read_texts(data), seed=7)
        places = {"data_dir": str(data), "model_name": str(model)}
        whole = {name: load_params(**SMALL, **places, **recipe, run=name, outputs_dir=f"{folder}/whole")
                 for name, recipe in ROADS.items()}  # fmt: skip
        seconds = {name: timed(p) for name, p in whole.items()}
        for name, times in seconds.items():
            print(f"{name}: " + ", ".join(f"{step} {took:.2f} s" for step, took in times.items()), flush=True)
        while sum(done.values()) < given.kills and time.monotonic() - began < 60 * given.minutes:
            name = draw.choice([*whole])
            p = whole[name].model_copy(update={"outputs_dir": f"{folder}/killed"})
            kills = killed_on(p, seconds[name], draw, min(12, given.kills - sum(done.values())))
            for file, data_of in contents(p).items():
                assert data_of == contents(whole[name])[file], f"{name}: {file} has other bytes after {dict(kills)}"
            shutil.rmtree(p.outputs_dir)
            done, runs = done + kills, runs + 1
            print(f"{sum(done.values())} kills, {runs} runs to the same bytes: {dict(done)}", flush=True)


if __name__ == "__main__":
    main()
