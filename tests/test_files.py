"""Files: written whole or not at all, stamped by what changes, and found from the project's root."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from conftest import touch

from goods.errors import GoodsError, UnwritableError
from goods.files import ROOT, atomic_path, file_stamp, resolve, sentence, write_json, write_text
from goods.params import load_params


def test_a_relative_path_means_the_project_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("outputs") == ROOT / "outputs"
    assert resolve(tmp_path) == tmp_path
    assert resolve("~/data") == Path.home() / "data"
    with pytest.raises(GoodsError, match="~nobody-here/data: "):
        resolve("~nobody-here/data")
    assert load_params("params/head.yaml").run == "head"


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_written_whole(tmp_path):
    path = write_text(tmp_path / "new" / "deep" / "a.txt", "Straße\n")
    assert path.read_bytes() == "Straße\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    write_json(tmp_path / "a.json", {"name": "café", "n": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "café", "n": [1, 2]}
    assert files_in(tmp_path / "new" / "deep") == ["a.txt"]


def test_a_failure_leaves_the_earlier_file_and_no_litter(tmp_path):
    path = write_text(tmp_path / "a.txt", "before")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent  # a rename within one file system
        assert path.read_text() == "before"
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "before"
    assert files_in(tmp_path) == ["a.txt"]


def test_a_failure_leaves_no_new_file(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text(str(1 / 0))
    assert files_in(tmp_path) == []


REFUSALS = [
    (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: .*a.json can't be written; what was there"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota of the disk is used up: .*a.json can't be written"),
    (OSError(errno.EROFS, "Read-only file system"), "the disk is read-only: .*Name a folder that can be written"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full: .*a.json can't be written"),
    (RuntimeError("I/O error: Read-only file system (os error 30)"), "the disk is read-only: .*a.json can't be"),
]


@pytest.mark.parametrize(("error", "words"), REFUSALS, ids=[str(error) for error, _ in REFUSALS])
def test_what_the_system_refuses_to_write_is_said_with_its_place(tmp_path, error, words):
    with pytest.raises(UnwritableError, match=words), atomic_path(tmp_path / "a.json"):
        raise error
    assert files_in(tmp_path) == []


def test_so_is_a_disk_that_takes_no_new_file(tmp_path, monkeypatch):
    def mkstemp(**_):
        raise OSError(errno.EROFS, "Read-only file system", "/x/.a.json.1.tmp")

    monkeypatch.setattr("tempfile.mkstemp", mkstemp)
    with pytest.raises(
        UnwritableError, match=r"the disk is read-only: .*a.json can't be written; what was there before"
    ):
        write_json(tmp_path / "a.json", {})


def test_no_error_of_the_system_is_a_number_alone():
    assert (
        sentence(OSError(28, "No space left on device"))
        == "the disk is full. Make room and give the same command again"
    )
    assert sentence(OSError(30, "Read-only", "/x/run.json")).startswith("the disk is read-only: /x/run.json. Name a")
    assert sentence(GoodsError("other")) == "other"


def later(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a.txt").write_text("longer"),
        lambda folder: later(folder / "sub" / "b.txt"),
        lambda folder: (folder / "sub" / "c.txt").touch(),
        lambda folder: (folder / "a.txt").unlink(),
        lambda folder: (folder / "a.txt").rename(folder / "z.txt"),
    ],
    ids=["size", "time", "new", "gone", "renamed"],
)
def test_file_stamp_sees_what_changes_below_a_folder(tmp_path, change):
    (touch(tmp_path, "sub/b.txt") / "a.txt").write_text("text")
    before = file_stamp([tmp_path])
    assert file_stamp([tmp_path]) == before
    change(tmp_path)
    assert file_stamp([tmp_path]) != before


def test_file_stamp_of_files(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    missing = file_stamp([first, second])
    first.touch()
    assert len({missing, file_stamp([first, second]), file_stamp([second]), file_stamp([])}) == 4
