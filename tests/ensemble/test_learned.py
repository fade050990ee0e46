"""What an ensemble has learned comes back from its files, and combines each row by itself."""

from __future__ import annotations

import numpy as np
import pytest
from members_drawn import problem
from safetensors.numpy import save_file
from scipy.special import log_softmax, softmax

from goods.ensemble.blend import METHODS
from goods.ensemble.combine import RULES, Combiner, average_of, load_combiner, save_combiner
from goods.ensemble.learned import FoldMean, RunBlend, read_learned, write_learned
from goods.errors import DamagedFileError, GoodsError
from goods.files import write_json
from goods.run import Run

NAMES = ("a/fused", "a/text", "b/text")


def test_every_method_has_its_rule() -> None:
    assert list(RULES) == [*METHODS, "average"]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_comes_back_from_its_files(method: str, tmp_path) -> None:
    labels, members = problem()
    fitted = METHODS[method](members, labels)
    save_combiner(fitted, tmp_path / "weights.safetensors")
    again = load_combiner(method, tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(again.predict(members), fitted.predict(members))
    rows = [7, 3, 300]  # each by itself, in any order
    np.testing.assert_allclose(again.predict(members[:, rows]), fitted.predict(members)[rows], rtol=0, atol=1e-12)


def test_a_stacked_regression_of_two_classes_and_one_that_misses_a_class() -> None:
    for classes, present in ((2, [0, 1]), (5, [0, 1, 2, 4])):
        labels, members = problem(classes=classes)
        rows = np.isin(labels, present)
        combiner = METHODS["stacking"](members[:, rows], labels[rows])
        alone = combiner.predict(members[:, :1])
        np.testing.assert_allclose(alone, combiner.predict(members)[:1], rtol=0, atol=1e-12)
        assert classes == 2 or alone.argmin() == 3


@pytest.mark.parametrize("names", [("bias",), ("greedy", "stacking", "weights"), ("mean", "bias", "temperatures")])
def test_an_average_comes_back_from_its_files(names: tuple[str, ...], tmp_path) -> None:
    labels, members = problem(classes=4)
    parts = {name: METHODS[name](members, labels) for name in names}
    average = average_of(parts, dict.fromkeys(names, 1.5))
    expected = np.mean([softmax(part.predict(members) / 1.5, axis=1) for part in parts.values()], axis=0)
    np.testing.assert_allclose(np.exp(average.predict(members)), expected, atol=1e-12)
    run, outputs = Run(tmp_path / "blend"), dict(zip(NAMES, members, strict=True))
    write_learned(run, RunBlend(NAMES, average, 0.9))
    again = read_learned(run)
    assert isinstance(again, RunBlend) and again.picked == {}
    np.testing.assert_array_equal(again.combine(outputs)["fused"], log_softmax(average.predict(members) / 0.9, axis=1))


def test_a_blend_of_runs_and_a_mean_of_folds_come_back(tmp_path) -> None:
    labels, members = problem()
    run = Run(tmp_path / "blend")
    blend = RunBlend(NAMES, METHODS["bias"](members, labels), 1.25, {0: "bias", 1: "mean"})
    write_learned(run, blend)
    again = read_learned(run)
    assert isinstance(again, RunBlend)
    assert (again.members, again.runs, again.temperature, again.picked) == (NAMES, ["a", "b"], 1.25, blend.picked)
    outputs = dict(zip(NAMES, members, strict=True))
    np.testing.assert_array_equal(again.combine(outputs)["fused"], blend.combine(outputs)["fused"])

    run = Run(tmp_path / "head")
    write_learned(run, FoldMean((0, 2), {"fused": 1.5, "text": 0.5}))
    found = read_learned(run)
    assert found == FoldMean((0, 2), {"fused": 1.5, "text": 0.5})
    logits = np.log([[0.25, 0.75]])
    cooled = found.combine({0: {"fused": logits, "text": logits}, 2: {"fused": logits * 0, "text": logits}})
    expected = (0.75 ** (1 / 1.5) / (0.25 ** (1 / 1.5) + 0.75 ** (1 / 1.5)) + 0.5) / 2
    assert np.exp(cooled["fused"][0, 1]) == pytest.approx(expected)
    assert np.exp(cooled["text"][0, 1]) == pytest.approx(0.9)


def test_what_is_not_there_or_not_whole_is_said(tmp_path) -> None:
    run = Run(tmp_path / "head")
    with pytest.raises(GoodsError, match=r"'head' in .* is unfinished: it has no ensemble yet \(folds trained: none\)"):
        read_learned(run)
    for facts in ({"weights": {"fold0": 1.0}}, {"method": "mean", "weights": {}, "picked": {}, "temperature": 1}):
        write_json(run.method, facts)
        with pytest.raises(GoodsError, match="is of a version that didn't keep what it had learned; put it together"):
            read_learned(run)
    write_json(run.method, {"temperatures": {"fused": "warm"}, "folds": [0]})
    with pytest.raises(DamagedFileError, match=r"method\.json is damaged"):
        read_learned(run)
    path = tmp_path / "weights.safetensors"
    save_combiner(Combiner("mean", np.ones(2)), path)
    with pytest.raises(DamagedFileError, match="damaged or of another way than 'bias'"):
        load_combiner("bias", path)
    for arrays in ({}, {"bias.weights": np.ones(2), "bias.temperature": np.ones(1)}, {"other.weights": np.ones(2)}):
        save_combiner(Combiner("average", np.ones(2), arrays), path)
        with pytest.raises(DamagedFileError, match="damaged or of another way than 'average'"):
            load_combiner("average", path)
    save_file({"other": np.ones(2)}, path)
    with pytest.raises(DamagedFileError, match="put the runs together again"):
        load_combiner("mean", path)
