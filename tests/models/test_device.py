"""Which precision a device can take."""

from __future__ import annotations

import pytest
import torch

from goods.errors import GoodsError
from goods.models.device import pick_precision


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what a GPU can do is another matter")
def test_precisions_of_a_cpu() -> None:
    assert [pick_precision(name) for name in ("fp32", "bf16", "auto")] == ["fp32", "bf16", "fp32"]
    with pytest.raises(GoodsError, match="fp16 needs a GPU"):
        pick_precision("fp16")
