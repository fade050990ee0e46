"""The parameters as one reads them: what one sets most often first, then one group after another."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from goods.compress.params import CompressParams
from goods.params import RUNTIME_FIELDS, CommonParams, Params

ORDER = {
    "CommonParams": "run fold data_dir num_classes metric kind model_name tune image_size max_text_length batch_size "
    "micro_batch_size eval_batch_size num_epochs learning_rate head_learning_rate gradient_checkpointing "
    "mixed_precision n_folds seed num_workers debug",
    "DataParams": "train_csv test_csv train_images_dir test_images_dir id_column label_column text_columns "
    "image_column category_columns number_columns bad_images max_bad_images label_fixes outputs_dir",
    "FoldParams": "fold_column group_by group_column folds skip_folds refit retrain",
    "ModelParams": "hidden_dim head_copies dropout text_model_name extra_embeddings embeddings_files save_embeddings "
    "text_windows",
    "TuningParams": "last_blocks lora_rank lora_alpha lora_dropout lora_targets frozen warm_start_epochs "
    "warm_start_learning_rate",
    "TrainingParams": "optimizer layer_decay weight_decay warmup_ratio max_grad_norm label_smoothing modality_dropout "
    "use_class_weight keep early_stopping ema_decay soup wise_ft",
    "AugmentParams": "augment_crop augment_flip augment_colour augment_blur augment_jpeg test_time_flip",
    "RowParams": "pseudo_from make_pseudo_labels pseudo_precision pseudo_cap drop_noisy",
    "BlendParams": "runs blend_method allow_missing_folds",
    "ResumeParams": "max_hours max_cell_hours checkpoint_minutes resume_from",
    "TrackingParams": "wandb_mode wandb_project",
}


def test_what_one_sets_most_often_comes_first():
    assert list(Params.model_fields)[: len(CommonParams.model_fields)] == list(CommonParams.model_fields)


def test_the_groups_follow_in_the_order_of_the_file():
    assert list(Params.model_fields) == " ".join(ORDER.values()).split()


@pytest.mark.parametrize("name", ORDER)
def test_a_group_holds_its_own_fields_and_says_what_for(name):
    group = next(base for base in Params.__bases__ if base.__name__ == name)
    assert list(group.model_fields) == ORDER[name].split()
    assert group.__doc__


def test_the_language_models_parameters_come_after_all_others():
    assert list(CompressParams.model_fields)[: len(Params.model_fields)] == list(Params.model_fields)
    own = list(CompressParams.model_fields)[len(Params.model_fields) :]
    assert own and all(name.startswith("llm") for name in own)


def test_what_may_differ_between_two_calls_of_a_run():
    assert {
        "fold", "folds", "skip_folds", "refit", "retrain", "label_fixes", "outputs_dir", "data_dir", "train_csv",
        "test_csv",
        "train_images_dir", "test_images_dir", "micro_batch_size", "eval_batch_size", "gradient_checkpointing",
        "num_workers", "max_hours", "checkpoint_minutes", "resume_from", "wandb_mode", "wandb_project",
        "pseudo_precision", "pseudo_cap", "max_bad_images", "max_cell_hours", "make_pseudo_labels", "save_embeddings",
    } == RUNTIME_FIELDS  # fmt: skip


@pytest.mark.parametrize("schema", [Params, CompressParams])
def test_every_field_is_described_in_a_line(schema):
    for name, field in schema.model_fields.items():
        assert field.description, name
        assert len(field.description) <= 120, name


def test_parameters_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Params().num_epochs = 3


def test_an_unknown_name_is_refused():
    with pytest.raises(ValidationError, match="flod"):
        Params(flod=3)
