"""Kind image, and kind dual with two encoders of two makers: each way to tune trains, and its files predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from backbones import image_encoder_dir
from conftest import fit

from goods.cost.empty import read_config
from goods.cost.footprint import measure_footprint
from goods.data.datasets import collate
from goods.data.folds import read_folds
from goods.data.tables import read_goods
from goods.errors import ParameterError
from goods.explain import explain
from goods.files import folder_hash
from goods.members import dual, image, kind_of, predict_test, predictor_of
from goods.models.encoders import SIDES, load_encoder
from goods.models.heads import make_heads
from goods.models.tuning import set_trainable
from goods.params import OUTPUTS, Params
from goods.predictions import frame_logits, outputs_of
from goods.run import Run
from goods.training.inputs import Inputs, SharedInputs

SMALL = {"n_folds": 3, "fold": 1, "num_workers": 0, "batch_size": 28, "eval_batch_size": 42, "num_classes": 21,
         "image_size": None, "num_epochs": 1, "learning_rate": 1e-3, "last_blocks": 1, "hidden_dim": 8}  # fmt: skip
# How each is tuned, with which encoder of photos; the layers of LoRA are the photos' and, for two encoders, the texts'.
WAYS = {"head": "vit", "last": "convnext", "lora": "dinov3", "full": "dinov2"}
ways = pytest.mark.parametrize("tune", WAYS)
CASES = [(kind, tune, []) for kind in ("image", "dual") for tune in WAYS]
CASES += [("dual", "lora", ["text_model"]), ("dual", "full", ["vision_model"])]


@pytest.fixture
def of(make, encoder_dir: Path, tmp_path: Path) -> Callable[..., Params]:
    """Parameters of kind image, or of kind dual with a miniature BERT beside the encoder of photos."""

    def of(kind: str, tune: str, **given: Any) -> Params:
        folder = tmp_path / WAYS[tune]
        model = folder if folder.is_dir() else image_encoder_dir(folder, WAYS[tune])
        texts = {"text_model_name": str(encoder_dir), "max_text_length": 24} if kind == "dual" else {}
        targets = ["q_proj", "query"] if kind == "dual" else ["q_proj", "up_proj"]
        return make(kind=kind, tune=tune, model_name=str(model), lora_targets=targets, **texts | given)

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind, tune, frozen", CASES)
def test_a_fold_trains_and_its_files_predict_new_products_as_they_did_the_test_set(
    of, kind: str, tune: str, frozen: list[str]
) -> None:
    p = of(kind, tune, frozen=frozen)
    outputs = ["image"] if kind == "image" else list(OUTPUTS)
    assert outputs_of(fit(p)) == outputs
    goods, fold = read_goods(p), Run.of(p).fold(1)
    predict_test(p, goods)
    written = pd.read_parquet(fold.test)
    table = goods.test.drop(columns="sha")
    found = predictor_of(p, [fold], SharedInputs())(table)[1]
    for output in outputs:
        np.testing.assert_allclose(found[output], frame_logits(written, output), rtol=0, atol=1e-4)
    paths = kind_of(p).model_dirs(p)
    assert list(paths) == (["model_name"] if kind == "image" else ["model_name", "text_model_name"])
    assert Run.of(p).record()["models"] == {name: folder_hash(path) for name, path in paths.items()}


@pytest.mark.slow
def test_a_prediction_by_photo_alone_is_explained_by_its_patches(of) -> None:
    p = of("image", "head")
    goods = read_goods(p)
    fit(p)
    table = pd.read_parquet(Run.of(p).fold(1).oof)
    why = explain(p, goods, table["id"][0], grid=2)
    assert set(why.probabilities) == {"all", "without image"} and why.words.empty and why.patches.shape == (2, 2)
    logits = frame_logits(table, "image")[0]
    assert why.predicted == logits.argmax() and why.probabilities["all"] == pytest.approx(
        np.exp(logits - np.logaddexp.reduce(logits)).max(), abs=1e-5
    )


def test_what_is_frozen_is_embedded_once_and_what_the_classifier_says_is_the_same(of) -> None:
    p = of("dual", "full", frozen=["vision_model"])
    goods = read_goods(p)
    task = dual.make_task(p, goods, read_folds(goods, p), {})
    model, rows = task.model.eval(), list(range(5))
    batch = collate(task.train.__getitems__(rows))
    assert batch.keys() == {"image", "input_ids", "label"} and task.train.lengths.max() > task.train.lengths.min()
    chosen = goods.train.set_index("id", drop=False).loc[task.ids[rows]]
    whole = dual.dataset_of(p.model_copy(update={"test_time_flip": True}), model.encoder, chosen, SIDES, Inputs())
    pixels = torch.stack([whole[row]["pixels"] for row in rows])
    with torch.no_grad():
        by_photo = model(pixels=pixels, input_ids=batch["input_ids"])
        for name, logits in model(image=batch["image"], input_ids=batch["input_ids"]).items():
            torch.testing.assert_close(logits, by_photo[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_what_predicts_holds_a_frozen_tower_once(of) -> None:
    p = of("dual", "full", frozen=["vision_model"])
    fit(p)
    model, _ = dual._tuned(p, Run.of(p).fold(1), SharedInputs(), SIDES)
    assert {name.split(".")[0] for name, _ in model.encoder.backbone.named_parameters()} == {"text_model"}


def test_of_several_photos_the_mean_counts(of) -> None:
    p = of("image", "full")
    goods = read_goods(p)
    one, two = goods.train["image"][0], goods.train["image"][9]
    model = dual.make_classifier(p, make_heads({"image": torch.randn(9, 16)}, p), image.PHOTOS).eval()
    several = goods.train.head(1).assign(images=[(one, two)])
    dataset = dual.dataset_of(p, model.encoder, several, image.PHOTOS, Inputs())
    item = dataset[0]
    assert set(item) == {"pixels", "photos"} and item["photos"] == 2
    with torch.no_grad():
        mean = model.encoder.embed_images(item["pixels"]).mean(0, keepdim=True)
        found = model(item["pixels"][None], photos=item["photos"][None])
        torch.testing.assert_close(found["image"], model.heads(mean)["image"], rtol=0, atol=1e-5)


@ways
@pytest.mark.parametrize("kind", ["image", "dual"])
def test_a_plan_counts_the_parameters_that_there_are(of, kind: str, tune: str) -> None:
    p = of(kind, tune)
    sides = kind_of(p).planned
    planned = measure_footprint(read_config(p.model_name), p, "fp32", sides)
    encoder = load_encoder(p, sides)
    set_trainable(encoder.backbone, p)
    trained = {name: q.shape for name, q in encoder.backbone.named_parameters() if q.requires_grad}
    assert {name: shape for name, shape in planned.trained.items() if not name.startswith("heads.")} == trained
    assert set(planned.rates) == set(trained)
    assert [name for name in planned.flops if name.startswith("forward")] == [f"forward, {side}" for side in sides]
    side = encoder.image_size
    with torch.no_grad():  # no architecture remembers what was planned without values
        assert encoder.eval().embed_images(torch.zeros(1, 3, side, side, dtype=torch.uint8)).isfinite().all()


def test_what_has_no_effect_is_refused(of, make) -> None:
    for name, value in {"extra_embeddings": "models/x", "text_windows": 2, "modality_dropout": 0.1}.items():
        with pytest.raises(ParameterError, match=f"{name}: .* has no effect: this kind looks at photos alone"):
            of("image", "full", **{name: value})
    for name, value in {"augment_flip": 0.5, "warm_start_epochs": 3, "text_model_name": "models/x"}.items():
        with pytest.raises(ParameterError, match=f"{name}: .* has no effect"):
            of("image", "head", **{name: value})
    with pytest.raises(ParameterError, match=r"text_model_name: .* kind text reads model_name"):
        make(kind="text", text_model_name="models/x")
