"""Tables of predictions: one row per product, the logits of each output in columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax

from goods.advice import train_again
from goods.errors import DamagedFileError
from goods.files import atomic_path, read_frame, write_frame
from goods.params import OUTPUTS

if TYPE_CHECKING:
    from torch import Tensor

    from goods.data.tables import Goods


def main_of(outputs: dict[str, Any]) -> Any:
    """Of a model's outputs the main one, which comes first: fused where there is one."""
    return next(iter(outputs.values()))


def probabilities_of(logits: dict[str, Tensor]) -> np.ndarray:
    """(n, num_classes) probabilities of a model's main output, from its tensors."""
    return main_of(logits).float().softmax(1).cpu().numpy()


def logits_frame(logits: dict[str, np.ndarray]) -> pd.DataFrame:
    """{"fused": (n, num_classes), ...} as columns fused_0 ... fused_{K-1}, image_0 ..."""
    columns = {f"{name}_{k}": values[:, k] for name, values in logits.items() for k in range(values.shape[1])}
    return pd.DataFrame(columns)


def outputs_of(frame: pd.DataFrame) -> list[str]:
    """The outputs that a prediction table has, the main one first: fused where there is one."""
    return [name for name in OUTPUTS if f"{name}_0" in frame]


def frame_logits(frame: pd.DataFrame, output: str | None = None) -> np.ndarray:
    """(n, num_classes) logits of one output, by default the main one, from a prediction table's columns."""
    if not (found := outputs_of(frame)):
        raise DamagedFileError("a table of predictions holds none: no column such as fused_0 or text_0; make it anew")
    output = output or found[0]
    return frame.filter(regex=rf"^{output}_\d+$").to_numpy(dtype=np.float64)


def prediction_table(frame: pd.DataFrame, goods: Goods, output: str | None = None) -> pd.DataFrame:
    """Out-of-fold rows with their product: id, title, text, image, label, prediction (class indices), probability."""
    logits = frame_logits(frame, output)
    table = frame[["id", "label"]].assign(
        prediction=logits.argmax(1), probability=np.exp(log_softmax(logits, axis=1)).max(1)
    )
    columns = [name for name in ("id", "title", "text", "image", "images") if name in goods.train]
    return table.merge(goods.train[columns], on="id", validate="1:1")


def write_choices(path: Path, choices: dict[str, dict[str, np.ndarray]]) -> None:
    """Keeps the predictions at each choice ("epoch 3", "alpha 0.5"): {choice: {output: (n, num_classes) logits}}."""
    arrays = {f"{choice}/{name}": values.astype(np.float32) for choice, outputs in choices.items()
              for name, values in outputs.items()}  # fmt: skip
    with atomic_path(path) as temporary:
        # One entry: safetensors writes several in an order of chance, and the same choices are to be the same bytes.
        save_file(arrays, temporary, metadata={"made": json.dumps([list(choices), main_first(choices)])})


def main_first(choices: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """The outputs of any of the choices, the main one first."""
    return list(next(iter(choices.values()), {}))


def read_choices(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """What write_choices kept, in its order; raises DamagedFileError when the file isn't whole."""
    try:
        arrays = load_file(path)
        with safe_open(path, framework="np") as file:
            choices, outputs = json.loads(file.metadata()["made"])
        return {choice: {name: arrays[f"{choice}/{name}"] for name in outputs} for choice in choices}
    except Exception as error:  # anything at all can be wrong with a damaged file
        raise DamagedFileError(f"{path} is missing or damaged; {train_again(path)}") from error


def write_predictions(
    path: Path, head: pd.DataFrame, logits: dict[str, np.ndarray], below: pd.DataFrame | None = None
) -> None:
    """Writes a prediction table: the columns of `head`, then logits_frame's; under the rows of another, if any."""
    rows = pd.concat([head.reset_index(drop=True), logits_frame(logits)], axis=1)
    write_frame(path, rows if below is None or below.empty else pd.concat([below, rows], ignore_index=True))


def read_begun(path: Path, ids: pd.Series) -> pd.DataFrame:
    """The prediction table of the first of the products `ids`; empty where there is none, or one of other products."""
    try:
        begun = read_frame(path, ["id"])
    except DamagedFileError:
        return pd.DataFrame()
    return begun if len(begun) < len(ids) and begun["id"].tolist() == ids.tolist()[: len(begun)] else pd.DataFrame()
