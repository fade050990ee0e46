"""What costs what, as ratios inside one run: `make bench` prints a table and saves it as results.json and results.md.

Everything runs on one core and on the embedded sample's tiny model, so that a laptop can repeat it: the ratios carry
over, the absolute figures don't.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModel, PretrainedConfig, SiglipConfig

from goods.cost.footprint import measure_footprint
from goods.cost.plan import find_gpu
from goods.data.datasets import TensorsDataset
from goods.data.folds import read_folds
from goods.data.photos import load_photo
from goods.data.sample import LOOKS, make_competition, read_texts
from goods.data.sample_model import make_model
from goods.data.sample_photos import COLOURS, draw_photo
from goods.data.tables import Goods, read_goods
from goods.errors import GoodsError
from goods.files import ROOT, write_json, write_text
from goods.models.backbone import DualEncoder, Processor
from goods.models.device import pick_precision
from goods.models.heads import GoodsClassifier, GoodsHeads
from goods.models.tuning import checkpoint_activations, halve_frozen, set_trainable
from goods.params import Params, load_params
from goods.run import environment, open_run
from goods.training.inference import make_accelerator, predict, predict_test
from goods.training.loop import Trainer, fit_fold, read_logs
from goods.training.task import Task

HERE = Path(__file__).resolve().parent
CAP_GIB = 15  # of GPU memory, as a T4 has it
SO400M = SiglipConfig(
    text_config={"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
    vision_config={"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
                   "image_size": 384, "patch_size": 14},
)  # fmt: skip


def best_seconds(call: Callable[[], Any], runs: int = 5) -> float:
    """The least of several runs: what the machine can do when nobody disturbs it."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def row(what: str, value: float, unit: str, against: str = "", ratio: float | None = None) -> dict[str, Any]:
    """A line of the table: a figure, and how it stands to another one of the same run."""
    line = {
        "what": what,
        "value": round(value, 2),
        "unit": unit,
        "against": against,
        "ratio": ratio and round(ratio, 2),
    }
    tqdm.write(f"{what:<46} {line['value']:>10} {unit:<12} {f'{ratio:.2f} x {against}' if ratio else ''}")
    return line


# ---------------------------------------------------------------------------------------------------------------------
# Input
# ---------------------------------------------------------------------------------------------------------------------


def plain_load(path: str, size: int) -> np.ndarray:
    """What a notebook without this project does."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def photos(folder: Path, side: int, count: int = 8) -> list[str]:
    """Photos of the sample's glyphs, `side` pixels wide, as JPEG of quality 88."""
    files = []
    for i in range(count):
        small = draw_photo(random.Random(i), *look(i), size=(min(side, 400),) * 2)
        path = folder / f"{side}-{i}.jpg"
        small.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=88)
        files.append(str(path))
    return files


def look(i: int) -> tuple[str, str]:
    """A look and a colour for draw_photo."""
    looks = sorted(LOOKS)
    return looks[i % len(looks)], sorted(COLOURS)[i % len(COLOURS)]


def bench_input(folder: Path) -> list[dict[str, Any]]:
    """Photos a second on one core: load_photo against opening, converting and resizing with Pillow."""
    rows = []
    for side in (100, 384, 1500):
        files = photos(folder, side)
        for size in (224, 384):
            ours, plain = [load_photo(f, size) for f in files], [plain_load(f, size) for f in files]
            apart = np.mean(
                [np.abs(a.permute(1, 2, 0).numpy().astype(int) - b).mean() for a, b in zip(ours, plain, strict=True)]
            )
            fast = best_seconds(lambda files=files, size=size: [load_photo(f, size) for f in files])
            slow = best_seconds(lambda files=files, size=size: [plain_load(f, size) for f in files])
            name = f"photos of {side} px read at {size} (apart by {apart:.2f})"
            rows.append(row(name, len(files) / fast, "photos/s", "plain Pillow", slow / fast))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Training and prediction
# ---------------------------------------------------------------------------------------------------------------------


def bench_modes(where: dict[str, Any]) -> list[dict[str, Any]]:
    """Products a second in training and evaluation, by tune mode, against full; and K folds' test prediction."""
    speed, predicted = {}, []
    for tune in ("full", "head", "last", "lora"):
        p = load_params("params/demo.yaml", **where, run=tune, tune=tune, last_blocks=1, num_epochs=2, n_folds=5)
        open_run(p)
        goods = read_goods(p)
        read_folds(goods, p)
        for k in p.folds:
            fit_fold(p.model_copy(update={"fold": k}), goods)
        logs = read_logs(p.run_dir)
        one, five = (predict_seconds(p, goods, folds) for folds in ([0], list(p.folds)))
        speed["training", tune] = len(goods.train) * 0.8 / logs["seconds"].min()
        speed["evaluation", tune] = len(goods.test) / one
        predicted.append(row(f"test prediction of 5 folds, tune {tune}", five, "s", "one fold", five / one))
    return [
        row(f"{what}, tune {tune}", value, "products/s", "full", value / speed[what, "full"])
        for (what, tune), value in sorted(speed.items(), reverse=True)
    ] + predicted


def predict_seconds(p: Params, goods: Goods, folds: list[int]) -> float:
    """Seconds to predict the test set with these folds, embeddings and all."""

    def call() -> None:
        for k in p.folds:
            for file in (p.run_dir / f"fold{k}").glob("test.parquet"):
                file.unlink()
        for cached in (p.run_dir.parent / "cache" / "embeddings").rglob("*.safetensors"):
            cached.unlink()
        predict_test(p, goods, folds)

    return best_seconds(call, runs=3)


def bench_overhead() -> list[dict[str, Any]]:
    """Seconds that each notebook pays before its first line: imports, and papermill with its kernel."""
    run = {"cwd": ROOT, "check": True, "capture_output": True}
    bare = best_seconds(lambda: subprocess.run([sys.executable, "-c", "pass"], **run), 3)
    torch_only = best_seconds(lambda: subprocess.run([sys.executable, "-c", "import torch, transformers"], **run), 3)
    ours = best_seconds(lambda: subprocess.run([sys.executable, "-c", "import goods_utils"], **run), 3)
    params = best_seconds(lambda: subprocess.run([sys.executable, "-c", "import goods.params"], **run), 3)
    with tempfile.TemporaryDirectory() as folder:
        cell = nbformat.v4.new_code_cell("import goods_utils")
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), f"{folder}/one.ipynb")
        command = [
            sys.executable,
            "-m",
            "papermill",
            f"{folder}/one.ipynb",
            f"{folder}/done.ipynb",
            "--log-level",
            "ERROR",
        ]
        papermill = best_seconds(lambda: subprocess.run(command, **run), 3)
    return [
        row("import goods.params (pipeline.py)", params, "s", "bare Python", params / bare),
        row("import goods_utils", ours, "s", "torch, transformers", ours / torch_only),
        row("papermill with a notebook that imports it", papermill, "s", "the import", papermill / ours),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The real model on a GPU
# ---------------------------------------------------------------------------------------------------------------------


def bench_cuda(folder: Path, config: PretrainedConfig = SO400M, steps: int = 12) -> list[dict[str, Any]]:
    """SigLIP so400m of random weights in the project's own loop, by tune mode, within a T4's memory.

    Products a second, model FLOPs utilisation (of the card's dense peak, work done twice by gradient checkpointing not
    counted), and the peak of memory against the planned one.
    """
    torch.cuda.set_per_process_memory_fraction(
        min(1, CAP_GIB * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    )
    card, rows = find_gpu(), []
    for tune in ("head", "last", "lora", "full"):
        file = "full" if tune == "last" else tune
        p = load_params(f"params/siglip-so400m-{file}.yaml", outputs_dir=str(folder), run=f"cuda-{tune}", tune=tune,
                           num_epochs=1, warm_start_epochs=0, checkpoint_minutes=1e6)  # fmt: skip
        torch.cuda.reset_peak_memory_stats()
        try:
            speed, micro = random_training(p, config, steps)
        except (torch.OutOfMemoryError, GoodsError) as error:
            rows.append(row(f"{tune}: {type(error).__name__} within {CAP_GIB} GiB", float("nan"), ""))
            continue
        measured, precision = torch.cuda.max_memory_allocated() / 2**30, pick_precision(p.mixed_precision)
        footprint = measure_footprint(config, p.model_copy(update={"micro_batch_size": micro}), precision)
        planned = footprint.allocated(p) / 2**30
        kind = "forward" if tune == "head" else "training"
        once = {name: n for name, n in footprint.flops.items() if name != "training, recomputed"}
        done = sum(n for name, n in once.items() if name.startswith(kind)) * speed
        rows.append(row(f"so400m {kind}, {tune}, {precision}", speed, "products/s"))
        if card.tflops_16:
            share = done / (card.tflops_16 * 1e12)
            rows.append(row(f"so400m model FLOPs, {tune}", done / 1e12, "TFLOP/s", f"the {card.name}'s peak", share))
        rows.append(row(f"so400m peak memory, {tune}", measured, "GiB", "the plan's", measured / planned))
    return rows


def random_training(p: Params, config: PretrainedConfig, steps: int) -> tuple[float, int]:
    """Products a second of the steps after the first epoch, and the micro batch size; with tune head, of embedding."""
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config)
    set_trainable(backbone, p)
    if p.gradient_checkpointing:
        checkpoint_activations(backbone)
    encoder = DualEncoder(backbone, Processor(SimpleNamespace(pad_token_id=0), (0.5,) * 3, (0.5,) * 3), p)
    model = GoodsClassifier(encoder, GoodsHeads(config.vision_config.hidden_size, config.text_config.hidden_size, p))
    halve_frozen(model, pick_precision(p.mixed_precision))
    batch = p.eval_batch_size if p.tune == "head" else p.batch_size
    rows, size = steps * batch, encoder.image_size
    columns = {
        "pixels": torch.randint(256, (rows, 3, size, size), dtype=torch.uint8),
        "input_ids": torch.randint(2, config.text_config.vocab_size, (rows, p.text_windows, p.max_text_length)),
        "label": torch.arange(rows) % p.num_classes,
    }
    accelerator, data = make_accelerator(p), TensorsDataset(**columns)
    if p.tune == "head":
        predict(model, data, p, accelerator)
        began = time.perf_counter()
        predict(model, data, p, accelerator)
        return rows / (time.perf_counter() - began), p.eval_batch_size
    labels = columns["label"].numpy()
    p = p.model_copy(update={"num_epochs": 2})
    task = Task(model, data, data, np.arange(rows).astype(str), {"train": labels, "valid": labels})
    trainer = Trainer(task, p, accelerator, p.run_dir / "fold0")
    trainer.run()
    return rows / trainer.at.log[-1]["seconds"], min(trainer.at.micro_batch_size, p.batch_size)


# ---------------------------------------------------------------------------------------------------------------------
# All
# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Runs all parts and saves the table."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, model = folder / "sample", folder / "siglip-tiny"
        make_competition(data, seed=0, train_per_class=24, test_per_class=24)
        make_model(model, read_texts(data), seed=0)
        where = {"data_dir": str(data), "model_name": str(model), "outputs_dir": str(folder / "outputs")}
        rows = [*bench_input(folder), *bench_modes(where), *bench_overhead()]
        if torch.cuda.is_available():
            rows += bench_cuda(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows.append(row("peak memory of this process", peak, "GiB"))
    write_json(HERE / "results.json", {"environment": environment(), "rows": rows})
    lines = ["| what | value | unit | ratio |", "|---|---|---|---|"]
    for line in rows:
        ratio = f"{line['ratio']} x {line['against']}" if line["ratio"] else ""
        lines.append(f"| {line['what']} | {line['value']} | {line['unit']} | {ratio} |")
    write_text(HERE / "results.md", "\n".join(lines) + "\n")
    print(json.dumps({"saved": ["benchmarks/results.json", "benchmarks/results.md"]}))


if __name__ == "__main__":
    main()
