"""`diagnose` equals the functions that it gathers; what it refuses, warns of and leaves out."""

import json
import math
import pickle
import re
import warnings
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from clouds import CLASSES, FEATURES, SAMPLES, network, probe, trained
from netdyn import DynamicsWarning, diagnose
from netdyn.engine import evaluate
from netdyn.engine.config import MEASURES
from netdyn.functional import (
    class_tuning,
    linear_substitution_map,
    local_fields,
    order_alignment,
    order_index,
    sample_basin,
    transfer_order,
    weight_basin,
)
from netdyn.modes.shares import mode_shares
from netdyn.probes.loaders import given_probe, input_and_target


def rounded(net):
    """The network with all numbers multiples of 1/8, so that float32 sums of its products are exact in any order."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((8 * parameter).round() / 8)
    return net


@pytest.fixture(scope="module")
def learned():
    """A trained network and its probe."""
    x, target = probe()
    return trained(network(), x, target), x, target


@pytest.fixture(scope="module")
def report(learned):
    return diagnose(*learned, weight_layers="each", val_inputs=learned[1][:50], val_target=learned[2][:50])


# Equal to the functions ----------------------------------------------------------------------------------------------


def test_layers_equal_the_functions(learned, report):
    net, x, target = learned
    fields, pathways = local_fields(net, x), linear_substitution_map(net, x)
    assert [layer.name for layer in report.layers] == list(fields) == ["0", "2"]
    for layer in report.layers:
        field, pathway = fields[layer.name], pathways[layer.name]
        tuning = class_tuning(field, target, CLASSES)
        shares = mode_shares(tuning, pathway, (field == field[:1]).all(dim=0), torch.full((CLASSES,), 0.2))
        for name in ("opt_fraction", "npt_fraction", "constant_fraction", "unwired_fraction"):
            assert getattr(layer, name) == getattr(shares, name)
        assert layer.rpd_gradient == pytest.approx(shares.rpd_gradient, rel=1e-6)
        assert layer.rule == shares.rule == "sign-flip"
        torch.testing.assert_close(layer.order_index, order_index(tuning, pathway), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(layer.alignment, order_alignment(tuning, pathway), rtol=0, atol=0, equal_nan=True)
        assert layer.transfer_order == pytest.approx(float(transfer_order(field, field.relu()).nanmean()))
        assert layer.affine_defect == pathways.affine_defect[layer.name]
        assert layer.units == layer.sampled == 40


def same_basins(found, expected):
    """All fields but the passes, of which the one without noise is shared by all measures."""
    same(vars(found), vars(expected), without=("forwards", "curve", "influences"))
    assert (found.influences is None) == (expected.influences is None)
    if found.influences is not None:
        assert found.influences.key == expected.influences.key
        same(vars(found.influences), vars(expected.influences), without=("key",))


def same(found, expected, without):
    assert found.keys() == expected.keys()
    for name in found.keys() - set(without):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("options", [{}, {"accuracy": 0.7, "seed": 2, "low": 1e-2, "high": 5.0}], ids=str)
def test_basins_equal_the_functions(learned, options):
    found = diagnose(*learned, measure=["sample_basin", "weight_basin"], sample_rays=2, weight_rays=3, **options)
    same_basins(found.sample_basin, sample_basin(*learned, rays=2, per_class=True, **options))
    same_basins(found.weight_basin, weight_basin(*learned, rays=3, **options))


@pytest.mark.filterwarnings("ignore:The largest noise level:UserWarning")
@pytest.mark.parametrize(
    "options", [{"normalization": "global"}, {"layers": ["2.weight"]}, {"layers": "each"}], ids=str
)
def test_weight_basin_takes_its_arguments_by_name(learned, options):
    renamed = {("weight_layers" if name == "layers" else name): value for name, value in options.items()}
    found = diagnose(*learned, measure=["weight_basin"], weight_rays=2, **renamed)
    same_basins(found.weight_basin, weight_basin(*learned, rays=2, **options))


def test_report_counts_samples_classes_and_right_answers(learned, report):
    net, x, target = learned
    right = net(x).argmax(dim=1) == target
    assert (report.samples, report.num_classes, report.alpha) == (SAMPLES, CLASSES, 0.05)
    assert report.accuracy == pytest.approx(right.double().mean())
    assert report.val_accuracy == pytest.approx(right[:50].double().mean())
    assert report.scalars()["probe/val_accuracy"] == report.val_accuracy


def test_without_a_validation_probe_there_is_no_validation_accuracy(learned):
    found = diagnose(*learned, measure=[])
    assert found.val_accuracy is None
    assert "probe/val_accuracy" not in found.scalars()


# Data sets and loaders ------------------------------------------------------------------------------------------------


class Batches(Dataset):
    """Whole batches under names of their own."""

    def __init__(self, x, target):
        self.x, self.target = x, target

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"points": self.x[index], "cloud": self.target[index]}


def in_batches(x, target):
    return IterableOf([(x[part], target[part]) for part in torch.arange(len(x)).split(30)])


class IterableOf(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


DATA = {
    "a data set": lambda x, y: TensorDataset(x, y),
    "a loader": lambda x, y: DataLoader(TensorDataset(x, y), 7, shuffle=True),
    "the first of several loaders": lambda x, y: [
        DataLoader(TensorDataset(x, y)),
        DataLoader(TensorDataset(x[:9], y[:9])),
    ],
    "the first of a mapping": lambda x, y: {"a": TensorDataset(x, y), "b": TensorDataset(x[:9], y[:9])},
    "a stream": lambda x, y: DataLoader(in_batches(x, y), batch_size=None),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_a_loader_or_a_data_set_gives_inputs_and_targets(learned, data):
    net, x, target = learned
    expected = diagnose(net, x, target, val_inputs=x, val_target=target, measure=["modes"])
    before = torch.get_rng_state()
    found = diagnose(net, data(x, target), val_inputs=data(x, target), measure=["modes"])
    assert torch.equal(torch.get_rng_state(), before)
    assert found.scalars() == expected.scalars()
    assert found.val_accuracy == expected.accuracy


def test_of_a_large_data_set_a_stratified_part_is_measured(learned):
    net, x, target = learned
    found = diagnose(net, TensorDataset(x, target), probe_size=CLASSES * 10, measure=["modes"], seed=3)
    probe = given_probe(TensorDataset(x, target), CLASSES * 10, 3, lambda batch: batch, input_and_target)
    assert found.samples == CLASSES * 10
    assert torch.bincount(probe.target).tolist() == [10] * CLASSES
    assert found.scalars() == diagnose(net, probe.inputs, probe.target, measure=["modes"], seed=3).scalars()


def test_batches_that_are_no_pairs_are_unpacked(learned):
    net, x, target = learned
    found = diagnose(net, Batches(x, target), unpack=lambda batch: (batch["points"], batch["cloud"]), measure=["modes"])
    assert found.scalars() == diagnose(net, x, target, measure=["modes"]).scalars()


WITHOUT = "must be given, unless `{}` is a DataLoader or a Dataset, got None for inputs of type Tensor."
HALVES = {
    "no validation target": (lambda x, y: {"val_inputs": x}, f"`val_target` {WITHOUT.format('val_inputs')}"),
    "no validation inputs": (lambda x, y: {"val_target": y}, "`val_inputs` must be given with `val_target`, got None."),
    "no target": (lambda x, y: {"target": None}, f"`target` {WITHOUT.format('inputs')}"),
    "a loader and a target": (
        lambda x, y: {"inputs": DataLoader(TensorDataset(x, y))},
        "`target` must be None: the DataLoader holds the targets too.",
    ),
    "a data set and a target": (
        lambda x, y: {"val_inputs": TensorDataset(x, y), "val_target": y},
        "`val_target` must be None: the TensorDataset holds the targets too.",
    ),
}


@pytest.mark.parametrize(("given", "text"), HALVES.values(), ids=HALVES)
def test_inputs_without_targets_and_targets_beside_a_loader_are_refused(learned, given, text):
    net, x, target = learned
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        diagnose(net, **{"inputs": x, "target": target, "measure": []} | given(x, target))


# Progress ------------------------------------------------------------------------------------------------------------


class Bar:
    """Stands in for tqdm and keeps its arguments and updates."""

    made: ClassVar = []

    def __init__(self, total, **options):
        self.total, self.options, self.done, self.closed = total, options, 0, False
        Bar.made.append(self)

    def update(self, n=1):
        self.done += n

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True


@pytest.fixture
def bar(monkeypatch):
    monkeypatch.setattr(evaluate, "tqdm", Bar)
    Bar.made.clear()
    return Bar.made


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_is_shown_without_a_terminal(learned, capfd, progress):
    diagnose(*learned, progress=progress)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("progress", "disable"), [(None, None), (True, False), (False, True)])
def test_bar_is_shown_as_asked_and_only_after_two_seconds(learned, bar, progress, disable):
    diagnose(*learned, measure=[], progress=progress)
    assert [(one.options["disable"], one.options["delay"], one.closed) for one in bar] == [(disable, 2, True)]


@pytest.mark.parametrize("measure", [MEASURES, ["modes"], ["linear"], ["weight_basin"], ["sample_basin", "modes"], []])
def test_bar_ends_full(learned, bar, measure):
    diagnose(*learned, measure=measure, progress=True)
    diagnose(*learned, measure=measure, progress=True, val_inputs=learned[1], val_target=learned[2])
    assert [(one.total, one.done, one.closed) for one in bar] == [(evaluate.ATTEMPTS, evaluate.ATTEMPTS, True)] * 2


def test_bar_is_closed_when_something_fails(learned, bar):
    def fails(outputs, target):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        diagnose(*learned, criterion=fails, progress=True)
    assert [one.closed for one in bar] == [True]


# Seeds and batches ---------------------------------------------------------------------------------------------------


def layer_numbers(found):
    return repr([_plain(layer) for layer in found.to_dict()["layers"]])


def _plain(layer):
    return {name: value for name, value in layer.items() if name != "affine_defect"}


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 33, 199, 1000])
def test_another_batch_size_changes_no_mode_and_hardly_a_radius(batch_size):
    x, target = probe()
    net = rounded(trained(network(), x, target))
    whole, cut = diagnose(net, x, target), diagnose(net, x, target, batch_size=batch_size)
    assert layer_numbers(cut) == layer_numbers(whole)
    assert cut.accuracy == whole.accuracy
    assert [layer.affine_defect for layer in cut.layers] == [layer.affine_defect for layer in whole.layers]
    for one, other in ((cut.sample_basin, whole.sample_basin), (cut.weight_basin, whole.weight_basin)):
        assert abs(math.log(one.radius / other.radius)) <= 0.01
        assert one.interval == pytest.approx(other.interval, rel=0.01)


def test_same_seed_gives_the_same_report_and_another_seed_another(learned):
    first, again, other = (diagnose(*learned, seed=seed).to_dict(arrays=True) for seed in (1, 1, 2))
    assert first == again
    assert first["sample_basin"] != other["sample_basin"]
    assert first["weight_basin"]["radii"] != other["weight_basin"]["radii"]
    assert first["layers"] == other["layers"]


def test_measuring_leaves_network_and_generators_as_they_were(learned):
    _, x, target = learned
    mixed = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Dropout(0.5), *network())
    mixed.train()
    mixed[1].eval()
    before = {name: value.clone() for name, value in mixed.state_dict().items()}
    state = torch.get_rng_state()
    diagnose(mixed, x, target)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in mixed] == [True, False, True, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in mixed.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in mixed.modules())
    pickle.dumps(mixed)


# Large layers --------------------------------------------------------------------------------------------------------


WIDE = 12_000


@pytest.fixture(scope="module")
def wide():
    """A layer of 12,000 units, some of which favour a class."""
    x, target = probe()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(FEATURES, WIDE), nn.ReLU(), nn.Linear(WIDE, CLASSES))
    return trained(net, x, target, steps=3), x, target


def test_of_a_large_layer_the_same_units_are_measured_at_every_call(wide):
    full = diagnose(*wide, measure=["modes"], max_units=WIDE).layers[0]
    parts = [diagnose(*wide, measure=["modes"], batch_size=size).layers[0] for size in (None, None, 70)]
    assert (full.units, full.sampled) == (WIDE, WIDE)
    for part in parts:
        assert (part.units, part.sampled, len(part.order_index)) == (WIDE, 4096, 4096)
        assert torch.isin(part.order_index, full.order_index).all()
    assert torch.equal(parts[0].order_index, parts[1].order_index)
    assert torch.equal(parts[0].alignment, parts[1].alignment)


def test_sampled_units_give_the_shares_of_all(wide):
    full, part = (diagnose(*wide, measure=["modes"], max_units=n).layers[0] for n in (WIDE, 4096))
    # n = 4096 of 12,000 units without repetition: the standard error of a share is below 0.01, and the bound 4 of them.
    for name in ("opt_fraction", "npt_fraction", "constant_fraction"):
        share = getattr(full, name)
        error = math.sqrt(share * (1 - share) / 4096 * (1 - 4096 / WIDE))
        assert error < 0.01
        assert abs(getattr(part, name) - share) <= 4 * error
    assert 0.1 < full.opt_fraction < 0.9
    spread = full.order_index.std().item() / math.sqrt(4096)
    assert part.rpd_gradient == pytest.approx(full.rpd_gradient, abs=4 * 6 * spread)


# Probes that lack something ------------------------------------------------------------------------------------------


def test_missing_classes_are_named_and_left_out(learned):
    net, x, target = learned
    kept = (target != 1) & (target != 3)
    text = (
        "The probe holds 3 of 5 classes; [1, 3] are missing and left out of every mean. "
        "Give it at least one sample of each."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$") as caught:
        found = diagnose(net, x[kept], target[kept])
    assert len(caught) == 1
    assert found.sample_basin.per_class.isnan().tolist() == [False, True, False, True, False]
    assert found.layers[0].rule == "false-discovery"
    assert "basin/sample/class_radius/1" not in found.scalars()


class Shaken(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


@pytest.mark.parametrize("how", ["linear", "label", "random"])
def test_what_may_have_caused_an_error_is_warned_of_before_it(how):
    x, target = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    network, layers, error, said = nn.Linear(4, 3), None, "no local field to read", "`inputs` holds NaN or inf"
    if how != "random":
        x[0, 0] = torch.nan
    if how == "label":
        target[3], error = 7, "got the label 7"
    if how == "random":
        network, layers, error = nn.Sequential(nn.ReLU(), network, Shaken()), ["nope"], "matches nothing"
        said = "random in eval mode"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=error):
            diagnose(network, x, target, layers=layers, progress=False)
    assert [said in str(each.message) for each in caught].count(True) == 1


@pytest.mark.filterwarnings("ignore:`accuracy` is:UserWarning")
def test_probe_with_one_class_has_basins_and_no_modes(learned):
    net, x, target = learned
    with pytest.warns(UserWarning, match=r"^The probe holds 1 of 5 classes; \[0, 1, 3, 4\] are missing"):
        found = diagnose(net, x[target == 2], target[target == 2])
    for layer in found.layers:
        assert layer.rule == "none"
        assert math.isnan(layer.opt_fraction)
        assert math.isnan(layer.rpd_gradient)
    assert found.sample_basin.radius > 0
    values = found.scalars()
    assert not any(tag.startswith("modes/opt_fraction") for tag in values)
    assert "basin/sample/class_radius/2" in values
    str(found), found.findings(), found.histograms(), found.to_json()


def test_warnings_point_to_the_line_that_asked(learned):
    net, x, target = learned
    with pytest.warns(UserWarning, match="^The probe holds 3 of 5 classes") as caught:
        diagnose(net, x[target < 3], target[target < 3])
    assert [warning.filename for warning in caught] == [__file__]


def messages(measure):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = measure()
    return found, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_warned_of(learned, value):
    net, x, target = learned
    holed = x.clone()
    holed[:20, 0] = value
    found, texts = messages(lambda: diagnose(net, holed, target))
    assert [text for text in texts if text.startswith("`inputs` holds NaN or inf.")] == [
        "`inputs` holds NaN or inf. Samples whose outputs are not finite count as wrong. Leave them out to measure the "
        "network alone."
    ]
    assert found.accuracy <= 0.9
    assert found.sample_basin.clean == found.accuracy
    assert all(math.isfinite(number) for number in found.scalars().values())


@pytest.mark.parametrize("batch_size", [None, 50])
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_network_that_is_not_finite_is_warned_of_once_and_measured(place, value, batch_size):
    net, (x, target) = network(), probe()
    with torch.no_grad():
        net[place].weight.fill_(value)
        wrong = int((~net(x).isfinite()).any(dim=1).sum())
    found, texts = messages(lambda: diagnose(net, x, target, batch_size=batch_size))
    assert wrong > 100
    assert [text for text in texts if text.startswith("The network outputs NaN or inf")] == [
        f"The network outputs NaN or inf for {wrong} of 200 samples, which count as wrong and are left out of the "
        "modes of layers whose local fields are not finite for them."
    ]
    assert not [text for text in texts if "constant" in text]
    assert found.accuracy <= 1 - wrong / 200
    assert found.sample_basin.radius == found.weight_basin.radius == 0
    assert all(math.isfinite(number) for number in found.scalars().values())
    assert found.findings()
    json.loads(found.to_json())


@pytest.mark.parametrize("measure", ["sample_basin", "weight_basin"])
def test_network_that_is_not_finite_is_warned_of_without_modes_too(measure):
    net = network()
    with torch.no_grad():
        net[0].weight.fill_(math.nan)
    _, texts = messages(lambda: diagnose(net, *probe(), measure=[measure]))
    assert [text for text in texts if text.startswith("The network outputs NaN or inf for 200 of 200 samples")]


def test_network_with_one_dead_output_is_measured_without_its_samples(learned):
    net, x, target = learned

    class Torn(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            out = self.net(x)
            return torch.where(x[:, :1] > 1.5, math.nan, out)

    found, texts = messages(lambda: diagnose(Torn(), x, target))
    torn = int((x[:, 0] > 1.5).sum())
    assert 0 < torn < 200
    assert any(text.startswith(f"The network outputs NaN or inf for {torn} of 200 samples") for text in texts)
    assert found.accuracy <= 1 - torn / 200


# What to measure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "measure", [["modes"], ["sample_basin"], ["weight_basin"], ["weight_basin", "modes"], []], ids=str
)
def test_only_what_is_asked_for_is_measured(learned, measure):
    found = diagnose(*learned, measure=measure)
    assert bool(found.layers) == ("modes" in measure)
    assert (found.sample_basin is not None) == ("sample_basin" in measure)
    assert (found.weight_basin is not None) == ("weight_basin" in measure)
    assert "probe/accuracy" in found.scalars()
    assert str(found)


def test_layers_may_be_chosen(learned):
    assert [layer.name for layer in diagnose(*learned, measure=["modes"], layers=["2"]).layers] == ["2"]
    with pytest.raises(ValueError, match=r"^`layers` names 'fc', which matches nothing\. The nearest are"):
        diagnose(*learned, measure=["modes"], layers=["fc"])


def test_linear_network_needs_layers_for_its_modes_alone():
    x, target = probe()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(FEATURES, 30), nn.Linear(30, CLASSES))
    with pytest.raises(ValueError, match="No activation function was found"):
        diagnose(net, x, target)
    assert [layer.name for layer in diagnose(net, x, target, layers=["0"], measure=["modes"]).layers] == ["0"]
    assert diagnose(net, x, target, measure=["sample_basin"]).sample_basin is not None


class Pair(nn.Module):
    """Scores, under a name that no other code uses."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"scores": self.net(x), "input": x}


def test_forward_picks_the_logits(learned):
    net, x, target = learned
    plain = diagnose(net, x, target)
    picked = diagnose(Pair(net), {"x": x}, target, forward=lambda model, batch: model(batch["x"])["scores"])
    assert [layer.name for layer in picked.layers] == ["net.0", "net.2"]
    assert [_plain(layer) | {"name": ""} for layer in picked.to_dict()["layers"]] == [
        _plain(layer) | {"name": ""} for layer in plain.to_dict()["layers"]
    ]
    same_basins(picked.sample_basin, plain.sample_basin)
    # The noise on a weight depends on its name.
    assert picked.weight_basin.radius == pytest.approx(plain.weight_basin.radius, rel=0.5)


def test_forward_keeps_the_names_of_the_weights(learned):
    net, x, target = learned
    plain = diagnose(net, x, target, measure=["weight_basin"])
    same_basins(
        diagnose(net, x, target, measure=["weight_basin"], forward=lambda model, x: model(x)).weight_basin,
        plain.weight_basin,
    )


@pytest.mark.parametrize("measure", [["modes"], ["sample_basin"], ["weight_basin"], []], ids=str)
def test_outputs_that_are_no_tensor_are_refused_with_the_way_out(learned, measure):
    net, x, target = learned
    text = "The model's output must be a tensor [samples, classes], got dict."
    with pytest.raises(TypeError, match=f"^{re.escape(text)}.*`forward=`"):
        diagnose(Pair(net), x, target, measure=measure)


def test_outputs_of_another_shape_are_refused_with_the_way_out(learned):
    net, x, target = learned
    text = "The model's output must have shape [samples, classes] = [2, classes], got shape [2, 1, 5]."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}.*`forward=`"):
        diagnose(nn.Sequential(net, nn.Unflatten(1, (1, CLASSES))), x, target)


def test_single_logit_is_two_classes():
    x, target = probe(classes=2)
    two = network(classes=2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = nn.Sequential(*two[:4], nn.Linear(40, 1))
    with torch.no_grad():
        one[4].weight.copy_(two[4].weight[1:] - two[4].weight[:1])
        one[4].bias.copy_(two[4].bias[1:] - two[4].bias[:1])
    first, second = diagnose(one, x, target), diagnose(two, x, target)
    assert first.num_classes == second.num_classes == 2
    assert [layer.opt_fraction for layer in first.layers] == [layer.opt_fraction for layer in second.layers]
    for a, b in zip(first.layers, second.layers, strict=True):
        torch.testing.assert_close(a.order_index, b.order_index, equal_nan=True)


# Criteria ------------------------------------------------------------------------------------------------------------


def close(outputs, target):
    return (outputs - target).abs().amax(dim=1) < 1


def test_regression_has_basins_under_a_criterion_of_its_own(learned):
    net, x, _ = learned
    truth = net(x).detach()
    found = diagnose(net, x, truth, criterion=close, measure=["sample_basin", "weight_basin"])
    assert found.accuracy == 1
    assert 0 < found.sample_basin.radius < 10
    assert 0 < found.weight_basin.radius < 10
    assert found.num_classes == 1
    assert not any("class_radius" in tag for tag in found.scalars())
    str(found), found.findings(), found.to_json()


@pytest.mark.filterwarnings("ignore:`accuracy` is:UserWarning")
@pytest.mark.parametrize("outputs", [1, 3])
def test_with_a_criterion_alone_the_basins_come_and_modes_say_why_not(outputs):
    net, (x, _) = network(classes=outputs), probe()
    options = {"criterion": close, "accuracy": 0.85, "relative": True}
    with pytest.warns(DynamicsWarning, match="'modes' and 'linear' need class labels .* a `criterion` alone") as caught:
        found = diagnose(net, x, net(x).detach(), **options)
    assert len(caught) == 1
    basins = ["sample_basin", "weight_basin"]
    expected = diagnose(net, x, net(x).detach(), measure=basins, **options)
    assert found.layers == ()
    for name in basins:
        same_basins(getattr(found, name), getattr(expected, name))
    with pytest.raises(ValueError, match=r"^`measure` asks for \['modes'\]\. .*need class labels"):
        diagnose(net, x, net(x).detach(), criterion=close, measure=["modes"])


def test_criterion_on_class_labels_keeps_modes_and_classes(learned):
    net, x, target = learned

    def among_two(outputs, target):
        return (outputs.topk(2).indices == target[:, None]).any(dim=1)

    found, plain = diagnose(net, x, target, criterion=among_two, accuracy=0.7), diagnose(net, x, target, accuracy=0.7)
    assert layer_numbers(found) == layer_numbers(plain)
    assert found.sample_basin.radius > plain.sample_basin.radius
    assert found.sample_basin.per_class.shape == (CLASSES,)
