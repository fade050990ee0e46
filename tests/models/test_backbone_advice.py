"""A model directory that isn't there: the advice names the owner on the hub only where it is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from goods.errors import GoodsError
from goods.files import ROOT
from goods.models.backbone import load_backbone
from goods.models.text_encoder import load_text_backbone
from goods.params import load_params


@pytest.mark.parametrize("name", ["siglip-so400m-patch14-384", "siglip2-base-patch16-224"])
def test_siglip_is_googles(tmp_path: Path, name: str) -> None:
    with pytest.raises(GoodsError, match=f"download it with: hf download google/{name} --local-dir models/{name}$"):
        load_backbone(str(tmp_path / name))


@pytest.mark.parametrize("name", ["deberta-v3-base", "all-MiniLM-L6-v2"])
def test_whose_another_model_is_isnt_guessed(tmp_path: Path, name: str) -> None:
    with pytest.raises(GoodsError, match=rf"download its directory .* into models/{name}$") as error:
        load_text_backbone(str(tmp_path / name))
    assert "google/" not in str(error.value)


@pytest.mark.parametrize("config", ["params/text.yaml"])
def test_a_recipe_says_where_its_encoder_comes_from(config: str) -> None:
    path = load_params(config).model_name
    text = (ROOT / config).read_text(encoding="utf-8")
    assert re.search(rf"(?m)^#   hf download [\w-]+/{Path(path).name} --local-dir {path}$", text)
