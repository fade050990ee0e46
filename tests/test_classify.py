"""The command `predict`: a table of products to a table of predictions, and what bad input gets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from conftest import Sample
from loopback import Handler, Server, serving
from odd_photos import cut, encoded

from goods import classify
from goods.classify import ENDINGS, Outputs, named_paths, prepare_job, result_table
from goods.errors import ParameterError
from goods.files import write_json
from goods.predictor import Predictor, load_predictor
from goods_utils import main

pytestmark = pytest.mark.slow

HEAD = ["id", "label", "probability", "accept", "second", "second_probability", "third", "third_probability"]


class Call(NamedTuple):
    """A call of the command: its exit status, and what it said."""

    status: int
    out: str
    error: str


@pytest.fixture
def predict(kinds, sample: Sample, tmp_path: Path, capsys) -> Callable[..., Call]:
    """Calls the command for test.csv and its photos; options are given by their names, None leaves one out."""

    def call(run: str = "words", **given: str | None) -> Call:
        folder = kinds[run].run_dir if run in kinds else run
        options = {"run": str(folder), "table": str(sample.data / "test.csv"), "precision": "0.5",
                   "images": str(sample.data / "test_images" / "test_images"),
                   "out": str(tmp_path / "predictions.parquet")} | given  # fmt: skip
        words = [word for name, value in options.items() if value is not None
                 for word in (f"--{name.replace('_', '-')}", *([value] if value else []))]  # fmt: skip
        capsys.readouterr()
        try:
            main(["predict", *words])
            status = 0
        except SystemExit as end:
            status = end.code
        return Call(status, *capsys.readouterr())

    return call


@pytest.fixture
def refused(predict, tmp_path: Path) -> Callable[..., str]:
    """Calls the command, which must refuse with one sentence, status 2, and nothing written."""

    def call(**given: str | None) -> str:
        before = sorted(tmp_path.rglob("*"))
        done = predict(**given)
        assert done.status == 2 and not done.out and done.error.startswith("goods_utils.py: ")
        assert len(done.error.splitlines()) == 1 and sorted(tmp_path.rglob("*")) == before
        return done.error

    return call


def read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"id": str})


def test_a_row_for_each_product_in_order_with_labels_as_they_came(kinds, predict, sample: Sample, tmp_path) -> None:
    done = predict(probabilities="")
    assert done.status == 0 and "42 products in" in done.out and "out of fold, each fold under the other" in done.out
    found, run = read(tmp_path / "predictions.parquet"), kinds["words"].run_dir
    probabilities = pd.read_csv(run / "submission_probs.csv", dtype={"id": str})
    assert list(found) == HEAD + [f"c{k}" for k in range(21)]
    assert found["id"].tolist() == pd.read_csv(sample.data / "test.csv", dtype=str)["id"].tolist()
    assert found["label"].tolist() == pd.read_csv(run / "submission.csv")["categories"].tolist()
    np.testing.assert_allclose(found[[f"c{k}" for k in range(21)]], probabilities.iloc[:, 1:], atol=1.5e-6)
    best = np.sort(probabilities.iloc[:, 1:].to_numpy(), axis=1)[:, ::-1]
    np.testing.assert_allclose(found[[name for name in HEAD if "prob" in name]], best[:, :3], atol=1.5e-6)
    assert found["accept"].any() and not found["accept"].all()
    assert found.loc[found["accept"], "probability"].min() > found.loc[~found["accept"], "probability"].max()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.parquet", "predictions.parquet.job.json"]


def test_tables_of_all_forms_give_the_same(predict, sample: Sample, tmp_path: Path) -> None:
    table = pd.read_csv(sample.data / "test.csv", dtype=str, keep_default_na=False).head(9)
    for ending, separator in (("csv", ","), ("tsv", "\t"), ("csv.gz", ";"), ("csv.zip", "|")):
        table.to_csv(tmp_path / f"new.{ending}", index=False, sep=separator)
    table.replace({"": None}).to_parquet(tmp_path / "new.parquet", row_group_size=4)
    table.iloc[:2].to_parquet(tmp_path / "piece-0.parquet")
    table.iloc[2:].to_parquet(tmp_path / "piece-1.parquet")
    assert predict(out=str(tmp_path / "whole.csv")).status == 0
    for name in ("new.csv", "new.tsv", "new.csv.gz", "new.csv.zip", "new.parquet", "piece-*.parquet"):
        out = tmp_path / f"{name.replace('*', 'all')}.csv"
        assert predict(table=str(tmp_path / name), out=str(out)).status == 0
        pd.testing.assert_frame_equal(read(out), read(tmp_path / "whole.csv").head(9))


def test_ids_and_named_labels_stay_exact() -> None:
    table = result_table(["=1+1", "007"], np.array([[0.25, 0.75], [0.5, 0.5]]), ["+books", "0"], 0.6)
    assert table["id"].tolist() == ["=1+1", "007"] and table["label"].tolist() == ["0", "+books"]
    assert table["accept"].tolist() == [True, False] and table["second"].tolist() == ["+books", "0"]
    assert table["third"].isna().all() and table["third_probability"].isna().all()


def test_a_csv_is_read_as_it_was_written(kinds, sample: Sample, tmp_path: Path) -> None:
    table = pd.read_csv(sample.data / "test.csv", dtype=str, keep_default_na=False).head(3)
    table.assign(id=["NA", "null", "007"]).to_csv(tmp_path / "new.csv", index=False)
    predictor, read = load_predictor(kinds["words"].run_dir), {}
    predictor.labels = [str(label) for label in predictor.labels[:18]] + ["None", "N/A", "nan"]
    predictor.classes = [f"class {label}" for label in predictor.labels]
    for ending in ENDINGS:
        job = prepare_job(predictor, tmp_path / "new.csv", tmp_path / f"out{ending}", "none")
        job.run()
        read[ending] = job.read()
        assert sorted(job.least_sure()["id"]) == ["007", "NA", "null"]
        assert not job.with_names(job.read())[["label", "second", "third"]].isna().any(axis=None)
    pd.testing.assert_frame_equal(read[".csv"], read[".parquet"], check_exact=False, atol=1e-6)


# Going on ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on the call dies when it has predicted so many parts of 8 rows."""
    monkeypatch.setattr("goods.training.inputs.TEXT_ROWS", 8)
    classify = Predictor.classify

    def after(parts: int) -> None:
        calls = count()

        def dying(predictor: Predictor, products: pd.DataFrame) -> object:
            if next(calls) >= parts:
                raise KeyboardInterrupt
            return classify(predictor, products)

        monkeypatch.setattr(Predictor, "classify", dying)

    return after


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_killed_call_goes_on_to_the_same_bytes(predict, killed_after, tmp_path: Path, ending: str) -> None:
    whole, path = tmp_path / f"whole.{ending}", tmp_path / f"predictions.{ending}"
    predict(out=str(whole))
    killed_after(3)
    stopped = predict(out=str(path))
    assert stopped.status == 130 and stopped.error.endswith("\nstopped; the same command goes on where it stopped\n")
    files = Outputs(path)
    assert not path.exists() and [files.part(n).is_file() for n in range(5)] == [True, True, True, False, False]
    assert "another precision" in predict(out=str(path), precision="0.6").error
    killed_after(3)  # the other three of six
    assert predict(out=str(path)).status == 0 and not files.parts.exists()
    killed_after(0)
    assert predict(out=str(path)).status == 0  # done already
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("then", ["write_json", "shutil.rmtree"])
def test_a_call_that_is_killed_when_its_file_is_there_goes_on(predict, tmp_path: Path, monkeypatch, then: str) -> None:
    """Before it is written what the file was made from, or before the parts are removed."""
    files, joined = Outputs(tmp_path / "predictions.parquet"), []

    def dying_once_joined(*given: object, **named: object) -> None:
        if files.out.exists() and not joined:
            joined.append(files.out.read_bytes())
            raise KeyboardInterrupt
        return call(*given, **named)

    call = shutil.rmtree if then == "shutil.rmtree" else write_json
    monkeypatch.setattr(f"goods.classify.{then}", dying_once_joined)
    assert predict().status == 130
    assert files.parts.exists() and files.record.exists() == (then == "shutil.rmtree")
    assert predict().status == 0
    assert files.out.read_bytes() == joined[0] and files.record.exists() and not files.parts.exists()


def test_a_file_of_another_job_is_not_written_over(predict, refused, sample: Sample, tmp_path: Path) -> None:
    predict()
    shutil.copy(sample.data / "train.csv", tmp_path / "other.csv")
    assert "is there already, and it was made with another rows, table;" in refused(table=str(tmp_path / "other.csv"))
    assert "made with another run, fingerprint" in refused(run="bert")
    Outputs(tmp_path / "predictions.parquet").record.unlink()
    assert "it isn't known what it was made from; take another name for --out" in refused()


def test_a_file_that_was_damaged_is_not_taken_for_done(predict, refused, tmp_path: Path) -> None:
    predict()
    path = tmp_path / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert f"{path} isn't what was written there; remove it, and give the same command again" in refused()
    path.unlink()
    assert predict().status == 0 and len(read(path)) == 42


def test_who_has_waited_for_the_same_job_finds_it_done(kinds, sample: Sample, tmp_path: Path, monkeypatch) -> None:
    job = prepare_job(load_predictor(kinds["words"].run_dir), sample.data / "test.csv", tmp_path / "new.csv", "none")
    hold, seen = classify.held, []

    def once_another_is_done(*given: object) -> object:
        if not seen:
            seen.append("called")
            seen[0] = job.run(), job.out.stat().st_mtime_ns
        return hold(*given)

    monkeypatch.setattr(classify, "held", once_another_is_done)
    assert (job.run(), job.out.stat().st_mtime_ns) == seen[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "new.csv.job.json"]


# Photos --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_photos_that_cannot_be_used_are_counted_listed_and_done_without(
    predict, sample: Sample, tmp_path: Path
) -> None:
    table = pd.read_csv(sample.data / "test.csv", dtype=str, keep_default_na=False).head(6)
    table["photo"] = ["", "broken.jpg", "nowhere.jpg", "good", "cut.jpg", "good.png|cut.jpg|none.jpg"]
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    (tmp_path / "cut.jpg").write_bytes(cut(encoded(quality=90), 0.5))
    shutil.copy(next(sample.data.rglob("test_images/*.jpg")), tmp_path / "good.png")
    table.to_csv(tmp_path / "new.csv", index=False)
    done = predict("head", table=str(tmp_path / "new.csv"), images=None, image_column="photo")
    assert "3 photos are missing and 1 unreadable (predictions.parquet.bad_images.csv): predicted by what" in done.out
    assert "2 photos end too early and are read as far as they go" in done.out
    listed = pd.read_csv(tmp_path / "predictions.parquet.bad_images.csv", dtype=str)
    assert listed["id"].tolist() == table["id"].drop(3).tolist()
    assert listed["status"].tolist() == ["missing", "unreadable: not a photo", "missing", "truncated, 48 % read",
                                         "ok | truncated, 48 % read | missing"]  # fmt: skip
    assert len(read(tmp_path / "predictions.parquet")) == 6
    given = {"table": str(tmp_path / "new.csv"), "images": "none"}
    assert "it was made with another images, image_column; give that back" in predict("head", **given).error
    without = predict("head", out=str(tmp_path / "without.csv"), **given)
    assert without.status == 0
    first = read(tmp_path / "without.csv")["probability"][:3], read(tmp_path / "predictions.parquet")["probability"][:3]
    np.testing.assert_allclose(*first, atol=1e-6)
    (tmp_path / "predictions.parquet").unlink()
    table.iloc[[3]].to_csv(tmp_path / "new.csv", index=False)  # mended
    assert predict("head", table=str(tmp_path / "new.csv"), images=None, image_column="photo").status == 0
    assert not (tmp_path / "predictions.parquet.bad_images.csv").exists()


class Shop(Handler):
    """A shop that has the photos of a folder."""

    folder: Path

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        self.say(*(200, path.read_bytes()) if path.is_file() else (404, b"no"))


@pytest.mark.slow
def test_photos_by_uri_are_fetched_or_done_without(predict, refused, sample: Sample, tmp_path: Path) -> None:
    folder = sample.data / "test_images" / "test_images"
    table = pd.read_csv(sample.data / "test.csv", dtype=str, keep_default_na=False).head(6)
    names = [f"{name}.jpg" for name in table["id"]]
    Shop.folder = folder
    with serving(Server(Shop)) as shop, serving(Server(Shop)) as closed:
        table["photo"] = [f"{shop.url}/{names[0]}", f"{shop.url}/gone.jpg", (folder / names[2]).as_uri(), names[3], "",
                          f"{shop.url}/{names[5]}|{shop.url}/gone.jpg"]  # fmt: skip
        table.to_csv(tmp_path / "new.csv", index=False)
        uris = {"table": str(tmp_path / "new.csv"), "image_column": "photo"}
        done = predict("head", images=None, **uris)
        assert "4 photos are missing and 0 unreadable (predictions.parquet.bad_images.csv): predicted by" in done.out
        listed = pd.read_csv(tmp_path / "predictions.parquet.bad_images.csv", dtype=str)
        assert listed["id"].tolist() == table["id"][[1, 3, 4, 5]].tolist()
        assert listed["status"].tolist() == ["missing: HTTP 404", "missing", "missing", "ok | missing: HTTP 404"]
        predict("head", out=str(tmp_path / "by id.parquet"))
        by_id, found = read(tmp_path / "by id.parquet")["probability"], read(tmp_path / "predictions.parquet")
        np.testing.assert_allclose(found["probability"][[0, 2, 5]], by_id[[0, 2, 5]], atol=1e-6)
        table["photo"] = [f"{closed.url}/{name}" for name in names]
    table.to_csv(tmp_path / "new.csv", index=False)  # from here on nobody is there
    assert "none of the first 6 photos that" in (said := refused(run="head", images=None, **uris))
    assert f"can be fetched ({table['photo'][0]}: no answer: " in said and "look at column photo" in said
    assert predict("head", out=str(tmp_path / "copies.parquet"), **uris).status == 0  # what --images has isn't fetched
    np.testing.assert_allclose(read(tmp_path / "copies.parquet")["probability"], by_id[:6], atol=1e-6)
    table.assign(photo="odd://a.jpg").to_csv(tmp_path / "new.csv", index=False)
    assert "photos at odd:// can't be read: " in refused(run="head", images=None, **uris)


@pytest.mark.slow
def test_photos_that_are_nowhere_are_refused(refused, sample: Sample, tmp_path: Path) -> None:
    assert "run 'head' looks at photos: name their folder (images)" in refused(run="head", images=None)
    assert f"there is no folder {tmp_path}/nowhere with photos" in refused(run="head", images=str(tmp_path / "nowhere"))
    above = str(sample.data / "test_images")
    others = str(sample.data / "train_images")
    assert f"has a photo <id>.jpg in {others}" in refused(run="head", images=others)
    for pattern in ("../{id}.jpg", "/{id}.jpg"):
        said = refused(run="head", images=above, image_column=pattern)
        assert "42 products of" in said and "name photos by absolute paths or out of" in said
    said = refused(run="head", images=None, image_column="title")
    assert "has a file that image_column title names, below" in said


# Tables --------------------------------------------------------------------------------------------------------------

TABLES = {
    "id,title\n1,a\n": "lacks description, which the run reads; it has id, title",
    "id,title,Description \n1,a,b\n": "rename Description  to description",
    "id,title,description\n": "it has no rows",
    "id,title,description\n1,a,b\n ,c,d\n1,e,f\n2,,\n": "1 rows have no id; 1 rows have an id that stands there",
    "id,title,description\n1,a,b\n2,a\n": "1 rows have more or fewer cells than the header's 3 (they end on lines 3)",
    "id,title,description\n1,caf\xe9,b\n": "is not UTF-8",
    "": "new.csv is empty",
    'id,title,description\n1,"a,b\n2,c,d\n3,"e,f\n4,g,h\n': "quote that opens on line 2 swallows the lines",
}


@pytest.mark.parametrize("text", TABLES)
def test_a_table_that_cannot_be_used_is_refused_in_a_sentence(refused, tmp_path: Path, text: str) -> None:
    path = tmp_path / "new.csv"
    path.write_bytes(text.encode("latin-1"))
    assert TABLES[text] in refused(table=str(path))


def test_other_bad_input_is_refused_in_a_sentence(refused, sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "new.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    for given, said in (
        ({"table": str(tmp_path / "new.parquet")}, "can't be read as Parquet"),
        ({"table": str(tmp_path / "nowhere.csv")}, "there is no "),
        ({"table": str(sample.data)}, "is a folder; name the table in it"),
        ({"out": str(tmp_path / "out.xlsx")}, "must end in .parquet or .csv"),
        ({"run": str(tmp_path / "empty")}, "there is no run in"),
        ({"precision": "95"}, "precision 95.0 must lie between 0 and 1"),
        ({"set": "image_size=32"}, "image_size can't be set for a trained run"),
        ({"models": "model_name=nowhere"}, "models names model_name, which none of the runs reads"),
    ):
        assert said in refused(**given)


def test_paths_that_are_named_on_a_command_line_are_found_by_their_names():
    given = ["a/model_name=models/b=c", "embeddings_files=a.npz", "b.npz,c.npz"]
    assert named_paths(given) == {"a/model_name": "models/b=c", "embeddings_files": "a.npz,b.npz,c.npz"}
    assert named_paths([]) == {}
    for wrong in (["new.npz"], ["=new.npz"], ["model_name="], ["a=b", "a=c"]):
        with pytest.raises(ParameterError, match=rf"'{wrong[-1]}' doesn't name a model: write NAME=PATH"):
            named_paths(wrong)
