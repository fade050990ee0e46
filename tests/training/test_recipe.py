"""What is trained and how: the modes, the recipe's parts, states that go on exactly, several processes."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import fit, fit_in_stretches
from safetensors.torch import load_file

from goods.data.tables import read_goods
from goods.errors import GoodsError
from goods.files import ROOT
from goods.models.backbone import DualEncoder, load_backbone, load_processor
from goods.models.heads import GoodsClassifier, GoodsHeads
from goods.models.tuning import block_rates, set_trainable
from goods.params import Params
from goods.training.checkpoint import CURRENT, load_state, save_state
from goods.training.inference import predict_test
from goods.training.loop import fit_fold, read_logs

SMALL = {"image_size": 64, "hidden_dim": 32, "batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "n_folds": 3,
         "num_epochs": 2, "learning_rate": 1e-3, "max_text_length": 64, "fold": 1}  # fmt: skip


def logits(oof: pd.DataFrame) -> np.ndarray:
    return oof.filter(regex=r"_\d+$").to_numpy()


# What is trained


def trainable(p: Params) -> set[str]:
    backbone = load_backbone(p.model_name)
    set_trainable(backbone, p)
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_full_trains_all_but_the_token_embeddings_and_the_contrastive_scale(make):
    backbone = load_backbone(make().model_name)
    never = {"logit_scale", "logit_bias", "text_model.embeddings.token_embedding.weight"}
    assert trainable(make(tune="full")) == {name for name, _ in backbone.named_parameters()} - never


def test_last_trains_the_end_of_each_tower(make):
    names = trainable(make(tune="last", last_blocks=1))
    assert {name.split(".")[3] for name in names if ".encoder.layers." in name} == {"1"}
    assert any(name.startswith("vision_model.head.") for name in names) and "text_model.head.weight" in names
    assert not any(".embeddings." in name for name in names)


def test_lora_trains_adapters_alone_in_the_blocks_alone(make):
    names = trainable(make(tune="lora", lora_targets=["q_proj", "fc1", "out_proj"]))
    assert len(names) == 2 * 2 * 3 * 2  # towers, blocks, layers, A and B
    assert all("lora_" in name and ".encoder.layers." in name for name in names)


def test_what_is_named_frozen_is_frozen(make):
    names = trainable(make(tune="full", frozen=["vision_model.embeddings", "text_model.encoder.layers.0."]))
    assert not any(name.startswith(("vision_model.embeddings", "text_model.encoder.layers.0.")) for name in names)
    with pytest.raises(GoodsError, match="vision_tower"):
        trainable(make(run="b", tune="full", frozen=["vision_tower"]))


def test_lora_targets_that_match_nothing_are_told_what_there_is(make):
    with pytest.raises(GoodsError, match=r"lora_targets query match no layer .* fc1, fc2, k_proj, out_proj"):
        trainable(make(tune="lora", lora_targets=["query"]))


def test_rates_fall_block_by_block(make):
    p = make(tune="full", learning_rate=1.0, layer_decay=0.5)
    backbone = load_backbone(p.model_name)
    set_trainable(backbone, p)
    rates = block_rates(backbone, p)
    assert rates["vision_model.head.probe"] == rates["text_model.encoder.layers.1.mlp.fc1.weight"] == 1
    assert rates["vision_model.encoder.layers.0.mlp.fc1.weight"] == 0.5
    assert rates["vision_model.embeddings.patch_embedding.weight"] == 0.25


@pytest.mark.parametrize("tune", ["last", "lora"])
def test_only_what_was_trained_is_saved_and_it_predicts_the_same(make, tune):
    p = make(tune=tune, num_epochs=1, last_blocks=1)
    oof, goods = fit(p), read_goods(p)
    whole = sum(t.numel() for t in load_backbone(p.model_name).parameters())
    kept = load_file(p.run_dir / "fold1" / "model.safetensors")
    backbone = {name: t for name, t in kept.items() if name.startswith("encoder.")}
    assert 0 < sum(t.numel() for t in backbone.values()) < 0.6 * whole
    assert {t.dtype for t in backbone.values()} == {torch.float16}
    assert predict_test(p, goods) == [1]
    test = pd.read_parquet(p.run_dir / "fold1" / "test.parquet")
    assert test["id"].tolist() == goods.test["id"].tolist() and np.isfinite(logits(test)).all()
    assert np.abs(logits(oof)).max() > 0


# The recipe


def test_micro_batches_add_up_to_the_batch(make):
    whole = fit(make(run="whole", dropout=0.0))
    parts = fit(make(run="parts", dropout=0.0, micro_batch_size=3, gradient_checkpointing=True))
    np.testing.assert_allclose(logits(parts), logits(whole), atol=1e-4)


def test_out_of_memory_halves_what_is_done_at_once(make, monkeypatch, capsys):
    forward = GoodsClassifier.forward

    def small_gpu(self, pixels, input_ids):
        if self.training and len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, pixels, input_ids)

    monkeypatch.setattr(GoodsClassifier, "forward", small_gpu)
    p = make(dropout=0.0, num_epochs=1)
    small = fit(p)
    assert fit_fold(p, read_goods(p))["resources"]["micro_batch_size"] == 4
    assert "going on with 4 products at once, 16 a step as before" in capsys.readouterr().out
    monkeypatch.undo()
    np.testing.assert_allclose(logits(small), logits(fit(make(run="b", dropout=0.0, num_epochs=1))), atol=1e-4)


def test_early_stopping_stops(make):
    p = make(tune="head", num_epochs=50, early_stopping=2, head_learning_rate=1e-9)
    fit(p)
    assert len(read_logs(p.run_dir)) == 3  # nothing gets better after the first


def test_a_warm_start_begins_where_the_heads_left_off(make):
    cold = make(run="cold", tune="last", num_epochs=1, learning_rate=1e-9, head_learning_rate=1e-9)
    warm = make(
        run="warm", tune="last", num_epochs=1, learning_rate=1e-9, head_learning_rate=1e-9,
        warm_start_epochs=30, warm_start_learning_rate=1e-2,
    )  # fmt: skip
    metrics = [fit_fold(p, read_goods(p))["fused"]["log_loss"] for p in (cold, warm)]
    assert metrics[1] < metrics[0] - 0.1


def test_wise_ft_never_scores_below_the_tuned_weights(make):
    p = make(tune="full", wise_ft=True, warm_start_epochs=20, learning_rate=0.05, num_epochs=1)
    metrics = fit_fold(p, read_goods(p))
    assert metrics["fused"]["macro_f1"] >= read_logs(p.run_dir)["macro_f1"].max() - 1e-9
    assert metrics["wise_ft_alpha"] in (0.25, 0.5, 0.75, 1.0)


def test_the_average_of_weights_differs_from_the_last_ones(make):
    plain, averaged = fit(make(run="a")), fit(make(run="b", ema_decay=0.9))
    assert np.abs(logits(plain) - logits(averaged)).max() > 1e-3


def test_modality_dropout_takes_one_input_of_some_products_in_training_only(make):
    heads = GoodsHeads(6, 4, make(modality_dropout=0.5, num_classes=21))
    image, text = torch.ones(4000, 6), torch.ones(4000, 4)
    dropped = heads.train()._drop_modality(image, text)
    lost = [(part == 0).all(1) for part in dropped]
    assert not (lost[0] & lost[1]).any()
    assert all(0.2 < part.float().mean() < 0.3 for part in lost)
    assert heads.eval()._drop_modality(image, text)[0] is image


def test_mirrored_photos_are_averaged_in(make):
    plain, flipped = fit(make(run="a")), fit(make(run="b", test_time_flip=True))
    assert np.abs(logits(plain)[:, 42:] - logits(flipped)[:, 42:]).max() < 1e-5  # the text's stay
    assert np.abs(logits(plain)[:, :21] - logits(flipped)[:, :21]).max() > 1e-4


def test_a_nan_loss_names_the_step_and_its_products(make):
    p = make(learning_rate=1e30, head_learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(GoodsError, match=r"became (nan|inf) at step \d+ of epoch 1 \(ids \w+"):
        fit(p)


# Long texts


def test_windows_carry_the_title_and_go_through_the_whole_text(make):
    processor = load_processor(make().model_name)
    words = [f"w{i}" for i in range(40)]
    text = "red guitar. " + " ".join(f"guitar strings {w}" for w in words)
    short = "red guitar"
    ids = processor.tokenize([text, short, ""], ["red guitar", "red guitar", ""], 32, windows=3)
    assert ids.shape == (3, 3, 32)
    assert torch.equal(ids[:, 0], processor.tokenize([text, short, ""], ["", "", ""], 32)[:, 0])
    title = processor.tokenize(["red guitar"], [""], 32)[0, 0, :2]
    assert torch.equal(ids[0, 1, :2], title) and torch.equal(ids[0, 2, :2], title)
    assert not torch.equal(ids[0, 1], ids[0, 2])
    assert (ids[1, 1:] == processor.tokenizer.pad_token_id).all()


def test_a_texts_embedding_is_the_mean_over_its_windows(make):
    p = make(text_windows=3, max_text_length=32)
    processor = load_processor(p.model_name)
    encoder = DualEncoder(load_backbone(p.model_name), processor, p).eval()
    text = "red guitar " * 30
    ids = processor.tokenize([text, "red guitar"], ["red guitar"] * 2, 32, windows=3)
    with torch.no_grad():
        both = encoder.embed_texts(ids)
        each = torch.cat([encoder.embed_texts(ids[:1, i : i + 1]) for i in range(3)])
        torch.testing.assert_close(both[0], each.mean(0))
        torch.testing.assert_close(both[1:], encoder.embed_texts(ids[1:, :1]))


# States


@pytest.fixture
def state(tmp_path):
    """Two states, saved one after the other."""
    for step in (1, 2):
        save_state(tmp_path, {"a": torch.full((3,), float(step)), "n": torch.tensor(step)}, {"step": step})
    return tmp_path


def test_the_newest_state_is_loaded(state):
    tensors, facts = load_state(state)
    assert facts == {"step": 2} and tensors["a"].tolist() == [2, 2, 2] and tensors["n"] == 2


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before(state, harm, capsys):
    path = state / CURRENT
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-4], "flip": bytes(data), "empty": b""}[harm])
    assert load_state(state)[1] == {"step": 1}
    assert ("is damaged" in capsys.readouterr().out) == (harm != "gone")


def test_a_state_of_another_version_is_refused(state, monkeypatch):
    monkeypatch.setattr("goods.training.checkpoint.VERSION", 2)
    with pytest.raises(GoodsError, match="another version"):
        load_state(state)


def test_a_full_disk_leaves_the_state_before(state, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("goods.training.checkpoint.save_file", full)
    with pytest.raises(GoodsError, match="the disk is full"):
        save_state(state, {"a": torch.ones(1)}, {"step": 3})
    assert load_state(state)[1] == {"step": 2}
    assert not list(state.rglob("*.tmp"))


RECIPE = {"tune": "full", "ema_decay": 0.9, "augment_flip": 0.5, "augment_crop": 0.3, "augment_colour": 0.2,
          "augment_blur": 0.3, "augment_jpeg": 0.3, "modality_dropout": 0.2, "warm_start_epochs": 2,
          "soup": True}  # fmt: skip


def test_a_soup_of_epochs_is_kept_where_it_is_better(make):
    p = make(run="soup", tune="full", num_epochs=4, learning_rate=3e-3, soup=True)
    fit(p)
    metrics = json.loads((p.run_dir / "fold1" / "metrics.json").read_text())
    alone = read_logs(p.run_dir)["macro_f1"].max()
    assert metrics["soup_epochs"] > 1 and metrics["fused"]["macro_f1"] >= alone


def test_stopping_in_time_again_and_again_changes_nothing(make):
    whole = make(run="whole", **RECIPE)
    fit(whole)
    stopped = make(run="stopped", **RECIPE, max_hours=0.3 / 3600)
    assert fit_in_stretches(stopped) > 1
    for name in ("oof.parquet", "model.safetensors"):
        files = [p.run_dir / "fold1" / name for p in (whole, stopped)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert not (stopped.run_dir / "fold1" / "checkpoint").exists()


def test_time_that_is_over_before_the_first_step_is_an_error(make):
    with pytest.raises(GoodsError, match="over before the first step"):
        fit(make(max_hours=1e-9))


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


def test_killed_five_times_it_ends_with_the_same_bytes(make, command):
    p = make(run="whole", **RECIPE, num_epochs=6, checkpoint_minutes=0.0)
    fit(p)
    step_seconds = read_logs(p.run_dir)["seconds"].mean() * p.batch_size / len(pd.read_csv(p.train_csv))
    started = command(p, "killed")
    folder = p.run_dir.parent / "killed" / "fold1"
    rng, kills = random.Random(0), 0
    while not (folder / "metrics.json").is_file():
        process = subprocess.Popen(
            [sys.executable, *started], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if kills < 5:
            wait_for_a_new_state(folder, process)
            time.sleep(rng.uniform(0, 2 * step_seconds))  # in steps: a fast machine must not finish before the fifth
            process.send_signal(signal.SIGKILL)
            kills += 1
        output, _ = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), output.decode()
    assert kills == 5
    assert "epoch 6 of 6: train_loss" in output.decode() and "\r" not in output.decode()  # a line an epoch, no bars
    whole = p.run_dir / "fold1" / "oof.parquet"
    assert whole.read_bytes() == (folder / "oof.parquet").read_bytes()


def wait_for_a_new_state(folder: Path, process: subprocess.Popen) -> None:
    def written() -> int:
        return (folder / CURRENT).stat().st_mtime_ns if (folder / CURRENT).is_file() else 0

    before = written()
    while written() == before and process.poll() is None:
        time.sleep(0.02)


def test_two_processes_train_as_one(make, command):
    p = make(run="one", tune="full", dropout=0.0)
    one = fit(p)
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    started = [sys.executable, "-m", *launch.split(), "--dynamo_backend", "no", *command(p, "two")]
    done = subprocess.run(started, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    two = pd.read_parquet(p.run_dir.parent / "two" / "fold1" / "oof.parquet")
    assert two["id"].tolist() == one["id"].tolist()
    np.testing.assert_allclose(logits(two), logits(one), atol=1e-4)
