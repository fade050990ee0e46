"""predict --engine ray: machines and actors that are lost lose no product; the parts are those of one process."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import Sample, Trained, put_together

from goods.catalogue import PartsFolder, Shard, facts_of, run_shard
from goods.classify import Job, prepare_job
from goods.errors import GoodsError, OtherRunError
from goods.on_ray import PART, Classifier, Loading, classified
from goods.run import Run
from goods_utils import main

needs_ray = [
    pytest.mark.slow,
    pytest.mark.skipif("GOODS_SLOW" not in os.environ, reason="takes a minute or two: GOODS_SLOW=1 runs it"),
    pytest.mark.skipif(
        not importlib.util.find_spec("ray"), reason="ray is not installed: pip install -r requirements-ray.txt"
    ),
]
COPIES, PARTS = 40, 105  # of the 42 products of test.csv; parts of sixteen


def with_ray(test: Callable[..., None]) -> Callable[..., None]:
    return functools.reduce(lambda marked, mark: mark(marked), needs_ray, test)


@pytest.fixture(scope="module")
def run(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The miniature experiment, put together."""
    p = trained.p.model_copy(update={"outputs_dir": str(tmp_path_factory.mktemp("ray"))})
    shutil.copytree(trained.p.run_dir, p.run_dir)
    put_together(p, trained.goods)
    return Run.of(p)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of one machine without room for actors, and whatever is added to it."""
    paths = tmp_path_factory.mktemp("light")
    # Ray gives its agents 15 seconds to begin, and they import jsonschema, which reads a grammar for what JupyterLab
    # brings along.
    (paths / "rfc3987_syntax.py").write_text("raise ImportError\n")
    before = os.environ.get("PYTHONPATH", "")
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(paths), before, *sys.path])),
                   "RAY_worker_niceness": "0", "RAY_health_check_period_ms": "1000", "OMP_NUM_THREADS": "1",
                   "RAY_DEDUP_LOGS": "0"}  # fmt: skip
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()
    os.environ["PYTHONPATH"] = before


@pytest.fixture
def job(run: Run, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Job]:
    """A job for test.csv many times over, in stretches of eight and parts of sixteen."""
    monkeypatch.setattr("goods.training.inputs.PHOTO_ROWS", 8)
    monkeypatch.setattr("goods.catalogue.PART_STRETCHES", 2)
    table = pd.read_csv(sample.data / "test.csv", dtype=str, keep_default_na=False)
    photos = sample.data / "test_images" / "test_images"
    copies = [table.assign(photo=table["id"] + ".jpg", id=table["id"] + f"-{n}") for n in range(COPIES)]
    pd.concat(copies).to_csv(tmp_path / "new.csv", index=False)

    def make(out: str) -> Job:
        given = {"images": photos, "image_column": "photo", "precision": 0.5, "probabilities": True}
        return prepare_job(loading(run).load(), tmp_path / "new.csv", tmp_path / out, **given)

    return make


def loading(run: Run) -> Loading:
    return Loading(run.folder, {}, {"num_workers": 0})


def when(parts: int, folder: Path, call: Callable[[], None]) -> threading.Thread:
    """A thread that calls once there are so many parts."""

    def watch() -> None:
        while len(PartsFolder(folder).parts()) < parts:
            time.sleep(0.01)
        call()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def kill_one_actor() -> None:
    """Ends one of the actors that are at work, as a full memory would."""
    at_work = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "MapWorker" in " ".join(process.info["cmdline"] or [])
    ]
    at_work[0].send_signal(signal.SIGKILL)


@with_ray
def test_a_lost_machine_and_a_killed_actor_lose_no_product(job, run: Run, cluster: Any, tmp_path: Path) -> None:
    here = job("here")
    run_shard(here)
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    there, parts_then = job("there"), []

    def lose(call: Callable[[], None]) -> Callable[[], None]:
        return lambda: (call(), parts_then.append(len(PartsFolder(there.out).parts())))

    first = when(5, there.out, lose(kill_one_actor))
    second = when(20, there.out, lose(lambda: cluster.remove_node(machines[0], allow_graceful=False)))
    assert run_shard(there, classify=lambda due: classified(there, loading(run), due))["rows"] == here.table.rows
    first.join(), second.join()
    assert len(parts_then) == 2 and max(parts_then) < PARTS == len(PartsFolder(there.out).parts())
    one, two = pd.read_parquet(here.out), pd.read_parquet(there.out)
    assert (
        two["id"].is_unique
        and two["id"].tolist() == one["id"].tolist() == pd.read_csv(tmp_path / "new.csv")["id"].tolist()
    )
    columns = [f"c{k}" for k in range(21)]
    np.testing.assert_allclose(two[columns], one[columns], rtol=0, atol=1e-6)
    assert two["label"].equals(one["label"]) and two["accept"].equals(one["accept"])
    cluster.remove_node(machines[1])


@with_ray
def test_a_call_that_was_killed_goes_on_with_other_actors(job, run: Run, cluster: Any) -> None:
    machine = cluster.add_node(num_cpus=1)
    begun = job("begun")

    def killed(due: Sequence[int]) -> Iterator[tuple[int, pd.DataFrame, bool]]:
        yield from itertools.islice(classified(begun, loading(run), due), 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_shard(begun, classify=killed)
    before = {path: path.stat().st_mtime_ns for path in PartsFolder(begun.out).parts()}
    assert len(before) == 4
    run_shard(begun, classify=lambda due: classified(begun, loading(run), due, actors=1))
    after = {path: path.stat().st_mtime_ns for path in PartsFolder(begun.out).parts()}
    assert len(after) == PARTS and before.items() <= after.items()
    cluster.remove_node(machine)


@with_ray
def test_what_is_wrong_in_an_actor_is_said_as_here(job, run: Run, cluster: Any, tmp_path: Path) -> None:
    machine = cluster.add_node(num_cpus=1)
    wrong = job("wrong")
    for other, kind in (
        (Loading(tmp_path), GoodsError),
        (Loading(run.folder, {}, {"mixed_precision": "bf16"}), OtherRunError),
    ):
        with pytest.raises(kind, match="there is no run in" if kind is GoodsError else "holds another run on"):
            run_shard(wrong, classify=lambda due, other=other: classified(wrong, other, due))
    assert not PartsFolder(wrong.out).parts()
    cluster.remove_node(machine)


@with_ray
def test_actors_that_end_again_and_again_end_the_call(job, run: Run, cluster: Any, monkeypatch) -> None:
    monkeypatch.setattr("goods.on_ray.MOST_RESTARTS", 1)
    machine, doomed, over = cluster.add_node(num_cpus=1), job("doomed"), threading.Event()

    def kill_each() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(IndexError, psutil.Error):
                kill_one_actor()

    thread = threading.Thread(target=kill_each, daemon=True)
    thread.start()
    with pytest.raises(GoodsError, match="actors ended again and again, most often for lack of memory"):
        run_shard(doomed, classify=lambda due: classified(doomed, loading(run), due))
    over.set(), thread.join()
    cluster.remove_node(machine)


def test_an_actor_reads_its_parts_in_any_order_and_refuses_another_table(job, run: Run) -> None:
    whole = job("whole")
    facts, alone = facts_of(whole), replace(whole, predictor=None)
    actor = pickle.loads(pickle.dumps(Classifier))(loading(run), pickle.loads(pickle.dumps(alone)), facts)
    parts = [actor({"item": np.array([number])}).to_pandas() for number in (2, 0, 1)]
    assert [part[PART][0] for part in parts] == [2, 0, 1] and list(map(len, parts)) == [16, 16, 16]
    run_shard(whole, Shard(1, PARTS // 3))
    for part in parts:
        written = pd.read_parquet(PartsFolder(whole.out).part(int(part[PART][0])))
        pd.testing.assert_frame_equal(part.drop(columns=PART), written, check_dtype=False, rtol=0, atol=1e-6)
    with pytest.raises(OtherRunError, match=r"new\.csv holds another table on .*; copy it there again"):
        Classifier(loading(run), alone, facts | {"table": "another"})({"item": np.array([0])})


def test_options_without_meaning_are_refused(run: Run, sample: Sample, tmp_path: Path, capsys, monkeypatch) -> None:
    def said(out: str, *more: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["predict", "--run", str(run.folder), "--table", str(sample.data / "test.csv"), "--images", "none",
                  "--out", str(tmp_path / out), *more])  # fmt: skip
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "is a file; --engine ray writes a folder of parts" in said("p.parquet", "--engine", "ray")
    assert "--actors 2 has no meaning" in said("parts", "--actors", "2")
    assert "--actors 0 has no meaning" in said("parts", "--engine", "ray", "--actors", "0")
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it isn't installed
    assert "--engine ray needs the package ray: pip install -r requirements-ray.txt" in said("parts", "--engine", "ray")
