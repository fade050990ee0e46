"""What would take more memory than there is is refused before it starts, also where there is no GPU."""

from __future__ import annotations

import pytest
from backbones import image_encoder_dir

from goods.errors import GoodsError
from goods.members import open_run
from goods.params import load_params


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 100_000), ("hidden_dim", 2 * 10**9), ("text_windows", 1_000_000)]
)
def test_a_run_that_no_memory_holds_is_refused(sample, tmp_path, name, value):
    given = {"data_dir": str(sample.data), "model_name": str(sample.model), "outputs_dir": str(tmp_path / "outputs")}
    with pytest.raises(GoodsError, match=rf"{name} {value:,}: with up to 16 .* takes [\d,]+ GB of memory, and"):
        open_run(load_params(**given, tune="lora", **{"hidden_dim": 32, "image_size": 32} | {name: value}))
    assert not (tmp_path / "outputs").exists()


def test_an_image_encoder_is_counted_by_itself(sample, tmp_path):
    model = str(image_encoder_dir(tmp_path / "vit", "vit"))
    given = {"data_dir": str(sample.data), "model_name": model, "outputs_dir": str(tmp_path / "outputs")}
    small = {"kind": "image", "tune": "head", "image_size": None}
    assert open_run(load_params(**given, **small, eval_batch_size=5000)).is_dir()
    with pytest.raises(GoodsError, match=r"eval_batch_size 1,000,000,000: .* takes [\d,]+ GB of memory, and"):
        open_run(load_params(**given, **small, run="other", eval_batch_size=10**9))


def test_what_is_large_and_fits_is_not(sample, tmp_path, monkeypatch):
    given = {"data_dir": str(sample.data), "model_name": str(sample.model), "outputs_dir": str(tmp_path / "outputs")}
    p = load_params(**given, tune="lora", hidden_dim=32, image_size=32, lora_rank=2000)
    assert open_run(p).is_dir()
    monkeypatch.setattr("goods.cost.limits.memory_of_machine", lambda: 10**8)
    with pytest.raises(GoodsError, match=r"lora_rank 2,000: with up to 16 .* and this machine has 0; lower it"):
        open_run(p)
