"""Kind embeddings: vectors made elsewhere are a member like others, and as good as the route that computes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Trained, put_together
from notebook_runs import arguments, papermill
from safetensors.torch import load_file

import goods_utils
from goods.classify import prepare_job
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError, OtherRunError, ParameterError
from goods.export import export_run
from goods.files import ROOT
from goods.members import learned_from, open_run, read_goods
from goods.models.embeddings import TextEmbedder, save_embeddings
from goods.params import Params, load_params
from goods.predictions import frame_logits, outputs_of
from goods.predictor import load_predictor
from goods.run import Run
from goods_utils import fit_all, show_plan

SMALL = {"n_folds": 3, "num_epochs": 3}
BOTH = ("image", "text")


def npz(path: Path, tables: dict[str, pd.DataFrame], values: dict[str, np.ndarray], more: str = "another") -> str:
    """One matrix of these tables' products, in another order than theirs, and one vector more."""
    ids = np.array([*(name for table in tables.values() for name in table["id"]), more])
    rows = np.concatenate([*values.values(), np.ones_like(next(iter(values.values()))[:1])])
    order = np.random.default_rng(0).permutation(len(ids))
    np.savez(path, ids=ids[order], embeddings=rows[order])
    return str(path)


@pytest.fixture(scope="module")
def vectors(trained: Trained) -> dict[str, dict[str, np.ndarray]]:
    """What embed.ipynb writes of the run whose heads are trained on the frozen backbone."""
    made = save_embeddings(trained.p, trained.goods)
    return {part: {name: values.numpy() for name, values in of.items()} for part, of in made.items()}


@pytest.fixture(scope="module")
def made(mini, trained: Trained, vectors, tmp_path_factory) -> Trained:
    """A run of heads on the very vectors that embed.ipynb writes."""
    files = [str(Run.of(trained.p).embeddings(part)) for part in ("train", "test")]
    p = load_params(**mini | {"run": "vectors", "kind": "embeddings", "embeddings_files": files},
                    outputs_dir=str(tmp_path_factory.mktemp("outputs")))  # fmt: skip
    open_run(p)
    goods = read_goods(p)
    fit_all(p, goods)
    return Trained(p, goods)


@pytest.fixture(scope="module")
def single(mini, trained: Trained, vectors, tmp_path_factory) -> Trained:
    """Neighbours in one matrix of all products."""
    folder = tmp_path_factory.mktemp("outputs")
    tables = {"train": trained.goods.train, "test": trained.goods.test}
    path = npz(folder / "v.npz", tables, {part: of["text"] for part, of in vectors.items()})
    given = {"run": "near", "kind": "knn", "embeddings_files": path, "model_name": "models/none"}
    p = load_params(**mini | given, outputs_dir=str(folder))
    open_run(p)
    goods = read_goods(p)
    fit_all(p, goods)
    put_together(p, goods)
    return Trained(p, goods)


def test_the_same_vectors_give_the_same_scores_as_the_route_that_computes_them(trained, made):
    for number in range(3):
        theirs, own = (pd.read_parquet(Run.of(run.p).fold(number).oof) for run in (trained, made))
        assert outputs_of(own) == ["fused", "image", "text"] and own["id"].tolist() == theirs["id"].tolist()
        for output in outputs_of(own):
            np.testing.assert_allclose(frame_logits(own, output), frame_logits(theirs, output), rtol=0, atol=1e-6)
            scores = [Run.of(run.p).fold(number).scores()[output] for run in (trained, made)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_it_goes_the_whole_road(made, tmp_path):
    put_together(made.p, made.goods)
    assert write_submission(made.p, made.goods)["id"].tolist() == made.goods.test["id"].tolist()
    assert "image, 96 of text" in str(show_plan(made.p))
    assert set(learned_from(made.p)) == {"kind", "embeddings_files"}  # no model directory is asked for
    folder = tmp_path / "handed-on"
    export_run(Run.of(made.p), folder)
    card = (folder / "README.md").read_text()
    assert "by text, and by vectors made elsewhere" in card and "train.safetensors, test.safetensors" in card
    expected = np.exp(frame_logits(pd.read_parquet(Run.of(made.p).test)))
    np.testing.assert_allclose(load_predictor(folder).predict(made.goods.test), expected, rtol=0, atol=1e-6)


def test_neighbours_in_a_matrix_alone_need_no_encoder(single):
    found = pd.read_parquet(Run.of(single.p).oof)
    assert outputs_of(found) == ["fused"]
    assert (frame_logits(found).argmax(1) == found["label"]).mean() > 0.3  # of 21 classes
    predictor = load_predictor(Run.of(single.p).folder)
    expected = np.exp(frame_logits(pd.read_parquet(Run.of(single.p).test)))
    np.testing.assert_allclose(predictor.predict(single.goods.test), expected, rtol=0, atol=1e-6)
    assert not predictor.reads_photos and predictor.reads_vectors


def test_further_products_need_vectors_of_their_own(single, sample, tmp_path):
    folder, table = Run.of(single.p).folder, pd.read_csv(sample.data / "test.csv", dtype=str, keep_default_na=False)
    table["id"] = "new-" + table["id"]
    table.to_csv(tmp_path / "new.csv", index=False)
    how = r"--models embeddings_files=PATH"
    with pytest.raises(GoodsError, match=rf"42 of 42 products have no vector in .* \(ids new-.*{how}"):
        prepare_job(load_predictor(folder), tmp_path / "new.csv", tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))
    known = load_predictor(folder)
    text = np.load(single.p.embeddings_files[0])
    rows = {name: row for row, name in enumerate(text["ids"])}
    own = text["embeddings"][[rows[name.removeprefix("new-")] for name in table["id"]]]
    np.savez(tmp_path / "new.npz", ids=table["id"].to_numpy(dtype=str), embeddings=own)
    job = prepare_job(load_predictor(folder, {"embeddings_files": tmp_path / "new.npz"}), tmp_path / "new.csv",
                      tmp_path / "out.parquet")  # fmt: skip
    job.run()
    expected = known.predict(table.assign(id=table["id"].str.removeprefix("new-"))).max(1)
    np.testing.assert_allclose(job.read()["probability"], expected, rtol=0, atol=1e-6)
    np.savez(tmp_path / "new.npz", ids=table["id"].to_numpy(dtype=str), embeddings=own[:, 1:])
    other = load_predictor(folder, {"near/embeddings_files": tmp_path / "new.npz"})
    with pytest.raises(
        GoodsError, match=r"other dimensions \(extra of 95\) than run 'near' learned from \(extra of 96"
    ):
        other.predict(table)


def test_a_matrix_that_changed_is_refused(single, tmp_path):
    path = tmp_path / "v.npz"
    path.write_bytes(Path(single.p.embeddings_files[0]).read_bytes())
    p = single.p.model_copy(update={"embeddings_files": (str(path),)})
    open_run(p)  # another place, the same vectors
    stored = dict(np.load(path))
    np.savez(path, **stored | {"embeddings": stored["embeddings"] + 1})
    with pytest.raises(OtherRunError, match="other files in embeddings_files: their hash was"):
        open_run(p)
    run = tmp_path / "copy"
    run.mkdir()
    record = json.loads(Run.of(single.p).record_file.read_text())
    record["parameters"]["embeddings_files"] = [str(path)]
    for file in Run.of(single.p).model_files([0, 1, 2]):
        (run / file.relative_to(Run.of(single.p).folder)).parent.mkdir(exist_ok=True)
        (run / file.relative_to(Run.of(single.p).folder)).write_bytes(file.read_bytes())
    Run(run).record_file.write_text(json.dumps(record))
    with pytest.raises(OtherRunError, match=r"trained with vectors of hash .* Put those back, .* say so: models="):
        load_predictor(run)
    load_predictor(run, {"embeddings_files": str(path)})  # of further products, by the same model
    path.unlink()
    with pytest.raises(OtherRunError, match=r"there is no file .*v\.npz; name what holds those of the products"):
        load_predictor(run)
    with pytest.raises(ParameterError, match="models names text_files, which none of the runs reads"):
        load_predictor(Run.of(single.p).folder, {"text_files": str(path)})


def test_ids_are_compared_with_both_tables_before_anything_is_trained(make, trained, vectors, tmp_path):
    rows = {part: of["image"][:-2] for part, of in vectors.items()}
    tables = {part: getattr(trained.goods, part).iloc[:-2] for part in vectors}
    p: Params = make(kind="embeddings", embeddings_files=npz(tmp_path / "v.npz", tables, rows))
    with pytest.raises(GoodsError, match="2 of 126 training products and 2 of 42 test products have no vector"):
        read_goods(p)
    assert not Run.of(p).trained()


def test_neighbours_by_files_see_what_those_in_memory_saw(mini, trained, vectors, tmp_path):
    folder, save = tmp_path / "out", load_file(Run.of(trained.p).embeddings("train"))
    assert list(save) == sorted(BOTH)
    for part, of in vectors.items():
        np.savez(tmp_path / f"{part}.npz", ids=getattr(trained.goods, part)["id"].to_numpy(dtype=str),
                 image=of["image"], text=of["text"], extra=of["image"][:, :7] ** 2)  # fmt: skip
    files = [str(tmp_path / f"{part}.npz") for part in vectors]
    p = load_params(**mini | {"run": "near", "kind": "knn", "embeddings_files": files}, outputs_dir=str(folder))
    open_run(p)
    goods = read_goods(p)
    fit_all(p, goods)
    put_together(p, goods)
    expected = np.exp(frame_logits(pd.read_parquet(Run.of(p).test)))
    np.testing.assert_allclose(load_predictor(p.run_dir).predict(goods.test), expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def further(trained: Trained, encoder_dir: Path, tmp_path_factory) -> Path:
    """What a text encoder makes of all products, as a matrix in two pieces."""
    folder = tmp_path_factory.mktemp("vectors")
    for part in ("train", "test"):
        table = getattr(trained.goods, part)
        found = TextEmbedder(trained.p, str(encoder_dir)).texts(table["text"].tolist()).numpy()
        npz(folder / f"{part}.npz", {part: table}, {part: found}, more=part)
    return folder


def test_a_matrix_as_a_further_encoder_equals_the_encoder_itself(mini, trained, encoder_dir, further, tmp_path):
    runs, paths = {}, {"computed": str(encoder_dir), "given": str(further / "*.npz")}
    for name, path in paths.items():
        given = {"run": name, "extra_embeddings": path, "outputs_dir": str(tmp_path), "num_epochs": 5, "folds": [1]}
        p = runs[name] = load_params(**mini | given)
        open_run(p)
        goods = read_goods(p)
        fit_all(p, goods)
        put_together(p, goods)
    theirs, own = (pd.read_parquet(Run.of(p).fold(1).oof) for p in runs.values())
    for output in outputs_of(theirs):
        np.testing.assert_allclose(frame_logits(own, output), frame_logits(theirs, output), rtol=0, atol=1e-6)
    assert set(learned_from(runs["given"])) == {"kind", "model_name", "extra_embeddings"}
    products, folder = goods.test.head(3), Run.of(runs["given"]).folder
    expected = load_predictor(Run.of(runs["computed"]).folder).predict(products)
    np.testing.assert_allclose(load_predictor(folder).predict(products), expected, rtol=0, atol=1e-6)
    new = products.assign(id=["x", "y", "z"])
    with pytest.raises(GoodsError, match=r"3 of 3 products have no vector in .* --models extra_embeddings=PATH"):
        load_predictor(folder).predict(new)
    stored = np.load(further / "test.npz")
    rows = [stored["ids"].tolist().index(name) for name in products["id"]]
    np.savez(tmp_path / "new.npz", ids=np.array(["x", "y", "z"]), embeddings=stored["embeddings"][rows])
    found = load_predictor(folder, {"extra_embeddings": tmp_path / "new.npz"}).predict(new)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.savez(tmp_path / "new.npz", ids=np.array(["x", "y", "z"]), embeddings=stored["embeddings"][rows][:, :5])
    with pytest.raises(GoodsError, match=r"vectors in .*new\.npz have other dimensions \(extra of 5\)"):
        load_predictor(folder, {"extra_embeddings": tmp_path / "new.npz"}).predict(new)


@pytest.mark.slow
def test_a_tuned_backbone_takes_a_matrix_beside_it(mini, further, encoder_dir, tmp_path):
    both = [str(encoder_dir), str(further / "*.npz")]
    given = {"run": "last", "tune": "last", "extra_embeddings": both, "outputs_dir": str(tmp_path), "num_epochs": 1,
             "folds": [0], "max_text_length": 32, "last_blocks": 1}  # fmt: skip
    p = load_params(**mini | given)
    open_run(p)
    goods = read_goods(p)
    fit_all(p, goods)
    put_together(p, goods)
    assert set(Run.of(p).record()["models"]) == {"model_name", "extra_embeddings", "extra_embeddings_2"}
    expected = np.exp(frame_logits(pd.read_parquet(Run.of(p).test)))
    np.testing.assert_allclose(load_predictor(p.run_dir).predict(goods.test), expected, rtol=0, atol=1e-5)
    with pytest.raises(GoodsError, match=r"1 of 1 products have no vector .* --models extra_embeddings_2=PATH"):
        load_predictor(p.run_dir).predict(goods.test.head(1).assign(id="x"))


@pytest.fixture(scope="module")
def piped(mini, trained: Trained, vectors, tmp_path_factory) -> tuple[Trained, Path]:
    """pipeline.py on what embed.ipynb writes, and a linear run and the blend of both beside it; and the config."""
    folder = tmp_path_factory.mktemp("piped")
    files = [str(Run.of(trained.p).embeddings(part)) for part in ("train", "test")]
    common = mini | {"outputs_dir": str(folder / "outputs")}
    config = folder / "vectors.yaml"
    config.write_text(json.dumps(common | {"run": "vectors"}))
    command = [sys.executable, "pipeline.py", "--config", config, "--set", "kind=embeddings"]
    done = subprocess.run([*map(str, command), f"embeddings_files={json.dumps(files)}"], cwd=ROOT, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for run, given in (("linear", {}), ("blend", {"runs": "vectors, linear", "blend_method": "mean"})):
        p = load_params(**common | {"run": run, "kind": run} | given)
        open_run(p)
        goods = read_goods(p)
        fit_all(p, goods) if run == "linear" else None
        put_together(p, goods)
    config.write_text(json.dumps(common | {"run": "vectors", "kind": "embeddings", "embeddings_files": files}))
    return Trained(p, goods), config


@pytest.fixture(scope="module")
def new_goods(sample, vectors, trained, tmp_path_factory) -> tuple[Path, Path]:
    """The test products as new ones, in another order, and their vectors."""
    folder = tmp_path_factory.mktemp("new")
    table = pd.read_csv(sample.data / "test.csv", dtype=str, keep_default_na=False).iloc[::-1]
    assert table["id"].tolist() == trained.goods.test["id"].tolist()[::-1]
    table["id"] = "new-" + table["id"]
    table.to_csv(folder / "new.csv", index=False)
    both = {name: values[::-1] for name, values in vectors["test"].items()}
    np.savez(folder / "new.npz", ids=table["id"].to_numpy(dtype=str), **both)
    return folder / "new.csv", folder / "new.npz"


@pytest.mark.slow
def test_the_pipeline_trains_puts_together_and_submits(piped, trained):
    outputs = Path(piped[0].p.outputs_dir)
    for number in range(3):
        theirs = pd.read_parquet(Run.of(trained.p).fold(number).oof)
        own = pd.read_parquet(outputs / "vectors" / f"fold{number}" / "oof.parquet")
        np.testing.assert_allclose(frame_logits(own), frame_logits(theirs), rtol=0, atol=1e-6)
    submitted = pd.read_csv(outputs / "vectors" / "submission.csv", dtype=str)
    assert submitted["id"].tolist() == trained.goods.test["id"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("run", "named"), [("vectors", "embeddings_files"), ("blend", "vectors/embeddings_files")])
def test_the_command_classifies_new_goods_by_their_vectors(piped, new_goods, tmp_path, run, named):
    folder, (table, vectors) = Path(piped[0].p.outputs_dir) / run, new_goods
    command = ["predict", "--run", str(folder), "--table", str(table), "--out", str(tmp_path / "out.parquet")]
    with pytest.raises(SystemExit):
        goods_utils.main(command)  # those in run.json are of other products
    goods_utils.main([*command, "--probabilities", "--models", f"{named}={vectors}"])
    found, own = pd.read_parquet(tmp_path / "out.parquet"), pd.read_parquet(folder / "ensemble" / "test.parquet")
    assert found["id"].tolist() == [f"new-{name}" for name in own["id"][::-1]]
    expected = np.exp(frame_logits(own))[::-1]
    np.testing.assert_allclose(found.filter(regex=r"^c\d+$"), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_notebook_classifies_new_goods_by_their_vectors(piped, new_goods, tmp_path):
    table, vectors = new_goods
    given = {"config": piped[1], "table": table, "models": f"embeddings_files={vectors}", "out": tmp_path / "out.csv"}
    done = papermill("notebooks/predict.ipynb", tmp_path / "predict.ipynb", *arguments(**given))
    assert done.status == 0, done.stderr
    own = pd.read_parquet(Path(piped[0].p.outputs_dir) / "vectors" / "ensemble" / "test.parquet")
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["id"].tolist() == [f"new-{name}" for name in own["id"][::-1]]
    np.testing.assert_allclose(found["probability"], np.exp(frame_logits(own)).max(1)[::-1], rtol=0, atol=1e-6)
