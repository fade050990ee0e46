"""A server that the command line takes for Kaggle, a fake /kaggle to run in, and what runs a notebook there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import put_together
from loopback import Handler, Server

from goods.data.tables import read_goods
from goods.ensemble.submission import write_submission
from goods.files import write_text
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


on_demand = pytest.mark.skipif("GOODS_SLOW" not in os.environ, reason="takes a minute or two: GOODS_SLOW=1 runs it")
# In a network of its own, with nothing in it but this machine: where unshare isn't allowed, sockets refuse the others.
OFFLINE = """
import fcntl, os, socket, struct, sys
flags = struct.pack("16sh14x", b"lo", 1)  # up
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, flags)
os.execv(sys.argv[1], sys.argv[1:])
"""
REFUSE = """
import socket
connect = socket.socket.connect
def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"no network here: {address}")
    return connect(self, address)
socket.socket.connect = refuse
"""


class Api(Handler):
    """Answers the command line's calls with what the server was told to say; keeps what it was sent."""

    def do_POST(self) -> None:
        name = self.path.rpartition("/")[2]
        asked = json.loads(self.body())
        self.server.calls.append((name, asked))
        answer = self.server.answers.get(name, 404)
        answer = answer(asked) if callable(answer) else answer
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


def run_offline(text: str, root: Path, python: Path | str = sys.executable, **parameters: Any) -> str:
    """Runs a pushed notebook in an empty folder, without network and without this project in sight.

    Returns what it said when it failed, else nothing.
    """
    aside = root.with_name(f"{root.name}-aside")
    write_text(aside / "pushed.ipynb", text)
    write_text(aside / "refuse" / "sitecustomize.py", REFUSE)
    write_text(aside / "parameters.yaml", yaml.safe_dump({"config": "params/demo.yaml"} | parameters))
    (aside / "empty").mkdir()
    command = [python, "-m", "papermill", aside / "pushed.ipynb", aside / "done.ipynb", "-k", "python3"]
    command += ["-f", aside / "parameters.yaml", "--no-progress-bar"]
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0:
        command = ["unshare", "-rn", python, "-c", OFFLINE, *command]
    environment = os.environ | {"GOODS_KAGGLE_ROOT": str(root), "PYTHONPATH": str(aside / "refuse")}
    environment["JUPYTER_PATH"] = str(Path(python).parents[1] / "share" / "jupyter")
    done = subprocess.run(command, cwd=aside / "empty", env=environment, capture_output=True, text=True, timeout=500)
    assert not list((aside / "empty").iterdir())
    return done.stderr if done.returncode else ""
