"""What predicting a table takes against the bare models: `python -m benchmarks.predict --run NAME --table new.csv`.

The bare models: the run's own counting, classifying and embedding, of products whose photos are decoded already; in a
second pass, each stretch by them alone and then as a whole, since a machine is a third faster in one minute than in the
next. Processor time of this process; seconds by the clock where a card or several actors work. The actors' loading
counts, the start of a cluster doesn't. With --actors, the same through Ray: `--actors 1 2`.
"""

from __future__ import annotations

import argparse
import gc
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from goods.catalogue import run_shard
from goods.classify import Job, predicted_rows, prepare_job
from goods.files import resolve
from goods.on_ray import Loading, classified, joined
from goods.predictor import Tables
from goods.run import Run


def spent(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of this process's processors, and by the clock."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - processor, time.perf_counter() - clock


def bare(job: Job, products: pd.DataFrame) -> Callable[[], Any]:
    """The members' predictions of products that are in memory, their photos decoded already."""
    source, p = job.predictor._source, job.predictor.p
    tables = Tables(job.with_photos(products), p.id_column)
    source(tables)  # which keeps the photos where several look at them
    return lambda: source(tables)


def beside_bare(job: Job) -> tuple[float, float]:
    """Seconds of processors for the table, and those of the bare models for the same products."""
    alone, away = 0.0, 0.0

    def classify(stretches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        nonlocal alone, away
        for products in stretches:
            began = time.process_time()
            alone += spent(bare(job, products))[0]
            away += time.process_time() - began
            yield predicted_rows(job.predictor, products, job.acceptance, job.probabilities)

    processor, _ = spent(lambda: run_shard(job, classify=classify))
    return processor - away, alone


def main() -> None:
    """Prints a line for this process and one for each number of actors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--images", default="none")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--actors", type=int, nargs="*", default=[])
    options = parser.parse_args()
    named = Run(Path(options.run))
    loading = Loading(named.folder if named.exists else resolve("outputs") / options.run, {},
                      {"num_workers": options.workers})  # fmt: skip
    predictor = loading.load()
    gc.freeze()  # as the command does
    print("engine        rows/s   us of processor a row   against the bare models   most memory, MiB")
    with tempfile.TemporaryDirectory() as folder:
        if options.actors:
            joined()
        for actors in (0, *options.actors):
            job = prepare_job(predictor, options.table, Path(folder) / f"by{actors}", options.images)
            through = partial(classified, job, loading, actors=actors) if actors else None
            processor, clock = spent(lambda job=job, through=through: run_shard(job, classify=through))
            rows, line = job.table.rows, f"ray, {actors} actors" if actors else "local"
            said = f"{line:<12} {rows / clock:>8.1f}"
            if not actors:
                processor, alone = beside_bare(
                    prepare_job(predictor, options.table, Path(folder) / "twice", options.images)
                )
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
                said += f" {processor / rows * 1e6:>16.1f} {processor / alone:>22.2f} x {memory:>22,}"
            print(said, flush=True)


if __name__ == "__main__":
    main()
