"""A run's folder: its parameters and versions are kept, and other ones are refused."""

from __future__ import annotations

import json
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goods.errors import GoodsError
from goods.params import Params, load_params
from goods.run import environment, load_recorded, open_run


def make(tmp_path: Path, **given) -> Params:
    return load_params(outputs_dir=str(tmp_path / "outputs"), run="trial", **given)


def test_a_run_keeps_its_parameters_and_versions(tmp_path):
    p = make(tmp_path, learning_rate="1e-4", text_columns="title")
    folder = open_run(p)
    assert folder == p.run_dir == tmp_path / "outputs" / "trial"
    assert Params(**yaml.safe_load((folder / "params.yaml").read_text())) == p
    assert load_recorded(folder / "params.yaml")["learning_rate"] == 1e-4
    environment = json.loads((folder / "environment.json").read_text())
    assert {"python", "torch", "transformers", "pandas", "cpus"} <= set(environment)


def test_the_same_parameters_resume(tmp_path):
    p = make(tmp_path)
    before = (open_run(p) / "params.yaml").stat().st_mtime_ns
    assert open_run(make(tmp_path)) == p.run_dir
    assert (p.run_dir / "params.yaml").stat().st_mtime_ns == before


def test_other_parameters_are_refused_by_name(tmp_path):
    open_run(make(tmp_path))
    with pytest.raises(GoodsError, match="run 'trial' was made with other parameters") as refused:
        open_run(make(tmp_path, num_epochs=9, text_columns="title", fold=2))
    sentence = str(refused.value)
    assert "num_epochs was 5 and is now 9" in sentence
    assert "text_columns was ['title', 'description'] and is now ['title']" in sentence
    assert "fold was" not in sentence
    assert "Choose another name" in sentence and str(tmp_path) in sentence


def test_a_run_that_is_named_but_not_there_takes_no_name(tmp_path):
    with pytest.raises(GoodsError, match=r"runs: there is no run 'trail' in .*; there are: none"):
        open_run(load_params(outputs_dir=str(tmp_path), run="both", kind="blend", runs="trail"))
    open_run(load_params(outputs_dir=str(tmp_path), run="trial"))
    with pytest.raises(GoodsError, match=r"pseudo_from: there is no run 'trail' in .*; did you mean 'trial'\?"):
        open_run(load_params(outputs_dir=str(tmp_path), run="both", pseudo_from="trail"))
    assert not (tmp_path / "both").exists()
    assert open_run(load_params(outputs_dir=str(tmp_path), run="both", pseudo_from="trial")).name == "both"


@pytest.mark.parametrize(
    "other",
    [
        {"fold": 3},
        {"skip_folds": 2},
        {"num_workers": 0},
        {"eval_batch_size": 4},
        {"train_csv": "moved/train.csv"},
        {"test_images_dir": "moved"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_changes_no_result_may_differ(tmp_path, other):
    open_run(make(tmp_path))
    assert open_run(make(tmp_path, **other)) == make(tmp_path).run_dir


def test_a_debug_run_is_one_of_its_own(tmp_path):
    real, debug = make(tmp_path), make(tmp_path, debug=True)
    assert open_run(debug).name == "trial-debug"
    assert open_run(real).name == "trial"
    assert load_recorded(debug.run_dir / "params.yaml")["debug"] is True


@pytest.mark.parametrize("text", ["", "a: [", "just text", "- 3"])
def test_a_spoilt_record_says_what_to_do(tmp_path, text):
    p = make(tmp_path)
    (open_run(p) / "params.yaml").write_text(text)
    with pytest.raises(GoodsError, match=r"params\.yaml can't be read; delete the run's folder"):
        open_run(p)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    learning_rate=st.floats(1e-300, 1e300),
    seed=st.integers(0, 2**32 - 1),
    column=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1),
)
def test_a_run_always_resumes_with_what_it_was_given(tmp_path, learning_rate, seed, column):
    given = {"learning_rate": learning_rate, "seed": seed, "label_column": column, "text_columns": [column]}
    p = load_params(outputs_dir=tempfile.mkdtemp(dir=tmp_path), **given)
    assert open_run(p) == open_run(p)
    assert Params(**load_recorded(p.run_dir / "params.yaml")) == p


def test_the_environment_record_bears_a_missing_package(monkeypatch):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert environment()["torch"] is None
