"""A table of any length through a predictor to a folder of Parquet parts, by calls that know nothing of each other.

    goods_utils.py predict ... --out outputs/catalogue --shard 3/16

A part holds the same rows whoever writes it: part 7 is the table's eighth stretch, of the same length always. Each is
written whole or not at all and never twice, so a killed call is given again, shards may be done on any machines that
see the folder, and the bytes are the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from goods.classify import AGAIN, PHOTO, Counted, Job, other_job, predicted_rows, summary_sentence
from goods.data.products import ProductTable
from goods.errors import DamagedFileError, GoodsError, listing
from goods.files import held, is_alive, read_frame, read_json_if_whole, write_frame, write_json
from goods.progress import progress_bar

# From the numbers of parts to their predictions: the part's number, rows of it, whether they are its last ones.
Classify = Callable[[Sequence[int]], Iterator[tuple[int, pd.DataFrame, bool]]]
PART_STRETCHES = 8  # of predictor.rows: 8,192 products with photos, minutes of a T4's work, which a kill may cost


@dataclass(frozen=True)
class Shard:
    """The number-th share of `count`, 1/16 to 16/16: parts that follow each other in the table."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "3/16", the third of sixteen; raises GoodsError for what is no share."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise GoodsError(f"--shard {text} is none: of sixteen they are 1/16, 2/16 ... 16/16")
        return shard

    def of(self, parts: int) -> range:
        """Its share of so many parts: their numbers. Where there are fewer parts than shards, some have none."""
        ends = [parts * end // self.count for end in (self.number - 1, self.number)]
        return range(*ends)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class PartsFolder:
    """The files of a catalogue's predictions; what begins with _ or . is none of its table."""

    path: Path

    @property
    def record(self) -> Path:
        """What it is made from."""
        return self.path / "_job.json"

    @property
    def bad_images(self) -> Path:
        """The photos that couldn't be used."""
        return self.path / "_bad_images.csv"

    def part(self, name: int | str) -> Path:
        """One part's table."""
        return self.path / (f"part-{name:06}.parquet" if isinstance(name, int) else f"part-{name}.parquet")

    def lock(self, shard: Shard) -> Path:
        """Of the process that does a shard."""
        return self.path / "_locks" / f"{shard.number}-of-{shard.count}.lock"

    def parts(self) -> list[Path]:
        """Those that are there, whole, in the table's order where they have numbers."""
        return sorted(self.path.glob("part-*.parquet"))

    def begin(self, facts: dict[str, Any]) -> None:
        """Says what it is made from; raises GoodsError where it is of another job, or a folder of something else."""
        before = read_json_if_whole(self.record)
        if before != facts and (before or self._is_of_others()):
            raise other_job(self.path, before, facts)
        if not before:
            write_json(self.record, facts)

    def _is_of_others(self) -> bool:
        if not self.path.is_dir():
            return self.path.exists()
        return any(not child.name.startswith(("_", ".")) for child in self.path.iterdir())  # other shards may begin now

    def count(self, parts: Sequence[Path]) -> Counted:
        """What is worth saying of these parts; raises DamagedFileError where one isn't whole."""
        counted = Counted()
        for path in parts:
            counted.add(read_frame(path, ["id", "accept", PHOTO], AGAIN))
        return counted

    def rows(self) -> int:
        """How many products all parts hold; raises DamagedFileError where one isn't whole."""
        return sum(map(_rows, self.parts()))

    def doubled(self) -> list[str]:
        """The names of the parts that hold a product which stands in them, or in another one, once more."""
        each = {path.name: id_hashes(pq.read_table(path, columns=["id"]).to_pandas()["id"]) for path in self.parts()}
        ids, times = np.unique(np.concatenate([np.empty(0, np.uint64), *each.values()]), return_counts=True)
        return [name for name, own in each.items() if np.isin(own, ids[times > 1]).any()]

    def clear(self, parts: Sequence[Path]) -> None:
        """Removes what killed writings of these parts left."""
        for path in parts:
            for stale in self.path.glob(f".{path.name}.*.tmp"):
                if not is_alive(int(stale.name.split(".")[-3])):
                    stale.unlink(missing_ok=True)


def _rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except Exception:  # pyarrow raises anything on damaged bytes
        raise DamagedFileError(f"{path} is missing or damaged; {AGAIN}") from None


def id_hashes(ids: pd.Series) -> np.ndarray:
    """(n,) uint64; goods.data.products looks for ids that stand there twice by the same ones."""
    return pd.util.hash_array(ids.to_numpy(dtype=object), categorize=False)


def part_rows(job: Job) -> int:
    """How many products a part holds."""
    return job.predictor.rows * PART_STRETCHES


def facts_of(job: Job) -> dict[str, Any]:
    """What the files of a catalogue depend on."""
    return job.facts | {"part_rows": part_rows(job)}


def run_shard(job: Job, shard: Shard = Shard(), classify: Classify | None = None) -> dict[str, int]:
    """Writes the parts of a shard that aren't there yet to the folder job.out; returns what is worth saying of them.

    classify: who does the work, in any order of the parts; this process, where nobody is named. Columns: those of
    Job.run, and photo_status. Raises GoodsError where the folder is of another job, HeldError where
    another process is at work on the shard.
    """
    folder, rows = PartsFolder(job.out), part_rows(job)
    numbers = shard.of(-(-job.table.rows // rows))
    folder.begin(facts_of(job))
    with held(folder.lock(shard), f"shard {shard} of {job.out}"):
        folder.clear([folder.part(number) for number in numbers])
        due = [number for number in numbers if not folder.part(number).is_file()]
        of_shard = [min(rows, job.table.rows - number * rows) for number in numbers]
        done = sum(of_shard) - sum(min(rows, job.table.rows - number * rows) for number in due)
        name = f"shard {shard}" if shard.count > 1 else f"run {job.predictor.run.name}"
        with progress_bar(total=sum(of_shard), initial=done, desc=name, unit=" products") as bar:
            _write(job, folder, due, classify or partial(classify_parts, job), bar)
    return finish(job, folder, [folder.part(number) for number in numbers])


def _write(job: Job, folder: PartsFolder, due: Sequence[int], classify: Classify, bar: Any) -> None:
    written = defaultdict[int, list[pd.DataFrame]](list)
    for number, predicted, last in classify(due):
        written[number].append(predicted)
        bar.update(len(predicted))
        if last:
            write_frame(folder.part(number), pd.concat(written.pop(number), ignore_index=True))


def classify_parts(job: Job, due: Sequence[int]) -> Iterator[tuple[int, pd.DataFrame, bool]]:
    """In this process: a part's number, predictions of a stretch of it, whether it is the last one of the part."""
    reader = PartReader(job.table, part_rows(job))
    for number in due:
        left = len(products := reader.read(number))
        for predicted in predicted_stretches(job, products):
            left -= len(predicted)
            yield number, predicted, not left


def predicted_stretches(job: Job, products: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The predictions of a part's products, stretch by stretch, as goods.classify.predicted_rows has them."""
    for stretch in stretches_of(job, products):
        yield predicted_rows(job.predictor, stretch, job.acceptance, job.probabilities)


def stretches_of(job: Job, products: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """A part's products as many at a time as are best worked on at once, with their photos."""
    for at in range(0, len(products), job.predictor.rows):
        yield job.with_photos(products.iloc[at : at + job.predictor.rows])


class PartReader:
    """The products of a table's parts, of so many rows each: fastest in their order, for it is read from its start."""

    def __init__(self, table: ProductTable, rows: int) -> None:
        self._table, self._rows, self._next = table, rows, 0
        self._parts = table.stretches(rows)

    def read(self, number: int) -> pd.DataFrame:
        """The rows of a part, without their photos."""
        if number < self._next:
            self._parts, self._next = self._table.stretches(self._rows), 0
        skipped, self._next = number - self._next, number + 1
        return next(islice(self._parts, skipped, None))


def finish(job: Job, folder: PartsFolder, parts: Sequence[Path]) -> dict[str, int]:
    """What is worth saying of these parts; whoever wrote the last one of all lists the bad photos of the table.

    Raises GoodsError where all is done and not every product is there once.
    """
    summary = folder.count(parts).summary()
    if folder.rows() == job.table.rows:
        if doubled := folder.doubled():
            raise GoodsError(f"{folder.path} holds products twice: remove its {listing(doubled)}, and give the same "
                             "commands again")  # fmt: skip
        folder.count(folder.parts()).list_bad_images(folder.bad_images)
    return summary


def report(job: Job, summary: dict[str, int]) -> str:
    """What has become of a shard, and of the whole table."""
    folder = PartsFolder(job.out)
    left = job.table.rows - folder.rows()
    said = summary_sentence(summary, job.out, folder.bad_images)
    return f"{said}; {left:,} products of the table are left to other shards" if left else f"{said}; the table is whole"
