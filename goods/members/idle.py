"""Parameters that would have no effect with the others given: refused, before anything is trained without them."""

from __future__ import annotations

from collections.abc import Callable

from goods.errors import ParameterError
from goods.params import AugmentParams, Params

PHOTO = tuple(AugmentParams.model_fields)
WORDS = ("text", "linear")
COLUMNS = ("category_columns", "number_columns")
VECTORS = ("embeddings", "knn")  # kinds that can do with vectors made elsewhere
OF_PHOTOS = ("dual", "image")

# Parameters, when they are idle, and why.
RULES: tuple[tuple[tuple[str, ...], Callable[[Params], bool], str], ...] = (
    (PHOTO, lambda p: p.kind in OF_PHOTOS and p.tune == "head",
     "with tune head each photo is embedded once, as it is; take tune last, lora or full"),
    (PHOTO, lambda p: p.kind == "knn", "kind knn embeds each photo once, as it is"),
    (COLUMNS, lambda p: p.kind not in ("dual", "embeddings", "linear"),
     "this kind has no place for further columns; take linear, dual or embeddings"),
    (PHOTO, lambda p: p.kind == "embeddings", "kind embeddings reads vectors that were made elsewhere, and no photo"),
    (("wise_ft",), lambda p: p.kind == "embeddings",
     "it mixes the weights before and after training, and the heads are random before"),
    (("warm_start_epochs",), lambda p: p.kind == "embeddings", "the heads alone are trained; raise num_epochs"),
    (("embeddings_files",), lambda p: p.kind not in VECTORS,
     "this kind reads no vectors made elsewhere; take kind embeddings or knn"),
    ((*PHOTO, "modality_dropout"), lambda p: p.kind in WORDS, "this kind reads texts alone"),
    (("wise_ft",), lambda p: p.kind in OF_PHOTOS and p.tune == "head",
     "with tune head all that is trained is random before; take tune last, lora or full, and warm_start_epochs"),
    (("wise_ft",), lambda p: p.kind in OF_PHOTOS and not p.warm_start_epochs,
     "it mixes the weights before and after training, and without a warm start the heads are random before; set "
     "warm_start_epochs, such as 20"),
    (("wise_ft",), lambda p: p.kind == "text",
     "it mixes the weights before and after training, and the head of kind text is random before"),
    (("warm_start_epochs",), lambda p: p.kind in OF_PHOTOS and p.tune == "head",
     "with tune head the heads alone are trained; raise num_epochs"),
    (("head_copies",), lambda p: p.kind not in (*OF_PHOTOS, "embeddings"),
     "only kinds dual, image and embeddings have heads that are copied"),
    (("extra_embeddings", "text_windows", "modality_dropout"), lambda p: p.kind == "image",
     "this kind looks at photos alone; take kind dual for photo and text"),
    (("text_model_name",), lambda p: p.kind not in ("dual", "knn"),
     "it is the text encoder of kinds dual and knn; kind text reads model_name"),
    (("refit",), lambda p: p.kind == "blend", "a blend predicts as its runs do; set refit where they are made"),
    (("make_pseudo_labels",), lambda p: p.kind == "blend", "a blend has no folds of its own; label by one of its runs"),
    (("make_pseudo_labels",), lambda p: len(p.chosen_folds) < p.n_folds,
     "labels come from all folds; leave folds and skip_folds out: those that are trained stay"),
    (("save_embeddings",), lambda p: p.kind not in ("dual", "knn"), "this kind has no image and text encoder"),
    (("label_fixes",), lambda p: p.kind == "blend",
     "a blend learns from its runs' predictions, and scores go by the table's labels; set it where the runs are made"),
    (("n_folds",), lambda p: p.kind == "knn" and p.n_folds < 3,
     "kind knn chooses for each fold how neighbours vote on the other folds, each by neighbours in neither, of which "
     "two folds leave none; take 3 or more"),
)  # fmt: skip


def refuse_idle(p: Params) -> None:
    """Raises ParameterError where a parameter other than its default would have no effect; reads those in RULES.

    So it does where what a kind can't do without isn't given.
    """
    if p.kind == "embeddings" and not p.embeddings_files:
        raise ParameterError(
            "kind embeddings needs embeddings_files, the files of vectors with ids that it learns from"
        )
    for names, idle, why in RULES:
        for name in names:
            if getattr(p, name) != Params.model_fields[name].default and idle(p):
                raise ParameterError(f"{name}: {getattr(p, name)} has no effect: {why}")
