"""A table of products through a predictor to a table of predictions: in parts, so that a call that is killed goes on.

Each part is written whole below <out>.parts; at the end they are joined to one file, and what was done is kept beside
it as <out>.job.json. The same job again does nothing, another one under the same name is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from goods.accept import Acceptance, acceptance_of
from goods.data.fetch import NotFetchedError, fetched
from goods.data.photo_files import columns_of, write_photo
from goods.data.photos import as_tuples, inspect_photos, photos_in
from goods.data.products import PhotoFinder, ProductTable, check_products, find_product_photos
from goods.data.tables import Goods, photo_cache, unpacked_cache
from goods.errors import GoodsError, ParameterError
from goods.field_types import Float, Names
from goods.files import atomic_path, held, read_frame, read_json_if_whole, resolve, write_frame, write_json
from goods.params import Params
from goods.predictor import Predictor, Tables
from goods.progress import progress_bar
from goods.run import Run
from goods.sheets import as_sheet, read_sheet, write_sheet
from goods.training.inputs import AND

PLACES = {"label": "", "second": "second_", "third": "third_"}  # the columns of classes, and how their numbers' begin
PHOTO = "photo_status"  # in a part only: what its photo was like
ENDINGS = (".parquet", ".csv")
AGAIN = "remove it, and give the same command again"
NO_PHOTOS = "none"  # in place of a folder
SAMPLE_ROWS = 5000  # products that are compared with the training ones


class PredictParams(Params):
    """What predict.ipynb needs on top of Params: `p = gu.read_params(globals(), PredictParams)`."""

    table: str | None = Field(None, description="products to classify, a table as test_csv may be; null: test_csv")
    images: str | None = Field(None, description="folder of their photos; none: predict without; null: test_images_dir")
    out: str | None = Field(
        None, description="the predictions: .parquet or .csv; null: predictions.parquet in the run's folder"
    )
    models: Names = Field(
        (),
        description="where models are now, NAME=PATH each; embeddings_files=new.npz: the vectors of these products",
    )
    precision: Float = Field(0.95, gt=0, lt=1, description="how many of the accepted predictions are to be right")
    probabilities: bool = Field(False, description="add the probability of every class")

    @property
    def named_models(self) -> dict[str, str]:
        """`models` as load_predictor takes them; raises ParameterError where they aren't NAME=PATH."""
        return named_paths(self.models)


def named_paths(texts: Iterable[str]) -> dict[str, str]:
    """{name: path} of texts such as "embeddings_files=new.npz"; one without a name is a further file of the one before.

    Raises ParameterError where the first has no name, none has a path, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals and found:
            name, path = list(found)[-1], f"{list(found.values())[-1]},{text}"
        elif not name or not path or name in found:
            raise ParameterError(f"'{text}' doesn't name a model: write NAME=PATH, each name once, such as "
                                 "embeddings_files=new.npz")  # fmt: skip
        found[name] = path
    return found


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
    def oof(self) -> pd.DataFrame:
        """The run's out-of-fold predictions, from which it is known what may be accepted."""
        return read_frame(self.predictor.run.oof, ["id", "label", "fold"])

    @property
    def facts(self) -> dict[str, Any]:
        """What its file depends on."""
        where = {"images": str(self.photos.folder), "image_column": self.photos.column} if self.photos else {}
        return {"run": self.predictor.run.name, "fingerprint": self.predictor.fingerprint, "rows": self.table.rows,
                "table": self.table.contents(), "precision": self.acceptance.wanted,
                "threshold": self.acceptance.threshold, "probabilities": self.probabilities,
                "part_rows": self.predictor.rows, **where}  # fmt: skip

    def stretches(self, rows: int) -> Iterator[pd.DataFrame]:
        """The table in stretches of so many rows, with its photos as `image`: paths, URIs, bytes, tuples of several."""
        return map(self.with_photos, self.table.stretches(rows))

    def with_photos(self, products: pd.DataFrame) -> pd.DataFrame:
        """Rows of the table with their photos as `image`."""
        return products.assign(image=self.photos.of(products, self.predictor.p.id_column) if self.photos else "")

    def run(self) -> dict[str, Any]:
        """Writes a row for each product, in the table's order; returns what is worth saying.

        Columns: id, label (as train.csv writes it), probability, accept, second, second_probability, third,
        third_probability, and c0 ... with `probabilities`. Photos that can't be used are listed in
        <out>.bad_images.csv. Raises GoodsError where `out` is of another job, or another process writes it.
        """
        if self.out.suffix not in ENDINGS:
            raise GoodsError(f"{self.out} has no ending: goods.catalogue fills a folder; for a file, .parquet or .csv")
        files, facts = Outputs(self.out), self.facts
        if done := check_free(files, facts):
            shutil.rmtree(files.parts, ignore_errors=True)  # left by a call that was cut off at its very end
            return done
        try:
            with held(files.parts / "held.lock", str(self.out), [files.parts]):
                summary = check_free(files, facts) or self._make(files, facts)  # who held it may have done the same job
        except FileNotFoundError:  # who held it has done with its folder
            if not (summary := check_free(files, facts)):
                raise
        shutil.rmtree(files.parts, ignore_errors=True)
        return summary

    def _make(self, files: Outputs, facts: dict[str, Any]) -> dict[str, Any]:
        write_json(files.begun, facts)
        parts = [files.part(number) for number in range(-(-self.table.rows // facts["part_rows"]))]
        self._write(parts, facts["part_rows"])
        summary = join_parts(files, parts)
        write_json(files.record, facts | {"summary": summary, "bytes": files.out.stat().st_size})
        return summary

    def read(self) -> pd.DataFrame:
        """What run() has written."""
        if self.out.suffix == ".parquet":
            return read_frame(self.out)
        numbers = all(isinstance(label, int) for label in self.predictor.labels)
        texts = {"id": str} | ({} if numbers else dict.fromkeys(PLACES, str))
        empty = {name: [""] for name in ("third", "third_probability")}  # nothing else is: "NA" and "null" are words
        return read_sheet(self.out, dtype=texts, keep_default_na=False, na_values=empty)

    def sample(self, rows: int = SAMPLE_ROWS, seed: int = 0) -> pd.DataFrame:
        """Some of the products, drawn from all of the table, with the paths of their photos as `image`.

        Photos that are inside the table, or fetched, are written to the cache, as those of the training goods are.
        """
        drawn = np.zeros(self.table.rows, dtype=bool)
        drawn[np.random.default_rng(seed).permutation(self.table.rows)[:rows]] = True
        parts, start = [], 0
        for products in self.stretches(self.predictor.rows):
            parts.append(self._with_paths(products[drawn[start : start + len(products)]]))
            start += len(products)
        return pd.concat(parts, ignore_index=True)

    def _with_paths(self, products: pd.DataFrame) -> pd.DataFrame:
        folder, images = unpacked_cache(self.predictor.p), as_tuples(products["image"])
        here = iter(fetched([photo for own in images for photo in own]))
        paths = [tuple(_as_path(next(here), folder) for _ in own) for own in images]
        return products.assign(image=pd.Series(paths, index=products.index, dtype=object))

    def with_names(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Rows of read() with the names of the classes in place of their labels."""
        name_of = dict(zip(map(str, self.predictor.labels), self.predictor.classes, strict=True))
        named = {column: predictions[column].astype(str).map(name_of) for column in PLACES}
        return predictions.assign(**named)

    def least_sure(self, top: int = 8) -> pd.DataFrame:
        """The products to look at first: id, title, image, first, second (names of classes), probability."""
        found, id_column = self.with_names(self.read().nsmallest(top, "probability")), self.predictor.p.id_column
        stretches = self.stretches(self.predictor.rows)
        wanted = pd.concat([self._with_paths(part[part[id_column].isin(found["id"])]) for part in stretches])
        title = "title" if "title" in wanted else self.predictor.text_columns[0]
        table = pd.DataFrame({"id": wanted[id_column], "title": wanted[title], "image": wanted["image"].str[0]})
        named = found[["id", "label", "second", "probability"]].rename(columns={"label": "first"})
        return named.merge(table, on="id")

    def files(self) -> pd.DataFrame:
        """What run() has left, with sizes."""
        paths = (self.out, Outputs(self.out).record, Outputs(self.out).bad_images)
        return pd.DataFrame([(str(f), round(f.stat().st_size / 1000, 1)) for f in paths if f.is_file()],
                            columns=["file", "kB"])  # fmt: skip

    def report(self, summary: Mapping[str, Any]) -> str:
        """What has become of the job, in a sentence or two."""
        return summary_sentence(summary, self.out, Outputs(self.out).bad_images)

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
    predictor: Predictor,
    table: str | Path,
    out: str | Path,
    images: str | Path | None = None,
    image_column: str | None = None,
    precision: float = 0.95,
    probabilities: bool = False,
) -> Job:
    """The job, with all that is wrong with it said before anything is predicted: raises GoodsError.

    out: a file, or without an ending a folder of parts, for goods.catalogue.
    images: the folder of the photos, or "none" to predict without. image_column: the column that names or holds them,
    or a pattern of columns, as the parameter; the run's own by default. Without `images`, paths begin at the table.
    """
    out = resolve(out)
    if out.suffix not in (*ENDINGS, ""):
        raise GoodsError(f"{out} must end in .parquet or .csv, or have no ending: a folder of parts")
    acceptance = acceptance_of(predictor.run, precision)
    id_column = predictor.p.id_column
    looks = predictor.reads_photos and str(images) != NO_PHOTOS
    column = (image_column or predictor.image_column) if looks else None
    more = [*predictor.further_columns, *(columns_of(column) if column else [])]
    checked = check_products(resolve(table), id_column, predictor.text_columns, more)
    if predictor.reads_vectors:
        predictor.check_vectors(checked.ids())
    if looks and not images and not column:
        raise GoodsError(f"run '{predictor.run.name}' looks at photos: name their folder (images), their column "
                         f"(image_column), or '{NO_PHOTOS}' to predict without any")  # fmt: skip
    folder = resolve(images) if images else None
    photos = find_product_photos(checked, id_column, folder, column) if looks else None
    return Job(predictor, checked, photos, acceptance, out, probabilities)


def _as_path(photo: str | bytes | NotFetchedError, folder: Path) -> str:
    if isinstance(photo, bytes):
        return str(folder / write_photo(photo, folder))
    return "" if isinstance(photo, NotFetchedError) else photo


def job_of(p: PredictParams, predictor: Predictor) -> Job:
    """The job that predict.ipynb's parameters describe: the run's own test set where they name no table."""
    table, images, out = p.table or p.test_csv, p.images or p.test_images_dir, p.out or Run.of(p).predictions
    return prepare_job(predictor, table, out, images, p.image_column, p.precision, p.probabilities)


def beside_training(job: Job, goods: Goods) -> Goods:
    """The training products, and some of the new ones in place of the test set: what goods.eda can compare.

    What is known of the new ones' photos is kept as that of the others is.
    """
    products, p = job.sample(), job.predictor.p
    test = Tables(products, p.id_column).of(tuple(p.text_columns))
    each = test[["id"]].assign(table="test", image=photos_in(test)).explode("image", ignore_index=True)
    photos = inspect_photos(each, cache=photo_cache(p))
    of_train = goods.photos[goods.photos["table"] == "train"]
    return replace(goods, test=test, photos=pd.concat([of_train, photos], ignore_index=True))


def check_free(files: Outputs, facts: dict[str, Any]) -> dict[str, Any]:
    """What a finished job that was the same has said, {} where this one is to be done or gone on with.

    Raises GoodsError where the file or its parts are of another job.
    """
    done, begun = read_json_if_whole(files.record), read_json_if_whole(files.begun)
    summary, size = done.pop("summary", {}), done.pop("bytes", None)
    if files.out.exists() and done == facts:
        if size not in (None, files.out.stat().st_size):
            raise GoodsError(f"{files.out} isn't what was written there; {AGAIN}")
        return summary
    # Parts are begun only where no file is: one without a record beside them is theirs, cut off before it was said.
    made = begun if begun == facts and not files.record.exists() else done
    for path, before in ((files.out, made), (files.parts, begun)):
        if path.exists() and before != facts and not (path == files.parts and not before):
            raise other_job(path, before, facts)
    return {}


def other_job(path: Path, before: Mapping[str, Any], facts: Mapping[str, Any]) -> GoodsError:
    """What to raise where `path` is of a job with the facts `before`, {} where they aren't known."""
    differ = [name for name in {**facts, **before} if before.get(name) != facts.get(name)]
    why = f"it was made with another {', '.join(differ)}" if before else "it isn't known what it was made from"
    back = "give that back, or " if before else ""
    return GoodsError(f"{path} is there already, and {why}; {back}take another name for --out, or remove it")


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
    for place, (column, prefix) in enumerate(PLACES.items()):
        label, value = [None] * len(ids), np.full(len(ids), np.nan)
        if place < order.shape[1]:
            label, value = named[order[:, place]], probabilities[np.arange(len(ids)), order[:, place]]
        columns |= {column: pd.Series(label, dtype=kind), f"{prefix}probability": value}
        if not place:
            columns["accept"] = value >= threshold
    if all_classes:
        columns |= {f"c{k}": probabilities[:, k] for k in range(probabilities.shape[1])}
    return pd.DataFrame(columns)


def join_parts(files: Outputs, parts: Sequence[Path]) -> dict[str, Any]:
    """Writes the job's file, and the list of its bad photos, from its parts; returns what is worth saying."""
    counted = Counted()
    with atomic_path(files.out) as temporary, _writer(files.out.suffix, temporary) as write:
        for part in parts:
            frame = read_frame(part, ["id", PHOTO], AGAIN)
            counted.add(frame)
            write(frame.drop(columns=PHOTO))
    counted.list_bad_images(files.bad_images)
    return counted.summary()


class Counted:
    """What is worth saying of predictions, counted part by part."""

    def __init__(self) -> None:
        self.rows, self.accepted, self._bad = 0, 0, [pd.DataFrame({"id": [], PHOTO: []}, dtype=object)]

    def add(self, frame: pd.DataFrame) -> None:
        """Counts a part in, of which id, accept and photo_status are asked."""
        self.rows, self.accepted = self.rows + len(frame), self.accepted + int(frame["accept"].sum())
        wrong = [not {*said.split(AND)} <= {"ok", ""} for said in frame[PHOTO]]
        self._bad.append(frame.loc[wrong, ["id", PHOTO]])

    def list_bad_images(self, path: Path) -> None:
        """Writes id and status of the photos that can't be used whole, where there are any."""
        listed = pd.concat(self._bad).rename(columns={PHOTO: "status"})
        if len(listed):
            write_sheet(path, listed)
        else:
            path.unlink(missing_ok=True)  # an earlier one, of photos that are there by now

    def summary(self) -> dict[str, int]:
        """rows, accepted, and how many photos are missing, truncated and unreadable."""
        each = pd.concat(self._bad)[PHOTO].str.split(AND, regex=False).explode()
        missing, good, cut = (
            int(found.sum()) for found in (each.str.startswith("missing"), each == "ok", each.str.startswith("trunc"))
        )
        return {"rows": self.rows, "accepted": self.accepted, "missing_photos": missing, "truncated_photos": cut,
                "unreadable_photos": len(each) - missing - good - cut}  # fmt: skip


def summary_sentence(summary: Mapping[str, int], out: Path, bad_images: Path) -> str:
    """What has become of a job, in a sentence or two."""
    said = f"{summary['rows']:,} products in {out}, {summary['accepted']:,} of them accepted"
    if summary["missing_photos"] or summary["unreadable_photos"]:
        said += (f"; {summary['missing_photos']:,} photos are missing and {summary['unreadable_photos']:,} unreadable "
                 f"({bad_images.name}): predicted by what is left")  # fmt: skip
    if summary["truncated_photos"]:
        said += f"; {summary['truncated_photos']:,} photos end too early and are read as far as they go"
    return said


@contextmanager
def _writer(ending: str, path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """What appends tables to a new file."""
    with ExitStack() as opened:
        text = opened.enter_context(path.open("w", encoding="utf-8", newline="")) if ending == ".csv" else None
        parquet: list[pq.ParquetWriter] = []

        def write(frame: pd.DataFrame) -> None:
            if text:
                header = not text.tell()
                as_sheet(frame).to_csv(text, index=False, header=header, float_format="%.6f", lineterminator="\n")
                return
            rows = pa.Table.from_pandas(frame, preserve_index=False)
            if not parquet:
                parquet.append(opened.enter_context(pq.ParquetWriter(path, rows.schema)))
            parquet[0].write_table(rows)

        yield write
