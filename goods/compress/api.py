"""A language model behind an OpenAI-compatible API; each request has its limits, however the server behaves.

Requests are tasks of one loop in a thread of its own (a notebook's kernel has one at work already): only a task can be
ended at a moment, also where the server sends a byte now and then, so that no single wait is ever long.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from goods.compress.answers import Answer, AnswerError, chat_messages, error_line, is_past
from goods.compress.params import CompressParams
from goods.errors import GoodsError
from goods.progress import progress_bar

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_FAILURES = 20  # in a row: then the API is at fault, not the texts
MOST_BYTES = 1_000_000  # of an answer as it is sent, what surrounds its text and a model's thoughts included
MOST_PER_TOKEN = 64  # characters of an answer's text; no tokenizer knows words that long, but for rows of one sign
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds before a request is made again, each pause twice the last
LONGEST_ASKED = 120.0  # seconds of a pause that the API asks for
TEXTS_FAULT = (400, 413, 422)  # of the answers that say no, those about what was sent
TEMPORARY = (408, 409, 429)  # those that may say yes later; from 500 on all do


class TemporaryError(AnswerError):
    """A try that failed and is worth another one; `pause`: the seconds that the API asked for, if it did."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class ChatAPI:
    """Asks an OpenAI-compatible API.

    `known_to_work`: it has answered this prompt before, so a refused request is its text's fault, not the settings'.

    Raises GoodsError when the environment has no key.
    """

    def __init__(self, p: CompressParams, prompt: str, known_to_work: bool) -> None:
        try:
            import openai  # only here: the local model needs no client
        except ImportError:
            raise GoodsError("llm 'api' needs the openai package: pip install -r requirements.txt") from None
        self.key = os.environ.get(p.llm_key_variable, "").strip()
        if not self.key:
            raise GoodsError("the environment has no key for the API: export the variable that llm_key_variable names "
                             "(any word will do for a server that asks for none)")  # fmt: skip
        self.p, self.prompt, self.known_to_work, self.openai = p, prompt, known_to_work, openai
        self.interrupted = False
        self.address = self._client().base_url
        # OpenAI's newer models refuse max_tokens and temperature; other servers know only these.
        self.options: dict[str, Any] = {"max_completion_tokens": p.llm_max_tokens}
        if self.address.host != "api.openai.com":
            self.options = {"max_tokens": p.llm_max_tokens, "temperature": 0}

    def _client(self) -> AsyncOpenAI:
        address, timeout = self.p.llm_base_url, self.p.llm_timeout
        return self.openai.AsyncOpenAI(api_key=self.key, base_url=address, max_retries=0, timeout=timeout)

    def ask_all(
        self, texts: Sequence[str], on_answer: Callable[[str, Answer], None], deadline: float | None
    ) -> dict[str, str]:
        """Asks for all texts, llm_concurrency at a time; returns {text: reason} of those that failed.

        A try takes llm_timeout at most, and none begins after the deadline. Raises GoodsError when MAX_FAILURES in a
        row fail, or all do; what was answered is kept.
        """
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(asyncio.run, self._ask_all(texts, on_answer, deadline))
            try:
                return done.result()
            except BaseException:  # by hand: requests in flight end first, and their answers are kept
                self.interrupted = True
                raise

    async def _ask_all(
        self, texts: Sequence[str], on_answer: Callable[[str, Answer], None], deadline: float | None
    ) -> dict[str, str]:
        failed: dict[str, str] = {}
        position = {text: i for i, text in enumerate(texts)}
        failures: list[int] = []  # positions of the texts that failed since the last answer to a later text
        limit = MAX_FAILURES if self.known_to_work else min(MAX_FAILURES, len(texts))
        async with self._client() as client, aclosing(self._results(client, texts, on_answer, deadline)) as results:
            async for text, error in results:
                if error is None:
                    self.known_to_work, limit = True, MAX_FAILURES
                    # A late answer to what was asked before they failed says nothing about the API now.
                    failures = [later for later in failures if later > position[text]]
                    continue
                failed[text] = str(error)
                failures += [] if error.text_at_fault else [position[text]]
                if len(failures) >= limit and not is_past(deadline):
                    raise GoodsError(f"{self._where()} failed {len(failures)} times in a row, at last with: {error}. "
                                     "What was answered is kept, and the same command goes on from there")  # fmt: skip
        return failed

    async def _results(
        self, client: AsyncOpenAI, texts: Sequence[str], on_answer: Callable, deadline: float | None
    ) -> AsyncIterator[tuple[str, AnswerError | None]]:
        """Each text with what went wrong with it, if anything did, as they come."""

        async def work(text: str) -> AnswerError | None:
            try:
                on_answer(text, await self._ask(client, text, deadline))
            except AnswerError as error:
                return error
            return None

        todo, running = iter(texts), {}
        try:
            with progress_bar(total=len(texts), desc="compressing", unit=" texts", leave=False) as bar:
                while True:
                    while len(running) < self.p.llm_concurrency and not self._over(deadline):
                        if (text := next(todo, None)) is None:
                            break
                        running[asyncio.create_task(work(text))] = text
                    if not running:
                        return
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        bar.update()
                        yield running.pop(task), task.result()
        finally:
            self.interrupted = True  # what is in flight isn't tried again, ends, and is kept
            await asyncio.gather(*running, return_exceptions=True)

    def _over(self, deadline: float | None) -> bool:
        return self.interrupted or is_past(deadline)

    async def _ask(self, client: AsyncOpenAI, text: str, deadline: float | None) -> Answer:
        """The answer to one text, of the first try that gets one.

        Raises GoodsError where every other text would fail as well, AnswerError where only this one failed.
        """
        tries = 1 + self.p.llm_max_retries
        for number in range(tries):
            try:
                return await self._try(client, text)
            except TemporaryError as error:
                pause = min(FIRST_PAUSE * 2.0 ** min(number, 9), LONGEST_PAUSE) * random.uniform(0.75, 1)
                pause = pause if error.pause is None else min(error.pause, LONGEST_ASKED)
                if number + 1 == tries or self._over(deadline and deadline - pause):
                    raise
            await asyncio.sleep(pause)
        raise AssertionError("a try either returns or raises")

    async def _try(self, client: AsyncOpenAI, text: str) -> Answer:
        openai = self.openai
        try:
            async with asyncio.timeout(self.p.llm_timeout):  # the client's own begins anew with each byte that comes
                return self._read(await self._reply(client, text))
        except TimeoutError:
            raise TemporaryError(f"no whole answer within llm_timeout {self.p.llm_timeout:g} s") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise GoodsError(f"{self._where()} refuses the key ({error.status_code}); check the variable that "
                             "llm_key_variable names") from None  # fmt: skip
        except openai.NotFoundError as error:
            raise GoodsError(f"{self._where()} doesn't know the model '{self.p.llm_model}', or llm_base_url doesn't "
                             f"end where its API begins (often /v1): {error_line(error)}") from None  # fmt: skip
        except openai.APIStatusError as error:
            if error.status_code in TEMPORARY or error.status_code >= 500:
                raise TemporaryError(error_line(error), _asked_pause(error.response.headers)) from None
            at_fault = self.known_to_work and error.status_code in TEXTS_FAULT
            raise AnswerError(error_line(error), text_at_fault=at_fault) from None
        except openai.OpenAIError as error:
            raise TemporaryError(error_line(error)) from None

    async def _reply(self, client: AsyncOpenAI, text: str) -> Any:
        """What the API sent, as JSON; raises AnswerError for more than any answer has."""
        messages, data = chat_messages(self.prompt, text), bytearray()
        asked = client.chat.completions.with_streaming_response.create(
            model=self.p.llm_model, messages=messages, **self.options
        )
        async with asked as response:
            async for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise AnswerError(f"an answer of more than {MOST_BYTES:,} bytes")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise AnswerError("an answer in the wrong shape") from None

    def _read(self, completion: Any) -> Answer:
        try:
            choice, usage = completion["choices"][0], completion.get("usage") or {}
            text, finish = choice["message"]["content"], choice.get("finish_reason")
            counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (AttributeError, KeyError, TypeError, IndexError, ValueError):
            raise AnswerError("an answer in the wrong shape") from None
        if text is not None and not isinstance(text, str):
            raise AnswerError("an answer in the wrong shape")
        if text and len(text) > MOST_PER_TOKEN * self.p.llm_max_tokens:
            raise AnswerError(f"an answer of {len(text):,} characters, more than llm_max_tokens "
                              f"{self.p.llm_max_tokens} can be")  # fmt: skip
        return Answer(text or "", self.p.llm_max_tokens if finish == "length" else 0, *counts)

    def _where(self) -> str:
        return f"the API at {self.address.copy_with(userinfo=b'')}"


def _asked_pause(headers: Any) -> float | None:
    """The seconds that an API asks to wait, where it names a number of them."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None
