"""Answers of a language model, each kept as it comes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout

from goods.files import writing


@dataclass(frozen=True)
class Answer:
    """What a model answered to one text; `cut` is 0, or the number of tokens at which the answer was cut off."""

    text: str
    cut: int
    prompt_tokens: int
    answer_tokens: int


class AnswerCache:
    """An append-only JSONL file of answers, one line each, flushed as it comes; one job at a time holds it.

    A key is the SHA-256 of text, prompt and model. A last line that a killed job left incomplete is removed, and a
    line that can't be read is skipped, so its text is asked for again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self._lock = FileLock(f"{path}.lock")
        self._write_lock = Lock()

    def __enter__(self) -> AnswerCache:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            print(f"another job is adding to {self.path}; waiting for it to end")
            self._lock.acquire()
        try:
            self._read()
            self._file = self.path.open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.release()

    def _read(self) -> None:
        data = self.path.read_bytes() if self.path.is_file() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        for line in data[:whole].splitlines():
            try:
                record = json.loads(line)
                key = record.pop("key")
                self.answers[key] = Answer(**record)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def add(self, key: str, answer: Answer) -> None:
        """Keeps an answer and writes it to disk at once; may be called from several threads."""
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=True) + "\n"
        with self._write_lock, writing(self.path, "the answers before it are kept"):
            self._file.write(line)
            self._file.flush()
            self.answers[key] = answer

    def lacks(self, key: str, max_tokens: int) -> bool:
        """Whether to ask: there is no answer, or one that was cut off at fewer tokens than are allowed now."""
        answer = self.answers.get(key)
        return answer is None or 0 < answer.cut < max_tokens


def answer_key(text: str, prompt: str, model: str) -> str:
    """SHA-256 of what an answer depends on: text, prompt, and the model's name or folder_hash."""
    return hashlib.sha256(json.dumps([text, prompt, model]).encode()).hexdigest()


def chat_messages(prompt: str, text: str) -> list[dict[str, str]]:
    """The conversation that the model continues."""
    return [{"role": "system", "content": prompt}, {"role": "user", "content": text}]


class AnswerError(Exception):
    """One text got no usable answer; `text_at_fault`: the text is to blame, so that says nothing about others."""

    def __init__(self, reason: str, text_at_fault: bool = False) -> None:
        super().__init__(reason)
        self.text_at_fault = text_at_fault


def is_past(deadline: float | None) -> bool:
    """Whether the deadline (seconds since 1970) is over; None is never over."""
    return deadline is not None and time.time() > deadline


def error_line(error: Exception) -> str:
    """One short line of what went wrong, with nothing in it that looks like a key."""
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, dict) else None
    lines = str(text or error).strip().splitlines() or [type(error).__name__]
    status = f"{error.status_code} " if hasattr(error, "status_code") and not str(lines[0]).startswith("Error") else ""
    return re.sub(r"\b(sk|key)-[\w-]+", "(key)", f"{status}{lines[0]}")[:200]
