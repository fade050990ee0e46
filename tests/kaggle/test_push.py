"""Pushing: what is checked before, what is said when Kaggle refuses, and the datasets that are sent."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from backbones import say_how
from kaggle_server import Kaggle

from goods.errors import GoodsError
from goods.files import ROOT, write_json
from kaggle_kernel import build, push

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


@pytest.mark.slow
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
