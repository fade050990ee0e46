"""What a blend has learned, as arrays: members' log-probabilities made one prediction, each row by itself.

Fitting is in goods.ensemble.blend; here is what is left of it, which files hold and any machine applies again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax, logsumexp

from goods.errors import DamagedFileError
from goods.files import atomic_path

NEVER_SEEN = -21.0  # the log-probability, at most, of a class that a stacked regression never saw


@dataclass(frozen=True)
class Combiner:
    """What a method has learned: `weights` (members,) say how much each member counts, `arrays` what else it needs."""

    method: str
    weights: np.ndarray
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def predict(self, members: np.ndarray) -> np.ndarray:
        """(n, num_classes) logits of (members, n, num_classes) log-probabilities; no row depends on another."""
        return RULES[self.method](members, self.weights, **self.arrays)


def mix(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The log of the weighted mean of probabilities."""
    used = weights > 0
    return logsumexp(members[used], axis=0, b=weights[used, None, None])


def summed(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted sum of log-probabilities."""
    return np.tensordot(weights, members, 1)


def mean_cooled(members: np.ndarray, weights: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
    """The log of the mean of probabilities, each member's (members,) at its own temperature."""
    each = log_softmax(members / temperatures[:, None, None], axis=2)
    return logsumexp(each, axis=0) - np.log(len(each))


def biased(members: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The weighted sum, and for each class (num_classes,) a constant."""
    return log_softmax(np.tensordot(weights, members, 1), axis=1) + bias


def regressed(
    members: np.ndarray, weights: np.ndarray, coefficients: np.ndarray, intercepts: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Multinomial logistic regression on all members side by side; a class that it never saw is the last.

    coefficients (classes seen, members x num_classes), intercepts and classes (classes seen,); of two classes there is
    but one row of coefficients, for the second.
    """
    scores = side_by_side(members) @ coefficients.T + intercepts
    if len(coefficients) == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    known = log_softmax(scores, axis=1)
    full = np.repeat(np.minimum(known.min(1, keepdims=True) - 1, NEVER_SEEN), members.shape[2], axis=1)
    full[:, classes] = known
    return full


def side_by_side(members: np.ndarray) -> np.ndarray:
    """(n, members x num_classes) of (members, n, num_classes)."""
    return np.moveaxis(members, 0, 1).reshape(members.shape[1], -1)


RULES: dict[str, Callable[..., np.ndarray]] = {
    "mean": mix,
    "logits": summed,
    "temperatures": mean_cooled,
    "weights": summed,
    "greedy": mix,
    "metric_weights": summed,
    "bias": biased,
    "stacking": regressed,
}


def save_combiner(combiner: Combiner, path: Path) -> None:
    """Writes weights and arrays as safetensors, the method among its metadata."""
    tensors = {"weights": combiner.weights, **combiner.arrays}
    with atomic_path(path) as temporary:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, temporary)


def load_combiner(method: str, path: Path) -> Combiner:
    """Reads what save_combiner wrote; raises DamagedFileError where it isn't whole, or of no method there is."""
    try:
        arrays = load_file(path)
        combiner = Combiner(method, arrays.pop("weights"), arrays)
        if "coefficients" in arrays:
            classes = arrays["coefficients"].shape[1] // len(combiner.weights)
        else:
            classes = len(arrays.get("bias", (0, 0)))
        combiner.predict(np.zeros((len(combiner.weights), 1, classes)))  # whether these are the method's arrays
    except Exception as error:  # anything at all can be wrong with a damaged file
        again = "put the runs together again: --steps ensemble --force"
        raise DamagedFileError(f"{path} is missing, damaged or of another way than '{method}'; {again}") from error
    return combiner
