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

from goods.cost.dims import columns_dim, further_dim
from goods.cost.empty import empty_encoder
from goods.models.device import DTYPES
from goods.models.encoders import SIDES, Encoder
from goods.models.heads import GoodsClassifier, GoodsHeads
from goods.models.tuning import block_rates, checkpoint_activations, fixed_sides, halve_frozen, set_trainable
from goods.params import Params

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
    pixels: Tensor | None,
    input_ids: Tensor | None,
    dtype: torch.dtype | None = None,
    accumulate: bool = False,
    further: dict[str, Tensor] | None = None,
) -> StepMeter:
    """Forward, loss and backward of a classifier's micro batch under a meter; on real or fake CPU tensors.

    dtype: autocast's, or None for fp32. accumulate: the gradients of an earlier micro batch are in memory already.
    further: what else it takes, by name, such as "extra"; heads alone take nothing but this.
    """
    # CPU tensors, since fake CUDA tensors need a GPU: without one autocast turns itself off and the backward pass asks
    # the driver for a context (torch 2.10), or a CPU build aborts (2.13). What differs from CUDA, beside CudaDropout:
    # layer norms and softmax keep 16 bits where CUDA's autocast goes to 32 (that concerns only pooled vectors); the
    # CPU's attention stands for the memory-efficient kernel (both keep inputs, output and one sum per query); there is
    # no workspace of cuDNN.
    meter = StepMeter()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    meter.hold([*model.parameters(), *model.buffers()], WEIGHTS)
    given = {"pixels": pixels, "input_ids": input_ids} | (further or {})
    given = {name: values for name, values in given.items() if values is not None}
    meter.hold(given.values(), ACTIVATIONS)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter) if accumulate else None
    meter.hold([parameter.grad for parameter in trained if accumulate], GRADIENTS)
    hooks = [q.register_post_accumulate_grad_hook(lambda q: meter.hold([q.grad], GRADIENTS)) for q in trained]
    model.train()
    with meter:
        with cpu_autocast(dtype):  # as accelerate does: around the forward pass, not around the loss
            logits = model(**given)
        losses = []
        for values in logits.values():
            flat = values.float().flatten(0, -2)  # of copies of a head, all
            losses.append(F.cross_entropy(flat, torch.zeros(len(flat), dtype=torch.int64)))
        loss = sum(losses)
        del logits, values, flat, losses
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
    with torch.no_grad(), meter, cpu_autocast(dtype):
        meter.phase = "image"
        image = encoder.embed_images(pixels)
        meter.phase = "text"
        text_dim = 0 if input_ids is None else encoder.embed_texts(input_ids).shape[1]
    return meter, image.shape[1], text_dim


def cpu_autocast(dtype: torch.dtype | None) -> AbstractContextManager:
    """Autocast of CPU tensors to this type; none where it is None, fp32."""
    return torch.autocast("cpu", dtype=dtype) if dtype else nullcontext()


@dataclass(frozen=True)
class Footprint:
    """What was counted: bytes of a step and of an evaluation by part, the trained parameters, FLOPs."""

    image_size: int
    total: int  # parameters
    trained: dict[str, torch.Size]  # shapes by name: the backbone's as in block_rates, and the heads'
    rates: dict[str, float]  # learning rates by name
    dims: dict[str, int]  # numbers per product that the heads read, by where they come from
    step: dict[str, int]  # bytes by part, when their sum is highest
    step_most: Counter[str]  # bytes by part, each at its own maximum
    evaluation: dict[str, int]
    evaluation_most: Counter[str]
    embedded: dict[str, int]  # of a product's sides those that are embedded once, with their dimensions
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
        if not self.step:  # heads on a frozen encoder, beside which their training is nothing
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
    further = {"extra": further_dim(p), "columns": columns_dim(p)}
    with _no_memories(encoder), FakeTensorMode():
        evaluation, *dims = count_embedding(fake_of(encoder), *_inputs(encoder, p, p.eval_batch_size, sides), dtype)
        model = GoodsClassifier(encoder, GoodsHeads(*dims, p, *further.values()))
        flops = {f"forward, {name}": evaluation.flops[name] / p.eval_batch_size for name in sides}
        step, side_dims = StepMeter(), dict(zip(SIDES, dims, strict=True))
        fixed = sides if p.tune == "head" else fixed_sides(encoder.backbone, p, sides)
        if p.tune != "head":
            for module in model.modules():
                if type(module) is nn.Dropout:
                    module.__class__ = CudaDropout
            given = further | {side: side_dims[side] for side in fixed}
            more = {name: torch.empty(micro, dim) for name, dim in given.items() if dim}
            read = [None if side in fixed else of
                    for side, of in zip(SIDES, _inputs(encoder, p, micro, sides), strict=True)]  # fmt: skip
            step = count_step(model, *read, dtype, micro < p.batch_size, more)
            flops |= {f"training, {name}": n / micro for name, n in step.flops.items()}
    trained = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    return Footprint(
        image_size=encoder.image_size,
        total=sum(parameter.numel() for parameter in model.parameters()),
        trained={name.removeprefix("encoder.backbone."): shape for name, shape in trained.items()},
        rates=block_rates(encoder.backbone, p),
        dims=model.heads.dims,
        step=step.peak,
        step_most=step.most,
        evaluation=evaluation.peak,
        evaluation_most=evaluation.most,
        embedded={side: side_dims[side] for side in fixed},
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


def fake_of(module: nn.Module) -> nn.Module:
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
