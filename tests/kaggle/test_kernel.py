"""The Kaggle kernel as Kaggle gets it: pushed by the real client to a server on this machine, and run from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import yaml
from loopback import Handler, Server, serving

from goods.data.tables import read_goods
from goods.ensemble.folds import ensemble_folds
from goods.ensemble.submission import write_submission
from goods.errors import GoodsError
from goods.files import ROOT, resolve, write_json, write_text
from goods.params import Params, load_params
from goods.run import open_run
from goods.training.loop import fit_fold
from goods_utils import fit_baseline
from kaggle_kernel import build, in_kernel, push

SETTINGS = {"tune": "head", "n_folds": 3, "num_epochs": 40, "num_workers": 0}
FOLDS = [0, 1]
LAYOUTS = [
    ("goods-classification", "siglip-tiny"),
    ("competitions/goods-classification", "models/me/siglip/transformers/tiny/1"),
    ("goods-classification/data", "datasets/me/siglip-tiny"),
]
IMAGE = ROOT / ".venv-kaggle" / "bin" / "python"  # with the versions of Kaggle's image
slow = pytest.mark.skipif("GOODS_SLOW" not in os.environ, reason="takes 45 seconds: GOODS_SLOW=1 runs it")
needs_image = pytest.mark.skipif(not IMAGE.exists(), reason="needs .venv-kaggle: make test-kaggle makes it")
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


class Api(Handler):
    """Answers the command line's calls with what the server was told to say; keeps what it was sent."""

    def do_POST(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.calls.append((name, json.loads(self.body())))
        answer = self.server.answers.get(name, 404)
        if answer == "hang up":
            self.close_connection = True
        elif isinstance(answer, int):
            self.say(answer, {"code": answer, "message": "no"})
        else:
            self.say(200, answer)

    def do_GET(self) -> None:
        file = self.server.files[self.path.partition("/files/")[2]]
        self.say(200, file.read_bytes(), {"Content-Type": "application/octet-stream"})

    def do_PUT(self) -> None:
        self.body()
        self.say(200, {})


class Kaggle(Server):
    """What the command line takes for Kaggle."""

    def __init__(self) -> None:
        super().__init__(Api)
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, Any]] = []
        self.files: dict[str, Path] = {}


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    """A server that the command line takes for Kaggle, and a user known to it."""
    with serving(Kaggle()) as server:
        environment = {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "me", "KAGGLE_KEY": "k",
            "KAGGLE_CONFIG_DIR": str(tmp_path / ".kaggle"), "http_proxy": server.url,
        }  # fmt: skip
        for name in [n for n in os.environ if n.upper().startswith("KAGGLE_") or n.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(push, "STAGE", tmp_path / "stage" / "kaggle")
        yield server


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The kernel's folder with a user name filled in."""
    folder = tmp_path / "kaggle_kernel"
    folder.mkdir()
    shutil.copy(ROOT / "kaggle_kernel" / "main.ipynb", folder)
    write_json(folder / "kernel-metadata.json", build.make_metadata("me"))
    return folder


@pytest.fixture
def pushed(kaggle: Kaggle, kernel: Path) -> dict[str, Any]:
    """What the server was sent by a push."""
    kaggle.answers["SaveKernel"] = {"ref": "/me/goods-classification", "url": "https://kaggle", "versionNumber": 7}
    assert "Kernel version 7 successfully pushed" in push.push(kernel)
    [(_, sent)] = kaggle.calls
    return sent


def mount(sample: Any, root: Path, competition: str, model: str, output: Path | None = None) -> Path:
    """A fake /kaggle with the sample as its input, and the output of an earlier version; returns it."""
    shutil.copytree(sample.data, root / "input" / competition)
    shutil.copytree(sample.model, root / "input" / model)
    if output:
        shutil.copytree(output, root / "input" / "notebooks" / "me" / "goods-classification")
    return root


def run_offline(text: str, root: Path, python: Path | str = sys.executable, **parameters: Any) -> str:
    """Runs a pushed notebook in an empty folder, without network and without this project in sight.

    Returns what it said when it failed, else nothing.
    """
    aside = root.with_name(f"{root.name}-aside")
    write_text(aside / "pushed.ipynb", text)
    write_text(aside / "refuse" / "sitecustomize.py", REFUSE)
    write_text(aside / "parameters.yaml", yaml.safe_dump({"config": "params/demo.yaml"} | parameters))
    (aside / "empty").mkdir()
    command = [python, "-m", "papermill", aside / "pushed.ipynb", aside / "done.ipynb", "-k", "python3"]
    command += ["-f", aside / "parameters.yaml", "--no-progress-bar"]
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0:
        command = ["unshare", "-rn", python, "-c", OFFLINE, *command]
    environment = os.environ | {"GOODS_KAGGLE_ROOT": str(root), "PYTHONPATH": str(aside / "refuse")}
    environment["JUPYTER_PATH"] = str(Path(python).parents[1] / "share" / "jupyter")
    done = subprocess.run(command, cwd=aside / "empty", env=environment, capture_output=True, text=True, timeout=500)
    assert not list((aside / "empty").iterdir())
    return done.stderr if done.returncode else ""


def run_here(sample: Any, outputs: Path, folds: list[int], **settings: Any) -> Params:
    """The same run without notebooks."""
    p = load_params("params/demo.yaml", **settings, data_dir=str(sample.data), model_name=str(sample.model),
                       outputs_dir=str(outputs))  # fmt: skip
    open_run(p)
    goods = read_goods(p)
    for fold in folds:
        fit_fold(p.model_copy(update={"fold": fold}), goods)
    ensemble_folds(p, goods)
    write_submission(p, goods)
    return p


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
    pushed: dict[str, Any], kaggle: Kaggle, kernel: Path, sample: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert (pushed["slug"], pushed["machineShape"]) == ("me/goods-classification", "NvidiaTeslaT4")
    assert pushed["enableGpu"] is True and pushed["enableInternet"] is False and pushed["isPrivate"] is True
    assert pushed["competitionDataSources"] == ["goods-classification"]
    assert pushed["datasetDataSources"] == ["me/siglip-so400m-patch14-384"]

    working = mount(sample, tmp_path / "kaggle", *LAYOUTS[0]) / "working"
    assert not run_offline(pushed["text"], tmp_path / "kaggle", folds=FOLDS, settings=SETTINGS)
    p = run_here(sample, tmp_path / "here", FOLDS, **SETTINGS)
    assert (working / "submission.csv").read_bytes() == (p.run_dir / "submission.csv").read_bytes()
    assert sorted(path.name for path in working.iterdir()) == ["outputs", "submission.csv"]
    assert [path.name for path in (working / "outputs").iterdir()] == ["demo"]  # no caches

    comes_home(kaggle, kernel, working, tmp_path, monkeypatch)
    scores_again(sample, working, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("python", "layout"),
    [
        pytest.param(IMAGE, 1, marks=needs_image, id="image-1"),
        *(pytest.param(IMAGE, k, marks=[needs_image, slow], id=f"image-{k}") for k in (0, 2)),
        *(pytest.param(Path(sys.executable), k, marks=slow, id=f"pinned-{k}") for k in (1, 2)),
    ],
)
def test_it_runs_with_kaggles_versions_and_in_every_layout(
    python: Path, layout: int, pushed: dict[str, Any], sample: Any, tmp_path: Path
) -> None:
    working = mount(sample, tmp_path / "kaggle", *LAYOUTS[layout]) / "working"
    assert not run_offline(pushed["text"], tmp_path / "kaggle", python, folds=FOLDS, settings=SETTINGS)
    recorded = json.loads((working / "outputs" / "demo" / "environment.json").read_text())
    assert (recorded["transformers"] == "5.0.0") == (python == IMAGE)
    p = run_here(sample, tmp_path / "here", FOLDS, **SETTINGS)
    assert (working / "submission.csv").read_bytes() == (p.run_dir / "submission.csv").read_bytes()


def test_stopped_in_time_and_gone_on_with_twice_it_ends_as_in_one_go(
    pushed: dict[str, Any], sample: Any, tmp_path: Path
) -> None:
    settings = {"tune": "full", "n_folds": 2, "num_epochs": 70, "num_workers": 0, "learning_rate": 1e-3}
    whole = run_here(sample, tmp_path / "here", [0], **settings).run_dir
    training = seconds_trained(whole)
    starting, done, output = 20.0, 0.0, None  # seconds until the first step: a guess at first
    for version, layout in enumerate(LAYOUTS):
        last = version == len(LAYOUTS) - 1
        while True:
            limit = starting + (training - done) / 3
            root = mount(sample, tmp_path / f"kaggle{version}", *layout, output)
            said = run_offline(pushed["text"], root, folds=[0], settings=settings,
                               max_hours=None if last else limit / 3600)  # fmt: skip
            if "before the first step" not in said:
                break
            starting *= 1.25  # a slow machine
            shutil.rmtree(root), shutil.rmtree(root.with_name(f"{root.name}-aside"))
        assert not said
        output = root / "working"
        assert (output / "submission.csv").is_file() == last
        done = seconds_trained(output / "outputs" / "demo")
        starting = limit - done
    for name in ("submission.csv", "submission_probs.csv"):
        assert (output / "outputs" / "demo" / name).read_bytes() == (whole / name).read_bytes()


def seconds_trained(run_dir: Path) -> float:
    """What the epochs of fold 0 took."""
    return sum(json.loads(line)["seconds"] for line in (run_dir / "fold0" / "log.jsonl").read_text().splitlines())


def comes_home(kaggle: Kaggle, kernel: Path, working: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    kaggle.answers["GetDatasetStatus"] = {"status": "ready"}
    kaggle.answers["CreateDatasetVersion"] = {"status": "ok", "url": "https://kaggle", "ref": "me/demo-weights"}
    assert "WEIGHTS=me/demo-weights" in push.send_weights(kernel, "demo")
    assert "CreateDatasetVersion" in [name for name, _ in kaggle.calls]
    del kaggle.answers["GetDatasetStatus"]
    kaggle.answers["CreateDataset"] = {"status": "error", "error": "too many datasets"}
    with pytest.raises(GoodsError, match="too many datasets"):
        push.send_weights(kernel, "demo")


def test_the_backbone_becomes_a_dataset(kaggle: Kaggle, kernel: Path, sample: Any, tmp_path: Path) -> None:
    model = shutil.copytree(sample.model, tmp_path / "SigLIP-tiny")
    (model / "pytorch_model.bin").touch()  # pickle: nobody reads it
    defaults = {name: default for name, (default, _) in build.PARAMETERS.items()}
    text = build.make_notebook(defaults | {"settings": {"model_name": str(model)}})
    (kernel / "main.ipynb").write_text(text)
    kaggle.answers["StartBlobUpload"] = {"token": "t", "createUrl": "http://localhost/upload"}
    kaggle.answers["CreateDataset"] = {"status": "ok", "url": "https://kaggle", "ref": "me/siglip-tiny"}
    assert push.send_backbone(kernel).startswith("me/siglip-tiny is being made")
    [sent] = [body for name, body in kaggle.calls if name == "CreateDataset"]
    assert sent["isPrivate"] is True and sent["slug"] == "siglip-tiny"
    uploaded = {body["name"] for name, body in kaggle.calls if name == "StartBlobUpload"}
    assert uploaded == {file.name for file in sample.model.iterdir()}
    (model / "config.json").unlink(), (model / "model.safetensors").unlink()
    with pytest.raises(GoodsError, match="download the weights there first"):
        push.send_backbone(kernel)


def scores_again(sample: Any, working: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version goes on from the attached output; a scoring re-run predicts another test set with its weights."""
    root = mount(sample, tmp_path / "again", *LAYOUTS[0], working)
    shutil.copytree(ROOT / "params", tmp_path / "project" / "params")
    monkeypatch.setattr("goods.files.ROOT", tmp_path / "project")
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
    goods = read_goods(session.p)
    ensemble_folds(session.p, goods)
    submission = write_submission(session.p, goods)
    assert submission["id"].tolist() == hidden["id"].tolist()
    before = pd.read_csv(working / "submission.csv", dtype=str).set_index("id")["categories"]
    assert submission.set_index("id")["categories"].astype(str)[before.index].tolist() == before.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# What is attached
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("competition", "model"), LAYOUTS)
def test_inputs_are_found_by_their_files(sample: Any, tmp_path: Path, competition: str, model: str) -> None:
    root = mount(sample, tmp_path, competition, model) / "input"
    (root / "loop").symlink_to(root)
    found = in_kernel.find_inputs(root)
    assert found == {"competition": [root / competition], "model": [root / model], "run": []}
    assert in_kernel.the_competition(found["competition"], root) == root / competition
    assert in_kernel.the_model(found["model"], "siglip-tiny", root) == root / model


def test_attached_runs_are_blended(sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = mount(sample, tmp_path / "kaggle", *LAYOUTS[1])
    with pytest.raises(GoodsError, match="needs the run 'demo', and no attached output has it"):
        in_kernel.prepare(root, "params/blend.yaml", runs=["demo", "words"])
    run_here(sample, tmp_path / "first", [0, 1, 2], **SETTINGS)
    p = load_params("params/linear.yaml", run="words", data_dir=str(sample.data), n_folds=3,
                       outputs_dir=str(tmp_path / "second"))  # fmt: skip
    open_run(p)
    fit_baseline(p, read_goods(p))
    ensemble_folds(p, read_goods(p))
    for name in ("first", "second"):
        shutil.rmtree(tmp_path / name / "cache", ignore_errors=True)
        shutil.copytree(tmp_path / name, root / "input" / "notebooks" / "me" / name / "outputs")
    session = in_kernel.prepare(root, "params/blend.yaml", runs=["demo", "words"], n_folds=3, blend_method="mean")
    assert 'runs=["demo", "words"]' in session.command
    open_run(session.p)
    assert set(ensemble_folds(session.p, read_goods(session.p)).table.index) > {"demo/fused", "words/text"}
    shutil.rmtree(root / "working" / "outputs" / "cache", ignore_errors=True)
    in_kernel.run(session._replace(command=[sys.executable, "-c", ""]))
    assert [path.name for path in (root / "working" / "outputs").iterdir()] == ["blend"]


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
    monkeypatch.setattr("goods.files.ROOT", tmp_path / "project")
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
    assert resolve(session.p.model_name).resolve() == inputs / "siglip-tiny"
    shutil.copytree(sample.data, inputs / "retail")
    with pytest.raises(GoodsError, match="2 competitions are attached"):
        prepare()
    assert prepare(data_dir=str(inputs / "retail")).p.train_csv == str(inputs / "retail" / "train.csv")
    with pytest.raises(GoodsError, match="did you mean 'dropout'"):
        prepare(data_dir=str(inputs / "retail"), dropuot=0.1)
    monkeypatch.setattr(in_kernel, "FREE_GB", 1e9)
    with pytest.raises(GoodsError, match="GB left"):
        prepare()


# Kaggle's image has such a module, which asks a server that only a kernel reaches.
SECRETS = """
import time
class UserSecretsClient:
    def get_secret(self, label):
        assert label == "WANDB_API_KEY"
        {does}
"""


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("return ' 0123456789abcdef\\n'", "wandb: online, with the secret WANDB_API_KEY"),
        ("raise ConnectionError('no such secret')", "wandb: offline, no secret WANDB_API_KEY is attached"),
        ("time.sleep(60)", "wandb: offline, no secret"),
        (None, "wandb: offline, no secret"),  # not on Kaggle
    ],
)
def test_the_key_of_wandb_comes_from_kaggles_secrets(
    kaggle: Kaggle, does: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if does:
        (tmp_path / "kaggle_secrets.py").write_text(SECRETS.format(does=does))
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(in_kernel, "SECRET_SECONDS", 0.5)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", kaggle.url)  # any server will do: there is a network
    command = [sys.executable, "-c", "import os; print(len(os.environ.get('WANDB_API_KEY', '')), 'characters')"]
    p = load_params(outputs_dir=str(tmp_path / "working" / "outputs"))
    in_kernel.run(in_kernel.Session(p, command, tmp_path / "working", tmp_path / "temp"))
    sys.modules.pop("kaggle_secrets", None)
    out = capsys.readouterr().out
    assert out.startswith(said) and f"{16 if 'online' in said else 0} characters" in out
    assert "0123456789abcdef" not in out and "WANDB_API_KEY" not in os.environ


def test_no_secret_is_asked_for_without_a_network(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(in_kernel, "_read_secret", lambda: pytest.fail("asked"))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert in_kernel.wandb_environment(load_params()) == {}
    assert capsys.readouterr().out == "wandb: offline\n"


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
    kaggle: Kaggle, kernel: Path, tmp_path: Path, answer: Any, sentence: str
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
    kaggle: Kaggle, kernel: Path, changes: dict[str, Any], sentence: str
) -> None:
    write_json(kernel / "kernel-metadata.json", build.make_metadata("me") | changes)
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


def test_the_run_of_the_kernel(kernel: Path) -> None:
    defaults = {name: default for name, (default, _) in build.PARAMETERS.items()}
    for parameters, run in (
        ({}, "siglip-so400m-lora"),
        ({"run": "mine", "debug": True}, "mine-debug"),
        ({"config": "params/linear.yaml"}, "linear"),
    ):
        (kernel / "main.ipynb").write_text(build.make_notebook(defaults | parameters))
        assert push.kernel_run(kernel) == run


def test_a_run_that_does_not_fit_is_not_pushed(sample: Any) -> None:
    defaults = {name: default for name, (default, _) in build.PARAMETERS.items()}
    settings = {"model_name": str(sample.model), "image_size": 64, "train_csv": str(sample.data / "train.csv")}
    [said] = push.check_plan(defaults | {"settings": settings})
    assert "hours on two" in said
    assert push.check_plan(defaults | {"config": "params/linear.yaml"}) == ["no plan was made: kind linear has none"]
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
def test_the_state_of_the_last_version(kaggle: Kaggle, kernel: Path, answer: Any, said: str) -> None:
    kaggle.answers["GetKernelSessionStatus"] = answer
    if said == "running":
        assert push.status(kernel) == "running"
    else:
        with pytest.raises(GoodsError, match=said):
            push.status(kernel)
