"""A competition for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from competition import Competition


@pytest.fixture
def goods(tmp_path: Path) -> Competition:
    return Competition(tmp_path)
