"""The project's own files, damaged: one sentence that says what to do, or made anew; never a raw exception."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Trained, put_together

from goods.data.labels import known_classes
from goods.data.tables import photo_cache, read_goods
from goods.ensemble.submission import write_submission
from goods.errors import DamagedFileError, GoodsError
from goods.members import open_run, predict
from goods.models.tfidf import heaviest_words
from goods.params import Params
from goods.report import write_report
from goods.run import Run
from goods.training.fold import read_logs
from goods_utils import fit_all

DAMAGED = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "noise": lambda data: b"\xff\x00{" * 9,
}
HARM = pytest.mark.parametrize("harm", DAMAGED.values(), ids=DAMAGED)
Harm = Callable[[bytes], bytes]


def damage(path: Path, harm: Harm) -> Path:
    path.write_bytes(harm(path.read_bytes()))
    return path


@pytest.fixture(scope="module")
def ended(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The miniature run with its ensemble and submission."""
    folder = tmp_path_factory.mktemp("ended") / "outputs"
    shutil.copytree(trained.p.outputs_dir, folder)
    p = trained.p.model_copy(update={"outputs_dir": str(folder)})
    put_together(p, trained.goods)
    write_submission(p, trained.goods)
    return Trained(p, trained.goods)


@pytest.fixture
def finished(ended: Trained, tmp_path: Path) -> Trained:
    """A copy of it to be spoilt."""
    shutil.copytree(ended.p.outputs_dir, tmp_path / "outputs")
    return Trained(ended.p.model_copy(update={"outputs_dir": str(tmp_path / "outputs")}), ended.goods)


@HARM
@pytest.mark.parametrize("name", ["test", "metrics"])
def test_a_submission_asks_for_the_ensemble_again(finished: Trained, name: str, harm: Harm) -> None:
    p, goods = finished
    path, before = getattr(Run.of(p), name), Run.of(p).submission.read_bytes()
    damage(path, harm)
    sentence = rf"ensemble/{path.name} is missing or damaged; run notebooks/ensemble\.ipynb again"
    with pytest.raises(DamagedFileError, match=sentence):
        write_submission(p, goods)
    assert Run.of(p).submission.read_bytes() == before
    put_together(p, goods)
    write_submission(p, goods)
    assert Run.of(p).submission.read_bytes() == before


def test_a_table_without_predictions_is_damaged(finished: Trained) -> None:
    p, goods = finished
    goods.test[["id"]].to_parquet(Run.of(p).test)
    with pytest.raises(DamagedFileError, match="a table of predictions holds none"):
        write_submission(p, goods)


@HARM
@pytest.mark.parametrize("name", ["data_report", "labels", "bad_images"])
def test_what_is_found_in_the_tables_is_written_anew(finished: Trained, name: str, harm: Harm) -> None:
    path = getattr(Run.of(finished.p), name)
    before = path.read_bytes()
    damage(path, harm)
    read_goods(finished.p)
    assert path.read_bytes() == before


@HARM
def test_a_runs_class_names_are_a_sentence(finished: Trained, tmp_path: Path, harm: Harm) -> None:
    damage(Run.of(finished.p).labels, harm)
    with pytest.raises(DamagedFileError, match=r"labels\.json is missing or damaged; run eda\.ipynb again"):
        known_classes(finished.p, tmp_path / "labels.json")


@HARM
def test_what_is_known_of_the_photos_is_found_again(finished: Trained, harm: Harm) -> None:
    (path,) = photo_cache(finished.p).glob("*.parquet")
    before = pd.read_parquet(path)
    damage(path, harm)
    pd.testing.assert_frame_equal(read_goods(finished.p).photos, finished.goods.photos)
    pd.testing.assert_frame_equal(pd.read_parquet(path), before)


@HARM
def test_a_damaged_log_costs_its_curves_alone(finished: Trained, capsys, harm: Harm) -> None:
    run = Run.of(finished.p)
    damage(run.fold(1).log, harm)
    logs = read_logs(run)
    assert set(logs["fold"]) - {1} == {0, 2}
    whole = harm(b"x")[:1] == b""  # an empty log holds no epoch, and is no error
    assert (f"{run.fold(1).log} is damaged; its curves are left out" in capsys.readouterr().out) or whole


@pytest.mark.parametrize("text", ['{"epoch": 1}\n', "[1]\n", "3\n", '{"epoch": 1, "macro_f1"'])
def test_a_log_of_something_else_is_left_out(finished: Trained, text: str) -> None:
    Run.of(finished.p).fold(1).log.write_text(text)
    assert set(read_logs(Run.of(finished.p))["fold"]) == {0, 2}


@pytest.mark.parametrize("text", ["{}", "", "[]", '{"fold": 1}'])
def test_a_fold_whose_metrics_say_nothing_is_not_finished(finished: Trained, text: str) -> None:
    Run.of(finished.p).fold(1).metrics.write_text(text)
    assert put_together(*finished).missing == [1]


@HARM
@pytest.mark.parametrize("name", ["oof", "test", "metrics", "label_issues", "submission"])
def test_the_page_shows_what_is_whole(finished: Trained, name: str, harm: Harm) -> None:
    path = getattr(Run.of(finished.p), name)
    path.write_bytes(harm(path.read_bytes() if path.is_file() else b"id,title,given,suggested\n1,a,b,c\n"))
    assert "How it was made" in write_report(finished.p).read_text(encoding="utf-8")


@HARM
@pytest.mark.parametrize("name", ["weights", "neighbours"])
def test_a_damaged_model_says_to_train_again(finished: Trained, name: str, harm: Harm) -> None:
    p: Params = finished.p.model_copy(update={"run": "near", "kind": "knn"})
    open_run(p)
    fit_all(p, finished.goods)
    run = Run.of(p)
    path = damage({"weights": run.fold(0).weights, "neighbours": run.neighbours}[name], harm)
    with pytest.raises(DamagedFileError, match=rf"{path.name} is missing or damaged; train .*again: retrain=true"):
        predict(p, [run.fold(0)], finished.goods.test)


@HARM
def test_damaged_weights_of_a_network_are_a_sentence(finished: Trained, harm: Harm) -> None:
    fold = Run.of(finished.p).fold(0)
    damage(fold.weights, harm)
    with pytest.raises(GoodsError, match=r"the weights .*fold0/weights\.safetensors can't be loaded"):
        predict(finished.p, [fold], finished.goods.test)


@HARM
def test_damaged_words_are_a_sentence(tmp_path: Path, harm: Harm) -> None:
    path = tmp_path / "words.parquet"
    pd.DataFrame({"label": [0], "word": ["boot"], "weight": [1.0]}).to_parquet(path)
    with pytest.raises(DamagedFileError, match=r"words\.parquet is missing or damaged; train the fold again"):
        heaviest_words([damage(path, harm)], ["Shoes"])
