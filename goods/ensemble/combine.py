"""What a blend has learned, as arrays: members' log-probabilities made one prediction, each row by itself.

Fitting is in goods.ensemble.blend; here is what is left of it, which files hold and any machine applies again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax, logsumexp

from goods.errors import DamagedFileError
from goods.files import atomic_path

AVERAGE = "average"  # of other methods
BEST = "best"  # one member alone
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
    return mean_at(members, temperatures)


def mean_at(logits: Sequence[np.ndarray], temperatures: Sequence[float]) -> np.ndarray:
    """(n, num_classes) log of the mean of probabilities, of logits of that shape, each at its own temperature."""
    each = [log_softmax(values / temperature, axis=1) for values, temperature in zip(logits, temperatures, strict=True)]
    return logsumexp(np.stack(each), axis=0) - np.log(len(each))


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


def averaged(members: np.ndarray, weights: np.ndarray, **arrays: np.ndarray) -> np.ndarray:
    """The log of the mean of other methods' calibrated probabilities; their arrays as average_of names them."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(arrays):
        method, _, own = name.partition(".")
        parts.setdefault(method, {})[own] = arrays[name]
    temperatures = [part.pop("temperature") for part in parts.values()]
    return mean_at([RULES[method](members, **part) for method, part in parts.items()], temperatures)


def average_of(parts: Mapping[str, Combiner], temperatures: Mapping[str, float]) -> Combiner:
    """The mean of the probabilities of fitted methods, each at its temperature, as one Combiner.

    A member counts as much as it does in the methods on average. The arrays are the methods' own: "bias.weights",
    "bias.bias", and (1,) "bias.temperature".
    """
    arrays = {f"{method}.temperature": np.array([temperatures[method]]) for method in parts}
    for method, part in parts.items():
        arrays |= {f"{method}.{name}": values for name, values in {"weights": part.weights, **part.arrays}.items()}
    counts = [part.weights / (part.weights.sum() or 1) for part in parts.values()]  # all 0: no member knows anything
    return Combiner(AVERAGE, np.mean(counts, axis=0), arrays)


def side_by_side(members: np.ndarray) -> np.ndarray:
    """(n, members x num_classes) of (members, n, num_classes)."""
    return np.moveaxis(members, 0, 1).reshape(members.shape[1], -1)


RULES: dict[str, Callable[..., np.ndarray]] = {
    "mean": mix,
    BEST: summed,
    "logits": summed,
    "temperatures": mean_cooled,
    "weights": summed,
    "greedy": mix,
    "metric_weights": summed,
    "bias": biased,
    "stacking": regressed,
    AVERAGE: averaged,
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
        sizes = {name.rpartition(".")[2]: values.shape[-1] for name, values in arrays.items()}  # of its parts, too
        wide = sizes.get("coefficients", 0) // len(combiner.weights)
        combiner.predict(np.zeros((len(combiner.weights), 1, wide or sizes.get("bias", 2))))  # whether it has its own
    except Exception as error:  # anything at all can be wrong with a damaged file
        again = "put the runs together again: --steps ensemble --force"
        raise DamagedFileError(f"{path} is missing, damaged or of another way than '{method}'; {again}") from error
    return combiner
