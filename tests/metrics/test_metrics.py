"""The metrics equal the functions, however the data is split, ordered, copied, moved, merged or gathered."""

import copy
import dataclasses
import itertools
import math
import pickle
import re

import matplotlib as mpl
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torchmetrics import Metric, MetricCollection, MetricTracker

import netdyn
from netdyn._utils.random import digests
from netdyn.functional import (
    class_tuning,
    order_alignment,
    order_index,
    rank_distribution,
    rpd_gradient,
    sample_basin,
    weight_basin,
)
from netdyn.metrics import NetworkModes, NeuronModes, RankDistribution, SampleBasin, WeightBasin
from netdyn.modes.shares import mode_shares
from networks import fill
from reference import random_layer

mpl.use("Agg")


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class First(nn.Module):
    """The first number of each sample against a weight: nothing is rounded, however the samples are batched."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor([[-1.0], [0.0], [1.0]]))

    def forward(self, x):
        return x[:, :1] * self.rows[:, 0]


#: Samples of classes 0 and 2, a few of them wrong, and of a class 1 that is never predicted.
X = gaussian(120, 2, seed=1)
Y = torch.where(X[:, 0] > 0, 2, 0).where(torch.arange(120) % 10 != 0, 1)
LAYER = random_layer(samples=200, units=60, classes=5, levels=30, seed=4)

# Every kind of metric with the arguments of an update, a slice of which is a batch.
FIELD_KINDS = {
    "NeuronModes": lambda **options: NeuronModes(5, **options),
    "RankDistribution": lambda **options: RankDistribution(5, **options),
    "NeuronModes, 50 samples": lambda **options: NeuronModes(5, max_samples=50, **options),
    "RankDistribution, 50 samples": lambda **options: RankDistribution(5, max_samples=50, **options),
}
BASIN_KINDS = {
    "SampleBasin": lambda **options: SampleBasin(rays=2, accuracy=0.7, per_class=True, **options),
    "WeightBasin": lambda **options: WeightBasin(rays=3, accuracy=0.7, samples=50, per_class=True, **options),
}
NETWORK_KINDS = {"NetworkModes": lambda **options: NetworkModes(alpha=0.2, **options)}
KINDS = FIELD_KINDS | BASIN_KINDS | NETWORK_KINDS
MODEL = First()
NETWORK = fill(
    nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.LayerNorm(30), nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3))
)
LEVELS = torch.logspace(-3, 1, 9)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_basin = pytest.mark.parametrize("kind", BASIN_KINDS)
every_field_kind = pytest.mark.parametrize("kind", FIELD_KINDS)


def samples_of(kind):
    return len(LAYER.fields) if kind in FIELD_KINDS else len(X)


def batch(kind, index):
    """The arguments of an update with some of the samples."""
    if kind in FIELD_KINDS:
        return LAYER.fields[index], LAYER.target[index], LAYER.pathway
    return (NETWORK if kind in NETWORK_KINDS else MODEL), X[index], Y[index]


def filled(kind, *indices, **options):
    """A metric updated with these batches, or with all samples at once."""
    metric = KINDS[kind](**options)
    for index in indices or [slice(None)]:
        metric.update(*batch(kind, index))
    return metric


def numbers(value):
    """A result as plain numbers, NaN written out so that it equals itself."""
    if isinstance(value, dict):
        return {name: repr(number.tolist()) for name, number in value.items()}
    return repr(value.tolist())


def computed(metric):
    """The result, and what else the metric tells."""
    value = numbers(metric.compute())
    if isinstance(metric, NeuronModes):
        return value, metric.rule, numbers(metric.units())
    if isinstance(metric, RankDistribution | NetworkModes):
        return value
    return value, told(metric.result())


def told(result):
    """All that a result tells, but for its curve, of which a few points are enough."""
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "curve"}
    curves = [curve.at(LEVELS).tolist() for curve in (result.curve, *result.class_curves) if curve is not None]
    lists = {name: field.tolist() if isinstance(field, torch.Tensor) else field for name, field in fields.items()}
    return repr(lists), repr(curves)


def same(result, expected, rel):
    """Whether two results tell the same numbers but for rounding."""
    for field in dataclasses.fields(result):
        found, other = getattr(result, field.name), getattr(expected, field.name)
        if field.name == "curve":
            found, other = result.accuracy_at(LEVELS), expected.accuracy_at(LEVELS)
        if field.name == "influences" and other is not None:
            found, other = found.key, other.key
        if isinstance(other, torch.Tensor):
            found, other = found.flatten().tolist(), other.flatten().tolist()
        exact = other is None or isinstance(other, str)
        assert found == (other if exact else pytest.approx(other, rel=rel, nan_ok=True)), field.name


# Equal to the functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5, 8])
def test_neuron_modes_equal_the_functions(classes):
    layer = random_layer(samples=150, units=40, classes=classes, levels=9, seed=classes)
    layer.fields[:, 3] = 1.0
    layer.pathway[:, 5] = 0.0
    metric = NeuronModes(classes)
    metric.update(layer.fields, layer.target, layer.pathway)
    tuning = class_tuning(layer.fields, layer.target, classes)
    shares = mode_shares(tuning, layer.pathway, layer.constant, layer.share)
    value = metric.compute()
    assert numbers(value) == {name: repr(getattr(shares, name)) for name in value}
    shown = ["opt_fraction", "npt_fraction", "constant_fraction", "unwired_fraction", "rpd_gradient"]
    assert list(value) == [*shown, "order_z", "opt_chance", "positive_fraction", "order_mean"]
    assert float(value["rpd_gradient"]) == pytest.approx(
        float(rpd_gradient(tuning, layer.pathway, layer.share)), rel=1e-12
    )
    assert value["opt_fraction"] + value["npt_fraction"] == pytest.approx(1)
    assert value["constant_fraction"] == value["unwired_fraction"] == 1 / 40
    assert metric.rule == ("sign-flip" if classes >= 5 else "false-discovery")
    units = metric.units()
    assert numbers(units["tuning"]) == numbers(tuning)
    assert numbers(units["order_index"]) == numbers(order_index(tuning, layer.pathway))
    assert numbers(units["alignment"]) == numbers(order_alignment(tuning, layer.pathway))


@pytest.mark.parametrize("alpha", [0.01, 0.2])
def test_neuron_modes_use_their_alpha(alpha):
    metric = filled("NeuronModes", alpha=alpha)
    shares = mode_shares(LAYER.tuning, LAYER.pathway, LAYER.constant, LAYER.share, alpha)
    assert metric.compute()["opt_fraction"] == shares.opt_fraction


@pytest.mark.parametrize("bins", [1, 7, 20])
def test_rank_distribution_equals_the_function(bins):
    expected = rank_distribution(LAYER.fields, LAYER.target, LAYER.pathway, 5, bins)
    assert torch.equal(filled("RankDistribution", bins=bins).compute(), expected)


def test_single_logit_pathway_stands_for_two_classes():
    layer = random_layer(classes=2, units=40)
    row = layer.pathway[1:] - layer.pathway[:1]
    one, two = NeuronModes(2), NeuronModes(2)
    one.update(layer.fields, layer.target, row)
    two.update(layer.fields, layer.target, layer.pathway)
    assert numbers(one.compute()) == numbers(two.compute())


@pytest.mark.parametrize(
    "options",
    [
        {"accuracy": 0.7},
        {"accuracy": 0.7, "rays": 8},
        {"relative": True},
        {"accuracy": 0.7, "seed": 3, "low": 0.01, "high": 2.0},
        {"accuracy": 0.7, "per_class": True},
        {"accuracy": 0.85, "criterion": lambda outputs, target: outputs.argmax(dim=1) >= target},
    ],
    ids=lambda options: "-".join(options),
)
def test_sample_basin_equals_the_function(options):
    metric = SampleBasin(**options)
    metric.update(MODEL, X, Y)
    expected = sample_basin(MODEL, X, Y, **options)
    assert 0 < expected.radius < math.inf
    assert float(metric.compute()) == metric.result().radius
    # The order of the samples is another one, and with it that of sums.
    same(metric.result(), expected, rel=1e-9)


def test_sample_basin_disturbs_what_it_is_told_to():
    class Two(nn.Module):
        def forward(self, inputs):
            return MODEL(inputs["x"] + inputs["y"])

    inputs = {"x": X, "y": torch.zeros_like(X), "same for all": torch.ones(3)}
    found = {}
    for name in ("x", "y"):
        metric = SampleBasin(accuracy=0.7, noise_at=[name])
        for part in (slice(0, 50), slice(50, None)):
            metric.update(Two(), inputs | {"x": X[part], "y": inputs["y"][part]}, Y[part])
        same(metric.result(), sample_basin(Two(), inputs, Y, accuracy=0.7, noise_at=[name]), rel=1e-9)
        found[name] = metric.result().radius
    assert found["x"] != found["y"]


@pytest.mark.parametrize("tolerance", [0.3, 1.0])
def test_basins_of_numbers_to_be_predicted_equal_the_functions(tolerance):
    x, truth = gaussian(200, 3, seed=5), gaussian(200, 3, seed=5) @ gaussian(3, 2, seed=6)
    network = nn.Linear(3, 2, bias=False)
    network.weight = nn.Parameter(gaussian(3, 2, seed=6).T.contiguous())
    for kind, function in ((SampleBasin, sample_basin), (WeightBasin, weight_basin)):
        metric = kind(tolerance=tolerance)
        for part in (slice(0, 70), slice(70, None)):
            metric.update(network, x[part], truth[part])
        expected = function(network, x, truth, tolerance=tolerance)
        assert 0 < expected.radius < math.inf
        assert metric.compute() == pytest.approx(expected.radius, rel=0.01)


@pytest.fixture(scope="module")
def trained():
    x, target = gaussian(3, 6, seed=1)[torch.arange(300) % 3] + 0.5 * gaussian(300, 6, seed=2), torch.arange(300) % 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), target).backward()
        optimiser.step()
    return network, x, target


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accuracy": 0.8},
        {"relative": True},
        {"normalization": "global"},
        {"layers": ["0.*"]},
        {"layers": "each", "rays": 6},
        {"rays": 3},
        {"samples": 40},
        {"seed": 5, "low": 0.1, "high": 5.0},
        {"per_class": True},
    ],
    ids=str,
)
def test_weight_basin_equals_the_function(trained, options):
    metric = WeightBasin(**options)
    metric.update(*trained)
    expected = weight_basin(*trained, **options)
    assert 0 < expected.radius < math.inf
    assert float(metric.compute()) == metric.result().radius
    # In another order the network rounds some outputs otherwise: one of 128 samples moves a ray by a hundredth at most.
    same(metric.result(), expected, rel=0.02)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_classes": 3, "layers": ["!2"], "max_units": 25, "seed": 4, "alpha": 0.3}, {"max_classes": 2}],
    ids=str,
)
def test_network_modes_are_what_a_report_shows(trained, options):
    network, x, target = trained
    metric = NetworkModes(**options)
    for part in torch.arange(300).split(77):
        metric.update(network, x[part], target[part])
    # The maps of a network that is not affine depend on the order, from which they take some samples.
    order = torch.argsort(digests(torch.cat([x, target[:, None]], dim=1).double())[:, 0])
    expected = netdyn.diagnose(network, x[order], target[order], measure=["modes"], **options).scalars()
    found = metric.compute()
    assert {tag: float(value) for tag, value in found.items()} == expected
    layers = ["0"] if "layers" in options else ["0", "2"]
    assert {tag for tag in found if "/opt_fraction/" in tag} == {f"modes/opt_fraction/{name}" for name in layers}
    assert {(value.dtype, value.shape) for value in found.values()} == {(torch.float64, ())}


def test_network_modes_of_a_forward_of_the_users_own():
    def two(model, x):
        return model(x)[:, :2]

    target = (X[:, 0] > 0).long()
    metric = NetworkModes(forward=two)
    metric.update(NETWORK, X, target)
    order = torch.argsort(digests(torch.cat([X, target[:, None]], dim=1).double())[:, 0])
    expected = netdyn.diagnose(NETWORK, X[order], target[order], measure=["modes"], forward=two).scalars()
    assert {tag: float(value) for tag, value in metric.compute().items()} == expected


def test_network_modes_check_their_arguments():
    with pytest.raises(ValueError, match=r"^`alpha` must lie strictly between 0 and 1, got 2\.$"):
        NetworkModes(alpha=2)
    metric = NetworkModes(4)
    metric.update(NETWORK, X, Y)
    with pytest.raises(ValueError, match=r"^`num_classes` must be that of the model's output, 3 classes, got 4\.$"):
        metric.compute()


def test_complex_inputs_are_kept_whole():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = NETWORK

        def forward(self, x):
            return self.net(torch.view_as_real(x))

    metric, twin = NetworkModes(), NetworkModes()
    metric.update(Complex(), torch.view_as_complex(X), Y)
    twin.update(NETWORK, X, Y)
    expected = {tag.replace("modes/", "").replace("net.", ""): value for tag, value in twin.compute().items()}
    found = {tag.replace("modes/", "").replace("net.", ""): value for tag, value in metric.compute().items()}
    assert numbers(found) == numbers(expected)


# Any split and any order ---------------------------------------------------------------------------------------------


def splits(samples):
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(3))
    yield "one by one", [slice(i, i + 1) for i in range(samples)]
    yield "halves", [slice(0, samples // 2), slice(samples // 2, samples)]
    yield "uneven", [slice(0, 7), slice(7, 60), slice(60, 61), slice(61, samples)]
    yield "backwards", [slice(60, samples), slice(0, 60)]
    yield "shuffled", list(order.split(33))


@pytest.mark.parametrize("split", ["one by one", "halves", "uneven", "backwards", "shuffled"])
@every_kind
def test_any_split_and_order_of_batches_gives_the_same(kind, split):
    indices = dict(splits(samples_of(kind)))[split]
    if kind not in FIELD_KINDS and split == "one by one":
        indices = indices[:30]
        expected = filled(kind, slice(0, 30))
    else:
        expected = filled(kind)
    assert computed(filled(kind, *indices)) == computed(expected)


@pytest.mark.parametrize("kind", ["SampleBasin", "WeightBasin"])
def test_any_split_of_a_networks_samples_gives_the_same(kind, trained):
    network, x, target = trained
    whole, cut = KINDS[kind](), KINDS[kind]()
    whole.update(network, x, target)
    for part in torch.randperm(300, generator=torch.Generator().manual_seed(0)).split(77):
        cut.update(network, x[part], target[part])
    assert computed(cut) == computed(whole)


@every_kind
def test_batch_size_changes_nothing(kind):
    if kind in BASIN_KINDS:
        for batch_size in (1, 50, 1000):
            assert computed(filled(kind, batch_size=batch_size)) == computed(filled(kind))
    elif kind in NETWORK_KINDS:
        expected = {tag: pytest.approx(float(value), abs=1e-6) for tag, value in filled(kind).compute().items()}
        for batch_size in (1, 50, 1000):
            assert filled(kind, batch_size=batch_size).compute() == expected
    else:
        with pytest.raises(ValueError, match="batch_size"):
            filled(kind, batch_size=7)


@every_kind
def test_forward_gives_the_batchs_value_and_accumulates(kind):
    metric, half = KINDS[kind](), samples_of(kind) // 2
    for index in (slice(0, half), slice(half, None)):
        value = metric(*batch(kind, index))
        assert numbers(value) == numbers(filled(kind, index).compute())
    assert computed(metric) == computed(filled(kind))
    metric.update(*batch(kind, slice(0, 9)))
    assert computed(metric) == computed(filled(kind, slice(None), slice(0, 9)))


@every_kind
def test_computing_in_between_changes_nothing(kind):
    metric, half = KINDS[kind](), samples_of(kind) // 2
    for index in (slice(0, half), slice(half, None)):
        metric.update(*batch(kind, index))
        assert computed(metric) == computed(metric)
    assert computed(metric) == computed(filled(kind))


# Reset, copies, merges -----------------------------------------------------------------------------------------------


@every_kind
def test_reset_forgets_everything(kind):
    metric = filled(kind, slice(0, 33))
    metric.compute()
    metric.reset()
    metric.update(*batch(kind, slice(None)))
    assert computed(metric) == computed(filled(kind))


COPIES = {
    "clone": lambda metric: metric.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("computed_before", [False, True])
@every_kind
def test_copies_go_their_own_way(kind, copied, computed_before):
    half = samples_of(kind) // 2
    original = filled(kind, slice(0, half))
    if computed_before:
        original.compute()
    other = copied(original)
    assert computed(other) == computed(original)
    other.update(*batch(kind, slice(half, None)))
    assert computed(other) == computed(filled(kind))
    assert computed(original) == computed(filled(kind, slice(0, half)))
    other.reset()
    assert computed(original) == computed(filled(kind, slice(0, half)))


@every_basin
def test_deep_copies_share_the_model(kind):
    class Single(First):
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    metric = KINDS[kind]()
    metric.update(Single(), X, Y)
    assert computed(copy.deepcopy(metric)) == computed(filled(kind))


@every_kind
def test_metrics_have_a_hash_that_tells_their_states_apart(kind):
    first, second = filled(kind), filled(kind)
    assert hash(first) == hash(first)
    assert len({first, second, filled(kind, slice(0, 9))}) >= 2


@pytest.mark.parametrize("computed_before", [False, True])
@every_kind
def test_merged_states_are_one_accumulation(kind, computed_before):
    half = samples_of(kind) // 2
    first, second = filled(kind, slice(0, half)), filled(kind, slice(half, None))
    if computed_before:
        first.compute(), second.compute()
    first.merge_state(second)
    assert computed(first) == computed(filled(kind))
    assert computed(second) == computed(filled(kind, slice(half, None)))


@every_kind
def test_a_fresh_metric_takes_over_another_ones_state(kind):
    fresh = KINDS[kind]()
    fresh.merge_state(filled(kind))
    assert computed(fresh) == computed(filled(kind))


@every_kind
def test_states_are_merged_from_a_dict_too(kind):
    half = samples_of(kind) // 2
    first, second = filled(kind, slice(0, half)), filled(kind, slice(half, None))
    first.merge_state(second.metric_state)
    assert computed(first) == computed(filled(kind))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
@every_basin
def test_basin_that_has_samples_but_no_model_asks_for_one(kind):
    text = f"{kind} holds samples but no model that takes them. Call `update` with the model first."
    half = len(X) // 2
    saved, loaded, merged = filled(kind, slice(0, half)), KINDS[kind](), KINDS[kind]()
    for metric in (saved, loaded):
        metric.persistent(True)
    loaded.load_state_dict(saved.state_dict())
    merged.merge_state(saved.metric_state)
    for metric in (loaded, merged):
        with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
            metric.compute()
        with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
            metric.result()
        metric.update(*batch(kind, slice(half, None)))
        assert computed(metric) == computed(filled(kind))


@every_basin
def test_samples_of_a_checkpoint_that_do_not_fit_the_model_ask_for_another(kind):
    saved, loaded = filled(kind), KINDS[kind]()
    for metric in (saved, loaded):
        metric.persistent(True)
    other = torch.nn.Linear(17, 3)
    loaded.update(other, torch.rand(20, 17), torch.arange(20) % 3)
    loaded.load_state_dict(saved.state_dict())
    with pytest.raises(RuntimeError, match="holds samples but no model that takes them"):
        loaded.compute()
    with pytest.raises(
        ValueError, match=r"as many numbers per sample as those that \w+ holds, \d+, got 18\. Call `reset"
    ):
        loaded.update(other, torch.rand(20, 17), torch.arange(20) % 3)
    loaded.reset()
    loaded.update(*batch(kind, slice(None)))
    assert computed(loaded) == computed(saved)


class Holding(torch.nn.Module):
    """Holds a metric, which its forward does not use."""

    def __init__(self, metric):
        super().__init__()
        self.net, self.metric = torch.nn.Linear(3, 2), metric

    def forward(self, x):
        return self.net(x)


@pytest.mark.filterwarnings(
    "ignore:(`torch.jit.script` is deprecated|This property will be removed):DeprecationWarning"
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_that_holds_a_metric_can_be_scripted(kind):
    module = Holding(KINDS[kind]())
    x = torch.rand(5, 3)
    assert torch.equal(torch.jit.script(module)(x), module(x))


# Bounded memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [NeuronModes, RankDistribution])
def test_as_many_samples_as_there_are_is_exact(metric):
    all_kept, bounded = metric(5), metric(5, max_samples=200)
    for one in (all_kept, bounded):
        one.update(*batch("NeuronModes", slice(None)))
    assert numbers(bounded.compute()) == numbers(all_kept.compute())


@pytest.mark.parametrize("metric", [NeuronModes, RankDistribution])
def test_bounded_metric_keeps_no_more_samples_than_it_may(metric):
    bounded = metric(5, max_samples=50)
    for index in torch.arange(200).split(30):
        bounded.update(*batch("NeuronModes", index))
        assert sum(map(len, bounded.target)) <= 50
        assert sum(map(len, bounded.fields)) <= 50 * 60
        assert sum(map(len, bounded.pathway)) == 5 * 60


def test_bounded_metric_keeps_some_of_the_samples_as_they_are():
    bounded = filled("NeuronModes, 50 samples", *torch.arange(200).split(30))
    kept = {tuple(row) for row in torch.cat(bounded.fields).reshape(-1, 60).tolist()}
    assert len(kept) == 50
    assert kept < {tuple(row) for row in LAYER.fields.tolist()}
    # The choice goes by content, not by place: it is neither the first nor the last, nor that of one class.
    places = torch.tensor([tuple(row) in kept for row in LAYER.fields.tolist()]).nonzero()[:, 0]
    assert places.min() < 50 < 150 < places.max()
    assert len(LAYER.target[places].unique()) == 5


@pytest.mark.parametrize("kind", ["NeuronModes, 50 samples", "RankDistribution, 50 samples"])
def test_bounded_metrics_merge_in_any_order_to_the_same(kind):
    parts = list(torch.arange(200).split(40))
    expected = computed(filled(kind))
    for order in itertools.islice(itertools.permutations(parts), 0, 120, 17):
        left, right = filled(kind, *order[:2]), filled(kind, *order[2:4])
        right.update(*batch(kind, order[4]))
        left.merge_state(right)
        assert computed(left) == expected


@every_basin
def test_bounded_basin_is_that_of_the_samples_it_keeps(kind):
    assert computed(filled(kind, max_samples=120)) == computed(filled(kind, max_samples=None)) == computed(filled(kind))
    found, places = [], []
    for indices in ([slice(None)], list(torch.arange(120).split(30)), list(torch.arange(119, -1, -1).split(7))):
        metric = KINDS[kind](max_samples=50)
        for index in indices:
            metric.update(*batch(kind, index))
            assert sum(map(len, metric.rows)) <= 50 * 3
        kept = {tuple(row) for row in torch.cat(metric.rows).reshape(-1, 3).tolist()}
        rows = torch.cat([X, Y[:, None]], dim=1).tolist()
        places.append([i for i, row in enumerate(rows) if tuple(row) in kept])
        found.append(computed(metric))
    assert places[0] == places[1] == places[2]
    assert len(places[0]) == 50
    assert min(places[0]) < 20 < 100 < max(places[0])
    assert found[0] == found[1] == found[2] == computed(filled(kind, torch.tensor(places[0])))


@pytest.mark.parametrize("kind", ["NeuronModes", "RankDistribution", *BASIN_KINDS])
def test_bounded_metrics_of_copied_samples_are_the_same_in_any_order(kind):
    # Each sample comes five times, and some copies of those kept in between are left out.
    found = []
    for seed in range(6):
        metric, order = KINDS[kind](max_samples=72), torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        for index in order.split(20 + 9 * seed):
            metric.update(*batch(kind, index % 40))
        found.append(computed(metric))
    assert found == [found[0]] * 6


@every_basin
def test_bounded_basins_merge_in_any_order_to_the_same(kind):
    parts = list(torch.arange(120).split(24))
    expected = computed(filled(kind, max_samples=50))
    for order in itertools.islice(itertools.permutations(parts), 0, 120, 29):
        left, right = filled(kind, *order[:2], max_samples=50), filled(kind, *order[2:], max_samples=50)
        left.merge_state(right)
        assert computed(left) == expected


def test_bounded_modes_estimate_the_exact_ones():
    layer = random_layer(samples=4000, units=200, classes=5, seed=1)
    layer.fields[:] += layer.pathway[layer.target] * torch.linspace(0, 0.3, 200)
    exact, bounded = NeuronModes(5), NeuronModes(5, max_samples=2000)
    for metric in (exact, bounded):
        metric.update(layer.fields, layer.target, layer.pathway)
    # n = 2000 of 4000 samples: the gradient of a layer of 200 units has a standard error below 0.02.
    assert bounded.compute()["rpd_gradient"] == pytest.approx(float(exact.compute()["rpd_gradient"]), abs=0.08)


# Devices and dtypes --------------------------------------------------------------------------------------------------


MOVES = {
    "half": lambda metric: metric.half(),
    "float": lambda metric: metric.float(),
    "double": lambda metric: metric.double(),
    "set_dtype": lambda metric: metric.set_dtype(torch.float16),
    "to bfloat16": lambda metric: metric.to(torch.bfloat16),
    "to cpu": lambda metric: metric.to("cpu"),
    "cpu": lambda metric: metric.cpu(),
    "in a module": lambda metric: nn.ModuleList([metric]).to(torch.bfloat16)[0],
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@every_kind
def test_moves_to_another_dtype_change_nothing(kind, move):
    half = samples_of(kind) // 2
    metric = move(KINDS[kind]())
    metric.update(*batch(kind, slice(0, half)))
    metric = move(metric)
    metric.update(*batch(kind, slice(half, None)))
    assert computed(move(metric)) == computed(filled(kind))


@every_kind
def test_there_is_nothing_in_a_checkpoint(kind):
    metric = filled(kind)
    assert metric.state_dict() == {}
    assert not list(nn.ModuleList([metric]).parameters())
    metric.load_state_dict({})
    assert computed(metric) == computed(filled(kind))


@every_kind
def test_states_may_be_kept_on_the_cpu(kind):
    half = samples_of(kind) // 2
    metric = filled(kind, slice(0, half), slice(half, None), compute_on_cpu=True)
    assert computed(metric) == computed(filled(kind))


# Several processes ---------------------------------------------------------------------------------------------------


def gathered(kind, gather, **options):
    """A metric that believes itself one of several processes, whose states are gathered by this function."""
    options |= {"dist_sync_fn": gather, "distributed_available_fn": lambda: True}
    return filled(kind, **options)


def twice(tensor, group=None):
    return [tensor, tensor.clone()]


def beside_an_empty_process(tensor, group=None):
    # What is one-dimensional is a list of samples, of which the other process has none; a scalar has a start value of
    # 0.
    return [tensor[:0] if tensor.ndim else torch.zeros_like(tensor), tensor]


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
@every_kind
def test_process_without_data_sends_what_the_others_can_join(kind):
    def sent(*updates):
        shapes = []

        def gather(tensor, group=None):
            shapes.append((tensor.dtype, tensor.ndim))
            return [tensor]

        metric = KINDS[kind](dist_sync_fn=gather, distributed_available_fn=lambda: True)
        for index in updates:
            metric.update(*batch(kind, index))
        metric.sync(dist_sync_fn=gather, distributed_available=lambda: True)
        return shapes

    assert sent() == sent(slice(0, 20)) == sent(slice(0, 20), slice(20, 50))


@every_kind
def test_process_without_data_changes_nothing(kind):
    assert numbers(gathered(kind, beside_an_empty_process).compute()) == numbers(filled(kind).compute())


@pytest.mark.parametrize("kind", ["NeuronModes", "RankDistribution", "SampleBasin", "WeightBasin"])
def test_two_processes_with_the_same_data_have_the_value_of_one(kind):
    # Every rank, share and quantile is the same of all samples twice.
    expected = filled(kind, slice(None), slice(None))
    metric = gathered(kind, twice)
    assert numbers(metric.compute()) == numbers(expected.compute())
    # Afterwards each has its own states again.
    metric.sync_on_compute = False
    metric._to_sync = False
    metric._computed = None
    assert numbers(metric.compute()) == numbers(filled(kind).compute())


@pytest.mark.parametrize("rows", [1, 2])
def test_two_processes_find_the_pathway_of_two_classes(rows):
    layer = random_layer(classes=2, units=40)
    pathway = layer.pathway[:rows]
    alone = NeuronModes(2)
    together = NeuronModes(2, dist_sync_fn=twice, distributed_available_fn=lambda: True)
    for metric in (alone, together):
        metric.update(layer.fields, layer.target, pathway)
    assert numbers(together.compute()) == numbers(alone.compute())
    assert numbers(together.units()["order_index"]) == numbers(alone.units()["order_index"])


def test_processes_with_different_pathways_are_refused():
    def another(tensor, group=None):
        return [tensor, tensor + (len(tensor) == 300 if tensor.ndim else 0)]

    with pytest.raises(ValueError, match=r"^`pathway` must be the same on every process, got different ones\.$"):
        gathered("NeuronModes", another).compute()


# Collections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("kinds", [FIELD_KINDS, BASIN_KINDS], ids=["fields", "basins"])
def test_collection_gives_each_metrics_value(kinds, groups):
    members = {re.sub(r"\W+", "_", kind): kind for kind in kinds}
    collection = MetricCollection({name: KINDS[kind]() for name, kind in members.items()}, compute_groups=groups)
    for index in (slice(0, 40), slice(40, 50), slice(50, None)):
        collection.update(*batch(next(iter(kinds)), index))
    values = collection.compute()
    for name, kind in members.items():
        expected = filled(kind).compute()
        found = {key: values[key] for key in expected} if isinstance(expected, dict) and len(kinds) == 1 else None
        if not isinstance(expected, dict):
            assert numbers(values[name]) == numbers(expected)
        elif found:
            assert numbers(found) == numbers(expected)
    collection.reset()
    collection.update(*batch(next(iter(kinds)), slice(None)))
    for name, kind in members.items():
        assert computed(collection[name]) == computed(filled(kind))


def and_clone(metric):
    return metric, metric.clone()


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"bounded": NeuronModes(5, max_samples=40), "exact": NeuronModes(5)},
        lambda: {"exact": RankDistribution(5), "bounded": RankDistribution(5, max_samples=40)},
        lambda: {"wide": SampleBasin(accuracy=0.6), "narrow": SampleBasin(accuracy=0.8)},
        lambda: {"one": SampleBasin(accuracy=0.7), "other": SampleBasin(accuracy=0.7)},
        lambda: {"wide": WeightBasin(accuracy=0.6), "narrow": WeightBasin(accuracy=0.8)},
        lambda: dict(zip(("one", "twin"), and_clone(SampleBasin(accuracy=0.7)), strict=True)),
    ],
    ids=["bounded first", "exact first", "sample basins", "equal sample basins", "weight basins", "clone"],
)
def test_collection_keeps_metrics_apart_that_only_start_alike(make):
    # After a first small batch their states are equal, by which a collection chooses those that it updates once.
    members, alone = make(), make()
    kind = "NeuronModes" if isinstance(next(iter(members.values())), (NeuronModes, RankDistribution)) else "SampleBasin"
    collection = MetricCollection(members)
    for index in (slice(0, 30), slice(30, 70), slice(70, 120)):
        collection.update(*batch(kind, index))
        for metric in alone.values():
            metric.update(*batch(kind, index))
    collection.compute()
    for name, metric in alone.items():
        assert numbers(collection[name].compute()) == numbers(metric.compute())


def test_modes_of_several_layers_stand_side_by_side():
    collection = MetricCollection({"NeuronModes": NeuronModes(5)}, prefix="fc1/")
    collection.update(*batch("NeuronModes", slice(None)))
    shares = ("opt_fraction", "npt_fraction", "constant_fraction", "unwired_fraction", "positive_fraction")
    others = ("rpd_gradient", "order_z", "opt_chance", "order_mean")
    assert set(collection.compute()) == {f"fc1/{name}" for name in (*shares, *others)}


# What is refused -----------------------------------------------------------------------------------------------------


OTHER = (
    "`pathway` must be the same in every update of one accumulation, got another one. Call `reset()` when the "
    "network has changed."
)


def other_batch(change):
    fields, target, pathway = batch("NeuronModes", slice(0, 50))
    if change == "pathway":
        return fields, target, pathway + 1
    return torch.cat([fields, fields[:, :3]], dim=1), target, torch.cat([pathway, pathway[:, :3]], dim=1)


@pytest.mark.parametrize("change", ["pathway", "units"])
@pytest.mark.parametrize("how", ["update", "forward", "merge_state"])
@every_field_kind
def test_changed_pathway_is_refused_and_leaves_the_metric_as_it_was(kind, how, change):
    metric = filled(kind, slice(0, 80), slice(80, 200))
    arguments = other_batch(change)
    if how == "merge_state":
        other = KINDS[kind]()
        other.update(*arguments)
        arguments = (other,)
    with pytest.raises(ValueError, match=f"^{re.escape(OTHER)}$"):
        getattr(metric, how)(*arguments)
    assert computed(metric) == computed(filled(kind))


@every_field_kind
def test_changed_pathway_is_taken_after_a_reset(kind):
    metric = filled(kind)
    metric.reset()
    metric.update(*other_batch("units"))
    fresh = KINDS[kind]()
    fresh.update(*other_batch("units"))
    assert computed(metric) == computed(fresh)


@every_field_kind
def test_pathway_with_the_wrong_number_of_rows_is_refused(kind):
    text = "`pathway` must have a row for each of the 5 classes (one row is enough for two), got shape [1, 60]."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        KINDS[kind]().update(LAYER.fields, LAYER.target, LAYER.pathway[:1])


@pytest.mark.parametrize("value", [0, -1])
def test_bounds_of_less_than_one_are_refused(value):
    for metric in (NeuronModes, RankDistribution):
        with pytest.raises(ValueError, match=rf"^`max_samples` must be at least 1, got {value}\.$"):
            metric(5, max_samples=value)
        with pytest.raises(ValueError, match=rf"^`num_classes` must be at least 1, got {value}\.$"):
            metric(value)
    with pytest.raises(ValueError, match=rf"^`bins` must be at least 1, got {value}\.$"):
        RankDistribution(5, bins=value)


@every_kind
def test_unknown_argument_is_refused_by_its_name(kind):
    with pytest.raises(ValueError, match="nonsense"):
        KINDS[kind](nonsense=1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
@every_kind
def test_without_an_update_there_is_nothing_to_say(kind):
    value = KINDS[kind]().compute()
    if kind in NETWORK_KINDS:
        assert value == {}
    elif isinstance(value, dict):
        assert value["opt_fraction"].isnan()
        assert value["rpd_gradient"].isnan()
    elif kind in BASIN_KINDS:
        assert value.isnan()
        assert value.shape == ()
    else:
        assert value.isnan().all()
        assert value.shape == (5, 20)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
@every_basin
def test_result_without_an_update_is_refused(kind):
    with pytest.raises(RuntimeError, match=rf"^{kind}\.result\(\) needs an update first\.$"):
        KINDS[kind]().result()
    metric = filled(kind)
    metric.compute()
    metric.reset()
    with pytest.raises(RuntimeError, match="needs an update first"):
        metric.result()


# What torchmetrics asks for ------------------------------------------------------------------------------------------


@every_kind
def test_flags_are_declared(kind):
    metric = KINDS[kind]()
    assert isinstance(metric, Metric)
    assert metric.higher_is_better is (True if kind in BASIN_KINDS else None)
    assert metric.is_differentiable is False
    assert metric.full_state_update is False


@every_kind
def test_values_are_float64_scalars_or_densities(kind):
    value = filled(kind).compute()
    for number in value.values() if isinstance(value, dict) else [value]:
        assert number.dtype == torch.float64
        assert not number.requires_grad
        assert number.shape == ((5, 20) if kind.startswith("Rank") else ())


@every_kind
def test_plot_gives_figure_and_axes(kind):
    from matplotlib import pyplot as plt

    metric = filled(kind)
    figure, axes = metric.plot()
    assert isinstance(figure, Figure)
    assert axes.figure is figure
    assert len(axes.lines) + len(axes.patches) > 0
    plt.close("all")


@every_kind
def test_plot_draws_into_given_axes_and_opens_no_window(kind):
    from matplotlib import pyplot as plt

    axes = Figure().add_subplot()
    _, drawn = filled(kind).plot(ax=axes)
    assert drawn is axes
    assert len(axes.lines) + len(axes.patches) > 0
    assert plt.get_fignums() == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("Rank")])
def test_plot_takes_values_of_several_times(kind):
    values = [filled(kind, slice(0, n)).compute() for n in (60, 80, 100)]
    axes = Figure().add_subplot()
    filled(kind).plot(values, ax=axes)
    assert len(axes.lines[0].get_xdata()) == 3


def test_plot_of_an_infinite_radius_is_no_error():
    axes = Figure().add_subplot()
    SampleBasin().plot(torch.tensor(math.inf, dtype=torch.float64), ax=axes)
    assert len(axes.lines) == 1


def test_metrics_are_public():
    for name in ("NetworkModes", "NeuronModes", "RankDistribution", "SampleBasin", "WeightBasin"):
        assert getattr(netdyn, name).__name__ == name
        assert name in netdyn.__all__


# In torchmetrics' own wrappers, and in trouble ------------------------------------------------------------------------


@every_kind
def test_a_tracker_keeps_the_value_of_every_step(kind):
    tracker = MetricTracker(KINDS[kind](), maximize=True)
    halves = [slice(0, samples_of(kind) // 2), slice(samples_of(kind) // 2, None)]
    for index in halves:
        tracker.increment()
        tracker.update(*batch(kind, index))
    assert numbers(tracker.compute()) == numbers(filled(kind, halves[1]).compute())
    assert numbers(tracker[1].compute()) == numbers(filled(kind, halves[0]).compute())


@every_kind
def test_an_error_within_compute_leaves_the_metric_as_it_was(kind, monkeypatch):
    metric = filled(kind)
    step = "_pathway" if kind in FIELD_KINDS else "_kept"

    def fails(*args, **kwargs):
        raise ArithmeticError("out of luck")

    with monkeypatch.context() as patched:
        patched.setattr(type(metric), step, fails)
        with pytest.raises(ArithmeticError, match="out of luck"):
            metric.compute()
    assert computed(metric) == computed(filled(kind))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_field_kind
def test_a_move_to_a_gpu_and_back_changes_nothing(kind):
    metric = filled(kind).cuda()
    assert metric.compute() is not None
    assert computed(metric.cpu()) == computed(filled(kind))
