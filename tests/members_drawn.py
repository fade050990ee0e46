"""Predictions of members whose worth is known, drawn at random."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax


def problem(seed: int = 0, n: int = 600, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,), and log-probabilities (3, n, classes): good, other, and noise that knows nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    truth = np.eye(classes)[labels]
    raw = [
        2 * truth + rng.normal(size=truth.shape),
        2 * truth + rng.normal(size=truth.shape),
        rng.normal(size=truth.shape),
    ]
    return labels, np.stack([log_softmax(values, axis=1) for values in raw])
