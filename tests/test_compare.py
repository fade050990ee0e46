"""Runs side by side: what is said of them, what can't be compared, and pages that nothing in a folder can break."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from competition import encoded, photo
from runs_drawn import CLASSES, goods_of, write_run
from sklearn.metrics import f1_score

from goods.compare import (
    Pair,
    common,
    compare,
    finding,
    pair_finding,
    pair_table,
    read_comparison,
    score_table,
    summary,
    two_runs,
)
from goods.compare_page import errors_of, write_index, write_pair
from goods.entries import read_entry
from goods.errors import GoodsError
from goods.files import write_frame, write_json
from goods.params import Params
from goods.run import Run
from goods_utils import main
from pipeline import compare_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Three runs on the same folds: good, one hardly better, and poor."""
    goods = goods_of()
    write_run(tmp_path, "good", goods, 3.0)
    write_run(tmp_path, "better", goods, 3.2, num_epochs=9)
    write_run(tmp_path, "poor", goods, 1.0, seed=1, kind="linear")
    return tmp_path


def contents(folder: Path) -> str:
    """A hash over names and bytes of all files below."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


# What is said ---------------------------------------------------------------------------------------------------------


def test_the_best_run_is_named_with_those_it_does_not_beat(outputs: Path):
    runs = read_comparison(outputs)
    assert [entry.name for entry in runs.entries] == ["better", "good", "poor"]
    score = runs.best.score("macro_f1").value
    assert finding(runs) == f"better is best: macro-F1 {score:.3f}; not better than good beyond noise".replace(
        "0.", "."
    )
    assert runs.behind["poor"].low > 0.1 and runs.behind["good"].noise
    table = summary(runs)
    assert (
        table.loc["poor", "against the best"].startswith("-.") and table.loc["better", "against the best"] == "the best"
    )
    assert table["status"].unique().tolist() == ["finished, 5 of 5 folds"]
    assert score_table(runs)["value"].is_monotonic_decreasing


def test_another_metric_ranks_by_it(outputs: Path):
    assert "log-loss" in finding(read_comparison(outputs, "log_loss"))
    with pytest.raises(GoodsError, match=r"there is no metric 'f1'; there are: macro_f1"):
        read_comparison(outputs, "f1")


def test_a_run_that_lacks_folds_is_never_the_best(outputs: Path):
    goods = goods_of()
    run = write_run(outputs, "half", goods[goods["fold"] < 2].reset_index(drop=True), 9.0)
    runs = read_comparison(outputs)
    assert runs.best.name == "better" and runs.entry("half").status == "finished, 2 of 5 folds (0, 1)"
    pair = compare(runs.entry("half"), runs.best)
    assert pair.left_out == "left out: 180 that better alone predicts" and pair.gains["accuracy"].value > 0
    assert run.exists


def test_a_pair_is_counted_and_told_by_class(outputs: Path):
    runs = read_comparison(outputs)
    pair = compare(runs.entry("good"), runs.entry("poor"))
    labels, good, poor = pair.ours.oof.labels, *(entry.oof.logits.argmax(1) for entry in (pair.ours, pair.theirs))
    assert pair.counts["only ours"] == ((good == labels) & (poor != labels)).sum() > 50
    assert sum(pair.counts[name] for name in ("only ours", "only theirs", "both", "neither")) == 300
    expected = f1_score(labels, good, average=None) - f1_score(labels, poor, average=None)
    assert pair.classes.loc[list(CLASSES), "gain"].tolist() == pytest.approx(expected.tolist())
    assert (pair.classes["gain_low"] < pair.classes["gain"]).all() and (pair.classes["gain_low"] > 0).all()
    gain = pair.gains["macro_f1"]
    assert pair_finding(pair, "macro_f1").startswith("good is better than poor: macro-F1 +.")
    turned = compare(runs.entry("poor"), runs.entry("good"))
    assert pair_finding(turned, "macro_f1").startswith("good is better than poor: macro-F1 +.")
    assert turned.gains["macro_f1"] == pytest.approx((-gain.value, -gain.high, -gain.low), abs=0.02)
    differ = pair.differ.iloc[0]
    assert differ["right"] in ("ours", "theirs") and {"ours", "theirs"} == set(pair.differ["right"])
    assert pair_table(pair, "log_loss").index[0] == "log-loss (lower is better)"
    assert len(errors_of(pair, "theirs")) == pair.counts["only ours"]


def test_labels_that_were_mended_are_left_out_and_said(outputs: Path):
    mended = goods_of()
    mended.loc[:4, "label"] = (mended.loc[:4, "label"] + 1) % 3
    write_run(outputs, "mended", mended, 3.0)
    runs = read_comparison(outputs)
    both = common(runs.entry("good"), runs.entry("mended"))
    assert len(both.ours.ids) == 295 and both.left_out == "left out: 5 whose label differs"
    page, *_ = write_pair(outputs, "good", "mended")
    assert "Left out: 5 whose label differs." in page.read_text()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda goods: goods.assign(fold=goods["fold"].to_numpy()[::-1]), "have other folds"),
        (lambda goods: goods.assign(label=(goods["label"] + 1) % 3), "have other labels"),
        (lambda goods: goods.assign(id="x" + goods["id"]), "are of other products: they share 0"),
    ],
)
def test_runs_on_other_folds_or_tables_can_not_be_compared_and_the_page_says_why(outputs: Path, change, why: str):
    write_run(outputs, "other", change(goods_of()), 9.0)
    path, runs = write_index(outputs)
    assert runs.best.name == "better"  # of the most runs that can be compared, though another scores more
    assert finding(runs).startswith("better is best of the 3 that can be compared: ")
    assert why in runs.apart["other"] and f"Not in the comparison: {runs.apart['other']}" in path.read_text()
    with pytest.raises(GoodsError, match=f"no comparison: .*{why}"):
        write_pair(outputs, "other", "good")


# Whatever lies there --------------------------------------------------------------------------------------------------


def spoil(outputs: Path) -> None:
    """Unfinished, damaged and foreign folders beside the runs."""
    goods = goods_of()
    for name in ("torn", "nan", "range", "twice", "text", "empty"):
        write_run(outputs, name, goods, 2.0)
    Run(outputs / "torn").oof.write_bytes(b"PAR1 torn")
    frame = pd.read_parquet(Run(outputs / "nan").oof)
    write_frame(Run(outputs / "nan").oof, frame.assign(fused_0=np.nan))
    write_frame(Run(outputs / "range").oof, frame.assign(label=7))
    write_frame(Run(outputs / "twice").oof, pd.concat([frame, frame]))
    write_frame(Run(outputs / "text").oof, frame.assign(label="Books"))
    write_frame(Run(outputs / "empty").oof, frame.head(0))
    for name, text in (
        ("list", "[]"),
        ("half", '{"parameters": {'),
        ("no-parameters", '{"parameters": 7}'),
        ("types", '{"parameters": {"metric": ["mrr"], "n_folds": "five"}}'),
    ):
        (outputs / name).mkdir()
        (outputs / name / "run.json").write_text(text)
    write_json(outputs / "bare" / "run.json", {"parameters": {"n_folds": 4, "unheard_of": 1}})
    (outputs / "bare" / "fold0").mkdir()
    (outputs / "bare" / "loop").symlink_to(outputs)
    for name in ("metrics.json", "method.json"):
        write_json(outputs / "bare" / "ensemble" / name, {"method": 3, "members": [], "methods": {}, "picked": 1})
    (outputs / "cache").mkdir()
    (outputs / "notes.txt").write_text("mine")


def test_damaged_unfinished_and_foreign_folders_never_break_the_page(outputs: Path):
    spoil(outputs)
    before = contents(outputs)
    path, runs = write_index(outputs)
    page = path.read_text(encoding="utf-8")
    assert runs.best.name == "better" and len(runs.entries) == 14
    assert page.count("its out-of-fold predictions are damaged") == 6 and "run.json is damaged" in page
    assert runs.entry("bare").status == "unfinished, 0 of 4 folds"
    path.unlink()
    assert contents(outputs) == before


def test_a_folder_without_a_run_and_one_without_a_score(tmp_path: Path):
    with pytest.raises(GoodsError, match="there is no run in"):
        write_index(tmp_path)
    write_json(tmp_path / "new" / "run.json", {"parameters": {}})
    path, runs = write_index(tmp_path)
    assert "<h1>1 run, none with an honest score yet</h1>" in path.read_text()
    with pytest.raises(GoodsError, match="two runs are compared, not 0"):
        two_runs(runs)


def test_what_a_run_took_is_read_from_its_folds_and_steps(outputs: Path):
    run = Run(outputs / "good")
    for k, (seconds, ram) in enumerate(((10.0, 1.5), (20.0, 0.5))):
        took = {"seconds": seconds, "peak_ram_gib": ram} | ({"peak_gib": 7.25} if k else {})
        write_json(run.fold(k).metrics, {"fold": k, "fused": {"macro_f1": 0.5}, "resources": took})
    write_json(run.notebooks / "eda.done.json", {"seconds": 65.0})
    write_json(run.notebooks / "train_fold0.done.json", {"seconds": "long"})
    entry = read_entry(run)
    assert (entry.seconds, entry.step_seconds, entry.peak_ram, entry.peak_gpu) == (30.0, 65.0, 1.5, 7.25)
    assert entry.size == sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())


def test_a_run_that_a_process_works_on_is_under_way(outputs: Path):
    held = {"process": os.getppid(), "host": socket.gethostname(), "since": "2026-01-02 03:04:05"}
    lock = Run(outputs / "good").locks / "pipeline.json"
    write_json(lock, held)
    assert read_entry(Run(outputs / "good")).status == "under way since 2026-01-02 03:04:05, 5 of 5 folds"
    write_json(lock, held | {"process": 2**22 + 1})  # no system numbers a process so high
    assert read_entry(Run(outputs / "good")).status == "finished, 5 of 5 folds"


# The page -------------------------------------------------------------------------------------------------------------


def test_products_that_differ_have_title_and_photo_and_nothing_is_taken_for_html(outputs: Path, capsys):
    goods = goods_of()
    goods["id"] = "<i>" + goods["id"]
    table = goods[["id"]].assign(title='5 < 6 & "7"', description="", categories=goods["label"])
    table.to_csv(outputs / "train.csv", sep="|", index=False)
    (outputs / "photos").mkdir()
    for k, name in enumerate(goods["id"][:200]):
        (outputs / "photos" / f"{name}.jpg").write_bytes(encoded(photo(0)) if k else b"no photo")
    places = {"train_csv": str(outputs / "train.csv"), "train_images_dir": str(outputs / "photos")}
    write_run(outputs, "best", goods, 3.5, **places)
    write_run(outputs, "poor", goods, 1.0, seed=1, **places)
    page = write_pair(outputs, "best", "poor")[0].read_text(encoding="utf-8")
    assert capsys.readouterr().out == ""  # of a separator the run itself has told
    assert "<i>p" not in page and "&lt;i&gt;p" in page and "<b>Tools" not in page and "&lt;b&gt;Tools" in page
    assert "5 &lt; 6 &amp; &#34;7&#34;" in page
    assert "data:image/jpeg;base64," in page and "no photo" in page and page.count('class="card"') > 8
    assert not re.search(r"(?:src|href)=['\"](?!data:|#)", page) and str(outputs) not in page


def test_only_the_pages_own_script_may_run(outputs: Path):
    page = write_index(outputs)[0].read_text(encoding="utf-8")
    allowed = re.search(r"script-src 'sha256-([^']+)'", page)[1]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == allowed
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")


def test_the_command_compares_all_and_two_and_a_refused_call_changes_nothing(outputs: Path, capsys):
    main(["compare", "--outputs", str(outputs)])
    assert capsys.readouterr().out.startswith("better is best: macro-F1 .") and (outputs / "index.html").is_file()
    main(["compare", "poor", "good", "--outputs", str(outputs)])
    out = capsys.readouterr().out
    assert out.startswith("good is better than poor: macro-F1 +.") and out.rstrip().endswith("compared/poor,good.html")
    before = contents(outputs)
    for runs, sentence in ((["good"], "takes two runs or none, not 1"), (["good", "gone"], "there is no run 'gone'"),
                           (["good", "good"], "can't be compared with itself")):  # fmt: skip
        with pytest.raises(SystemExit, match=sentence):
            main(["compare", *runs, "--outputs", str(outputs)])
    assert contents(outputs) == before


PROBE = """<iframe width=390 height=800 srcdoc="{page}"></iframe><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, firsts = () => [...page.querySelectorAll("table")[0].tBodies[0].rows]
    .map((row) => row.cells[0].textContent);
  const buttons = page.querySelectorAll("table")[0].querySelectorAll("th button");
  const picker = page.querySelector("select");
  buttons[1].click();
  const found = {{ up: firsts(), wide: page.documentElement.scrollWidth }};
  buttons[1].click();
  found.down = firsts();
  picker.value = "2";
  picker.dispatchEvent(new Event("change"));
  found.shown = [...page.querySelectorAll("section")].filter((part) => part.offsetHeight).map((p) => p.dataset.part);
  found.loaded = frame.contentWindow.performance.getEntriesByType("resource").map((e) => e.name)
    .filter((name) => !name.startsWith("data:"));
  document.title = JSON.stringify(found);
}});</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a real browser: apt install chromium")
def test_a_real_browser_sorts_picks_fits_a_phone_and_loads_nothing(outputs: Path, tmp_path: Path):
    page = write_index(outputs)[0].read_text(encoding="utf-8")
    probe = tmp_path / "probe.html"
    probe.write_text("<title>-</title>" + PROBE.format(page=html.escape(page)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run([CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()],
                           capture_output=True, text=True, timeout=120)  # fmt: skip
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown.stdout)[1]))
    assert found["up"] == ["poor", "good", "better"] and found["down"] == ["better", "good", "poor"]
    assert found["wide"] <= 390 and found["shown"] == ["2"] and found["loaded"] == []


def test_each_pipeline_run_makes_the_page_anew_and_none_fails_for_its_sake(outputs: Path, capsys):
    p = Params(run="good", outputs_dir=str(outputs))
    assert compare_runs(p) == outputs / "index.html"
    (outputs / "index.html").unlink()
    (outputs / "index.html").mkdir()
    assert compare_runs(p) is None and "could not be compared: " in capsys.readouterr().err
    for run in ("good", "better", "poor"):
        Run(outputs / run).method.unlink()  # none has come to its end
    assert compare_runs(p) is None and capsys.readouterr().err == ""


def test_a_pair_needs_runs_of_one_kind_of_answer(outputs: Path):
    run = Run(outputs / "good")
    write_json(run.labels, {"labels": [0, 1, 2], "classes": ["a", "b", "c"]})
    runs = read_comparison(outputs)
    assert compare(runs.entry("good"), runs.entry("poor")) == "good and poor have other classes"
    assert isinstance(compare(runs.entry("better"), runs.entry("poor")), Pair)
