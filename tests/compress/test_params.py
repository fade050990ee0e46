"""Parameters of the compression that are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from language_model import KEY

from goods.compress.params import CompressParams
from goods.errors import GoodsError
from goods.params import read_params


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"llm_modle": "x"}, "unknown parameter 'llm_modle'; did you mean 'llm_model'?"),
        ({"flod": 1}, "unknown parameter 'flod'; did you mean 'fold'?"),
        ({"llm_concurrency": 0}, "parameter 'llm_concurrency' should be greater than or equal to 1, but is 0"),
        ({"llm_base_url": "127.0.0.1/v1"}, "parameter 'llm_base_url' should match pattern"),
    ],
)
def test_bad_parameters(given: dict[str, Any], message: str) -> None:
    with pytest.raises(GoodsError, match=re.escape(message)):
        read_params(given, CompressParams)


def test_a_key_in_place_of_its_variable_is_not_repeated() -> None:
    with pytest.raises(GoodsError, match="parameter 'llm_key_variable' should match") as error:
        read_params({"llm_key_variable": KEY}, CompressParams)
    assert KEY not in str(error.value)
