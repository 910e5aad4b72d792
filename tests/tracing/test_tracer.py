"""A traced run shows the input of every activation, whatever its form and wherever the network writes."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from netdyn.functional import linear_substitution_map, local_fields
from netdyn.tracing.activations import ACTIVATIONS
from netdyn.tracing.tracer import run
from networks import CLASSES, FEATURES, FunctionalMLP, Own, fields_by_hooks, fill, samples

inplace = functools.partial


class Around(nn.Module):
    """first, the activation as a function, last."""

    def __init__(self, activation):
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.last = nn.Linear(8, CLASSES)
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


class Statement(Around):
    """The activation's result is not used: it has written over its input."""

    def forward(self, x):
        h = self.first(x)
        self.activation(h)
        return self.last(h)


MODULES = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(0.2, inplace=True),
    nn.RReLU(),
    nn.PReLU(),
    nn.PReLU(8),
    nn.ELU(),
    nn.ELU(inplace=True),
    nn.SELU(),
    nn.CELU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.SiLU(inplace=True),
    nn.Mish(),
    nn.Softplus(),
    nn.Softsign(),
    nn.Tanhshrink(),
    nn.Softshrink(),
    nn.Hardshrink(),
    nn.Hardtanh(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.LogSigmoid(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Threshold(0.1, -1.0),
]


FUNCTIONS = {
    "F.relu": F.relu,
    "F.relu in place": inplace(F.relu, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu by name": lambda x: torch.relu(input=x),
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "F.relu6": F.relu6,
    "F.leaky_relu": F.leaky_relu,
    "F.leaky_relu in place": inplace(F.leaky_relu, inplace=True),
    "F.leaky_relu_": F.leaky_relu_,
    "F.rrelu": F.rrelu,
    "F.prelu": lambda x: F.prelu(x, torch.tensor([0.3])),
    "torch.prelu": lambda x: torch.prelu(x, torch.tensor([0.3])),
    "F.elu": F.elu,
    "F.elu_": F.elu_,
    "F.selu": F.selu,
    "torch.selu": torch.selu,
    "torch.selu_": torch.selu_,
    "F.celu": F.celu,
    "torch.celu": torch.celu,
    "F.gelu": F.gelu,
    "F.silu": F.silu,
    "F.mish": F.mish,
    "F.softplus": F.softplus,
    "F.softsign": F.softsign,
    "F.tanhshrink": F.tanhshrink,
    "F.softshrink": F.softshrink,
    "F.hardshrink": F.hardshrink,
    "torch.hardshrink": torch.hardshrink,
    "F.hardtanh": F.hardtanh,
    "F.hardtanh_": F.hardtanh_,
    "F.hardsigmoid": F.hardsigmoid,
    "F.hardswish": F.hardswish,
    "F.logsigmoid": F.logsigmoid,
    "F.sigmoid": F.sigmoid,
    "torch.sigmoid": torch.sigmoid,
    "torch.sigmoid_": torch.sigmoid_,
    "torch.special.expit": torch.special.expit,
    "Tensor.sigmoid": lambda x: x.sigmoid(),
    "Tensor.sigmoid_": lambda x: x.sigmoid_(),
    "F.tanh": F.tanh,
    "torch.tanh": torch.tanh,
    "torch.tanh_": torch.tanh_,
    "Tensor.tanh": lambda x: x.tanh(),
    "Tensor.tanh_": lambda x: x.tanh_(),
    "F.threshold": lambda x: F.threshold(x, 0.1, -1.0),
    "F.threshold in place": lambda x: F.threshold(x, 0.1, -1.0, True),
}


OVERWRITING = [name for name in FUNCTIONS if name.endswith("_") or name.endswith("in place")]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# Every form of an activation


@pytest.mark.parametrize("activation", MODULES, ids=repr)
def test_a_module_reads_the_output_of_the_layer_before(activation):
    network = fill(nn.Sequential(nn.Linear(FEATURES, 8), activation, nn.Linear(8, CLASSES)))
    fields = local_fields(network, samples())
    assert list(fields) == ["0"]
    close(fields["0"], network[0](samples()).detach())
    close(linear_substitution_map(network, samples())["0"], network[2].weight.detach())


@pytest.mark.parametrize("activation", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_or_method_reads_the_output_of_the_layer_before(activation):
    network = fill(Around(activation))
    fields = local_fields(network, samples())
    assert list(fields) == ["first"]
    close(fields["first"], network.first(samples()).detach())
    close(linear_substitution_map(network, samples())["first"], network.last.weight.detach())


@pytest.mark.parametrize("name", OVERWRITING)
def test_an_activation_whose_result_is_not_used_wrote_over_its_input(name):
    network = fill(Statement(FUNCTIONS[name]))
    output, _ = run(network.eval(), samples(), lambda site: None, straight=True)
    close(output, network(samples()))
    close(local_fields(network, samples())["first"], network.first(samples()).detach())
    close(linear_substitution_map(network, samples())["first"], network.last.weight.detach())


def test_the_table_of_forms_covers_every_family_of_activations():
    families = {"relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"}
    families |= {"softplus", "softsign", "tanhshrink", "softshrink", "hardshrink", "hardtanh", "hardsigmoid"}
    families |= {"hardswish", "logsigmoid", "sigmoid", "tanh", "threshold"}
    tried = {name.split(".")[-1].split()[0].rstrip("_") for name in FUNCTIONS} | {"logsigmoid"}
    known = {function.__name__.rstrip("_") for function in ACTIVATIONS}
    assert families <= tried
    assert families <= known | {"logsigmoid"}


def test_the_output_that_a_site_shows_is_the_activations():
    network = networks.functional_mlp().eval()
    sites = []
    with torch.no_grad():
        run(network, samples(), sites.append)
    for site, activation in zip(sites, network.activations, strict=True):
        close(site.output, activation(site.field))


def test_a_transformer_layer_shows_its_activation_in_eval_mode_too():
    layer = nn.TransformerEncoderLayer(FEATURES, 2, 10, dropout=0.0, batch_first=True)
    network = fill(nn.Sequential(layer, nn.Flatten(), nn.Linear(3 * FEATURES, CLASSES)))
    inputs = samples(9, shape=(3, FEATURES))
    field = local_fields(network, inputs)["0.linear1"]
    hooked = fields_by_hooks(network, inputs, ["0.linear1"])["0.linear1"]
    assert field.shape == (9, 30)
    close(field, hooked)


# In place


def test_in_place_activations_do_not_change_the_local_fields():
    over, fresh = networks.residual_cnn(inplace=True), networks.residual_cnn(inplace=False)
    fields, twins = local_fields(over, networks.images()), local_fields(fresh, networks.images())
    assert list(fields) == list(twins)
    for name, field in fields.items():
        assert torch.equal(field, twins[name])
        assert bool((field < 0).any()), "a field before the activation has both signs"


def test_fields_are_those_that_plain_hooks_see():
    network = networks.residual_cnn(inplace=False)
    fields = local_fields(network, networks.images())
    hooked = fields_by_hooks(network, networks.images(), ["bn", "blocks.0.bn1", "blocks.1.bn1"])
    for name, field in hooked.items():
        assert torch.equal(fields[name], field)


def test_fields_of_an_mlp_are_the_explicit_ones():
    network = networks.functional_mlp()
    expected, h = [], samples()
    for activation, layer in zip(network.activations, network.fc, strict=False):
        expected.append(h @ layer.weight.T + layer.bias)
        h = activation(expected[-1])
    fields = local_fields(network, samples())
    for field, explicit in zip(fields.values(), expected, strict=True):
        close(field, explicit.detach())


class WrittenOver(nn.Module):
    """The local field is written over after the activation has read it."""

    def __init__(self, activation, write):
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.activation = activation
        self.write = write
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        h = self.first(x)
        output = self.activation(h)
        self.write(h, output)
        return self.last(h)


@pytest.mark.parametrize(
    "activation",
    [torch.relu, torch.sigmoid, Own(F.relu), Own(torch.sigmoid), networks.Swish()],
    ids=["relu", "sigmoid", "own relu", "own sigmoid", "swish"],
)
@pytest.mark.parametrize(
    "write",
    [lambda h, output: h.mul_(output), lambda h, output: h.zero_(), lambda h, output: h.add_(1)],
    ids=["multiplied", "emptied", "added to"],
)
def test_a_field_written_over_later_is_shown_as_the_activation_read_it(activation, write):
    network = fill(WrittenOver(activation, write))
    with torch.no_grad():
        close(local_fields(network, samples())["first"], network.first(samples()))


@pytest.mark.parametrize(
    "write", [lambda h, output: output.mul_(h), lambda h, output: output.zero_()], ids=["multiplied", "emptied"]
)
def test_an_output_written_over_later_is_shown_as_the_activation_gave_it(write):
    network = fill(WrittenOver(torch.sigmoid, write)).eval()
    outputs = []
    with torch.no_grad():
        run(network, samples(), lambda site: outputs.append(site.output.clone()))
        close(outputs[0], torch.sigmoid(network.first(samples())))


# What is no local field


class Positive(nn.Module):
    """Activations that shape weights, not signals: on a parameter, a buffer, a number."""

    def __init__(self, shape):
        super().__init__()
        self.fc = nn.Linear(FEATURES, 8)
        self.out = nn.Linear(8, CLASSES)
        self.scale = nn.Parameter(torch.ones(shape))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x):
        scale = F.softplus(self.scale).mean() * F.softplus(self.temperature)
        return self.out(F.relu(self.fc(x) + 1)) * scale


@pytest.mark.parametrize("shape", [(2,), (3,), (80,), (80, 4)], ids=str)
@pytest.mark.parametrize("number", [2, 3, 80])
def test_an_activation_of_a_parameter_is_no_site(shape, number):
    network = fill(Positive(shape))
    fields = local_fields(network, samples(number))
    assert list(fields) == ["model"]
    close(fields["model"], network.fc(samples(number)).detach() + 1)


def test_an_activation_of_what_holds_no_samples_is_no_site():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(FEATURES, 8)
            self.scale = nn.Parameter(torch.zeros(80))

        def forward(self, x):
            # As many scales as there are samples.
            return torch.relu(self.fc(x)) * torch.tanh(2 * self.scale).mean() + torch.sigmoid(2 * self.fc.weight).mean()

    assert list(local_fields(fill(Scaled()), samples(80))) == ["fc"]


def test_whole_numbers_have_no_local_field():
    class Counting(FunctionalMLP):
        def forward(self, x):
            return super().forward(x) + torch.relu(x[:, :1].long())

    assert list(local_fields(fill(Counting()), samples())) == ["fc.0", "fc.1", "fc.2"]
