"""Texts compressed by a language model: an API on the loopback that misbehaves as real ones do; a tiny local one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Sample
from loopback import Handler, Server, serving
from test_notebooks import arguments, papermill

from goods.compress.answers import Answer, AnswerCache, answer_key
from goods.compress.job import Compressed, compress_goods, tidy_answer
from goods.compress.local import LocalLM
from goods.compress.params import DEFAULT_PROMPT, CompressParams, compress_prompt
from goods.data.tables import read_goods
from goods.errors import GoodsError
from goods.files import ROOT
from goods.params import load_params, read_params

KEY = "sk-test-7f3a91"


class LanguageModel(Server):
    """/v1/chat/completions: answers with the text's first words; a mark in a text (#429 ...) is what goes wrong."""

    def __init__(self) -> None:
        super().__init__(Chat)
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {}
        self.requests: list[dict[str, Any]] = []
        self.delay, self.now, self.most = 0.0, 0, 0
        self.lock = threading.Lock()


class Chat(Handler):
    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.body())
        text = body["messages"][-1]["content"]
        with server.lock:
            server.requests.append(body)
            server.asked[text] += 1
            tries = server.asked[text]
            server.times.setdefault(text, []).append(time.monotonic())
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            time.sleep(server.delay)
            self._answer(body["model"], text, tries)
        finally:
            with server.lock:
                server.now -= 1

    def _answer(self, model: str, text: str, tries: int) -> None:
        first = tries == 1
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.say(401, {"error": {"message": f"Incorrect API key: {self.headers['Authorization']}"}})
        if self.path != "/v1/chat/completions" or model == "unknown":
            return self.say(404, {"error": {"message": f"The model `{model}` does not exist"}})
        if "#429" in text and first:
            return self.say(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
        if ("#500" in text and first) or "#always500" in text:
            return self.say(500, {"error": {"message": "overloaded"}})
        if "#400" in text:
            return self.say(400, {"error": {"message": "the text is against the rules"}})
        if "#timeout" in text and first:
            time.sleep(1.5)
        if "#notjson" in text:
            return self.say(200, b"<html>a proxy's page</html>", {"Content-Type": "text/html"})
        if "#noshape" in text:
            return self.say(200, {"object": "chat.completion", "result": "hello"})
        content, finish = " ".join(text.split()[:4]), "stop"
        if "#empty" in text:
            content = None
        elif "#long" in text:
            content = "blah " * 400
        elif "#cut" in text:
            finish = "length"
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
        usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
        self.say(200, {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
                         "usage": usage})  # fmt: skip
        with self.server.lock:
            self.server.answered[text] += 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(LanguageModel()) as server:
        yield server


def write_goods(folder: Path, train: list[str], test: list[str]) -> Path:
    """A competition of these descriptions, without titles."""
    folder.mkdir(exist_ok=True)
    for name, texts in (("train", train), ("test", test)):
        ids = [f"{k:04d}" for k in range(len(texts))]
        table = pd.DataFrame({"id": ids, "title": "", "description": texts})
        if name == "train":
            table["categories"] = "secretlabel"
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def api_params(tmp_path: Path, server: LanguageModel, **more: Any) -> CompressParams:
    fields: dict[str, Any] = {
        "outputs_dir": str(tmp_path / "out"), "data_dir": str(tmp_path / "goods"), "llm": "api", "llm_model": "mini",
        "llm_base_url": f"{server.url}/v1", "llm_max_retries": 2, "llm_timeout": 1.0,
    }  # fmt: skip
    return read_params(fields | more, CompressParams)


def status_of(result: Compressed) -> dict[str, str]:
    return dict(zip(result.texts["text"], result.texts["compressed_status"], strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# The API
# ---------------------------------------------------------------------------------------------------------------------


def test_each_text_is_asked_for_once_and_never_with_its_label(server: LanguageModel, tmp_path: Path) -> None:
    long = " ".join(f"word{k}" for k in range(15_000))
    assert len(long) > 100_000
    train = [f"a lamp of kind {k % 90} for desks, with a very bright bulb" for k in range(180)] + [long, ""]
    goods = write_goods(tmp_path / "goods", train, ["", "a lamp of kind 3 for desks, with a very bright bulb"])
    (goods / "labels.json").write_text('{"0": "Lamps", "1": "Toys"}')
    server.delay = 0.1
    p = api_params(tmp_path, server, llm_timeout=20)
    result = compress_goods(p)
    assert len(server.asked) == 91 and set(server.asked.values()) == {1}
    assert server.most == 20
    assert "secretlabel" not in json.dumps(server.requests)
    assert all("classes, so keep what tells them apart: Lamps; Toys." in r["messages"][0]["content"] and
               r["max_tokens"] == 128 for r in server.requests)  # fmt: skip
    assert max(len(text) for text in server.asked) <= p.llm_input_chars
    assert result.texts["compressed_status"].value_counts().to_dict() == {"ok": 182, "empty": 2}
    written = pd.read_csv(p.compressed_dir / "train.csv", dtype=str, keep_default_na=False)
    given = pd.read_csv(goods / "train.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(written[list(given)], given)
    assert written["compressed_text"].tolist() == [" ".join(text.split()[:4]) for text in train]
    assert (result.cost["tokens read now"], result.cost["tokens written now"]) == (910, 364)
    assert KEY not in "".join(f.read_text() for f in (tmp_path / "out").rglob("*") if f.is_file())

    again = compress_goods(p)
    assert sum(server.asked.values()) == 91 and again.cost["texts answered now"] == again.cost["tokens read now"] == 0
    pd.testing.assert_frame_equal(again.texts, result.texts)
    compress_goods(p.model_copy(update={"llm_model": "other"}))
    assert set(server.asked.values()) == {2}


def test_a_training_reads_the_tables(server: LanguageModel, sample: Sample, tmp_path: Path) -> None:
    p = api_params(tmp_path, server, data_dir=str(sample.data), llm_timeout=20)
    compress_goods(p)
    tables = {f"{name}_csv": str(p.compressed_dir / f"{name}.csv") for name in ("train", "test")}
    q = load_params(
        run="next", outputs_dir=p.outputs_dir, data_dir=p.data_dir, text_columns="compressed_text", **tables
    )
    short = read_goods(q)
    whole = read_goods(load_params(run="whole", outputs_dir=p.outputs_dir, data_dir=p.data_dir))
    assert short.classes == whole.classes and short.labels == whole.labels
    assert short.train["label"].tolist() == whole.train["label"].tolist()
    assert short.test["id"].tolist() == whole.test["id"].tolist()
    assert short.train["text"].str.len().sum() < whole.train["text"].str.len().sum() / 2


def test_what_goes_wrong_with_some_texts(server: LanguageModel, tmp_path: Path) -> None:
    marks = "429 500 timeout always500 400 notjson noshape empty long cut".split()
    texts = [f"this is product #{mark} and more words" for mark in marks] + ["a plain product with more words"]
    write_goods(tmp_path / "goods", texts, ["another plain product of words"])
    result = compress_goods(api_params(tmp_path, server))
    status = {text.partition("#")[2].split()[0]: why for text, why in status_of(result).items() if "#" in text}
    assert status.pop("429") == status.pop("500") == status.pop("timeout") == "ok"
    expected = {
        "always500": "500 .*overloaded", "400": "400 .*against the rules", "notjson": "an answer in the wrong shape",
        "noshape": "an answer in the wrong shape", "empty": "an empty answer", "cut": "no end within 128 tokens",
        "long": r"an answer of 1999 characters to a text of \d+",
    }  # fmt: skip
    assert {
        mark: bool(re.fullmatch(f"failed: {expected[mark]}", why)) for mark, why in status.items()
    } == dict.fromkeys(expected, True), status
    failed = result.texts[result.texts["compressed_status"] != "ok"]
    assert (failed["compressed_text"] == failed["text"]).all() and len(failed) == len(expected)
    assert server.asked[texts[3]] == 3  # llm_max_retries 2
    first, second = server.times[texts[0]]
    assert 1 <= second - first < 2  # Retry-After

    before = server.asked.copy()
    compress_goods(api_params(tmp_path, server))
    again = {text.partition("#")[2].split()[0] for text, n in server.asked.items() if n > before[text] and "#" in text}
    assert again == {"always500", "400", "notjson", "noshape"}  # what was answered isn't paid for twice
    compress_goods(api_params(tmp_path, server, llm_max_tokens=256, llm_max_retries=0))
    assert server.asked[texts[-2]] == 2  # cut at 128 tokens, so it's worth another try


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llm_model": "unknown"}, r"doesn't know the model 'unknown'.*404 The model `unknown` does not exist"),
        ({"llm_base_url": "http://127.0.0.1:9/v1"}, r"127\.0\.0\.1:9/v1/ failed 3 times in a row.*Connection error"),
        ({"key": ""}, "the environment has no key for the API: export the variable that llm_key_variable names"),
        ({"key": "sk-wrong-1"}, r"refuses the key \(401\)"),
        ({"goods": "#noshape"}, "failed 3 times in a row, at last with: an answer in the wrong shape"),
        ({"goods": "#400"}, "failed 3 times in a row, at last with: 400 .*against the rules"),
    ],
)
def test_an_api_that_cannot_serve_stops_the_job(
    server: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    mark = change.pop("goods", "")
    write_goods(tmp_path / "goods", [f"one {mark}", f"two {mark}"], [f"three {mark}"])
    if "key" in change:
        monkeypatch.setenv("OPENAI_API_KEY", change.pop("key"))
    p = api_params(tmp_path, server, **change, llm_max_retries=0)
    with pytest.raises(GoodsError, match=message) as error:
        compress_goods(p)
    assert "sk-" not in str(error.value)
    assert not p.compressed_dir.exists()


def test_an_endpoint_that_dies_stops_the_job_and_keeps_what_it_answered(server: LanguageModel, tmp_path: Path) -> None:
    good, bad = [f"good {k}" for k in range(30)], [f"bad {k} #always500" for k in range(60)]
    write_goods(tmp_path / "goods", good + bad, ["test"])
    p = api_params(tmp_path, server, llm_max_retries=0, llm_concurrency=4)
    with pytest.raises(GoodsError, match="failed 20 times in a row"):
        compress_goods(p)
    assert sum(server.asked[text] for text in bad) <= 24
    with pytest.raises(GoodsError):
        compress_goods(p)
    assert {server.asked[text] for text in good} == {1}


KILLED = """
import sys
from goods.compress.job import compress_goods; from goods.compress.params import CompressParams
from goods.params import read_params
compress_goods(read_params(__import__("json").loads(sys.argv[1]), CompressParams))
"""


def test_killed_half_way_and_resumed(server: LanguageModel, tmp_path: Path) -> None:
    texts = [f"product {k} of a shop for everything" for k in range(300)]
    write_goods(tmp_path / "goods", texts, ["a test product of a shop"])
    server.delay = 0.1
    p = api_params(tmp_path, server, llm_timeout=20)
    given = p.model_dump(mode="json", exclude_defaults=True)
    job = subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(given)], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 60
    while sum(server.answered.values()) < 120 and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    time.sleep(0.5)  # the server ends what it was at
    assert 120 <= len(server.asked) < 300
    cache = tmp_path / "out" / "cache" / "compressed" / "answers.jsonl"
    with cache.open("ab") as file:  # as a kill within a write leaves it
        file.write(b'{"key": "ab12", "text": "torn')
    result = compress_goods(p)
    assert set(server.asked) == {*texts, "a test product of a shop"}
    assert sum(n - 1 for n in server.asked.values()) <= 20  # those in flight, at most
    assert result.texts["compressed_status"].eq("ok").all() and len(result.texts) == 301
    lines = cache.read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}) == 301


def test_the_notebook(server: LanguageModel, sample: Sample, tmp_path: Path) -> None:
    given = {"outputs_dir": tmp_path, "data_dir": sample.data, "model_name": sample.model, "llm": "api",
             "llm_model": "mini", "llm_base_url": f"{server.url}/v1"}  # fmt: skip
    done = papermill("notebooks/compress_text.ipynb", tmp_path / "done.ipynb", *arguments(**given))
    assert done.status == 0, done.stderr
    assert len(done.pictures()) == 2 and "share of the texts that fit in" in done.printed()
    assert not re.search(r"Warning\b|Traceback", done.printed())
    assert {f.name for f in (tmp_path / "demo" / "compressed").iterdir()} >= {"train.csv", "test.csv", "report.json"}
    assert KEY not in (tmp_path / "done.ipynb").read_text()
    assert set(server.asked.values()) == {1}


# ---------------------------------------------------------------------------------------------------------------------
# The cache
# ---------------------------------------------------------------------------------------------------------------------


def test_the_cache_bears_damage_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first, second = Answer("größer\n✓", 0, 5, 2), Answer("cut", 64, 5, 64)
    with AnswerCache(path) as cache:
        cache.add("a", first)
        cache.add("b", second)
    whole = path.read_bytes()
    path.write_bytes(whole + b'not json\n[1]\n{"key": "c"}\n{"key": "d", "te')
    with AnswerCache(path) as cache:
        assert cache.answers == {"a": first, "b": second}
        assert [cache.lacks(key, 64) for key in "abcd"] == [False, False, True, True]
        assert cache.lacks("b", 65)
        cache.add("d", first)
    with AnswerCache(path) as cache:
        assert cache.answers == {"a": first, "b": second, "d": first}
    for size in range(len(whole)):  # wherever a kill tore it
        path.write_bytes(whole[:size])
        with AnswerCache(path) as cache:
            assert len(cache.answers) == whole[:size].count(b"\n")
        assert path.read_bytes() == whole[: whole[:size].rfind(b"\n") + 1]


def test_a_second_job_waits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "answers.jsonl"
    seen: list[int] = []

    def second() -> None:
        with AnswerCache(path) as cache:
            seen.append(len(cache.answers))

    with AnswerCache(path) as cache:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        assert not seen
        cache.add("a", Answer("short", 0, 1, 1))
    thread.join(10)
    assert seen == [1] and "another job is adding to" in capsys.readouterr().out


def test_a_key_depends_on_text_prompt_and_model() -> None:
    keys = {answer_key(*each) for each in [("a", "b", "c"), ("ab", "", "c"), ("b", "a", "c"), ("a", "b", "d")]}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("answer", "tidy"),
    [
        ("  two\n lines ", "two lines"),
        ('"quoted"', "quoted"),
        ("<think>hm,\nlet me</think>\n\nA lamp", "A lamp"),
        ("<think>without end", ""),
        ("<think>", ""),
    ],
)
def test_tidy_answer(answer: str, tidy: str) -> None:
    assert tidy_answer(answer) == tidy


# ---------------------------------------------------------------------------------------------------------------------
# Parameters
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"llm_modle": "x"}, "unknown parameter 'llm_modle'; did you mean 'llm_model'?"),
        ({"flod": 1}, "unknown parameter 'flod'; did you mean 'fold'?"),
        ({"llm_concurrency": 0}, "parameter 'llm_concurrency' should be greater than or equal to 1, but is 0"),
        ({"llm_base_url": "127.0.0.1/v1"}, "parameter 'llm_base_url' should match pattern"),
    ],
)
def test_bad_parameters(given: dict[str, Any], message: str) -> None:
    with pytest.raises(GoodsError, match=re.escape(message)):
        read_params(given, CompressParams)


def test_a_key_in_place_of_its_variable_is_not_repeated() -> None:
    with pytest.raises(GoodsError, match="parameter 'llm_key_variable' should match") as error:
        read_params({"llm_key_variable": KEY}, CompressParams)
    assert KEY not in str(error.value)


def test_bad_tables(server: LanguageModel, tmp_path: Path) -> None:
    goods = write_goods(tmp_path / "goods", ["one", "two"], ["three"])
    p = api_params(tmp_path, server)
    compress_goods(p)
    with pytest.raises(GoodsError, match="has a compressed_text already; name the original tables"):
        compress_goods(p.model_copy(update={"train_csv": str(p.compressed_dir / "train.csv")}))
    (goods / "test.csv").unlink()
    with pytest.raises(GoodsError, match=r"there is no .*test\.csv"):
        compress_goods(p)
    (goods / "labels.json").write_text("{")
    with pytest.raises(GoodsError, match=r"labels\.json can't be read as class names"):
        compress_prompt(p)


# ---------------------------------------------------------------------------------------------------------------------
# A local model
# ---------------------------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant {% endif %}"
)


@pytest.fixture(scope="module")
def causal_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM of two random layers with a byte-level tokenizer trained here, with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("lm") / "tiny-lm"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([DEFAULT_PROMPT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                         initializer_range=0.5, bos_token_id=None, eos_token_id=fast.eos_token_id,
                         pad_token_id=fast.pad_token_id)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def local_params(tmp_path: Path, model: Path, **more: Any) -> CompressParams:
    (tmp_path / "goods").mkdir(exist_ok=True)
    fields: dict[str, Any] = {
        "outputs_dir": str(tmp_path / "out"), "data_dir": str(tmp_path / "goods"), "llm_model": str(model),
        "llm_max_tokens": 16, "llm_prompt": "Shorten.{classes}",
    }  # fmt: skip
    return read_params(fields | more, CompressParams)


def test_a_batch_answers_as_one_by_one(causal_lm: Path, tmp_path: Path) -> None:
    texts = ["a", "a red lamp", "a very long text of a lamp " * 8, "größer ✓ 猫", "x " * 100_000]
    lm = LocalLM(local_params(tmp_path, causal_lm), "Shorten.")
    together = lm.ask(texts)
    assert together == [lm.ask([text])[0] for text in texts]
    assert len({answer.text for answer in together}) == len(texts)
    assert [answer.prompt_tokens for answer in together] == [
        len(lm.tokenizer(lm._chat(lm._fit(t)))["input_ids"]) for t in texts
    ]
    assert together[-1].prompt_tokens + 16 <= 512


def test_a_local_job_and_its_resumption(causal_lm: Path, tmp_path: Path) -> None:
    train = [f"a lamp {k % 12} for the desk" for k in range(20)] + [""]
    write_goods(tmp_path / "goods", train, ["a chair"])
    p = local_params(tmp_path, causal_lm, eval_batch_size=5, llm_max_tokens=200)
    result = compress_goods(p)
    assert result.cost["texts answered now"] == 13 and result.cost["tokens written now"] > 0
    assert result.texts["compressed_status"].iloc[20] == "empty"
    moved = tmp_path / "moved"
    moved.symlink_to(causal_lm)
    again = compress_goods(p.model_copy(update={"llm_model": str(moved)}))
    assert again.cost["texts answered now"] == 0
    pd.testing.assert_frame_equal(again.texts, result.texts)


def test_max_hours_leave_the_rest_for_later(causal_lm: Path, tmp_path: Path) -> None:
    write_goods(tmp_path / "goods", ["one", "two"], ["three"])
    p = local_params(tmp_path, causal_lm, max_hours=1e-9)
    result = compress_goods(p)
    assert result.texts["compressed_status"].eq("failed: not asked, max_hours were over").all()
    assert compress_goods(p.model_copy(update={"max_hours": None})).cost["texts answered now"] == 3


def test_local_models_that_do_not_serve(causal_lm: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(GoodsError, match=r"is not a model directory with config\.json.*set llm to 'api'"):
        LocalLM(local_params(tmp_path, tmp_path), "Shorten.")
    with pytest.raises(GoodsError, match="leave no room for a text in the 512 tokens that tiny-lm reads"):
        LocalLM(local_params(tmp_path, causal_lm, llm_max_tokens=500), "Shorten.")
    bare = shutil.copytree(causal_lm, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(GoodsError, match="has no chat template; take an instruction-tuned model"):
        LocalLM(local_params(tmp_path, bare), "Shorten.")
    (bare / "chat_template.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    )
    assert LocalLM(local_params(tmp_path, bare), "Shorten.")._chat("lamp").startswith("<|start|>user Shorten.\n\nlamp")
    (bare / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(GoodsError, match=r"the causal LM in .*bare can't be loaded"):
        LocalLM(local_params(tmp_path, bare), "Shorten.")
