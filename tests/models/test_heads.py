"""Heads take embeddings of any scale, and begin as seed and fold say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from goods.models.heads import GoodsHeads, TextClassifier, make_heads
from goods.params import Params
from goods.training.optim import output_losses


def test_heads_take_embeddings_of_any_scale(p: Params) -> None:
    generator = torch.Generator().manual_seed(0)
    image = 1e4 + 1e3 * torch.randn(200, 6, generator=generator)
    text = 1e-4 * torch.randn(200, 5, generator=generator)
    text[:, 2] = 7.0  # says nothing, and must not blow up
    heads = make_heads({"image": image, "text": text}, p).eval()
    got = []
    heads.fused[0].register_forward_pre_hook(lambda module, args: got.append(args[0]))
    logits = heads(image, text)
    both = got[0]  # (200, 6 + 5)
    torch.testing.assert_close(both.mean(0), torch.zeros(11), rtol=0, atol=1e-2)
    spread = torch.tensor([1.0] * 8 + [0.0] + [1.0] * 2)
    torch.testing.assert_close(both.std(0, correction=0), spread, rtol=0, atol=1e-2)
    assert all(values.shape == (200, p.num_classes) and values.isfinite().all() for values in logits.values())

    other = heads(image, text.flip(0))
    assert torch.equal(other["image"], logits["image"])
    assert not torch.equal(other["text"], logits["text"]) and not torch.equal(other["fused"], logits["fused"])


def test_heads_begin_as_seed_and_fold_say(p: Params) -> None:
    image, text = torch.randn(9, 4), torch.randn(9, 4)

    def weight(**changes: int) -> torch.Tensor:
        return make_heads({"image": image, "text": text}, p.model_copy(update=changes)).image[1].weight

    assert torch.equal(weight(), weight())
    assert not torch.equal(weight(), weight(seed=p.seed + 5)) and not torch.equal(weight(), weight(fold=1))


def test_a_dead_dimension_does_not_swamp_the_others_when_it_moves():
    heads = GoodsHeads(8, 8, Params(num_classes=3, hidden_dim=8))
    embeddings = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    embeddings[:, 3] = 0.5  # dead
    heads.set_scale(image=embeddings, text=embeddings)
    live = [k for k in range(8) if k != 3]
    torch.testing.assert_close(heads.image_std[live], embeddings[:, live].std(0, correction=0))
    assert 0.5 < heads.image_std[3] < 2


def test_copies_learn_each_by_its_own_loss_and_predict_by_their_mean(p: Params) -> None:
    image, text = torch.randn(9, 4), torch.randn(9, 5)
    labels = torch.arange(9) % p.num_classes
    heads = make_heads({"image": image, "text": text}, p.model_copy(update={"head_copies": 3, "dropout": 0.0}))
    each = heads.train()(image, text)
    assert {name: values.shape for name, values in each.items()} == dict.fromkeys(each, (9, 3, p.num_classes))
    assert not torch.allclose(each["image"][:, 0], each["image"][:, 1])  # they begin apart
    mean = heads.eval()(image, text)
    assert all(torch.equal(mean[name], values.mean(1)) for name, values in each.items())

    together = output_losses(each, labels, torch.ones(p.num_classes), 0.1, 9)["fused"]
    alone = [output_losses({"fused": each["fused"][:, k]}, labels, torch.ones(p.num_classes), 0.1, 9) for k in range(3)]
    torch.testing.assert_close(together, sum(losses["fused"] for losses in alone) / 3)


def bf16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_heads_compute_in_fp32_whatever_the_encoders_do(p: Params) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text, extra = (torch.randn(50, width, generator=generator) for width in (6, 5, 4))
    heads = make_heads({"image": image, "text": text, "extra": extra}, p).eval()
    with bf16():
        rough = heads(image, text, extra)
    for name, values in heads(image, text, extra).items():
        assert rough[name].dtype == torch.float32 and torch.equal(rough[name], values)


class Rough(nn.Module):
    """A text encoder whose embeddings come out of an autocast layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 32
        self.layer = nn.Linear(8, self.dim)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.layer(input_ids)


def test_the_head_of_a_text_encoder_computes_in_fp32_too(p: Params) -> None:
    torch.manual_seed(0)
    model, given = TextClassifier(Rough(), p).eval(), torch.randn(50, 8)
    with bf16():
        embeddings, logits = model.encoder(given), model(given)["text"]
    assert embeddings.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert torch.equal(logits, model.head(embeddings.float()))
