"""A plan as it is shown: its columns one under the other, in a terminal and on a notebook's page."""

from __future__ import annotations

import html
import re
from typing import Any

import nbformat
import pytest
import torch
from nbconvert import HTMLExporter

from goods.cost.footprint import PARTS
from goods.cost.gpus import GPUS
from goods.cost.plan import Plan, plan_run
from goods.params import Params, load_params


@pytest.fixture
def plan() -> Plan:
    memory = {phase: dict.fromkeys(PARTS, gib) for phase, gib in (("training", 1.25), ("evaluation", 0.5))}
    return Plan(
        params=Params(), gpu=GPUS["T4"], precision="fp16", image_size=384, micro_batch_size=8, trainable=9 * 10**6,
        total=12 * 10**6, memory=memory, flops={"forward, image": 7e11}, hours={"training": 3.5},
        disk={"embeddings": 0.25}, rows=(50_000, 10_000), notes=("rows are < assumed >",),
    )  # fmt: skip


def test_numbers_stand_one_under_the_other(plan: Plan) -> None:
    lines = str(plan).splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("memory, GiB"))) :][: len(PARTS) + 2]
    assert len({len(line) for line in table}) == 1
    assert [line[-14:].strip() for line in table[:2]] == ["evaluation", "0.50"]


def test_a_page_shows_it_in_a_monospace_font(plan: Plan) -> None:
    shown = plan._repr_html_()
    style, text = re.fullmatch(r'<pre style="([^"]*)">(.*)</pre>', shown, re.DOTALL).groups()
    assert "font-family: monospace" in style and "white-space: pre" in style
    assert html.unescape(text) == str(plan) and "<" not in text


def test_nbconvert_keeps_the_font(plan: Plan) -> None:
    output = nbformat.v4.new_output("execute_result", {"text/html": plan._repr_html_(), "text/plain": repr(plan)})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("plan", outputs=[output])])
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert plan._repr_html_() in page


def test_a_terminal_shows_the_same(plan: Plan) -> None:
    assert repr(plan) == str(plan)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, and its plan is of that")
def test_the_plan_of_here_is_of_this_processor(mini: dict[str, Any]) -> None:
    here = plan_run(load_params(**mini), "here")
    lines = str(here).splitlines()
    assert here.precision == "fp32" and here.gpu.memory_gib > 1 and sum(here.hours.values()) > 0
    assert lines[0].endswith("fp32, on this CPU") and "hours on this CPU" in lines
    assert here.advice.startswith("fits this machine's memory: ") and "GPU" not in str(here)
