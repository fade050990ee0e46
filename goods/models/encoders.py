"""What stands under the heads: a dual encoder, an image encoder alone, or an image and a text encoder of two makers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from goods.data.datasets import NO_TOKEN, pad_tokens
from goods.errors import GoodsError
from goods.files import resolve
from goods.models.backbone import (
    DualEncoder,
    check_tokenizer,
    in_windows,
    load_backbone,
    load_processor,
    mean_of_windows,
    windows_of,
)
from goods.models.image_encoder import ImageEncoder, load_image_encoder
from goods.models.text_encoder import TextEncoder, load_text_encoder, load_tokenizer
from goods.params import Params

SIDES = ("image", "text")  # of a product; a run may look at its photos alone


class EncoderPair(nn.Module):
    """An image and a text encoder of two makers as the two towers of one, each fed as it was trained.

    backbone holds them as a dual encoder has its own, as vision_model and text_model.
    """

    def __init__(self, image: ImageEncoder, text: TextEncoder) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"vision_model": image, "text_model": text})

    @property
    def image(self) -> ImageEncoder:
        """The encoder of photos."""
        return self.backbone["vision_model"]

    @property
    def text(self) -> TextEncoder:
        """The encoder of texts."""
        return self.backbone["text_model"]

    @property
    def image_size(self) -> int:
        """Side of the square photo in pixels."""
        return self.image.image_size

    def tokenize(self, texts: Sequence[str], titles: Sequence[str], windows: int = 1) -> Tensor:
        """(n, windows, longest) token ids, NO_TOKEN behind the end of each window and in those that aren't used."""
        tokens = window_tokens(self.text, texts, titles, windows)
        flat = pad_tokens([ids for row in tokens for ids in row] or [[NO_TOKEN]])[: sum(map(len, tokens))]
        return in_windows(flat, list(map(len, tokens)), windows, NO_TOKEN)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(batch, 3, size, size) uint8 to (batch, image_dim)."""
        return self.image.embed_images(pixels)

    def embed_several(self, pixels: Tensor, photos: Tensor) -> Tensor:
        """As of any encoder of photos."""
        return self.image.embed_several(pixels, photos)

    def embed_texts(self, input_ids: Tensor) -> Tensor:
        """(batch, windows, length) ids to (batch, text_dim), the mean over the windows that hold text."""
        return mean_of_windows(self.text, input_ids, NO_TOKEN)


Encoder = DualEncoder | ImageEncoder | EncoderPair


def window_tokens(
    encoder: TextEncoder, texts: Sequence[str], titles: Sequence[str], windows: int
) -> list[list[list[int]]]:
    """Of each product the token ids of its windows, one at least, as Processor.tokenize makes them."""
    if windows == 1:
        return [[ids] for ids in encoder.tokenize(texts)]
    room = encoder.max_length - len(encoder.tokenizer(encoder.encoding.prompt, add_special_tokens=False)["input_ids"])
    rows = windows_of(encoder.tokenizer, texts, titles, room, windows)
    tokens = iter(encoder.tokenize([window for row in rows for window in row]))
    return [[next(tokens) for _ in row] for row in rows]


# From files ----------------------------------------------------------------------------------------------------------


def load_encoder(p: Params, sides: Sequence[str] = SIDES) -> Encoder:
    """The encoder of a run that looks at these sides of a product, in fp32.

    Reads model_name, text_model_name, image_size and max_text_length. Raises GoodsError where a directory is missing,
    damaged, or holds another kind of model.
    """
    if "text" not in sides:
        return load_image_encoder(p.model_name, p.image_size)
    if not p.text_model_name:
        backbone, processor = load_backbone(p.model_name), load_processor(p.model_name)
        check_tokenizer(resolve(p.model_name), processor.tokenizer, backbone.config.text_config.vocab_size)
        return DualEncoder(backbone, processor, p)
    return EncoderPair(load_image_encoder(p.model_name, p.image_size), load_text_tower(p))


def load_text_tower(p: Params) -> TextEncoder:
    """The text encoder in p.text_model_name, reading p.max_text_length tokens; raises GoodsError if it can't."""
    encoder = load_text_encoder(str(p.text_model_name), p.max_text_length)
    if encoder.max_length < p.max_text_length:
        raise GoodsError(f"max_text_length {p.max_text_length} is more than the {encoder.max_length} tokens the text "
                         "encoder can read")  # fmt: skip
    return encoder


def token_counter(p: Params) -> Callable[[Sequence[str]], list[int]]:
    """What counts the tokens of texts, nothing cut, as the text encoder of a run reads them.

    Reads model_name and text_model_name.
    """
    if not p.text_model_name:
        return load_processor(p.model_name).count_tokens
    tokenizer = load_tokenizer(p.text_model_name)
    return lambda texts: [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
