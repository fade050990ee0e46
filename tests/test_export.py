"""A finished run becomes a folder to hand on: all that predicts and a model card, and nothing else."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Trained, put_together
from huggingface_hub import ModelCard

import goods_utils
from goods.data.tables import read_goods
from goods.errors import DiskFullError, GoodsError, OtherRunError, ParameterError
from goods.export import export_run
from goods.files import read_json, write_json
from goods.predictor import load_predictor
from goods.run import Run

pytestmark = pytest.mark.slow

SMALL = {"image_size": 64, "hidden_dim": 32, "batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "n_folds": 3,
         "num_epochs": 1, "learning_rate": 1e-2}  # fmt: skip


@pytest.fixture(scope="module")
def finished(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the miniature experiment, put together."""
    outputs = tmp_path_factory.mktemp("finished")
    shutil.copytree(trained.p.run_dir, outputs / "mini")
    put_together(trained.p.model_copy(update={"outputs_dir": str(outputs)}), trained.goods)
    return Run(outputs / "mini")


@pytest.fixture(scope="module")
def exported(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export; to be read."""
    folder = tmp_path_factory.mktemp("handed on") / "mini"
    export_run(finished, folder)
    return folder


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be changed."""
    shutil.copytree(finished.folder, tmp_path / "outputs" / "mini")
    return Run(tmp_path / "outputs" / "mini")


def products(trained: Trained) -> pd.DataFrame:
    return trained.goods.test.head(9)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_predicts_as_its_run_and_holds_nothing_else(finished: Run, exported: Path, trained: Trained) -> None:
    found = load_predictor(exported).predict(products(trained))
    np.testing.assert_array_equal(found, load_predictor(finished.folder).predict(products(trained)))
    folds = {f"fold{k}/{name}" for k in range(3) for name in ("metrics.json", "weights.safetensors")}
    ensemble = {f"ensemble/{name}" for name in ("method.json", "metrics.json", "oof.parquet")}
    assert names(exported) == {"README.md", "export.json", "run.json", "labels.json"} | ensemble | folds
    for file in (exported / name for name in names(exported) if name.endswith((".json", ".md"))):
        assert trained.p.data_dir not in file.read_text() and trained.p.outputs_dir not in file.read_text(), file


def test_the_card_is_one_that_the_hub_reads(finished: Run, exported: Path) -> None:
    card, metrics = ModelCard.load(exported / "README.md"), read_json(finished.metrics)["fused"]
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-classification", "goods-classification")
    assert card.data.license_name == "to-be-filled-in" and "image-text" in card.data.tags
    assert card.data.model_name == "mini"
    first, second = card.data.eval_results[:2]
    assert (first.metric_type, first.metric_value) == ("f1", round(metrics["macro_f1"], 4))
    assert (second.metric_type, second.metric_value) == ("accuracy", round(metrics["accuracy"], 4))
    low, high = (float(word) for word in first.metric_name.partition("interval ")[2].split(" to "))
    assert low < metrics["macro_f1"] < high
    for said in ("126 labelled products of 21 classes", "mean of 3 models", "| mini | model_name | siglip-tiny |",
                 "What it was not tested on", "| torch |", 'models={"model_name": ...}'):  # fmt: skip
        assert said in card.content, said


def test_given_again_it_is_left_alone_and_its_license_can_be_filled_in(copy: Run, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "mini"
    export_run(copy, folder)
    (folder / "README.md").write_text("license: mit")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert "is this export: nothing was written" in export_run(copy, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    again = tmp_path / "made" / "again"
    export_run(Run(folder), again)  # one that was handed on is handed on
    assert names(again) == names(folder)


def test_a_folder_that_is_something_else_is_not_written_to(finished: Run, copy: Run, exported, tmp_path) -> None:
    with pytest.raises(GoodsError, match="is there already, and is no export; name a folder that isn't there"):
        export_run(copy, copy.folder)
    folder = Path(shutil.copytree(exported, tmp_path / "mini"))
    write_json(copy.metrics, read_json(copy.metrics) | {"fused": {}})
    with pytest.raises(GoodsError, match=r"or of another state of it \(made_from differ\)"):
        export_run(copy, folder)
    Run(folder).fold(1).weights.write_bytes(b"")
    with pytest.raises(
        GoodsError,
        match=r"but fold1/weights\.safetensors isn't what was written; export to a folder that isn't",
    ):
        export_run(finished, folder)


def test_what_is_unfinished_or_of_another_version_is_refused(copy: Run, tmp_path: Path) -> None:
    write_json(copy.record_file, copy.record() | {"version": 99})
    with pytest.raises(OtherRunError, match="has files of version 99"):
        export_run(copy, tmp_path / "made")
    write_json(copy.record_file, copy.record() | {"version": 1})
    copy.fold(2).weights.unlink()
    with pytest.raises(GoodsError, match="its ensemble is of fold 2, too, which has no weights there"):
        export_run(copy, tmp_path / "made")
    copy.method.unlink()
    with pytest.raises(GoodsError, match="unfinished: it has no ensemble yet"):
        export_run(copy, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_a_full_disk_leaves_nothing_behind(copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, _: Path) -> None:
        if source == copy.fold(2).weights:
            raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / ".made.999999999.making").mkdir()  # of a call that was killed
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(DiskFullError, match=r"the disk is full: .*made can't be written; nothing of it is left"):
            export_run(copy, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_the_command(copy: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    goods_utils.main(["export", "--run", str(copy.folder), "--to", str(tmp_path / "made")])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'made'}: ")
    with pytest.raises(SystemExit, match=r"goods_utils\.py: --run: there is no run 'nothing-of-that-name' in outputs;"):
        goods_utils.main(["export", "--run", "nothing-of-that-name", "--to", str(tmp_path / "other")])
    with pytest.raises(SystemExit, match="run 'mini' has no LoRA adapters to merge"):
        goods_utils.main(["export", "--run", str(copy.folder), "--to", str(tmp_path / "other"), "--merge"])


@pytest.mark.slow
def test_merged_adapters_need_no_peft_and_change_no_prediction(make, tmp_path, monkeypatch) -> None:
    p = make(tune="lora", fold=1, folds=[1])
    goods = read_goods(p)
    goods_utils.fit_fold(p, goods)
    put_together(p, goods)
    before = load_predictor(p.run_dir).predict(goods.test)
    export_run(Run.of(p), tmp_path / "merged", merge=True)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError):
        load_predictor(p.run_dir)
    np.testing.assert_allclose(load_predictor(tmp_path / "merged").predict(goods.test), before, rtol=0, atol=1e-5)
    with pytest.raises(ParameterError, match="no LoRA adapters to merge"):
        export_run(Run(tmp_path / "merged"), tmp_path / "again", merge=True)
