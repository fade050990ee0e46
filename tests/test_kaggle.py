"""The Kaggle kernel as Kaggle gets it: pushed by the real client to a server on this machine, and run from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import yaml

import goods_params as gp
import goods_utils as gu
from goods_params import ROOT, GoodsError
from kaggle_kernel import build, in_kernel, push

SETTINGS = {"tune": "head", "n_folds": 3, "num_epochs": 40, "num_workers": 0}
FOLDS = [0, 1]
# In a network of its own, with nothing in it but this machine: where unshare isn't allowed, sockets refuse the others.
OFFLINE = """
import fcntl, os, socket, struct, sys
flags = struct.pack("16sh14x", b"lo", 1)  # up
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, flags)
os.execv(sys.argv[1], sys.argv[1:])
"""
REFUSE = """
import socket
connect = socket.socket.connect
def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"no network here: {address}")
    return connect(self, address)
socket.socket.connect = refuse
"""


# ---------------------------------------------------------------------------------------------------------------------
# Kaggle's side
# ---------------------------------------------------------------------------------------------------------------------


class Kaggle(BaseHTTPRequestHandler):
    """Answers the command line's calls with what the server was told to say; keeps what it was sent."""

    def do_POST(self) -> None:
        name = self.path.rpartition("/")[2]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append((name, json.loads(body)))
        answer = self.server.answers.get(name, 404)
        if answer == "hang up":
            self.connection.close()
        elif isinstance(answer, int):
            self._say(answer, json.dumps({"code": answer, "message": "no"}).encode())
        else:
            self._say(200, json.dumps(answer).encode())

    def do_GET(self) -> None:
        self._say(200, self.server.files[self.path.partition("/files/")[2]].read_bytes(), "application/octet-stream")

    def do_PUT(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers["Content-Length"]))
        self._say(200, b"{}")

    def _say(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A server that the command line takes for Kaggle, and a user known to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Kaggle)
    server.answers, server.calls, server.files = {}, [], {}
    environment = {
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "me", "KAGGLE_KEY": "k",
        "KAGGLE_CONFIG_DIR": str(tmp_path / ".kaggle"), "http_proxy": f"http://127.0.0.1:{server.server_port}",
    }  # fmt: skip
    for name in [name for name in os.environ if name.upper().startswith("KAGGLE_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(push, "STAGE", tmp_path / "stage" / "kaggle")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The kernel's folder with a user name filled in."""
    folder = tmp_path / "kaggle_kernel"
    folder.mkdir()
    shutil.copy(ROOT / "kaggle_kernel" / "main.ipynb", folder)
    gp.write_json(folder / "kernel-metadata.json", build.make_metadata("me"))
    return folder


def mount(sample: Any, root: Path, competition: str, model: str) -> Path:
    """A fake /kaggle with the sample as its input; returns it."""
    shutil.copytree(sample.data, root / "input" / competition)
    shutil.copytree(sample.model, root / "input" / model)
    return root


# ---------------------------------------------------------------------------------------------------------------------
# The notebook
# ---------------------------------------------------------------------------------------------------------------------


def test_the_committed_kernel_is_what_the_sources_give(kernel: Path) -> None:
    build.check()
    nbformat.validate(nbformat.read(build.FOLDER / "main.ipynb", as_version=4))
    assert (build.FOLDER / "main.ipynb").stat().st_size < push.MOST_BYTES
    committed = json.loads((build.FOLDER / "kernel-metadata.json").read_text())
    assert not list(push.metadata_problems(committed))

    text = build.make_notebook(build.read_parameters((kernel / "main.ipynb").read_text()) | {"max_hours": 3})
    (kernel / "main.ipynb").write_text(text)
    assert build.check(kernel)["max_hours"] == 3  # the parameters are the user's
    for changed in (
        text.replace("import goods_params as gp", "import goods_params", 1),
        text.replace("folds = ", "fold = "),
    ):
        (kernel / "main.ipynb").write_text(changed)
        with pytest.raises(GoodsError, match="make kernel"):
            build.check(kernel)


def test_the_pushed_notebook_runs_offline_to_the_local_submission(
    kaggle: ThreadingHTTPServer, kernel: Path, sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kaggle.answers["SaveKernel"] = {"ref": "/me/goods-classification", "url": "https://kaggle", "versionNumber": 7}
    assert "Kernel version 7 successfully pushed" in push.push(kernel)
    [(_, sent)] = kaggle.calls
    assert (sent["slug"], sent["machineShape"]) == ("me/goods-classification", "NvidiaTeslaT4")
    assert sent["enableGpu"] is True and sent["enableInternet"] is False and sent["isPrivate"] is True
    assert sent["competitionDataSources"] == ["goods-classification"]
    assert sent["datasetDataSources"] == ["me/siglip-so400m-patch14-384"]

    root = mount(
        sample, tmp_path / "kaggle", "competitions/goods-classification", "models/me/siglip/transformers/tiny/1"
    )
    run_offline(sent["text"], root, tmp_path)
    p = gu.load_params("params/demo.yaml", **SETTINGS, data_dir=str(sample.data), model_name=str(sample.model),
                       outputs_dir=str(tmp_path / "local"))  # fmt: skip
    gu.open_run(p)
    goods = gu.read_goods(p)
    for fold in FOLDS:
        gu.fit_fold(p.model_copy(update={"fold": fold}), goods)
    gu.ensemble_folds(p, goods)
    gu.write_submission(p, goods)
    assert (root / "working" / "submission.csv").read_bytes() == (p.run_dir / "submission.csv").read_bytes()
    assert sorted(path.name for path in (root / "working").iterdir()) == ["outputs", "submission.csv"]
    assert [path.name for path in (root / "working" / "outputs").iterdir()] == ["demo"]  # no caches

    comes_home(kaggle, kernel, root / "working", tmp_path, monkeypatch)
    scores_again(sample, root / "working", tmp_path, monkeypatch)


def run_offline(text: str, root: Path, tmp_path: Path) -> None:
    """Runs the pushed notebook in an empty folder, without network and without this project in sight."""
    (tmp_path / "pushed.ipynb").write_text(text)
    gp.write_text(tmp_path / "refuse" / "sitecustomize.py", REFUSE)
    parameters = {"config": "params/demo.yaml", "folds": FOLDS, "settings": SETTINGS}
    gp.write_text(tmp_path / "parameters.yaml", yaml.safe_dump(parameters))
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "papermill", tmp_path / "pushed.ipynb", tmp_path / "done.ipynb", "-k", "python3"]
    command += ["-f", tmp_path / "parameters.yaml", "--no-progress-bar"]
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0:
        command = ["unshare", "-rn", sys.executable, "-c", OFFLINE, *command]
    environment = os.environ | {"GOODS_KAGGLE_ROOT": str(root), "PYTHONPATH": str(tmp_path / "refuse")}
    environment["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list((tmp_path / "empty").iterdir())


def comes_home(
    kaggle: ThreadingHTTPServer, kernel: Path, working: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is fetched to outputs/, and its trained folds are sent as a dataset."""
    kaggle.files = {path.relative_to(working).as_posix(): path for path in working.rglob("*") if path.is_file()}
    files = [{"url": f"http://localhost/files/{name}", "fileName": name} for name in kaggle.files]
    kaggle.answers["ListKernelSessionOutput"] = {"files": files, "log": "ran"}
    monkeypatch.setattr(push, "ROOT", tmp_path / "home")
    assert "outputs/demo" in push.fetch_output(kernel, "demo")
    fetched = tmp_path / "home" / "outputs" / "demo"
    assert (fetched / "submission.csv").read_bytes() == (working / "submission.csv").read_bytes()
    with pytest.raises(GoodsError, match="there already"):
        push.fetch_output(kernel, "demo")
    with pytest.raises(GoodsError, match="no run 'other', but demo"):
        push.fetch_output(kernel, "other")

    kaggle.answers["StartBlobUpload"] = {"token": "t", "createUrl": "http://localhost/upload"}
    kaggle.answers["CreateDataset"] = {"status": "ok", "url": "https://kaggle", "ref": "me/demo-weights"}
    assert "WEIGHTS=me/demo-weights" in push.send_weights(kernel, "demo")
    [sent] = [body for name, body in kaggle.calls if name == "CreateDataset"]
    assert sent["isPrivate"] is True and sent["slug"] == "demo-weights"
    uploaded = {body["name"] for name, body in kaggle.calls if name == "StartBlobUpload"}
    assert {"params.yaml", "folds.parquet", "fold0.zip", "fold1.zip"} <= uploaded
    kaggle.answers["CreateDataset"] = {"status": "error", "error": "too many datasets"}
    with pytest.raises(GoodsError, match="too many datasets"):
        push.send_weights(kernel, "demo")


def scores_again(sample: Any, working: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version goes on from the attached output; a scoring re-run predicts another test set with its weights."""
    root = mount(sample, tmp_path / "again", "goods-classification", "siglip-tiny")
    shutil.copytree(working, root / "input" / "notebooks" / "me" / "goods-classification")
    shutil.copytree(ROOT / "params", tmp_path / "project" / "params")
    monkeypatch.setattr(gp, "ROOT", tmp_path / "project")
    attached = root / "input" / "notebooks" / "me" / "goods-classification" / "outputs" / "demo"
    session = in_kernel.prepare(root, "params/demo.yaml", folds=FOLDS, **SETTINGS)
    assert f'resume_from="{attached}"' in session.command and "--steps" not in session.command
    assert not session.p.run_dir.exists()

    table = root / "input" / "goods-classification" / "test.csv"
    test = pd.read_csv(table, dtype=str, keep_default_na=False)
    hidden = pd.concat([test.iloc[::-1], test.assign(id=[f"hidden{i}" for i in range(len(test))])])
    hidden.to_csv(table, index=False)  # larger, in another order, and half of its photos are missing
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    session = in_kernel.prepare(root, "params/demo.yaml", folds=FOLDS, **SETTINGS)
    assert "--folds" not in session.command
    assert session.command[session.command.index("--steps") + 1 :][:2] == ["ensemble", "submission"]
    goods = gu.read_goods(session.p)
    gu.ensemble_folds(session.p, goods)
    submission = gu.write_submission(session.p, goods)
    assert submission["id"].tolist() == hidden["id"].tolist()
    before = pd.read_csv(working / "submission.csv", dtype=str).set_index("id")["categories"]
    assert submission.set_index("id")["categories"].astype(str)[before.index].tolist() == before.tolist()


@pytest.mark.skipif("GOODS_SLOW" not in os.environ, reason="takes five minutes: GOODS_SLOW=1 runs it")
def test_stopped_in_time_and_gone_on_with_twice_it_ends_as_in_one_go(
    sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for path in [*ROOT.glob("goods_*.py"), ROOT / "pipeline.py", ROOT / "notebooks", ROOT / "params"]:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, project / path.name)
    monkeypatch.setattr(gp, "ROOT", project)
    settings = {"tune": "full", "n_folds": 2, "num_epochs": 150, "num_workers": 0, "learning_rate": 1e-3}

    def session(number: int, max_hours: float | None) -> Path:
        root = mount(sample, tmp_path / f"session{number}", "goods-classification", "siglip-tiny")
        if number:  # the output of the version before is attached
            before = tmp_path / f"session{number - 1}" / "working"
            shutil.copytree(before, root / "input" / "notebooks" / "me" / "goods-classification")
        in_kernel.run(in_kernel.prepare(root, "params/demo.yaml", folds=[0], max_hours=max_hours, **settings))
        return root / "working"

    began = time.time()
    whole = session(0, None).rename(tmp_path / "whole")
    fold = whole / "outputs" / "demo" / "fold0"
    trained = sum(json.loads(line)["seconds"] for line in (fold / "log.jsonl").read_text().splitlines())
    until_training = (fold / "metrics.json").stat().st_mtime - began - trained
    shutil.rmtree(tmp_path / "session0")
    sessions = 0
    while (
        not (working := session(sessions, (until_training + trained / 5) / 3600)).joinpath("submission.csv").is_file()
    ):
        assert sessions < 12
        sessions += 1
    assert sessions >= 2
    for name in ("submission.csv", "outputs/demo/submission_probs.csv"):
        assert (working / name).read_bytes() == (whole / name).read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# What is attached
# ---------------------------------------------------------------------------------------------------------------------

LAYOUTS = [
    ("goods-classification", "siglip-tiny"),
    ("competitions/goods-classification", "datasets/me/siglip-tiny"),
    ("goods-classification/data", "models/google/siglip/transformers/tiny/1"),
]


@pytest.mark.parametrize(("competition", "model"), LAYOUTS)
def test_inputs_are_found_by_their_files(sample: Any, tmp_path: Path, competition: str, model: str) -> None:
    root = mount(sample, tmp_path, competition, model) / "input"
    (root / "loop").symlink_to(root)
    found = in_kernel.find_inputs(root)
    assert found == {"competition": [root / competition], "model": [root / model], "run": []}
    assert in_kernel.the_competition(found["competition"], root) == root / competition
    assert in_kernel.the_model(found["model"], "siglip-tiny", root) == root / model


def test_a_hundred_thousand_files_are_found_within_seconds(tmp_path: Path) -> None:
    for folder, marker in (("a/train_images", ""), ("a/photos", ""), ("z/tables", "train.csv test.csv")):
        (tmp_path / folder).mkdir(parents=True)
        for name in marker.split():
            (tmp_path / folder / name).touch()
    for i in range(100_000):
        (tmp_path / "a" / ("photos" if i % 2 else "train_images") / f"{i}.jpg").touch()
    began = time.perf_counter()
    assert in_kernel.find_inputs(tmp_path)["competition"] == [tmp_path / "z" / "tables"]
    assert time.perf_counter() - began < 5


def test_what_is_not_attached_is_said(sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "params", tmp_path / "project" / "params")
    monkeypatch.setattr(gp, "ROOT", tmp_path / "project")
    root, inputs = tmp_path / "kaggle", tmp_path / "kaggle" / "input"
    inputs.mkdir(parents=True)

    def prepare(**given: Any) -> in_kernel.Session:
        return in_kernel.prepare(root, "params/demo.yaml", **given)

    with pytest.raises(GoodsError, match="no competition is attached"):
        prepare()
    shutil.copytree(sample.data, inputs / "goods")
    with pytest.raises(GoodsError, match="needs the weights of siglip-tiny, but none are attached"):
        prepare()
    assert in_kernel.prepare(root, "params/linear.yaml").p.kind == "linear"  # which needs no weights
    shutil.copytree(sample.model, inputs / "clip-large")
    with pytest.raises(GoodsError, match=r"those of another: .*clip-large"):
        prepare()
    shutil.copytree(sample.model, inputs / "siglip-tiny")
    session = prepare(num_epochs=2)
    assert session.p.run_dir == root / "working" / "outputs" / "demo"
    assert gp.resolve(session.p.model_name).resolve() == inputs / "siglip-tiny"
    shutil.copytree(sample.data, inputs / "retail")
    with pytest.raises(GoodsError, match="2 competitions are attached"):
        prepare()
    assert prepare(data_dir=str(inputs / "retail")).p.train_csv == str(inputs / "retail" / "train.csv")
    with pytest.raises(GoodsError, match="did you mean 'dropout'"):
        prepare(data_dir=str(inputs / "retail"), dropuot=0.1)
    monkeypatch.setattr(in_kernel, "FREE_GB", 1e9)
    with pytest.raises(GoodsError, match="GB left"):
        prepare()


# ---------------------------------------------------------------------------------------------------------------------
# Pushing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            {"error": "Maximum batch GPU session count of 2 reached."},
            "refused the push: Maximum batch GPU session count",
        ),
        ({"url": "u", "versionNumber": 1, "invalidCompetitionSources": ["goods"]}, "competition sources: ['goods']"),
        ({"url": "u", "versionNumber": 1, "invalidDatasetSources": ["me/siglip"]}, "dataset sources: ['me/siglip']"),
        (401, "Kaggle doesn't know you"),
        (403, "Kaggle doesn't let you"),
        (404, "nothing of that name"),
        (429, "too many calls"),
        (500, "a problem of its own"),
        ("hang up", "no connection to Kaggle"),
    ],
)
def test_a_refused_push_ends_in_a_sentence(
    kaggle: ThreadingHTTPServer, kernel: Path, tmp_path: Path, answer: Any, sentence: str
) -> None:
    kaggle.answers["SaveKernel"] = answer
    command = [sys.executable, "-m", "kaggle_kernel.push", "push", "--folder", kernel]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("push.py: "), done.stderr
    assert sentence in done.stderr and done.stderr.count("\n") == 1
    assert [name for name, _ in kaggle.calls] == ["SaveKernel"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id": f"{build.NO_USER}/goods-classification"}, "has no user name yet"),
        ({"title": "Goods"}, "give the slug goods-classification"),
        ({"machine_shape": "T4x2"}, "machine_shape is 'T4x2'"),
        ({"machine_shape": "NvidiaTeslaP100"}, "machine_shape"),
        ({"enable_gpus": True}, "nobody reads 'enable_gpus'"),
        ({"enable_internet": "false"}, "enable_internet is 'false', but must be true or false"),
        ({"enable_gpu": False}, "enable_gpu is false"),
        ({"dataset_sources": ["siglip"]}, "a list of owner/dataset"),
        ({"dataset_sources": []}, "no weights are attached"),
        ({"model_sources": ["google/siglip"]}, "owner/model/framework/variation/version"),
        ({"competition_sources": ["c/goods"]}, "the competition's slug"),
        ({"competition_sources": []}, "must name one competition"),
        ({"code_file": "kernel.ipynb"}, "must be 'main.ipynb'"),
    ],
)
def test_metadata_that_would_fail_is_not_pushed(
    kaggle: ThreadingHTTPServer, kernel: Path, changes: dict[str, Any], sentence: str
) -> None:
    gp.write_json(kernel / "kernel-metadata.json", build.make_metadata("me") | changes)
    with pytest.raises(GoodsError) as error:
        push.push(kernel)
    assert sentence in str(error.value) and not kaggle.calls


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"max_hours": 12.0}, "a session ends after 12"),
        ({"folds": [0, 5]}, r"folds \[5\] are not among the 5 folds"),
        ({"config": "params/none.yaml"}, "there is no config"),
        ({"settings": {"dropuot": 0.1}}, "did you mean 'dropout'"),
    ],
)
def test_parameters_that_would_fail_are_not_pushed(kernel: Path, parameters: dict[str, Any], sentence: str) -> None:
    defaults = {name: default for name, (default, _) in build.PARAMETERS.items()}
    (kernel / "main.ipynb").write_text(build.make_notebook(defaults | parameters))
    with pytest.raises(GoodsError, match=sentence):
        push.preflight(kernel)


def test_a_run_that_does_not_fit_is_not_pushed(sample: Any) -> None:
    defaults = {name: default for name, (default, _) in build.PARAMETERS.items()}
    settings = {"model_name": str(sample.model), "image_size": 64, "train_csv": str(sample.data / "train.csv")}
    [said] = push.check_plan(defaults | {"settings": settings})
    assert "hours on two" in said
    with pytest.raises(GoodsError, match="doesn't fit a T4"):
        push.check_plan(defaults | {"settings": settings | {"hidden_dim": 10_000_000}})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": "RUNNING"}, "running"),
        ({"status": "ERROR", "failureMessage": "out of disk"}, "out of disk"),
        (403, "no such kernel"),
    ],
)
def test_the_state_of_the_last_version(kaggle: ThreadingHTTPServer, kernel: Path, answer: Any, said: str) -> None:
    kaggle.answers["GetKernelSessionStatus"] = answer
    if said == "running":
        assert push.status(kernel) == "running"
    else:
        with pytest.raises(GoodsError, match=said):
            push.status(kernel)
