"""A catalogue over several calls: every product once, the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Sample, Trained, put_together

from goods.catalogue import PartsFolder, Shard, run_shard
from goods.classify import Job, prepare_job
from goods.errors import DamagedFileError, GoodsError
from goods.predictions import frame_logits
from goods.predictor import Predictor, load_predictor
from goods.run import Run
from goods_utils import main


@pytest.fixture(scope="module")
def run(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The miniature experiment, put together."""
    outputs = tmp_path_factory.mktemp("catalogue")
    shutil.copytree(trained.p.run_dir, outputs / trained.p.run)
    p = trained.p.model_copy(update={"outputs_dir": str(outputs)})
    put_together(p, trained.goods)
    return Run.of(p)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight products at once, sixteen a part: the 42 of test.csv are three parts."""
    monkeypatch.setattr("goods.training.inputs.PHOTO_ROWS", 8)
    monkeypatch.setattr("goods.catalogue.PART_STRETCHES", 2)


@pytest.fixture
def job(run: Run, sample: Sample, tmp_path: Path, small: None) -> Callable[..., Job]:
    """A job for test.csv and its photos, to a folder of the test's own; options are given by their names."""

    def make(out: str = "parts", **given: Any) -> Job:
        table = given.pop("table", sample.data / "test.csv")
        images = {} if "image_column" in given else {"images": sample.data / "test_images" / "test_images"}
        return prepare_job(load_predictor(run.folder), table, tmp_path / out, **{"precision": 0.5} | images | given)

    return make


@pytest.fixture
def dying_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on the call dies when it has predicted so many stretches of eight."""
    classify = Predictor.classify

    def after(stretches: int) -> None:
        left = iter(range(stretches))

        def dying(predictor: Predictor, products: pd.DataFrame) -> object:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return classify(predictor, products)

        monkeypatch.setattr(Predictor, "classify", dying)

    return after


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in PartsFolder(folder).parts()}


@pytest.mark.parametrize(("parts", "count"), [(3, 1), (3, 2), (3, 16), (610, 16), (0, 4)])
def test_shards_share_the_parts_out(parts: int, count: int) -> None:
    shares = [list(Shard(number, count).of(parts)) for number in range(1, count + 1)]
    assert [part for share in shares for part in share] == list(range(parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/16", "17/16", "3", "3/0", "3/-1", "a/b", "1/2/3", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(GoodsError, match="is none: of sixteen they are 1/16, 2/16"):
        Shard.parse(text)
    assert Shard.parse("16/16") == Shard(16, 16)


@pytest.mark.slow
def test_shards_that_were_killed_and_called_again_leave_the_same_bytes(job, dying_after, run, tmp_path: Path) -> None:
    assert run_shard(job("whole"))["rows"] == 42
    assert list(contents(tmp_path / "whole")) == [f"part-00000{number}.parquet" for number in range(3)]
    dying_after(3)  # in the middle of its second part
    with pytest.raises(KeyboardInterrupt):
        run_shard(job(), Shard(2, 2))
    folder = PartsFolder(tmp_path / "parts")
    assert [path.name for path in folder.parts()] == ["part-000001.parquet"]
    (folder.path / f".part-000002.parquet.{2**22 + 1}.abc.tmp").write_bytes(b"half a part")  # of a process that is gone
    dying_after(2)  # the part of ten that is left of its share
    assert run_shard(job(), Shard(2, 2))["rows"] == 26
    dying_after(2)
    assert run_shard(job(), Shard(1, 2))["rows"] == 16
    dying_after(0)
    assert run_shard(job())["rows"] == 42  # as another share: all is there
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert {path.name for path in folder.path.iterdir()} == {*contents(folder.path), "_job.json", "_locks"}
    found, test = pd.read_parquet(folder.path), pd.read_parquet(run.test)
    assert found["id"].tolist() == test["id"].tolist()
    np.testing.assert_allclose(found["probability"], np.exp(frame_logits(test).max(1)), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_damaged_part_of_another_shard_is_named(job, tmp_path: Path) -> None:
    run_shard(job(), Shard(1, 3))
    (tmp_path / "parts" / "part-000000.parquet").write_bytes(b"PAR1 half a copy")
    with pytest.raises(DamagedFileError, match=r"part-000000\.parquet is missing or damaged; remove it, and give the"):
        run_shard(job(), Shard(2, 3))
    assert (tmp_path / "parts" / "part-000001.parquet").is_file()


@pytest.mark.slow
def test_a_folder_is_no_file(job, tmp_path: Path) -> None:
    with pytest.raises(GoodsError, match=r"has no ending: .* for a file, \.parquet or \.csv"):
        job().run()
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_folder_of_another_job_is_not_written_into(job, tmp_path: Path) -> None:
    run_shard(job(), Shard(1, 3))
    with pytest.raises(GoodsError, match="is there already, and it was made with another precision, threshold;"):
        run_shard(job(precision=0.6), Shard(2, 3))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(GoodsError, match="it isn't known what it was made from"):
        run_shard(job("other"))


def test_options_that_contradict_each_other_are_refused(run, sample: Sample, tmp_path: Path, capsys) -> None:
    def said(*more: str, out: str = "parts") -> str:
        with pytest.raises(SystemExit) as end:
            main(["predict", "--run", str(run.folder), "--table", str(sample.data / "test.csv"), "--images", "none",
                  "--out", str(tmp_path / out), *more])  # fmt: skip
        assert end.value.code == 2 and not any(tmp_path.iterdir())
        return capsys.readouterr().err

    assert "is a file; --shard writes a folder of parts" in said("--shard", "1/2", out="p.parquet")
    assert "--shard 0/2 is none" in said("--shard", "0/2")
