"""States: the newest whole one is loaded, whatever happened to the others."""

from __future__ import annotations

import errno

import pytest
import torch

from goods.errors import GoodsError
from goods.run import Fold, Run
from goods.training.checkpoint import VERSION, load_state, save_state


@pytest.fixture
def state(tmp_path) -> Fold:
    """A fold with two states, saved one after the other."""
    fold = Run(tmp_path / "run").fold(0)
    for step in (1, 2):
        save_state(fold, {"a": torch.full((3,), float(step)), "n": torch.tensor(step)}, {"step": step})
    return fold


def test_the_newest_state_is_loaded(state):
    tensors, facts = load_state(state)
    assert facts == {"step": 2} and tensors["a"].tolist() == [2, 2, 2] and tensors["n"] == 2


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before(state, harm, capsys):
    path = state.state
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-4], "flip": bytes(data), "empty": b""}[harm])
    assert load_state(state)[1] == {"step": 1}
    assert ("is damaged" in capsys.readouterr().out) == (harm != "gone")


def test_a_state_of_another_version_is_refused(state, monkeypatch):
    monkeypatch.setattr("goods.training.checkpoint.VERSION", VERSION + 1)
    with pytest.raises(GoodsError, match="another version"):
        load_state(state)


def test_a_full_disk_leaves_the_state_before(state, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("goods.training.checkpoint.save_file", full)
    with pytest.raises(GoodsError, match="the disk is full"):
        save_state(state, {"a": torch.ones(1)}, {"step": 3})
    assert load_state(state)[1] == {"step": 2}
    assert not list(state.folder.rglob("*.tmp"))
