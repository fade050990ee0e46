"""Kind blend: runs put together, honestly scored, and refused where they don't fit together."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import put_together
from members_drawn import problem
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from goods.data.folds import read_folds
from goods.data.tables import read_goods
from goods.ensemble.blend import FITTED, METHODS, _pick, added_by, blend_members, fit_weights, method_table
from goods.ensemble.combine import load_combiner, save_combiner
from goods.ensemble.runs import member_table
from goods.ensemble.submission import write_submission
from goods.ensemble.verdict import verdict
from goods.errors import GoodsError
from goods.members import open_run
from goods.metrics import METRICS, macro_f1, score
from goods.params import Params, load_params
from goods.predictions import frame_logits
from goods.predictor import load_predictor
from goods_utils import fit_all


@pytest.fixture
def blend(trained, tmp_path) -> Params:
    """A blend of the miniature run and of a linear one, in a folder of the test's own."""
    outputs = tmp_path / "out"
    shutil.copytree(trained.p.run_dir, outputs / "mini")
    put_together(trained.p.model_copy(update={"outputs_dir": str(outputs)}), trained.goods)
    given = {"data_dir": trained.p.data_dir, "outputs_dir": str(outputs), "n_folds": 3}
    words = load_params(None, **given, run="words", kind="linear")
    open_run(words)
    fit_all(words, read_goods(words))
    put_together(words, read_goods(words))
    p = load_params(None, **given, run="blend", kind="blend", runs="mini, words")
    open_run(p)
    return p


@pytest.mark.slow
def test_members_of_all_runs_become_one_prediction(blend):
    goods = read_goods(blend)
    result = put_together(blend, goods)
    assert set(result.table.index) == {"mini/fused", "mini/image", "mini/text", "words/text", "blend"}
    facts = json.loads((blend.run_dir / "ensemble" / "method.json").read_text())
    weights = facts["weights"]
    assert facts["method"] == "average" and set(facts["picked"]) == {"0", "1", "2"}
    assert set(facts["picked"].values()) <= {"average", "best"}
    assert set(weights) == set(result.table.index) - {"blend"} and min(weights.values()) >= 0
    metrics = json.loads((blend.run_dir / "ensemble" / "metrics.json").read_text())
    assert set(metrics["members"]) == set(result.table.index) and metrics["folds"].keys() == {"0", "1", "2"}
    assert result.tables["methods"].loc["weights", "log_loss"] < result.table["log_loss"].drop("blend").min()
    assert result.scores.loc["oof", ("fused", "macro_f1")] == pytest.approx(result.table.loc["blend", "macro_f1"])
    assert write_submission(blend, goods)["id"].tolist() == goods.test["id"].tolist()


def test_weights_take_what_adds_and_drop_what_does_not():
    labels, members = problem()
    weights = fit_weights(members, labels)
    assert weights[2] < 0.1 * weights[:2].min()
    alone = [score(labels, values)["log_loss"] for values in members]
    assert score(labels, np.tensordot(weights, members, 1))["log_loss"] < min(alone) - 0.1
    sharp = fit_weights(members * 5, labels)  # a member that is too sure is cooled
    np.testing.assert_allclose(sharp, weights / 5, atol=0.02)


@pytest.mark.slow
def test_the_score_of_a_blend_is_from_weights_that_never_saw_the_row(blend):
    goods = read_goods(blend)
    before = put_together(blend, goods).oof
    folds = read_folds(goods, blend)
    wrong = np.where(folds["fold"] == 1, (folds["label"] + 1) % 21, folds["label"])
    for run in ("mini", "words"):  # the labels of fold 1 are lies, everywhere
        path = blend.run_dir.parent / run / "ensemble" / "oof.parquet"
        oof = pd.read_parquet(path)
        oof.merge(folds.assign(label=wrong), on=["id", "fold"], suffixes=("_old", "")).to_parquet(path)
    folds.assign(label=wrong).to_parquet(blend.run_dir / "folds.parquet")
    after = put_together(blend, replace(goods, train=goods.train.assign(label=wrong))).oof
    rows = (folds["fold"] == 1).to_numpy()
    np.testing.assert_allclose(frame_logits(before)[rows], frame_logits(after)[rows], atol=1e-9)
    assert not np.allclose(frame_logits(before)[~rows], frame_logits(after)[~rows], atol=1e-6)


def change(path, edit) -> None:
    edit(pd.read_parquet(path)).to_parquet(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("oof", lambda t: t.iloc[3:], r"has no out-of-fold prediction of 3 products"),
        ("oof", lambda t: t.assign(fold=(t["fold"] + 1) % 3), r"has other folds: product \S+ is in fold \d there and"),
        ("oof", lambda t: t.assign(label=(t["label"] + 1) % 21), r"has other labels: product"),
        ("oof", lambda t: t.assign(text_0=np.nan), "holds values that are not numbers"),
        ("oof", lambda t: pd.concat([t, t.iloc[:1]]), r"predicts product \S+ more than once"),
        ("oof", lambda t: t.drop(columns="text_20"), "has other labels than"),
        ("test", lambda t: t.iloc[::-1], r"has predicted another test\.csv"),
    ],
)
def test_runs_that_do_not_fit_are_refused(blend, name, edit, message):
    change(blend.run_dir.parent / "words" / "ensemble" / f"{name}.parquet", edit)
    with pytest.raises(GoodsError, match=f"run 'words' .*{message}|run 'words' {message}"):
        put_together(blend, read_goods(blend))


@pytest.mark.slow
def test_a_run_that_is_not_there_and_none_at_all(blend):
    goods = read_goods(blend)
    with pytest.raises(
        GoodsError, match=r"nowhere/ensemble/oof\.parquet is missing or damaged; run that run's pipeline first"
    ):
        put_together(blend.model_copy(update={"runs": ("words", "nowhere")}), goods)
    with pytest.raises(GoodsError, match="a blend needs runs"):
        put_together(blend.model_copy(update={"runs": ()}), goods)


@pytest.mark.slow
def test_the_choice_among_methods_is_kept_where_there_was_one(blend):
    result = put_together(blend.model_copy(update={"blend_method": "choose"}), read_goods(blend))
    facts, metrics = (
        json.loads((blend.run_dir / "ensemble" / f"{name}.json").read_text()) for name in ("method", "metrics")
    )
    assert set(facts["picked"]) == {"0", "1", "2"} and facts["picked"] == metrics["picked"]
    taken = "chosen" if set(facts["picked"].values()) - {facts["method"]} else facts["method"]
    assert result.tables["methods"].index.tolist() == [*(name for name in METHODS if name != taken), taken]


@pytest.mark.slow
def test_a_single_member_is_calibrated(blend):
    alone = put_together(blend.model_copy(update={"runs": ("words",), "blend_method": "mean"}), read_goods(blend))
    assert alone.table.loc["blend", "accuracy"] == alone.table.loc["words/text", "accuracy"]
    assert alone.tables["added"].empty


@pytest.mark.slow
def test_products_that_a_run_has_not_predicted_are_left_out_by_choice(blend):
    goods = read_goods(blend)
    change(blend.run_dir.parent / "words" / "ensemble" / "oof.parquet", lambda t: t[t["fold"] != 2])
    result = put_together(blend.model_copy(update={"allow_missing_folds": True}), goods)
    folds = read_folds(goods, blend)
    assert result.missing == [2] and result.oof["id"].tolist() == folds.loc[folds["fold"] != 2, "id"].tolist()
    assert len(result.test) == len(goods.test)
    change(blend.run_dir.parent / "words" / "ensemble" / "oof.parquet", lambda t: t.iloc[:0])
    with pytest.raises(GoodsError, match="no product is predicted out of fold by all runs"):
        put_together(blend.model_copy(update={"allow_missing_folds": True}), goods)


@pytest.mark.parametrize("method", METHODS)
def test_each_way_to_combine_beats_the_best_member(method):
    labels, members = problem()
    half = np.arange(len(labels)) % 2 == 0
    combiner = METHODS[method](members[:, half], labels[half])
    assert combiner.weights.shape == (3,) and combiner.weights.min() >= 0
    logits = combiner.predict(members[:, ~half])
    best = max(score(labels[~half], member[~half])["macro_f1"] for member in members)
    ours = score(labels[~half], logits)["macro_f1"]
    assert np.isfinite(logits).all() and ours > best + (0.02 if method not in ("mean", "best", "logits") else -0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_no_row_has_is_never_predicted_much(method):
    labels, members = problem(classes=6)
    rows = labels != 3
    combiner = METHODS[method](members[:, rows], labels[rows])
    logits = combiner.predict(members[:, rows])
    assert logits.shape == (rows.sum(), 6) and np.isfinite(logits).all()


def rare_class(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) of which one in twelve is 1, and log-probabilities (1, n, 2) that seldom say so."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(n) < 0.08, 1, 0)
    return labels, log_softmax(np.eye(2)[labels] * 1.5 + rng.normal(size=(n, 2)) - [0, 2], axis=1)[None]


def test_a_bias_for_rare_classes_helps_macro_f1():
    labels, member = rare_class(4000)
    scores = {m: macro_f1(labels, METHODS[m](member, labels).predict(member).argmax(1)) for m in ("weights", "bias")}
    assert scores["bias"] > scores["weights"] + 0.02


@pytest.mark.parametrize(("metric", "method"), [("macro_f1", "bias"), ("accuracy", "mean")])
def test_the_method_is_chosen_by_the_metric(metric, method):
    labels, member = rare_class(1200)
    assert blend_members(member, labels, np.arange(1200) % 3, ("mean", "bias"), metric).method == method


@pytest.mark.parametrize("method", ["greedy", "metric_weights", "bias"])
def test_each_climbs_on_the_metric_it_is_given(method):
    labels, members = problem()
    members[0] = log_softmax(6 * members[0], axis=1)  # far too sure
    found = {m: score(labels, METHODS[method](members, labels, METRICS[m]).predict(members)) for m in METRICS}
    assert found["log_loss"]["log_loss"] < found["macro_f1"]["log_loss"]
    assert found["macro_f1"]["macro_f1"] > found["log_loss"]["macro_f1"]


def test_noise_gains_nothing_in_log_loss_either():
    rng = np.random.default_rng(0)
    labels, folds = rng.integers(5, size=600), np.arange(600) % 3
    members = log_softmax(rng.normal(size=(3, 600, 5)), axis=2)
    made = blend_members(members, labels, folds, ("mean", "weights", "greedy", "bias"), "log_loss")
    table = method_table(made, labels, folds, np.zeros((600, 5)), "log_loss")
    assert next(iter(table)) == "log_loss" and table.loc["chosen", "log_loss"] > np.log(5) - 0.01
    assert table.loc["chosen", "gain_low"] < 0.01


def test_members_stand_in_the_order_of_the_metric():
    labels, members = problem()
    members[0] = log_softmax(6 * members[0], axis=1)  # far too sure: as many right, but a log-loss worse than noise's
    named = dict(zip(("sure", "good", "noise"), members, strict=True))
    tables = {m: member_table(named, np.ones(3) / 3, members[1], labels, m) for m in ("macro_f1", "log_loss")}
    assert tables["macro_f1"].index.tolist() == ["sure", "good", "noise", "blend"]
    assert tables["log_loss"].index.tolist() == ["good", "sure", "noise", "blend"]


@pytest.mark.slow
def test_each_method_the_average_and_the_choice_never_saw_the_fold_they_score():
    labels, members = problem()
    folds = np.arange(len(labels)) % 4
    honest, chosen = (blend_members(members, labels, folds, methods) for methods in ((*METHODS, "average"), METHODS))
    lies = labels.copy()
    lies[folds == 2] = (lies[folds == 2] + 1) % 5
    fooled = blend_members(members, lies, folds)
    for method in (*METHODS, "average"):
        np.testing.assert_allclose(honest.methods[method][folds == 2], fooled.methods[method][folds == 2])
    assert not np.allclose(honest.oof[folds != 2], fooled.oof[folds != 2], atol=1e-3)
    misled = blend_members(members, lies, folds, tuple(METHODS))
    np.testing.assert_allclose(chosen.oof[folds == 2], misled.oof[folds == 2])
    assert chosen.picked[2] == misled.picked[2]


@pytest.mark.slow
@pytest.mark.parametrize("methods", [(*METHODS, "average"), tuple(METHODS)])
def test_noise_gains_nothing_and_the_table_says_so(methods):
    rng = np.random.default_rng(0)
    labels, folds = rng.integers(5, size=1000), np.arange(1000) % 5
    members = log_softmax(rng.normal(size=(4, 1000, 5)), axis=2)  # know nothing: any gain would be a leak
    made = blend_members(members, labels, folds, methods)
    best = max(members, key=lambda member: macro_f1(labels, member.argmax(1)))
    table, taken = method_table(made, labels, folds, best), made.taken
    assert table.index[-1] == taken
    assert table.loc[taken, "macro_f1"] < 0.26 and table.loc[taken, "gain_high"] < 0.08
    assert table["noise"].sum() >= 5 and table.loc[taken, "calibration_error"] < 0.05


def test_the_average_is_of_probabilities_each_calibrated_without_the_fold():
    labels, members = problem()
    folds = np.arange(len(labels)) % 3
    made = blend_members(members, labels, folds)
    assert made.method == "average" and set(made.picked.values()) == {"average"}
    assert list(made.methods) == [*METHODS, "average"]
    mean = np.mean([softmax(made.methods[name], axis=1) for name in FITTED], axis=0)
    np.testing.assert_allclose(np.exp(made.uncalibrated), mean, atol=1e-12)
    np.testing.assert_array_equal(made.oof, made.methods["average"])
    np.testing.assert_array_equal(made.oof, made.uncalibrated)  # no temperature of its own: it would be too sure
    assert made.temperature == 1
    assert score(labels, made.oof)["log_loss"] < min(score(labels, member)["log_loss"] for member in members) - 0.1


def test_the_average_on_new_rows_is_that_of_fits_on_all(tmp_path):
    labels, members = problem()
    made = blend_members(members, labels, np.arange(len(labels)) % 3, ("average",))
    assert made.combiner.weights.sum() == pytest.approx(1) and made.combiner.weights[2] < 0.1
    _, new = problem(seed=1)
    mean = 0
    for name in FITTED:
        logits = METHODS[name](members, labels).predict(new)
        mean = mean + softmax(logits / made.combiner.arrays[f"{name}.temperature"], axis=1) / 5
    np.testing.assert_allclose(np.exp(made.combiner.predict(new)), mean, atol=1e-12)
    save_combiner(made.combiner, tmp_path / "weights.safetensors")
    again = load_combiner("average", tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(again.predict(new), made.combiner.predict(new))


def test_the_average_makes_do_with_the_fits_of_its_methods(monkeypatch):
    fits = Counter()

    def counted(name, method):
        def call(members, labels, metric):
            fits[name, len(labels), int(labels.sum())] += 1
            return method(members, labels, metric)

        return call

    for name, method in METHODS.items():
        monkeypatch.setitem(METHODS, name, counted(name, method))
    labels, members = problem(n=200)
    folds = np.repeat([0, 1, 2], [50, 70, 80])  # each set that is left out has a size of its own
    blend_members(members, labels, folds)
    assert len(fits) == 9 * (1 + 3 + 3) and set(fits.values()) == {1}
    fits.clear()
    blend_members(members, labels, folds, ("average",))
    assert {name for name, *_ in fits} == set(FITTED) and len(fits) == 5 * 7 and set(fits.values()) == {1}


def one_that_knows(n: int = 150, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and log-probabilities (9, n, 4) of which only the last knows anything: too few rows to tell so."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    noise = rng.normal(size=(8, n, 4)) * 2
    return labels, log_softmax(
        np.concatenate([noise, 3 * np.eye(4)[labels][None] + rng.normal(size=(1, n, 4))]), axis=2
    )


def test_the_best_member_alone_is_one_of_the_ways():
    labels, members = problem()
    combiner = METHODS["best"](members, labels)
    assert combiner.weights.tolist() == np.eye(3)[best_of(members, labels)].tolist()
    np.testing.assert_array_equal(combiner.predict(members), members[best_of(members, labels)])
    folds = np.arange(len(labels)) % 3
    alone = blend_members(members, labels, folds, ("best",))
    assert alone.method == alone.taken == "best" and alone.picked == {}
    for k in range(3):  # each fold by the member that the others score best, at one temperature
        others = best_of(members[:, folds != k], labels[folds != k])
        assert np.ptp(members[others][folds == k] / alone.oof[folds == k]) < 1e-9


def best_of(members: np.ndarray, labels: np.ndarray) -> int:
    return int(np.argmax([macro_f1(labels, member.argmax(1)) for member in members]))


def test_a_blend_abstains_where_the_best_member_scores_better_and_says_so():
    labels, members = one_that_knows()
    made = blend_members(members, labels, np.arange(len(labels)) % 3, ("average", "best"))
    assert made.method == "best" and made.combiner.weights.tolist() == [0.0] * 8 + [1.0]
    assert "best" in made.picked.values()
    table = method_table(made, labels, np.arange(len(labels)) % 3, members[8])
    assert table.index[-1] == made.taken and table.loc["average", "log_loss"] > table.loc["best", "log_loss"]


def test_what_the_metric_can_not_tell_log_loss_does():
    labels, members = problem(n=300)
    alike = {"average": members[0], "best": members[0] + 0.5 * members[2]}
    assert _pick(("average", "best"), labels, alike, "macro_f1") == "average"
    assert _pick(("average", "best"), labels, {"average": alike["best"], "best": members[0]}, "macro_f1") == "best"
    better = {"average": members[0] + members[1], "best": members[0]}
    assert _pick(("average", "best"), labels, better, "macro_f1") == "average"
    assert _pick(("average", "best"), labels, {}, "macro_f1") == "average"  # two folds leave nothing to tell by


@pytest.mark.slow
def test_a_blend_that_abstains_predicts_by_that_run_alone(blend):
    result = put_together(blend.model_copy(update={"blend_method": "best"}), read_goods(blend))
    facts, metrics = (
        json.loads((blend.run_dir / "ensemble" / f"{name}.json").read_text()) for name in ("method", "metrics")
    )
    (member,) = facts["weights"]
    assert facts["method"] == "best" and member == metrics["best_member"] and facts["weights"][member] == 1
    said = verdict(metrics, "macro_f1")
    assert said.startswith(f"best member alone, {member}, of ") and "mini (fused" in said and "words" in said
    other = "words" if member.startswith("mini") else "mini"
    shutil.rmtree(blend.run_dir.parent / other)
    goods = read_goods(blend)
    predictor = load_predictor(blend.run_dir)
    np.testing.assert_allclose(predictor.predict(goods.test), np.exp(frame_logits(result.test)), atol=1e-5)


def test_what_each_member_adds():
    labels, stacked = problem()
    members = dict(zip(("a/text", "b/image", "c/image"), stacked, strict=True))
    added = added_by(members, labels, np.arange(len(labels)) % 3)
    assert set(added.index) == {*members, "all but texts"}
    assert added.loc["b/image", "gain_low"] > 0 and not added.loc["b/image", "noise"]
    assert added.loc["c/image", "noise"] and added.loc["all but texts", "gain_low"] > 0


def test_small_matrices_take_one_thread(monkeypatch):
    seen = []

    def method(members, labels, _):
        seen.extend(pool["num_threads"] for pool in threadpool_info())
        return METHODS["mean"](members, labels)

    monkeypatch.setitem(METHODS, "watched", method)
    labels, members = problem()
    with threadpool_limits(2):
        blend_members(members, labels, np.arange(len(labels)) % 2, ("watched",))
    assert seen and set(seen) == {1}


def test_stacking_takes_few_steps(monkeypatch):
    steps = []

    class Counted(LogisticRegression):
        def fit(self, x, labels):
            fitted = super().fit(x, labels)
            steps.append(int(self.n_iter_.max()))
            return fitted

    monkeypatch.setattr("goods.ensemble.blend.LogisticRegression", Counted)
    labels, members = problem(n=300, classes=12)
    METHODS["stacking"](members, labels)
    assert sum(steps) <= 20 * (3 * 3 + 3)  # costs of each part, and of all rows up to the chosen one


@pytest.mark.slow
def test_runs_that_share_one_fold_are_a_sentence(blend):
    for run, numbers in (("mini", (0, 1)), ("words", (1, 2))):
        change(blend.run_dir.parent / run / "ensemble" / "oof.parquet", lambda t, own=numbers: t[t["fold"].isin(own)])
    with pytest.raises(GoodsError, match=r"only fold 1 is predicted .* \(mini has 0, 1; words has 1, 2\)"):
        put_together(blend.model_copy(update={"allow_missing_folds": True}), read_goods(blend))


def test_two_folds_leave_nothing_to_choose_or_calibrate_on():
    labels, members = problem()
    folds = np.arange(len(labels)) % 2
    made = blend_members(members, labels, folds, tuple(METHODS))
    assert made.method == "mean" and np.isfinite(made.oof).all()
    made = blend_members(members, labels, folds)
    mean = np.mean([softmax(made.methods[name], axis=1) for name in FITTED], axis=0)
    np.testing.assert_allclose(np.exp(made.oof), mean, atol=1e-12)
    assert made.method == "average" and all(made.combiner.arrays[f"{name}.temperature"] == 1 for name in FITTED)
