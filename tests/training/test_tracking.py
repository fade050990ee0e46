"""wandb: what an offline run holds, and that no failure of it stops a training or costs it 5 seconds."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Trained, touch
from loopback import Handler, Server, serving

from goods.files import ROOT
from goods.members import open_run
from goods.params import Params
from goods.training.tracking import SETTINGS, NoTracker, Tracker, has_key, make_tracker, pick_mode, say_once
from goods_utils import fit_fold, refit

BLOCK = 32768
SECRET = "0123456789abcdef0123456789abcdef01234567"
FAILURES = {
    "raises when imported": "raise RuntimeError('no wandb today')",
    "hangs when imported": "import time; time.sleep(60)",
    "raises when begun": "def init(**_): raise OSError(28, 'No space left on device')\nSettings = dict",
}


def params(trained: Trained, outputs: Path, **given: Any) -> Params:
    p = trained.p.model_copy(update={"outputs_dir": str(outputs), "num_epochs": 2, "wandb_mode": "offline"} | given)
    shutil.copytree(Path(trained.p.outputs_dir) / "cache", outputs / "cache")
    open_run(p)
    return p


def records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind a head of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        size, kind = struct.unpack("<4xHB", data[at : at + 7])
        if not kind:
            break
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


def take_for_wandb(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another module of wandb's name, first on the path of its process."""
    (folder / "wandb.py").write_text(code)
    (folder / "goods").symlink_to(ROOT / "goods")
    monkeypatch.setattr("goods.training.tracking.ROOT", folder)


class Wandb(Server):
    """wandb's server, as far as its client needs it: keeps what is sent."""

    def __init__(self) -> None:
        super().__init__(Api)
        self.run: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.artifacts: list[str] = []
        self.exit_code: int | None = None
        self.keys: set[str] = set()


class Api(Handler):
    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/graphql":
            self.say(200, {"data": self._answer(json.loads(body))})
            return
        if self.path.endswith("/file_stream"):
            sent = json.loads(body)
            lines = sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history += map(json.loads, lines)
            self.server.exit_code = sent.get("exitcode", self.server.exit_code)
            self.server.keys.add(base64.b64decode(self.headers["Authorization"].split()[1]).decode())
        self.say(200, {})

    def do_PUT(self) -> None:
        self.server.files[self.path.removeprefix("/upload/")] = self.body()
        self.say(200, {})

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = asked.get("variables") or {}
        upload = {"id": "file", "uploadUrl": f"{self.server.url}/upload/", "uploadHeaders": [], "storagePath": "x"}
        match asked.get("operationName"):
            case "Viewer":
                return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            case "UpsertBucket":
                self.server.run |= {name: value for name, value in given.items() if value is not None}
                project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
                return {"upsertBucket": {"inserted": True, "bucket": given | {"id": "b", "project": project}}}
            case "CreateRunFiles":
                files = [upload | {"name": f, "uploadUrl": f"{upload['uploadUrl']}{f}"} for f in given["files"]]
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                self.server.artifacts.append(given["input"]["artifactCollectionName"])
                made = {"id": "a", "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
                return {"createArtifact": {"artifact": made}}
            case "CreateArtifactFiles":
                names = [file["name"] for file in given["input"]["artifactFiles"]]
                nodes = [upload | {"uploadUrl": f"{upload['uploadUrl']}artifact/{name}", "artifact": {"id": "a"}}
                         for name in names]  # fmt: skip
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest" as name:
                return {name[0].lower() + name[1:]: {"artifactManifest": {"id": "m", "file": upload}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
            case _:  # of a run or an artifact that isn't there yet
                return {"project": {"artifact": None}}


@pytest.mark.slow
def test_an_online_run_tells_the_server_all(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr("goods.training.tracking.WAIT_SECONDS", 60.0)
    with serving(Wandb()) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        p = params(trained, tmp_path, wandb_mode="online")
        metrics = fit_fold(p, trained.goods)
    assert (server.run["groupName"], server.run["displayName"]) == ("mini", "mini-fold0") and server.exit_code == 0
    assert json.loads(server.run["config"])["num_epochs"]["value"] == 2
    assert max(line.get("macro_f1", 0) for line in server.history) == pytest.approx(metrics["fused"]["macro_f1"])
    assert any("worst_errors" in line for line in server.history)
    assert "mini-fold0-predictions" in server.artifacts
    assert server.files["artifact/oof.parquet"] == (p.run_dir / "fold0" / "oof.parquet").read_bytes()
    assert server.keys == {f"api:{SECRET}"}
    assert not [f for f in p.run_dir.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()]


@pytest.mark.slow
def test_an_offline_run_holds_metrics_curves_errors_and_predictions(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr("goods.training.tracking.WAIT_SECONDS", 60.0)
    p = params(trained, tmp_path)
    metrics = fit_fold(p, trained.goods)
    (path,) = p.run_dir.glob("wandb/offline-run-*/*.wandb")
    history, config, kinds = [], {}, set()
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kinds.add(record.WhichOneof("record_type"))
        if record.HasField("run"):
            assert record.run.run_group == "mini" and record.run.display_name == "mini-fold0"
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        for item in record.history.item:
            history.append((item.key or ".".join(item.nested_key), json.loads(item.value_json)))
    logged = [value for key, value in history if key == "macro_f1"]
    assert len(logged) == 2 and max(logged) == pytest.approx(metrics["fused"]["macro_f1"])
    assert config["num_epochs"] == 2 and "outputs_dir" not in config
    assert {"loss", "worst_errors"} <= {key.split(".")[0] for key, _ in history} and "artifact" in kinds
    media = {f.name.split("_table")[0].split("_")[0] for f in path.parent.glob("files/media/table/*.json")}
    assert {"confusion", "roc", "pr", "worst"} <= media
    assert list(path.parent.glob("files/media/images/worst_photos*"))
    capsys.readouterr()
    refit(p, trained.goods)  # nothing of it is scored, and nothing fails for that
    assert "wandb" not in capsys.readouterr().out and len(list(p.run_dir.glob("wandb/offline-run-*"))) == 2
    assert not [f for f in p.run_dir.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_wandb_costs_at_most_five_seconds(
    failure: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    take_for_wandb(FAILURES[failure], tmp_path, monkeypatch)
    p = params(trained, tmp_path / "outputs")
    began = time.monotonic()
    tracker = make_tracker(p, "0123abcd")
    for step in range(5000):
        tracker.log({"step": step, "loss": 1.0})
    tracker.finish(metrics={}, oof="", classes=[], errors=[])
    assert time.monotonic() - began < 5
    said = capsys.readouterr().out
    assert said.count("goes on without it") == 1, said
    assert ("no wandb today" in said, "No space left" in said) == ("import" in failure and "raises" in failure,
                                                                   "begun" in failure)  # fmt: skip
    if tracker.process.poll() is None:
        tracker.process.kill()


@pytest.mark.slow
def test_a_full_disk_or_a_file_in_the_way_stops_nothing(trained: Trained, tmp_path: Path, capsys) -> None:
    p = params(trained, tmp_path)
    (p.run_dir / "wandb").write_text("in the way")
    assert fit_fold(p, trained.goods)["fused"]["macro_f1"] > 0
    assert capsys.readouterr().out.count("the run goes on without it") == 1


def test_a_key_without_a_network_is_offline_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert pick_mode("auto") == "online"
        monkeypatch.delenv("WANDB_API_KEY")
        assert pick_mode("auto") == "offline"  # the server's address is a setting
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert pick_mode("online") == pick_mode("auto") == "offline"
    assert pick_mode("disabled") == "disabled"


def test_without_key_and_settings_wandb_is_off_and_a_line_says_so(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("WANDB_MODE", *SETTINGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("the network was asked"))
    say_once.cache_clear()
    p = trained.p.model_copy(update={"outputs_dir": str(tmp_path)})
    assert [type(make_tracker(p, "0123abcd")) for _ in range(2)] == [NoTracker, NoTracker]
    assert capsys.readouterr().out == "wandb is off; `wandb login` or wandb_mode=offline turns it on\n"
    assert not p.run_dir.exists()
    settings = touch(Path.home(), ".config/wandb/settings") / ".config" / "wandb" / "settings"
    assert pick_mode("auto") == "offline"
    settings.unlink()
    assert (pick_mode("auto"), pick_mode("auto", named=True)) == ("disabled", "offline")


@pytest.mark.slow
def test_a_wandb_that_fails_later_is_told_of_by_the_next_fold(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    take_for_wandb("import time; time.sleep(1); raise RuntimeError('no wandb today')", tmp_path, monkeypatch)
    monkeypatch.setattr("goods.training.tracking.WAIT_SECONDS", 0.1)
    p = params(trained, tmp_path / "outputs")
    tracker = make_tracker(p, "0123abcd")
    tracker.finish(metrics={})
    assert capsys.readouterr().out == ""
    tracker.process.wait(30)
    make_tracker(p, "0123abcd").process.kill()
    assert "wandb failed after an earlier fold: RuntimeError: no wandb today" in capsys.readouterr().out


@pytest.mark.slow
def test_a_server_that_never_answers_costs_at_most_five_seconds(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The real client, with a key, against a port that takes connections and says nothing."""
    p = params(trained, tmp_path, wandb_mode="online")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
        began = time.monotonic()
        tracker = make_tracker(p, "0123abcd")
        assert isinstance(tracker, Tracker)
        tracker.log({"loss": 1.0})
        tracker.finish(metrics={}, oof="", classes=[], errors=[])
        assert time.monotonic() - began < 5
        assert capsys.readouterr().out == ""  # wandb has taken all, and goes on by itself
        if tracker.process.poll() is None:
            os.killpg(tracker.process.pid, signal.SIGKILL)
            tracker.process.wait(10)


def test_a_netrc_in_another_encoding_is_no_key(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_bytes("machine api.wandb.ai login käse password x".encode("latin-1") + b"\x81\xff")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not has_key() and pick_mode("online") == "offline"
