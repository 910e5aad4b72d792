"""Local fields: what every activation reads, whoever calls it and however; and the names of the layers."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from netdyn import diagnose
from netdyn.functional import linear_substitution_map, local_fields
from netdyn.isolation.adapter import Adapter
from netdyn.tracing.activations import ACTIVATIONS
from netdyn.tracing.survey import discover, run
from networks import CLASSES, FEATURES, ZOO, FunctionalMLP, Repeated, ResidualCNN, Sum, fill, one_hidden, samples

inplace = functools.partial


class Memory(torch.autograd.Function):
    """x * sigmoid(x), with a backward of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * s * (1 + x * (1 - s))


class Own(nn.Module):
    """A parameter-free activation module around a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


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

# Activations of somebody's own making; whatever they call inside, each is one.
OWN = {
    "x sigmoid(x)": lambda x: x * torch.sigmoid(x),
    "x sigmoid(x) in place": lambda x: x.mul_(torch.sigmoid(x)),
    "x sigmoid(1.7 x)": lambda x: x * (1.702 * x).sigmoid(),
    "x tanh(softplus(x))": lambda x: x * torch.tanh(F.softplus(x)),
    "tanh's GELU": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3))),
    "squared relu": lambda x: F.relu(x) ** 2,
    "relu": F.relu,
    "relu in place": F.relu_,
    "own backward": Memory.apply,
}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def fields_by_hooks(network, inputs, names):
    """Outputs of the named modules, copied at once."""
    network.eval()
    found = {}
    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda m, i, output, name=name: found.update({name: output.clone()}))
        for name in names
    ]
    with torch.no_grad():
        network(inputs)
    for handle in handles:
        handle.remove()
    return {name: field.flatten(1) for name, field in found.items()}


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


@pytest.mark.parametrize("activation", OWN.values(), ids=OWN)
def test_a_parameter_free_module_of_ones_own_is_one_activation(activation):
    network = one_hidden(Own(activation))
    fields = local_fields(network, samples())
    assert list(fields) == ["0"]
    close(fields["0"], network[0](samples()).detach())
    linear_map = linear_substitution_map(network, samples())
    close(linear_map["0"], network[2].weight.detach())
    assert linear_map.affine_defect["0"] < 1e-5


def test_an_own_activation_with_parameters_shows_the_activations_inside():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * torch.sigmoid(self.slope * x)

    assert list(local_fields(one_hidden(Learned()), samples())) == ["1"]


def test_an_own_module_without_an_activation_is_no_site():
    network = nn.Sequential(nn.Linear(FEATURES, 8), Own(lambda x: x - 1), nn.ReLU(), nn.Linear(8, CLASSES))
    fields = local_fields(network, samples())
    assert list(fields) == ["1"]
    close(fields["1"], network[0](samples()).detach() - 1)


def test_the_output_that_a_site_shows_is_the_activations():
    network = networks.functional_mlp().eval()
    sites = []
    with torch.no_grad():
        run(network, samples(), sites.append)
    for site, activation in zip(sites, network.activations, strict=True):
        close(site.output, activation(site.field))


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


# Names


def test_layers_are_named_after_the_module_whose_output_the_field_is():
    assert list(local_fields(networks.bn_mlp(), samples())) == ["bn1", "bn2", "bn3"]


ACTS = {"module": nn.SiLU(), "in place": nn.SiLU(inplace=True), "own": Own(F.silu), "own formula": networks.Swish()}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_sum_is_named_after_the_innermost_module_running(act):
    assert list(local_fields(fill(Sum(act)), samples())) == ["act"]


def test_sums_in_a_residual_network_are_named_after_the_activation_that_reads_them():
    assert tuple(local_fields(networks.residual_cnn(), networks.images())) == ResidualCNN.FIELDS


def test_without_any_submodule_running_the_name_is_model():
    assert list(local_fields(fill(Sum()), samples())) == ["model"]


def test_what_does_nothing_leaves_the_name():
    network = nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Identity(), nn.ReLU(), nn.Linear(8, CLASSES))
    assert list(local_fields(network, samples())) == ["0"]


def test_layers_that_run_again_are_numbered():
    network = fill(Repeated())
    fields = local_fields(network, samples())
    assert list(fields) == ["fc", "fc:1", "fc:2"]
    h = samples()
    for field in fields.values():
        close(field, network.fc(h).detach())
        h = network.fc(h).relu()


def test_a_shared_activation_module_lends_its_name_to_no_layer():
    assert list(local_fields(networks.shared_mlp(), samples())) == ["0", "2", "4"]


def test_nested_names_are_the_modules_own():
    network = nn.ModuleDict({"encoder": nn.Sequential(nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU()))})
    network.forward = lambda x: network["encoder"](x)
    assert list(local_fields(network, samples())) == ["encoder.0.0"]


def test_layers_come_in_order_of_execution():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = (nn.Linear(FEATURES, FEATURES) for _ in range(3))

        def forward(self, x):
            return self.last(F.relu(self.middle(F.relu(self.first(x)))))

    assert list(local_fields(Backwards(), samples())) == ["first", "middle"]


@pytest.mark.parametrize(("factory", "inputs"), ZOO.values(), ids=ZOO)
def test_names_are_the_same_in_every_call_and_mode_and_for_every_batch_size(factory, inputs):
    network = factory()
    names = list(local_fields(network, inputs()))
    assert names
    for number in (1, 2, 3, 80):
        assert list(local_fields(network, inputs(number))) == names
    assert list(linear_substitution_map(network, inputs())) == names
    assert list(local_fields(network.eval(), inputs())) == names


@pytest.mark.parametrize(("factory", "inputs"), ZOO.values(), ids=ZOO)
def test_fields_have_one_row_a_sample_and_no_gradient(factory, inputs):
    for field in local_fields(factory(), inputs(7)).values():
        assert field.ndim == 2
        assert len(field) == 7
        assert not field.requires_grad


def test_a_forward_that_recovers_from_a_failing_module_keeps_its_names():
    class Fragile(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of order")

    class Recovering(Sum):
        def __init__(self):
            super().__init__()
            self.fragile = Fragile()

        def forward(self, x):
            try:
                return self.fragile(x)
            except RuntimeError:
                return super().forward(x)

    network = fill(Recovering())
    fields = local_fields(network, samples())
    assert list(fields) == ["model"]
    close(fields["model"], (network.left(samples()) + network.right(samples())).detach())


def test_compiling_leaves_no_mark_on_names():
    network = networks.bn_mlp()
    compiled = torch.compile(network, backend="eager")
    fields, twins = local_fields(compiled, samples()), local_fields(network, samples())
    assert list(fields) == ["bn1", "bn2", "bn3"]
    assert all(torch.equal(fields[name], twins[name]) for name in twins)


def test_seen_through_a_function_the_names_are_the_same():
    network = networks.bn_mlp()
    adapted = Adapter(network.eval(), lambda module, batch: module(batch["x"]))
    fields, twins = local_fields(adapted, {"x": samples()}), local_fields(network, samples())
    assert list(fields) == list(twins)
    assert all(torch.equal(fields[name], twins[name]) for name in twins)


# Inputs


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [(lambda x: (x, 3), lambda batch: batch[0]), (lambda x: {"x": x, "kind": "probe"}, lambda batch: batch["x"])],
    ids=["sequence", "mapping"],
)
def test_inputs_may_be_a_sequence_or_a_mapping(wrap, unwrap):
    network = networks.bn_mlp()

    class Unwrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, batch):
            return self.inner(unwrap(batch))

    fields, twins = local_fields(Unwrapping(), wrap(samples())), local_fields(network, samples())
    assert list(fields) == [f"inner.{name}" for name in twins]
    assert all(torch.equal(fields[f"inner.{name}"], twins[name]) for name in twins)


def test_a_transformer_layer_shows_its_activation_in_eval_mode_too():
    layer = nn.TransformerEncoderLayer(FEATURES, 2, 10, dropout=0.0, batch_first=True)
    network = fill(nn.Sequential(layer, nn.Flatten(), nn.Linear(3 * FEATURES, CLASSES)))
    inputs = samples(9, shape=(3, FEATURES))
    field = local_fields(network, inputs)["0.linear1"]
    hooked = fields_by_hooks(network, inputs, ["0.linear1"])["0.linear1"]
    assert field.shape == (9, 30)
    close(field, hooked)


# Choosing


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["bn1"], ["bn1"]),
        (["bn3", "bn1"], ["bn1", "bn3"]),
        (["bn*"], ["bn1", "bn2", "bn3"]),
        (["bn[13]"], ["bn1", "bn3"]),
        (["bn?", "bn2"], ["bn1", "bn2", "bn3"]),
        (["*"], ["bn1", "bn2", "bn3"]),
    ],
)
def test_globs_choose_layers_in_order_of_execution(patterns, expected):
    network = networks.bn_mlp()
    everything = local_fields(network, samples())
    for read in (local_fields, linear_substitution_map):
        assert list(read(network, samples(), layers=patterns)) == expected
    fields = local_fields(network, samples(), layers=patterns)
    assert all(torch.equal(fields[name], everything[name]) for name in expected)


@pytest.mark.parametrize(("patterns", "expected"), [(["fc:1"], ["fc:1"]), (["fc:*"], ["fc:1", "fc:2"])])
def test_runs_of_a_layer_can_be_chosen(patterns, expected):
    assert list(local_fields(fill(Repeated()), samples(), layers=patterns)) == expected


@pytest.mark.parametrize(("patterns", "expected"), [(["0", "1"], ["0", "1"]), (["*"], ["0", "1", "2"])])
def test_on_a_linear_network_modules_can_be_named(patterns, expected):
    network = networks.linear_network()
    fields = local_fields(network, samples(), layers=patterns)
    assert list(fields) == expected
    hooked = fields_by_hooks(network, samples(), expected)
    assert all(torch.equal(fields[name], hooked[name]) for name in expected)


def test_a_named_module_that_runs_again_is_numbered():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(FEATURES, FEATURES)

        def forward(self, x):
            return self.fc(self.fc(x))

    network = fill(Twice())
    fields = local_fields(network, samples(), layers=["fc"])
    assert list(fields) == ["fc", "fc:1"]
    close(fields["fc:1"], network.fc(network.fc(samples())).detach())


def test_a_module_and_a_local_field_can_be_read_together():
    network = networks.bn_mlp()
    fields = local_fields(network, samples(), layers=["bn2", "fc4"])
    assert list(fields) == ["bn2", "fc4"]
    close(fields["fc4"], network.eval()(samples()).detach())
    pathway = linear_substitution_map(network, samples(), layers=["fc4"])["fc4"]
    close(pathway, torch.eye(CLASSES))


def test_a_name_that_is_both_means_the_local_field():
    network = networks.functional_mlp()
    fields = local_fields(network, samples(), layers=["fc.*"])
    assert list(fields) == ["fc.0", "fc.1", "fc.2"]


# Errors


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("bn9", "`layers` names 'bn9', which matches nothing. The nearest are 'bn3', 'bn2', 'bn1'."),
        ("x*", "`layers` names 'x*', which matches nothing. The nearest are 'bn1', 'bn2', 'bn3', 'fc1', 'act1'."),
    ],
)
def test_a_name_that_matches_nothing_lists_the_nearest(pattern, message):
    for read in (local_fields, linear_substitution_map):
        with pytest.raises(ValueError, match="matches nothing") as error:
            read(networks.bn_mlp(), samples(), layers=["bn1", pattern])
        assert str(error.value) == message


def test_a_string_is_not_taken_for_a_list_of_names():
    with pytest.raises(TypeError) as error:
        local_fields(networks.bn_mlp(), samples(), layers="bn1")
    assert str(error.value) == "`layers` must be a list of names or globs, got the string 'bn1'."


def test_a_network_without_activations_says_what_to_do():
    with pytest.raises(ValueError, match="No activation") as error:
        local_fields(networks.linear_network(), samples())
    assert str(error.value) == (
        "No activation function was seen, so there is no local field to read. For a linear network name the modules "
        "whose outputs are to count in `layers=`, for instance ['0', '1', '2']."
    )


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


class Moved(nn.Module):
    """Samples second, samples folded with windows in either order, samples mixed."""

    def __init__(self, how):
        super().__init__()
        self.how, self.fc = how, nn.Linear(2, 5)

    def forward(self, x):
        parts = x.reshape(len(x), 3, 2)
        moved = {
            "second": lambda: self.fc(parts.transpose(0, 1)),
            "last": lambda: self.fc(parts).permute(1, 2, 0),
            "folded": lambda: self.fc(parts.reshape(-1, 2)),
            "folded, fastest": lambda: self.fc(parts.transpose(0, 1).reshape(-1, 2)),
            "folded, second": lambda: self.fc(parts.reshape(1, -1, 2)),
            "mixed": lambda: self.fc(parts).flatten(1) @ self.fc(parts).flatten(1).T,
        }[self.how]()
        self.true = self.fc(parts)
        return torch.tanh(moved).sum() + self.fc(x[:, :2])


@pytest.mark.parametrize("number", [1, 2, 3, 7, 80])
@pytest.mark.parametrize("how", ["second", "last", "folded", "folded, fastest", "folded, second"])
def test_samples_are_found_wherever_they_are(how, number):
    network, x = fill(Moved(how)), samples(number)
    (field,) = local_fields(network, x).values()
    with torch.no_grad():
        expected = network.fc(x.reshape(number, 3, 2))
    torch.testing.assert_close(field, expected.reshape(number, -1))


def test_layers_that_mix_the_samples_are_named_and_left_out():
    said = re.escape("the modules ['model'] mix or sort the samples of a batch, or see only some")
    with (
        pytest.warns(UserWarning, match=said),
        pytest.raises(
            ValueError, match=re.escape("Samples cannot be told apart in what the activations of ['model'] read")
        ),
    ):
        local_fields(fill(Moved("mixed")), samples())


def test_whole_numbers_have_no_local_field():
    class Counting(FunctionalMLP):
        def forward(self, x):
            return super().forward(x) + torch.relu(torch.arange(len(x)))[:, None]

    assert list(local_fields(fill(Counting()), samples())) == ["fc.0", "fc.1", "fc.2"]


# Probabilities


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("single logit", "softmax")])
def test_outputs_of_other_networks_are_no_probabilities(name):
    factory, inputs = ZOO[name]
    network = factory().eval()
    with torch.no_grad():
        assert discover(network, inputs()).probabilities is False


def test_the_table_of_forms_covers_every_family_of_activations():
    families = {"relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"}
    families |= {"softplus", "softsign", "tanhshrink", "softshrink", "hardshrink", "hardtanh", "hardsigmoid"}
    families |= {"hardswish", "logsigmoid", "sigmoid", "tanh", "threshold"}
    tried = {name.split(".")[-1].split()[0].rstrip("_") for name in FUNCTIONS} | {"logsigmoid"}
    known = {function.__name__.rstrip("_") for function in ACTIVATIONS}
    assert families <= tried
    assert families <= known | {"logsigmoid"}


class Trimmed(nn.Module):
    """Steps beyond the batch's longest sample are cut away; steps first."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(2, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        longest = int((x != 0).any(dim=2).sum(dim=1).max())
        return self.out(torch.relu(self.fc(x[:, :longest].transpose(0, 1))).mean(dim=0))


def test_a_batch_cut_to_its_longest_sample_is_read():
    x = samples(9, shape=(6, 2))
    for row, length in enumerate((2, 3, 4, 5, 4, 3, 6, 2, 1)):
        x[row, length:] = 0
    network = fill(Trimmed())
    with torch.no_grad():
        expected = network.fc(x).reshape(9, -1)
    torch.testing.assert_close(local_fields(network, x)["fc"], expected)
    with pytest.raises(ValueError, match="Layer 'fc' has 25 units in one batch and 30 in another"):
        diagnose(network, x, torch.arange(9) % CLASSES, batch_size=4, measure=["modes"])
