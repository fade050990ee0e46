"""The README tells the truth: its commands run, its table of parameters is the parameters."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from goods.files import ROOT
from goods.params import Params

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.strip()
    for block in BLOCKS
    if not block.lstrip().startswith("# needs ")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.lstrip().startswith("#")
]
BY_MAKE = {"make demo", "make test", "make lab"}  # CI runs the first two; the third has a test of its own


def test_the_table_of_parameters_is_the_parameters():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)
    assert [name for name, *_ in rows] == list(Params.model_fields)
    for name, default, description in rows:
        field = Params.model_fields[name]
        assert description.replace("\\|", "|") == field.description, name
        shown = yaml.safe_load(default.strip("`")) if default.strip("`") else None
        if isinstance(field.default, tuple):
            shown = tuple(filter(None, (default.strip("`") or "").split(", ")))
        assert shown == field.default or default.strip("`") == str(field.default), name


def test_the_files_it_names_are_there():
    named = r"(?<![\w/])(?:params/[\w-]+\.yaml|notebooks/\w+\.ipynb|goods_\w+\.py|pipeline\.py)\b"
    for path in re.findall(named, README):
        assert (ROOT / path).is_file(), path


def test_the_chinese_readme_has_the_same_commands_and_sections():
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    commands = [re.sub(r"(?m)^ +", "", block) for block in re.findall(r"```bash\n(.*?)```", chinese, re.DOTALL)]
    assert commands == [re.sub(r"(?m)^ +", "", block) for block in BLOCKS]
    named = r"`((?:params|notebooks|outputs|models)/[\w./-]+|\w+\.(?:html|ipynb|csv|yaml|py|txt|json))`"
    assert set(re.findall(named, chinese)) <= set(re.findall(named, README))
    fields = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:=\w+)?`", chinese))
    assert fields - set(Params.model_fields) <= {"compressed_text", "compressed_status"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory, sample) -> Path:
    """The project in a folder of its own, with the sample, a shorter demo, and this Python as its .venv."""
    root = tmp_path_factory.mktemp("readme") / "goods"
    left_out = shutil.ignore_patterns(".venv*", ".git", "sample", "siglip-tiny", "outputs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, root, ignore=left_out)
    shutil.copytree(sample.data, root / "data" / "sample")
    shutil.copytree(sample.model, root / "models" / "siglip-tiny")
    config = root / "params" / "demo.yaml"
    config.write_text(config.read_text().replace("num_epochs: 12", "num_epochs: 3"))
    (root / ".venv").symlink_to(sys.prefix)
    (root / "outputs" / "demo" / "notebooks").mkdir(parents=True)
    return root


@pytest.mark.parametrize("command", [c for c in dict.fromkeys(COMMANDS) if c not in BY_MAKE])
def test_a_command_runs(copy, command):
    """Every command that needs nothing from the internet, on a smaller sample."""
    if command.startswith("make "):
        command = command.replace("make ", "make -o .venv/installed ", 1)  # as installed: that is what `make test` did
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(["bash", "-c", command], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_make_lab_serves(copy):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --allow-root --port={port} --IdentityProvider.token=t"
    command = ["make", "-o", ".venv/installed", "-o", "sample", "lab", f"ARGS={options}"]
    lab = subprocess.Popen(command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/api/contents/notebooks?token=t", timeout=5
                ) as page:
                    assert b"train.ipynb" in page.read()
                return
            except OSError:
                assert lab.poll() is None, lab.stdout.read().decode()
                time.sleep(0.5)
        pytest.fail("jupyter lab did not answer within a minute")
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(20)
