"""The linear substitution map against products of matrices and networks rewritten without activations."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import networks
import reference
from netdyn.functional import linear_substitution_map, local_fields
from netdyn.isolation.adapter import isolated_network
from netdyn.linear import substitution
from netdyn.linear.substitution import Spread, substitute
from netdyn.tracing import tracer
from netdyn.tracing.fields import choose, discover
from networks import CLASSES, ENDS, FEATURES, ZOO, CheckpointedMLP, Ending, Gated, Swish, Tokens, fill, images, samples

EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}


MLPS = {
    "batch norm": networks.bn_mlp,
    "batch norm, tanh": lambda: networks.bn_mlp(nn.Tanh),
    "batch norm, in place": lambda: networks.bn_mlp(lambda: nn.ReLU(inplace=True)),
    "functions": networks.functional_mlp,
    "functions in place": lambda: networks.functional_mlp(activations=(F.relu_, torch.tanh_, torch.Tensor.sigmoid_)),
    "shared": networks.shared_mlp,
    "shared, own": lambda: networks.shared_mlp(Swish()),
    "shared, in place": lambda: networks.shared_mlp(nn.ELU(inplace=True)),
    "deep": lambda: networks.bn_mlp(nn.Sigmoid, (FEATURES, *[12] * 12, CLASSES)),
    "single logit": lambda: networks.functional_mlp(widths=(FEATURES, 7, 5, 3, 1)),
}

every_mlp = pytest.mark.parametrize("factory", MLPS.values(), ids=MLPS)


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


def explicit(network):
    """The products of matrices for an MLP's layers."""
    return reference.mlp_map(networks.weights_of(network), networks.factors_of(network) or None)


def error(actual, expected):
    """Largest difference, in units of the largest entry."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return float((actual.double() - expected).abs().max() / expected.abs().max())


def worst(linear_map, expected):
    """The largest error over layers, which must come in the same number and order."""
    expected = list(expected.values()) if isinstance(expected, dict) else expected
    return max(error(actual, true) for actual, true in zip(linear_map.values(), expected, strict=True))


def same(actual, expected):
    assert list(actual) == list(expected)
    for name, pathway in expected.items():
        torch.testing.assert_close(actual[name], pathway, rtol=1e-5, atol=1e-6)


# Products of matrices


@every_mlp
def test_the_map_of_an_mlp_is_the_product_of_what_follows(factory, dtype):
    network = factory().to(dtype)
    linear_map = linear_substitution_map(network, samples().to(dtype))
    assert worst(linear_map, explicit(network)) < EXACT[dtype]
    assert all(pathway.dtype == dtype for pathway in linear_map.values())


def test_the_oracle_itself_is_the_product_of_two_matrices_and_a_factor():
    network = networks.bn_mlp(widths=(FEATURES, 5, 3, 2))
    network.bn2.running_var.fill_(4 - network.bn2.eps)
    first, second = explicit(network)
    _, middle, last = (weight.detach().double().numpy() for weight in networks.weights_of(network))
    np.testing.assert_allclose(second, last, rtol=1e-6)
    np.testing.assert_allclose(first, (last * network.bn2.weight.detach().double().numpy() / 2) @ middle, rtol=1e-6)


def ordinary(function, subject, field, args, kwargs):
    """An activation with its own derivative."""
    output = function(field.clone(), *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
    return output, output


@pytest.mark.parametrize("name", ["batch norm", "functions", "shared"])
def test_with_the_ordinary_derivative_the_map_would_be_another(monkeypatch, name):
    network = MLPS[name]()
    monkeypatch.setattr(tracer.activations, "straight_through", ordinary)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        linear_map = linear_substitution_map(network, samples())
    errors = [error(pathway, true) for pathway, true in zip(linear_map.values(), explicit(network), strict=True)]
    assert min(errors) > 0.1


# A network with skips and pooling


@pytest.mark.parametrize("inplace", [True, False], ids=["in place", "out of place"])
def test_the_map_of_a_residual_network_is_the_jacobian_of_one_without_activations(inplace, dtype):
    network = networks.residual_cnn(inplace).to(dtype)
    linear_map = linear_substitution_map(network, images().to(dtype))
    tails = reference.residual_tails(network)
    shapes = {name: (4, 8, 8) if name == "bn" else (4, 4, 4) for name in tails}
    expected = {name: reference.jacobian(tail, shapes[name], dtype).detach() for name, tail in tails.items()}
    assert list(linear_map) == list(expected)
    assert worst(linear_map, expected) < EXACT[dtype]


def test_in_place_and_out_of_place_twins_have_the_same_map():
    over, fresh = (linear_substitution_map(networks.residual_cnn(inplace), images()) for inplace in (True, False))
    same(over, fresh)
    assert over.affine_defect == pytest.approx(fresh.affine_defect, abs=1e-6)


def test_the_residual_oracle_would_notice_max_poolings_own_gradient(monkeypatch):
    monkeypatch.setattr(tracer.activations, "MAX_POOLS", {})
    network = networks.residual_cnn()
    expected = reference.jacobian(reference.residual_tails(network)["bn"], (4, 8, 8), torch.float32)
    with pytest.warns(UserWarning, match=r"In the layers \['bn'\]"):
        linear_map = linear_substitution_map(network, images())
    assert error(linear_map["bn"], expected.detach()) > 0.1


class Writing(nn.Module):
    """first, an activation on what `before` made of it, `after`, last."""

    def __init__(self, before, activation, after):
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.last = nn.Linear(8, CLASSES)
        self.before, self.activation, self.after = before, activation, after

    def forward(self, x):
        return self.last(self.after(self.activation(self.before(self.first(x)))))


BEFORE = {
    "as it is": lambda h: h,
    "a view": lambda h: h.view(-1, 2, 4).flatten(1),
    "a transposed view": lambda h: h.unflatten(1, (2, 4)).transpose(1, 2).transpose(1, 2).flatten(1),
    "written to": lambda h: h.add_(1),
}


def add_to_one_unit(h):
    h[:, 2] += 1
    return h


class OverwritingSwish(nn.Module):
    """An activation of the user's own that overwrites its input."""

    def forward(self, x):
        return x.mul_(torch.sigmoid(x))


WRITTEN = {
    "silu": F.silu,
    "relu_": F.relu_,
    "sigmoid": torch.sigmoid,
    "own": Swish(),
    "own in place": OverwritingSwish(),
}
AFTER = {"as it is": lambda h: h, "written to": lambda h: h.add_(1), "written to in part": add_to_one_unit}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
@pytest.mark.parametrize("activation", WRITTEN.values(), ids=WRITTEN)
def test_the_network_may_write_over_fields_and_outputs(before, activation, after):
    network = fill(Writing(before, activation, after))
    linear_map = linear_substitution_map(network, samples())
    assert worst(linear_map, [network.last.weight.detach()]) < 1e-5


@pytest.mark.parametrize("activation", [F.silu, nn.SiLU(), Swish()], ids=["function", "module", "own"])
def test_a_field_that_is_also_used_beside_its_activation_is_wired_twice(activation):
    class Beside(Writing):
        def forward(self, x):
            h = self.first(x)
            return self.last(self.activation(h) + h)

    network = fill(Beside(None, activation, None))
    assert worst(linear_substitution_map(network, samples()), [2 * network.last.weight.detach()]) < 1e-5


def test_the_network_may_write_into_a_tensor_that_no_layer_made():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.start = nn.Parameter(torch.randn(8))
            self.fc = nn.Linear(FEATURES, 3)
            self.last = nn.Linear(8, CLASSES)

        def forward(self, x):
            h = self.start.expand(len(x), 8).clone()
            h[:, 2:5] += torch.tanh(self.fc(x))
            return self.last(h)

    network = fill(Placed())
    assert worst(linear_substitution_map(network, samples()), [network.last.weight[:, 2:5].detach()]) < 1e-5


def test_an_activation_may_write_over_a_part_of_a_tensor():
    def half(h):
        h[:, :4].relu_()
        return h

    network = fill(Writing(lambda h: h, half, lambda h: h))
    assert worst(linear_substitution_map(network, samples()), [network.last.weight[:, :4].detach()]) < 1e-5


@pytest.mark.parametrize(
    "pool", [nn.MaxPool1d(2), nn.AdaptiveMaxPool1d(4), nn.MaxPool1d(3, 2, 1)], ids=["plain", "adaptive", "padded"]
)
def test_an_activation_may_write_over_the_output_of_a_max_pooling(pool):
    network = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 1), pool, nn.ReLU(inplace=True), nn.Flatten())
    network.append(nn.LazyLinear(CLASSES))
    network(samples())
    linear_map = linear_substitution_map(fill(network), samples())
    assert worst(linear_map, [network[-1].weight.detach()]) < 1e-5


# What is asked of the layers chosen


def own_map(network, inputs, **options):
    with isolated_network(network) as isolated:
        survey = discover(isolated, inputs, None)
        return substitute(isolated, inputs, choose(isolated, survey, None), **options)


class Beside(Writing):
    """Uses its local field beside its activation, and the activation of another layer not at all."""

    def __init__(self):
        super().__init__(None, torch.relu, None)
        self.idle = nn.Linear(FEATURES, 3)

    def forward(self, x):
        h, idle = self.first(x), torch.relu(self.idle(x))
        return self.last(self.activation(h) + 2 * h) + 0 * idle.detach().sum()


def test_the_part_of_a_map_that_goes_through_the_activation_is_told_apart():
    network = fill(Beside())
    found = own_map(network, samples(), through=True)
    assert list(found.through) == ["first"]
    torch.testing.assert_close(found.through["first"], network.last.weight.detach())
    torch.testing.assert_close(found["first"], 3 * network.last.weight.detach())
    assert torch.equal(found["idle"], torch.zeros(CLASSES, 3))
    assert found.unreached == {"idle": "detached"}
    assert own_map(network, samples()).through == {}


@pytest.mark.parametrize("batch_size", [None, 1, 6])
def test_the_part_through_the_activation_is_a_mean_over_samples_too(batch_size):
    # With one copy of each sample a backward pass gives one class; samples in several graphs are joined.
    network, inputs = fill(Gated(offset=1.0)).double(), samples(20).double()
    found = own_map(network, inputs, through=True, batch_size=batch_size)
    alone = [own_map(network, x[None], through=True) for x in inputs]
    assert list(found.through) == ["gate"]
    for part in ("pathways", "through"):
        expected = torch.stack([getattr(one, part)["gate"] for one in alone]).mean(0)
        torch.testing.assert_close(getattr(found, part)["gate"], expected)
    defect = found.affine_defect["gate"]
    assert defect == pytest.approx(own_map(network, inputs).affine_defect["gate"], rel=1e-9)


def test_rows_and_columns_of_a_map_may_be_chosen():
    network, classes = networks.bn_mlp(), torch.tensor([3, 0])
    found = own_map(network, samples(), classes=classes, units=lambda width: torch.arange(0, width, 2))
    for name, pathway in linear_substitution_map(network, samples()).items():
        torch.testing.assert_close(found[name], pathway[classes][:, ::2])


# How the model is called


@pytest.mark.parametrize(("factory", "inputs"), ZOO.values(), ids=ZOO)
def test_a_network_in_training_has_the_map_of_one_in_eval_mode_and_keeps_its_flags(factory, inputs):
    network, twin = factory(), factory().eval()
    network.train()
    for module in list(network.modules())[2::3]:
        module.training = False
    flags = [module.training for module in network.modules()]
    same(linear_substitution_map(network, inputs()), linear_substitution_map(twin, inputs()))
    assert [module.training for module in network.modules()] == flags


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", [lambda n: n, networks.frozen], ids=["trainable", "frozen"])
@pytest.mark.parametrize(("factory", "inputs"), ZOO.values(), ids=ZOO)
def test_frozen_parameters_and_callers_without_gradients_change_nothing(factory, inputs, change, caller):
    expected = linear_substitution_map(factory(), inputs())
    network = change(factory())
    with caller():
        linear_map = linear_substitution_map(network, inputs() * 1)
    same(linear_map, expected)
    assert not any(pathway.requires_grad or pathway.is_inference() for pathway in linear_map.values())


@pytest.mark.parametrize("change", [lambda n: n, networks.frozen], ids=["trainable", "frozen"])
@pytest.mark.parametrize("activation", [torch.relu, torch.relu_, Swish()], ids=["relu", "relu_", "own"])
def test_whole_numbers_as_inputs_have_a_map(change, activation):
    network = change(fill(Tokens(activation)))
    ids = torch.arange(60).reshape(20, 3) % 10
    assert worst(linear_substitution_map(network, ids), [network.out.weight.detach()]) < 1e-5


@pytest.mark.parametrize("change", [lambda n: n, networks.frozen], ids=["trainable", "frozen"])
def test_an_activation_may_overwrite_a_field_without_gradient(change):
    def statement(h):
        torch.relu_(h)
        return h

    network = change(fill(Tokens(statement)))
    ids = torch.arange(60).reshape(20, 3) % 10
    assert worst(linear_substitution_map(network, ids), [network.out.weight.detach()]) < 1e-5


def test_outputs_without_a_class_axis_are_one_logit():
    network = fill(Ending(lambda z: z[:, 0], classes=1))
    assert worst(linear_substitution_map(network, samples()), [network.last.weight.detach()]) < 1e-5


def test_under_mixed_precision_the_map_is_that_of_the_rounded_weights():
    network = networks.one_hidden(nn.Softplus())
    with torch.autocast("cpu", torch.bfloat16):
        linear_map = linear_substitution_map(network, samples())
    # bfloat16 has 8 bits: a relative rounding error of at most 2^-8.
    assert worst(linear_map, [network[2].weight.detach()]) < 2**-8


def test_a_layer_that_the_logits_do_not_depend_on_has_a_map_of_zeros():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, 3)

        def forward(self, x):
            torch.tanh(self.idle(x))
            return self.used(x)

    linear_map = linear_substitution_map(fill(Idle()), samples())
    assert torch.equal(linear_map["idle"], torch.zeros(CLASSES, 3))
    assert linear_map.affine_defect == {"idle": 0.0}


def test_a_part_that_runs_without_gradients_is_wired_to_nothing():
    class Backbone(Writing):
        def forward(self, x):
            with torch.no_grad():
                h = self.activation(self.first(x))
            return torch.tanh(self.last(h)) * 2

    network = fill(Backbone(None, nn.ReLU(inplace=True), None))
    linear_map = linear_substitution_map(network, samples())
    assert list(linear_map) == list(local_fields(network, samples())) == ["first", "last"]
    assert torch.equal(linear_map["first"], torch.zeros(CLASSES, 8))
    torch.testing.assert_close(linear_map["last"], 2 * torch.eye(CLASSES))
    assert linear_map.affine_defect == {"first": 0.0, "last": 0.0}


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # of torch's newer releases
def test_the_map_goes_through_a_scripted_part_which_a_warning_names():
    network = networks.functional_mlp()
    network.fc[1] = torch.jit.script(nn.Sequential(network.fc[1], nn.Identity()))
    with pytest.warns(UserWarning, match=r"'fc\.1'"):
        linear_map = linear_substitution_map(network, samples())
    assert worst(linear_map, explicit(networks.functional_mlp())) < 1e-5


# Checkpointed activations

# torch warns of this in every forward without gradients that uses reentrant checkpoints.
without_gradients = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")


@without_gradients
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_checkpointing_changes_nothing(use_reentrant):
    plain, network = fill(CheckpointedMLP(None)), fill(CheckpointedMLP(use_reentrant))
    for change in (lambda n: n, networks.frozen):
        same(linear_substitution_map(change(network), samples()), linear_substitution_map(plain, samples()))
    same(local_fields(network, samples()), local_fields(plain, samples()))


@without_gradients
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_if_it_is_not_turned_off_checkpointing_fails_or_gives_another_map(monkeypatch, use_reentrant):
    expected = linear_substitution_map(fill(CheckpointedMLP(None)), samples())
    monkeypatch.setattr(substitution, "without_checkpointing", contextlib.nullcontext)
    try:
        linear_map = linear_substitution_map(fill(CheckpointedMLP(use_reentrant)), samples())
    except RuntimeError:
        return
    assert worst(linear_map, dict(expected)) > 0.01


@without_gradients
def test_checkpointing_works_as_before_afterwards_also_after_an_error():
    module = torch.utils.checkpoint
    before, apply = dict(vars(module)), module.CheckpointFunction.apply
    own = "apply" in vars(module.CheckpointFunction)
    network = fill(CheckpointedMLP(True))
    network.last = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="shapes"):
        linear_substitution_map(network, samples())
    linear_substitution_map(fill(CheckpointedMLP(False)), samples())
    assert (vars(module), module.CheckpointFunction.apply) == (before, apply)
    assert ("apply" in vars(module.CheckpointFunction)) == own


# Averaging


@pytest.mark.parametrize(
    ("number", "chosen"),
    [(200, [i * 200 // 64 for i in range(64)]), (64, range(64)), (10, range(10))],
    ids=["many", "as many", "few"],
)
def test_the_map_is_the_mean_over_64_samples_spread_over_the_inputs(number, chosen):
    network, inputs = fill(Gated(offset=1.0)), samples(number)
    linear_map = linear_substitution_map(network, inputs)
    alone = [linear_substitution_map(network, inputs[i : i + 1])["gate"] for i in chosen]
    torch.testing.assert_close(linear_map["gate"], torch.stack(alone).mean(0), rtol=1e-5, atol=1e-6)


def test_the_affine_defect_is_the_spread_of_the_jacobians_over_samples():
    network, inputs = fill(Gated(offset=1.0)).double(), samples(64).double()
    linear_map = linear_substitution_map(network, inputs)
    jacobians = torch.stack([linear_substitution_map(network, x[None])["gate"] for x in inputs])
    spread = (jacobians - jacobians.mean(0)).square().sum() / 63
    expected = (spread / jacobians.square().sum((1, 2)).mean()).sqrt()
    assert linear_map.affine_defect["gate"] == pytest.approx(float(expected), rel=1e-9)


# Affine or not


@pytest.mark.parametrize("name", ["batch-norm MLP", "functional MLP", "in-place residual CNN", "own activation"])
def test_the_affine_defect_vanishes_where_what_follows_is_affine(name):
    factory, inputs = ZOO[name]
    assert max(linear_substitution_map(factory(), inputs()).affine_defect.values()) < 1e-6


@pytest.mark.parametrize(
    ("factory", "name"),
    [(networks.layer_norm_mlp, "0"), (lambda: fill(Gated(offset=1.0)), "gate")],
    ids=["norm", "gate"],
)
def test_the_affine_defect_shows_a_norm_or_a_gate(factory, name):
    defect = linear_substitution_map(factory(), samples()).affine_defect[name]
    assert 0.1 < defect < 0.9


def test_the_affine_defect_of_known_sums():
    # Σ‖J − J̄‖²/(m − 1) = 1 of a mean ‖J‖² of 4.
    assert Spread(torch.zeros(2), 4).defect(3.0, 16.0) == 0.5
    # Jacobians that cancel in the mean differ by m/(m − 1) times their mean square: that counts as 1.
    assert Spread(torch.zeros(2), 4).defect(8.0, 8.0) == Spread(torch.zeros(2), 2).defect(8.0, 8.0) == 1.0
    assert Spread(torch.zeros(2), 4).defect(0.0, 0.0) == 0.0
    for samples_, apart, size in ((1, 0.0, 4.0), (4, np.inf, 4.0), (4, 1.0, np.nan)):
        assert np.isnan(Spread(torch.zeros(2), samples_).defect(apart, size))


@pytest.mark.parametrize(("apart", "settled"), [(0.0074, True), (0.0076, False)])
def test_a_mean_jacobian_is_known_when_its_standard_error_is_a_fortieth_of_it(apart, settled):
    # Of four samples: defect/√4 = √(apart/3) / 2 = 0.025 at apart = 0.0075.
    assert Spread(torch.tensor([apart, 4.0]), 4).settled is settled
    assert Spread(torch.tensor([apart, 4.0]), 1).settled


def test_jacobians_that_cancel_have_the_defect_1_and_a_map_of_0():
    """The mean over samples, not over units: a gate whose sign is each sample's own."""

    class Signed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)) * x[:, :1].sign())

    x = samples(4)
    x[:, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    with pytest.warns(UserWarning, match="affine_defect"):
        linear_map = linear_substitution_map(fill(Signed()), x)
    assert linear_map.affine_defect["first"] == 1.0
    assert linear_map["first"].abs().max() < 1e-6


def test_a_single_sample_has_no_affine_defect():
    linear_map = linear_substitution_map(networks.bn_mlp(), samples(1))
    assert all(np.isnan(defect) for defect in linear_map.affine_defect.values())
    assert worst(linear_map, explicit(networks.bn_mlp())) < 1e-5


def test_a_map_that_depends_on_the_sample_almost_entirely_warns():
    network = fill(Gated(offset=0.0))
    with pytest.warns(UserWarning, match="affine_defect") as caught:
        linear_map = linear_substitution_map(network, samples())
    assert linear_map.affine_defect["gate"] > 0.9
    assert [str(warning.message) for warning in caught] == [
        "In the layers ['gate'] the linear substitution map depends on the sample almost entirely (affine_defect above "
        "0.9): the network after them is far from affine, and the signs of their pathways are noise. Leave them out "
        "with `layers=`."
    ]
    assert caught[0].filename == __file__


# The end of the network


@pytest.mark.parametrize("classes", [1, CLASSES])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_what_makes_probabilities_of_the_logits_is_dropped(end, classes):
    network = fill(Ending(end, classes))
    linear_map = linear_substitution_map(network, samples())
    assert list(linear_map) == ["first"]
    assert worst(linear_map, [network.last.weight.detach()]) < 1e-5
    assert list(local_fields(network, samples())) == ["first"]
    assert linear_map.affine_defect["first"] < 1e-6


def test_a_sigmoid_inside_is_an_activation_like_any_other():
    network = networks.one_hidden(nn.Sigmoid())
    assert list(linear_substitution_map(network, samples())) == ["0"]


# The mapping, and errors


def test_the_map_is_a_mapping_of_pathways_with_one_row_per_class():
    linear_map = linear_substitution_map(networks.bn_mlp(), samples())
    assert len(linear_map) == 3
    assert [tuple(pathway.shape) for pathway in linear_map.values()] == [(CLASSES, 9), (CLASSES, 8), (CLASSES, 7)]
    assert "bn1" in linear_map
    assert list(linear_map.affine_defect) == list(linear_map)


def test_the_map_is_not_centred():
    linear_map = linear_substitution_map(networks.bn_mlp(), samples())
    assert all(pathway.sum(0).abs().max() > 0.01 for pathway in linear_map.values())


@pytest.mark.parametrize(
    ("end", "kind", "message"),
    [
        (
            lambda z: {"scores": z},
            TypeError,
            "The model's output must be a tensor [samples, classes], got dict. Wrap the model in a module "
            "that picks the logits from it.",
        ),
        (
            lambda z: z[:, :, None],
            ValueError,
            "The model's output must have shape [samples, classes] = [2, classes], got shape [2, 4, 1]. Wrap "
            "the model in a module that reduces it to one row of logits per sample.",
        ),
        (
            lambda z: z.mean(0),
            ValueError,
            "The model's output must have shape [samples, classes] = [2, classes], got shape [4]. Wrap "
            "the model in a module that reduces it to one row of logits per sample.",
        ),
    ],
    ids=["tuple", "three axes", "no samples"],
)
def test_an_output_without_one_row_of_logits_per_sample_is_an_error(end, kind, message):
    with pytest.raises(kind) as caught:
        linear_substitution_map(fill(Ending(end)), samples())
    assert str(caught.value) == message
