"""A stranger's first half hour, as the README tells it, with real clicks in a real JupyterLab: two runs compared,
labels mended, trained again, compared, new goods classified."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from browser import CHROMIUM, Page, chromium, jupyterlab, open_notebook, run_all, wait_until
from project_copy import copy_project

from goods.files import ROOT
from goods.label_fixes import read_fix_table
from goods.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("GOODS_SLOW" not in os.environ, reason="takes five minutes: GOODS_SLOW=1 runs it"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs a real browser: apt install chromium"),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.search(r"```bash\n# needs what `make demo` has made.*?\n(.*?)```", README, re.DOTALL)
COMMANDS = BLOCK[1].replace("\\\n", " ").strip().splitlines()


@pytest.fixture(scope="module")
def project(tmp_path_factory, sample) -> Path:
    """The project in a folder of its own, with a small sample, fewer folds and epochs, and this Python as its .venv."""
    parent = tmp_path_factory.mktemp("stranger")
    root = copy_project(parent / "goods", sample, ("demo", "linear"), n_folds=2, num_epochs=4)
    call(root, ".venv/bin/python pipeline.py --config params/demo.yaml")  # what make demo does, once installed
    return root


def call(root: Path, command: str) -> str:
    """What a command of the README says on the console."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", command], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    print(f"$ {command}\n{done.stdout}")
    return done.stdout


@pytest.fixture
def page(tmp_path) -> Iterator[Page]:
    with chromium(tmp_path / "profile") as page:
        yield page


def command(start: str) -> str:
    """The command of the README that begins so."""
    (found,) = [line for line in COMMANDS if line.startswith(start)]
    return found


def decided(root: Path) -> list[list[str]]:
    return read_fix_table(Run(root / "outputs" / "demo").labels_fixed)[["decision", "label"]].values.tolist()


def begin_review(page: Page, address: str, notebook: str = "review") -> None:
    open_notebook(page, address, f"notebooks/{notebook}.ipynb")
    run_all(page)


def mend_three(root: Path, page: Page) -> tuple[str, int]:
    """Three labels mended and more decided, by clicks and keys, over two sessions of JupyterLab; the class that the
    second one was changed to, and how many were in doubt."""
    with jupyterlab(root) as address:
        begin_review(page, address, "embed")
        wait_until(Run(root / "outputs" / "demo").embeddings("test").is_file)  # its last cell may be out of sight
        begin_review(page, address)
        total = int(page.wait("document.body.innerText.match(/0 of (\\d+) decided/)?.[1]"))
        page.wait_for_text("The products most like it")
        assert page.ask("[...document.querySelectorAll('.review-card img')].filter((i) => i.naturalWidth).length") >= 7
        suggested = re.search(r"suggested: (.*?) \(margin", page.text(".review-card"))[1]
        chosen = "document.querySelector('.review-classes select')?.value"
        page.wait(f"{chosen} === {json.dumps(suggested)}")
        page.click(".review-change")
        page.wait_for_text(f"1 of {total} decided")
        assert decided(root) == [["change", suggested]]
        given = re.search(r"given: (.*?), suggested", page.text(".review-card"))[1]
        other = next(name for name in ("Video Games", "Musical Instruments") if name != given)
        page.choose(".review-classes select", other)
        page.press("c")  # the keys' field has the focus since the click
        page.wait_for_text(f"2 of {total} decided")
        page.click(".review-keep")
        page.wait_for_text(f"3 of {total} decided")
        page.click(".review-skip")
        page.wait_for_text("1 skip")
        page.picture(root / "review.png")
    with jupyterlab(root) as address:  # after a restart of everything but the browser
        begin_review(page, address)
        page.wait_for_text(f"3 of {total} decided (1 keep, 2 change, 0 drop, 1 skip)")
        page.click(".review-typing input")
        page.press("d")
        page.wait_for_text(f"4 of {total} decided")
        page.click(".review-back")
        page.wait_for_text(f"3 of {total} decided")
        page.click(".review-drop")
        page.wait_for_text(f"4 of {total} decided (1 keep, 2 change, 1 drop, 1 skip)")
    assert decided(root) == [["change", suggested], ["change", other], ["keep", ""], ["skip", ""], ["drop", ""]]
    return other, total


def test_a_strangers_half_hour(project, page):
    outputs = project / "outputs"
    call(project, COMMANDS[0])
    said = call(project, command(".venv/bin/python goods_utils.py compare demo linear"))
    assert re.match(r"(demo|linear) is (not )?better than (demo|linear)( beyond noise)?: macro-F1 \+\.\d{3}", said)
    page.open((outputs / "compared" / "demo,linear.html").as_uri())  # and why: by class, and by products
    page.wait_for_text(said.splitlines()[0])
    page.wait_for_text("gets them right: the clearest")

    assert command("make lab")
    mend_three(project, page)
    mended = Run(outputs / "demo-mended")
    call(project, command(".venv/bin/python pipeline.py --config params/demo.yaml --run demo-mended"))
    assert read_fix_table(mended.label_fixes)["decision"].tolist() == ["change", "change", "keep", "drop"]
    folds = [pd.read_parquet(Run(outputs / name).folds_table) for name in ("demo", "demo-mended")]
    assert folds[0].equals(folds[1])
    rows = [sum(fold.scores()["rows"] for fold in Run(outputs / name).folds()) for name in ("demo", "demo-mended")]
    assert rows[0] - rows[1] == 1  # the other fold's model would have learned from the dropped product

    said = call(project, command(".venv/bin/python goods_utils.py compare demo-mended demo"))
    assert re.search(r"On the 123 labels that nobody touched demo-mended gains [+-]\.\d{3} \(", said)
    assert "the 3 that were changed, or whose products were dropped, count above by the table's label" in said

    call(project, command(".venv/bin/python goods_utils.py predict"))
    new, test = (pd.read_csv(path, dtype=str) for path in (outputs / "new.csv", project / "data/sample/test.csv"))
    assert new["id"].tolist() == test["id"].tolist() and new["label"].isin([str(k) for k in range(21)]).all()
    refused = subprocess.run(["bash", "-c", f"{COMMANDS[0]} label_fixes=outputs/demo/labels_fixed.csv"], cwd=project,
                             env=os.environ | {"PYTHONPATH": str(project)}, capture_output=True, text=True)  # fmt: skip
    assert refused.returncode == 2 and "label_fixes was None and is now" in refused.stderr
