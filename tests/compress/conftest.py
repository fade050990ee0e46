"""The language model's API."""

from __future__ import annotations

import pytest
from language_model import KEY, LanguageModel
from loopback import serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(LanguageModel()) as server:
        yield server
