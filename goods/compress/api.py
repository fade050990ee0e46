"""A language model behind an OpenAI-compatible API."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from goods.compress.answers import Answer, AnswerError, chat_messages, error_line, is_past
from goods.compress.params import CompressParams
from goods.errors import GoodsError
from goods.progress import progress_bar

MAX_FAILURES = 20  # in a row: then the API is at fault, not the texts


class ChatAPI:
    """Asks an OpenAI-compatible API; retries, back-off and Retry-After are the openai client's.

    `known_to_work`: it has answered this prompt before, so a refused request is its text's fault, not the settings'.

    Raises GoodsError when the environment has no key.
    """

    def __init__(self, p: CompressParams, prompt: str, known_to_work: bool) -> None:
        try:
            import openai  # only here: the local model needs no client
        except ImportError:
            raise GoodsError("llm 'api' needs the openai package: pip install -r requirements.txt") from None
        key = os.environ.get(p.llm_key_variable, "").strip()
        if not key:
            raise GoodsError("the environment has no key for the API: export the variable that llm_key_variable names "
                             "(any word will do for a server that asks for none)")  # fmt: skip
        self.p, self.prompt, self.known_to_work, self.openai = p, prompt, known_to_work, openai
        self.client = openai.OpenAI(
            api_key=key, base_url=p.llm_base_url, max_retries=p.llm_max_retries, timeout=p.llm_timeout
        )
        # OpenAI's newer models refuse max_tokens and temperature; other servers know only these.
        official = self.client.base_url.host == "api.openai.com"
        self.options: dict[str, Any] = {"max_completion_tokens": p.llm_max_tokens}
        if not official:
            self.options = {"max_tokens": p.llm_max_tokens, "temperature": 0}

    def ask(self, text: str) -> Answer:
        """The answer to one text.

        Raises GoodsError where every other text would fail as well, AnswerError where only this one failed.
        """
        openai, model = self.openai, self.p.llm_model
        messages = chat_messages(self.prompt, text)
        try:
            completion = self.client.chat.completions.create(model=model, messages=messages, **self.options)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise GoodsError(f"{self._where()} refuses the key ({error.status_code}); check the variable that "
                             "llm_key_variable names") from None  # fmt: skip
        except openai.NotFoundError as error:
            raise GoodsError(f"{self._where()} doesn't know the model '{model}', or llm_base_url doesn't end where its "
                             f"API begins (often /v1): {error_line(error)}") from None  # fmt: skip
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise AnswerError(error_line(error), text_at_fault=self.known_to_work) from None
        except (openai.OpenAIError, ValueError) as error:  # ValueError: what came is not JSON
            raise AnswerError(error_line(error)) from None
        return self._read(completion)

    def _read(self, completion: Any) -> Answer:
        try:
            choice, usage = completion.choices[0], completion.usage
            text = choice.message.content
            counts = [int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (AttributeError, TypeError, IndexError, ValueError):
            raise AnswerError("an answer in the wrong shape") from None
        if text is not None and not isinstance(text, str):
            raise AnswerError("an answer in the wrong shape")
        return Answer(text or "", self.p.llm_max_tokens if choice.finish_reason == "length" else 0, *counts)

    def _where(self) -> str:
        return f"the API at {self.client.base_url.copy_with(userinfo=b'')}"

    def ask_all(
        self, texts: Sequence[str], on_answer: Callable[[str, Answer], None], deadline: float | None
    ) -> dict[str, str]:
        """Asks for all texts, llm_concurrency at a time; returns {text: reason} of those that failed.

        Raises GoodsError when MAX_FAILURES in a row fail, or all do; what was answered is kept.
        """
        failed: dict[str, str] = {}
        position = {text: i for i, text in enumerate(texts)}
        failures: list[int] = []  # positions of the texts that failed since the last answer to a later text
        limit = MAX_FAILURES if self.known_to_work else min(MAX_FAILURES, len(texts))
        pool = ThreadPoolExecutor(self.p.llm_concurrency)
        try:
            for text, error in self._results(pool, texts, on_answer, deadline):
                if error is None:
                    self.known_to_work, limit = True, MAX_FAILURES
                    # A late answer to what was asked before they failed says nothing about the API now.
                    failures = [later for later in failures if later > position[text]]
                    continue
                failed[text] = str(error)
                failures += [] if error.text_at_fault else [position[text]]
                if len(failures) >= limit:
                    raise GoodsError(f"{self._where()} failed {len(failures)} times in a row, at last with: {error}. "
                                     "What was answered is kept, and the same command goes on from there")  # fmt: skip
        finally:
            pool.shutdown(cancel_futures=True)  # requests in flight end first, and their answers are kept
        return failed

    def _results(
        self, pool: ThreadPoolExecutor, texts: Sequence[str], on_answer: Callable, deadline: float | None
    ) -> Iterator[tuple[str, AnswerError | None]]:
        def work(text: str) -> AnswerError | None:
            try:
                on_answer(text, self.ask(text))
            except AnswerError as error:
                return error
            return None

        todo, running = iter(texts), {}
        with progress_bar(total=len(texts), desc="compressing", unit=" texts", leave=False) as bar:
            while True:
                while len(running) < self.p.llm_concurrency and not is_past(deadline):
                    if (text := next(todo, None)) is None:
                        break
                    running[pool.submit(work, text)] = text
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    bar.update()
                    yield running.pop(future), future.result()
