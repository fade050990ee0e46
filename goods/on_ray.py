"""A table through predictors on Ray Data: actors that load a run once each, on one machine or many.

    goods_utils.py predict ... --out outputs/catalogue --engine ray

The call that gives the work hands out the numbers of the parts that aren't there yet, and writes each part that comes
back; an actor reads a part's products from the table and predicts them. So an actor or a machine that is lost costs the
parts in its hands, which others do again, and nobody but that one call writes a file. What is done stands in the parts,
not in Ray Data's own checkpoint, which is a list of ids beside the output that is read whole before it goes on.
"""

from __future__ import annotations

import logging
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from goods.catalogue import PartReader, facts_of, predicted_stretches
from goods.classify import Job
from goods.errors import GoodsError, OtherRunError
from goods.models.backbone import first_line
from goods.predictor import Predictor, load_predictor

if TYPE_CHECKING:
    import numpy as np
    from ray.data import DataContext

MOST_RESTARTS = 8  # of an actor: machines come and go, but a part that no memory is enough for must not go on for ever
IN_HAND = 2  # parts that an actor has: the next one is there when it has done one
MOST_LOADS = 4  # of a run by actors that end meanwhile, one after the other
PART = "_part"  # the column that says which part a row is of


@dataclass(frozen=True)
class Loading:
    """What goods.predictor.load_predictor was called with, for others to do the same."""

    folder: Path
    models: Mapping[str, str | Path] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Predictor:
        """The predictor."""
        return load_predictor(self.folder, self.models, **self.settings)


class Classifier:
    """A predictor in a process of Ray's, from a part's number to its predictions."""

    def __init__(self, loading: Loading, job: Job, facts: Mapping[str, Any]) -> None:
        """job: without its predictor; facts: goods.catalogue.facts_of it. What goes wrong is kept for the first part:
        from here Ray would hand on its text alone."""
        self._wrong: Exception | None = None
        try:
            predictor = loading.load()
            for what, path, same in (
                ("run", loading.folder, predictor.fingerprint == facts["fingerprint"]),
                ("table", job.table.path, job.table.contents() == facts["table"]),
            ):
                if not same:
                    raise OtherRunError(f"{path} holds another {what} on {platform.node()}; copy it there again")
            self._job, self._reader = replace(job, predictor=predictor), PartReader(job.table, facts["part_rows"])
        except (GoodsError, OSError) as error:
            self._wrong = error

    def __call__(self, parts: dict[str, np.ndarray]) -> pa.Table:
        """Columns as goods.classify.predicted_rows has them, and PART. Raises GoodsError where this machine's run or
        table isn't that of the call."""
        if self._wrong:
            raise self._wrong
        [number] = parts["item"].tolist()
        made = predicted_stretches(self._job, self._reader.read(number))
        return pa.Table.from_pandas(pd.concat(made, ignore_index=True).assign(**{PART: number}), preserve_index=False)


def classified(
    job: Job, loading: Loading, due: Sequence[int], actors: int | None = None
) -> Iterator[tuple[int, pd.DataFrame, bool]]:
    """The number of each part that is due with its predictions, as they come.

    actors: how many work side by side; by default one for each GPU of the cluster, or where it has none, for each CPU.
    Joins the cluster that RAY_ADDRESS names or that runs on this machine, or begins one. Raises GoodsError where ray is
    not installed, and what goes wrong in an actor.
    """
    ray = joined()
    if not due:
        return
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    size = min(actors or gpus or cpus or 1, len(due))
    set_context(ray.data.DataContext.get_current())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_restarts, for which Ray has no other place yet
        predictions = ray.data.from_items(list(due), override_num_blocks=len(due)).map_batches(
            Classifier,
            fn_constructor_args=(loading, replace(job, predictor=None), facts_of(job)),
            batch_size=1,
            num_cpus=1,
            num_gpus=int(bool(gpus)),
            ray_remote_args_fn=lambda: {"max_restarts": MOST_RESTARTS},
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=IN_HAND
            ),
        )
    try:
        for rows in predictions.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield rows[PART][0].as_py(), rows.drop_columns(PART).to_pandas(), True
        return
    except ray.exceptions.RayTaskError as error:
        wrong = error.cause
    except ray.exceptions.RayActorError as error:
        why = f"most often for lack of memory: look at ray's log, or take fewer on a machine ({first_line(error)})"
        wrong = GoodsError(f"actors ended again and again, {why}; what is written stays")
    raise wrong  # by itself: what Ray raised would keep the actors alive


def set_context(context: DataContext) -> None:
    """How Ray Data works here: one progress bar, errors as they are, and patience with clusters that are full."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is said once, in a sentence
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.max_consecutive_actor_init_deaths = MOST_LOADS - 1
    context.execution_no_progress_timeout_s = -1  # of parts that take long, and machines that come late


def joined() -> Any:
    """The module ray, at work in a cluster; raises GoodsError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise GoodsError("--engine ray needs the package ray: pip install -r requirements-ray.txt") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster begun here: ray's own is 15
        ray.init(logging_level="WARNING", include_dashboard=False)
    return ray
