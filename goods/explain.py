"""Why a product is predicted as it is: what the probability loses without its image, its text, a patch or a word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from goods.data.folds import read_folds
from goods.data.photos import load_photo
from goods.data.tables import Goods, all_products
from goods.data.texts import clean_text
from goods.errors import GoodsError
from goods.models.device import autocast, pick_device
from goods.models.embeddings import TextEmbedder
from goods.models.heads import GoodsClassifier
from goods.params import Params
from goods.predictions import main_of
from goods.training.inference import load_model

MAX_WORDS = 64  # of a text, from its beginning; a text tower reads hardly more


@dataclass(frozen=True)
class Explanation:
    """The probability of the predicted class, and what is left of it.

    product: id, title, text, image. probabilities: "all", "without image", "without text" (those that there are).
    patches: (grid, grid), lost when a patch of the photo is hidden, None without a photo. words: word, lost.
    """

    product: pd.Series
    predicted: int
    probabilities: dict[str, float]
    patches: np.ndarray | None
    words: pd.DataFrame


@torch.no_grad()
def explain(p: Params, goods: Goods, product_id: str, grid: int = 7) -> Explanation:
    """Occlusion (Zeiler and Fergus, arXiv 1311.2901) of one product, by the fold that didn't learn from it.

    Hidden patches get the photo's mean colour; a hidden word is left out. Raises GoodsError for an unknown id, for an
    untrained fold, and for kinds without a model of their own.
    """
    if p.kind not in ("dual", "text"):
        raise GoodsError(f"kind {p.kind} keeps no model that could say why; explain a run of kind dual or text")
    table = all_products(goods)
    rows = np.flatnonzero(table["id"] == product_id)
    if not len(rows):
        raise GoodsError(f"there is no product '{product_id}' in train or test")
    product, fold = table.iloc[rows[0]], _fold_of(p, goods, product_id)
    words = product["text"].split()
    texts = [product["text"], "", *(" ".join(words[:i] + words[i + 1 :]) for i in range(min(len(words), MAX_WORDS)))]
    model = load_model(p, p.run_dir / f"fold{fold}" / "model.safetensors").to(pick_device()).eval()
    with autocast(p.mixed_precision):
        if p.kind == "text":
            by_text, by_patch = _text_only(model, texts, p), None
        else:
            by_text, by_patch = _both(model, texts, product, grid, p)
    predicted = int(by_text[0].argmax())
    lost = by_text[0, predicted] - by_text[2:, predicted]
    probabilities = {"all": float(by_text[0, predicted]), "without text": float(by_text[1, predicted])}
    patches = None
    if by_patch is not None:
        probabilities["without image"] = float(by_patch[0, predicted])
        if product["image"]:
            patches = (by_text[0, predicted] - by_patch[1:, predicted]).reshape(grid, grid)
    shown = pd.DataFrame({"word": words[: len(lost)], "lost": lost})
    return Explanation(product, predicted, probabilities, patches, shown)


def _fold_of(p: Params, goods: Goods, product_id: str) -> int:
    """The fold whose model hasn't seen the product: that which held it back; for the test set the first trained one."""
    trained = [k for k in range(p.n_folds) if (p.run_dir / f"fold{k}" / "metrics.json").is_file()]
    folds = read_folds(goods, p)
    own = folds.loc[folds["id"] == product_id, "fold"]
    wanted = int(own.iloc[0]) if len(own) else next(iter(trained), 0)
    if wanted not in trained:
        raise GoodsError(f"fold {wanted} of run '{p.run}' is not trained, and only its model hasn't seen the product; "
                         f"train it, or choose a product of fold {', '.join(map(str, trained)) or '...'}")  # fmt: skip
    return wanted


def _text_only(model: nn.Module, texts: list[str], p: Params) -> np.ndarray:
    tokens, pad = model.encoder.tokenize(texts), model.encoder.tokenizer.pad_token_id
    parts = []
    for start in range(0, len(tokens), p.eval_batch_size):
        batch = [torch.tensor(ids) for ids in tokens[start : start + p.eval_batch_size]]
        ids = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=pad).to(pick_device())
        parts.append(_probabilities(model(input_ids=ids)))
    return np.concatenate(parts)


def _both(
    model: GoodsClassifier, texts: list[str], product: pd.Series, grid: int, p: Params
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of each text with the photo; and with the text, of a white photo and of each patch hidden."""
    encoder, device = model.encoder, pick_device()
    ids = encoder.processor.tokenize(
        texts, [clean_text(product["title"])] * len(texts), p.max_text_length, p.text_windows
    )
    photos = hidden_patches(load_photo(product["image"], encoder.image_size), grid)
    image = torch.cat([encoder.embed_images(part.to(device)) for part in photos.split(p.eval_batch_size)])
    text = torch.cat([encoder.embed_texts(part.to(device)) for part in ids.split(p.eval_batch_size)])
    extra = TextEmbedder(p).texts(texts).to(device) if p.extra_embeddings else None

    def heads(image: Tensor, text: Tensor, extra: Tensor | None) -> np.ndarray:
        n = max(len(image), len(text))
        more = {} if extra is None else {"extra": extra.expand(n, -1)}
        return _probabilities(model.heads(image.expand(n, -1), text.expand(n, -1), **more))

    return heads(image[:1], text, extra), heads(image[1:], text[:1], None if extra is None else extra[:1])


def hidden_patches(photo: Tensor, grid: int) -> Tensor:
    """(2 + grid * grid, 3, size, size) from (3, size, size): the photo, white, then each patch in its mean colour."""
    size, mean = photo.shape[-1], photo.float().mean((1, 2)).round().to(torch.uint8)
    edges = [round(i * size / grid) for i in range(grid + 1)]
    found = photo.repeat(2 + grid * grid, 1, 1, 1)
    found[1] = 255
    for row in range(grid):
        for column in range(grid):
            patch = found[2 + row * grid + column, :, edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
            patch.copy_(mean[:, None, None].expand_as(patch))
    return found


def _probabilities(logits: dict[str, Tensor]) -> np.ndarray:
    return main_of(logits).float().softmax(1).cpu().numpy()
