"""report.html: one page that loads nothing, made from a run's files, whatever is missing; seen by a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import Run

from goods.ensemble.folds import ensemble_folds
from goods.ensemble.label_issues import write_label_issues
from goods.ensemble.submission import write_submission
from goods.params import Params
from goods.report import run_figures, write_report
from goods.run import open_run
from goods_utils import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Params:
    """The finished miniature run in a folder of its own."""
    shutil.copytree(trained.p.run_dir, tmp_path / "mini")
    p = trained.p.model_copy(update={"outputs_dir": str(tmp_path)})
    ensemble = ensemble_folds(p, trained.goods)
    write_label_issues(p, ensemble, trained.goods)
    write_submission(p, trained.goods)
    return p


@pytest.mark.slow
def test_the_page_tells_all_and_is_light(run: Params):
    path = write_report(run)
    page = path.read_text(encoding="utf-8")
    metrics = json.loads((run.run_dir / "ensemble" / "metrics.json").read_text())
    assert path == run.run_dir / "report.html" and 100_000 < path.stat().st_size < 10_000_000
    assert f"macro-F1 {metrics['fused']['macro_f1']:.3f}" in page and "3 of 3 folds" in page
    assert 'class="missing"' not in page and "Labels to look at again" in page and "head_learning_rate" in page
    assert "transformers" in page and page.count("<img ") == len(run_figures(run.run_dir)) >= 10


def test_a_run_without_folds_or_ensemble_says_what_is_missing(run: Params):
    shutil.rmtree(run.run_dir / "fold1")
    shutil.rmtree(run.run_dir / "ensemble")
    (run.run_dir / "submission.csv").unlink()
    page = write_report(run).read_text(encoding="utf-8")
    assert "Folds not trained: 1." in page and "There is no ensemble yet" in page and "no submission.csv" in page
    assert "learning_curves" in page
    bare = run.model_copy(update={"run": "bare"})
    open_run(bare)
    assert "Folds not trained: 0, 1, 2." in write_report(bare).read_text(encoding="utf-8")


@pytest.mark.slow
def test_damaged_predictions_of_a_fold_leave_the_rest(run: Params):
    (run.run_dir / "fold1" / "oof.parquet").write_bytes(b"torn")
    assert "reliability" in run_figures(run.run_dir) and 'alt="reliability"' in write_report(run).read_text()


@pytest.mark.slow
def test_nothing_of_the_goods_is_taken_for_html(run: Params):
    evil = "<script>alert(1)</script>"
    path = run.run_dir / "ensemble" / "label_issues.csv"
    pd.DataFrame({"id": ["1"], "title": [evil], "given": ["a"], "suggested": ["مرحبا 🎁"]}).to_csv(path, index=False)
    page = write_report(run).read_text(encoding="utf-8")
    assert evil not in page and html.escape(evil) in page and "مرحبا 🎁" in page


@pytest.mark.slow
def test_figures_that_are_too_large_are_left_out_and_named(run: Params, monkeypatch):
    monkeypatch.setattr("goods.report.MAX_BYTES", 200_000)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Figures too large for this page" in page and 0 < page.count("<img ") < 10


@pytest.mark.slow
def test_the_command_line_makes_it_anew(run: Params, tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text((run.run_dir / "params.yaml").read_text())
    main(["report", "--config", str(config), "--set", f"outputs_dir={tmp_path}"])
    assert (run.run_dir / "report.html").is_file()
    with pytest.raises(SystemExit, match="there is no run in"):
        main(["report", "--config", str(config), "--set", f"outputs_dir={tmp_path}", "run=nowhere"])


PROBE = """<script>addEventListener("load", () => { document.title = JSON.stringify({
  broken: [...document.images].filter(i => !i.naturalWidth).length, images: document.images.length,
  loaded: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
  wide: document.documentElement.scrollWidth - innerWidth }) })</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a real browser: apt install chromium")
def test_a_real_browser_shows_it_whole_and_loads_nothing(run: Params, tmp_path: Path):
    page = write_report(run).read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:|notebooks/)""", page)
    probe, picture = tmp_path / "probe.html", tmp_path / "report.png"
    probe.write_text(page.replace("</body>", PROBE), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,3000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run([CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()],
                           capture_output=True, text=True, timeout=120)  # fmt: skip
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown.stdout)[1]))
    assert found["images"] >= 10 and found["broken"] == 0 and found["loaded"] == [] and found["wide"] <= 0
    subprocess.run([CHROMIUM, *options, f"--screenshot={picture}", (run.run_dir / "report.html").as_uri()],
                   capture_output=True, timeout=120, check=True)  # fmt: skip
    assert picture.stat().st_size > 50_000
