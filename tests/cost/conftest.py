"""Plans for the real model's config, and parameters of a small one."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from goods.cost.plan import Plan, plan_run
from goods.params import Params

SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_config(folder: Path, size: dict[str, int], **text: int) -> str:
    folder.mkdir()
    config = {
        "model_type": "siglip",
        "vision_config": size | {"image_size": 384, "patch_size": 14},
        "text_config": size
        | {"vocab_size": 32000, "max_position_embeddings": 64, "projection_size": size["hidden_size"]}
        | text,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def so400m(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Plans for the real model's config, each made once: so400m(gpu, name=value ...)."""
    model_name = write_config(tmp_path_factory.mktemp("models") / "siglip-so400m-patch14-384", SO400M)

    @cache
    def make(gpu: str, **given: Any) -> Plan:
        began = time.process_time()
        made = plan_run(Params(model_name=model_name, train_csv="no/train.csv", test_csv="no/test.csv", **given), gpu)
        assert time.process_time() - began < 15  # seconds of one core
        return made

    return make


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Parameters with a small model that has nothing but a config: small(name=value ...)."""
    model_name = write_config(tmp_path_factory.mktemp("models") / "small", SMALL)

    def make(**given: Any) -> Params:
        size = {"image_size": 224, "batch_size": 16, "hidden_dim": 64, "last_blocks": 1}
        return Params(model_name=model_name, train_csv="no/train.csv", test_csv="no/test.csv", **size | given)

    return make
