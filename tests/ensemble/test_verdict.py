"""What a blend comes to, in a sentence."""

from __future__ import annotations

import pytest

from goods.ensemble.verdict import shown_members, verdict

ROW = {"macro_f1": 0.844, "gain": 0.008, "gain_low": -0.003, "gain_high": 0.019}
METRICS = {
    "method": "average",
    "best_member": "text/text",
    "members": {name: {} for name in ("text/text", "linear/text", "dual/fused", "dual/image", "blend")},
    "methods": {"mean": {}, "average": ROW},
}


def test_members_stand_by_their_runs():
    assert shown_members(["a/text", "b/fused", "b/image"]) == "a, b (fused, image)"


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.008, -0.003, 0.019), "not better than text/text alone beyond noise (+.008, -.003 to +.019)"),
        ((0.012, 0.004, 0.019), "better than text/text alone (+.012, +.004 to +.019)"),
        ((-0.012, -0.019, -0.004), "worse than text/text alone (-.012, -.019 to -.004)"),
    ],
)
def test_the_method_its_members_and_what_they_gain(gain: tuple[float, float, float], words: str):
    row = ROW | dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True))
    said = verdict(METRICS | {"methods": {"average": row}}, "macro_f1")
    assert said == f"average of text, linear, dual (fused, image): macro-F1 .844, {words}"


def test_a_blend_that_abstains_says_what_the_average_would_have_gained():
    rows = {"average": ROW | {"macro_f1": 0.83, "gain": -0.006, "gain_high": 0.001}, "best": ROW}
    said = verdict(METRICS | {"method": "best", "methods": rows}, "macro_f1")
    assert said == ("best member alone, text/text, of text, linear, dual (fused, image): macro-F1 .844; "
                    "their average scores .830, -.006, -.003 to +.001")  # fmt: skip


def test_folds_that_took_another_way_are_named():
    picked = {"0": "average", "1": "best", "2": "average", "3": "best"}
    assert verdict(METRICS | {"picked": picked}, "macro_f1").endswith("; folds 1, 3 chose best")
    assert verdict(METRICS | {"picked": {"0": "average"}}, "macro_f1").endswith("+.019)")


def test_one_member_is_compared_with_nothing():
    alone = METRICS | {"method": "mean", "members": {"text/text": {}, "blend": {}}, "methods": {"mean": ROW}}
    assert verdict(alone, "macro_f1") == "mean of text: macro-F1 .844"


@pytest.mark.parametrize("metrics", [{}, {"method": "mean"}, METRICS | {"methods": {}}, METRICS | {"methods": 3}])
def test_what_is_no_blend_or_damaged_has_no_verdict(metrics: dict):
    assert verdict(metrics, "macro_f1") == ""
