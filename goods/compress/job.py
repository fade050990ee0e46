"""The texts of all products rewritten short: tables in, tables with compressed_text out.

The model sees a product's text and never its label. Every answer is appended to a cache as it comes, so a job that was
stopped goes on where it was, and a second one costs nothing.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

import pandas as pd

from goods.compress.answers import Answer, AnswerCache, answer_key
from goods.compress.api import ChatAPI
from goods.compress.local import LM_FILES, LocalLM, check_lm_dir
from goods.compress.params import CompressParams, compress_prompt
from goods.data.photo_files import columns_of
from goods.data.table_files import read_cells
from goods.data.tables import DEBUG_TEST_ROWS, read_table
from goods.errors import GoodsError
from goods.files import atomic_path, folder_hash, resolve, write_json
from goods.run import deadline
from goods.sheets import write_sheet

ADDED_COLUMNS = ("compressed_text", "compressed_status")


@dataclass(frozen=True)
class Compressed:
    """Train and test in one table (table, id, text, compressed_text, compressed_status), and what it took."""

    texts: pd.DataFrame
    cost: pd.Series


def compress_goods(p: CompressParams) -> Compressed:
    """Rewrites the texts of train and test; writes train.csv, test.csv and labels.json to the run's compressed/.

    The tables are written as they were read, with two more columns: compressed_text and compressed_status ("ok",
    "empty" or "failed: <reason>"). Where the status isn't "ok", compressed_text is the original text. Each distinct
    text is asked for once.

    Raises GoodsError when a table can't be used or the model can't be asked; answers so far are kept in
    outputs_dir/cache/compressed/answers.jsonl, and the same call goes on from there.
    """
    tables = _read_tables(p)
    prompt = compress_prompt(p)
    sent = {text: _shorten(text, p.llm_input_chars) for table in tables.values() for text in table["text"] if text}
    model_id = p.llm_model if p.llm == "api" else folder_hash(check_lm_dir(p.llm_model), LM_FILES)
    keys = {text: answer_key(text, prompt, model_id) for text in sent.values()}
    with AnswerCache(resolve(p.outputs_dir) / "cache" / "compressed" / "answers.jsonl") as cache:
        missing = [text for text, key in keys.items() if cache.lacks(key, p.llm_max_tokens)]
        before = {text: cache.answers.get(keys[text]) for text in missing}
        failed: dict[str, str] = {}
        if missing:
            known_to_work = len(missing) < len(keys)
            model = ChatAPI(p, prompt, known_to_work) if p.llm == "api" else LocalLM(p, prompt)
            failed = model.ask_all(missing, lambda text, answer: cache.add(keys[text], answer), deadline(p))
        answers = {text: cache.answers[key] for text, key in keys.items() if key in cache.answers}
    texts = pd.concat([table.assign(table=name) for name, table in tables.items()], ignore_index=True)
    rows = [_outcome(text, answers.get(sent.get(text)), failed.get(sent.get(text))) for text in texts["text"]]
    texts[list(ADDED_COLUMNS)] = pd.DataFrame(rows, columns=list(ADDED_COLUMNS), index=texts.index)
    asked = [answers[text] for text in missing if text in answers and answers[text] is not before[text]]
    cost = _cost(texts, asked, list(answers.values()))
    _write(p, texts, cost)
    return Compressed(texts[["table", "id", "text", *ADDED_COLUMNS]], cost)


def _read_tables(p: CompressParams) -> dict[str, pd.DataFrame]:
    """id and text of each row of train and test."""
    problems: list[str] = []
    tables = {name: read_table(resolve(getattr(p, f"{name}_csv")), p, [], problems) for name in ("train", "test")}
    for name, table in tables.items():
        if table is not None and not table.columns.intersection(ADDED_COLUMNS).empty:
            problems.append(f"{getattr(p, f'{name}_csv')} has a compressed_text already; name the original tables")
    if problems:
        raise GoodsError("the goods can't be used:\n" + "\n".join(f"- {problem}" for problem in problems))
    rows = DEBUG_TEST_ROWS if p.debug else None
    return {name: table[["id", "text"]].head(rows or len(table)) for name, table in tables.items()}


def _shorten(text: str, limit: int) -> str:
    """The text up to the last word that ends within `limit` characters."""
    if len(text) <= limit:
        return text
    head = text[:limit]
    return head if text[limit] == " " or " " not in head else head.rsplit(" ", 1)[0]


def _outcome(text: str, answer: Answer | None, reason: str | None) -> tuple[str, str]:
    """compressed_text and compressed_status of one product."""
    if not text:
        return "", "empty"
    if reason or answer is None:
        return text, f"failed: {reason or 'not asked, max_hours were over'}"
    short = tidy_answer(answer.text)
    if answer.cut:
        return text, f"failed: no end within {answer.cut} tokens"
    if not short:
        return text, "failed: an empty answer"
    if len(short) > max(len(text), 500):
        return text, f"failed: an answer of {len(short)} characters to a text of {len(text)}"
    return short, "ok"


def tidy_answer(text: str) -> str:
    """The answer in one line, without a reasoning model's thoughts and without the quotes around it."""
    line = " ".join(re.sub(r"<think>.*?(</think>|$)", " ", text, flags=re.DOTALL).split())
    quoted = re.fullmatch(r"[\"'“«](.*)[\"'”»]", line)
    return quoted[1].strip() if quoted else line


def _cost(texts: pd.DataFrame, asked: list[Answer], answers: list[Answer]) -> pd.Series:
    status = texts["compressed_status"]
    return pd.Series({
        "products": len(texts),
        "distinct texts": texts["text"][texts["text"] != ""].nunique(),
        "products compressed": int((status == "ok").sum()),
        "products with an empty text": int((status == "empty").sum()),
        "products that failed and keep their text": int(status.str.startswith("failed").sum()),
        "texts answered now": len(asked),
        "texts answered before": len(answers) - len(asked),
        "tokens read now": sum(answer.prompt_tokens for answer in asked),
        "tokens written now": sum(answer.answer_tokens for answer in asked),
        "tokens read in all": sum(answer.prompt_tokens for answer in answers),
        "tokens written in all": sum(answer.answer_tokens for answer in answers),
    })  # fmt: skip


def _looked_up(p: CompressParams) -> list[str]:
    """The columns whose cells a training compares with others or looks for, so that they must stay as they are."""
    photos = columns_of(p.image_column) if p.image_column else []
    return [p.id_column, p.label_column, *filter(None, (p.fold_column, p.group_column)), *p.group_by, *photos]


def _write(p: CompressParams, texts: pd.DataFrame, cost: pd.Series) -> None:
    for name, part in texts.groupby("table"):
        # The table as it was given: nothing but an empty cell is empty, ids keep their zeros.
        source = resolve(getattr(p, f"{name}_csv"))
        table = read_cells(source, [], p.id_column).head(len(part))
        table = table.assign(**{column: part[column].to_list() for column in ADDED_COLUMNS})
        write_sheet(p.compressed_dir / f"{name}.csv", table, exact=_looked_up(p))
    labels = resolve(p.train_csv).parent / "labels.json"
    if labels.is_file():  # read_goods looks for the classes' names beside train_csv
        with atomic_path(p.compressed_dir / "labels.json") as temporary:
            shutil.copyfile(labels, temporary)
    settings = {name: getattr(p, name) for name in ("llm", "llm_model", "llm_max_tokens", "llm_input_chars")}
    write_json(p.compressed_dir / "report.json", settings | {"prompt": compress_prompt(p), **cost.to_dict()})
