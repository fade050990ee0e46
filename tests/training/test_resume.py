"""A stopped training goes on to the same bytes, and several processes train as one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import Stopped, fit, fit_in_stretches, stopped_after
from kaggle_server import on_demand
from safetensors.torch import load_file

from goods.data.tables import read_goods
from goods.errors import GoodsError
from goods.files import ROOT
from goods.members import refit
from goods.params import Params
from goods.predictions import read_choices
from goods.run import Run
from goods.training import loop
from goods.training.fold import read_logs

SMALL = {"image_size": 64, "hidden_dim": 32, "batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "n_folds": 3,
         "num_epochs": 2, "learning_rate": 1e-3, "max_text_length": 64, "fold": 1}  # fmt: skip


def logits(oof: pd.DataFrame) -> np.ndarray:
    return oof.filter(regex=r"_\d+$").to_numpy()


RECIPE = {"tune": "full", "ema_decay": 0.9, "augment_flip": 0.5, "augment_crop": 0.3, "augment_colour": 0.2,
          "augment_blur": 0.3, "augment_jpeg": 0.3, "modality_dropout": 0.2, "warm_start_epochs": 2,
          "soup": True}  # fmt: skip


@pytest.mark.slow
def test_stopping_in_time_again_and_again_changes_nothing(make):
    whole = make(run="whole", **RECIPE)
    fit(whole)
    stopped = make(run="stopped", **RECIPE, max_hours=0.3 / 3600)
    assert fit_in_stretches(stopped) > 1
    for name in ("oof.parquet", "weights.safetensors"):
        files = [p.run_dir / "fold1" / name for p in (whole, stopped)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert not (stopped.run_dir / "fold1" / "checkpoint").exists()


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["last", "lora", "full"])
def test_a_state_holds_the_heads_scales_and_the_start_so_nothing_is_embedded_again(make, monkeypatch, tune):
    recipe = {"tune": tune, "wise_ft": True, "warm_start_epochs": 2, "last_blocks": 1, "num_epochs": 2}
    whole, p = make(run="whole", **recipe), make(run="stopped", **recipe, checkpoint_minutes=0.0)
    fit(whole)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stopped_after(7, patched)  # in the second epoch
        fit(p)
    assert Run.of(p).fold(1).resumable
    shutil.rmtree(p.run_dir.parent / "cache" / "embeddings")
    monkeypatch.setattr("goods.members.dual.embed_products", None)
    fit(p)
    for name in ("oof", "weights"):
        files = [getattr(Run.of(q).fold(1), name).read_bytes() for q in (whole, p)]
        assert files[0] == files[1], name
    assert not (p.run_dir.parent / "cache" / "embeddings").exists()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["fold.choose_weights", "due.write_predictions", "fold.prediction_table"])
def test_killed_between_the_last_epoch_and_the_last_file_it_ends_with_the_same_bytes(make, monkeypatch, part):
    recipe = {"tune": "last", "last_blocks": 1, "wise_ft": True, "warm_start_epochs": 2, "num_epochs": 2}
    whole, p = make(run="whole", **recipe), make(run="stopped", **recipe, checkpoint_minutes=0.0)
    fit(whole)

    def stop(*_, **__):
        raise Stopped

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(f"goods.training.{part}", stop)
        fit(p)
    fold = Run.of(p).fold(1)
    assert fold.trained == (part == "fold.prediction_table")  # which is for the tracker alone
    fit(p)
    for name in ("oof", "weights"):
        assert getattr(fold, name).read_bytes() == getattr(Run.of(whole).fold(1), name).read_bytes(), name
    logs = [read_logs(Run.of(q)).drop(columns="seconds") for q in (whole, p)]
    pd.testing.assert_frame_equal(*logs)
    assert not fold.checkpoint.exists()


def test_time_that_is_over_before_the_first_step_is_an_error(make):
    with pytest.raises(GoodsError, match="over before the first step"):
        fit(make(max_hours=1e-9))


@pytest.mark.slow
def test_another_runs_folder_is_gone_on_from_and_only_read(make):
    done = make(run="done")
    fit(done)
    before = {f: f.read_bytes() for f in done.run_dir.rglob("*") if f.is_file()}
    p = make(run="next", resume_from=str(done.run_dir))
    began = time.perf_counter()
    fit(p)
    assert time.perf_counter() - began < 3  # loaded
    assert (p.run_dir / "fold1" / "oof.parquet").read_bytes() == (done.run_dir / "fold1" / "oof.parquet").read_bytes()
    assert before == {f: f.read_bytes() for f in done.run_dir.rglob("*") if f.is_file()}
    with pytest.raises(GoodsError, match="other parameters: dropout"):
        fit(make(run="other", dropout=0.5, resume_from=str(done.run_dir)))
    with pytest.raises(GoodsError, match="not the folder of a run"):
        fit(make(run="none", resume_from=str(done.run_dir / "fold1")))


@pytest.fixture
def command(tmp_path):
    """The command line that trains fold 1 as p says, in another run."""
    config = tmp_path / "config.yaml"

    def command(p: Params, run: str) -> list[str]:
        settings = p.model_dump(mode="json", exclude_defaults=True, exclude={"fold"}) | {"run": run}
        config.write_text(yaml.safe_dump(settings))
        return ["goods_utils.py", "fit", "--config", str(config), "--fold", str(p.fold)]

    return command


# To import all takes longer than to train, so it is done once: each training is a fork of this process, which is given
# its command line, and says its number and how it ended.
FORKS = """
import os, sys
import goods_utils, transformers.models.siglip.modeling_siglip, transformers.optimization
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        goods_utils.main(line.split())
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_bytes(make, command, tmp_path):
    p = make(run="whole", **RECIPE | {"soup": False, "keep": "best"}, num_epochs=6, checkpoint_minutes=0.0)
    fit(p)
    step_seconds = read_logs(Run.of(p))["seconds"].mean() * p.batch_size / len(pd.read_csv(p.train_csv))
    script, *arguments = command(p, "killed")
    fold, said, rng = Run(p.run_dir.parent / "killed").fold(1), tmp_path / "said.txt", random.Random(0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said.open("w"), "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], cwd=ROOT, **pipes) as forks:
        for _ in range(5):
            before = changed(fold.state)
            print(*arguments, file=forks.stdin, flush=True)
            training = int(forks.stdout.readline())
            wait_for_another(fold.state, before)
            time.sleep(rng.uniform(0, 2 * step_seconds))  # in steps: a fast machine must not finish before the fifth
            os.kill(training, signal.SIGKILL)
            assert int(forks.stdout.readline()) == -signal.SIGKILL and not fold.trained, said.read_text()
    last = subprocess.Popen(
        [sys.executable, script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = last.communicate(timeout=120)[0].decode()
    assert last.returncode == 0, output
    assert "epoch 6 of 6: train_loss" in output and "\r" not in output  # a line an epoch, no bars
    whole = Run.of(p).fold(1)
    assert whole.oof.read_bytes() == fold.oof.read_bytes()
    assert whole.choices.read_bytes() == fold.choices.read_bytes()


def changed(state: Path) -> int:
    """When a state was saved; 0 where none is."""
    return state.stat().st_mtime_ns if state.is_file() else 0


def wait_for_another(state: Path, before: int) -> None:
    """Waits until a later state than that of `before` is there."""
    end = time.monotonic() + 120
    while changed(state) == before and time.monotonic() < end:
        time.sleep(0.02)
    assert changed(state) != before


def launch_two(arguments: list[str]) -> subprocess.CompletedProcess:
    """Runs the command line in two processes that train together."""
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    started = [sys.executable, "-m", *launch.split(), "--dynamo_backend", "no", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(started, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def trained_by_two(arguments: list[str]) -> str:
    """What the two say of a training that goes well."""
    done = launch_two(arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one(make, command):
    batch_size = 83  # of 84 rows: the last batch is one row for two processes
    p = make(run="one", tune="full", dropout=0.0, batch_size=batch_size, keep="best", ema_decay=0.9)
    one = fit(p)
    trained_by_two(command(p, "two"))
    run = Run(p.run_dir.parent / "two")
    refit(p, read_goods(p))
    trained_by_two([*command(p, "two"), "--refit"])
    for name, tensor in load_file(Run.of(p).refit.weights).items():
        torch.testing.assert_close(load_file(run.refit.weights)[name], tensor, atol=1e-3, rtol=0)  # fp16 on its way
    two = pd.read_parquet(run.fold(1).oof)
    assert two["id"].tolist() == one["id"].tolist()
    np.testing.assert_allclose(logits(two), logits(one), atol=1e-4)
    losses = [read_logs(each)["train_loss"] for each in (Run.of(p), run)]
    np.testing.assert_allclose(*losses, atol=1e-4)
    kept = [read_choices(each.fold(1).choices) for each in (Run.of(p), run)]
    assert list(kept[0]) == list(kept[1]) == ["epoch 1", "epoch 2"]
    np.testing.assert_allclose(kept[1]["epoch 2"]["fused"], kept[0]["epoch 2"]["fused"], atol=1e-4)


@on_demand  # test_trained_folds.py asks each process by itself, always
@pytest.mark.slow
def test_of_a_fold_that_another_training_holds_both_processes_say_so(make, command):
    p = make(run="held", tune="full", dropout=0.0)
    with Run.of(p).fold(1).held():
        done = launch_two(command(p, "held"))
    assert done.returncode and done.stderr.count("goods_utils.py: fold 1 of run 'held' is in the hands of") == 2
    assert "rank1" not in done.stderr  # a traceback's name for it


def test_a_process_without_a_product_of_its_own_adds_nothing():
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), process_index=1, num_processes=2, backward=torch.Tensor.backward,
        reduce=lambda total, reduction: total, no_sync=nullcontext,
    )  # fmt: skip
    layer = torch.nn.Linear(5, 3)
    training = SimpleNamespace(
        accelerator=accelerator, model=lambda x: {"fused": layer(x)}, at=SimpleNamespace(micro_batch_size=4),
        p=SimpleNamespace(label_smoothing=0.1), class_weight=torch.ones(3),
    )  # fmt: skip
    batch = {"x": torch.randn(1, 5), "label": torch.tensor([2])}
    assert loop.backward(training, batch, count=1) == 0 and not layer.weight.grad.any()
    assert loop.backward(training, batch, count=2) > 0 and layer.weight.grad.any()


@on_demand  # what it does in one process, and what two do from the start, is tested always
@pytest.mark.slow
def test_two_processes_go_on_from_another_run(make, command, monkeypatch):
    recipe = {"tune": "full", "dropout": 0.0}
    whole = make(run="whole", **recipe)
    expected = fit(whole)
    p = make(run="earlier", **recipe, checkpoint_minutes=0.0)
    fit(p.model_copy(update={"fold": 0}))
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stopped_after(7, patched)
        fit(p)
    said = trained_by_two(command(p.model_copy(update={"resume_from": str(p.run_dir)}), "later"))
    later = Run(p.run_dir.parent / "later")
    assert "taken over from" in said and "fold 1 goes on after step 1 of epoch 2" in said
    assert later.trained() == [0, 1] and later.record()["folds"].keys() == {"0", "1"}
    assert later.fold(0).oof.read_bytes() == Run.of(p).fold(0).oof.read_bytes()
    np.testing.assert_allclose(logits(pd.read_parquet(later.fold(1).oof)), logits(expected), atol=1e-4)
