"""goods_model: how photos and texts reach a backbone, what may be one, the embeddings cache, heads and weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, Sample
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel, CLIPConfig, CLIPModel

from goods.data.photos import load_photo
from goods.errors import GoodsError
from goods.files import ROOT
from goods.models.backbone import DualEncoder, load_backbone, load_processor
from goods.models.device import pick_precision
from goods.models.embeddings import Embedder
from goods.models.heads import GoodsClassifier, GoodsHeads, heads_like, make_heads
from goods.models.tuning import load_trained, save_trained, set_trainable
from goods.params import OUTPUTS, Params, load_params

TEXTS = ["Blue Ceramic Cup, hand-made!", "", "a lamp " * 60]  # ordinary, empty, far too long


def photo(path: Path, size: tuple[int, int] = (90, 50)) -> Path:
    """A photo of soft blotches, saved in the format of its ending."""
    blotches = np.random.default_rng(sum(size)).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def encoder_of(model: Path, **given: Any) -> DualEncoder:
    p = load_params(model_name=str(model), **({"image_size": None} | given))
    return DualEncoder(load_backbone(p.model_name), load_processor(p.model_name), p).eval()


@pytest.fixture(scope="session")
def encoder(sample: Sample) -> DualEncoder:
    return encoder_of(sample.model)


@pytest.fixture
def model_copy(sample: Sample, tmp_path: Path) -> Path:
    """The tiny SigLIP's directory, to be spoilt."""
    return Path(shutil.copytree(sample.model, tmp_path / "some-siglip"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature CLIP directory: 77 tokens, 32 pixels, letters for a vocabulary, embeddings of 24 numbers."""
    folder = tmp_path_factory.mktemp("models") / "clip-mini"
    folder.mkdir()
    letters = [".", "!", *map(chr, range(ord("a"), ord("z") + 1))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    begin, end = len(vocabulary) - 2, len(vocabulary) - 1
    special = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    files = {
        "vocab.json": {token: i for i, token in enumerate(vocabulary)},
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", **special},
        "preprocessor_config.json": {
            **{"image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor", "resample": 3},
            **{"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "size": {"shortest_edge": 32}},
            **{"do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": end + 1, "max_position_embeddings": 77, "bos_token_id": begin, "eos_token_id": end}
    vision = {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=tower | text | {"pad_token_id": end}, vision_config=tower | vision)
    config.projection_dim = 24
    CLIPModel(config).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# What the backbone is given
# ---------------------------------------------------------------------------------------------------------------------


def given_pixels(encoder: DualEncoder, path: Path) -> np.ndarray:
    """What the image tower gets for a photo, (3, size, size)."""
    got = []
    hook = encoder.backbone.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: got.append(kwargs["pixel_values"]), with_kwargs=True
    )
    with torch.no_grad():
        encoder.embed_images(load_photo(str(path), encoder.image_size)[None])
    hook.remove()
    return got[0][0].numpy()


@pytest.mark.parametrize("size", [(90, 50), (45, 70), (64, 64)])
def test_pixels_are_those_of_the_image_processor(sample: Sample, encoder: DualEncoder, tmp_path: Path, size) -> None:
    path = photo(tmp_path / "photo.png", size)
    processor = AutoProcessor.from_pretrained(sample.model).image_processor
    expected = processor(Image.open(path), return_tensors="np")["pixel_values"][0]
    grey_levels = np.abs(given_pixels(encoder, path) - expected) * 127.5  # pixels go from -1 to 1
    assert grey_levels.max() < 2.01 and grey_levels.mean() < 0.25
    assert (grey_levels > 1.01).mean() < 1e-3  # torch and Pillow round differently between the two passes


def test_photos_are_squashed_even_where_the_processor_would_crop(clip: Path, tmp_path: Path) -> None:
    path = photo(tmp_path / "photo.png", (96, 32))
    squashed = np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    expected = ((squashed - [0.48, 0.46, 0.41]) / [0.27, 0.26, 0.28]).transpose(2, 0, 1)
    assert np.abs(given_pixels(encoder_of(clip, max_text_length=16), path) - expected).max() < 2.01 / 255 / 0.26


def test_texts_are_padded_to_the_full_length_and_never_masked(sample: Sample, encoder: DualEncoder) -> None:
    backbone, processor = AutoModel.from_pretrained(sample.model), AutoProcessor.from_pretrained(sample.model)
    given = processor(text=TEXTS, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    ids = encoder.processor.tokenize(TEXTS, TEXTS, 64)
    assert torch.equal(ids[:, 0], given["input_ids"])
    mask = torch.zeros(3, 64, dtype=torch.long)
    for row, words in enumerate(processor.tokenizer(TEXTS)["input_ids"]):
        mask[row, : len(words)] = 1
    with torch.no_grad():
        found = encoder.embed_texts(ids)
        plain, masked = (
            backbone.get_text_features(input_ids=given["input_ids"], attention_mask=m).pooler_output
            for m in (None, mask)
        )
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    assert torch.cosine_similarity(found[:2], masked[:2]).max() < 0.999  # else the mask would not matter here


def test_texts_are_lower_case_for_a_tokenizer_that_leaves_them_be(model_copy: Path) -> None:
    config = json.loads((model_copy / "tokenizer_config.json").read_text())
    (model_copy / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    processor = load_processor(str(model_copy))
    upper, lower = ["Blue CUP"], ["blue cup"]
    assert processor.tokenizer(upper)["input_ids"] != processor.tokenizer(lower)["input_ids"]
    assert torch.equal(processor.tokenize(upper, upper, 8), processor.tokenize(lower, lower, 8))
    assert processor.count_tokens(upper) == processor.count_tokens(lower)


def test_tokens_are_counted_before_they_are_cut(encoder: DualEncoder) -> None:
    ordinary, empty, long = encoder.processor.count_tokens(TEXTS)
    assert empty == 1 and 5 < ordinary < 64 < long
    ids = encoder.processor.tokenize(TEXTS, TEXTS, 64)[:, 0]
    assert ((ids[0] == 1).nonzero()[0].item(), (ids[1] == 1).all().item()) == (ordinary - 1, True)


@pytest.mark.parametrize("size", [32, 96])
def test_another_image_size_interpolates_the_positions(encoder: DualEncoder, sample: Sample, size: int) -> None:
    other = encoder_of(sample.model, image_size=size)
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        expected = encoder.backbone.get_image_features(
            pixel_values=pixels / 127.5 - 1, interpolate_pos_encoding=True
        ).pooler_output
        torch.testing.assert_close(other.embed_images(pixels), expected, rtol=0, atol=1e-5)


def test_sizes_that_the_backbone_cannot_take(sample: Sample, clip: Path) -> None:
    with pytest.raises(GoodsError, match="image_size 70 is not a multiple of the patch of 8; take 72"):
        encoder_of(sample.model, image_size=70)
    with pytest.raises(GoodsError, match="max_text_length 65 is more than the 64 tokens the backbone can read"):
        encoder_of(sample.model, max_text_length=65)
    assert encoder_of(clip, max_text_length=77).image_size == 32


def test_a_clip_directory_goes_the_same_road(clip: Path, tmp_path: Path) -> None:
    encoder = encoder_of(clip, max_text_length=16)
    ids = encoder.processor.tokenize(["A lamp!", "more letters than there is room for", ""], [""] * 3, 16)
    end = ids.max()
    mask = (torch.arange(16) <= (ids[:, 0] == end).int().argmax(1, keepdim=True)).long()
    pixels = load_photo(str(photo(tmp_path / "photo.png")), 32)[None]
    with torch.no_grad():
        whole = encoder.backbone(
            input_ids=ids[:, 0], attention_mask=mask, pixel_values=(pixels / 255 - encoder.mean) / encoder.std
        )
        texts, images = encoder.embed_texts(ids), encoder.embed_images(pixels)
    torch.testing.assert_close(F.normalize(texts), whole.text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(F.normalize(images), whole.image_embeds, rtol=0, atol=1e-5)

    p = load_params(model_name=str(clip), image_size=None, max_text_length=16, num_classes=3, hidden_dim=8)
    heads = make_heads({"image": images.repeat(4, 1), "text": texts.repeat(2, 1)[:4]}, p)
    logits = GoodsClassifier(encoder, heads)(pixels, ids[:1])
    assert {name: tuple(values.shape) for name, values in logits.items()} == dict.fromkeys(OUTPUTS, (1, 3))


# ---------------------------------------------------------------------------------------------------------------------
# What may be a backbone
# ---------------------------------------------------------------------------------------------------------------------


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor], str], Any]) -> None:
    """Applies `change` to the tensors and the name of one of them."""
    weights = load_file(folder / "model.safetensors")
    change(weights, "text_model.encoder.layers.0.mlp.fc1.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def to_pickle_beside_others(folder: Path) -> None:
    to_pickle(folder)
    save_file({"adapter": torch.zeros(2)}, folder / "adapter.safetensors", metadata={"format": "pt"})


def to_bert(folder: Path) -> None:
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=50, **tower)).save_pretrained(folder)


def lose_a_shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-{1 + k % 2:05}-of-00002.safetensors" for k, name in enumerate(weights)}
    first = {name: tensor for name, tensor in weights.items() if shards[name].startswith("model-00001")}
    save_file(first, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


SPOILT = {
    "no folder": (shutil.rmtree, "there is no model directory .*some-siglip; download its directory"),
    "no config": (lambda d: (d / "config.json").unlink(), "some-siglip lacks config.json; download it"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"lacks weights \(\*.safetensors\); download it"),
    "only a pickle": (to_pickle, r"lacks weights \(\*.safetensors\); download it"),
    "a pickle and others": (to_pickle_beside_others, "the model in .* can't be loaded: .*; download it"),
    "no processor": (lambda d: (d / "preprocessor_config.json").unlink(), "lacks an image processor"),
    "no tokenizer": (lambda d: (d / "tokenizer_config.json").unlink(), "lacks a tokenizer"),
    "no vocabulary": (lambda d: (d / "spiece.model").unlink(), "the processor in .* can't be loaded: .*; download it"),
    "half the vocabulary": (lambda d: cut(d / "spiece.model"), "the processor in .* can't be loaded: .*; download it"),
    "half a config": (lambda d: cut(d / "config.json"), "can't be loaded: .*config.json.*; download it"),
    "an unknown kind": (
        lambda d: (d / "config.json").write_text('{"model_type": "unheard-of"}'),
        r"the model in \S* can't be loaded: .{9,200}; download it",
    ),
    "half the weights": (lambda d: cut(d / "model.safetensors"), "the model in .* can't be loaded: .*; download it"),
    "a shard lost": (lose_a_shard, "can't be loaded: .*00002-of-00002.safetensors; download it"),
    "a tensor lost": (
        lambda d: change_weights(d, lambda weights, name: weights.pop(name)),
        "don't fit its config.json: 1 are missing .* such as text_model.encoder.layers.0.mlp.fc1.weight; download",
    ),
    "a tensor of another shape": (
        lambda d: change_weights(d, lambda weights, name: weights.update({name: weights[name][1:].clone()})),
        "don't fit its config.json: 1 are .* another shape, such as text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    "one tower": (to_bert, "some-siglip holds a BertModel; a dual encoder such as SigLIP is needed"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_directories_that_hold_no_backbone(model_copy: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(model_copy)
    with pytest.raises(GoodsError, match=message) as caught:
        load_backbone(str(model_copy))
        load_processor(str(model_copy))
    assert "\n" not in str(caught.value)


def test_no_code_of_the_directory_is_run(model_copy: Path, tmp_path: Path) -> None:
    config = json.loads((model_copy / "config.json").read_text())
    auto = {"AutoConfig": "trap.Config", "AutoModel": "trap.Model"}
    (model_copy / "config.json").write_text(json.dumps(config | {"model_type": "trap", "auto_map": auto}))
    (model_copy / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    with pytest.raises(GoodsError, match="can't be loaded"):
        load_backbone(str(model_copy))
    assert not (tmp_path / "sprung").exists()


def test_the_sample_model_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(GoodsError, match=r"is made by: python -m goods\.data\.sample$"):
        load_backbone(str(tmp_path / "siglip-tiny"))


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings, each computed once
# ---------------------------------------------------------------------------------------------------------------------


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


@pytest.fixture
def p(mini: dict[str, Any], tmp_path: Path) -> Params:
    return load_params(**mini | {"eval_batch_size": 4}, outputs_dir=str(tmp_path / "outputs"))


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


def test_a_damaged_cache_says_which_file(p: Params, products: Products) -> None:
    embedder = Embedder(p)
    embedder.texts(products.texts, products.texts)
    (file,) = embedder.folder.rglob("*.safetensors")
    cut(file)
    with pytest.raises(GoodsError, match=rf"{file.name} is damaged; delete it"):
        embedder.texts(products.texts, products.texts)


TWIN = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_model import *
p, products = load_params(**json.loads(sys.argv[3])), Products(Path(sys.argv[4]))
embedder, seen = watched(p)
print("ready", flush=True)
input()
embedder.photos(products.images, products.shas)
embedder.texts(products.texts, products.texts)
print(json.dumps(seen))
"""


def test_two_processes_at_once_share_the_work(mini: dict[str, Any], p: Params, tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    given = mini | {"eval_batch_size": 4, "outputs_dir": p.outputs_dir}
    paths = [str(ROOT), str(Path(__file__).parent)]
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


# ---------------------------------------------------------------------------------------------------------------------
# Heads, and what is saved of a model
# ---------------------------------------------------------------------------------------------------------------------


def test_heads_take_embeddings_of_any_scale(p: Params) -> None:
    generator = torch.Generator().manual_seed(0)
    image = 1e4 + 1e3 * torch.randn(200, 6, generator=generator)
    text = 1e-4 * torch.randn(200, 5, generator=generator)
    text[:, 2] = 7.0  # says nothing, and must not blow up
    heads = make_heads({"image": image, "text": text}, p).eval()
    got = []
    heads.fused[0].register_forward_pre_hook(lambda module, args: got.append(args[0]))
    logits = heads(image, text)
    both = got[0]  # (200, 6 + 5)
    torch.testing.assert_close(both.mean(0), torch.zeros(11), rtol=0, atol=1e-2)
    spread = torch.tensor([1.0] * 8 + [0.0] + [1.0] * 2)
    torch.testing.assert_close(both.std(0, correction=0), spread, rtol=0, atol=1e-2)
    assert all(values.shape == (200, p.num_classes) and values.isfinite().all() for values in logits.values())

    other = heads(image, text.flip(0))
    assert torch.equal(other["image"], logits["image"])
    assert not torch.equal(other["text"], logits["text"]) and not torch.equal(other["fused"], logits["fused"])


def test_heads_begin_as_seed_and_fold_say(p: Params) -> None:
    image, text = torch.randn(9, 4), torch.randn(9, 4)

    def weight(**changes: int) -> torch.Tensor:
        return make_heads({"image": image, "text": text}, p.model_copy(update=changes)).image[1].weight

    assert torch.equal(weight(), weight())
    assert not torch.equal(weight(), weight(seed=p.seed + 5)) and not torch.equal(weight(), weight(fold=1))


def classifier(p: Params) -> GoodsClassifier:
    backbone = load_backbone(p.model_name)
    set_trainable(backbone, p)
    encoder = DualEncoder(backbone, load_processor(p.model_name), p)
    width = backbone.config.vision_config.hidden_size
    return GoodsClassifier(encoder, make_heads({"image": torch.randn(9, width), "text": torch.randn(9, width)}, p))


def test_token_embeddings_and_logit_scale_are_never_trained(p: Params) -> None:
    model = classifier(p.model_copy(update={"tune": "full"}))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.removeprefix("encoder.backbone.") for name in frozen} == {
        "logit_scale", "logit_bias", "text_model.embeddings.token_embedding.weight",
    }  # fmt: skip
    ids = model.encoder.processor.tokenize(["cup", "lamp"], ["cup", "lamp"], 64)
    sum(v.square().sum() for v in model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), ids).values()).backward()
    idle = [name for name, w in model.named_parameters() if w.requires_grad and w.grad is None]
    assert idle == []  # DistributedDataParallel dies of one


def test_weights_go_through_a_file_and_back(p: Params, tmp_path: Path) -> None:
    p = p.model_copy(update={"tune": "full"})
    model = classifier(p)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    save_trained(model, tmp_path / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    own = {name for name, w in model.named_parameters() if w.requires_grad}
    scales = {f"heads.{part}_{what}" for part in ("image", "text") for what in ("mean", "std")}
    assert set(saved) == own | scales
    kinds = {(name.split(".")[0], tensor.dtype) for name, tensor in saved.items()}
    assert kinds == {("encoder", torch.float16), ("heads", torch.float32)}

    other = classifier(p.model_copy(update={"seed": 9}))
    load_trained(other, tmp_path / "model.safetensors")
    for name, tensor in other.state_dict().items():
        if name in saved:
            expected = model.state_dict()[name]
            assert torch.equal(tensor, expected.half().float() if name.startswith("encoder.") else expected)
            assert tensor.dtype == torch.float32


def test_weights_of_another_model_are_refused(p: Params, trained: Run, tmp_path: Path) -> None:
    file = Path(shutil.copy(trained.p.run_dir / "fold0" / "model.safetensors", tmp_path))
    heads = heads_like(file, p)
    load_trained(heads, file)
    full = p.model_copy(update={"tune": "full"})
    save_trained(classifier(full), tmp_path / "full.safetensors")
    with pytest.raises(GoodsError, match=r"full\.safetensors belong to another model or to other parameters"):
        load_trained(heads, tmp_path / "full.safetensors")
    with pytest.raises(GoodsError, match=r"model\.safetensors belong to another model or to other parameters"):
        load_trained(classifier(full), file)
    with pytest.raises(GoodsError, match=r"model\.safetensors can't be loaded: .*"):
        load_trained(heads_like(file, p.model_copy(update={"num_classes": 4})), file)
    cut(file)
    with pytest.raises(GoodsError, match=r"model\.safetensors can't be loaded"):
        load_trained(heads, file)
    with pytest.raises(GoodsError, match=r"model\.safetensors can't be loaded"):
        heads_like(file, p)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what a GPU can do is another matter")
def test_precisions_of_a_cpu() -> None:
    assert [pick_precision(name) for name in ("fp32", "bf16", "auto")] == ["fp32", "bf16", "fp32"]
    with pytest.raises(GoodsError, match="fp16 needs a GPU"):
        pick_precision("fp16")


def test_a_dead_dimension_does_not_swamp_the_others_when_it_moves():
    heads = GoodsHeads(8, 8, Params(num_classes=3, hidden_dim=8))
    embeddings = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    embeddings[:, 3] = 0.5  # dead
    heads.set_scale(image=embeddings, text=embeddings)
    live = [k for k in range(8) if k != 3]
    torch.testing.assert_close(heads.image_std[live], embeddings[:, live].std(0, correction=0))
    assert 0.5 < heads.image_std[3] < 2
