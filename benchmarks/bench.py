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
from typing import Any

import nbformat
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from goods.data.folds import read_folds
from goods.data.photos import load_photo
from goods.data.sample import LOOKS, make_competition, read_texts
from goods.data.sample_model import make_model
from goods.data.sample_photos import COLOURS, draw_photo
from goods.data.tables import Goods, read_goods
from goods.files import ROOT, write_json, write_text
from goods.members import open_run, predict
from goods.params import Params, load_params
from goods.run import Run, environment
from goods.training.fold import read_logs
from goods_utils import fit_fold

HERE = Path(__file__).resolve().parent


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


# Input ----------------------------------------------------------------------------------------------------------------


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


# Training and prediction ----------------------------------------------------------------------------------------------


def bench_modes(where: dict[str, Any]) -> list[dict[str, Any]]:
    """Products a second in training and evaluation, by tune mode, against full; and K folds' test prediction."""
    speed, predicted = {}, []
    for tune in ("full", "head", "last", "lora"):
        p = load_params("params/demo.yaml", **where, run=tune, tune=tune, last_blocks=1, num_epochs=2, n_folds=5)
        open_run(p)
        goods = read_goods(p)
        read_folds(goods, p)
        for k in p.chosen_folds:
            fit_fold(p.model_copy(update={"fold": k}), goods)
        logs = read_logs(Run.of(p))
        one, five = (predict_seconds(p, goods, folds) for folds in ([0], list(p.chosen_folds)))
        speed["training", tune] = len(goods.train) * 0.8 / logs["seconds"].min()
        speed["evaluation", tune] = len(goods.test) / one
        predicted.append(row(f"test prediction of 5 folds, tune {tune}", five, "s", "one fold", five / one))
    return [
        row(f"{what}, tune {tune}", value, "products/s", "full", value / speed[what, "full"])
        for (what, tune), value in sorted(speed.items(), reverse=True)
    ] + predicted


def predict_seconds(p: Params, goods: Goods, folds: list[int]) -> float:
    """Seconds to predict the test set with these folds, embeddings and all."""

    run = Run.of(p)

    def call() -> None:
        for cached in (p.run_dir.parent / "cache" / "embeddings").rglob("*.safetensors"):
            cached.unlink()
        predict(p, [run.fold(k) for k in folds], goods.test)

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


# All ------------------------------------------------------------------------------------------------------------------


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
