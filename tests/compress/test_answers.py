"""The cache of answers bears damage, and answers are tidied."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from goods.compress.answers import Answer, AnswerCache, answer_key


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
