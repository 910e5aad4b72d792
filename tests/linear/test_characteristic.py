"""Characteristic maps and subnetworks against products of matrices."""

import pytest
import torch
from torch import nn

import networks
import reference
from netdyn.functional import characteristic_maps, linear_substitution_map, subnetwork
from netdyn.linear import characteristic
from netdyn.linear.characteristic import find_subnetwork
from netdyn.probes.criteria import as_logits
from netdyn.tracing.fields import Choice, choose, discover
from networks import CLASSES, FEATURES, fill, images, samples


def close(actual, expected):
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected).double(), rtol=1e-5, atol=1e-6)


def first_matrix(network):
    """What leads from the input to the first local field of a batch-normalised MLP."""
    return networks.factors_of(network)[0][:, None] * network.fc1.weight


@pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.Tanh, lambda: nn.ELU(inplace=True)], ids=["relu", "tanh", "in place"]
)
def test_the_map_of_an_mlp_is_the_product_of_all_its_matrices(activation):
    network = networks.bn_mlp(activation)
    pathway = torch.from_numpy(
        reference.mlp_map(networks.weights_of(network), [f.detach() for f in networks.factors_of(network)])[0]
    )
    maps = characteristic_maps(network, samples())
    close(maps, pathway @ first_matrix(network).detach().double())
    assert (maps.shape, maps.requires_grad) == ((CLASSES, FEATURES), False)


def test_the_maps_of_hidden_units_sum_to_the_whole_map():
    network = networks.bn_mlp()
    parts = characteristic_maps(network, samples(), layer="bn1")
    assert parts.shape == (CLASSES, 9, FEATURES)
    close(parts.sum(dim=1), characteristic_maps(network, samples()))
    pathway = linear_substitution_map(network, samples())["bn1"]
    close(parts, pathway[:, :, None] * first_matrix(network).detach())
    close(characteristic_maps(network, samples(), layer="bn1", units=[4, 2]), parts[:, [4, 2]])


def test_maps_of_deeper_units_go_through_the_layers_below():
    network = networks.functional_mlp()
    weights = [weight.detach() for weight in networks.weights_of(network)]
    parts = characteristic_maps(network, samples(), layer="fc.1")
    close(parts, (weights[3] @ weights[2])[:, :, None] * (weights[1] @ weights[0]))


def test_images_have_maps_of_their_shape():
    network = networks.residual_cnn()
    maps = characteristic_maps(network, images())
    assert maps.shape == (CLASSES, 2, 8, 8)
    # The stem's part is followed by the map of its field.
    stem = reference.residual_tails(network)["bn"]
    field = reference.normalised(network.bn, torch.zeros(1, 4, 8, 8))
    zero = stem(field)

    def whole(x):
        return stem(reference.normalised(network.bn, network.conv(x)))

    expected = torch.autograd.functional.jacobian(whole, torch.zeros(1, 2, 8, 8))
    close(maps, expected.reshape(maps.shape))
    assert zero.shape == (1, CLASSES)
    parts = characteristic_maps(network, images(), layer="bn", units=[0, 255])
    assert parts.shape == (CLASSES, 2, 2, 8, 8)


def test_inputs_beside_the_one_that_floats_are_left_alone():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(FEATURES, CLASSES)

        def forward(self, inputs):
            return self.fc(inputs["x"]).relu() + inputs["id"][:, None]

    network = fill(Two())
    close(characteristic_maps(network, {"id": torch.arange(80), "x": samples()}), network.fc.weight.detach())


def test_the_map_of_a_network_that_does_not_depend_on_its_input_is_zero():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(FEATURES, CLASSES)

        def forward(self, x):
            return self.fc(torch.zeros_like(x)).relu()

    assert not characteristic_maps(fill(Blind()), samples()).any()


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_the_output_of_a_plain_module_counts_as_a_layer(name):
    network = fill(Plain())
    whole, parts = characteristic_maps(network, samples()), characteristic_maps(network, samples(), name)
    with torch.no_grad():
        before = network.fc1.weight if name == "fc1" else network.fc2.weight @ network.fc1.weight
        after = network.fc3.weight @ network.fc2.weight if name == "fc1" else network.fc3.weight
        expected = torch.einsum("ku,ui->kui", after, before)
    close(parts, expected)
    close(parts.sum(dim=1), whole)
    units, shares = subnetwork(network, samples(), name, most=2)
    assert units.shape == shares.shape == (CLASSES, 2)


class Plain(nn.Module):
    """No activation reads the outputs of its first two modules."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(FEATURES, 7), nn.Linear(7, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.fc3(torch.tanh(1.5 * self.fc2(self.fc1(x)) + 0.5) / 1.5)


def test_subnetworks_are_the_units_with_the_largest_shares():
    network = networks.functional_mlp()
    units, shares = subnetwork(network, samples(), "fc.2", most=3)
    with torch.no_grad():
        hidden = torch.nn.functional.gelu(
            network.fc[2](torch.tanh(network.fc[1](torch.relu(network.fc[0](samples())))))
        ).double()
        logits = network(samples()).double()
    for k in range(CLASSES):
        expected = [
            torch.cov(torch.stack([float(network.fc[3].weight.detach()[k, i]) * hidden[:, i], logits[:, k]]))[0, 1]
            / logits[:, k].var()
            for i in range(7)
        ]
        order = sorted(range(7), key=lambda i: -expected[i])[:3]
        assert units[k].tolist() == order
        assert shares[k].tolist() == pytest.approx([float(expected[i]) for i in order], rel=1e-5)
    with pytest.raises(ValueError, match=r"^`most` must be"):
        subnetwork(network, samples(), "fc.2", most=0)
    _, everything = subnetwork(network, samples(), "fc.2", most=100)
    close(everything.sum(dim=1), torch.ones(CLASSES))


def found_in(network, inputs, layer, most=3, classes=CLASSES, pathway=None, batch_size=None, head=as_logits):
    choice = choose(network, discover(network, inputs, None), [layer])
    return find_subnetwork(network, inputs, choice, most, classes, pathway, batch_size, head)


@pytest.mark.parametrize("batch_size", [None, 30])
@pytest.mark.parametrize("known", [False, True])
def test_a_subnetwork_holds_the_input_maps_of_its_units(known, batch_size):
    network, seen = networks.functional_mlp().eval(), []
    pathway = linear_substitution_map(network, samples())["fc.1"]
    network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    found = found_in(network, samples(), "fc.1", pathway=pathway if known else None, batch_size=batch_size)
    # All samples at once are seen while the layers are found.
    assert seen.count(80) == 1 + (batch_size is None)
    units, shares = subnetwork(network, samples(), "fc.1", most=3)
    maps = characteristic_maps(network, samples(), layer="fc.1")
    assert found.layer == "fc.1"
    assert torch.equal(found.units, units)
    close(found.shares, shares)
    close(found.maps, torch.stack([maps[k, units[k]] for k in range(CLASSES)]))
    assert found.maps.shape == (CLASSES, 3, FEATURES)


def test_a_subnetwork_is_that_of_the_logits_asked_for():
    network = networks.functional_mlp().eval()
    whole, some = (found_in(network, samples(), "fc.2", classes=classes) for classes in (CLASSES, 2))
    other = found_in(network, samples(), "fc.2", head=lambda output, count: -output.flip(1))
    close(some.maps, whole.maps[:2])
    assert torch.equal(some.units, whole.units[:2])
    assert torch.equal(other.units, whole.units.flip(0))
    close(other.maps, -whole.maps.flip(0))
    close(other.shares, whole.shares.flip(0))


def test_shares_are_of_some_samples_spread_over_many(monkeypatch):
    network, x = networks.functional_mlp().eval(), samples(90)
    monkeypatch.setattr(characteristic, "SHARE_SAMPLES", 30)
    found = found_in(network, x, "fc.2")
    _, expected = subnetwork(network, x[::3], "fc.2", most=3)
    close(found.shares, expected)


def test_a_layer_without_a_map_has_no_subnetwork():
    assert find_subnetwork(networks.bn_mlp(), samples(), Choice(("gone",)), 3, CLASSES, None, None) is None


@pytest.mark.parametrize(
    ("network", "gradients"), [(networks.bn_mlp(), CLASSES), (fill(networks.Gated(offset=1.0)), 1 + CLASSES)]
)
def test_gradients_of_more_samples_are_taken_where_those_of_the_first_output_differ(monkeypatch, network, gradients):
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: calls.append(1) or grad(*args, **options))
    characteristic_maps(network, samples())
    assert len(calls) == gradients


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: characteristic_maps(networks.bn_mlp(), samples(), units=[1]),
            ValueError,
            "`units` needs `layer`, the layer of the units, got [1] alone.",
        ),
        (
            lambda: characteristic_maps(networks.bn_mlp(), samples(), "bn1", [3, 9]),
            ValueError,
            "`units` must lie in [0, 9) in layer 'bn1', got [9].",
        ),
        (
            lambda: characteristic_maps(networks.bn_mlp(), samples(), "bn*"),
            ValueError,
            "`layer` must name one layer, got 'bn*', which matches ['bn1', 'bn2', 'bn3'].",
        ),
        (
            lambda: subnetwork(networks.bn_mlp(), samples(), "bn*"),
            ValueError,
            "`layer` must name one layer, got 'bn*', which matches ['bn1', 'bn2', 'bn3'].",
        ),
        (
            lambda: characteristic_maps(fill(networks.Tokens()), torch.zeros(8, 3, dtype=torch.int64)),
            TypeError,
            "`inputs` must hold exactly one floating tensor with the samples first for a map of the input, got 0. For "
            "tokens, give the model the output of its embedding.",
        ),
    ],
)
def test_errors_name_what_was_expected(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
