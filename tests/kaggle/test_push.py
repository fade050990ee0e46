"""Pushing: what is checked before, what is said when Kaggle refuses, and the datasets that are sent."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from backbones import say_how
from kaggle_server import Kaggle

from goods.errors import GoodsError
from goods.files import write_json, write_text
from goods.params import load_params
from kaggle_kernel import build, push
from kaggle_kernel.machines import MACHINES

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_the_backbone_becomes_a_dataset(kaggle: Kaggle, kernel: Path, sample: Any, tmp_path: Path) -> None:
    model = shutil.copytree(sample.model, tmp_path / "SigLIP-tiny")
    (model / "pytorch_model.bin").touch()  # pickle: nobody reads it
    say_how(model, {"pooling_mode": "cls"})
    defaults = {name: default for name, (default, _) in build.PARAMETERS.items()}
    text = build.make_notebook(defaults | {"settings": {"model_name": str(model)}})
    (kernel / "main.ipynb").write_text(text)
    kaggle.answers["StartBlobUpload"] = {"token": "t", "createUrl": "http://localhost/upload"}
    kaggle.answers["CreateDataset"] = {"status": "ok", "url": "https://kaggle", "ref": "me/siglip-tiny"}
    assert push.send_backbone(kernel).startswith("me/siglip-tiny is being made")
    [sent] = [body for name, body in kaggle.calls if name == "CreateDataset"]
    assert sent["isPrivate"] is True and sent["slug"] == "siglip-tiny"
    uploaded = {body["name"] for name, body in kaggle.calls if name == "StartBlobUpload"}
    assert uploaded == {file.name for file in sample.model.iterdir()} | {"modules.json", "1_Pooling.zip"}
    (model / "config.json").unlink(), (model / "model.safetensors").unlink()
    with pytest.raises(GoodsError, match="download the weights there first"):
        push.send_backbone(kernel)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            {"error": "Maximum batch GPU session count of 2 reached."},
            "as many GPU sessions as you may have are running or held: stop one",
        ),
        ({"url": "u", "versionNumber": 1, "invalidCompetitionSources": ["goods"]}, "competition sources: ['goods']"),
        (401, "Kaggle doesn't know you"),
        (403, "Kaggle doesn't let you"),
        (429, "too many calls"),
        (500, "a problem of its own"),
        ("hang up", "no connection to Kaggle"),
    ],
)
def test_a_refused_push_ends_in_a_sentence(kaggle: Kaggle, kernel: Path, answer: Any, sentence: str) -> None:
    kaggle.answers["SaveKernel"] = answer
    with pytest.raises(SystemExit) as ended:
        push.main(["push", "--folder", str(kernel)])
    said = str(ended.value)
    assert said.startswith("push.py: ") and sentence in said and "\n" not in said
    assert [name for name, _ in kaggle.calls] == ["SaveKernel"]


@pytest.mark.slow
def test_a_version_can_be_saved_and_not_run(kaggle: Kaggle, kernel: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(push, "preflight", lambda *_: [])
    monkeypatch.setattr(build, "check", lambda _: {name: default for name, (default, _) in build.PARAMETERS.items()})
    kaggle.answers["SaveKernel"] = {"ref": "/me/goods-classification", "url": "https://kaggle", "versionNumber": 7}
    push.main(["push", "--no-run", "--folder", str(kernel)])
    assert "Kernel version 7 successfully saved without running" in capsys.readouterr().out
    assert kaggle.calls[0][1]["kernelExecutionType"] == "QUICK_SAVE"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id": f"{build.NO_USER}/goods-classification"}, "has no user name yet"),
        ({"title": "Goods"}, "give the slug goods-classification"),
        ({"machine_shape": "T4x2"}, "machine_shape is 'T4x2'"),
        ({"machine_shape": "NvidiaTeslaP100"}, "which is retired"),
        ({"machine_shape": "NvidiaTeslaT4Highmem"}, "which only Kaggle's admins are given"),
        ({"enable_tpu": True}, "nothing here runs on a TPU"),
        ({"docker_image_pinning_type": "newest"}, "must be 'original'"),
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
        ({"max_hours": 12.0}, "a session ends after 12 .*set max_hours to 11.5 or less"),
        ({"folds": [0, 5]}, "there is no fold 5 in folds"),
        ({"config": "params/none.yaml"}, "config 'params/none.yaml' is none of those that the kernel has: params/"),
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


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_not_pushed(kaggle: Kaggle, sample: Any) -> None:
    defaults = {name: default for name, (default, _) in build.PARAMETERS.items()}
    settings = {"model_name": str(sample.model), "image_size": 64, "train_csv": str(sample.data / "train.csv")}
    quota = {"timeUsed": "100800s", "totalTimeAllowed": "108000s"}  # 28 of 30 hours
    kaggle.answers["GetAcceleratorQuotaStatistics"] = {"quotaRefreshTime": "2026-11-28T00:00:00Z", "gpuQuota": quota}
    said = push.check_plan(defaults | {"settings": settings}, MACHINES["NvidiaTeslaT4"], 12)
    assert "hours on 2 x T4" in said[0] and said[1] == "GPU quota: 2.0 hours are left until 2026-11-28T00:00"
    assert "this session may take 3.0: it ends when they do" in push.quota_notes(3.0)[0]
    linear = defaults | {"config": "params/linear.yaml"}
    assert push.check_plan(linear, MACHINES["NvidiaL4"], 12) == ["no plan was made: kind linear has none"]
    for more in ({"extra_embeddings": "models/none"}, {"kind": "embeddings", "embeddings_files": "models/none.npz"}):
        said = push.check_plan(defaults | {"settings": settings | more}, MACHINES["NvidiaTeslaT4"], 12)
        assert re.match(r"no plan was made: .*none(\.npz|/config\.json) is not here", said[0])
    with pytest.raises(GoodsError, match="doesn't fit one T4"):
        push.check_plan(defaults | {"settings": settings | {"hidden_dim": 10_000_000}}, MACHINES["NvidiaTeslaT4"], 12)
    with pytest.raises(GoodsError, match=r"a session ends after 9 .*set max_hours to 8\.5 or less"):
        push.check_plan(linear, MACHINES["NvidiaTeslaT4"], 9)


def test_folds_side_by_side_take_rounds_of_whole_folds() -> None:
    """Five folds that take 9.8 hours one after the other take three rounds on two cards, two on four."""
    plan = SimpleNamespace(params=load_params(n_folds=5), hours={"training": 9.0, "validation": 0.8})
    hours = {name: round(MACHINES[name].hours(plan), 1) for name in ("NvidiaTeslaT4", "NvidiaL4X1", "NvidiaL4")}
    assert hours == {"NvidiaTeslaT4": 5.9, "NvidiaL4X1": 9.8, "NvidiaL4": 3.9}
    refitted = SimpleNamespace(params=load_params(n_folds=5, refit=True), hours={"training": 12.0})
    assert MACHINES["NvidiaL4"].hours(refitted) == 6.0  # two rounds, and one more model


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": "RUNNING"}, "running"),
        ({"status": "ERROR", "failureMessage": "out of disk"}, "out of disk"),
        (403, "no such kernel"),
    ],
)
def test_the_state_of_the_last_version(kaggle: Kaggle, kernel: Path, capfd: Any, answer: Any, said: str) -> None:
    kaggle.answers["GetKernelSessionStatus"] = answer
    if said == "running":
        assert push.status(kernel, follow=True) == "running"
        assert "is running; its log:\nepoch 1 of 3\n" in capfd.readouterr().out
    else:
        with pytest.raises(GoodsError, match=said):
            push.status(kernel)


@pytest.mark.slow
def test_an_output_of_250_files_arrives_whole(kaggle: Kaggle, kernel: Path, tmp_path: Path, monkeypatch) -> None:
    """Kaggle lists an output page by page, each with a token for the next one, and at most so many files as asked."""
    names = ["outputs/big/run.json", *(f"outputs/big/fold{i % 5}/{i}.bin" for i in range(249))]
    for name in names:
        kaggle.files[name] = write_text(tmp_path / "kernel" / name, name)

    def page(asked: dict[str, Any]) -> dict[str, Any]:
        start = int(asked.get("pageToken") or 0)
        end = start + min(asked["pageSize"], 100)
        files = [{"url": f"http://localhost/files/{name}", "fileName": name} for name in names[start:end]]
        return {"files": files, "log": "ran"} | ({"nextPageToken": str(end)} if end < len(names) else {})

    kaggle.answers["ListKernelSessionOutput"] = page
    monkeypatch.setattr(push, "ROOT", tmp_path / "home")
    assert "outputs/big: 250 files" in push.fetch_output(kernel, "big")
    assert [asked.get("pageToken", "") for _, asked in kaggle.calls] == ["", "100", "200"]
    assert all((tmp_path / "home" / name).read_text() == name for name in names)
