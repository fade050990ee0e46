"""A text encoder alone: what it says of a text depends on that text only."""

from __future__ import annotations

import torch

from goods.data.datasets import TokensDataset
from goods.models.text_encoder import load_text_encoder


def test_padding_changes_nothing(encoder_dir):
    encoder = load_text_encoder(str(encoder_dir), 64).eval()
    dataset = TokensDataset(encoder.tokenize(["a red cup", "a very long text about a guitar with six strings " * 3, ""]))
    with torch.no_grad():
        together = encoder(dataset.__getitems__([0, 1, 2])["input_ids"])
        alone = torch.cat([encoder(dataset.__getitems__([row])["input_ids"]) for row in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
