"""Memory and FLOPs of a training step, counted on fake tensors.

Fake tensors have shapes and types but neither memory nor values, so a step of the largest model costs seconds of one
core. Every tensor that lives during the step is counted.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from goods.cost.empty import empty_encoder, empty_text_encoder, read_config
from goods.data.matrices import read_matrix
from goods.files import resolve
from goods.models.device import DTYPES
from goods.models.encoders import SIDES, Encoder
from goods.models.heads import GoodsClassifier, GoodsHeads, TextClassifier
from goods.models.text_encoder import PLAIN_LENGTH, TextEncoder
from goods.models.text_encoding import read_encoding
from goods.models.tuning import block_rates, checkpoint_activations, halve_frozen, set_trainable
from goods.params import Params
from goods.places import names_vectors

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ADAFACTOR_BUFFERS = 5  # tensors of a parameter's size that Adafactor holds while it updates the parameter
PARTS = ("weights", "gradients", "optimizer state", "further weights", "16-bit copies", "activations, buffers")
WEIGHTS, GRADIENTS, OPTIMIZER, FURTHER, COPIES, ACTIVATIONS = PARTS


def micro_batch_size(p: Params) -> int:
    """Products per forward pass in training."""
    return min(p.micro_batch_size or p.batch_size, p.batch_size)


class StepMeter(TorchDispatchMode):
    """Inside `with meter:`, counts FLOPs and the bytes of all tensor storages alive, each storage once.

    live and peak: bytes by part, now and when their sum was highest; most: each part's own maximum. A storage belongs
    to the activations unless `hold` says otherwise, or it is the 16-bit copy that autocast makes of a weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self.most: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.phase = "forward"
        self._peak_bytes = 0
        self._storages: dict[int, tuple[str, int, weakref.ref]] = {}

    def hold(self, tensors: Iterable[Tensor], part: str) -> None:
        """Counts these tensors' storages as that part."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if known := self._storages.pop(id(storage), None):
                self.live[known[0]] -= known[1]
            self._add(storage, part)

    def _add(self, storage: torch.UntypedStorage, part: str) -> None:
        key, size = id(storage), storage.nbytes()

        def freed(_: weakref.ref) -> None:
            part, size, _ = self._storages.pop(key)
            self.live[part] -= size

        self._storages[key] = (part, size, weakref.ref(storage, freed))
        self.live[part] += size
        self.most[part] = max(self.most[part], self.live[part])
        if (total := sum(self.live.values())) > self._peak_bytes:
            self._peak_bytes, self.peak = total, dict(self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # three of four calls on fake tensors: a shortcut halves the time
            return args[0].fake_device
        if isinstance(args[0] if args else None, FakeTensor):
            func, args = _all_true(func, args)
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _FLOPS:
            # In the backward pass gradients are enabled only while checkpointed blocks are recomputed.
            recomputed = self.phase == "backward" and torch.is_grad_enabled()
            self.flops["recomputed" if recomputed else self.phase] += _FLOPS[packet](*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._storages:
                self._add(storage, COPIES if self._is_copy(func, args, tensor) else ACTIVATIONS)
        return out

    def _is_copy(self, func: Any, args: tuple, tensor: Tensor) -> bool:
        if func is not torch.ops.aten._to_copy.default or tensor.dtype not in DTYPES.values():
            return False
        return self._storages.get(id(args[0].untyped_storage()), ("",))[0] == WEIGHTS


def _all_true(func: Any, args: tuple) -> tuple[Any, tuple]:
    """The call with its boolean mask taken as all true: a fake mask has no values, and so every text window is used."""
    aten = torch.ops.aten
    if func is aten.nonzero.default:
        mask = args[0]
        return aten.new_empty.default, (mask.to(torch.int64), (mask.numel(), mask.ndim))
    if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
        mask = args[1][0]
        rows = mask.new_empty(mask.numel(), dtype=torch.int64)
        return func, (args[0], [rows] * mask.ndim + list(args[1][1:]))
    return func, args


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


# torch's own formulas, those of FlopCounterMode, which leave out the CPU's attention.
_FLOPS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class CudaDropout(nn.Dropout):
    """Dropout as on CUDA, which keeps a mask of one byte per element; the CPU's mask has the input's type."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the output has the same."""
        if not self.training or self.p == 0:
            return input
        return torch.native_dropout(input, self.p, True)[0]


def count_step(
    model: nn.Module,
    pixels: Tensor,
    input_ids: Tensor | None,
    dtype: torch.dtype | None = None,
    accumulate: bool = False,
    extra: Tensor | None = None,
) -> StepMeter:
    """Forward, loss and backward of a classifier's micro batch under a meter; on real or fake CPU tensors.

    pixels: or token ids, of a classifier that reads texts alone. dtype: autocast's, or None for fp32. accumulate: the
    gradients of an earlier micro batch are in memory already. extra: embeddings of further text encoders.
    """
    # CPU tensors, since fake CUDA tensors need a GPU: without one autocast turns itself off and the backward pass asks
    # the driver for a context (torch 2.10), or a CPU build aborts (2.13). What differs from CUDA, beside CudaDropout:
    # layer norms and softmax keep 16 bits where CUDA's autocast goes to 32 (that concerns only pooled vectors); the
    # CPU's attention stands for the memory-efficient kernel (both keep inputs, output and one sum per query); there is
    # no workspace of cuDNN.
    meter = StepMeter()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    meter.hold([*model.parameters(), *model.buffers()], WEIGHTS)
    meter.hold([pixels] if input_ids is None else [pixels, input_ids], ACTIVATIONS)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter) if accumulate else None
    meter.hold([parameter.grad for parameter in trained if accumulate], GRADIENTS)
    hooks = [q.register_post_accumulate_grad_hook(lambda q: meter.hold([q.grad], GRADIENTS)) for q in trained]
    labels, given = torch.zeros(len(pixels), dtype=torch.int64), [pixels, input_ids, extra]
    model.train()
    with meter:
        with _cpu_autocast(dtype):  # as accelerate does: around the forward pass, not around the loss
            logits = model(*(tensor for tensor in given if tensor is not None))
        loss = sum(F.cross_entropy(values.float(), labels) for values in logits.values())
        del logits
        meter.phase = "backward"
        loss.backward()
    for hook in hooks:
        hook.remove()
    for parameter in trained:
        parameter.grad = None
    return meter


def count_embedding(
    encoder: Encoder, pixels: Tensor, input_ids: Tensor | None, dtype: torch.dtype | None = None
) -> tuple[StepMeter, int, int]:
    """Meter of the encoder's forward pass without gradients, with FLOPs of "image" and "text"; image_dim; text_dim.

    Where photos are all that is looked at, input_ids is None and text_dim 0.
    """
    meter = StepMeter()
    meter.hold([*encoder.parameters(), *encoder.buffers()], WEIGHTS)
    meter.hold([pixels] if input_ids is None else [pixels, input_ids], ACTIVATIONS)
    encoder.eval()
    with torch.no_grad(), meter, _cpu_autocast(dtype):
        meter.phase = "image"
        image = encoder.embed_images(pixels)
        meter.phase = "text"
        text_dim = 0 if input_ids is None else encoder.embed_texts(input_ids).shape[1]
    return meter, image.shape[1], text_dim


def _cpu_autocast(dtype: torch.dtype | None) -> AbstractContextManager:
    return torch.autocast("cpu", dtype=dtype) if dtype else nullcontext()


@dataclass(frozen=True)
class Footprint:
    """What was counted: bytes of a step and of an evaluation by part, the trained parameters, FLOPs."""

    image_size: int
    total: int  # parameters
    trained: dict[str, torch.Size]  # shapes by name: the backbone's as in block_rates, and the heads'
    rates: dict[str, float]  # learning rates by name
    step: dict[str, int]  # bytes by part, when their sum is highest
    step_most: Counter[str]  # bytes by part, each at its own maximum
    evaluation: dict[str, int]
    evaluation_most: Counter[str]
    embedding: int  # bytes per product in the cache
    flops: dict[str, float]  # per product

    @property
    def trainable(self) -> int:
        """Number of trained parameters."""
        return sum(shape.numel() for shape in self.trained.values())

    def optimizer(self, p: Params) -> int:
        """Bytes of the optimizer's state."""
        return sum(optimizer_bytes(shape, p.optimizer) for shape in self.trained.values())

    def phases(self, p: Params) -> dict[str, dict[str, int]]:
        """{phase: {part: bytes}} that torch allocates when a phase takes most; reads tune, ema_decay, soup, wise_ft."""
        if p.tune == "head":
            return {"embedding": dict.fromkeys(PARTS, 0) | self.evaluation}
        fp32 = 4 * self.trainable
        copies = fp32 * (bool(p.ema_decay) + p.soup)
        always = {WEIGHTS: self.step[WEIGHTS], OPTIMIZER: self.optimizer(p), FURTHER: copies}
        # An average stands in for the weights while it is scored, and these are kept meanwhile.
        evaluation = self.evaluation | always | {FURTHER: copies + (fp32 if copies else 0)}
        found = {
            "training": self.step | always,
            "optimizer": always | {GRADIENTS: fp32, ACTIVATIONS: optimizer_buffers(self.trained, self.rates, p)},
            "evaluation": evaluation,
        }
        if p.wise_ft:  # the tuned weights, the mixed ones, and the model's own while the mixed ones replace them
            found["interpolation"] = evaluation | {FURTHER: copies + 3 * fp32}
        return {phase: dict.fromkeys(PARTS, 0) | parts for phase, parts in found.items()}

    def allocated(self, p: Params) -> int:
        """Most bytes that torch allocates at any moment."""
        return max(sum(parts.values()) for parts in self.phases(p).values())


def measure_footprint(config: PretrainedConfig, p: Params, precision: str, sides: tuple[str, ...] = SIDES) -> Footprint:
    """Builds the classifier that p describes on fake tensors, and counts an evaluation and a training step of it.

    config: that of model_name. sides: those of a product that it looks at.
    """
    encoder = empty_encoder(config, p, sides)
    with torch.device("meta"):  # of the adapters
        set_trainable(encoder.backbone, p)
    if p.gradient_checkpointing:
        checkpoint_activations(encoder.backbone)
    halve_frozen(encoder, precision)
    dtype, micro = DTYPES.get(precision), micro_batch_size(p)
    extra_dim = further_dim(p)
    with _no_memories(encoder), FakeTensorMode():
        evaluation, *dims = count_embedding(_fake(encoder), *_inputs(encoder, p, p.eval_batch_size, sides), dtype)
        model = GoodsClassifier(encoder, GoodsHeads(*dims, p, extra_dim))
        flops = {f"forward, {name}": evaluation.flops[name] / p.eval_batch_size for name in sides}
        step = StepMeter()
        if p.tune != "head":
            for module in model.modules():
                if type(module) is nn.Dropout:
                    module.__class__ = CudaDropout
            extra = torch.empty(micro, extra_dim) if extra_dim else None
            step = count_step(model, *_inputs(encoder, p, micro, sides), dtype, micro < p.batch_size, extra)
            flops |= {f"training, {name}": n / micro for name, n in step.flops.items()}
    trained = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    return Footprint(
        image_size=encoder.image_size,
        total=sum(parameter.numel() for parameter in model.parameters()),
        trained={name.removeprefix("encoder.backbone."): shape for name, shape in trained.items()},
        rates=block_rates(encoder.backbone, p),
        step=step.peak,
        step_most=step.most,
        evaluation=evaluation.peak,
        evaluation_most=evaluation.most,
        embedding=4 * (sum(dims) + extra_dim),
        flops=flops,
    )


@contextmanager
def _no_memories(model: nn.Module) -> Iterator[None]:
    """Functions that remember what they returned, as DINOv3's of positions, keep no fake tensor for a real model."""
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    named = [f for file in files for f in vars(file).values() if getattr(f, "__module__", "") == file.__name__]
    inside = [
        value for f in filter(inspect.isfunction, named) for value in inspect.getclosurevars(f).nonlocals.values()
    ]
    remembering = [function for function in (*named, *inside) if hasattr(function, "cache_clear")]
    try:
        _forget(remembering)
        yield
    finally:
        _forget(remembering)


def _forget(remembering: Iterable[Any]) -> None:
    for function in remembering:
        function.cache_clear()


def _fake(module: nn.Module) -> nn.Module:
    """The module with fake CPU tensors in place of its meta tensors, which autocast leaves alone."""
    return module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


def _inputs(encoder: Encoder, p: Params, batch: int, sides: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
    size = encoder.image_size
    pixels = torch.empty(batch, 3, size, size, dtype=torch.uint8)
    if "text" not in sides:
        return pixels, None
    return pixels, torch.empty(batch, p.text_windows, p.max_text_length, dtype=torch.int64)


def optimizer_bytes(shape: torch.Size, optimizer: str) -> int:
    """Bytes of a parameter's state in fp32: two moments (adamw), or a second moment of rows and columns (adafactor)."""
    if optimizer == "adamw":
        return 8 * shape.numel()
    return 4 * (shape[:-1].numel() + (shape[:-2] + shape[-1:]).numel() if len(shape) > 1 else shape.numel())


def optimizer_buffers(trained: dict[str, torch.Size], rates: dict[str, float], p: Params) -> int:
    """Bytes that an update needs for a moment: AdamW on a GPU takes the square roots of a parameter group at once."""
    if p.optimizer == "adafactor":
        return ADAFACTOR_BUFFERS * 4 * max(shape.numel() for shape in trained.values())
    groups: Counter[tuple[float, bool]] = Counter()
    for name, shape in trained.items():
        groups[rates.get(name, p.head_learning_rate), len(shape) > 1] += 4 * shape.numel()
    return max(groups.values())


# Further text encoders, each of which embeds all texts once, before anything is trained -------------------------------


@dataclass(frozen=True)
class Further:
    """Of the encoders in extra_embeddings: FLOPs per product, of all; bytes by part, of the one that takes most."""

    flops: float
    memory: dict[str, int]


def further_dim(p: Params) -> int:
    """How many numbers per product the heads get of them, and of vectors among them; reads extra_embeddings."""
    return sum(read_matrix([name], p.id_column).dim if names_vectors(name)
               else read_encoding(resolve(name)).dim_of(read_config(name).hidden_size)
               for name in p.extra_embeddings)  # fmt: skip


def measure_further(p: Params, precision: str) -> Further | None:
    """A batch of each on fake tensors; None where there is none. Reads extra_embeddings and eval_batch_size.

    Texts are taken as PLAIN_LENGTH tokens long, which few are.
    """
    meters = [_meter(empty_text_encoder(name), p.eval_batch_size, precision)
              for name in p.extra_embeddings if not names_vectors(name)]  # fmt: skip
    if not meters:
        return None
    largest = max((meter.peak for meter in meters), key=lambda parts: sum(parts.values()))
    return Further(
        sum(meter.flops["forward"] for meter in meters) / p.eval_batch_size, dict.fromkeys(PARTS, 0) | largest
    )


def measure_texts(p: Params, precision: str) -> int:
    """Bytes that a text encoder under a linear head takes at most, of texts of PLAIN_LENGTH tokens or fewer."""
    encoder = empty_text_encoder(p.model_name)
    length, micro = min(p.max_text_length, PLAIN_LENGTH), micro_batch_size(p)
    with torch.device("meta"):
        set_trainable(encoder.backbone, p)
        classifier = TextClassifier(encoder, p)
    if p.gradient_checkpointing:
        checkpoint_activations(encoder.backbone)
    evaluation = _meter(empty_text_encoder(p.model_name), p.eval_batch_size, precision, length)
    with FakeTensorMode():
        input_ids = torch.empty(micro, length, dtype=torch.int64)
        step = count_step(_fake(classifier), input_ids, None, DTYPES.get(precision), micro < p.batch_size)
    trained = (parameter.shape for parameter in classifier.parameters() if parameter.requires_grad)
    state = sum(optimizer_bytes(shape, p.optimizer) for shape in trained)
    return state + max(sum(step.peak.values()), sum(evaluation.peak.values()))


def _meter(encoder: TextEncoder, batch: int, precision: str, length: int = PLAIN_LENGTH) -> StepMeter:
    halve_frozen(encoder, precision)
    meter = StepMeter()
    with FakeTensorMode():
        input_ids = torch.empty(batch, length, dtype=torch.int64)
        meter.hold([*_fake(encoder).eval().parameters(), *encoder.buffers()], WEIGHTS)
        meter.hold([input_ids], ACTIVATIONS)
        with torch.no_grad(), meter, _cpu_autocast(DTYPES.get(precision)):
            encoder(input_ids)
    return meter
