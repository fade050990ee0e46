"""What a text encoder's directory says of its use: read as sentence-transformers writes it, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backbones import say_how

from goods.errors import GoodsError
from goods.models.text_encoding import Dense, Encoding, Normalize, read_encoding

OLD = {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
       "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}  # fmt: skip
CLS = OLD | {"pooling_mode_cls_token": True}


def test_a_plain_directory_leaves_all_open(tmp_path: Path) -> None:
    assert read_encoding(tmp_path) == Encoding(None, None, "", after=(Normalize(),), dim=None)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (CLS, "cls"),
        (OLD | {"pooling_mode_mean_tokens": True}, "mean"),
        (OLD | {"pooling_mode_max_tokens": True}, "max"),
        (OLD | {"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"embedding_dimension": 384, "pooling_mode": "lasttoken", "include_prompt": True}, "lasttoken"),
        ({"embedding_dimension": 384, "pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_a_pooling_file_is_read_in_its_old_and_its_new_form(tmp_path: Path, config: Any, pooling: str) -> None:
    found = read_encoding(say_how(tmp_path, config, "Normalize", settings={"max_seq_length": 128}))
    assert found == Encoding(pooling, 128, after=(Normalize(),), dim=384)


def test_what_follows_the_pooling_is_read(tmp_path: Path) -> None:
    new = "sentence_transformers.base.modules.dense.Dense"  # as version 6 of the library says it
    say_how(tmp_path, CLS | {"include_prompt": False}, "Dense", "Dropout", settings={"do_lower_case": True},
            config={"truncate_dim": 20})  # fmt: skip
    path = tmp_path / "modules.json"
    path.write_text(path.read_text().replace("sentence_transformers.models.Dense", new))
    (tmp_path / "2_Dense").mkdir()
    config = {"activation_function": "torch.nn.modules.linear.Identity", "out_features": 50}
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(config))
    found = read_encoding(tmp_path)
    assert found.after == (Dense(tmp_path / "2_Dense", "Identity", 50),) and found.dim_of(384) == 20
    assert found.lower and not found.pools_prompt and found.max_length is None


PROMPTS = {"query": "query: ", "document": "passage: ", "Classification": "task: classification | query: "}


@pytest.mark.parametrize(
    ("config", "prompt", "said"),
    [
        ({"prompts": PROMPTS, "default_prompt_name": "document"}, "passage: ", None),
        ({"prompts": PROMPTS, "default_prompt_name": None}, "task: classification | query: ",
         "has the prompts query, document, Classification and no default one: 'Classification' is put before each"),
        ({"prompts": {"query": "query: ", "document": ""}}, "", "has the prompts query and no default one: none is"),
        ({"prompts": {"query": "", "document": ""}, "default_prompt_name": None}, "", None),
        ({}, "", None),
    ],
)  # fmt: skip
def test_the_default_prompt_counts_else_that_for_classification(tmp_path: Path, config, prompt: str, said) -> None:
    found = read_encoding(say_how(tmp_path, CLS, config=config))
    assert found.prompt == prompt and bool(found.said) == bool(said)
    assert said is None or said in found.said[0]


REFUSED = {
    "no pooling is true": ({"pooling": OLD}, r"1_Pooling/config\.json is missing or damaged: it doesn't say how"),
    "empty": ({"pooling": {}}, r"1_Pooling/config\.json is missing or damaged: it doesn't say how tokens become one"),
    "cut short": ({"pooling": '{"word_embed'}, r"1_Pooling/config\.json is missing or damaged: it can't be read"),
    "a list": ({"pooling": [1]}, r"1_Pooling/config\.json is missing or damaged: it holds no object"),
    "no length": ({"pooling": {"pooling_mode": "cls"}}, r"damaged: it doesn't say .* of which length"),
    "weighted": ({"pooling": OLD | {"pooling_mode_weightedmean_tokens": True}},
                 r"1_Pooling/config\.json asks for the pooling weightedmean; what can be done is one of mean, cls"),
    "unknown": ({"pooling": {"pooling_mode": "median", "embedding_dimension": 384}}, "the pooling median; what can be"),
    "two at once": ({"pooling": CLS | {"pooling_mode_max_tokens": True}}, "the pooling cls with max; what can be done"),
    "another module": ({"more": ["LSTM"]}, r"modules\.json asks for the module LSTM behind the pooling; Dense and"),
    "no dense layer": ({"more": ["Dense"]}, r"2_Dense/config\.json is missing or damaged: it isn't there"),
    "messages": ({"settings": {"modality_config": {"message": {}}}}, r"sentence_bert_config\.json asks for the inputs"),
    "sequence": ({"settings": {"transformer_task": "text-generation"}}, "asks for the task text-generation; an"),
    "another length": ({"settings": {"processing_kwargs": {"text": {"max_length": 8}}}}, "asks for processing_kwargs"),
    "settings that are none": ({"settings": {"config_args": 3}}, "asks for config_args 3, which aren't followed here"),
    "ways that are none": ({"pooling": {"pooling_mode": [["cls"]], "embedding_dimension": 384}}, "it doesn't say how"),
    "no number": ({"settings": {"max_seq_length": "long"}}, "damaged: its max_seq_length is 'long'"),
    "no such prompt": ({"config": {"prompts": {"a": "b"}, "default_prompt_name": "c"}},
                       r"config_sentence_transformers\.json .* default_prompt_name is 'c', and its prompts are a;"),
    "prompts that are none": ({"config": {"prompts": ["query: "]}}, "its prompts aren't texts by their names"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_damaged_or_not_supported_is_refused(tmp_path: Path, name: str) -> None:
    given, sentence = REFUSED[name]
    how = {key: value for key, value in given.items() if key in ("settings", "config")}
    say_how(tmp_path, given.get("pooling", CLS), *given.get("more", []), **how)
    with pytest.raises(GoodsError, match=sentence) as error:
        read_encoding(tmp_path)
    assert str(error.value).endswith(("Take another encoder", "download the model's directory again, with its folders"))


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ("[{", "modules.json is missing or damaged: it can't be read"),
        ("{}", "modules.json is missing or damaged: it holds no list"),
        ('[{"path": ""}]', 'damaged: it names {"path": ""} as a module'),
        ([["Transformer", "../other"]], "damaged: it names .* as a module"),
        (
            [["StaticEmbedding", ""]],
            "asks for the modules StaticEmbedding; a Transformer and a Pooling must",
        ),
        ([["Transformer", ""], ["Normalize", "1_Normalize"]], "asks for the modules Transformer, Normalize; a Transf"),
        ([["Transformer", "0_Transformer"], ["Pooling", "1_Pooling"]], "its transformer in the folder 0_Transformer;"),
    ],
)
def test_modules_that_are_none_or_others_are_refused(tmp_path: Path, modules: Any, sentence: str) -> None:
    say_how(tmp_path, CLS)
    if not isinstance(modules, str):
        entries = [{"type": f"sentence_transformers.models.{name}", "path": path} for name, path in modules]
        modules = json.dumps(entries)
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(GoodsError, match=sentence):
        read_encoding(tmp_path)


def test_code_of_the_directorys_own_is_never_run(tmp_path: Path) -> None:
    say_how(tmp_path, CLS)
    path = tmp_path / "modules.json"
    path.write_text(path.read_text().replace("sentence_transformers.models.Transformer", "custom_st.Transformer"))
    with pytest.raises(GoodsError, match=r"the module custom_st\.Transformer: code of a directory's own is never run"):
        read_encoding(tmp_path)
