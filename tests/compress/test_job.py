"""Texts compressed over an API on the loopback that misbehaves as real ones do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import Sample
from language_model import KEY, LanguageModel, api_params, write_goods
from notebook_runs import arguments, papermill

from goods.compress.job import Compressed, compress_goods, tidy_answer
from goods.compress.params import compress_prompt
from goods.data.tables import read_goods
from goods.errors import GoodsError
from goods.files import ROOT
from goods.params import load_params


def status_of(result: Compressed) -> dict[str, str]:
    return dict(zip(result.texts["text"], result.texts["compressed_status"], strict=True))


@pytest.mark.slow
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


def test_a_title_or_an_answer_that_a_spreadsheet_would_run_is_written_as_text(
    server: LanguageModel, tmp_path: Path
) -> None:
    goods = write_goods(tmp_path / "goods", ["@SUM(1) a lamp"], ["a toy"])
    pd.DataFrame({"id": ["-7x"], "title": ["=1+1"], "description": "@SUM(1) a lamp", "categories": "=a"}).to_csv(
        goods / "train.csv", index=False
    )
    p = api_params(tmp_path, server)
    compress_goods(p)
    written = pd.read_csv(p.compressed_dir / "train.csv", dtype=str).iloc[0].to_dict()
    assert written["title"] == "'=1+1" and written["description"] == "'@SUM(1) a lamp"
    assert written["compressed_text"] == "'=1+1. @SUM(1) a lamp"
    assert (written["id"], written["categories"]) == ("-7x", "=a")  # by these a training finds photos and classes


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_answer_has_its_limits_in_time_and_size(server: LanguageModel, tmp_path: Path) -> None:
    marks = "drip dripall huge wordy".split()
    texts = [f"this is product #{mark} and more words" for mark in marks] + ["a plain product with more words"]
    write_goods(tmp_path / "goods", texts, ["another plain product of words"])
    begun = time.monotonic()
    result = compress_goods(api_params(tmp_path, server, llm_max_retries=0))
    assert time.monotonic() - begun < 10
    status = {text.partition("#")[2].split()[0]: why for text, why in status_of(result).items() if "#" in text}
    assert status == {
        "drip": "failed: no whole answer within llm_timeout 1 s",
        "dripall": "failed: no whole answer within llm_timeout 1 s",
        "huge": "failed: an answer of more than 1,000,000 bytes",
        "wordy": "failed: an answer of 100,000 characters, more than llm_max_tokens 128 can be",
    }
    assert (tmp_path / "out" / "cache" / "compressed" / "answers.jsonl").stat().st_size < 1000  # two plain answers
    compress_goods(api_params(tmp_path, server, llm_max_retries=0))
    assert [server.asked[text] for text in texts] == [2, 2, 2, 2, 1]  # no answer, so asked again


@pytest.mark.slow
def test_no_try_begins_when_max_hours_are_over(server: LanguageModel, tmp_path: Path) -> None:
    write_goods(tmp_path / "goods", ["one #drip", "two #drip"], ["a plain product"])
    begun = time.monotonic()
    compress_goods(api_params(tmp_path, server, llm_max_retries=100, llm_timeout=0.5, max_hours=2 / 3600))
    assert 1 < time.monotonic() - begun < 8


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_notebook(server: LanguageModel, sample: Sample, tmp_path: Path) -> None:
    given = {"outputs_dir": tmp_path, "data_dir": sample.data, "model_name": sample.model, "llm": "api",
             "llm_model": "mini", "llm_base_url": f"{server.url}/v1"}  # fmt: skip
    done = papermill("notebooks/compress_text.ipynb", tmp_path / "done.ipynb", *arguments(**given))
    assert done.status == 0, done.stderr
    assert len(done.pictures()) == 2 and "Share of the texts that fit in" in done.said()
    assert not re.search(r"Warning\b|Traceback", done.printed())
    assert {f.name for f in (tmp_path / "demo" / "compressed").iterdir()} >= {"train.csv", "test.csv", "report.json"}
    assert KEY not in (tmp_path / "done.ipynb").read_text()
    assert set(server.asked.values()) == {1}


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
    with pytest.raises(GoodsError, match=r"labels\.json must look like"):
        compress_prompt(p)
