"""The real model on a GPU, within a T4's memory: `python -m benchmarks.cuda` saves cuda.json and cuda.md.

SigLIP so400m of random weights in the project's own loop, by tune mode and precision: products a second, the share of
the card's dense peak (model FLOPs: what gradient checkpointing computes twice is counted once), and the peak of memory
against the planned one. Weights are random because speed and memory don't depend on them.
"""

from __future__ import annotations

import gc
import platform
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, PretrainedConfig, SiglipConfig

from goods.cost.footprint import measure_footprint
from goods.cost.plan import find_gpu
from goods.data.datasets import TensorsDataset
from goods.errors import GoodsError
from goods.files import write_json, write_text
from goods.models.backbone import DualEncoder, Processor
from goods.models.device import pick_precision
from goods.models.heads import GoodsClassifier, GoodsHeads
from goods.models.tuning import checkpoint_activations, halve_frozen, set_trainable
from goods.params import Params, load_params
from goods.run import Run
from goods.training.inference import make_accelerator, predict
from goods.training.loop import Training, train
from goods.training.task import Task

HERE = Path(__file__).resolve().parent
CAP_GIB = 15  # of GPU memory, as a T4 has it
TOWER = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SO400M = SiglipConfig(text_config=TOWER, vision_config=TOWER | {"image_size": 384, "patch_size": 14})
COLUMNS = [
    "tune",
    "precision",
    "image",
    "at once",
    "products/s",
    "TFLOP/s",
    "of peak",
    "peak GiB",
    "planned GiB",
    "plan off",
]


def bench(
    folder: Path, tune: str, precision: str, config: PretrainedConfig = SO400M, steps: int = 12
) -> dict[str, Any]:
    """One row: a tune mode in a precision; for head the forward pass that embeds."""
    file = "full" if tune == "last" else tune
    given = {"tune": tune, "num_epochs": 2, "warm_start_epochs": 0, "checkpoint_minutes": 1e6, "num_workers": 0}
    where = {"outputs_dir": str(folder), "run": f"{tune}-{precision}", "mixed_precision": precision}
    p = load_params(f"params/siglip-so400m-{file}.yaml", **given, **where)
    row: dict[str, Any] = {"tune": tune, "precision": precision, "image": p.image_size}
    try:
        speed, micro = products_per_second(p, config, steps)
    except (torch.OutOfMemoryError, GoodsError) as error:
        return row | {"error": f"{type(error).__name__} within {CAP_GIB} GiB"}
    measured = torch.cuda.max_memory_allocated() / 2**30
    footprint = measure_footprint(config, p.model_copy(update={"micro_batch_size": micro}), precision)
    planned = footprint.allocated(p) / 2**30
    kind = "forward" if tune == "head" else "training"
    work = sum(n for name, n in footprint.flops.items() if name.startswith(kind) and not name.endswith("recomputed"))
    done, peak = work * speed / 1e12, find_gpu().tflops_16
    return row | {
        "at once": micro, "products/s": round(speed, 1), "TFLOP/s": round(done, 1),
        "of peak": f"{done / peak:.1%}" if peak else "", "peak GiB": round(measured, 2),
        "planned GiB": round(planned, 2), "plan off": f"{planned / measured - 1:+.1%}",
    }  # fmt: skip


def products_per_second(p: Params, config: PretrainedConfig, steps: int) -> tuple[float, int]:
    """Of the second epoch, and the products at once; with tune head, of embedding."""
    torch.manual_seed(0)
    with torch.device("cuda"):  # where random weights are drawn in no time
        backbone = AutoModel.from_config(config)
    set_trainable(backbone, p)
    if p.gradient_checkpointing:
        checkpoint_activations(backbone)
    encoder = DualEncoder(backbone, Processor(SimpleNamespace(pad_token_id=0), (0.5,) * 3, (0.5,) * 3), p)
    model = GoodsClassifier(encoder, GoodsHeads(config.vision_config.hidden_size, config.text_config.hidden_size, p))
    halve_frozen(model, pick_precision(p.mixed_precision))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()  # what building took doesn't count: elsewhere it is done on the processor
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
    task = Task(model, data, data, np.arange(rows).astype(str), {"train": labels, "valid": labels}, ("image", "text"))
    training = Training(task, p, accelerator, Run.of(p).fold(0))
    train(training, None)
    return rows / training.at.log[-1]["seconds"], min(training.at.micro_batch_size, p.batch_size)


def main() -> None:
    """Runs every tune mode in bf16 and fp16, the precision of a T4, and saves the table."""
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here: nothing is measured")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1, CAP_GIB * 2**30 / total))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for precision in ("bf16", "fp16"):
            for tune in ("head", "last", "lora", "full"):
                rows.append(bench(Path(name), tune, precision))
                print(rows[-1], flush=True)
    facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version()}
    write_json(HERE / "cuda.json", facts | {"cap_gib": CAP_GIB, "rows": rows})
    lines = [f"{facts['gpu']}, memory capped at {CAP_GIB} GiB, torch {facts['torch']}", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row.get(name, row.get("error", ""))) for name in COLUMNS) + " |" for row in rows]
    write_text(HERE / "cuda.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
