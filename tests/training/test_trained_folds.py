"""A trained fold: kept, trained again, or refused, by what it was made from; and one process at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from backbones import change_weights
from conftest import Sample, Trained

from goods.data.folds import read_folds
from goods.errors import HeldError, OtherRunError
from goods.files import folder_hash
from goods.members import open_run, predict_test
from goods.params import Params
from goods.run import Fold, Run
from goods.training.fold import held_together
from goods.training.rows import rows_hash
from goods_utils import fit_fold

SMALL = {"kind": "linear", "n_folds": 3, "fold": 1}


@pytest.fixture
def copy(trained: Trained, sample: Sample, tmp_path: Path) -> Trained:
    """The miniature experiment and its backbone in folders of the test's own, so short that a fold trains at once."""
    shutil.copytree(trained.p.outputs_dir, tmp_path / "outputs")
    shutil.copytree(sample.model, tmp_path / "backbone")
    here = {"outputs_dir": str(tmp_path / "outputs"), "model_name": str(tmp_path / "backbone")}
    return Trained(trained.p.model_copy(update=here), trained.goods)


def files_of(fold: Fold) -> dict[str, bytes]:
    """The files of a fold but those of a training that has not ended."""
    paths = [path for path in fold.folder.rglob("*") if path.is_file() and fold.checkpoint not in path.parents]
    return {path.name: path.read_bytes() for path in paths}


def shortened(p: Params, **more) -> Params:
    """The same run trained for two epochs; only for tests that don't open it."""
    return p.model_copy(update={"num_epochs": 2} | more)


class Stopped(Exception):
    """What ends a training in these tests."""


def stop(*_, **__) -> None:
    raise Stopped


# The backbone --------------------------------------------------------------------------------------------------------


def test_a_backbone_swapped_under_the_same_path_is_refused_and_nothing_is_predicted(copy: Trained) -> None:
    open_run(copy.p)  # a copy elsewhere is the same backbone
    fold, folder = Run.of(copy.p).fold(0), Path(copy.p.model_name)
    fold.test.unlink(missing_ok=True)
    before = folder_hash(folder)
    change_weights(folder, lambda weights, name: weights[name].add_(1e-3))
    after = folder_hash(folder)
    kept = files_of(fold)
    with pytest.raises(OtherRunError, match=f"other files in model_name: their hash was {before}, .* is {after}"):
        open_run(copy.p)
    assert before != after and files_of(fold) == kept and not fold.predicted


# Other rows, other code, retrain -------------------------------------------------------------------------------------


def test_a_fold_of_the_same_rows_and_code_is_loaded_in_silence(copy: Trained, capsys) -> None:
    before = files_of(Run.of(copy.p).fold(0))
    assert fit_fold(copy.p, copy.goods) == Run.of(copy.p).fold(0).scores()
    assert files_of(Run.of(copy.p).fold(0)) == before and capsys.readouterr().out == ""


def test_new_pseudo_labels_train_the_fold_again_and_the_old_one_stays_until_then(
    copy: Trained, monkeypatch, capsys
) -> None:
    p = shortened(copy.p, run="student", pseudo_from="mini")
    labels = Run.named(p, "mini").pseudo(0)
    labels.parent.mkdir()
    copy.goods.test[["id"]].head(9).assign(label=3).to_parquet(labels)
    open_run(p)
    fit_fold(p, copy.goods)
    predict_test(p, copy.goods)
    fold = Run.of(p).fold(0)
    before, learned = files_of(fold), fold.made_from()
    copy.goods.test[["id"]].head(30).assign(label=5).to_parquet(labels)  # another pseudo_precision
    capsys.readouterr()
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr("goods.training.fold.choose_weights", stop)
        fit_fold(p, copy.goods)
    said = capsys.readouterr().out
    assert "fold 0 of run 'student' learned from other rows than there are now (new pseudo-labels?)" in said
    assert fold.trained and files_of(fold) == before
    fit_fold(p, copy.goods)
    after = files_of(fold)
    assert fold.made_from()["rows"] == rows_hash(p, copy.goods, read_folds(copy.goods, p), 0) != learned["rows"]
    assert after["weights.safetensors"] != before["weights.safetensors"] and not fold.predicted
    assert not fold.checkpoint.exists()


def test_a_fold_of_another_version_of_the_code_is_kept_and_said(copy: Trained, monkeypatch, capsys) -> None:
    fold = Run.of(copy.p).fold(0)
    before, code = files_of(fold), fold.made_from()["code"]
    monkeypatch.setattr("goods.members.code_version", lambda *_: "another")
    fit_fold(copy.p, copy.goods)
    said = capsys.readouterr().out
    assert f"is kept as it is, trained by another version of the code ({code}, now another); retrain=true" in said
    assert files_of(fold) == before


def test_retrain_trains_again_and_the_old_files_stay_until_the_end(copy: Trained, monkeypatch, capsys) -> None:
    p, fold = shortened(copy.p, retrain=True), Run.of(copy.p).fold(0)
    before = files_of(fold)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr("goods.training.fold.choose_weights", stop)  # after the last epoch
        fit_fold(p, copy.goods)
    assert "fold 0 of run 'mini' is trained again, since retrain is set" in capsys.readouterr().out
    assert fold.trained and files_of(fold) == before
    fit_fold(p, copy.goods)
    after = files_of(fold)
    assert len(after["log.jsonl"].splitlines()) == 2
    assert all(after[name] != before[name] for name in ("weights.safetensors", "oof.parquet", "metrics.json"))


def test_what_is_half_replaced_is_not_trained(copy: Trained, monkeypatch) -> None:
    p, fold = shortened(copy.p, retrain=True), Run.of(copy.p).fold(0)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr("goods.training.due.write_predictions", stop)  # new weights, old predictions
        fit_fold(p, copy.goods)
    assert not fold.trained


def test_a_linear_fold_is_trained_again_by_the_same_rules(make, trained: Trained, monkeypatch, capsys) -> None:
    p = make()
    fit_fold(p, trained.goods)
    fold = Run.of(p).fold(1)
    before = files_of(fold)
    fit_fold(p, trained.goods)
    assert files_of(fold) == before
    again = p.model_copy(update={"retrain": True})
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr("goods.members.linear.choose_cost", stop)
        fit_fold(again, trained.goods)
    assert fold.trained and files_of(fold) == before
    capsys.readouterr()
    fit_fold(again, trained.goods)
    assert "is trained again, since retrain is set" in capsys.readouterr().out
    assert files_of(fold)["weights.safetensors"] == before["weights.safetensors"]  # the same rows and seed


# A name ---------------------------------------------------------------------------------------------------------------


def test_a_refused_first_call_takes_no_name(copy: Trained) -> None:
    p = shortened(copy.p, run="new", tune="last", last_blocks=1, num_epochs=1, image_size=70, n_folds=2)
    open_run(p)
    with pytest.raises(ValueError, match="image_size 70 is not a multiple of the patch of 8; take 72"):
        fit_fold(p, copy.goods)
    advised = p.model_copy(update={"image_size": 72, "tune": "head", "n_folds": 3, "seed": 1})
    open_run(advised)
    assert read_folds(copy.goods, advised)["fold"].nunique() == 3
    assert fit_fold(advised, copy.goods)["fold"] == 0 and Run.of(advised).taken


# One holder -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dual", "linear"])
def test_a_second_training_of_a_fold_says_who_holds_it_and_changes_nothing(
    copy: Trained, monkeypatch, kind: str
) -> None:
    monkeypatch.setattr("goods.run.HOLDER_SECONDS", 0.1)
    p = copy.p.model_copy(update={"run": "held", "kind": kind, "num_epochs": 1})
    open_run(p)
    read_folds(copy.goods, p)
    with Run.of(p).fold(0).held():
        before = sorted(p.run_dir.rglob("*"))
        with pytest.raises(HeldError, match=r"fold 0 of run 'held' is in the hands of process \d+ on .* since 20"):
            fit_fold(p, copy.goods)
        assert sorted(p.run_dir.rglob("*")) == before


def test_of_processes_that_train_together_all_say_who_holds_the_fold(copy: Trained, monkeypatch) -> None:
    """The main one alone asks for it: what it hears goes to the others, which would wait for it else."""
    monkeypatch.setattr("goods.run.HOLDER_SECONDS", 0.1)
    sent = []
    monkeypatch.setattr("goods.training.fold.broadcast_object_list", lambda found: sent.extend(found) or sent[:1])
    fold = Run.of(copy.p).fold(0)
    with fold.held():
        for main in (True, False):
            process = SimpleNamespace(is_main_process=main, num_processes=2)
            with pytest.raises(HeldError, match=r"fold 0 of run .* is in the hands of"), held_together(fold, process):
                pytest.fail("began")
    assert len(sent) == 2 and sent[1] is None


def test_whoever_waited_for_a_fold_finds_it_trained(copy: Trained, monkeypatch) -> None:
    p, fold = copy.p, Run.of(copy.p).fold(0)
    metrics = fold.metrics.read_bytes()
    fold.metrics.unlink()
    monkeypatch.setattr("goods.training.fold._fit", stop)

    held = Fold.held

    def late(self: Fold):
        fold.metrics.write_bytes(metrics)  # the holder ends
        return held(self)

    monkeypatch.setattr(Fold, "held", late)
    assert fit_fold(p, copy.goods) == fold.scores()
