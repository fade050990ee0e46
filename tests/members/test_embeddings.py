"""Kind embeddings: vectors made elsewhere are a member like others, and as good as the route that computes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Trained, put_together
from safetensors.torch import load_file

from goods.classify import prepare_job
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError, OtherRunError, ParameterError
from goods.export import export_run
from goods.members import learned_from, open_run, read_goods
from goods.models.embeddings import save_embeddings
from goods.params import Params, load_params
from goods.predictions import frame_logits, outputs_of
from goods.predictor import load_predictor
from goods.run import Run
from goods_utils import fit_all, show_plan

SMALL = {"n_folds": 3, "num_epochs": 3}
BOTH = ("image", "text")


def npz(path: Path, tables: dict[str, pd.DataFrame], values: dict[str, np.ndarray]) -> str:
    """One matrix of these tables' products, in another order than theirs, and one vector more."""
    ids = np.array([*(name for table in tables.values() for name in table["id"]), "another"])
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
    assert show_plan(made.p) == "There is no plan for kind embeddings: heads on vectors made elsewhere."
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
