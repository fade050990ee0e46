"""Parameters that would have no effect are refused when a run is opened."""

from __future__ import annotations

import pytest

from goods.errors import ParameterError

SMALL = {"n_folds": 3}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"tune": "head", "test_time_flip": True},
            "test_time_flip: True .* tune head each photo is embedded once",
        ),
        ({"tune": "head", "augment_crop": 0.3}, "augment_crop: 0.3 .* with tune head each photo is embedded once"),
        ({"kind": "knn", "augment_flip": 0.5}, "augment_flip: 0.5 .* kind knn embeds each photo once"),
        ({"kind": "text", "augment_jpeg": 0.5}, "augment_jpeg: 0.5 .* reads texts alone"),
        ({"kind": "text", "modality_dropout": 0.2}, "modality_dropout: 0.2 .* reads texts alone"),
        ({"kind": "linear", "test_time_flip": True}, "test_time_flip: True .* reads texts alone"),
        ({"tune": "full", "wise_ft": True}, "wise_ft: True .* without a warm start .* set warm_start_epochs"),
        ({"tune": "head", "wise_ft": True}, "wise_ft: True .* with tune head all that is trained is random before"),
        ({"kind": "text", "wise_ft": True}, "wise_ft: True .* the head of kind text is random before"),
        ({"tune": "head", "warm_start_epochs": 3}, "warm_start_epochs: 3 .* raise num_epochs"),
        ({"embeddings_files": "a.npz"}, "embeddings_files: .* reads no vectors made elsewhere"),
        ({"kind": "embeddings"}, "kind embeddings needs embeddings_files"),
        ({"kind": "embeddings", "embeddings_files": "a.npz", "augment_flip": 0.5}, "augment_flip: 0.5 .* no photo"),
        ({"kind": "linear", "make_pseudo_labels": True, "folds": [0, 1]}, "labels come from all folds; leave"),
        ({"kind": "linear", "head_copies": 3}, "head_copies: 3 .* only kinds dual, image and embeddings"),
        ({"kind": "linear", "save_embeddings": True}, "save_embeddings: True .* no image and text encoder"),
        ({"kind": "knn", "n_folds": 2}, "n_folds: 2 .* two folds leave none; take 3 or more"),
    ],
)
def test_what_would_have_no_effect_is_refused(make, given, message):
    with pytest.raises(ParameterError, match=message):
        make(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"tune": "full", "wise_ft": True, "warm_start_epochs": 3, "test_time_flip": True, "augment_crop": 0.3},
        {"kind": "dual", "n_folds": 2},
        {"kind": "linear", "n_folds": 2, "make_pseudo_labels": True},
    ],
)
def test_what_has_an_effect_is_taken(make, given):
    assert make(**given).run_dir.is_dir()
