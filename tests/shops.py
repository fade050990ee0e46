"""A competition folder in the shapes that other shops give theirs: python tests/shops.py FOLDER

Each SHAPES entry rewrites the embedded sample (or any folder like it) and says which parameters read it; docs/data.md
names the same. As a script it makes the sample in all four shapes below FOLDER, trains each and writes its submission.
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from goods.ensemble.submission import write_submission
from goods.members import ensemble_run, fit, open_run, predict_test, read_goods
from goods.params import Params, load_params
from goods.settings import parse_setting

MISSING = 5  # photos that the folder of three a product lacks


class Part(NamedTuple):
    """train or test of the folder that is reshaped: its table as text, and each product's photo."""

    name: str
    table: pd.DataFrame
    photos: dict[str, Path]


def parts_of(source: Path) -> list[Part]:
    parts = []
    for name in ("train", "test"):
        table = pd.read_csv(source / f"{name}.csv", dtype=str, keep_default_na=False).astype(object)
        folder = source / f"{name}_images" / f"{name}_images"
        parts.append(Part(name, table, {path.stem: path for path in sorted(folder.iterdir())}))
    return parts


def by_column(source: Path, target: Path) -> None:
    """A column names the photo, called by its content, so that products that show the same share the file."""
    for part in parts_of(source):
        folder = target / f"{part.name}_images"
        folder.mkdir(parents=True)
        names = []
        for product in part.table["id"]:
            data = part.photos[product].read_bytes()
            names.append(hashlib.md5(data).hexdigest() + ".jpg")
            (folder / names[-1]).write_bytes(data)
        table = part.table.rename(columns={"categories": "label_group"})
        table["id"] = [f"{part.name}_{product}" for product in table["id"]]
        table.rename(columns={"id": "posting_id"}).assign(image=names).to_csv(target / f"{part.name}.csv", index=False)


def by_pattern(source: Path, target: Path) -> None:
    """Tab-separated, and the photo's name is made from two columns; the first column is a row number."""
    start = 0
    for part in parts_of(source):
        folder = target / "images" / f"image_{part.name}"
        folder.mkdir(parents=True)
        rows = part.table.rename(columns={"title": "designation", "categories": "prdtypecode"})
        rows["productid"] = [str(3_804_725_264 + 7 * (start + row)) for row in range(len(rows))]
        rows["imageid"] = [str(1_263_597_046 + 3 * (start + row)) for row in range(len(rows))]
        for product, item, image in zip(rows["id"], rows["productid"], rows["imageid"], strict=True):
            shutil.copyfile(part.photos[product], folder / f"image_{image}_product_{item}.jpg")
        rows.insert(0, "", [str(start + row) for row in range(len(rows))])
        start += len(rows)
        rows = rows.drop(columns="id").rename(columns={"": "row"})
        rows.to_csv(target / f"{part.name}.tsv", sep="\t", index=False, quoting=csv.QUOTE_MINIMAL)


def inside_parquet(source: Path, target: Path) -> None:
    """Parquet in pieces, the photos inside: a struct of bytes and path."""
    for part in parts_of(source):
        (target / "data").mkdir(parents=True, exist_ok=True)
        photos = [{"bytes": part.photos[i].read_bytes(), "path": part.photos[i].name} for i in part.table["id"]]
        columns = {name: pa.array(part.table[name], pa.string()) for name in part.table if name != "categories"}
        if "categories" in part.table:
            columns["label"] = pa.array(part.table["categories"].astype(int))
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(photos, kind), **columns})
        pieces = 2 if part.name == "train" else 1
        size = -(-len(table) // pieces)
        for piece in range(pieces):
            name = f"{part.name}-{piece:05}-of-{pieces:05}.parquet"
            pq.write_table(table.slice(piece * size, size), target / "data" / name, row_group_size=50)


def three_each(source: Path, target: Path) -> None:
    """Three photos of each product, split by |, one folder for all; MISSING of them are not there."""
    (target / "images").mkdir(parents=True)
    lost = 0
    for part in parts_of(source):
        cells = []
        for product in part.table["id"]:
            with Image.open(part.photos[product]) as photo:
                whole = photo.convert("RGB")
            views = [whole, ImageOps.mirror(whole), ImageOps.crop(whole, border=min(whole.size) // 8)]
            names = [f"{product}.{number}.jpg" for number in range(len(views))]
            for name, view in zip(names, views, strict=True):
                view.save(buffer := io.BytesIO(), "JPEG", quality=90)
                (target / "images" / name).write_bytes(buffer.getvalue())
            if lost < MISSING:
                (target / "images" / names[lost % 3]).unlink()
                lost += 1
            cells.append("|".join(names))
        part.table.assign(images=cells).to_csv(target / f"{part.name}.csv", index=False)


class Shape(NamedTuple):
    """How to make a folder, and the parameters that read it, as a command line gives them."""

    make: Callable[[Path, Path], None]
    settings: str

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(parse_setting(text) for text in self.settings.split())


SHAPES = {
    "by column": Shape(by_column, "id_column=posting_id label_column=label_group image_column=image"),
    "by pattern": Shape(
        by_pattern,
        "id_column=row label_column=prdtypecode text_columns=[designation,description] "
        "image_column=image_{imageid}_product_{productid}.jpg",
    ),
    "inside Parquet": Shape(inside_parquet, "label_column=label image_column=image"),
    "three each": Shape(three_each, "image_column=images"),
}


def train_and_submit(p: Params) -> pd.DataFrame:
    """All steps of a run; its submission as write_submission gives it."""
    open_run(p)
    goods = read_goods(p)
    fit(p, goods)
    predict_test(p, goods)
    ensemble_run(p, goods)
    return write_submission(p, goods)


def main(target: Path) -> None:
    from goods.data.sample import make_competition, read_texts
    from goods.data.sample_model import make_model

    make_competition(target / "sample", seed=0, train_per_class=24, test_per_class=6)
    make_model(target / "siglip-tiny", read_texts(target / "sample"), seed=0)
    for name, shape in SHAPES.items():
        folder = target / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        shape.make(target / "sample", folder)
        p = load_params(
            "params/demo.yaml", **shape.parameters, run=folder.name, data_dir=str(folder), tune="head", num_epochs=60,
            model_name=str(target / "siglip-tiny"), outputs_dir=str(target / "outputs"), retrain=True,
        )  # fmt: skip
        submission = train_and_submit(p)
        print(f"{name}: {shape.settings}\n  {len(submission)} products in {p.run_dir / 'submission.csv'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
