"""The README and docs/ tell the truth: their commands run, their tables are the code's, what they name is there.

Those commands run the notebooks, so what a notebook that ran looks like is promised here, too."""

from __future__ import annotations

import functools
import os
import re
import runpy
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from notebook_runs import NOTEBOOKS, PICTURES, Done, papermill
from project_copy import copy_project

from goods.classify import PredictParams
from goods.compress.params import CompressParams
from goods.files import ROOT
from goods.params import Params
from goods.run import Run

# In this order, since some commands go on from the runs of earlier ones.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"), key=lambda path: (path.stem != "parameters", path))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
BY_MAKE = {"make demo", "make test", "make check", "make lab"}  # what CI runs; the last one has a test of its own
MAX_LINES = 150
# Names with an underscore that are no parameters: columns, and settings of sentence-transformers and of Kaggle.
OTHER_NAMES = {"compressed_text", "compressed_status", "max_seq_length", "default_prompt_name", "machine_shape"}
OTHER_NAMES |= {"docker_image_pinning_type"}
OTHER_PAGES = [f"{folder}/README.md" for folder in ("benchmarks", "data", "models", "outputs")]
all_pages = pytest.mark.parametrize("page", [*TEXTS, "README.zh-CN.md", *OTHER_PAGES])


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def bash_blocks(text: str) -> list[str]:
    """The blocks of commands, without indentation: some stand in lists."""
    return [re.sub(r"(?m)^ +", "", block) for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]


def commands_to_run() -> list[str]:
    """Every command that needs nothing from outside, once."""
    blocks = [block for text in TEXTS.values() for block in bash_blocks(text) if not block.startswith("# needs ")]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in dict.fromkeys(lines) if line and not line.startswith("#") and line not in BY_MAKE]


def headings(text: str) -> list[str]:
    return re.findall(r"(?m)^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"(?m)^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def scores(text: str) -> list[str]:
    return re.findall(r"(?<![\d.])\.\d{3}\b", text)


@pytest.mark.parametrize("page", ["parameters.md", "texts.md", "predict.md"])
def test_the_tables_of_parameters_are_those_of_the_code(page):
    script = runpy.run_path(str(ROOT / "docs" / "make_parameters.py"))
    text = read_page(f"docs/{page}")
    renew = "renew the tables: python docs/make_parameters.py"
    assert text == script["with_table"](text, script["PAGES"][page]), renew
    rows = [name for name, *_ in re.findall(r"(?m)^\| `(\w+)`[ \\*]* \| (.*?) \| (.*) \|$", text)]
    shown = script["PAGES"][page]
    fields = [name for name in shown.model_fields if shown is Params or name not in Params.model_fields]
    assert rows == fields


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_a_readme_is_a_first_page(page):
    assert len(read_page(page).splitlines()) <= MAX_LINES


def test_the_chinese_readme_says_the_same():
    english = TEXTS["README.md"]
    assert bash_blocks(CHINESE) == bash_blocks(english)
    assert headings(CHINESE) == headings(english)
    assert scores(CHINESE) == scores(english)
    links, other = re.compile(r"\]\((\w[^)]*)\)"), {"README.md", "README.zh-CN.md"}
    assert set(links.findall(CHINESE)) - other == set(links.findall(english)) - other


def test_the_scores_of_the_readme_stand_in_the_results():
    assert set(scores(TEXTS["README.md"])) <= set(scores(TEXTS["docs/results.md"]))


def test_the_layout_names_every_room_and_every_file_of_a_run():
    text = read_page("docs/layout.md")
    rooms = {path.stem for path in (ROOT / "goods").glob("[a-z]*") if path.is_dir() or path.suffix == ".py"}
    run = Run(ROOT / "outputs" / "trial")
    files = {path.name for thing in (run, run.fold(0)) for path in vars(thing).values() if isinstance(path, Path)}
    inside = {path.name for path in (run.fold(0).state, run.fold(0).previous_state, run.fold(0).kept_weights,
                                     run.fold(0).mixed_weights)}  # fmt: skip
    assert [name for name in sorted(rooms | files - inside - {"trial"}) if name not in text] == []


@all_pages
def test_the_files_it_names_are_there(page):
    text = read_page(page)
    rooms = r"(?:params|notebooks|goods|docs|tests|kaggle_kernel|benchmarks)/[\w./*-]*\w"
    for path in re.findall(rf"(?<![\w/.>-])(?:{rooms}|pipeline\.py|goods_\w+\.py)", text):
        assert [*ROOT.glob(path)], path
    for path, name in re.findall(r"`(goods/[\w/]+\.py)::(\w+)`", text):
        assert re.search(rf"(?m)^(?:def|class) {name}\b", read_page(path)), f"{path} has no {name}"


@all_pages
def test_the_parameters_it_names_are_there(page):
    named = re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:(?:=|: )[^`]*)?`", read_page(page))
    assert set(named) - {*Params.model_fields, *CompressParams.model_fields, *PredictParams.model_fields} <= OTHER_NAMES


@all_pages
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read_page(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", TEXTS["README.md"]))
    assert linked == set(TEXTS) - {"README.md"}


@all_pages
def test_what_it_has_made_can_be_made(page):
    targets = set(re.findall(r"(?m)^([a-z][\w-]*):", read_page("Makefile")))
    assert set(re.findall(r"(?:`|^ *)make ([a-z-]+)", read_page(page), re.MULTILINE)) <= targets


@pytest.fixture(scope="module")
def copy(tmp_path_factory, sample) -> Path:
    """The project in a folder of its own, with the sample, fewer folds and epochs, and this Python as its .venv."""
    # The blend is of the other two, so all have the same folds.
    configs = ("demo", "linear", "blend")
    root = copy_project(tmp_path_factory.mktemp("readme") / "goods", sample, configs, n_folds=3, num_epochs=3)
    (root / "outputs" / "demo" / "notebooks").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def call(copy) -> Callable[[str], subprocess.CompletedProcess]:
    """Runs a command in the copy, the first time that it is asked for."""

    @functools.cache
    def call(command: str) -> subprocess.CompletedProcess:
        if command.startswith("make "):  # as installed: that is what `make test` did
            command = command.replace("make ", "make -o .venv/installed ", 1)
        environment = os.environ | {"PYTHONPATH": str(copy)}
        return subprocess.run(["bash", "-c", command], cwd=copy, env=environment, capture_output=True, text=True)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("command", commands_to_run())
def test_a_command_runs(call, command):
    """Every command that needs nothing from the internet, on a smaller sample."""
    done = call(command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def executed(copy, call) -> dict[str, Done]:
    """All notebooks, as those commands left them; the one that none of them runs is run here."""
    for command in commands_to_run():
        call(command)
    outputs = copy / "outputs"
    runs = {"eda": "demo", "trust": "demo", "refit": "demo", "predict": "demo", "ensemble": "demo"}
    runs |= {"submission": "demo", "baseline": "linear", "pseudo_label": "linear", "review": "linear"}
    runs |= {"compare": "blend"}
    files = {name: outputs / run / "notebooks" / f"{name}.ipynb" for name, run in runs.items()}
    files["train"] = outputs / "demo" / "notebooks" / "train_fold1.ipynb"
    done = {name: Done(0, "", nbformat.read(file, as_version=4)) for name, file in files.items()}
    return done | {"embed": papermill("notebooks/embed.ipynb", outputs / "embed.ipynb", cwd=copy, root=copy)}


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS} == {*PICTURES, "compress_text"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_runs_clean(executed, name):
    done = executed[name]
    assert done.status == 0, done.stderr
    streams = {output.name: output.text for output in done.outputs() if output.output_type == "stream"}
    if find_spec("ipywidgets"):  # without, tqdm says so in each notebook, and its bars are text
        assert "stderr" not in streams, streams["stderr"]
    assert not re.search(r"Warning\b|Traceback|\[0;3\d", done.printed())
    assert not [output for output in done.outputs() if output.output_type == "error"]
    pictures = done.pictures()
    assert len(pictures) == PICTURES[name]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5_000 for picture in pictures)
    assert len(set(pictures)) == len(pictures)


@pytest.mark.slow
def test_what_the_notebooks_leave_in_the_run(executed, copy):
    run = Run(copy / "outputs" / "demo")
    fold = run.fold(2)
    promised = [run.record_file, run.data_report, run.bad_images, run.labels, run.folds_table, run.oof, run.test]
    promised += [run.metrics, run.submission, run.submission_probs, run.report, fold.weights, fold.log]
    assert not [path for path in promised if not path.is_file()]
    assert run.trained() == [0, 1, 2] and fold.predicted and not fold.checkpoint.exists()
    assert len(list(run.figures.glob("*.png"))) == PICTURES["ensemble"] + 1  # and that of submission.ipynb
    folders = (run.goods_figures, fold.figures, run.figures)
    figures = [path for folder in folders for path in folder.glob("*.png")]
    assert {path.parent for path in figures} == {*folders}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert not list(run.folder.rglob("*.tmp"))
    rows, test = (pd.read_csv(path, dtype=str) for path in (run.submission, copy / "data" / "sample" / "test.csv"))
    assert rows["id"].tolist() == test["id"].tolist() and rows["categories"].isin([str(k) for k in range(21)]).all()


@pytest.mark.slow
def test_what_the_notebooks_say(executed):
    found = re.search(r"Fold 1: (\d+) products to learn from, (\d+) held back", executed["train"].said())
    assert sum(map(int, found.groups())) == 126 and 35 <= int(found[2]) <= 50
    assert "42 rows for 42 test products." in executed["submission"].said()
    assert re.search(r"Together they have macro-F1 \.\d{3}, which (gains|loses) \.\d{3}", executed["train"].said())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PICTURES) - {"refit"}))
def test_a_notebook_reads_out_each_figure_and_says_so_at_its_end(executed, name):
    """Below each figure comes a sentence, and the notebook's last words but its files are its answer."""
    outputs = [output for output in executed[name].outputs() if "data" in output]
    said = [output.data.get("text/html", "").startswith("<p ") for output in outputs]
    for number, output in enumerate(outputs):
        assert "image/png" not in output.data or said[number + 1]
    answers = [line for line in executed[name].said().splitlines() if line.startswith("So: ")]
    assert 2 <= len(answers) <= 3 and not [line for line in answers if re.search(r"\b(nan|None)\b", line)]


@pytest.mark.slow
def test_make_lab_serves(copy):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --allow-root --port={port} --IdentityProvider.token=t"
    command = ["make", "-o", ".venv/installed", "-o", "sample", "lab", f"ARGS={options}"]
    lab = subprocess.Popen(command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/api/contents/notebooks?token=t", timeout=5
                ) as page:
                    assert b"train.ipynb" in page.read()
                return
            except OSError:
                assert lab.poll() is None, lab.stdout.read().decode()
                time.sleep(0.5)
        pytest.fail("jupyter lab did not answer within a minute")
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(20)
