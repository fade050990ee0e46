"""What an ensemble has learned beside its members' own weights, kept as files: enough to predict any further table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from goods.ensemble.combine import Combiner, load_combiner, save_combiner
from goods.errors import DamagedFileError, GoodsError, OtherRunError, listing
from goods.files import file_hash, read_json, write_json
from goods.run import Run

AGAIN = "put it together again: its pipeline with --steps ensemble submission --force"


@dataclass(frozen=True)
class FoldMean:
    """The mean of a run's folds: their numbers, and the temperature of each output."""

    folds: tuple[int, ...]
    temperatures: Mapping[str, float]

    def combine(self, logits: Mapping[int, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """{output: (n, num_classes) calibrated log-probabilities} of {fold: {output: (n, num_classes) logits}}."""
        found = {}
        for output, temperature in self.temperatures.items():
            each = [log_softmax(of[output].astype(np.float64) / temperature, axis=1) for of in logits.values()]
            found[output] = logsumexp(each, axis=0) - np.log(len(each))
        return found

    def facts(self, run: Run) -> dict[str, Any]:
        """What method.json holds of it."""
        weights = {run.fold(k).folder.name: 1 / len(self.folds) for k in self.folds}
        return {"weights": weights, "folds": list(self.folds), "temperatures": dict(self.temperatures)}


@dataclass(frozen=True)
class RunBlend:
    """Outputs of other runs ("head/fused") under a Combiner; `picked`: each fold's method, where chosen."""

    members: tuple[str, ...]
    combiner: Combiner
    temperature: float
    picked: Mapping[int, str] = field(default_factory=dict)

    @property
    def runs(self) -> list[str]:
        """The names of the runs that the members are of."""
        return list(dict.fromkeys(name.rpartition("/")[0] for name in self.members))

    @property
    def choices(self) -> dict[str, dict[str, str]]:
        """{"picked": {fold: method}} where the method was chosen, else nothing."""
        return {"picked": {str(k): name for k, name in self.picked.items()}} if self.picked else {}

    def combine(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{"fused": (n, num_classes) calibrated log-probabilities} of the members' log-probabilities by name."""
        stacked = np.stack([outputs[name] for name in self.members])
        return {"fused": log_softmax(self.combiner.predict(stacked) / self.temperature, axis=1)}

    def facts(self, run: Run) -> dict[str, Any]:
        """What method.json holds of it; the arrays are in weights.safetensors."""
        weights = dict(zip(self.members, self.combiner.weights.round(4).tolist(), strict=True))
        return {"method": self.combiner.method} | self.choices | {"weights": weights, "temperature": self.temperature}


def write_learned(run: Run, learned: FoldMean | RunBlend) -> None:
    """Writes ensemble/method.json and, of a blend, ensemble/weights.safetensors."""
    if isinstance(learned, RunBlend):
        save_combiner(learned.combiner, run.blend_weights)
    write_json(run.method, learned.facts(run) | {"made_of": _made_of(run, learned)})


def _made_of(run: Run, learned: FoldMean | RunBlend) -> dict[str, str]:
    """{part: hash} of the folds or runs that are there: of a fold its scores to the last digit, of a run what it has
    learned."""
    if isinstance(learned, RunBlend):
        methods = {name: run.member(name).method for name in learned.runs}
        return {name: file_hash(path)[:16] for name, path in methods.items() if path.is_file()}
    folds = [fold for fold in map(run.fold, learned.folds) if fold.predicts]
    scores = {fold.folder.name: fold.scores() | {"resources": None} for fold in folds}
    said = {name: json.dumps(of, sort_keys=True).encode() for name, of in scores.items()}
    return {name: hashlib.sha256(text).hexdigest()[:16] for name, text in said.items()}


def _refuse_other_parts(run: Run, learned: FoldMean | RunBlend, made_of: Mapping[str, str]) -> None:
    now = _made_of(run, learned)
    if other := [name for name in made_of if name in now and now[name] != made_of[name]]:
        raise OtherRunError(f"what run '{run.name}' has learned goes with another {listing(other)} than there is now, "
                            f"trained or put together since; {AGAIN}")  # fmt: skip


def read_learned(run: Run) -> FoldMean | RunBlend:
    """What write_learned wrote.

    Raises GoodsError where the run was never put together, or by a version that didn't keep it, OtherRunError where its
    folds or runs aren't those that it was put together from, and DamagedFileError where the files aren't whole.
    """
    if not run.method.is_file():
        trained = ", ".join(map(str, run.trained())) or "none"
        raise GoodsError(f"run '{run.name}' in {run.folder} is unfinished: it has no ensemble yet (folds trained: "
                         f"{trained}); run its pipeline to the end")  # fmt: skip
    facts = read_json(run.method, AGAIN)
    if "temperatures" not in facts and not ("method" in facts and run.blend_weights.is_file()):
        raise GoodsError(f"{run.method} is of a version that didn't keep what it had learned; {AGAIN}")
    try:
        if "temperatures" in facts:
            temperatures = {str(name): float(value) for name, value in facts["temperatures"].items()}
            learned = FoldMean(tuple(int(k) for k in facts["folds"]), temperatures)
        else:
            members, picked = tuple(facts["weights"]), {int(k): name for k, name in facts.get("picked", {}).items()}
            combiner = load_combiner(facts["method"], run.blend_weights)
            learned = RunBlend(members, combiner, float(facts["temperature"]), picked)
        _refuse_other_parts(run, learned, facts.get("made_of", {}))
        return learned
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, GoodsError):
            raise
        raise DamagedFileError(f"{run.method} is damaged; {AGAIN}") from error
