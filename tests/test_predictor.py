"""A finished run of any kind is a function of products, made from its files alone."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from backbones import change_weights
from conftest import Sample, fit, put_together

from benchmarks.predict import beside_bare
from goods.classify import prepare_job
from goods.data import ahead
from goods.data.tables import read_goods
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError, OtherRunError, ParameterError
from goods.export import export_run
from goods.files import read_json, write_json
from goods.models.backbone import DualEncoder
from goods.params import Params
from goods.predictor import load_predictor
from goods.run import Run

pytestmark = pytest.mark.slow

SMALL: dict = {}
KINDS = ("head", "last", "bert", "words", "near", "blend")


@pytest.fixture(scope="module")
def table(sample: Sample) -> pd.DataFrame:
    """test.csv as anybody would read it, with the paths of its photos."""
    table = pd.read_csv(sample.data / "test.csv", dtype=str, keep_default_na=False)
    photos = {path.stem: str(path) for path in sample.data.rglob("test_images/*.*")}
    return table.assign(image=[photos.get(name, "") for name in table["id"]])


def probabilities_of(p: Params) -> np.ndarray:
    return pd.read_csv(p.run_dir / "submission_probs.csv").filter(regex=r"^c\d+$").to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_test_set_as_a_new_table_gives_what_the_run_has_submitted(kinds, table: pd.DataFrame, name: str) -> None:
    p = kinds[name]
    predictor = load_predictor(p.run_dir)
    found = predictor.predict(table)
    np.testing.assert_allclose(found, probabilities_of(p), rtol=0, atol=1.5e-6)  # written with six digits
    labels = pd.read_csv(p.run_dir / "submission.csv")["categories"].tolist()
    assert [predictor.labels[k] for k in found.argmax(1)] == labels
    shuffled = np.random.default_rng(0).permutation(len(table))
    rows = np.concatenate([shuffled[: len(table) // 2]] * 2)
    again = predictor.predict(table.iloc[rows])
    np.testing.assert_allclose(again, found[rows], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_tuned_backbone_gives_what_the_run_has_submitted(trained, make, table: pd.DataFrame, tune: str) -> None:
    """The other tunes are among the kinds."""
    kept = trained.p.model_dump(include={"num_classes", "n_folds", "image_size", "batch_size", "num_workers", "seed"})
    p = make(**kept, tune=tune, num_epochs=1, folds=[0], run=tune)
    goods = read_goods(p)
    fit(p)
    put_together(p, goods)
    write_submission(p, goods)
    np.testing.assert_allclose(load_predictor(p.run_dir).predict(table), probabilities_of(p), rtol=0, atol=1.5e-6)


@pytest.mark.slow
def test_a_blend_decodes_a_photo_once_and_runs_a_backbone_once(kinds, table, monkeypatch) -> None:
    seen: Counter[str] = Counter()
    decode, embed = ahead.load_or_white, DualEncoder.embed_images

    def counted_decode(path: str, size: int) -> tuple:
        seen[path] += 1
        return decode(path, size)

    def counted_embed(encoder: DualEncoder, pixels: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() and torch.is_inference_mode_enabled():  # the frozen one, not that of "last"
            seen["embedded"] += len(pixels)
        return embed(encoder, pixels)

    predictor = load_predictor(kinds["blend"].run_dir)
    monkeypatch.setattr(ahead, "load_or_white", counted_decode)
    monkeypatch.setattr(DualEncoder, "embed_images", counted_embed)
    monkeypatch.setattr("goods.training.inputs.PHOTO_ROWS", 16)  # of 42
    cache = kinds["blend"].run_dir.parent / "cache"
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    found = predictor.predict(table)
    assert seen.pop("embedded") == len(table)  # head, near: one backbone, one image_size
    assert set(seen) == set(table["image"]) and set(seen.values()) == {1}
    assert predictor.reads_photos and predictor.rows == 16
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before  # a catalogue would fill it
    np.testing.assert_allclose(found, probabilities_of(kinds["blend"]), rtol=0, atol=1.5e-6)


def test_predict_is_measured_beside_a_backbone_that_works(kinds, sample: Sample, tmp_path: Path, monkeypatch) -> None:
    seen, embed = Counter[str](), DualEncoder.embed_images
    monkeypatch.setattr(DualEncoder, "embed_images", lambda *given: seen.update(["batch"]) or embed(*given))
    predictor = load_predictor(kinds["head"].run_dir, eval_batch_size=64)
    job = prepare_job(
        predictor, str(sample.data / "test.csv"), tmp_path / "parts", str(sample.data / "test_images/test_images")
    )
    whole, alone = beside_bare(job)
    assert seen["batch"] == 3  # read, bare, and as a whole: none of them takes over what another has embedded
    assert (alone > 0).all() and (whole > 0).all()


def test_nothing_is_loaded_again_for_the_next_products(kinds, table: pd.DataFrame, monkeypatch) -> None:
    predictor = load_predictor(kinds["head"].run_dir)
    for name in ("members.dual.read_trained", "members.dual.heads_like", "models.encoders.load_backbone"):
        monkeypatch.setattr(f"goods.{name}", None)
    assert predictor.predict(table.head(3)).shape == (3, 21)
    assert predictor.predict(table.head(0)).shape == (0, 21)


def test_products_without_photo_or_text_are_classified_too(kinds, table: pd.DataFrame, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    data = Path(table["image"][3]).read_bytes()
    images = ["", str(tmp_path / "nowhere.jpg"), str(broken), data]
    products = table.iloc[[3, 3, 3, 3, 0]].assign(image=[*images, None])
    products.iloc[4, products.columns.get_indexer(["title", "description"])] = [None, np.nan]
    found = load_predictor(kinds["head"].run_dir).classify(products)
    assert found.photos == ["missing", "missing", "unreadable: not a photo", "ok", "missing"]
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    np.testing.assert_allclose(found.probabilities[1:3], found.probabilities[[0, 0]], atol=1e-6)
    whole = load_predictor(kinds["head"].run_dir).predict(table.iloc[[3]])
    np.testing.assert_allclose(found.probabilities[3:4], whole, atol=1e-6)  # bytes are as good as a path
    without = load_predictor(kinds["head"].run_dir).predict(products.drop(columns=["id", "image"]))
    np.testing.assert_allclose(without[0], found.probabilities[0], atol=1e-6)


def test_products_without_the_text_columns_are_refused(kinds, table: pd.DataFrame) -> None:
    predictor = load_predictor(kinds["words"].run_dir)
    for products in (table[["id", "title"]], table[["id", "title"]].head(0)):
        with pytest.raises(GoodsError, match="lack description, which run 'words' was trained on; they have id, title"):
            predictor.predict(products)
    assert not predictor.reads_photos and predictor.classify(table.head(1)).photos == [""]


# What it is made from ------------------------------------------------------------------------------------------------


def test_a_backbone_of_other_contents_is_refused_with_both_hashes(kinds, sample: Sample, tmp_path: Path) -> None:
    folder, known = kinds["head"].run_dir, Run.of(kinds["head"]).record()["models"]["model_name"]
    copy = tmp_path / "elsewhere"
    shutil.copytree(sample.model, copy)
    there = load_predictor(folder, models={"model_name": copy})
    assert there.p.model_name == str(copy) and there.fingerprint == load_predictor(folder).fingerprint
    change_weights(copy, lambda weights, name: weights[name].mul_(1.01))
    with pytest.raises(OtherRunError, match=rf"files of hash {known} .*elsewhere have hash [0-9a-f]{{16}}\."):
        load_predictor(folder, models={"model_name": copy})
    with pytest.raises(OtherRunError, match=f"hash {known} in model_name, and there is no directory .*nowhere"):
        load_predictor(folder, models={"head/model_name": tmp_path / "nowhere"})
    with pytest.raises(ParameterError, match="models names extra_embeddings, which none of the runs reads"):
        load_predictor(folder, models={"extra_embeddings": sample.model})


@pytest.mark.slow
def test_an_exported_blend_predicts_alone_what_the_blend_does(kinds, table: pd.DataFrame, tmp_path: Path) -> None:
    outputs, exported = tmp_path / "outputs", tmp_path / "to hand on"
    shutil.copytree(kinds["blend"].run_dir.parent, outputs, ignore=shutil.ignore_patterns("cache"))
    assert export_run(Run(outputs / "blend"), exported).startswith(f"{exported}: ")
    shutil.rmtree(outputs)
    tables = [path.relative_to(exported).as_posix() for path in exported.rglob("*.parquet")]
    assert tables == ["ensemble/oof.parquet"]  # of which thresholds are made
    assert sorted(path.name for path in (exported / "runs").iterdir()) == ["bert", "head", "last", "near", "words"]
    np.testing.assert_allclose(load_predictor(exported).predict(table), probabilities_of(kinds["blend"]), atol=1.5e-6)
    assert 'models={"head/model_name": ..., "last/model_name": ..., "bert/' in (exported / "README.md").read_text()
    record = exported / "runs" / "words" / "run.json"
    write_json(record, read_json(record) | {"version": 99})
    with pytest.raises(OtherRunError, match=r"run 'words' in .* has files of version 99, and this project reads"):
        load_predictor(exported)


def test_a_blend_refuses_another_run_under_the_name_of_one_of_its_own(kinds, tmp_path: Path) -> None:
    outputs = kinds["blend"].run_dir.parent
    for name, folder in {"blend": "blend", "head": "last"}.items():  # another run, called as the blend's
        shutil.copytree(outputs / folder, tmp_path / name)
    other = "what run 'blend' has learned goes with another head than there is now, trained or put together since; put"
    with pytest.raises(OtherRunError, match=other):
        load_predictor(tmp_path / "blend")
    with pytest.raises(OtherRunError, match=other):
        export_run(Run(tmp_path / "blend"), tmp_path / "to hand on")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blend", "head"]


def test_a_run_refuses_a_fold_that_was_trained_since_it_was_put_together(run: Run) -> None:
    metrics = run.fold(1).scores()
    write_json(run.fold(1).metrics, metrics | {"resources": {"seconds": 1.0}})  # the same training, on another machine
    load_predictor(run.folder)
    write_json(run.fold(1).metrics, metrics | {"text": metrics["text"] | {"log_loss": 1.0}})
    with pytest.raises(OtherRunError, match="goes with another fold1 than there is now"):
        load_predictor(run.folder)


@pytest.fixture
def run(kinds, tmp_path: Path) -> Run:
    """A copy of the linear run, to be spoilt."""
    shutil.copytree(kinds["words"].run_dir, tmp_path / "words")
    return Run(tmp_path / "words")


def test_what_is_no_finished_run_of_this_version_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(GoodsError, match=r"there is no run in .*nowhere: it has no run\.json"):
        load_predictor(tmp_path / "nowhere")
    run.fold(1).metrics.unlink()
    with pytest.raises(GoodsError, match="is not whole: its ensemble is of fold 1, too, which has no weights there"):
        load_predictor(run.folder)
    run.method.unlink()
    with pytest.raises(GoodsError, match=r"is unfinished: it has no ensemble yet \(folds trained: 0, 2\)"):
        load_predictor(run.folder)
    write_json(run.record_file, run.record() | {"version": 99})
    with pytest.raises(OtherRunError, match="has files of version 99, and this project reads version 1"):
        load_predictor(run.folder)


def test_only_settings_that_change_no_result_can_be_given(run: Run, table: pd.DataFrame) -> None:
    predictor = load_predictor(run.folder, eval_batch_size=3)
    assert predictor.p.eval_batch_size == 3 and predictor.run.folder == run.folder
    assert predictor.labels == list(range(21)) and len(predictor.classes) == predictor.num_classes == 21
    with pytest.raises(ParameterError, match="image_size can't be set for a trained run"):
        load_predictor(run.folder, image_size=32)
    with pytest.raises(ParameterError, match=r"^parameter 'eval_batch_size' should be greater than .*, but is 0 \("):
        load_predictor(run.folder, eval_batch_size=0)
