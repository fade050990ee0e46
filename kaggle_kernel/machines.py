"""The machines that Kaggle lends, as kernel-metadata.json names them, and what a run takes on one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from goods.cost.plan import Plan


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind: `gpu` is the plan's name for it."""

    gpu: str
    count: int = 1

    def hours(self, plan: Plan) -> float:
        """Hours of a run whose folds go side by side, one per GPU: rounds of whole folds, the refit one of its own."""
        trained = len(plan.params.chosen_folds) + plan.params.refit
        rounds = math.ceil(len(plan.params.chosen_folds) / self.count) + plan.params.refit
        return sum(plan.hours.values()) / trained * rounds

    def __str__(self) -> str:
        return f"{self.count} x {self.gpu}"


# The command line's documentation, without those that are retired. One fold has one GPU.
MACHINES = {
    "NvidiaTeslaT4": Machine("T4", 2),
    "NvidiaL4X1": Machine("L4", 1),
    "NvidiaL4": Machine("L4", 4),
    "NvidiaTeslaA100": Machine("A100"),
    "NvidiaH100": Machine("H100"),
    "NvidiaRtxPro6000": Machine("RTX PRO 6000"),
}
RETIRED = ("NvidiaTeslaP100",)
OF_ADMINS = ("NvidiaTeslaT4Highmem",)  # a pool that pushes are not given
PINNING = ("original", "latest")


def machine_problems(metadata: dict[str, Any]) -> Iterator[str]:
    """A sentence for each thing that kernel-metadata.json asks for and no push is given."""
    shape, known = metadata.get("machine_shape"), ", ".join(MACHINES)
    if metadata.get("enable_gpu") is False:
        yield "enable_gpu is false: a training would take weeks"
    if metadata.get("enable_tpu") is True:
        yield ("enable_tpu is true, but nothing here runs on a TPU, and on an image without its libraries the kernel "
               "would begin all the same and fail later: set it to false")  # fmt: skip
    if shape in OF_ADMINS:
        yield f"machine_shape is {shape!r}, which only Kaggle's admins are given; the others are {known}"
    elif shape in RETIRED:
        yield f"machine_shape is {shape!r}, which is retired: another machine would run it; there are {known}"
    elif shape not in MACHINES:
        yield f"machine_shape is {shape!r}, which gives another machine than wanted; the known ones are {known}"
    pinning = metadata.get("docker_image_pinning_type", PINNING[0])
    if pinning not in PINNING:
        yield (f"docker_image_pinning_type is {pinning!r}, but must be 'original' (each version in the image that the "
               "first one had) or 'latest' (in the newest)")  # fmt: skip
