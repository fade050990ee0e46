"""What would take more memory than there is is refused before it starts, also where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
from backbones import image_encoder_dir

from goods.cost.plan import plan_run
from goods.errors import GoodsError
from goods.members import open_run
from goods.params import load_params


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 100_000), ("hidden_dim", 2 * 10**9), ("text_windows", 1_000_000)]
)
def test_a_run_that_no_memory_holds_is_refused(sample, tmp_path, name, value):
    given = {"data_dir": str(sample.data), "model_name": str(sample.model), "outputs_dir": str(tmp_path / "outputs")}
    with pytest.raises(GoodsError, match=rf"{name} {value:,}: with up to 16 .* takes [\d,]+ GB of memory, and"):
        open_run(load_params(**given, tune="lora", **{"hidden_dim": 32, "image_size": 32} | {name: value}))
    assert not (tmp_path / "outputs").exists()


def test_an_image_encoder_is_counted_by_itself(sample, tmp_path):
    model = str(image_encoder_dir(tmp_path / "vit", "vit"))
    given = {"data_dir": str(sample.data), "model_name": model, "outputs_dir": str(tmp_path / "outputs")}
    small = {"kind": "image", "tune": "head", "image_size": None}
    assert open_run(load_params(**given, **small, eval_batch_size=5000)).is_dir()
    with pytest.raises(GoodsError, match=r"eval_batch_size 1,000,000,000: .* takes [\d,]+ GB of memory, and"):
        open_run(load_params(**given, **small, run="other", eval_batch_size=10**9))


def test_what_is_large_and_fits_is_not(sample, tmp_path, monkeypatch):
    given = {"data_dir": str(sample.data), "model_name": str(sample.model), "outputs_dir": str(tmp_path / "outputs")}
    p = load_params(**given, tune="lora", hidden_dim=32, image_size=32, lora_rank=2000)
    assert open_run(p).is_dir()
    monkeypatch.setattr("goods.cost.limits.memory_of_machine", lambda: 10**8)
    with pytest.raises(GoodsError, match=r"lora_rank 2,000: with up to 16 .* and this machine has 0; lower it"):
        open_run(p)


QUERIES = ["query", "value"]


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("text", {"tune": "lora", "lora_targets": QUERIES, "lora_rank": 100_000_000}),
        ("text", {"eval_batch_size": 10**8, "batch_size": 8}),
        ("embeddings", {"hidden_dim": 2 * 10**9}),
        ("linear", {"num_classes": 99_999, "train_csv": "big"}),
        ("blend", {"num_classes": 99_999, "train_csv": "big", "runs": "a, b"}),
        ("knn", {"image_size": 100_000}),
        ("image", {"image_size": 1024, "eval_batch_size": 1000, "model_name": "vit"}),  # each is usual
        ("dual", {"num_workers": 5000, "image_size": 32, "hidden_dim": 32}),
    ],
)
def test_no_kind_takes_more_than_there_is(sample, encoder_dir, tmp_path, monkeypatch, kind, given):
    monkeypatch.setattr("goods.cost.limits.memory_of_machine", lambda: 30 * 10**9)
    model = {"text": encoder_dir, "dual": sample.model, "knn": sample.model}.get(kind, "none")
    if given.get("model_name"):
        model = image_encoder_dir(tmp_path / "vit", "vit")
    if given.get("train_csv"):
        given = given | {"train_csv": str(tmp_path / "train.csv")}
        (tmp_path / "train.csv").write_text("id\n" + "1\n" * 50_000)
    if kind == "embeddings":
        np.savez(tmp_path / "v.npz", ids=np.array(["1", "2"]), embeddings=np.zeros((2, 8)))
        given = given | {"embeddings_files": str(tmp_path / "v.npz")}
    given = {"kind": kind, "data_dir": str(sample.data), "outputs_dir": str(tmp_path / "outputs"), **given}
    with pytest.raises(GoodsError, match=r"with up to \d+ products at a time the run takes [\d,]+ GB of memory, and"):
        open_run(load_params(**given | {"model_name": str(model)}))
    assert not (tmp_path / "outputs").exists()


def test_vectors_among_the_further_embeddings_are_counted_by_their_own_width(sample, tmp_path):
    np.savez(tmp_path / "v.npz", ids=np.array(["1", "2"]), embeddings=np.zeros((2, 8)))
    given = {"data_dir": str(sample.data), "model_name": str(sample.model), "outputs_dir": str(tmp_path / "outputs")}
    p = load_params(**given, tune="last", image_size=32, extra_embeddings=str(tmp_path / "v.npz"), hidden_dim=20_000)
    assert open_run(p).is_dir()
    with_vectors, without = (plan_run(q, "T4") for q in (p, p.model_copy(update={"extra_embeddings": ()})))
    assert with_vectors.trainable - without.trainable == 8 * (20_000 + 2)  # the fused head's norm and first layer
