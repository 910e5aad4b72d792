"""BatchNormGap equals the function, however it is copied, moved, merged or gathered."""

import copy
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
from netdyn.functional import batchnorm_gap
from netdyn.metrics import BatchNormGap
from networks import bn_mlp, fill, samples

mpl.use("Agg")

MODEL = fill(bn_mlp(), seed=2)
X = samples(120)
#: Right is, for most samples, what the network says with the statistics of all of them.
with torch.no_grad():
    Y = copy.deepcopy(MODEL).train()(X).argmax(1)
Y[::7] = 3
PARTS = [slice(0, 50), slice(50, 57), slice(57, 120)]
NO_NORM = nn.Linear(6, 4)


def filled(*parts, **options):
    metric = BatchNormGap(**options)
    for part in parts or [slice(None)]:
        metric.update(MODEL, X[part], Y[part])
    return metric


def weighted(*parts, **options):
    """The gaps of the updates, weighted by their samples."""
    sizes = [len(Y[part]) for part in parts]
    gaps = [batchnorm_gap(MODEL, X[part], Y[part], **options) for part in parts]
    return sum(gap * size for gap, size in zip(gaps, sizes, strict=True)) / sum(sizes)


@pytest.mark.parametrize("options", [{}, {"batch_size": 20}, {"batch_size": 20, "seed": 4}], ids=str)
def test_equals_the_function(options):
    value = filled(**options).compute()
    assert value == pytest.approx(batchnorm_gap(MODEL, X, Y, **options), abs=1e-12)
    assert value > 0.1
    assert (value.dtype, value.shape, value.requires_grad) == (torch.float64, (), False)


def test_a_criterion_of_the_users_own_is_used():
    def first_is_positive(outputs, target):
        return outputs[:, 0] > 0

    expected = batchnorm_gap(MODEL, X, Y, criterion=first_is_positive)
    assert expected != batchnorm_gap(MODEL, X, Y)
    assert filled(criterion=first_is_positive).compute() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("options", [{}, {"batch_size": 9}], ids=str)
def test_updates_are_weighted_by_their_samples(options):
    found = float(filled(*PARTS, **options).compute())
    assert found == pytest.approx(weighted(*PARTS, **options), abs=1e-12)
    # What came together matters, so that this is another number than that of all samples in one.
    assert found != filled(**options).compute()


def test_the_order_of_updates_does_not_matter():
    assert filled(*PARTS).compute() == filled(*PARTS[::-1]).compute()


def test_forward_gives_the_updates_value_and_accumulates():
    metric = BatchNormGap()
    for part in PARTS:
        assert metric(MODEL, X[part], Y[part]) == filled(part).compute()
    assert metric.compute() == filled(*PARTS).compute()


def test_networks_without_batch_normalisation_do_not_count():
    metric = BatchNormGap()
    metric.update(NO_NORM, X, Y)
    assert metric.compute().isnan()
    metric.update(MODEL, X, Y)
    assert metric.compute() == filled().compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_without_an_update_there_is_nothing_to_say():
    value = BatchNormGap().compute()
    assert value.isnan()
    assert value.shape == ()


def test_reset_forgets_everything():
    metric = filled(PARTS[0])
    metric.compute()
    metric.reset()
    metric.update(MODEL, X, Y)
    assert metric.compute() == filled().compute()


COPIES = {
    "clone": lambda metric: metric.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("computed_before", [False, True])
def test_copies_go_their_own_way(copied, computed_before):
    original = filled(PARTS[0])
    if computed_before:
        original.compute()
    other = copied(original)
    other.update(MODEL, X[PARTS[1]], Y[PARTS[1]])
    assert other.compute() == filled(*PARTS[:2]).compute()
    assert original.compute() == filled(PARTS[0]).compute()


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("computed_before", [False, True])
def test_merged_states_are_one_accumulation(as_dict, computed_before):
    first, second = filled(PARTS[0]), filled(*PARTS[1:])
    if computed_before:
        first.compute(), second.compute()
    first.merge_state(second.metric_state if as_dict else second)
    assert first.compute() == filled(*PARTS).compute()
    assert second.compute() == filled(*PARTS[1:]).compute()


def test_a_fresh_metric_takes_over_another_ones_state():
    fresh = BatchNormGap()
    fresh.merge_state(filled())
    assert fresh.compute() == filled().compute()


MOVES = {
    "half": lambda metric: metric.half(),
    "set_dtype": lambda metric: metric.set_dtype(torch.float16),
    "to bfloat16": lambda metric: metric.to(torch.bfloat16),
    "in a module": lambda metric: nn.ModuleList([metric]).to(torch.bfloat16)[0],
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_moves_to_another_dtype_change_nothing(move):
    metric = move(filled(PARTS[0]))
    metric.update(MODEL, X[PARTS[1]], Y[PARTS[1]])
    assert move(metric).compute() == filled(*PARTS[:2]).compute()


def test_counts_beyond_what_half_precision_holds_are_exact():
    metric = filled().half()
    for _ in range(40):
        metric.merge_state(filled())
    assert metric.samples == 41 * len(X)
    assert metric.compute() == filled().compute()


def test_there_is_nothing_in_a_checkpoint():
    assert filled().state_dict() == {}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
@pytest.mark.parametrize("parts", [[], PARTS[:1], PARTS])
def test_every_process_sends_the_same_shapes(parts):
    sent = []

    def gather(tensor, group=None):
        sent.append((tensor.dtype, tuple(tensor.shape)))
        return [tensor]

    metric = BatchNormGap(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    for part in parts:
        metric.update(MODEL, X[part], Y[part])
    metric.compute()
    assert sent == [(torch.float64, ())] * 3


@pytest.mark.parametrize("others", [PARTS[1:], []], ids=["data", "no data"])
def test_processes_are_weighted_by_their_samples(others):
    # This process has seen the first part, the other one the rest or nothing.
    theirs = filled(*others) if others else BatchNormGap()
    names = iter(theirs.metric_state)

    def gather(tensor, group=None):
        return [tensor, getattr(theirs, next(names))]

    metric = filled(PARTS[0], dist_sync_fn=gather, distributed_available_fn=lambda: True)
    assert list(metric.metric_state) == ["number", "gained", "samples"]
    assert metric.compute() == filled(PARTS[0], *others).compute()


def test_collection_gives_each_metrics_value():
    collection = MetricCollection({"one batch": BatchNormGap(), "small ones": BatchNormGap(batch_size=10)})
    for part in PARTS:
        collection.update(MODEL, X[part], Y[part])
    values = collection.compute()
    assert values["one batch"] == filled(*PARTS).compute()
    assert values["small ones"] == filled(*PARTS, batch_size=10).compute()
    assert values["one batch"] != values["small ones"]


def test_a_tracker_finds_the_smallest_gap():
    tracker = MetricTracker(BatchNormGap(), maximize=None)  # as the metric says; older releases maximise by default
    for model in (MODEL, nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), NO_NORM), MODEL):
        tracker.increment()
        tracker.update(model, X, Y)
    assert tracker.best_metric(return_step=True) == (0.0, 1)


def test_flags_are_declared():
    metric = BatchNormGap()
    assert isinstance(metric, Metric)
    assert (metric.higher_is_better, metric.is_differentiable, metric.full_state_update) == (False, False, False)


def test_plot_draws_into_given_axes():
    axes = Figure().add_subplot()
    values = [filled(part).compute() for part in PARTS]
    _, drawn = filled().plot(values, ax=axes)
    assert drawn is axes
    assert axes.lines[0].get_ydata().tolist() == [float(value) for value in values]


def test_the_network_is_left_as_it_was():
    network = copy.deepcopy(MODEL).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    metric = BatchNormGap()
    metric.update(network, X, Y)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 1}, ValueError, "`batch_size` must be at least 2, got 1."),
        ({"seed": 0.5}, TypeError, "`seed` must be a whole number, got 0.5 of type float."),
        ({"criterion": 3}, TypeError, "`criterion` must be a function, got 3 of type int."),
    ],
)
def test_wrong_arguments_are_refused(options, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        BatchNormGap(**options)


def test_unknown_argument_is_refused_by_its_name():
    with pytest.raises(ValueError, match="nonsense"):
        BatchNormGap(nonsense=1)


def test_a_single_sample_is_refused_and_changes_nothing():
    metric = filled(PARTS[0])
    with pytest.raises(ValueError, match=r"^`inputs` must hold at least two samples"):
        metric.update(MODEL, X[:1], Y[:1])
    assert metric.compute() == filled(PARTS[0]).compute()


def test_the_metric_is_public():
    assert netdyn.BatchNormGap is BatchNormGap
    assert "BatchNormGap" in netdyn.__all__
    assert not math.isnan(filled().compute())
