"""What predicting a table takes against the bare models: `python -m benchmarks.predict --run NAME --table new.csv`.

The bare models: the run's own counting, classifying and embedding, of products whose photos are decoded already; in a
second pass, each stretch by them alone and then as a whole, since a machine is a third faster in one minute than in the
next. Their ratio in processor time of this process, in which processes that read photos have no part, and by the clock.
The actors' loading counts, the start of a cluster doesn't. With --actors, the same through Ray: `--actors 1 2`.
"""

from __future__ import annotations

import argparse
import gc
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from goods.catalogue import PartReader, part_rows, run_shard, stretches_of
from goods.classify import Job, predicted_rows, prepare_job
from goods.data.ahead import PhotoReader
from goods.files import resolve
from goods.on_ray import Loading, classified, joined
from goods.predictor import Tables
from goods.run import Run


def spent(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of this process's processors, and by the clock."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - processor, time.perf_counter() - clock


class ReadBefore:
    """A PhotoReader that keeps the photos it has read: the second time they cost nothing."""

    def __init__(self, reader: PhotoReader) -> None:
        self.reader, self.kept = reader, dict[tuple, list]()

    def batches(self, photos: Sequence[str | bytes], size: int, batch_size: int) -> Iterator[tuple[Tensor, list[str]]]:
        """As PhotoReader."""
        asked = (*photos, size)
        if asked not in self.kept:
            self.kept[asked] = list(self.reader.batches(photos, size, batch_size))
        yield from self.kept[asked]


def bare(job: Job, products: pd.DataFrame) -> tuple[float, float]:
    """Seconds that the members' predictions of products take whose photos are in memory, decoded."""
    source, inputs = job.predictor._source, job.predictor._inputs
    tables = Tables(job.with_photos(products), job.predictor.p.id_column)
    reader = inputs._reader or PhotoReader(job.predictor.p.num_workers)
    inputs._reader = ReadBefore(reader)
    source(tables)
    inputs._made.clear()  # the embeddings of these products; they are to be made again
    seconds = spent(lambda: source(tables))
    inputs._made.clear()
    inputs._reader = reader
    return seconds


def beside_bare(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of processors and by the clock for the table, and those of the bare models for the same products."""
    alone, away = np.zeros(2), np.zeros(2)

    def classify(due: Sequence[int]) -> Iterator[tuple[int, pd.DataFrame, bool]]:
        nonlocal alone, away
        reader = PartReader(job.table, part_rows(job))
        for number in due:
            left = len(products := reader.read(number))
            for stretch in stretches_of(job, products):
                began = np.array([time.process_time(), time.perf_counter()])
                alone += bare(job, stretch)
                away += np.array([time.process_time(), time.perf_counter()]) - began
                left -= len(stretch)
                yield number, predicted_rows(job.predictor, stretch, job.acceptance, job.probabilities), not left

    return spent(lambda: run_shard(job, classify=classify)) - away, alone


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
    print("engine        rows/s   us of processor a row   against the bare models, by the clock   most memory, MiB")
    with tempfile.TemporaryDirectory() as folder:
        if options.actors:
            joined()
        for actors in (0, *options.actors):
            job = prepare_job(predictor, options.table, Path(folder) / f"by{actors}", options.images)
            through = partial(classified, job, loading, actors=actors) if actors else None
            _, clock = spent(lambda job=job, through=through: run_shard(job, classify=through))
            rows, line = job.table.rows, f"ray, {actors} actors" if actors else "local"
            said = f"{line:<12} {rows / clock:>8.1f}"
            if not actors:
                twice = prepare_job(predictor, options.table, Path(folder) / "twice", options.images)
                whole, alone = beside_bare(twice)
                (processor, clock), memory = whole / alone, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
                said += f" {whole[0] / rows * 1e6:>16.1f} {processor:>22.2f} x {clock:>12.2f} x {memory:>20,}"
            print(said, flush=True)


if __name__ == "__main__":
    main()
