"""What a blend comes to, in a sentence, from its metrics.json alone. Light (no numpy): the pipeline says it, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from goods.metric_names import SHOWN_AS
from goods.words import digits, signed


def verdict(metrics: Mapping[str, Any], metric: str) -> str:
    """The method, its members, and what they gain over the best one alone; "" where it is no blend, or an old one."""
    try:
        method, best, methods = metrics["method"], metrics["best_member"], metrics["methods"]
        *_, taken = methods.values()  # the last row is what the blend is scored by
        members = shown_members([name for name in metrics["members"] if name != "blend"])
        score, gain = f"{SHOWN_AS[metric]} {digits(taken[metric])}", with_interval(taken)
        if method == "best":
            other = methods.get("average")
            why = f"; their average scores {digits(other[metric])}, {with_interval(other)}" if other else ""
            said = f"best member alone, {best}, of {members}: {score}{why}"
        elif len(metrics["members"]) == 2:  # itself and the blend
            said = f"{method} of {members}: {score}"
        else:
            said = f"{method} of {members}: {score}, {than(taken)} {best} alone{beyond(taken)} ({gain})"
        return said + _otherwise(metrics.get("picked", {}), method)
    except (KeyError, TypeError, ValueError, AttributeError):  # a version that didn't keep it, or a damaged file
        return ""


def than(row: Mapping[str, Any]) -> str:
    """How a row of gains compares: better, worse, or not better than noise."""
    if row["gain_low"] <= 0 <= row["gain_high"]:
        return "not better than"
    return "better than" if row["gain"] > 0 else "worse than"


def beyond(row: Mapping[str, Any]) -> str:
    """ " beyond noise" where the gain's interval holds 0."""
    return " beyond noise" if row["gain_low"] <= 0 <= row["gain_high"] else ""


def with_interval(row: Mapping[str, Any]) -> str:
    """+.008, -.003 to +.019"""
    return f"{signed(row['gain'])}, {signed(row['gain_low'])} to {signed(row['gain_high'])}"


def shown_members(names: Sequence[str]) -> str:
    """Members by their runs: linear, demo (fused, image, text)."""
    runs: dict[str, list[str]] = {}
    for name in names:
        run, _, output = name.rpartition("/")
        runs.setdefault(run, []).append(output)
    each = [run if len(outputs) == 1 else f"{run} ({', '.join(outputs)})" for run, outputs in runs.items()]
    return ", ".join(each)


def _otherwise(picked: Mapping[str, str], method: str) -> str:
    """Which folds chose another method than all rows do."""
    chose: dict[str, list[str]] = {}
    for fold, name in picked.items():
        if name != method:
            chose.setdefault(name, []).append(fold)
    word = {name: "folds" if len(folds) > 1 else "fold" for name, folds in chose.items()}
    return "".join(f"; {word[name]} {', '.join(folds)} chose {name}" for name, folds in chose.items())
