"""A language model's API on this machine, and competitions of texts for it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
from loopback import Handler, Server

from goods.compress.params import CompressParams
from goods.params import read_params

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
    def drip(self, whole: bytes) -> None:
        """Sends these bytes, and for a minute one more each tenth of a second."""
        self.close_connection = True
        self.wfile.write(whole)
        for _ in range(600):
            self.wfile.write(b" ")
            time.sleep(0.1)

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
        if "#drip" in text:  # its head, or its body
            head = b"HTTP/1.1 200 OK\r\n"
            return self.drip(head + (b"X-Slow: " if "#dripall" in text else b"Content-Type: application/json\r\n\r\n"))
        content, finish = " ".join(text.split()[:4]), "stop"
        if "#empty" in text:
            content = None
        elif "#long" in text:
            content = "blah " * 400
        elif "#huge" in text:
            content = "blah " * 2_000_000
        elif "#wordy" in text:
            content = "blah " * 20_000
        elif "#cut" in text:
            finish = "length"
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
        usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
        self.say(200, {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
                         "usage": usage})  # fmt: skip
        with self.server.lock:
            self.server.answered[text] += 1


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
