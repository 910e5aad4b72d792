"""One measure that fails costs only itself; targets that are numbers; of many classes a few."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, rankdata, spearmanr
from torch import nn

import networks
from counting import PASSES, Counting, counted
from netdyn import diagnose
from netdyn._utils.random import Contents
from netdyn._utils.trees import evenly_spaced
from netdyn.basins.coverage import neighbours
from netdyn.basins.input_noise import Noise
from netdyn.basins.sample_basin import measure_sample_basin
from netdyn.basins.weight_basin import measure_weight_basin
from netdyn.basins.weight_noise import WeightNoise
from netdyn.engine import evaluate
from netdyn.engine.config import MEASURES, Config
from netdyn.functional import batchnorm_gap, characteristic_maps, sample_basin, weight_basin
from netdyn.isolation.isolated import isolated
from netdyn.linear import characteristic
from netdyn.probes.probe import Probe
from netdyn.probes.tasks import prepare
from netdyn.tracing.fields import choose, discover

CLASSES, FEATURES, SAMPLES = 5, 8, 120
QUICK = {"weight_rays": 2}


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(outputs=CLASSES, width=24, first=None, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            first or nn.Linear(FEATURES, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, outputs),
        )


@pytest.fixture(scope="module")
def case():
    """A network, a probe, and labels that are nearly its own answers."""
    net, x = network(), gaussian(SAMPLES, FEATURES, seed=1)
    target = net.eval()(x).argmax(dim=1)
    target[::7] = (target[::7] + 1) % CLASSES
    return net, x, target


def evaluated(case, val_probe=None, distributions=True, **options):
    """The report, and what failed on the way."""
    net, x, target = case
    failed = []
    with isolated(net) as (net,):
        report = evaluate.evaluate(
            net,
            Probe(x, target),
            Config(**QUICK | options),
            val_probe=val_probe and Probe(*val_probe),
            on_failure=lambda name, error: failed.append((name, type(error), str(error))),
            distributions=distributions,
        )
    return report, failed


def plain(report):
    """The plain form; numbers of passes are quotients, whose differences are rounded."""
    form = report.to_dict()
    for basin in (form.get("sample_basin"), form.get("weight_basin")):
        if basin is not None:
            basin["forwards"] = round(basin["forwards"], 9)
    return form


# What a run finds once -----------------------------------------------------------------------------------------------


def test_neighbours_are_found_once_for_the_same_data(case, monkeypatch):
    net, x, target = case
    made = []

    def counted_neighbours(*data):
        made.append(len(data[0]))
        return neighbours(*data)

    monkeypatch.setattr(evaluate, "neighbours", counted_neighbours)
    memory = evaluate.Memory()

    def covered(x, target, val_x, val_target):
        with isolated(net) as (own,):
            probes = Probe(x, target), Probe(val_x, val_target)
            options = Config(**QUICK, measure=("sample_basin",))
            return evaluate.evaluate(own, probes[0], options, val_probe=probes[1], memory=memory).coverage

    halves = x[:60], target[:60], x[60:], target[60:]
    first = covered(*halves)
    assert covered(*(t.clone() for t in halves)) == first
    assert made == [60]
    # Other inputs or other labels, of either probe, are other data.
    for i in range(4):
        changed = [t.roll(1, dims=0) if j == i else t for j, t in enumerate(halves)]
        assert covered(*changed) != first
        assert len(made) == 2 + i


def test_noise_is_drawn_once_in_a_run_and_anew_without_one(case, monkeypatch):
    net, x = case[0], gaussian(700, FEATURES, seed=2)  # so many that one ray of each shows where accuracy falls
    target, drawn = net(x).argmax(dim=1), []
    target[::7] = torch.arange(100) % CLASSES
    for owner, name in ((WeightNoise, "_drawn"), (Noise, "draw")):
        draw = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, draw=draw, name=name: drawn.append(name) or draw(*args))

    def report(memory=None):
        probes = Probe(x[:600], target[:600]), Probe(x[600:], target[600:])
        options = Config(**QUICK, measure=("sample_basin", "weight_basin"))
        drawn.clear()
        with isolated(net) as (own,):
            found = evaluate.evaluate(own, probes[0], options, val_probe=probes[1], memory=memory)
        return plain(replace(found, measured={})), drawn.count("_drawn"), drawn.count("draw")

    memory = evaluate.Memory()
    expected, on_weights, on_inputs = report()
    # Two rays of three weights, the first one twice; and of the probe, for the basin and for each kind of neighbour.
    assert (on_weights, on_inputs) == (9, 3)
    assert report(memory) == (expected, 6, 1)
    assert report(memory) == (expected, 0, 0)
    with torch.no_grad():
        net[0].weight.mul_(1.5)  # a step of training: other scales, the same numbers
    try:
        assert report(memory) == (report()[0], 0, 0)
        assert report()[0] != expected
    finally:
        with torch.no_grad():
            net[0].weight.div_(1.5)


def test_kept_noise_has_the_shape_of_the_inputs(case):
    net, x, target = nn.Sequential(nn.Flatten(), case[0]).eval(), *case[1:]
    memory, radii = evaluate.Memory(), set()
    for shape in ((FEATURES,), (2, FEATURES // 2)):
        with isolated(net) as (own,):
            options, probe = Config(measure=("sample_basin",)), Probe(x.reshape(-1, *shape), target)
            radii.add(evaluate.evaluate(own, probe, options, memory=memory).sample_basin.radius)
    assert len(radii) == 1


def test_maps_after_layers_need_no_search_for_what_can_be_read(case, monkeypatch):
    net, x, target = case

    def report(measure, memory=None):
        with isolated(net) as (own,):
            return evaluate.evaluate(own, Probe(x, target), Config(measure=(measure,)), memory=memory)

    expected, memory = report("maps"), evaluate.Memory()
    report("modes", memory)
    monkeypatch.setattr(evaluate, "discover", None)
    found = report("maps", memory)
    assert torch.equal(found.characteristic_maps, expected.characteristic_maps)
    assert torch.equal(found.subnetwork.units, expected.subnetwork.units)


# One failing measure -------------------------------------------------------------------------------------------------

#: Measure → the function that is replaced by one that fails, and where its results stand in a report's plain form.
PLACES = {
    "modes, linear": ("read_layers", ("layers", "functional_depth", "phase", "findings")),
    "sample_basin": ("measure_sample_basin", ("sample_basin", "findings")),
    "coverage": ("measure_coverage", ("coverage",)),
    "weight_basin": ("measure_weight_basin", ("weight_basin", "findings")),
    "maps": ("input_maps", ()),
    "batchnorm": ("measure_gap", ("batchnorm_gap", "batchnorm_train_gap")),
}


class Torn(Exception):
    pass


def tears(*args, **options):
    raise Torn("out of paper")


@pytest.mark.parametrize("name", PLACES)
def test_a_measure_that_fails_costs_only_itself(case, monkeypatch, name):
    place, lost = PLACES[name]
    val_probe = (case[1][:40], case[2][:40])
    whole, nothing = evaluated(case, val_probe)
    monkeypatch.setattr(evaluate, place, tears)
    report, failed = evaluated(case, val_probe)
    assert nothing == []
    assert failed == [(name, Torn, "out of paper")]
    expected, found = plain(whole), plain(report)
    same = set(expected) - set(lost)
    assert {key: found.get(key) for key in same} == {key: expected[key] for key in same}
    assert all(found.get(key) != expected[key] for key in lost)
    assert (report.characteristic_maps is None) == (name == "maps")


def test_a_failed_reading_is_named_after_what_was_asked_for(case, monkeypatch):
    monkeypatch.setattr(evaluate, "read_layers", tears)
    assert evaluated(case, measure=("linear",))[1] == [("linear", Torn, "out of paper")]
    assert evaluated(case, measure=("linear", "modes"))[1] == [("modes, linear", Torn, "out of paper")]


def test_when_everything_fails_accuracies_are_left(case, monkeypatch):
    net, x, target = case
    for place, _ in PLACES.values():
        monkeypatch.setattr(evaluate, place, tears)
    report, failed = evaluated(case, (x[:40], target[:40]))
    assert [name for name, _, _ in failed] == [
        *("modes, linear", "sample_basin", "coverage", "weight_basin", "batchnorm", "maps")
    ]
    right = net(x).argmax(dim=1) == target
    assert report.scalars() == {
        "probe/accuracy": pytest.approx(float(right.double().mean())),
        "probe/val_accuracy": pytest.approx(float(right[:40].double().mean())),
    }


def test_a_val_probe_that_does_not_fit_costs_what_is_measured_on_it(case):
    whole, _ = evaluated(case)
    report, failed = evaluated(case, (gaussian(10, FEATURES + 1), torch.zeros(10, dtype=torch.int64)))
    assert [(name, kind) for name, kind, _ in failed] == [("val_probe", RuntimeError)]
    assert report.val_accuracy is None
    assert math.isnan(report.batchnorm_gap)
    assert math.isfinite(whole.batchnorm_gap)
    lost = {"batchnorm_gap", "val_accuracy"}
    assert {k: v for k, v in plain(report).items() if k not in lost} == {
        k: v for k, v in plain(whole).items() if k not in lost
    }


def test_whole_numbers_without_an_embedding_cost_the_basin_of_the_samples_alone():
    # Noise cannot be added to whole numbers, and what a larger module makes of them may be anything.
    class Start(nn.Module):
        def __init__(self):
            super().__init__()
            self.read = nn.Linear(120, 24)

        def forward(self, ids):
            return self.read(nn.functional.one_hot(ids, 30).float().flatten(1))

    first = Start()
    net, ids = network(first=first), torch.randint(30, (SAMPLES, 4), generator=torch.Generator().manual_seed(0))
    target = torch.cat([net.eval()(ids)[:100].argmax(dim=1), torch.arange(20) % CLASSES])
    report, failed = evaluated((net, ids, target))
    assert [(name, kind) for name, kind, _ in failed] == [("sample_basin", TypeError)]
    assert report.sample_basin is None
    others = [name for name in MEASURES if name != "sample_basin"]
    assert plain(report) == plain(diagnose(net, ids, target, measure=others, **QUICK))
    assert all(math.isfinite(layer.tail_accuracy) for layer in report.layers)
    assert report.weight_basin.radius > 0
    # There is no map of whole numbers, which is no failure.
    assert report.characteristic_maps is None
    with pytest.raises(TypeError, match=r"floating"):
        diagnose(net, ids, target, **QUICK)


def test_an_interrupt_is_no_failed_measure(case, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "measure_weight_basin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(case)


# Forms ---------------------------------------------------------------------------------------------------------------


def test_the_plain_form_goes_through_json_with_all_numbers_of_a_report(case):
    report, _ = evaluated(case, (case[1][:40], case[2][:40]))
    form = report.to_dict()
    assert json.loads(json.dumps(form, allow_nan=False)) == form
    assert set(form) == {
        *("accuracy", "val_accuracy", "samples", "num_classes", "alpha", "guess", "functional_depth"),
        *("batchnorm_gap", "batchnorm_train_gap"),
        *("phase", "layers", "findings", "sample_basin", "weight_basin", "coverage"),
        *("sample_change", "weight_change", "val_samples", "finite", "loss", "step", "trend", "verdict", "companions"),
    }
    assert form["phase"] == {"index": report.phase.index, "spread": report.phase.spread, "mean": report.phase.mean}
    assert form["batchnorm_gap"] == report.batchnorm_gap
    layer = form["layers"][0]
    assert (layer["tail_accuracy"], layer["linear_share"]) == (
        report.layers[0].tail_accuracy,
        report.layers[0].linear_share,
    )
    assert report.to_dict(arrays=True)["layers"][0]["distribution"] == report.layers[0].distribution.tolist()


def test_figures_are_those_that_there_are_numbers_for(case):
    names = {
        "modes": {"modes/rpd"},
        "linear": {"linear/tail"},
        "maps": {"wpa/characteristic_maps", "wpa/subnetwork"},
        "batchnorm": set(),
    }
    for measure, expected in names.items():
        assert set(evaluated(case, measure=(measure,))[0].figures()) == expected
    assert set(evaluated(case, measure=tuple(names))[0].figures()) == set().union(*names.values())
    assert set(evaluated(case, measure=("modes",), distributions=False)[0].figures()) == set()


# Numbers to be predicted ---------------------------------------------------------------------------------------------


def weights_below(net):
    """What the activations of both layers are multiplied by on the way out, the other activations gone."""
    last = net[5].weight.detach()
    return {"1": last @ net[3].weight.detach(), "3": last}


def regression(outputs):
    net, x = network(outputs), gaussian(SAMPLES, FEATURES, seed=2)
    numbers = net.eval()(x).detach() + 0.3 * gaussian(SAMPLES, outputs, seed=3)
    return net, x, numbers


@pytest.mark.parametrize("outputs", [1, 3])
def test_order_of_numbers_is_spearmans_correlation_with_the_sign_of_the_map(outputs):
    net, x, numbers = regression(outputs)
    report = diagnose(net, x, numbers, measure=["modes"])
    with torch.no_grad():
        fields = {"1": net[:2](x), "3": net[:4](x)}
    assert [layer.name for layer in report.layers] == ["1", "3"]
    for layer in report.layers:
        wiring = weights_below(net)[layer.name].sign().numpy()
        for i in range(24):
            field = fields[layer.name][:, i].numpy()
            found = [spearmanr(field, numbers[:, k].numpy()).statistic * wiring[k, i] for k in range(outputs)]
            assert float(layer.order_index[i]) == pytest.approx(np.mean(found), abs=1e-6)


def test_a_column_of_numbers_and_a_vector_are_the_same():
    net, x, numbers = regression(1)
    column, vector = diagnose(net, x, numbers, **QUICK), diagnose(net, x, numbers[:, 0], **QUICK)
    assert column.to_dict() == vector.to_dict()
    flat = nn.Sequential(net, nn.Flatten(0))
    assert diagnose(flat, x, numbers[:, 0], **QUICK).scalars().keys() == {
        re.sub(r"/(\d)$", r"/0.\1", tag) for tag in vector.scalars()
    }


@pytest.mark.parametrize(("outputs", "tolerance"), [(1, 0.5), (3, 0.5), (3, 0.2)])
def test_basins_of_numbers_end_where_an_output_has_moved_too_far(outputs, tolerance):
    net, x, numbers = regression(outputs)
    clean = net(x).detach()
    far = [tolerance * float(np.std(numbers[:, k].numpy())) for k in range(outputs)]

    def near(outs, target):
        return torch.stack(
            [(out - aim).abs() <= limit for out, aim, limit in zip(outs.T, target.T, far, strict=True)]
        ).all(0)

    measure = ["sample_basin", "weight_basin"]
    report = diagnose(net, x, numbers, measure=measure, tolerance=tolerance, **QUICK)
    expected = sample_basin(net, x, clean, criterion=near)
    assert report.sample_basin.radius == expected.radius
    assert 0 < expected.radius < 10
    weights = weight_basin(net, x, clean, criterion=near, rays=2)
    assert torch.equal(report.weight_basin.radii, weights.radii)


def test_the_linear_share_of_numbers_is_not_centred_over_outputs():
    net, x, numbers = regression(3)
    report = diagnose(net, x, numbers, measure=["linear"])
    with torch.no_grad():
        true, field = net(x), net[:4](x)
        tails = {"3": net[5](field), "1": net[5](net[3](net[:2](x)))}
    for layer in report.layers:
        z, w = (v.double().numpy() - v.double().numpy().mean(axis=0) for v in (true, tails[layer.name]))
        expected = (z * w).sum() ** 2 / ((z**2).sum() * (w**2).sum())
        assert layer.linear_share == pytest.approx(expected, rel=1e-5)
        z, w = (v - v.mean(axis=1, keepdims=True) for v in (z, w))
        centred = (z * w).sum() ** 2 / ((z**2).sum() * (w**2).sum())
        assert abs(layer.linear_share - centred) > 1e-3


def test_a_larger_tolerance_makes_larger_basins():
    radii = [
        diagnose(*regression(3), measure=["sample_basin"], tolerance=tolerance).sample_basin.radius
        for tolerance in (0.1, 0.3, 1.0)
    ]
    assert radii == sorted(set(radii))


def test_numbers_have_no_accuracy_no_classes_and_no_gap():
    net, x, numbers = regression(3)
    report = diagnose(net, x, numbers, val_inputs=x[:30], val_target=numbers[:30], **QUICK)
    assert (report.num_classes, report.val_accuracy) == (1, None)
    assert math.isnan(report.accuracy)
    assert math.isnan(report.batchnorm_gap)
    assert math.isnan(report.functional_depth)
    values = report.scalars()
    assert not [tag for tag in values if "accuracy" in tag or "class_radius" in tag or "phase" in tag]
    assert {"modes/opt_fraction/1", "linear/share/3", "basin/sample/radius", "basin/weight/radius"} <= set(values)
    assert all(math.isfinite(value) for value in values.values())
    form = report.to_dict()
    assert json.loads(json.dumps(form, allow_nan=False)) == form
    assert str(report).splitlines()[1] == "probe: 120 samples"
    assert report.characteristic_maps.shape == (3, FEATURES)
    assert report.figures()


def test_of_large_probes_a_fixed_choice_shows_the_batchnorm_gap(monkeypatch):
    monkeypatch.setattr(evaluate, "GAP_SAMPLES", 40)
    net, x = network(), gaussian(SAMPLES, FEATURES, seed=2)
    target, val_target = torch.arange(SAMPLES) % CLASSES, torch.arange(50) % CLASSES
    net[1].running_mean += 1.0
    report = diagnose(net, x, target, val_inputs=x[:50] + 0.1, val_target=val_target, measure=["batchnorm"])
    for inputs, labels, found in (
        (x, target, report.batchnorm_train_gap),
        (x[:50] + 0.1, val_target, report.batchnorm_gap),
    ):
        chosen = Contents.of(inputs).first(40)
        assert found == pytest.approx(batchnorm_gap(net, inputs[chosen], labels[chosen]), abs=1e-12)
        assert found != 0
    # By content: the order of the samples does not matter.
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    again = diagnose(net, x[order], target[order], measure=["batchnorm"]).batchnorm_train_gap
    assert again == pytest.approx(report.batchnorm_train_gap, abs=1e-12)


def test_zeros_and_ones_for_a_single_logit_are_two_classes():
    net, x = network(1), gaussian(SAMPLES, FEATURES, seed=2)
    labels = (net.eval()(x)[:, 0] > 0).long()
    labels[::6] = 1 - labels[::6]
    expected = diagnose(net, x, labels, **QUICK)
    assert expected.num_classes == 2
    assert expected.accuracy == pytest.approx(5 / 6)
    for target in (labels.float(), labels.double()[:, None]):
        assert diagnose(net, x, target, **QUICK).to_dict() == expected.to_dict()


@pytest.mark.parametrize("soften", [0.0, 0.1], ids=["one-hot", "smoothed"])
def test_one_hot_targets_are_refused_with_the_way_out(case, soften):
    net, x, target = case
    rows = (1 - soften) * nn.functional.one_hot(target, CLASSES).float() + soften / CLASSES
    text = (
        "`target` must hold whole class labels (an integer dtype), got rows that sum to 1, of shape [120, 5]. Convert "
        "one-hot or probability targets with `target.argmax(1)`; pass task='multilabel' or task='numbers' if they are "
        "something else."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        diagnose(net, x, rows)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    net, x, numbers = regression(3)
    numbers[4, 1] = bad
    with pytest.raises(ValueError, match=r"^`target` must hold finite numbers, got NaN or inf\.$"):
        diagnose(net, x, numbers)


# Many classes --------------------------------------------------------------------------------------------------------

MANY, CHOSEN = 1000, 12


@pytest.fixture(scope="module")
def many():
    """A thousand classes, two samples of each, but none of the last ten."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(FEATURES, 20), nn.ReLU(), nn.Linear(20, MANY))
    target = torch.arange(2 * MANY) % (MANY - 10)
    return net.eval(), gaussian(2 * MANY, FEATURES, seed=1), target


missing = pytest.mark.filterwarnings("ignore:The probe holds 990 of 1000 classes:UserWarning")


def chosen_classes(seed=0):
    """The choice as it is defined: seeded, among the classes present."""
    order = torch.randperm(MANY - 10, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:CHOSEN].tolist())


@missing
def test_of_many_classes_the_chosen_ones_give_the_numbers(many):
    net, x, target = many
    (layer,) = diagnose(net, x, target, measure=["modes"], max_classes=CHOSEN).layers
    classes = chosen_classes()
    with torch.no_grad():
        fields = net[0](x).double().numpy()  # some releases of SciPy rank in single precision otherwise
    rows = net[2].weight.detach().double().numpy()[classes]
    rows = rows - rows.mean(axis=0)
    ranks = (rankdata(fields, axis=0) - 0.5) / len(x)
    tuning, oriented = np.zeros((CHOSEN, 20)), [[] for _ in classes]
    for k, label in enumerate(classes):
        own = (target == label).numpy()
        for i in range(20):
            larger = mannwhitneyu(fields[own, i], fields[~own, i]).statistic
            tuning[k, i] = 2 * larger / (own.sum() * (~own).sum()) - 1
            u = ranks[own, i]
            oriented[k] += list(u if rows[k, i] > 0 else 1 - u)
    np.testing.assert_allclose(layer.order_index, (np.sign(rows) * tuning).mean(axis=0), atol=1e-9)
    assert layer.rule == "sign-flip"
    assert layer.rpd_gradient == pytest.approx(12 * np.mean([np.mean(u) - 0.5 for u in oriented]), abs=1e-9)
    density = np.mean([np.histogram(u, 20, (0, 1))[0] * 20 / len(u) for u in oriented], axis=0)
    np.testing.assert_allclose(layer.distribution, density, atol=1e-9)


@missing
def test_the_choice_of_classes_is_the_seeds(many):
    first, again, other = (
        diagnose(*many, measure=["modes"], max_classes=CHOSEN, seed=seed).layers[0].order_index for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert chosen_classes(0) != chosen_classes(1)


@missing
def test_as_many_classes_as_there_are_are_no_choice(many):
    net, x, target = many
    few = target < CLASSES
    head = nn.Sequential(net[0], net[1], nn.Linear(20, CLASSES))
    found = [
        diagnose(head, x[few], target[few], measure=["modes", "linear"], max_classes=most).to_dict()
        for most in (CLASSES, 100)
    ]
    assert found[0] == found[1]


@missing
def test_tails_of_many_classes_are_run(many):
    net, x, target = many
    with torch.no_grad():
        true, linear = net(x), net[2](net[0](x))
    best = true.argmax(dim=1)
    # Half the samples have the network's own answer, the others keep all classes present.
    target = torch.where((torch.arange(len(x)) < MANY) & (best < MANY - 10), best, target)
    report = diagnose(net, x, target, measure=["linear"], max_classes=CHOSEN)
    (layer,) = report.layers
    assert layer.tail_accuracy == pytest.approx(float((linear.argmax(dim=1) == target).double().mean()))
    z, w = (v.double().numpy() for v in (true, linear))
    z, w = (v - v.mean(axis=1, keepdims=True) - v.mean(axis=0) + v.mean() for v in (z, w))
    assert layer.linear_share == pytest.approx((z * w).sum() ** 2 / ((z**2).sum() * (w**2).sum()), rel=1e-6)


@missing
def test_many_classes_have_no_characteristic_maps(many):
    assert diagnose(*many, measure=["maps"], max_classes=CHOSEN).characteristic_maps is None


# Where the noise falls ------------------------------------------------------------------------------------------------


def test_noise_on_an_embedding_is_that_of_the_function():
    network = networks.fill(networks.Tokens())
    ids = torch.randint(10, (120, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.out.bias -= network(ids).mean(dim=0)  # so that no class takes all
        target = network(ids).argmax(dim=1)
    report = diagnose(network, ids, target, measure=["modes", "sample_basin"], noise_at=["embed"])
    expected = sample_basin(network, ids, target, noise_at=["embed"])
    assert 0 < report.sample_basin.radius < 10
    assert report.sample_basin.radius == expected.radius
    # Without a name, noise falls on the embedding that runs.
    found = diagnose(network, ids, target, measure=["sample_basin"]).sample_basin
    assert (found.radius, found.noise_at) == (expected.radius, ("embed",))


# What it costs, in counts --------------------------------------------------------------------------------------------
#
# Times are no test: they change with the machine.

#: Samples of the passes that come first: two calls that show whether the network is random, then the survey.
FIRST, SURVEY = [2, 2], [2, 3]
#: Two samples that show the number of classes, and four samples per class whose Jacobians are the layers' maps.
MAP = [2, 4 * 10]
#: Samples of a map of the input, and of one that depends on the sample.
FEW, MANY_SAMPLES = 4, 64


def plain_network(norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(32) if norm else nn.Identity()
        made = Counting(nn.Linear(20, 32), middle, nn.ReLU(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 10))
    PASSES.clear()
    return made


def plain_probe():
    return gaussian(200, 20), torch.arange(200) % 10


def test_maps_use_what_reading_has_found(monkeypatch):
    with (
        counted(monkeypatch, evaluate, "discover") as surveys,
        counted(monkeypatch, torch.autograd, "grad") as gradients,
    ):
        report = diagnose(plain_network(), *plain_probe(), measure=["modes", "linear", "maps"], progress=False)
    # A run for the maps of the logits, the probe once more for the units' shares, and one for the units' maps.
    assert [*FIRST, *SURVEY, *MAP, 100, 100, 200, FEW, 200, FEW] == PASSES
    assert not surveys
    assert len(gradients) == 1 + 10 + len(report.subnetwork.units.unique())


class Bent(nn.Module):
    """What leads to the hidden layer depends on the sample."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.last = nn.LayerNorm(20), nn.Linear(20, 8), nn.Linear(8, 10)

    def forward(self, x):
        return self.last(self.first(self.norm(x)).relu())


@pytest.mark.parametrize(
    ("make", "gradients"), [(plain_network, 10), (lambda: networks.fill(Bent()), 1 + 10)], ids=["straight", "bent"]
)
def test_few_samples_are_asked_where_they_agree_and_all_where_they_do_not(make, gradients, monkeypatch):
    model, (x, _) = make(), plain_probe()
    choice = choose(model, discover(model, x), None)
    with counted(monkeypatch, torch.autograd, "grad") as calls, isolated(model) as (own,):
        maps = characteristic.input_maps(own, x, choice)
    assert len(calls) == gradients
    monkeypatch.setattr(characteristic, "MAP_SAMPLES", (MANY_SAMPLES,))
    with isolated(model) as (own,):
        whole = characteristic.input_maps(own, x, choice)
    assert torch.allclose(maps, whole, atol=1e-6)


def test_maps_that_depend_on_the_sample_are_means_over_all():
    model, (x, _) = networks.fill(Bent()), plain_probe()
    few, whole = characteristic_maps(model, x[:4]), characteristic_maps(model, x)
    leaf = x[evenly_spaced(200, MANY_SAMPLES)].requires_grad_()
    straight = model.last(model.first(model.norm(leaf)))
    expected = torch.stack([torch.autograd.grad(row.sum(), leaf, retain_graph=True)[0].mean(0) for row in straight.t()])
    assert torch.allclose(whole, expected, atol=1e-3)
    assert not torch.allclose(few, whole, atol=1e-3)


def test_a_given_pathway_changes_nothing_in_the_subnetwork():
    model, (x, y) = plain_network(), plain_probe()
    together = diagnose(model, x, y, measure=["modes", "linear", "maps"], progress=False)
    alone = diagnose(model, x, y, measure=["maps"], progress=False)
    assert torch.equal(together.subnetwork.units, alone.subnetwork.units)
    assert torch.allclose(together.subnetwork.maps, alone.subnetwork.maps)
    assert torch.equal(together.characteristic_maps, alone.characteristic_maps)


def test_a_sampled_pathway_is_not_taken_for_the_whole(monkeypatch):
    with counted(monkeypatch, characteristic, "substitute") as maps:
        report = diagnose(plain_network(), *plain_probe(), measure=["modes", "maps"], max_units=16, progress=False)
    assert len(maps) == 1
    assert int(report.subnetwork.units.max()) >= 16


@pytest.mark.parametrize(("norm", "passes"), [(False, [2]), (True, [2, 200])])
def test_two_samples_show_that_nothing_is_normalised(norm, passes):
    diagnose(plain_network(norm=norm), *plain_probe(), measure=["batchnorm"], progress=False)
    assert [*FIRST, 200, *passes] == PASSES


@pytest.fixture(scope="module")
def trained():
    """A multilayer perceptron that has learnt ten noisy centres."""
    target = torch.arange(1024) % 10
    x = gaussian(10, 196)[target] + gaussian(1024, 196, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), target).backward()
        optimiser.step()
    return net.eval(), x, target


def searched(case, search, **options):
    """The result of a search."""
    network, x, target = case
    with isolated(network) as (network,):
        return search(prepare(network, x, target, None, None), 1e-3, 1e1, **options)


def test_a_search_of_samples_draws_its_noise_once_and_takes_few_passes(trained, monkeypatch):
    drawn, draw = [], Noise.draw

    def noted(noise, inputs, digests, rays):
        drawn.append(len(digests))
        return draw(noise, inputs, digests, rays)

    monkeypatch.setattr(Noise, "draw", noted)
    basin = searched(trained, measure_sample_basin, quiet=True)
    assert drawn == [1024]
    # Without noise, at the highest level (a sixteenth), once with every sample at a level of its own, and twice or a
    # few times beside the radius.
    assert basin.forwards <= 6


def test_a_search_of_weights_draws_each_ray_and_takes_few_passes(trained, monkeypatch):
    drawn, draw = [], WeightNoise.draw
    monkeypatch.setattr(WeightNoise, "draw", lambda self, ray: drawn.append(ray) or draw(self, ray))
    basin = searched(trained, measure_weight_basin)
    assert sorted(set(drawn)) == [*range(16)]
    # Once without noise; then a ray asks an eighth of the probe at each level.
    assert basin.forwards <= 1 + 16 * 4 / 8


class Gradient(nn.Module):
    """Moves its input along a gradient, which it asks for on the very tensor that it is given."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with torch.enable_grad():
            x.requires_grad_()
            (slope,) = torch.autograd.grad(self.network(x).logsumexp(dim=1).sum(), x)
        return self.network(x - 0.1 * slope)


def test_a_network_may_ask_for_gradients_on_its_input(trained):
    network, x, target = trained
    report = diagnose(Gradient(network), x, target, measure=["sample_basin", "weight_basin"], progress=False)
    assert report.sample_basin.radius > 0
    assert report.weight_basin.radius > 0
