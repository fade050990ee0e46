"""What predicting a table takes against the bare models: `python -m benchmarks.predict --run NAME --table new.csv`.

The bare models: the run's own counting, classifying and embedding, for one stretch of products whose photos are decoded
already. Processor time of this process, which other work on the machine leaves alone; seconds by the clock where a
card or several actors work. The actors' loading counts, the start of a cluster doesn't. With --actors, the same through
Ray: `--actors 1 2`.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from goods.catalogue import run_shard
from goods.classify import Job, prepare_job
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
                stretch = next(job.table.stretches(predictor.rows))
                call = bare(job, stretch)
                least = min(spent(call)[0] for _ in range(3)) / len(stretch)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
                said += f" {processor / rows * 1e6:>16.1f} {processor / rows / least:>22.2f} x {memory:>22,}"
            print(said, flush=True)


if __name__ == "__main__":
    main()
