"""A table of products through a predictor to a table of predictions: in parts, so that a call that is killed goes on.

Each part is written whole below <out>.parts; at the end they are joined to one file, and what was done is kept beside
it as <out>.job.json. The same job again does nothing, another one under the same name is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from goods.accept import Acceptance, acceptance_of
from goods.data.products import PhotoFinder, ProductTable, check_products, find_product_photos
from goods.errors import GoodsError
from goods.files import atomic_path, file_hash, held, read_frame, read_json_if_whole, resolve, write_frame, write_json
from goods.predictor import Predictor, load_predictor
from goods.progress import progress_bar

PLACES = ("", "second_", "third_")  # of the classes that are named, the likeliest first
PHOTO = "photo_status"  # in a part only: what its photo was like
ENDINGS = (".parquet", ".csv")
NO_PHOTOS = "none"  # in place of a folder


@dataclass(frozen=True)
class Outputs:
    """The files of one job."""

    out: Path

    @property
    def parts(self) -> Path:
        """The folder of the parts, while the job isn't done."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def record(self) -> Path:
        """What the finished file was made from."""
        return self.out.with_name(f"{self.out.name}.job.json")

    @property
    def begun(self) -> Path:
        """What the parts are made from."""
        return self.parts / "job.json"

    @property
    def bad_images(self) -> Path:
        """The photos that couldn't be used."""
        return self.out.with_name(f"{self.out.name}.bad_images.csv")

    def part(self, number: int) -> Path:
        """One part's table."""
        return self.parts / f"part{number:06}.parquet"


@dataclass(frozen=True)
class Job:
    """One table through one predictor, checked: nothing of it is written yet."""

    predictor: Predictor
    table: ProductTable
    photos: PhotoFinder | None
    acceptance: Acceptance
    out: Path
    probabilities: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What its file depends on."""
        where = {"images": str(self.photos.folder), "image_column": self.photos.column} if self.photos else {}
        return {"run": self.predictor.run.name, "fingerprint": self.predictor.fingerprint, "rows": self.table.rows,
                "table": file_hash(self.table.path), "precision": self.acceptance.wanted,
                "threshold": self.acceptance.threshold, "probabilities": self.probabilities,
                "part_rows": self.predictor.rows, **where}  # fmt: skip

    def stretches(self, rows: int) -> Iterator[pd.DataFrame]:
        """The table in stretches of so many rows, with the paths of its photos as `image`."""
        for products in self.table.stretches(rows):
            found = self.photos.of(products, self.predictor.p.id_column) if self.photos else ""
            yield products.assign(image=found)

    def run(self) -> dict[str, Any]:
        """Writes a row for each product, in the table's order; returns what is worth saying.

        Columns: id, label (as train.csv writes it), probability, accept, second, second_probability, third,
        third_probability, and c0 ... with `probabilities`. Photos that can't be used are listed in
        <out>.bad_images.csv. Raises GoodsError where `out` is of another job, or another process writes it.
        """
        files, facts = Outputs(self.out), self.facts
        if done := check_free(files, facts):
            return done
        files.parts.mkdir(parents=True, exist_ok=True)
        with held(files.parts / "held.lock", str(self.out), [files.parts]):
            write_json(files.begun, facts)
            parts = [files.part(number) for number in range(-(-self.table.rows // facts["part_rows"]))]
            self._write(parts, facts["part_rows"])
            summary = join_parts(files, parts)
            write_json(files.record, facts | {"summary": summary})
        shutil.rmtree(files.parts, ignore_errors=True)
        return summary

    def report(self, summary: Mapping[str, Any]) -> str:
        """What has become of the job, in a sentence or two."""
        said = f"{summary['rows']:,} products in {self.out}, {summary['accepted']:,} of them accepted"
        if summary["missing_photos"] or summary["unreadable_photos"]:
            said += (f"; {summary['missing_photos']:,} photos are missing and {summary['unreadable_photos']:,} "
                     f"unreadable ({Outputs(self.out).bad_images.name}): predicted by what is left")  # fmt: skip
        return said

    def _write(self, parts: Sequence[Path], rows: int) -> None:
        ready = {path for path in parts if path.is_file()}
        done = min(self.table.rows, len(ready) * rows)
        name = f"run {self.predictor.run.name}"
        with progress_bar(total=self.table.rows, initial=done, desc=name, unit=" products") as bar:
            for path, products in zip(parts, self.stretches(rows), strict=True):
                if path not in ready:
                    write_frame(path, predicted_rows(self.predictor, products, self.acceptance, self.probabilities))
                    bar.update(len(products))


def prepare_job(
    run: str | Path,
    table: str | Path,
    out: str | Path,
    images: str | Path | None = None,
    image_column: str | None = None,
    precision: float = 0.95,
    probabilities: bool = False,
    models: Mapping[str, str | Path] | None = None,
    **settings: Any,
) -> Job:
    """The job, with all that is wrong with it said before anything is predicted.

    run: the folder of a run. images: the folder of the photos, "none" to predict without. image_column: the column with
    their paths, relative to `images` or to the table. models and settings: see load_predictor.
    """
    out = resolve(out)
    if out.suffix not in ENDINGS:
        raise GoodsError(f"{out} must end in .parquet or .csv")
    predictor = load_predictor(run, models, **settings)
    acceptance = acceptance_of(predictor.run, precision)
    id_column = predictor.p.id_column
    more = [image_column] if image_column else []
    checked = check_products(resolve(table), id_column, predictor.text_columns, more)
    folder = resolve(images) if images and str(images) != NO_PHOTOS else None
    if predictor.reads_photos and not images and not image_column:
        raise GoodsError(f"run '{predictor.run.name}' looks at photos: name their folder (images), their column "
                         f"(image_column), or '{NO_PHOTOS}' to predict without any")  # fmt: skip
    looks = predictor.reads_photos and (folder or image_column)
    photos = find_product_photos(checked, id_column, folder, image_column) if looks else None
    return Job(predictor, checked, photos, acceptance, out, probabilities)


def check_free(files: Outputs, facts: dict[str, Any]) -> dict[str, Any]:
    """What a finished job that was the same has said, {} where this one is to be done or gone on with.

    Raises GoodsError where the file or its parts are of another job.
    """
    done, begun = read_json_if_whole(files.record), read_json_if_whole(files.begun)
    summary = done.pop("summary", {})
    if files.out.exists() and done == facts:
        return summary
    for path, before in ((files.out, done), (files.parts, begun)):
        if path.exists() and before != facts and not (path == files.parts and not before):
            differ = [name for name in facts if before.get(name) != facts[name]]
            why = f"it was made with another {', '.join(differ)}" if before else "it isn't known what it was made from"
            raise GoodsError(f"{path} is there already, and {why}; take another name for --out, or remove it")
    return {}


def predicted_rows(
    predictor: Predictor, products: pd.DataFrame, acceptance: Acceptance, probabilities: bool = False
) -> pd.DataFrame:
    """The rows of the predictions of products: the columns of Job.run, and photo_status."""
    found, ids = predictor.classify(products), products[predictor.p.id_column].tolist()
    table = result_table(ids, found.probabilities, predictor.labels, acceptance.threshold, probabilities)
    return table.assign(**{PHOTO: found.photos})


def result_table(
    ids: Sequence[str], probabilities: np.ndarray, labels: Sequence[Any], threshold: float, all_classes: bool = False
) -> pd.DataFrame:
    """id, label, probability, accept, second, second_probability, third, third_probability; c0 ... for all classes.

    probabilities: (n, num_classes). Of two classes there is no third.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : len(PLACES)]
    numbers = all(isinstance(label, int) for label in labels)
    named, kind = np.asarray(labels, dtype=np.int64 if numbers else object), "Int64" if numbers else object
    columns: dict[str, Any] = {"id": pd.Series(list(ids), dtype=object)}
    for place, prefix in enumerate(PLACES):
        label, value = [None] * len(ids), np.full(len(ids), np.nan)
        if place < order.shape[1]:
            label, value = named[order[:, place]], probabilities[np.arange(len(ids)), order[:, place]]
        columns |= {prefix.rstrip("_") or "label": pd.Series(label, dtype=kind), f"{prefix}probability": value}
        if not place:
            columns["accept"] = value >= threshold
    if all_classes:
        columns |= {f"c{k}": probabilities[:, k] for k in range(probabilities.shape[1])}
    return pd.DataFrame(columns)


def join_parts(files: Outputs, parts: Sequence[Path]) -> dict[str, Any]:
    """Writes the job's file, and the list of its bad photos, from its parts; returns what is worth saying."""
    accepted, rows, bad = 0, 0, [pd.DataFrame(columns=["id", PHOTO])]
    with atomic_path(files.out) as temporary, _writer(files.out.suffix, temporary) as write:
        for part in parts:
            frame = read_frame(part, ["id", PHOTO], "remove it, and give the same command again")
            accepted, rows = accepted + int(frame["accept"].sum()), rows + len(frame)
            bad.append(frame.loc[~frame[PHOTO].isin(["ok", ""]), ["id", PHOTO]])
            write(frame.drop(columns=PHOTO))
    listed = pd.concat(bad).rename(columns={PHOTO: "status"})
    if len(listed):
        with atomic_path(files.bad_images) as temporary:
            listed.to_csv(temporary, index=False)
    missing = int((listed["status"] == "missing").sum())
    return {"rows": rows, "accepted": accepted, "missing_photos": missing, "unreadable_photos": len(listed) - missing}


@contextmanager
def _writer(ending: str, path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """What appends tables to a new file."""
    with ExitStack() as opened:
        text = opened.enter_context(path.open("w", encoding="utf-8", newline="")) if ending == ".csv" else None
        parquet: list[pq.ParquetWriter] = []

        def write(frame: pd.DataFrame) -> None:
            if text:
                frame.to_csv(text, index=False, header=not text.tell(), float_format="%.6f", lineterminator="\n")
                return
            rows = pa.Table.from_pandas(frame, preserve_index=False)
            if not parquet:
                parquet.append(opened.enter_context(pq.ParquetWriter(path, rows.schema)))
            parquet[0].write_table(rows)

        yield write
