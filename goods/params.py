"""Parameters of an experiment, and the files they come from.

Light on purpose (pydantic and yaml, no torch), so that `pipeline.py` starts at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from goods.contradictions import refuse_contradictions
from goods.errors import ParameterError, plain
from goods.field_types import Float, Int, Names, NoneOrNames, Numbers
from goods.files import resolve
from goods.kernels import left_by_startup
from goods.metric_names import COUNT_CLASSES_ALIKE, MetricName
from goods.places import find_data
from goods.settings import read_yaml
from goods.step import tell_ends

OUTPUTS = ("fused", "image", "text")  # what a prediction is made from; a model's first one is its main one
DEFAULT_CONFIG = "params/demo.yaml"
REFIT = -1  # in place of a fold's number: the model that learns from all rows


# A field that may differ between two calls of one run: where things are, how fast they go, which part is done now.
RUNTIME = {"runtime": True}
RuntimeField = partial(Field, json_schema_extra=RUNTIME)


# The fields, in groups ------------------------------------------------------------------------------------------------


class _Group(BaseModel):
    """Frozen, and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class CommonParams(_Group):
    """What one sets most often."""

    run: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the folder under outputs_dir")
    fold: Int = RuntimeField(0, ge=0, description="the fold that train.ipynb trains and scores")
    data_dir: str | None = RuntimeField(
        None, description="folder of the competition; tables and photos are found in it by their usual names"
    )
    num_classes: Int = Field(21, ge=2, le=100_000, description="number of classes")
    metric: MetricName = Field("macro_f1", description="what is kept, compared, blended for and shown first")
    kind: str = Field(
        "dual",
        pattern=r"^[a-z][a-z0-9_]*$",
        description="dual, image or text encoder, vectors (embeddings), linear on TF-IDF, neighbours (knn), or a blend",
    )
    model_name: str = Field(
        "models/siglip-so400m-patch14-384", description="directory of the dual, image or text encoder"
    )
    tune: Literal["head", "last", "lora", "full"] = Field(
        "full", description="what is trained of the backbone: nothing (head), its last blocks, LoRA adapters, or all"
    )
    image_size: Int | None = Field(
        384, ge=16, description="side of the square photo in pixels; null: the one the checkpoint was trained with"
    )
    max_text_length: Int = Field(64, ge=4, description="number of tokens that a text is cut or padded to")
    batch_size: Int = Field(8, ge=1, description="products per optimizer step, over all devices")
    micro_batch_size: Int | None = RuntimeField(
        None,
        ge=1,
        description="products per forward pass of a device in training; null: batch_size; halved when memory runs out",
    )
    eval_batch_size: Int = RuntimeField(16, ge=1, description="products per forward pass where nothing is trained")
    num_epochs: Int = Field(5, ge=1, description="passes over the training folds")
    learning_rate: Float = Field(2e-5, gt=0, description="peak learning rate of the backbone's last block")
    head_learning_rate: Float = Field(1e-3, gt=0, description="peak learning rate of the heads")
    gradient_checkpointing: bool = RuntimeField(False, description="a third more time for a fraction of the memory")
    mixed_precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto", description="number format; auto: bf16 where the GPU has it, else fp16, and fp32 on a CPU"
    )
    n_folds: Int = Field(
        5, ge=2, le=1000, description="number of stratified folds; duplicates are always in the same fold"
    )
    seed: Int = Field(42, ge=0, lt=2**32, description="seed of folds, initial heads, shuffling and dropout")
    num_workers: Int = RuntimeField(2, ge=0, description="number of processes that read photos")
    debug: bool = Field(
        False, description="train on a few rows for one epoch, in a run of its own, to see that all parts work"
    )


class DataParams(_Group):
    """The tables, their columns, the photos, and where results are written."""

    train_csv: str = RuntimeField(
        "data/train.csv", description="table with labels: csv, tsv, another separator, also .gz or .zip, or Parquet"
    )
    test_csv: str = RuntimeField("data/test.csv", description="table to predict, of the same kinds")
    train_images_dir: str = RuntimeField("data/train_images/train_images", description="photos of train_csv, <id>.jpg")
    test_images_dir: str = RuntimeField("data/test_images/test_images", description="photos of test_csv, <id>.jpg")
    id_column: str = Field("id", min_length=1, description="column with the product's id, read as text")
    label_column: str = Field("categories", min_length=1, description="column with the class: an integer or a name")
    text_columns: Names = Field(("title", "description"), min_length=1, description="columns joined into the text")
    image_column: str | None = Field(
        None, min_length=1, description="column with each product's photos, or a pattern such as {id}.jpg; null: by id"
    )
    category_columns: Names = Field((), description="further columns of categories to learn from, such as the brand")
    number_columns: Names = Field((), description="further columns of numbers to learn from, such as the price")
    bad_images: Literal["blank", "error"] = Field(
        "blank", description="a missing or unreadable photo: replace it by a white one, or stop"
    )
    max_bad_images: Float = RuntimeField(
        0.2, ge=0, le=1, description="share of missing or unreadable photos in a table above which the run stops"
    )
    label_fixes: str | None = RuntimeField(
        None, min_length=1, description="labels_fixed.csv of review.ipynb: labels to learn otherwise, rows to leave out"
    )
    outputs_dir: str = RuntimeField("outputs", description="where runs and caches are written")


class FoldParams(_Group):
    """Which folds are trained."""

    fold_column: str | None = Field(
        None, description="column of train_csv with the fold of each product; null: folds are drawn"
    )
    group_by: Names = Field(
        ("photo", "text"), description="what makes products copies, kept in one fold: photo, text, or names of columns"
    )
    group_column: str | None = Field(
        None, description="column whose equal values stay in one fold, such as the seller or the listing"
    )
    folds: Numbers | None = RuntimeField(None, description="the folds to train; null: all but the first skip_folds")
    skip_folds: Int = RuntimeField(0, ge=0, description="number of folds to leave out, from the first; or name folds")
    refit: bool = RuntimeField(
        False, description="train one more model on all rows, as long as the folds suggest, and predict with it alone"
    )
    retrain: bool = RuntimeField(False, description="train again what is trained; the old one stays until then")


class ModelParams(_Group):
    """The heads, and what they get beside one photo and one text."""

    hidden_dim: Int = Field(1536, ge=1, description="width of the fusion head")
    head_copies: Int = Field(1, ge=1, description="heads that learn side by side, and whose mean predicts")
    dropout: Float = Field(0.2, ge=0, lt=1, description="dropout in the heads")
    text_model_name: str | None = Field(
        None,
        description="directory of a text encoder beside an image encoder in model_name, or in place of a dual one's",
    )
    extra_embeddings: NoneOrNames = Field(
        (), description="local directories of further text encoders; the heads get their frozen embeddings as well"
    )
    embeddings_files: Names = Field((), description="kinds embeddings, knn: files of vectors with ids, made elsewhere")
    save_embeddings: bool = RuntimeField(
        False, description="save the frozen backbone's embeddings of all products after the submission"
    )
    text_windows: Int = Field(
        1,
        ge=1,
        description="most windows of max_text_length that a longer text is encoded in; their embeddings are averaged",
    )


class TuningParams(_Group):
    """Which weights of the backbone are trained, and what the heads start from."""

    last_blocks: Int = Field(2, ge=1, description="tune last: number of trained blocks at the end of each tower")
    lora_rank: Int = Field(16, ge=1, description="tune lora: rank of the adapters")
    lora_alpha: Float = Field(32.0, gt=0, description="tune lora: scale of the adapters times their rank")
    lora_dropout: Float = Field(0.05, ge=0, lt=1, description="tune lora: dropout before the adapters")
    lora_targets: Names = Field(
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        description="tune lora: layers of each block that get an adapter",
    )
    frozen: Names = Field(
        (),
        description="parts of the backbone never trained, by the start of their names; a whole tower is embedded once",
    )
    warm_start_epochs: Int = Field(
        0, ge=0, description="epochs in which the heads are first fitted on frozen embeddings (LP-FT)"
    )
    warm_start_learning_rate: Float = Field(1e-3, gt=0, description="peak learning rate of the warm start")


class TrainingParams(_Group):
    """The training recipe."""

    optimizer: Literal["adamw", "adafactor"] = Field(
        "adamw", description="AdamW, or Adafactor, whose state takes almost no memory"
    )
    layer_decay: Float = Field(
        1.0, gt=0, le=1, description="learning rate of a block as a share of that of the block after it"
    )
    weight_decay: Float = Field(0.01, ge=0, description="weight decay, except of norms and biases")
    warmup_ratio: Float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    max_grad_norm: Float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    label_smoothing: Float = Field(
        0.0, ge=0, lt=1, description="share of the target that is spread evenly over all classes"
    )
    modality_dropout: Float = Field(
        0.0, ge=0, lt=1, description="share of the products per step whose image or text is hidden"
    )
    use_class_weight: bool | None = Field(
        None,
        validate_default=True,
        description="weight of a class in the loss: 1 / square root of its frequency; null: with metric macro_f1 only",
    )
    keep: Literal["last", "best"] = Field(
        "last", description="the epoch that is kept: the last, or the best on validation, scored as other folds choose"
    )
    early_stopping: Int = Field(
        0, ge=0, description="keep best: epochs without a better score in metric after which training stops; 0: never"
    )
    ema_decay: Float = Field(0.0, ge=0, lt=1, description="decay of the weights' exponential moving average; 0: none")
    soup: bool = Field(False, description="keep the mean of the weights at the ends of the second half's epochs")
    wise_ft: bool = Field(
        False, description="WiSE-FT: mix the weights before and after training as validation says; scored as keep best"
    )

    @field_validator("use_class_weight")
    @classmethod
    def _as_metric_asks(cls, given: bool | None, info: ValidationInfo) -> bool:
        """From here on it is true or false: rare classes weigh more where the metric counts all classes alike."""
        return info.data.get("metric") in COUNT_CLASSES_ALIKE if given is None else given


class AugmentParams(_Group):
    """How photos are changed in training, each way with its strength; 0 is off."""

    augment_crop: Float = Field(0.0, ge=0, lt=1, description="largest share of the photo's area that is cut away")
    augment_flip: Float = Field(0.0, ge=0, le=1, description="share of the photos that are mirrored")
    augment_colour: Float = Field(0.0, ge=0, lt=1, description="largest change of brightness, contrast and saturation")
    augment_blur: Float = Field(0.0, ge=0, le=1, description="share of the photos that are blurred")
    augment_jpeg: Float = Field(0.0, ge=0, le=1, description="share of the photos that are compressed as JPEG again")
    test_time_flip: bool = Field(False, description="predictions are the mean over the photo and its mirror image")


class RowParams(_Group):
    """Which rows are learned from: test rows with pseudo-labels on top, doubtful training rows left out."""

    pseudo_from: str | None = Field(
        None, description="name of a run whose predicted labels of the test set are learned from as well"
    )
    make_pseudo_labels: bool = RuntimeField(
        False, description="label the test products after the submission, for a next run's pseudo_from"
    )
    pseudo_precision: Float = RuntimeField(
        0.95, gt=0, le=1, description="pseudo_label.ipynb: minimum out-of-fold precision per class"
    )
    pseudo_cap: Float = RuntimeField(
        0.5, gt=0, description="pseudo_label.ipynb: most pseudo-labels per class, as a share of its training rows"
    )
    drop_noisy: Float = Field(
        0.0, ge=0, lt=0.5, description="share of the training rows to leave out, the likeliest mislabelled first"
    )


class BlendParams(_Group):
    """How finished runs are put together."""

    runs: Names = Field((), description="kind blend: names of the finished runs to blend")
    blend_method: Literal[
        "auto", "choose", "average", "mean", "best", "logits", "temperatures", "weights", "greedy", "metric_weights",
        "bias", "stacking",
    ] = Field(
        "auto",
        description="kind blend: method; auto: average, or best, the best member alone; choose: the best one by nested "
        "out-of-fold score",
    )  # fmt: skip
    allow_missing_folds: bool = Field(False, description="kind blend: leave out products that a run hasn't predicted")


class ResumeParams(_Group):
    """Stopping in time, and going on."""

    max_hours: Float | None = RuntimeField(None, gt=0, description="hours after which to save and stop; null: no limit")
    max_cell_hours: Float | None = RuntimeField(
        72.0, gt=0, description="hours that one cell of a notebook may take before the pipeline ends it; null: no limit"
    )
    checkpoint_minutes: Float = RuntimeField(15.0, ge=0, description="minutes between two saved states")
    resume_from: str | None = RuntimeField(None, description="folder of another run to go on from; it is only read")


class TrackingParams(_Group):
    """Weights & Biases."""

    wandb_mode: Literal["auto", "online", "offline", "disabled"] = RuntimeField(
        "auto",
        description="auto: as WANDB_MODE says, else off without key or settings, offline without network, else online",
    )
    wandb_project: str = RuntimeField("goods-classification", description="project on wandb that runs are logged to")


# Pydantic takes the fields of the last base first: read upwards, this is the order of Params.model_fields.
class Params(
    TrackingParams,
    ResumeParams,
    BlendParams,
    RowParams,
    AugmentParams,
    TrainingParams,
    TuningParams,
    ModelParams,
    FoldParams,
    DataParams,
    CommonParams,
):
    """Everything an experiment depends on; frozen, and closed to unknown names."""

    @property
    def run_dir(self) -> Path:
        """Folder of the run; a debug run never mixes with the real one."""
        return resolve(self.outputs_dir) / (self.run + ("-debug" if self.debug else ""))

    @property
    def chosen_folds(self) -> list[int]:
        """The folds to train: those in `folds`, or all but the first `skip_folds`."""
        return list(range(self.skip_folds, self.n_folds)) if self.folds is None else list(self.folds)

    @property
    def seed_offset(self) -> int:
        """What sets the fold's random numbers apart: its number, or for the refit that of one fold more."""
        return self.n_folds if self.fold == REFIT else self.fold


RUNTIME_FIELDS = frozenset(name for name, field in Params.model_fields.items() if field.json_schema_extra == RUNTIME)


# Where their values come from -----------------------------------------------------------------------------------------

P = TypeVar("P", bound=Params)


def load_params(config: str | None = None, **given: Any) -> Params:
    """Params defaults < the YAML file `config` < `given`; with `data_dir`, the data paths not given are found below it.

    Raises GoodsError for an unknown name, an ill-typed value, or a file that isn't there.
    """
    return _load(Params, config, given)


def load_run(config: str, **given: Any) -> Params:
    """load_params; the run is called as the config's file where neither of the two names it."""
    p = load_params(config, **given)
    return p if "run" in p.model_fields_set else load_params(config, **given, run=Path(config).stem)


def _load(schema: type[P], config: str | None, given: dict[str, Any]) -> P:
    values = read_yaml(config) if config else {}
    values |= given
    for name in values:
        if name not in schema.model_fields:
            raise ParameterError(unknown_parameter(str(name), config if name not in given else None, schema))
    try:
        p = schema(**values)
    except ValidationError as error:
        raise ParameterError(_sentence(error, schema)) from None
    refuse_contradictions(p)
    return p.model_copy(update=find_data(p.data_dir, set(values))) if p.data_dir else p


def read_params(namespace: Mapping[str, Any], schema: type[P] = Params) -> P:
    """Params from a notebook's parameters cell: `p = gu.read_params(globals())`, before anything else is defined.

    A notebook with parameters of its own gives its `schema`, a subclass of Params.

    `config` names the YAML file; None means "as the config says". Any other plain variable must be a field of Params,
    so that `papermill ... -p flod 2` stops instead of training fold 0. When the cell is run again later, variables
    that the notebook has made since are let pass, unless they look like a misspelt field.
    """
    tell_ends()
    again, startup = "__goods_params_read__" in namespace, left_by_startup(namespace)
    given: dict[str, Any] = {}
    for name, value in namespace.items():
        if name.startswith("_") or name in ("In", "Out", "config") or name in startup:
            continue
        if name in schema.model_fields:
            given |= {} if value is None else {name: value}
        elif _is_literal(value) and not (again and not _nearest(name, schema, cutoff=0.75)):
            # The variable outlives the line that made it, so mending the cell is not enough.
            raise ParameterError(f"{unknown_parameter(name, schema=schema)} (once the cell is mended: del {name})")
    config = None if "config" in startup else namespace.get("config")
    p = _load(schema, str(config or DEFAULT_CONFIG), given)
    if isinstance(namespace, dict):
        namespace["__goods_params_read__"] = True
    return p


def unknown_parameter(name: str, where: str | None = None, schema: type[Params] = Params) -> str:
    """The sentence for a name that Params doesn't have, with the nearest one it has."""
    near = _nearest(name, schema)
    advice = f"did you mean '{near}'?" if near else "the parameters are the fields of Params in goods/params.py"
    return f"unknown parameter '{name}'{f' in {where}' if where else ''}; {advice}"


def _is_literal(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))


def _nearest(name: str, schema: type[Params], cutoff: float = 0.6) -> str | None:
    known = [known for known in (*schema.model_fields, "config") if known != name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return near[0] if near else None


def _sentence(error: ValidationError, schema: type[Params]) -> str:
    lines = []
    for item in error.errors():
        name, value = ".".join(map(str, item["loc"])), item["input"]
        what = item["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
        field = schema.model_fields[str(item["loc"][0])]
        shown = f", but is {plain(repr(value))}" if field.repr else ""  # not where a secret could stand by mistake
        lines.append(f"parameter '{name}' {what}{shown} ({field.description})")
    return "; ".join(lines)
