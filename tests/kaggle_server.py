"""A server that the command line takes for Kaggle, and a fake /kaggle to run in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from conftest import put_together
from loopback import Handler, Server

from goods.data.tables import read_goods
from goods.ensemble.submission import write_submission
from goods.members import open_run
from goods.params import Params, load_params
from goods_utils import fit_all

SETTINGS = {"tune": "head", "n_folds": 3, "num_epochs": 40, "num_workers": 0}
FOLDS = [0, 1]
LAYOUTS = [
    ("goods-classification", "siglip-tiny"),
    ("competitions/goods-classification", "models/me/siglip/transformers/tiny/1"),
    ("goods-classification/data", "datasets/me/siglip-tiny"),
]


class Api(Handler):
    """Answers the command line's calls with what the server was told to say; keeps what it was sent."""

    def do_POST(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.calls.append((name, json.loads(self.body())))
        answer = self.server.answers.get(name, 404)
        if answer == "hang up":
            self.close_connection = True
        elif isinstance(answer, int):
            self.say(answer, {"code": answer, "message": "no"})
        else:
            self.say(200, answer)

    def do_GET(self) -> None:
        if "/logs/stream/" in self.path:
            return self.say(200, [{"stream_name": "stdout", "time": 1.0, "data": "epoch 1 of 3"}])
        file = self.server.files[self.path.partition("/files/")[2]]
        self.say(200, file.read_bytes(), {"Content-Type": "application/octet-stream"})

    def do_PUT(self) -> None:
        self.body()
        self.say(200, {})


class Kaggle(Server):
    """What the command line takes for Kaggle."""

    def __init__(self) -> None:
        super().__init__(Api)
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, Any]] = []
        self.files: dict[str, Path] = {}


def mount(sample: Any, root: Path, competition: str, model: str, output: Path | None = None) -> Path:
    """A fake /kaggle with the sample as its input, and the output of an earlier version; returns it."""
    shutil.copytree(sample.data, root / "input" / competition)
    shutil.copytree(sample.model, root / "input" / model)
    if output:
        shutil.copytree(output, root / "input" / "notebooks" / "me" / "goods-classification")
    return root


def hide_more_products(competition: Path) -> pd.DataFrame:
    """A mounted competition's test set as in a scoring re-run: three times as long, with other ids.

    First the same products, then they again without photos, then with no text either.
    """
    table, photos = competition / "test.csv", competition / "test_images" / "test_images"
    test = pd.read_csv(table, dtype=str, keep_default_na=False)
    thirds = [test.assign(id=[f"{word}{i}" for i in range(len(test))]) for word in ("same", "blind", "empty")]
    for before, after in zip(test["id"], thirds[0]["id"], strict=True):
        for photo in photos.glob(f"{before}.*"):
            photo.rename(photo.with_stem(after))
    thirds[2][["title", "description"]] = ""
    hidden = pd.concat(thirds)
    hidden.to_csv(table, index=False)
    return hidden


def run_here(sample: Any, outputs: Path, folds: list[int], config: str = "params/demo.yaml", **given: Any) -> Params:
    """The same run without notebooks."""
    where = {"data_dir": str(sample.data), "model_name": str(sample.model), "outputs_dir": str(outputs)}
    p = load_params(config, **where | {"folds": folds} | given)
    open_run(p)
    goods = read_goods(p)
    fit_all(p, goods)
    put_together(p, goods)
    write_submission(p, goods)
    return p
