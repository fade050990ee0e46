"""The kind of model that docs/CONTRIBUTING.md shows goes the whole road: one file, one line in the registry."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from goods.files import ROOT

PAGE = (ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8").split("<!-- member-example -->")[1]
MEMBER, LINE = re.findall(r"```(?:python)?\n(.*?)```", PAGE, re.DOTALL)[:2]
ROAD = """
import numpy as np, pandas as pd
from goods.data.tables import read_goods
from goods.ensemble.submission import write_submission
from goods.members import ensemble_run, fit, kind_of, open_run, predict, predict_test
from goods.params import load_params
from goods.run import Run

p = load_params("params/prior.yaml", run="by-hand")
open_run(p)
goods, run, prior = read_goods(p), Run.of(p), kind_of(p).load()
fit(p, goods)
assert run.trained() == [0, 1, 2] and predict_test(p, goods) == [0, 1, 2]
before = run.fold(1).weights.stat().st_mtime_ns
fit(p, goods)  # which leaves trained folds as they are
assert run.fold(1).weights.stat().st_mtime_ns == before and predict_test(p, goods) == []
ensemble = ensemble_run(p, goods)
assert ensemble.missing == [] and write_submission(p, goods)["id"].tolist() == goods.test["id"].tolist()
for number, logits in predict(p, run.folds(), goods.test).items():  # from the files alone
    table = pd.read_parquet(run.fold(number).test)
    np.testing.assert_array_equal(logits["fused"], table.filter(regex="^fused_").to_numpy())
    np.testing.assert_array_equal(logits["fused"][0], prior.load(p, run.fold(number)))
assert {k: v["fused"].shape for k, v in predict(p, run.folds()[:1], goods.train.head(3)).items()} == {0: (3, 21)}
"""
CONFIG = "kind: prior\nn_folds: 3\ndata_dir: {data}\n"


class Project(NamedTuple):
    """A copy of the project that has the member."""

    root: Path

    def python(self, *arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory, sample) -> Project:
    root = tmp_path_factory.mktemp("example") / "project"
    for name in ("goods", "notebooks", "params"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("goods_utils.py", "pipeline.py"):
        shutil.copy(ROOT / name, root)
    (root / "params" / "prior.yaml").write_text(CONFIG.format(data=sample.data))
    (root / "goods" / "members" / "prior.py").write_text(MEMBER)
    registry = root / "goods" / "members" / "__init__.py"
    text, last = registry.read_text(), '        Kind("blend"'
    assert text.count(last) == 1
    registry.write_text(text.replace(last, f"        {LINE}{last}"))
    return Project(root)


def test_it_is_ten_lines_of_code():
    body = [node for node in ast.parse(MEMBER).body if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in body] == ["fit", "save", "load", "predictor"]
    assert sum(node.end_lineno - node.lineno + 1 for node in body) <= 10
    assert len(LINE.splitlines()) == 1


@pytest.mark.slow
def test_its_folds_are_trained_kept_and_predict_any_table(project):
    project.python("-c", ROAD)
