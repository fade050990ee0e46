"""A causal language model in a local directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from goods.compress.answers import Answer, chat_messages, error_line, is_past
from goods.compress.params import MIN_TEXT_TOKENS, CompressParams
from goods.errors import GoodsError
from goods.files import MODEL_FILES, resolve
from goods.models.device import DTYPES, pick_device, pick_precision
from goods.progress import progress_bar

LM_FILES = (*MODEL_FILES, ".jinja")  # answers depend on the chat template, too


def check_lm_dir(llm_model: str) -> Path:
    """The directory of a local model; raises GoodsError when it lacks config or weights."""
    folder = resolve(llm_model)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise GoodsError(f"llm_model {folder} is not a model directory with config.json and *.safetensors; for a model "
                         "behind an API set llm to 'api'")  # fmt: skip
    return folder


class LocalLM:
    """An instruction-tuned causal LM of a local directory: chat template, left-padded batches, greedy.

    Raises GoodsError when the directory is missing or damaged, or has no chat template.
    """

    def __init__(self, p: CompressParams, prompt: str) -> None:
        self.p, self.prompt, self.folder = p, prompt, check_lm_dir(p.llm_model)
        dtype = DTYPES.get(pick_precision(p.mixed_precision), torch.float32)
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder, padding_side="left", **local)
            self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, use_safetensors=True, **local)
        except Exception as error:  # config, tokenizer, safetensors and torch each have their own
            raise GoodsError(f"the causal LM in {self.folder} can't be loaded: {error_line(error)}") from error
        if not self.tokenizer.chat_template:
            raise GoodsError(f"{self.folder} has no chat template; take an instruction-tuned model")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.to(pick_device()).eval()
        limit = getattr(self.model.config, "max_position_embeddings", None) or 2**31
        self.with_system = True
        try:
            empty_chat = self._chat("")
        except Exception:  # jinja2's: some templates refuse a system message
            self.with_system = False
            empty_chat = self._chat("")
        prompt_tokens = len(self.tokenizer(empty_chat, add_special_tokens=False)["input_ids"])
        self.text_tokens = limit - p.llm_max_tokens - prompt_tokens  # room for the product's text
        if self.text_tokens < MIN_TEXT_TOKENS:
            raise GoodsError(f"llm_max_tokens {p.llm_max_tokens} and the prompt leave no room for a text in the "
                             f"{limit} tokens that {self.folder.name} reads; shorten them")  # fmt: skip

    def _chat(self, text: str) -> str:
        messages = chat_messages(self.prompt, text)
        if not self.with_system:
            messages = [{"role": "user", "content": f"{self.prompt}\n\n{text}"}]
        # Qwen3 would think aloud first; templates that don't know enable_thinking ignore it.
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def _fit(self, text: str) -> str:
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=self.tokenizer.is_fast)
        if len(encoding["input_ids"]) <= self.text_tokens:
            return text
        room = self.text_tokens - 2  # the cut may fall into what was one token
        if self.tokenizer.is_fast:
            return text[: encoding["offset_mapping"][room - 1][1]]
        return self.tokenizer.decode(encoding["input_ids"][:room])

    @torch.inference_mode()
    def ask(self, texts: Sequence[str]) -> list[Answer]:
        """The answers to a batch of texts; a batch that needs too much memory is halved."""
        try:
            return self._generate(texts)
        except torch.OutOfMemoryError:
            if len(texts) == 1:
                raise GoodsError(f"{self.folder.name} doesn't fit the GPU's memory with one text; lower "
                                 "llm_input_chars or take a smaller model") from None  # fmt: skip
        torch.cuda.empty_cache()
        half = len(texts) // 2
        return self.ask(texts[:half]) + self.ask(texts[half:])

    def _generate(self, texts: Sequence[str]) -> list[Answer]:
        chats = [self._chat(self._fit(text)) for text in texts]
        # The template has written the special tokens already.
        batch = self.tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False).to(self.model.device)
        out = self.model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None, max_new_tokens=self.p.llm_max_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}
        answers = []
        for prompt_tokens, ids in zip(batch["attention_mask"].sum(1).tolist(), out.tolist(), strict=True):
            new = ids[batch["input_ids"].shape[1] :]
            length = next((k for k, token in enumerate(new) if token in ends), None)
            text = self.tokenizer.decode(new[:length], skip_special_tokens=True)
            cut = self.p.llm_max_tokens if length is None else 0
            answers.append(Answer(text, cut, prompt_tokens, len(new) if length is None else length + 1))
        return answers

    def ask_all(
        self, texts: Sequence[str], on_answer: Callable[[str, Answer], None], deadline: float | None
    ) -> dict[str, str]:
        """Asks for all texts, eval_batch_size at a time; an answer always comes, so none fails here."""
        size = self.p.eval_batch_size
        order = sorted(
            texts, key=len, reverse=True
        )  # texts of like length need least padding; the largest batch comes first
        with progress_bar(total=len(order), desc="compressing", unit=" texts", leave=False) as bar:
            for start in range(0, len(order), size):
                if is_past(deadline):
                    break
                part = order[start : start + size]
                for text, answer in zip(part, self.ask(part), strict=True):
                    on_answer(text, answer)
                bar.update(len(part))
        return {}
