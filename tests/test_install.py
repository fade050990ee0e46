"""What an install takes: every version from the lock, no address in it; and the project's root stays a page to read."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from goods.files import ROOT

MOST_ENTRIES = 22  # of the root: what a newcomer sees first
KAGGLE = ROOT / "kaggle_kernel"
LOCK = ROOT / ".ci" / "requirements.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(file: Path) -> list[str]:
    """The lines of a requirements file or a lock, without their comments."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def locked(file: Path) -> dict[str, set[str]]:
    """{name: versions} of a lock; several where the Python or the system decides."""
    versions: dict[str, set[str]] = {}
    for line in requirements(file):
        name, version = re.fullmatch(r"([a-z0-9-]+)==([\w.!+]+)(?: ; .+)?", line).groups()
        versions.setdefault(name, set()).add(version)
    return versions


def test_the_root_is_a_page_to_read() -> None:
    listed = subprocess.run(["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert len(listed.stdout.splitlines()) <= MOST_ENTRIES, listed.stdout


@pytest.mark.parametrize(
    ("pinned", "lock"),
    [
        (requirements(ROOT / "requirements.txt"), LOCK),
        (PROJECT["project"]["optional-dependencies"]["dev"], LOCK),
        (requirements(KAGGLE / "requirements.txt"), KAGGLE / "requirements.lock"),
    ],
    ids=["run", "dev", "kaggle"],
)
def test_each_requirement_stands_in_the_lock_with_its_version(pinned: list[str], lock: Path) -> None:
    versions = locked(lock)
    for requirement in pinned:
        name, _, version = requirement.partition("==")
        assert name in versions, f"{name} is not in {lock.name}: make lock"
        assert not version or versions[name] == {version}, f"{name} is another one in {lock.name}: make lock"


def test_requirements_are_pinned_exactly() -> None:
    dev = PROJECT["project"]["optional-dependencies"]["dev"]
    base, *of_ray = requirements(ROOT / "requirements-ray.txt")
    assert base == "-r requirements.txt"
    for requirement in (*requirements(ROOT / "requirements.txt"), *of_ray, *dev):
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+", requirement), requirement


@pytest.mark.parametrize("lock", [LOCK, KAGGLE / "requirements.lock"], ids=["run", "kaggle"])
def test_a_lock_holds_no_address_and_no_path(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"://|@|\bindex\b|--|/(?:tmp|home|root|usr)\b", text)


def test_every_install_takes_the_lock() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if "$(PIP)" in line and "uv==" not in line]
    assert len(installs) == 2
    assert all(line.endswith("requirements.lock") for line in installs)
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["dependencies"][-1] == {"pip": ["-c .ci/requirements.lock", "-e ."]}


def test_what_measures_is_run_as_a_module():
    # By its path, the folder comes first where modules are looked for: benchmarks/cuda.py would hide NVIDIA's cuda.
    commands = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(PY) -m benchmarks.bench" in commands and not re.findall(r"\$\(PY\) benchmarks/", commands)


@pytest.mark.parametrize("name", ["bench", "predict", "cuda"])
def test_what_measures_can_be_loaded(name):
    importlib.import_module(f"benchmarks.{name}")
