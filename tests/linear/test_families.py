"""Every kind of network against its twin without activations, and the modes of its layers against the loops."""

import contextlib
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
import reference
from families import (
    CLASSES,
    CONVOLUTIONAL,
    FEATURES,
    FULLY_CONNECTED,
    SAMPLES,
    STEPS,
    Family,
    Oracle,
    affine,
    draw,
    features,
    oracle,
    positive_part,
    sequences,
    target,
    tokens,
)
from netdyn import diagnose, functional
from netdyn.functional import linear_substitution_map, local_fields
from sequence_families import AXES, RECURRENT, TRANSFORMERS, Recurrent, TextEncoder, TimeDistributed

FAMILIES = FULLY_CONNECTED | CONVOLUTIONAL | TRANSFORMERS | AXES | RECURRENT
EXACT = 1e-9

# torch warns of this when its own fast path for padded sequences runs.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")

every_family = pytest.mark.parametrize("case", FAMILIES, indirect=True)


class Case:
    """A family's network with its inputs, and the fields, maps and logits of its twin."""

    def __init__(self, family: Family):
        self.family = family
        self.network, self.inputs = family.network(), family.inputs()
        self.truth: Oracle = oracle(self.network.explicit, self.inputs)

    def asked(self):
        """The network for functions without `forward=`, and the prefix that its layers' names then have."""
        if self.family.forward is None:
            return self.network, ""
        return Picked(self.network, self.family.forward), "network."


class Picked(nn.Module):
    """A network whose forward pass is a function of the user's."""

    def __init__(self, network, forward):
        super().__init__()
        self.network, self.function = network, forward

    def forward(self, x):
        return self.function(self.network, x)


made = {}


@pytest.fixture
def case(request):
    """Made once for all tests; a family's own activations are registered as a user registers them."""
    name = request.param
    if name not in made:
        made[name] = Case(FAMILIES[name])
    for thing in made[name].family.registered:
        assert functional.register_activation(thing) is thing
    return made[name]


@contextlib.contextmanager
def quiet_about_defects():
    """Ignores the warning of maps that depend on the sample: they are compared all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"In the layers .* the linear substitution map depends on the sample")
        yield


def mapped(case):
    network, prefix = case.asked()
    with quiet_about_defects():
        found = linear_substitution_map(network, case.inputs, case.family.layers)
    return found, prefix


def error(actual, expected):
    """Largest difference, in units of the largest entry."""
    scale = float(expected.abs().max())
    return float((actual - expected).abs().max()) / (scale or 1.0)


# The twins


@every_family
def test_the_twin_computes_what_the_network_computes(case):
    network, _ = case.asked()
    with torch.no_grad():
        logits = network(case.inputs)
    assert error(case.truth.logits, logits) < EXACT
    assert min(jacobian.shape[0] for jacobian in case.truth.jacobians.values()) == SAMPLES


def test_the_twins_jacobian_is_the_product_of_two_matrices():
    family = FULLY_CONNECTED["linear network"]
    network = family.network()
    truth = oracle(network.explicit, features())
    _, middle, last = (module.weight.detach() for module in network.fc)
    assert error(truth.maps()["fc.1"], last) < 1e-14
    assert error(truth.maps()["fc.0"], last @ middle) < 1e-14
    assert truth.defect("fc.0") == pytest.approx(0, abs=1e-12)


# Fields and maps


@every_family
def test_layers_are_found_in_order_of_execution_and_hold_what_activations_read(case):
    network, prefix = case.asked()
    fields = local_fields(network, case.inputs, case.family.layers)
    assert list(fields) == [prefix + name for name in case.truth.fields]
    for name, expected in case.truth.fields.items():
        assert fields[prefix + name].shape == expected.shape, name
        assert error(fields[prefix + name], expected) < EXACT, name


@every_family
def test_the_map_is_the_jacobian_of_the_network_without_activations(case):
    found, prefix = mapped(case)
    assert list(found) == [prefix + name for name in case.truth.fields]
    for name, expected in case.truth.maps().items():
        assert found[prefix + name].shape == expected.shape, name
        assert error(found[prefix + name], expected) < EXACT, name


@every_family
def test_the_defect_is_the_spread_of_the_jacobian_over_the_samples(case):
    found, prefix = mapped(case)
    for name, jacobian in case.truth.jacobians.items():
        if jacobian.any():
            assert found.affine_defect[prefix + name] == pytest.approx(case.truth.defect(name), abs=1e-6), name


# Modes


@every_family
def test_the_modes_are_those_of_the_loops(case):
    with quiet_about_defects():
        report = diagnose(
            case.network,
            case.inputs,
            target(),
            measure=["modes"],
            layers=case.family.layers,
            forward=case.family.forward,
        )
    assert [layer.name for layer in report.layers] == list(case.truth.fields)
    maps = case.truth.maps()
    for layer in report.layers:
        check_modes(layer, case.truth.fields[layer.name], case.truth.outputs[layer.name], maps[layer.name])


def check_modes(layer, fields, outputs, pathway):
    """A layer's report against the loop reference."""
    constant = (fields == fields[:1]).all(dim=0)
    tuning = torch.from_numpy(reference.class_tuning(fields, target(), CLASSES))
    share, rule = reference.opt_fraction(tuning, pathway, constant)
    assert (layer.units, layer.sampled) == fields.shape[1:] * 2
    assert layer.rule == ("none" if math.isnan(share) else rule)
    index = reference.order_index(tuning, pathway)
    np.testing.assert_allclose(np.asarray(layer.order_index, dtype=float), index, atol=1e-9, err_msg=layer.name)
    z = reference.order_alignment(tuning, pathway)
    np.testing.assert_allclose(np.asarray(layer.alignment, dtype=float), z, atol=1e-9, err_msg=layer.name)
    assert layer.opt_fraction == pytest.approx(share, abs=1e-9, nan_ok=True)
    gradient = reference.rpd_gradient(fields, target(), pathway, CLASSES)
    assert layer.rpd_gradient == pytest.approx(gradient, abs=1e-9, nan_ok=True)
    unwired = float(((pathway - pathway.mean(dim=0)) == 0).all(dim=0).double().mean())
    assert layer.unwired_fraction == pytest.approx(unwired, abs=1e-9)
    kept = reference.transfer_order(fields, outputs)
    transfer = math.nan if np.isnan(kept).all() else float(np.nanmean(kept))
    assert layer.transfer_order == pytest.approx(transfer, abs=1e-9, nan_ok=True)


# Inputs and networks that invite mistakes


def compared(network, inputs, samples):
    """Names, fields and maps of a network against its twin."""
    truth = oracle(network.explicit, inputs, samples)
    fields = local_fields(network, inputs)
    with quiet_about_defects():
        found = linear_substitution_map(network, inputs)
    assert list(fields) == list(found) == list(truth.fields)
    for name, pathway in truth.maps().items():
        assert fields[name].shape == truth.fields[name].shape, name
        assert error(fields[name], truth.fields[name]) < EXACT, name
        assert error(found[name], pathway) < EXACT, name


MISTAKABLE = {
    "transformer, steps first": lambda: TextEncoder(batch_first=False),
    "transformer": TextEncoder,
    "LSTM, steps first": lambda: Recurrent(nn.LSTM, batch_first=False),
    "GRU": lambda: Recurrent(nn.GRU),
    "time-distributed": TimeDistributed,
    "steps and samples merged": AXES["steps and samples merged"].build,
    "samples and heads merged": AXES["samples and heads merged"].build,
}


@pytest.mark.parametrize("samples", [STEPS, 2 * STEPS, 10, 8, 1])
@pytest.mark.parametrize("name", MISTAKABLE)
def test_samples_are_found_when_there_are_as_many_steps(name, samples):
    """7 steps; 10 hidden units or 8 features in the transformers, of which as many samples might be taken."""
    inputs = tokens()[:samples] if "transformer" in name else sequences()[:samples]
    compared(Family(MISTAKABLE[name], lambda: None).network(), inputs, samples)


@pytest.mark.parametrize("size", [7, 29])
@pytest.mark.parametrize("name", ["ResNet", "GLU", "text encoder, steps first", "LSTM, both ways", "windows"])
def test_several_batches_give_the_same_layers(name, size):
    """The last batch has 2 samples, or 1."""
    family = FAMILIES[name]
    with quiet_about_defects():
        whole, parts = (
            diagnose(family.network(), family.inputs(), target(), measure=["modes"], batch_size=batch).layers
            for batch in (None, size)
        )
    assert [layer.name for layer in parts] == [layer.name for layer in whole]
    for part, full in zip(parts, whole, strict=True):
        torch.testing.assert_close(part.order_index, full.order_index, rtol=0, atol=1e-9, equal_nan=True)
        assert part.transfer_order == pytest.approx(full.transfer_order, abs=1e-9)
        assert part.units == full.units


@pytest.mark.parametrize("name", ["tied weights", "text encoder, steps first", "LSTM, both ways", "GRU cell", "ResNet"])
def test_names_are_the_same_at_every_call(name):
    family = FAMILIES[name]
    network = family.network()
    first = list(local_fields(network, family.inputs()))
    assert list(local_fields(network, family.inputs()[:11])) == first
    with quiet_about_defects():
        assert list(linear_substitution_map(network, family.inputs())) == first


def test_globs_choose_among_the_layers_of_a_recurrent_module():
    network = FAMILIES["LSTM, both ways"].network()
    every = list(local_fields(network, sequences()))
    assert list(local_fields(network, sequences(), layers=["rnn*"])) == [name for name in every if name != "fc"]
    assert list(local_fields(network, sequences(), layers=["rnn:3", "fc"])) == ["rnn:3", "fc"]


@pytest.mark.parametrize("name", ["LSTM, both ways", "GRU", "text encoder, padded", "ResNet", "parametrised weights"])
def test_reading_leaves_outputs_and_parameters_as_they_were(name):
    family = FAMILIES[name]
    network = family.network()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        before = network(family.inputs())
    with quiet_about_defects():
        linear_substitution_map(network, family.inputs())
    with torch.no_grad():
        assert torch.equal(network(family.inputs()), before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


# Networks of which a part cannot be read


class Scripted(nn.Module):
    """Its middle part is compiled TorchScript with a ReLU inside, and keeps its own derivative."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)
        self.part = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x):
        return self.out(torch.tanh(self.fc2(self.part(F.relu(self.fc1(x))))))

    def explicit(self, tape, x):
        x = affine(self.part[0], tape.act("fc1", affine(self.fc1, x), positive_part))
        return affine(self.out, tape.act("fc2", affine(self.fc2, x * (x > 0)), torch.tanh))


def test_a_scripted_part_is_named_in_one_warning_and_the_rest_is_read():
    network = Family(Scripted, features).network()
    truth = oracle(network.explicit, features())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch advises against TorchScript
        network.part = torch.jit.script(network.part)
    with pytest.warns(UserWarning, match="part") as caught, quiet_about_defects():
        found = linear_substitution_map(network, features())
    assert len(caught) == 1
    assert list(found) == ["fc1", "fc2"]
    for name, expected in truth.maps().items():
        assert error(found[name], expected) < EXACT


class Quantised(nn.Module):
    """Its middle layer is dynamically quantised: no gradient passes it, so what comes before it has no map."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(F.relu(self.fc2(F.relu(self.fc1(x)))))


def test_a_quantised_layer_is_named_in_one_warning_and_has_no_map_before_it():
    network = networks.fill(Quantised()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against its quantised tensors
        network = torch.ao.quantization.quantize_dynamic(
            network, {"fc2": torch.ao.quantization.default_dynamic_qconfig}
        )
    assert type(network.fc2) is not nn.Linear
    inputs = features().float()
    with pytest.warns(UserWarning, match="fc2") as caught:
        found = linear_substitution_map(network, inputs)
    assert len(caught) == 1
    assert "fc1" not in found
    assert list(found) == ["fc2"]
    for pathway in found.values():
        torch.testing.assert_close(pathway, network.out.weight.detach(), rtol=1e-6, atol=0)


class Packed(nn.Module):
    """A recurrent module on packed sequences, whose steps have no fixed places."""

    def __init__(self):
        super().__init__()
        self.rnn, self.fc, self.out = nn.LSTM(FEATURES, 4), nn.Linear(4, 9), nn.Linear(9, CLASSES)

    def forward(self, x):
        lengths = torch.full((len(x),), STEPS)
        _, (h, _) = self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))
        return self.out(F.relu(self.fc(h[-1])))


def test_a_recurrent_module_on_packed_sequences_is_named_in_one_warning_and_the_rest_is_read():
    network = Family(Packed, sequences).network()
    with pytest.warns(UserWarning, match="rnn") as caught:
        found = linear_substitution_map(network, sequences())
    assert len(caught) == 1
    assert list(found) == ["fc"]
    assert error(found["fc"], network.out.weight.detach()) < EXACT


# Large layers


class Wide(nn.Module):
    """A convolution of 81 × 16 × 16 = 20,736 units, each wired, through the head, as it is tuned."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 81, 3, padding=1), nn.Linear(81 * 256, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).flatten(1))


UNITS = 81 * 256


@pytest.fixture(scope="module")
def wide():
    """The network and its probe; the head's weights are nearly the tuning, so that half of the units preserve order."""
    network = networks.fill(Wide()).eval()
    inputs = draw(SAMPLES, 1, 16, 16).float()
    with torch.no_grad():
        fields = network.conv(inputs).flatten(1)
        tuning = torch.from_numpy(reference.class_tuning(fields, target(), CLASSES))
        network.head.weight.copy_(tuning + 0.15 * draw(*tuning.shape))
    return network, inputs, target()


def test_of_a_large_layer_the_sampled_share_has_a_standard_error_below_a_hundredth(wide):
    full = diagnose(*wide, measure=["modes"], max_units=UNITS).layers[0]
    assert (full.units, full.sampled) == (UNITS, UNITS)
    share = full.opt_fraction
    assert 0.4 < share < 0.6
    # 4096 of 20,736 units without repetition: the standard error is sqrt(share (1 - share) / 4096 · (1 - 4096/20,736)),
    # 0.007 at most.
    # The root mean square over n = 32 seeds has a relative standard error of 1/8 itself; 0.01 lies 3 of these above.
    seeds = range(32)
    misses = []
    for seed in seeds:
        part = diagnose(*wide, measure=["modes"], seed=seed).layers[0]
        assert (part.units, part.sampled) == (UNITS, 4096)
        misses.append(part.opt_fraction - share)
    spread = math.sqrt(share * (1 - share) / 4096 * (1 - 4096 / UNITS))
    rms = math.sqrt(sum(miss**2 for miss in misses) / len(misses))
    assert rms < 0.01
    assert abs(sum(misses) / len(misses)) < 4 * spread / math.sqrt(len(misses))


def test_of_a_large_layer_the_same_units_are_read_at_every_call(wide):
    full = diagnose(*wide, measure=["modes"], max_units=UNITS).layers[0].alignment
    first, again, parts = (
        diagnose(*wide, measure=["modes"], batch_size=size).layers[0].alignment for size in (None, None, 9)
    )
    assert torch.equal(first, again)
    torch.testing.assert_close(first, parts, rtol=0, atol=1e-6)
    assert torch.isin(first, full).all()
    # The alignments on two probes identify a unit.
    other = (wide[0], draw(SAMPLES, 1, 16, 16, seed=2).float(), wide[2])
    of_all = diagnose(*other, measure=["modes"], max_units=UNITS).layers[0].alignment
    of_some = diagnose(*other, measure=["modes"]).layers[0].alignment
    pairs = set(zip(full.tolist(), of_all.tolist(), strict=True))
    assert len(pairs) > 0.99 * UNITS
    assert set(zip(first.tolist(), of_some.tolist(), strict=True)) <= pairs
    moved = diagnose(*wide, measure=["modes"], seed=1).layers[0].alignment
    assert not torch.equal(first, moved)
