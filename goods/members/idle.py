"""Parameters that would have no effect with the others given: refused, before anything is trained without them."""

from __future__ import annotations

from collections.abc import Callable

from goods.errors import ParameterError
from goods.params import AugmentParams, Params

PHOTO = tuple(AugmentParams.model_fields)
WORDS = ("text", "linear")

# Parameters, when they are idle, and why.
RULES: tuple[tuple[tuple[str, ...], Callable[[Params], bool], str], ...] = (
    (PHOTO, lambda p: p.kind == "dual" and p.tune == "head",
     "with tune head each photo is embedded once, as it is; take tune last, lora or full"),
    (PHOTO, lambda p: p.kind == "knn", "kind knn embeds each photo once, as it is"),
    ((*PHOTO, "modality_dropout"), lambda p: p.kind in WORDS, "this kind reads texts alone"),
    (("wise_ft",), lambda p: p.kind == "dual" and p.tune == "head",
     "with tune head all that is trained is random before; take tune last, lora or full, and warm_start_epochs"),
    (("wise_ft",), lambda p: p.kind == "dual" and not p.warm_start_epochs,
     "it mixes the weights before and after training, and without a warm start the heads are random before; set "
     "warm_start_epochs, such as 20"),
    (("wise_ft",), lambda p: p.kind == "text",
     "it mixes the weights before and after training, and the head of kind text is random before"),
    (("warm_start_epochs",), lambda p: p.kind == "dual" and p.tune == "head",
     "with tune head the heads alone are trained; raise num_epochs"),
    (("refit",), lambda p: p.kind == "blend", "a blend predicts as its runs do; set refit where they are made"),
    (("label_fixes",), lambda p: p.kind == "blend",
     "a blend learns from its runs' predictions, and scores go by the table's labels; set it where the runs are made"),
    (("n_folds",), lambda p: p.kind == "knn" and p.n_folds < 3,
     "kind knn chooses for each fold how neighbours vote on the other folds, each by neighbours in neither, of which "
     "two folds leave none; take 3 or more"),
)  # fmt: skip


def refuse_idle(p: Params) -> None:
    """Raises ParameterError where a parameter other than its default would have no effect; reads those in RULES."""
    for names, idle, why in RULES:
        for name in names:
            if getattr(p, name) != Params.model_fields[name].default and idle(p):
                raise ParameterError(f"{name}: {getattr(p, name)} has no effect: {why}")
