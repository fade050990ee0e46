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

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import goods_sample
import goods_utils as gu
from goods_params import ROOT, environment, write_json, write_text

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
        small = goods_sample.draw_photo(random.Random(i), *look(i), size=(min(side, 400),) * 2)
        path = folder / f"{side}-{i}.jpg"
        small.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=88)
        files.append(str(path))
    return files


def look(i: int) -> tuple[str, str]:
    """A look and a colour for draw_photo."""
    looks = sorted(goods_sample.LOOKS)
    return looks[i % len(looks)], sorted(goods_sample.COLOURS)[i % len(goods_sample.COLOURS)]


def bench_input(folder: Path) -> list[dict[str, Any]]:
    """Photos a second on one core: load_photo against opening, converting and resizing with Pillow."""
    rows = []
    for side in (100, 384, 1500):
        files = photos(folder, side)
        for size in (224, 384):
            ours, plain = [gu.load_photo(f, size) for f in files], [plain_load(f, size) for f in files]
            apart = np.mean(
                [np.abs(a.permute(1, 2, 0).numpy().astype(int) - b).mean() for a, b in zip(ours, plain, strict=True)]
            )
            fast = best_seconds(lambda files=files, size=size: [gu.load_photo(f, size) for f in files])
            slow = best_seconds(lambda files=files, size=size: [plain_load(f, size) for f in files])
            name = f"photos of {side} px read at {size} (apart by {apart:.2f})"
            rows.append(row(name, len(files) / fast, "photos/s", "plain Pillow", slow / fast))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Training and prediction
# ---------------------------------------------------------------------------------------------------------------------


def bench_modes(where: dict[str, Any]) -> list[dict[str, Any]]:
    """Products a second in training, by tune mode, against head; and K folds' test prediction against one's."""
    rows, speed = [], {}
    for tune in ("head", "last", "lora", "full"):
        p = gu.load_params("params/demo.yaml", **where, run=tune, tune=tune, last_blocks=1, num_epochs=2, n_folds=5)
        gu.open_run(p)
        goods = gu.read_goods(p)
        gu.read_folds(goods, p)
        for k in p.folds:
            gu.fit_fold(p.model_copy(update={"fold": k}), goods)
        logs = gu.read_logs(p.run_dir)
        speed[tune] = len(goods.train) * 0.8 / logs.groupby("fold")["seconds"].min().min()
        rows.append(row(f"training, tune {tune}", speed[tune], "products/s", "full", None))
        one = predict_seconds(p, goods, [0])
        five = predict_seconds(p, goods, list(p.folds))
        rows.append(row(f"test prediction of 5 folds, tune {tune}", five, "s", "one fold", five / one))
    for line in rows:
        if line["what"].startswith("training"):
            line["ratio"] = round(line["value"] / speed["full"], 2)
    return rows


def predict_seconds(p: gu.Params, goods: gu.Goods, folds: list[int]) -> float:
    """Seconds to predict the test set with these folds, embeddings and all."""

    def call() -> None:
        for k in p.folds:
            for file in (p.run_dir / f"fold{k}").glob("test.parquet"):
                file.unlink()
        for cached in (p.run_dir.parent / "cache" / "embeddings").rglob("*.safetensors"):
            cached.unlink()
        gu.predict_test(p, goods, folds)

    return best_seconds(call, runs=3)


def bench_overhead() -> list[dict[str, Any]]:
    """Seconds that each notebook pays before its first line: imports, and papermill with its kernel."""
    run = {"cwd": ROOT, "check": True, "capture_output": True}
    bare = best_seconds(lambda: subprocess.run([sys.executable, "-c", "pass"], **run), 3)
    torch_only = best_seconds(lambda: subprocess.run([sys.executable, "-c", "import torch, transformers"], **run), 3)
    ours = best_seconds(lambda: subprocess.run([sys.executable, "-c", "import goods_utils"], **run), 3)
    params = best_seconds(lambda: subprocess.run([sys.executable, "-c", "import goods_params"], **run), 3)
    return [
        row("import goods_params (pipeline.py)", params, "s", "bare Python", params / bare),
        row("import goods_utils", ours, "s", "torch, transformers", ours / torch_only),
    ]


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
        goods_sample.make_competition(data, seed=0, train_per_class=24, test_per_class=24)
        goods_sample.make_model(model, goods_sample.read_texts(data), seed=0)
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
