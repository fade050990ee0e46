"""In the kernel: what is attached is found, what isn't is said, and the key of wandb stays secret."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import touch
from kaggle_server import LAYOUTS, Kaggle, mount

from goods.errors import GoodsError
from goods.files import ROOT, resolve
from goods.params import load_params
from kaggle_kernel import attached, in_kernel


@pytest.mark.parametrize(("competition", "model"), LAYOUTS)
def test_inputs_are_found_by_their_files(sample: Any, tmp_path: Path, competition: str, model: str) -> None:
    root = mount(sample, tmp_path, competition, model) / "input"
    (root / "loop").symlink_to(root)
    found = attached.find_inputs(root)
    assert found == {"competition": [root / competition], "model": [root / model], "run": []}
    assert attached.the_competition(found["competition"], root) == root / competition
    assert attached.the_model(found["model"], "siglip-tiny", root) == root / model


@pytest.mark.slow
def test_a_hundred_thousand_files_are_found_within_seconds(tmp_path: Path) -> None:
    for folder, marker in (("a/train_images", ""), ("a/photos", ""), ("z/tables", "train.csv test.csv")):
        (tmp_path / folder).mkdir(parents=True)
        for name in marker.split():
            (tmp_path / folder / name).touch()
    for i in range(100_000):
        (tmp_path / "a" / ("photos" if i % 2 else "train_images") / f"{i}.jpg").touch()
    began = time.perf_counter()
    assert attached.find_inputs(tmp_path)["competition"] == [tmp_path / "z" / "tables"]
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("names", ["train.tsv test.tsv", "train.parquet test.csv.gz",
                                   "train-00000-of-00002.parquet test-00000-of-00001.parquet"])  # fmt: skip
def test_tables_of_every_kind_make_a_competition(tmp_path: Path, names: str) -> None:
    touch(tmp_path, *(f"goods/data/{name}" for name in names.split()), "other/train.md", "other/test.md")
    assert attached.find_inputs(tmp_path)["competition"] == [tmp_path / "goods" / "data"]


def test_what_is_not_attached_is_said(sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "params", tmp_path / "project" / "params")
    monkeypatch.setattr("goods.files.ROOT", tmp_path / "project")
    root, inputs = tmp_path / "kaggle", tmp_path / "kaggle" / "input"
    inputs.mkdir(parents=True)

    def prepare(**given: Any) -> in_kernel.Session:
        return in_kernel.prepare(root, "params/demo.yaml", **given)

    with pytest.raises(GoodsError, match="no competition is attached"):
        prepare()
    shutil.copytree(sample.data, inputs / "goods")
    with pytest.raises(GoodsError, match="needs the weights of siglip-tiny, but none are attached"):
        prepare()
    assert in_kernel.prepare(root, "params/linear.yaml").p.model_name  # not attached: kind linear needs no weights
    shutil.copytree(sample.model, inputs / "clip-large")
    with pytest.raises(GoodsError, match=r"those of another: .*clip-large"):
        prepare()
    shutil.copytree(sample.model, inputs / "siglip-tiny")
    session = prepare(num_epochs=2)
    assert session.p.run_dir == root / "working" / "outputs" / "demo"
    assert resolve(session.p.model_name).resolve() == inputs / "siglip-tiny"
    shutil.copytree(sample.data, inputs / "retail")
    with pytest.raises(GoodsError, match="2 competitions are attached"):
        prepare()
    assert prepare(data_dir=str(inputs / "retail")).p.train_csv == str(inputs / "retail" / "train.csv")
    with pytest.raises(GoodsError, match="did you mean 'dropout'"):
        prepare(data_dir=str(inputs / "retail"), dropuot=0.1)
    monkeypatch.setattr(in_kernel, "FREE_GB", 1e9)
    with pytest.raises(GoodsError, match="GB left"):
        prepare()


# Kaggle's image has such a module, which asks a server that only a kernel reaches.
SECRETS = """
import time
class UserSecretsClient:
    def get_secret(self, label):
        assert label == "WANDB_API_KEY"
        {does}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("return ' 0123456789abcdef\\n'", "wandb: online, with the secret WANDB_API_KEY"),
        ("raise ConnectionError('no such secret')", "wandb: offline, no secret WANDB_API_KEY is attached"),
        ("time.sleep(60)", "wandb: offline, no secret"),
        (None, "wandb: offline, no secret"),  # not on Kaggle
    ],
)
def test_the_key_of_wandb_comes_from_kaggles_secrets(
    kaggle: Kaggle, does: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if does:
        (tmp_path / "kaggle_secrets.py").write_text(SECRETS.format(does=does))
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(in_kernel, "SECRET_SECONDS", 0.5)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", kaggle.url)  # any server will do: there is a network
    command = [sys.executable, "-c", "import os; print(len(os.environ.get('WANDB_API_KEY', '')), 'characters')"]
    p = load_params(outputs_dir=str(tmp_path / "working" / "outputs"))
    in_kernel.run(in_kernel.Session(p, command, tmp_path / "working", tmp_path / "temp"))
    sys.modules.pop("kaggle_secrets", None)
    out = capsys.readouterr().out
    assert out.startswith(said) and f"{16 if 'online' in said else 0} characters" in out
    assert "0123456789abcdef" not in out and "WANDB_API_KEY" not in os.environ


def test_no_secret_is_asked_for_without_a_network(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(in_kernel, "_read_secret", lambda: pytest.fail("asked"))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert in_kernel.wandb_environment(load_params()) == {}
    assert capsys.readouterr().out == "wandb: offline\n"


def test_attached_vectors_are_put_where_the_config_looks(sample: Any, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(ROOT / "params", tmp_path / "project" / "params")
    monkeypatch.setattr("goods.files.ROOT", tmp_path / "project")
    inputs = tmp_path / "kaggle" / "input"
    shutil.copytree(sample.data, inputs / "goods")
    given = {"kind": "embeddings", "embeddings_files": ["models/vlm/train.npz", "models/test.safetensors"]}

    def prepare() -> in_kernel.Session:
        return in_kernel.prepare(tmp_path / "kaggle", "params/head.yaml", **given)

    with pytest.raises(GoodsError, match=r"needs the vectors in train\.npz, and no file below .*input is called so"):
        prepare()
    names = ("a/vlm/train.npz", "b/other/train.npz", "b/image-vectors/test.safetensors", "b/image-vectors/test.ids.txt")
    touch(inputs, *names)
    assert prepare().p.embeddings_files == tuple(given["embeddings_files"])  # and no encoder is asked for
    assert resolve("models/vlm/train.npz").resolve() == inputs / names[0]
    assert [resolve(f"models/test.{end}").resolve() for end in ("safetensors", "ids.txt")] == [
        inputs / n for n in names[2:]
    ]
    touch(inputs, "c/vlm/train.npz")
    with pytest.raises(GoodsError, match=r"vectors train\.npz are attached more than once, in .*a/vlm.*c/vlm"):
        prepare()
