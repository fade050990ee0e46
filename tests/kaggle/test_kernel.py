"""The Kaggle kernel as Kaggle gets it: pushed by the real client to a server on this machine, and run from there."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from kaggle_server import FOLDS, LAYOUTS, SETTINGS, Kaggle, mount, on_demand, run_here, run_offline

from goods.errors import GoodsError
from goods.files import ROOT
from goods.predictor import load_predictor
from goods.run import Run
from kaggle_kernel import build, in_kernel, push

IMAGE = ROOT / ".venv-kaggle" / "bin" / "python"  # with the versions of Kaggle's image
needs_image = pytest.mark.skipif(not IMAGE.exists(), reason="needs .venv-kaggle: make test-kaggle makes it")


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
        text.replace("from goods.errors import GoodsError", "from goods.errors import *", 1),
        text.replace("folds = ", "fold = "),
    ):
        (kernel / "main.ipynb").write_text(changed)
        with pytest.raises(GoodsError, match="make kernel"):
            build.check(kernel)


IMAGE_ALONE = SETTINGS | {"kind": "image"}  # three notebooks, where kind dual has five; the whole is on demand


@pytest.fixture(scope="module")
def here(sample: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that the kernel makes, without notebooks."""
    return Run.of(run_here(sample, tmp_path_factory.mktemp("here"), FOLDS, **SETTINGS))


@pytest.mark.slow
def test_the_pushed_notebook_runs_offline_to_the_local_submission(
    pushed: dict[str, Any], kaggle: Kaggle, kernel: Path, sample: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert (pushed["slug"], pushed["machineShape"]) == ("me/goods-classification", "NvidiaTeslaT4")
    assert pushed["enableGpu"] is True and pushed["enableInternet"] is False and pushed["isPrivate"] is True
    assert pushed["competitionDataSources"] == ["goods-classification"]
    assert pushed["datasetDataSources"] == ["me/siglip-so400m-patch14-384"]

    here = Run.of(run_here(sample, tmp_path / "here", FOLDS, **IMAGE_ALONE))
    working = mount(sample, tmp_path / "kaggle", *LAYOUTS[0]) / "working"
    assert not run_offline(pushed["text"], tmp_path / "kaggle", folds=FOLDS, settings=IMAGE_ALONE)
    assert (working / "submission.csv").read_bytes() == here.submission.read_bytes()
    assert sorted(path.name for path in working.iterdir()) == ["outputs", "submission.csv"]
    assert sorted(path.name for path in (working / "outputs").iterdir()) == ["demo", "index.html"]  # no caches

    comes_home(kaggle, kernel, working, tmp_path, monkeypatch, {"model_name": sample.model})
    goes_on(sample, working, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "layout"),
    [
        *(pytest.param(IMAGE, k, marks=[needs_image, on_demand], id=f"image-{k}") for k in (0, 1, 2)),
        *(pytest.param(Path(sys.executable), k, marks=on_demand, id=f"pinned-{k}") for k in (0, 1, 2)),
    ],
)
def test_it_runs_with_kaggles_versions_and_in_every_layout(
    python: Path, layout: int, pushed: dict[str, Any], sample: Any, here: Run, tmp_path: Path
) -> None:
    working = mount(sample, tmp_path / "kaggle", *LAYOUTS[layout]) / "working"
    assert not run_offline(pushed["text"], tmp_path / "kaggle", python, folds=FOLDS, settings=SETTINGS)
    recorded = Run(working / "outputs" / "demo").record()["environment"]
    assert (recorded["transformers"] == "5.0.0") == (python == IMAGE)
    assert (working / "submission.csv").read_bytes() == here.submission.read_bytes()


@on_demand
@pytest.mark.slow
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
            began = time.monotonic()
            said = run_offline(pushed["text"], root, folds=[0], settings=settings,
                               max_hours=None if last else limit / 3600)  # fmt: skip
            if "before the first step" not in said:
                break
            starting = max(starting + 2, time.monotonic() - began - 3)  # a slow machine: it got as far as that step
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
    return sum(json.loads(line)["seconds"] for line in Run(run_dir).fold(0).latest_log.read_text().splitlines())


def comes_home(
    kaggle: Kaggle,
    kernel: Path,
    working: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: dict[str, Path],
) -> None:
    """The output is fetched to outputs/, and its models are sent as a dataset."""
    kaggle.files = {path.relative_to(working).as_posix(): path for path in working.rglob("*") if path.is_file()}
    files = [{"url": f"http://localhost/files/{name}", "fileName": name} for name in kaggle.files]
    kaggle.answers["ListKernelSessionOutput"] = {"files": files, "log": "ran"}
    monkeypatch.setattr(push, "ROOT", tmp_path / "home")
    assert "outputs/demo" in push.fetch_output(kernel, "demo")
    fetched = tmp_path / "home" / "outputs" / "demo"
    assert not list(fetched.rglob("*.safetensors"))  # most of an output, on demand
    assert "make kaggle-output" not in push.fetch_output(kernel, "demo", weights=True)
    assert all((fetched / path.relative_to(working / "outputs" / "demo")).is_file()
               for path in (working / "outputs" / "demo").rglob("*") if path.is_file())  # fmt: skip
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
    files = {"run.json", "labels.json", "export.json", "README.md", "ensemble.zip", "fold0.zip", "fold1.zip"}
    assert uploaded == files
    stage = push.STAGE.with_name("kaggle-dataset")
    assert load_predictor(stage, models).fingerprint == load_predictor(fetched, models).fingerprint
    kaggle.answers["GetDatasetStatus"] = {"status": "ready"}
    kaggle.answers["CreateDatasetVersion"] = {"status": "ok", "url": "https://kaggle", "ref": "me/demo-weights"}
    assert "WEIGHTS=me/demo-weights" in push.send_weights(kernel, "demo")
    assert "CreateDatasetVersion" in [name for name, _ in kaggle.calls]
    del kaggle.answers["GetDatasetStatus"]
    kaggle.answers["CreateDataset"] = {"status": "error", "error": "too many datasets"}
    with pytest.raises(GoodsError, match="too many datasets"):
        push.send_weights(kernel, "demo")


def goes_on(sample: Any, working: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version goes on from the attached output."""
    root = mount(sample, tmp_path / "again", *LAYOUTS[0], working)
    shutil.copytree(ROOT / "params", tmp_path / "project" / "params")
    monkeypatch.setattr("goods.files.ROOT", tmp_path / "project")
    attached = root / "input" / "notebooks" / "me" / "goods-classification" / "outputs" / "demo"
    session = in_kernel.prepare(root, "params/demo.yaml", folds=FOLDS, **IMAGE_ALONE)
    assert f'resume_from="{attached}"' in session.command and "--steps" not in session.command
    assert not session.p.run_dir.exists()
