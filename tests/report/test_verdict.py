"""The verdict: each level on a small network, each threshold from both sides, and what makes no finding."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from clouds import CLASSES, FEATURES, gaussian, network, probe, trained
from made_reports import NAN, report
from netdyn import Monitor, Report, diagnose
from netdyn.report import trend, verdict
from netdyn.report.history import History
from netdyn.report.trend import Moment, thinned
from netdyn.report.verdict import LEVELS, NO_FINDING, Numbers, Verdict, judge

MEASURES = ["modes", "sample_basin", "batchnorm"]
GOOD = Numbers(samples=256, classes=10, guess=0.1, accuracy=0.99, val_accuracy=0.97, loss=0.03, dead=0.1, apart=0.5)
CHANCE = math.log(10)


def level(earlier=(), **changes):
    return judge(dataclasses.replace(GOOD, **changes), earlier).level


def held_out(samples=200, seed=5):
    """Other samples of the clouds of :func:`probe`."""
    x, target = probe(samples)
    return x + 0.5 * gaussian(samples, FEATURES, seed=seed), target


def found(net, x=None, y=None, val=None):
    if x is None:
        x, y = probe()
    val_x, val_y = held_out() if val is None else val
    return diagnose(net, x, y, val_inputs=val_x, val_target=val_y, measure=MEASURES).verdict


# Real networks -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt():
    return trained(network(), *probe())


def with_norm():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(FEATURES, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, CLASSES))
    return trained(net, *probe())


def test_a_network_that_has_learnt_is_healthy(learnt):
    verdict = found(learnt)
    assert verdict.level == "healthy"
    assert verdict.advice == ""
    assert set(verdict.numbers) == {"probe/accuracy", "probe/val_accuracy"}


def test_a_fresh_network_is_untrained():
    assert found(network()).level == "untrained"


def test_a_few_steps_are_learning():
    few = trained(network(), *probe(), steps=2)
    assert found(few).level == "learning"


def test_labels_learnt_by_heart_are_overfitting():
    x, y = gaussian(100, FEATURES, seed=3), torch.arange(100) % CLASSES
    verdict = found(trained(network(width=100), x, y, steps=300), x, y, (gaussian(200, FEATURES, seed=4), y.repeat(2)))
    assert verdict.level == "overfitting"
    assert "weight decay" in verdict.advice


def test_biases_that_close_a_layer_make_dead_units():
    dead = trained(network(), *probe())
    with torch.no_grad():
        dead[2].bias.fill_(-100.0)
    verdict = found(dead)
    assert verdict.level == "dead units"
    assert verdict.numbers == {"modes/dead_max": 1.0}
    assert "LeakyReLU" in verdict.advice


def test_old_statistics_are_stale_and_fresh_ones_are_not():
    net = with_norm()
    assert found(net.eval()).level == "healthy"
    with torch.no_grad():
        net[1].running_mean += 6 * torch.arange(40) % 7
        net[1].running_var *= 30
    verdict = found(net)
    assert verdict.level == "stale batch norm"
    assert "torch.optim.swa_utils.update_bn" in verdict.advice


def test_held_out_data_that_lie_elsewhere_are_a_shift(learnt):
    x, y = held_out()
    verdict = found(learnt, val=(x + 3.0, y))
    assert verdict.level == "distribution shift"
    assert verdict.numbers["coverage/apart"] > 0.9
    assert "the validation data lie away from the training data (in " in verdict.reason
    assert "the validation sample is the farther one)" in verdict.reason
    assert verdict.advice.startswith("shuffle before you split")


def test_weights_that_are_not_finite_are_divergence():
    net = network()
    with torch.no_grad():
        net[0].weight[0] = NAN
    with pytest.warns(UserWarning, match="NaN or inf"):
        assert found(net).level == "diverged"


def test_a_monitor_tells_a_network_that_was_thrown_off_from_an_untrained_one():
    x, y = probe()
    net = network()
    monitor = Monitor((x, y), measure=["sample_basin"], figures="never")
    fresh = monitor.measure(net, 0)
    before = monitor.measure(trained(net, x, y), 60)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(5 * gaussian(*parameter.shape, seed=1))
    after = monitor.measure(net, 70)
    assert [one.verdict.level for one in (fresh, after)] == ["untrained", "diverged"]
    assert before.verdict.level == NO_FINDING  # without held-out data
    assert [moment.step for moment in after.trend] == [0, 60]
    assert after.trend[1].accuracy == before.accuracy
    assert f"{math.log(CLASSES):.3g}" in after.verdict.reason


def test_numbers_to_be_predicted_have_dead_units_and_divergence_only():
    net = nn.Sequential(nn.Linear(FEATURES, 20), nn.ReLU(), nn.Linear(20, 1))
    x, y = gaussian(100, FEATURES), gaussian(100, seed=1)
    assert diagnose(net, x, y, measure=MEASURES).verdict.level == NO_FINDING
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    assert diagnose(net, x, y, measure=["modes"]).verdict.level == "dead units"
    with torch.no_grad():
        net[2].bias.fill_(math.inf)
    with pytest.warns(UserWarning, match="NaN or inf"):
        assert diagnose(net, x, y, measure=["sample_basin"]).verdict.level == "diverged"


def test_two_probes_give_the_same_verdict(learnt):
    x, y = probe(400)
    val_x, val_y = held_out(400)
    levels = {found(learnt, x[k::2], y[k::2], (val_x[k::2], val_y[k::2])).level for k in range(2)}
    assert levels == {"healthy"}


# Thresholds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "outside", "met"),
    [
        ({"samples": 64}, {"samples": 63}, "healthy"),
        ({"finite": 0.999}, {"finite": 1.0}, "diverged"),
        (
            {"accuracy": 0.49, "loss": 2.01 * CHANCE},
            {"accuracy": 0.49, "loss": 1.99 * CHANCE},
            "diverged",
        ),
        ({"accuracy": 0.49, "loss": 9.0}, {"accuracy": 0.51, "loss": 9.0}, "diverged"),
        ({"dead": verdict.DEAD + 0.001}, {"dead": verdict.DEAD}, "dead units"),
        ({"train_gap": verdict.STALE + 0.001}, {"train_gap": verdict.STALE}, "stale batch norm"),
        # Ten classes: up to .2 could be guessed.
        ({"accuracy": 0.2, "val_accuracy": 0.2}, {"accuracy": 0.21, "val_accuracy": 0.2}, "untrained"),
        ({"val_accuracy": 0.99 - verdict.WIDE - 0.001}, {"val_accuracy": 0.99 - verdict.WIDE + 0.001}, "overfitting"),
        (
            {"val_accuracy": 0.7, "apart": 0.501 + verdict.APART},
            {"val_accuracy": 0.7, "apart": 0.499 + verdict.APART},
            "distribution shift",
        ),
        (
            {"val_accuracy": 0.7, "apart": 0.499 - verdict.APART},
            {"val_accuracy": 0.7, "apart": 0.501 - verdict.APART},
            "distribution shift",
        ),
        (
            {"val_accuracy": 0.7, "gap": verdict.STALE + 0.001},
            {"val_accuracy": 0.7, "gap": verdict.STALE},
            "distribution shift",
        ),
        ({"accuracy": verdict.LEARNT - 0.001, "val_accuracy": 0.88}, {"accuracy": verdict.LEARNT}, "learning"),
        (
            {"val_accuracy": 0.99 - verdict.NARROW + 0.001},
            {"val_accuracy": 0.99 - verdict.NARROW - 0.001},
            "healthy",
        ),
    ],
)
def test_each_threshold_has_two_sides(inside, outside, met):
    assert level(**inside) == met
    assert level(**outside) != met


def test_between_healthy_and_overfitting_nothing_is_found():
    between = judge(dataclasses.replace(GOOD, val_accuracy=0.99 - (verdict.NARROW + verdict.WIDE) / 2))
    assert between.level == NO_FINDING
    told = "the gap of 0.095 lies between healthy (up to 0.09) and overfitting (above 0.10)"
    assert between.reason == f"training accuracy 0.990, validation 0.895: {told}"


def test_a_gap_of_few_samples_is_not_called_one_between_healthy_and_overfitting():
    """.9 and .79 of 64 samples each: the standard error of the difference is .063."""
    few = judge(dataclasses.replace(GOOD, accuracy=0.9, val_accuracy=0.79, samples=64))
    assert few.level == NO_FINDING
    told = "so few samples show a gap of 0.110 by chance too (two standard errors are 0.126)"
    assert few.reason == f"training accuracy 0.900, validation 0.790: {told}"


@pytest.mark.parametrize(
    ("apart", "told"),
    [
        (0.73, "lie away from the training data (in 73 % of comparisons with a training sample the validation sample"),
        (0.27, "lie close to the training data (in 73 % of comparisons with a training sample the validation sample"),
    ],
)
def test_a_shift_is_said_with_its_share(apart, told):
    assert told in judge(dataclasses.replace(GOOD, val_accuracy=0.7, apart=apart)).reason


def test_the_page_gives_the_constants_as_numbers():
    """Each rule on the page names its constants in brackets, after their numbers: "more than 60 % (`DEAD`)"."""
    page = (Path(__file__).parents[2] / "docs/evidence.md").read_text(encoding="utf-8")
    rules = " ".join(page.partition("## The rules")[2].partition("## How it was measured")[0].split())
    told = re.findall(r"(\S+)( %| samples| standard errors)? \(`([A-Z_]+)`\)", rules)
    assert len(told) == rules.count("(`")
    assert {name for *_, name in told} == {"DEAD", "LOST", "RISEN", "FEWEST_SAMPLES", "STALE", "WIDE", "ERRORS"} | {
        "APART",
        "LEARNT",
        "NARROW",
    }
    for number, unit, name in told:
        value = {"twice": 2.0}.get(number) or float(number)
        assert value / (100 if unit == " %" else 1) == pytest.approx(getattr(verdict, name)), name
    assert f"above {verdict.NARROW:.2f} and up to {verdict.WIDE:.2f}".replace("0.", ".") in rules


def test_a_shift_of_the_data_that_costs_nothing_is_none():
    assert level(apart=0.99) == "healthy"
    assert level(gap=0.2) == "healthy"


def test_batch_statistics_that_do_not_help_are_no_stale_ones():
    # Of an untrained network batch statistics may gain a few points by luck.
    assert level(accuracy=0.1, val_accuracy=0.1, train_gap=0.08) == "untrained"
    assert level(accuracy=0.1, val_accuracy=0.1, train_gap=0.8) == "stale batch norm"


def test_statistics_that_lag_for_the_first_time_are_not_called_stale_yet():
    lag = {"accuracy": 0.66, "val_accuracy": 0.58, "train_gap": 0.29, "gap": 0.23}
    assert level([Moment(0, 0.1, train_gap=0.0)], **lag) == NO_FINDING
    assert level([Moment(0, 0.1, train_gap=NAN)], **lag) == NO_FINDING
    assert level([Moment(0, 0.1, train_gap=0.0), Moment(10, 0.5, train_gap=0.2)], **lag) == "stale batch norm"
    # What is seen once only is all there is to go by.
    assert level(**lag) == "stale batch norm"


def test_a_gap_that_few_samples_may_show_by_chance_is_none():
    # .45 and .33 of 128 samples each: the standard error of the difference is .061.
    few = {"accuracy": 0.45, "samples": 128}
    assert level(val_accuracy=0.33, **few) == "learning"
    assert level(val_accuracy=0.31, **few) == "overfitting"
    assert level(accuracy=0.45, val_accuracy=0.33, samples=1024, val_samples=1024) == "overfitting"
    assert level(accuracy=0.45, val_accuracy=0.33, samples=1024, val_samples=64) == "learning"


def test_a_network_whose_validation_accuracy_still_rises_is_learning():
    half = {"accuracy": 0.6, "val_accuracy": 0.45}
    assert level([Moment(10, 0.3, 0.25)], **half) == "learning"
    assert level([Moment(10, 0.3, 0.25), Moment(20, 0.5, 0.46)], **half) == "overfitting"
    assert level([Moment(10, 0.3, NAN)], **half) == level(**half) == "overfitting"
    # Once the training data are learnt, the gap alone counts.
    assert level([Moment(10, 0.3, 0.25)], val_accuracy=0.8) == "overfitting"


def test_a_fresh_network_with_large_weights_has_not_diverged():
    large = {"accuracy": 0.1, "val_accuracy": 0.1, "loss": 40.0}
    assert level(untouched=True, **large) == "untrained"
    assert level(**large) == "diverged"
    # Nor has one that began with such a loss and is on its way down.
    assert level([Moment(0, loss=40.0)], **large) == "untrained"
    assert level([Moment(0, loss=40.0), Moment(9, loss=3.0)], **large) == "diverged"


def test_what_is_worst_comes_first():
    all_at_once = {"finite": 0.5, "train_gap": 0.5, "dead": 1.0, "accuracy": 0.4, "val_accuracy": 0.1, "apart": 1.0}
    order = []
    for repaired in ({}, {"finite": 1.0}, {"train_gap": 0.0}, {"dead": 0.0}, {"apart": 0.5}, {"val_accuracy": 0.4}):
        all_at_once |= repaired
        order.append(level(**all_at_once))
    assert order == ["diverged", "stale batch norm", "dead units", "distribution shift", "overfitting", "learning"]


# What is said --------------------------------------------------------------------------------------------------------


def test_early_stopping_is_advised_where_validation_was_best():
    run = [Moment(10, 0.8, 0.75), Moment(310, 0.9, 0.85), Moment(600, 0.95, 0.8), Moment(700, 0.95, NAN)]
    said = judge(dataclasses.replace(GOOD, accuracy=1.0, val_accuracy=0.559), run)
    assert str(said) == (
        "overfitting: training accuracy 1.000, validation 0.559 (it was 0.850 at step 310). Try: early stop near step "
        "310, more data, augmentation, weight decay or a smaller network."
    )
    assert "early stop" not in judge(dataclasses.replace(GOOD, val_accuracy=0.559), run[:0]).advice
    # By chance it is a little higher at one of many: 0.65 is 2.1 standard errors of 256 samples above, 0.64 is 1.9.
    guess = [Moment(0, 0.1, 0.11), Moment(10, 0.5, 0.64), Moment(20, 0.9, 0.09)]
    assert "early stop" not in judge(dataclasses.replace(GOOD, val_accuracy=0.559), guess).advice
    guess[1] = Moment(10, 0.5, 0.65)
    assert "step 10," in judge(dataclasses.replace(GOOD, val_accuracy=0.559), guess).advice
    # Where validation accuracy is now at its best, an earlier stop would not help.
    assert "early stop" not in judge(dataclasses.replace(GOOD, val_accuracy=0.86), run).advice


def test_a_network_that_has_learnt_wrong_labels_is_not_told_to_stop_at_its_beginning():
    run = [Moment(0, 0.1, 0.109), Moment(10, 0.3, 0.1)]
    said = judge(dataclasses.replace(GOOD, accuracy=1.0, val_accuracy=0.09), run)
    assert str(said) == (
        "overfitting: training accuracy 1.000, validation 0.090, where guessing gives 0.100. Try: check the labels, "
        "more data, augmentation, weight decay or a smaller network."
    )


def test_what_an_untrained_network_needs_depends_on_what_is_known_of_its_run():
    advice = {known: judge(dataclasses.replace(GOOD, accuracy=0.1, untouched=known)).advice for known in (True, False)}
    assert advice == {True: "", False: "a higher learning rate or more steps; check the labels"}
    unknown = judge(dataclasses.replace(GOOD, accuracy=0.1, untouched=None)).advice
    assert unknown == f"if it has been trained, {advice[False]}"


def test_fewer_than_64_samples_are_no_finding_whatever_they_show():
    worst = Numbers(63, 10, 0.1, 0.0, finite=0.0, dead=1.0)
    assert str(judge(worst)) == "no finding: the probe has 63 samples, and a verdict needs 64. Try: a larger probe."


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Numbers) if f.type == "float"])
def test_a_number_that_is_missing_decides_nothing(name):
    said = judge(dataclasses.replace(GOOD, **{name: NAN}))
    assert said.level == (NO_FINDING if name in ("accuracy", "val_accuracy") else "healthy")
    assert all(math.isfinite(value) for value in said.numbers.values())


def test_nothing_measured_is_no_finding():
    nothing = Numbers(256, 10, NAN, *[NAN] * 8)
    assert judge(nothing, [Moment(0)]).level == NO_FINDING


@pytest.mark.parametrize("bad", LEVELS)
def test_every_level_is_a_section_of_the_page(bad):
    assert Verdict(bad, {}, "", "").rule == f"docs/evidence.md#{bad.replace(' ', '-')}"


def test_the_verdict_is_the_first_line_everywhere(learnt):
    made = diagnose(learnt, *probe(), measure=["sample_basin"])
    assert str(made).splitlines()[0] == str(made.verdict)
    assert str(made.verdict).split(":")[0] == made.verdict.level
    assert made.verdict.level in LEVELS
    plain = made.to_dict()["verdict"]
    assert plain == {
        "level": made.verdict.level,
        "numbers": made.verdict.numbers,
        "advice": made.verdict.advice,
        "reason": made.verdict.reason,
    }


# The run so far ------------------------------------------------------------------------------------------------------


def test_the_run_survives_json_and_a_checkpoint(tmp_path):
    x, y = probe()
    net = network()

    def watch():
        return Monitor((x, y), held_out(), measure=["sample_basin"], figures="never")

    first, again = watch(), watch()
    for step in (0, 10):
        first.measure(net, step)
        trained(net, x, y, steps=10)
    again.load_state_dict(json.loads(json.dumps(first.state_dict() | {"before": {}})))
    last, resumed = first.measure(net, 20), again.measure(net, 20)
    assert [moment.step for moment in last.trend] == [0, 10]
    # As text: NaN is not equal to itself.
    assert repr(resumed.trend) == repr(last.trend)
    assert resumed.verdict == last.verdict
    last.save(tmp_path / "report.json")
    loaded = Report.load(tmp_path / "report.json")
    assert (loaded.step, repr(loaded.trend), loaded.verdict) == (20, repr(last.trend), last.verdict)
    assert json.loads(last.to_json())["trend"][1]["val_accuracy"] == last.trend[1].val_accuracy


def test_a_run_that_starts_again_forgets_what_came_later():
    history = History()
    for step in (0, 10, 20):
        history.add(step, report())
    assert [moment.step for moment in history.before(30)] == [0, 10, 20]
    assert [moment.step for moment in history.before(10)] == [0]


def test_a_long_run_stays_small():
    long = [Moment(step, step / 1e4) for step in range(1999)]
    assert len(thinned(long)) <= trend.MOST
    assert thinned(long)[-1] == long[-1]
    assert thinned(long[:5]) == tuple(long[:5])
    assert thinned([]) == ()


def test_a_report_without_a_run_has_a_verdict_all_the_same():
    assert report(val_accuracy=0.86).verdict.level == "learning"
    assert report().trend == ()


# Beside the findings -------------------------------------------------------------------------------------------------

LAG, ELSEWHERE, UNTRAINED = "lag behind", "distributed otherwise", "The network is untrained"
#: Verdicts, and what no sentence of the same report may say.
NEVER = {
    "healthy": [LAG, UNTRAINED],
    "learning": [LAG, UNTRAINED],
    "overfitting": [LAG, UNTRAINED, ELSEWHERE],
    "distribution shift": [LAG, UNTRAINED],
    "stale batch norm": [ELSEWHERE, UNTRAINED],
}


def test_findings_never_contradict_the_verdict():
    """8,000 reports of random numbers, each of which lies in the range of its rules half of the time."""
    draw = torch.Generator().manual_seed(0)
    met = dict.fromkeys(NEVER, 0)
    for _ in range(8000):
        a, v, gap, train_gap = torch.rand(4, generator=draw).tolist()
        rare = torch.rand(2, generator=draw) < 0.5
        accuracy = a if rare[0] else 0.8 + a / 5
        made = report(
            accuracy=accuracy,
            val_accuracy=v if rare[1] else max(accuracy - v / 5, 0.0),
            batchnorm_gap=gap / 2 - 0.2,
            batchnorm_train_gap=train_gap / 2 - 0.2,
            guess=0.2,
        )
        level, sentences = made.verdict.level, " ".join(made.findings())
        assert not [words for words in NEVER.get(level, []) if words in sentences], (level, sentences)
        met[level] = met.get(level, 0) + 1
    assert min(met[level] for level in NEVER) > 100
