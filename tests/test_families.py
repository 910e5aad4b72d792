"""Every kind of network against its twin without activations, and the modes of its layers against the loops."""

import contextlib
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import reference
from families import (
    CLASSES,
    CONVOLUTIONAL,
    FULLY_CONNECTED,
    SAMPLES,
    Family,
    Oracle,
    features,
    oracle,
    target,
)
from netdyn import diagnose, functional
from netdyn.functional import linear_substitution_map, local_fields
from sequence_families import RECURRENT, TRANSFORMERS

FAMILIES = FULLY_CONNECTED | CONVOLUTIONAL | TRANSFORMERS | RECURRENT
EXACT = 1e-9

# torch says this when its own fast path for padded sequences runs.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")

every_family = pytest.mark.parametrize("case", FAMILIES, indirect=True)


class Case:
    """A family's network with its inputs, and what the twin says of it."""

    def __init__(self, family: Family):
        self.family = family
        self.network, self.inputs = family.network(), family.inputs()
        self.truth: Oracle = oracle(self.network.explicit, self.inputs)

    def asked(self):
        """The network as functions without `forward=` can take it, and what that puts before its layers' names."""
        if self.family.forward is None:
            return self.network, ""
        return Picked(self.network, self.family.forward), "network."


class Picked(nn.Module):
    """A network seen through a function of the user's."""

    def __init__(self, network, forward):
        super().__init__()
        self.network, self.function = network, forward

    def forward(self, x):
        return self.function(self.network, x)


made = {}


@pytest.fixture
def case(request):
    """Made once for all tests; a family's own activations are registered as a user would do it."""
    name = request.param
    if name not in made:
        made[name] = Case(FAMILIES[name])
    for thing in made[name].family.registered:
        assert functional.register_activation(thing) is thing
    return made[name]


@contextlib.contextmanager
def quiet_about_defects():
    """A map that depends on the sample is warned of, rightly, and compared all the same."""
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
