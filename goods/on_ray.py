"""A table through predictors on Ray: actors that load a run once each, on one machine or many.

    goods_utils.py predict ... --out outputs/catalogue --engine ray

The call that gives the work reads the table, hands out stretches of it, and writes the parts; an actor gets products
and gives back their predictions. So an actor or a machine that is lost costs the stretches in its hands, which others
do again, and nobody but that one call writes a file. Plain actors, not Ray Data: its checkpoint is a list of ids beside
the output, which is read whole before it goes on, where a part that is there says as much by its number.
"""

from __future__ import annotations

import os
import platform
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from goods.accept import Acceptance
from goods.classify import Job, predicted_rows
from goods.errors import GoodsError, OtherRunError
from goods.predictor import Predictor, load_predictor

STRETCHES_EACH = 2  # in an actor's hands: the next one is there when it has done one
STRETCHES_AHEAD = 4  # for each actor, of a table that is read: what is done out of turn waits for those before it
MOST_ENDS = 4  # of actors over the same stretch, or while they load
PATIENCE_SECONDS = 60.0  # without an actor, before that is said


@dataclass(frozen=True)
class Loading:
    """What goods.predictor.load_predictor was called with, for others to do the same."""

    folder: Path
    models: Mapping[str, str | Path] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Predictor:
        """The predictor."""
        return load_predictor(self.folder, self.models, **self.settings)


class Actor:
    """A predictor in a process of Ray's."""

    def load(self, loading: Loading, fingerprint: str) -> None:
        """Raises GoodsError where this machine's run isn't that of `fingerprint`."""
        self._predictor = loading.load()
        if self._predictor.fingerprint != fingerprint:
            raise OtherRunError(f"{loading.folder} holds another run on {platform.node()}; copy it there again")

    def classify(self, products: pd.DataFrame, acceptance: Acceptance, probabilities: bool) -> pd.DataFrame:
        """See goods.classify.predicted_rows."""
        return predicted_rows(self._predictor, products, acceptance, probabilities)


def classified(
    job: Job, loading: Loading, stretches: Iterator[pd.DataFrame], actors: int | None = None
) -> Iterator[pd.DataFrame]:
    """The rows of each stretch's predictions, in their order, as goods.classify.predicted_rows has them.

    actors: how many work side by side; by default one for each GPU of the cluster, or where it has none, for each CPU.
    Joins the cluster that RAY_ADDRESS names or that runs on this machine, or begins one. Raises GoodsError where ray is
    not installed, and what goes wrong in an actor.
    """
    crew = Crew(job, loading, actors)
    numbered, done, due = enumerate(stretches), dict[int, pd.DataFrame](), 0
    try:
        while True:
            while crew.given + len(done) < STRETCHES_AHEAD * crew.size and (entry := next(numbered, None)):
                crew.give(*entry)
            if not crew.given:
                return
            done |= crew.wait()
            while due in done:
                yield done.pop(due)
                due += 1
    finally:
        crew.end()


class Crew:
    """Actors, the stretches that each has in hand, and those that wait for one."""

    def __init__(self, job: Job, loading: Loading, size: int | None) -> None:
        self._ray = joined()
        resources = self._ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        self.size, self._job, self._loading = size or gpus or cpus or 1, job, loading
        self._how = {"num_cpus": 1, "num_gpus": int(bool(gpus)), "max_restarts": 0, "max_task_retries": 0}
        self._open: dict[int, pd.DataFrame] = {}  # given and not done
        self._waiting: deque[int] = deque()
        self._calls: dict[Any, tuple[Any, int | None]] = {}  # of each call under way its actor and stretch
        self._load: Counter[Any] = Counter()  # stretches in an actor's hands
        self._ends: Counter[int | None] = Counter()  # of actors, by what they were at
        for _ in range(self.size):
            self._begin_actor()

    @property
    def given(self) -> int:
        """Stretches that aren't done."""
        return len(self._open)

    def give(self, number: int, products: pd.DataFrame) -> None:
        """A stretch to be done."""
        self._open[number] = products
        self._waiting.append(number)
        self._hand_out()

    def wait(self) -> dict[int, pd.DataFrame]:
        """What is done meanwhile, perhaps nothing; what a lost actor had in hand is given to others."""
        ended, _ = self._ray.wait(list(self._calls), timeout=PATIENCE_SECONDS)
        if not ended and not self._load:
            print("no actor is there yet: ray waits for a machine with a free CPU or GPU", flush=True)
        found = {}
        for call in ended:
            actor, number = self._calls.pop(call, (None, None))
            if not actor:
                continue  # it was of an actor that is gone since
            try:
                result = self._ray.get(call)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except self._ray.exceptions.RayError:
                self._replace(actor, number)
                continue
            self._ends.pop(number, None)
            if number is None:
                self._load[actor] = 0  # it has loaded
                continue
            self._load[actor] -= 1
            found[number] = result
            del self._open[number]
        self._hand_out()
        return found

    def end(self) -> None:
        """Ends the actors; the cluster stays as it is."""
        for actor in {actor for actor, _ in self._calls.values()} | set(self._load):
            self._ray.kill(actor)

    def _begin_actor(self) -> None:
        actor = self._ray.remote(Actor).options(**self._how).remote()
        self._calls[actor.load.remote(self._loading, self._job.predictor.fingerprint)] = actor, None

    def _hand_out(self) -> None:
        while self._waiting and self._load:
            actor, load = min(self._load.items(), key=lambda each: each[1])
            if load >= STRETCHES_EACH:
                return
            number = self._waiting.popleft()
            products, job = self._open[number], self._job
            call = actor.classify.remote(products, job.acceptance, job.probabilities)
            self._calls[call], self._load[actor] = (actor, number), load + 1

    def _replace(self, actor: Any, number: int | None) -> None:
        """Gives what a lost actor had in hand to others, first of all, and begins another one."""
        lost = [call for call, (of, _) in self._calls.items() if of == actor]
        in_hand = sorted(filter(lambda each: each is not None, {number, *(self._calls.pop(call)[1] for call in lost)}))
        self._waiting.extendleft(reversed(in_hand))
        self._load.pop(actor, None)
        self._ends[in_hand[0] if in_hand else None] += 1
        if self._ends[in_hand[0] if in_hand else None] >= MOST_ENDS:
            at = f"the products from {self._first_id(in_hand[0])} on" if in_hand else "the loading of the run"
            raise GoodsError(f"{MOST_ENDS} actors ended one after the other over {at}, most often for lack of memory: "
                             "look at ray's log, or take fewer actors on a machine; what is written stays")  # fmt: skip
        self._ray.kill(actor)
        self._begin_actor()

    def _first_id(self, number: int) -> str:
        return str(self._open[number][self._job.predictor.p.id_column].iloc[0])


def joined() -> Any:
    """The module ray, at work in a cluster; raises GoodsError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise GoodsError("--engine ray needs the package ray: pip install -r requirements-ray.txt") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster begun here: ray's own is 15
        ray.init(logging_level="WARNING", include_dashboard=False)
    return ray
