"""report.html: one page that loads nothing, made from a run's files, whatever is missing; seen by a real browser."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Trained, put_together
from markupsafe import escape
from scipy.special import log_softmax

matplotlib.use("Agg")

from goods.accept import acceptance_table
from goods.ensemble.folds import Ensemble
from goods.ensemble.label_issues import write_label_issues
from goods.ensemble.submission import write_submission
from goods.figures.eda import class_balance, fold_balance
from goods.figures.ensemble import modality_scores, reliability
from goods.figures.errors import class_f1, confusion_matrix
from goods.figures.style import save_figure
from goods.figures.training import learning_curves
from goods.files import ROOT, write_frame, write_json
from goods.members import open_run
from goods.params import Params
from goods.predictions import frame_logits, logits_frame
from goods.report import saved_figures, settings_table, write_report
from goods.run import Run
from goods.training.fold import read_logs
from goods.words import digits
from goods_utils import main

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def finished(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The miniature run with its ensemble, its submission and its figures."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(trained.p.run_dir, folder / "mini")
    p = trained.p.model_copy(update={"outputs_dir": str(folder)})
    ensemble = put_together(p, trained.goods)
    write_label_issues(p, ensemble, trained.goods)
    write_submission(p, trained.goods)
    keep_figures(Run.of(p), ensemble, trained.goods.classes)
    return p


@pytest.fixture
def run(finished: Params, tmp_path: Path) -> Params:
    """The finished run in a folder of the test's own."""
    shutil.copytree(finished.run_dir, tmp_path / "mini")
    return finished.model_copy(update={"outputs_dir": str(tmp_path)})


def keep_figures(run: Run, ensemble: Ensemble, classes: list[str]) -> None:
    """Nine figures as the notebooks keep them: four of all folds, one of each of the three folds, two of the goods."""
    labels, logits, logs = ensemble.oof["label"], frame_logits(ensemble.oof), read_logs(run)
    save_figure(run.figures / "reliability.png", reliability(labels, {"calibrated": logits}))
    save_figure(run.figures / "modalities.png", modality_scores(ensemble.scores.xs("macro_f1", axis=1, level=1)))
    save_figure(run.figures / "class_f1.png", class_f1(labels, logits.argmax(1), classes))
    save_figure(run.figures / "confusion.png", confusion_matrix(labels, logits.argmax(1), classes))
    for fold in range(3):
        save_figure(run.fold(fold).figures / "learning_curves.png", learning_curves(logs[logs["fold"] == fold]))
    save_figure(run.goods_figures / "class_balance.png", class_balance(labels, classes))
    save_figure(run.goods_figures / "fold_balance.png", fold_balance(ensemble.oof["fold"], labels, classes))


def test_the_page_tells_all_and_is_light(run: Params):
    path = write_report(run)
    page = path.read_text(encoding="utf-8")
    metrics = json.loads((run.run_dir / "ensemble" / "metrics.json").read_text())
    assert path == run.run_dir / "report.html" and 100_000 < path.stat().st_size < 10_000_000
    assert f"macro-F1 {digits(metrics['fused']['macro_f1'])} (" in page and "3 of 3 folds" in page
    assert 'class="missing"' not in page and "Labels to look at again" in page and "head_learning_rate" in page
    assert "transformers" in page and page.count('<img alt="') == 9 and "not drawn yet" not in page


def test_the_page_says_what_it_took_and_nothing_of_where_the_machine_keeps_it(run: Params, trained: Trained):
    page = write_report(run).read_text(encoding="utf-8")
    for word in ("trained in", "most memory of a fold", "processor", "cores", "trained on</dt><dd>cpu"):
        assert word in page
    assert str(run.outputs_dir) not in page and str(trained.p.data_dir) not in page and "/tmp" not in page
    assert "<dt>data_dir</dt><dd>.../data (default none)</dd>" in page


def test_labels_to_look_at_again_have_photo_margin_and_a_link_to_the_list(run: Params):
    page = write_report(run).read_text(encoding="utf-8")
    issues = pd.read_csv(Run.of(run).label_issues, dtype={"id": str})
    cards = re.findall(r'<div class="card" id="label-\d+">.*?</div></div>', page, re.DOTALL)
    assert len(cards) == min(24, len(issues)) > 0
    first = issues.iloc[0]
    assert first["id"] in cards[0] and f"margin {digits(-first['margin'])}" in cards[0]
    assert "class='photo'" in cards[0] and "data:image/jpeg;base64," in cards[0]
    assert '<a href="ensemble/label_issues.csv">' in page


def test_thresholds_stand_with_what_they_accept(run: Params):
    oof = pd.read_parquet(Run.of(run).oof)[["id", "label", "fold"]]
    sure = log_softmax(8 * np.eye(21)[oof["label"]], axis=1)  # all of them right
    write_frame(Run.of(run).oof, pd.concat([oof, logits_frame({"fused": sure})], axis=1))
    page = write_report(run).read_text(encoding="utf-8")
    threshold = acceptance_table(pd.read_parquet(Run.of(run).oof)).loc[0.9, "threshold"]
    assert "What needs no person's look" in page
    assert f">90 %</td><td data-v='{threshold}'>{digits(threshold)}</td><td data-v='1.0'>1.000</td>" in page


def test_a_blend_names_its_method_first_and_how_each_fold_chose(run: Params):
    metrics = json.loads(Run.of(run).metrics.read_text())
    row = {"macro_f1": 0.844, "gain": 0.008, "gain_low": -0.003, "gain_high": 0.019}
    more = {"method": "average", "best_member": "a/text", "members": {"a/text": row, "b/text": row, "blend": row}}
    write_json(
        Run.of(run).metrics, metrics | more | {"methods": {"average": row}, "picked": {"0": "best", "1": "average"}}
    )
    page = write_report(run).read_text(encoding="utf-8")
    assert re.search(r'<h1>mini</h1>\s*<p class="score">average of a, b: macro-F1 .844, not better than a/text alone '
                     r"beyond noise \(\+.008, -.003 to \+.019\); fold 0 chose best</p>", page)  # fmt: skip
    assert "<th>fold 0</th><th>fold 1</th><th>further products</th>" in page


def test_the_metric_of_the_run_comes_first(run: Params):
    file = run.run_dir / "run.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"parameters": record["parameters"] | {"metric": "log_loss"}}))
    assert '<p class="score">Out of fold: log-loss' in write_report(run).read_text(encoding="utf-8")


def test_figures_are_shown_as_the_notebooks_kept_them(run: Params):
    page = write_report(run).read_text(encoding="utf-8")
    shown = re.findall(r'<img alt="(\w+)" src="data:image/png;base64,([^"]+)">', page)
    names = ["modalities", "reliability", "class_f1", "confusion", *["learning_curves"] * 3]
    assert [name for name, _ in shown] == [*names, "class_balance", "fold_balance"]
    kept = [file for files in saved_figures(Run.of(run)).values() for file in files]
    assert [base64.b64decode(data) for _, data in shown] == [file.read_bytes() for file in kept]
    headings = re.findall(r"<h2>(.*?)</h2><div class=\"figures\">", page)
    assert headings == ["All folds together", "Fold 0", "Fold 1", "Fold 2", "The goods"]


def test_figures_that_nobody_has_drawn_are_named(run: Params):
    for folder in run.run_dir.rglob("figures"):
        shutil.rmtree(folder)
    page = write_report(run).read_text(encoding="utf-8")
    assert '<img alt="' not in page
    assert "Figures not drawn yet: all folds together (ensemble.ipynb); the training of fold 0, 1, 2 (train.ipynb); " \
           "the goods (eda.ipynb)." in page  # fmt: skip


def test_a_report_needs_no_drawing():
    code = "import sys, goods.report; print({'matplotlib', 'goods.figures'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_settings_say_what_differs_from_the_defaults():
    table = settings_table(Params(run="mine", skip_folds=2).model_dump(mode="json"))
    assert len(table) == len(Params.model_fields)
    differ = table[table["value"] != table["default"]]
    assert differ.to_dict("index") == {
        "run": {"value": "mine", "default": "run"},
        "skip_folds": {"value": "2", "default": "0"},
    }


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


def test_a_blend_has_the_folds_of_its_ensemble(run: Params):
    blend = run.model_copy(update={"run": "both", "kind": "blend", "runs": ("mini",)})
    open_run(blend)
    assert "0 of 3 folds" in write_report(blend).read_text(encoding="utf-8")
    write_json(blend.run_dir / "ensemble" / "metrics.json", {"missing_folds": [2]})
    page = write_report(blend).read_text(encoding="utf-8")
    assert "2 of 3 folds" in page and "Folds not trained: 2." in page


def test_damaged_predictions_leave_the_rest(run: Params):
    (run.run_dir / "ensemble" / "oof.parquet").write_bytes(b"torn")
    page = write_report(run).read_text(encoding="utf-8")
    assert "Out of fold:" not in page and 'alt="reliability"' in page


def test_nothing_of_the_goods_is_taken_for_html(run: Params):
    evil = "<script>alert(1)</script>"
    path = run.run_dir / "ensemble" / "label_issues.csv"
    pd.DataFrame({"id": ["1"], "title": [evil], "given": ["a"], "suggested": ["مرحبا 🎁"]}).to_csv(path, index=False)
    page = write_report(run).read_text(encoding="utf-8")
    assert evil not in page and str(escape(evil)) in page and "مرحبا 🎁" in page


def test_figures_that_are_too_large_are_left_out_and_named(run: Params, monkeypatch):
    monkeypatch.setattr("goods.report.MAX_BYTES", 100_000)
    page = write_report(run).read_text(encoding="utf-8")
    assert re.search(r"Figures too large for this page, see .*ensemble/figures/confusion\.png", page)
    assert 0 < page.count('<img alt="') < 9


def test_the_command_line_makes_it_anew(run: Params, tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(Run.of(run).parameters()))
    main(["report", "--config", str(config), "--set", f"outputs_dir={tmp_path}"])
    assert (run.run_dir / "report.html").is_file()
    with pytest.raises(SystemExit, match="there is no run in"):
        main(["report", "--config", str(config), "--set", f"outputs_dir={tmp_path}", "run=nowhere"])


PROBE = """<title>-</title><iframe width=390 height=800 srcdoc="{page}"></iframe><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, images = [...page.images];
  document.title = JSON.stringify({{
    broken: images.filter((image) => !image.naturalWidth).length, images: images.length,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map((e) => e.name)
      .filter((name) => !name.startsWith("data:")),
    wide: page.documentElement.scrollWidth }});
}});</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a real browser: apt install chromium")
def test_a_real_browser_shows_it_whole_and_loads_nothing(run: Params, tmp_path: Path):
    page = write_report(run).read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:|notebooks/|ensemble/|#)""", page)
    probe, picture = tmp_path / "probe.html", tmp_path / "report.png"
    probe.write_text(PROBE.format(page=html.escape(page)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,3000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run([CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()],
                           capture_output=True, text=True, timeout=120)  # fmt: skip
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown.stdout)[1]))
    assert found["images"] > 9 and found["broken"] == 0 and found["loaded"] == [] and found["wide"] <= 390
    subprocess.run([CHROMIUM, *options, f"--screenshot={picture}", (run.run_dir / "report.html").as_uri()],
                   capture_output=True, timeout=120, check=True)  # fmt: skip
    assert picture.stat().st_size > 50_000
