"""Names of the metrics, for what starts without numpy; goods.metrics says how each is computed."""

from __future__ import annotations

from typing import Literal

MetricName = Literal["macro_f1", "accuracy", "weighted_f1", "log_loss"]

SHOWN_AS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "weighted_f1": "weighted F1", "log_loss": "log-loss"}
COUNT_CLASSES_ALIKE = ("macro_f1",)  # a product of a rare class counts for more; for the others all count alike


COLUMNS = SHOWN_AS | {"gain_low": "from", "gain_high": "to", "noise": "within noise",
                      "calibration_error": "calibration error", "best_epoch": "best epoch"}  # fmt: skip


def column_shown(column: str) -> str:
    """A column of scores or gains as people read it; any other as it is."""
    name = column.removesuffix("_without")
    return COLUMNS[name] + " without it" * (name != column) if name in COLUMNS else column


def metric_first(metric: str, *others: str) -> list[str]:
    """Names of scores in the order to show them: the metric, then the others."""
    return list(dict.fromkeys((metric, *others)))
