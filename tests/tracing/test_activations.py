"""Straight-through activations keep their values and pass the gradient; max-pooling shares it over its window."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from netdyn.tracing.activations import ACTIVATIONS, MAX_POOLS, SQUASHES, overwrites, shared_pool, straight_through

# The same function is in several namespaces, as different objects.
NAMESPACES = {
    "relu": [F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_],
    "tanh": [F.tanh, torch.tanh, torch.tanh_, torch.Tensor.tanh, torch.Tensor.tanh_],
    "sigmoid": [F.sigmoid, torch.sigmoid, torch.sigmoid_, torch.Tensor.sigmoid_, torch.special.expit],
    "leaky_relu": [F.leaky_relu, F.leaky_relu_],
    "elu": [F.elu, F.elu_],
    "gelu": [F.gelu],
    "silu": [F.silu],
    "prelu": [F.prelu, torch.prelu, torch.Tensor.prelu],
    "softplus": [F.softplus],
    "logsigmoid": [F.logsigmoid],
}
NO_ACTIVATIONS = [F.linear, F.dropout, F.softmax, F.layer_norm, F.max_pool2d, torch.exp, torch.clamp, torch.sum, F.glu]

OVERWRITING = [
    (F.relu_, (None,), {}, True),
    (torch.Tensor.relu_, (None,), {}, True),
    (F.relu, (None, True), {}, True),
    (F.relu, (None,), {"inplace": True}, True),
    (F.relu, (None, False), {}, False),
    (F.relu, (None,), {}, False),
    (F.leaky_relu, (None, 0.1, True), {}, True),
    (F.leaky_relu, (None, 0.1), {}, False),
    (F.hardtanh, (None, -1.0, 1.0, True), {}, True),
    (F.silu, (None,), {"inplace": True}, True),
    (torch.tanh, (None,), {}, False),
    (F.gelu, (None,), {"approximate": "tanh"}, False),
]

POOLS = {
    "1d": (F.max_pool1d, (7,), {"kernel_size": 2}),
    "2d": (F.max_pool2d, (6, 5), {"kernel_size": 2}),
    "3d": (F.max_pool3d, (4, 4, 3), {"kernel_size": 2}),
    "overlapping": (F.max_pool2d, (7, 7), {"kernel_size": 3, "stride": 2}),
    "padded": (F.max_pool2d, (7, 6), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "oblong": (F.max_pool2d, (7, 6), {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)}),
    "ceiling": (F.max_pool2d, (6, 8), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    "padded ceiling": (F.max_pool1d, (8,), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "with indices": (F.max_pool2d, (6, 6), {"kernel_size": 2, "return_indices": True}),
    "torch's own": (torch.max_pool2d, (6, 6), {"kernel_size": 2}),
}
ADAPTIVE = {
    "1d": (F.adaptive_max_pool1d, (7,), (3,)),
    "2d": (F.adaptive_max_pool2d, (7, 5), (3, 2)),
    "3d": (F.adaptive_max_pool3d, (4, 5, 3), (2, 3, 1)),
    "whole": (F.adaptive_max_pool2d, (4, 4), (1, 1)),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shared(shape, weights, windows):
    """Every output's weight divided among the cells of its window: the gradient of an average over windows."""
    gradient = torch.zeros(shape, dtype=torch.float64)
    for place in itertools.product(*map(range, weights.shape[2:])):
        cells = list(itertools.product(*(windows[axis](i) for axis, i in enumerate(place))))
        for cell in cells:
            gradient[(slice(None), slice(None), *cell)] += weights[(slice(None), slice(None), *place)] / len(cells)
    return gradient


def window(size, kernel_size, stride, padding):
    """Cells of the i-th window along one axis, those in the padding left out."""
    return lambda i: [j for j in range(i * stride - padding, i * stride - padding + kernel_size) if 0 <= j < size]


def adaptive_window(size, outputs):
    return lambda i: list(range(math.floor(i * size / outputs), math.ceil((i + 1) * size / outputs)))


def each_axis(value, axes):
    return value if isinstance(value, tuple) else (value,) * axes


def pool_gradient(function, field, args=(), **options):
    """Output and gradient of a weighted sum of the outputs, and the weights."""
    field = field.clone().requires_grad_()
    result = shared_pool(function, (field, *args), options)
    output = result[0] if isinstance(result, tuple) else result
    weights = draw(*output.shape, seed=1)
    return result, torch.autograd.grad((output * weights).sum(), field)[0], weights


# Which functions


@pytest.mark.parametrize(
    "function",
    [f for functions in NAMESPACES.values() for f in functions],
    ids=lambda f: repr(f).split(" at 0x")[0].strip("<>"),
)
def test_an_activation_is_known_in_every_namespace(function):
    assert function in ACTIVATIONS


@pytest.mark.parametrize("function", NO_ACTIVATIONS, ids=lambda f: f.__name__)
def test_what_mixes_units_or_is_arithmetic_is_no_activation(function):
    assert function not in ACTIVATIONS


@pytest.mark.parametrize("function", [torch.sigmoid, F.softmax, torch.softmax, torch.log_softmax, F.log_softmax])
def test_what_turns_logits_into_probabilities_is_known(function):
    assert function in SQUASHES


@pytest.mark.parametrize(("function", "args", "kwargs", "expected"), OVERWRITING)
def test_a_call_that_overwrites_its_input_is_recognised(function, args, kwargs, expected):
    assert overwrites(function, args, kwargs) is expected


# Straight through


@pytest.mark.parametrize(
    ("function", "rest", "options"),
    [
        (F.relu, (), {}),
        (F.leaky_relu, (0.3,), {}),
        (F.hardtanh, (), {"min_val": -0.1, "max_val": 0.2}),
        (F.gelu, (), {"approximate": "tanh"}),
        (F.prelu, (torch.tensor([0.2], dtype=torch.float64),), {}),
        (torch.sigmoid, (), {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_value_is_the_activations_and_the_gradient_the_identity(function, rest, options):
    subject, weights = draw(4, 3), draw(4, 3, seed=1)
    field = subject.clone().requires_grad_()
    output, _ = straight_through(function, subject, field, (subject, *rest), options)
    torch.testing.assert_close(output, function(subject, *rest, **options), rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad((output * weights).sum(), field)[0], weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("function", "options"), [(torch.relu_, {}), (F.relu, {"inplace": True})], ids=["_", "inplace"]
)
@pytest.mark.parametrize("part", [slice(None), slice(1, 3)], ids=["whole", "part"])
def test_an_activation_in_place_changes_its_input_and_the_tensor_that_it_is_a_view_of(function, options, part):
    holder, weights = draw(4, 3), draw(4, 3, seed=1)
    expected = holder.clone()
    expected[:, part] = expected[:, part].relu()
    subject = holder[:, part]
    field = subject.clone().requires_grad_()
    output, _ = straight_through(function, subject, field, (subject,), options)
    assert output is subject
    torch.testing.assert_close(holder.detach(), expected, rtol=0, atol=0)
    gradient = torch.autograd.grad((holder * weights).sum(), field)[0]
    torch.testing.assert_close(gradient, weights[:, part], rtol=0, atol=0)


def test_the_copy_of_the_field_is_not_written_to():
    subject = draw(4, 3)
    field = subject.clone().requires_grad_()
    straight_through(torch.relu_, subject, field, (subject,), {})
    torch.testing.assert_close(field.detach(), draw(4, 3), rtol=0, atol=0)


def test_an_output_may_be_written_over():
    subject = draw(4, 3)
    field = subject.clone().requires_grad_()
    output, _ = straight_through(torch.relu, subject, field, (subject,), {})
    output[:, 0].add_(1)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), field)[0], torch.ones_like(subject), rtol=0, atol=0)


def test_an_input_given_by_name_is_not_given_twice():
    subject = draw(4, 3)
    field = subject.clone().requires_grad_()
    output, _ = straight_through(torch.relu, subject, field, (), {"input": subject})
    torch.testing.assert_close(output, subject.relu(), rtol=0, atol=0)


# Pooling


@pytest.mark.parametrize(("function", "size", "options"), POOLS.values(), ids=POOLS)
def test_max_pooling_keeps_its_values_and_shares_its_gradient(function, size, options):
    field, axes = draw(2, 3, *size), len(size)
    result, gradient, weights = pool_gradient(function, field, **options)
    true = function(field, **options)
    for actual, expected in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, true)), strict=True):
        torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=0)
    kernel = each_axis(options["kernel_size"], axes)
    stride = each_axis(options.get("stride", kernel), axes)
    padding = each_axis(options.get("padding", 0), axes)
    windows = [window(*axis) for axis in zip(size, kernel, stride, padding, strict=True)]
    torch.testing.assert_close(gradient, shared(field.shape, weights, windows), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("function", "size", "outputs"), ADAPTIVE.values(), ids=ADAPTIVE)
def test_adaptive_max_pooling_shares_its_gradient(function, size, outputs):
    field = draw(2, 3, *size)
    result, gradient, weights = pool_gradient(function, field, (outputs,))
    torch.testing.assert_close(result.detach(), function(field, outputs), rtol=0, atol=0)
    windows = [adaptive_window(*axis) for axis in zip(size, outputs, strict=True)]
    torch.testing.assert_close(gradient, shared(field.shape, weights, windows), rtol=0, atol=1e-14)


def test_arguments_of_a_pooling_may_be_given_by_place():
    field = draw(2, 3, 7, 6)
    _, named, _ = pool_gradient(F.max_pool2d, field, kernel_size=3, stride=2, padding=1, ceil_mode=True)
    _, placed, _ = pool_gradient(F.max_pool2d, field, (3, 2, 1, 1, True))
    torch.testing.assert_close(placed, named, rtol=0, atol=0)


def test_a_dilated_pooling_keeps_its_own_gradient():
    field = draw(2, 3, 7, 7)
    _, gradient, weights = pool_gradient(F.max_pool2d, field, kernel_size=2, dilation=2)
    leaf = field.clone().requires_grad_()
    true = torch.autograd.grad((F.max_pool2d(leaf, 2, dilation=2) * weights).sum(), leaf)[0]
    torch.testing.assert_close(gradient, true, rtol=0, atol=0)


class Spy(TorchFunctionMode):
    """Records the functions that are called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["MaxPool1d", "MaxPool2d", "MaxPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d"])
def test_the_pooling_modules_call_functions_that_are_known(kind):
    inputs = draw(2, 3, *(4,) * int(kind[-2]))
    with Spy() as spy:
        getattr(nn, kind)(2)(inputs)
    assert spy.seen[0] in MAX_POOLS


def test_an_ordinary_gradient_is_not_a_shared_one():
    field = draw(2, 3, 6, 5)
    leaf = field.clone().requires_grad_()
    _, gradient, weights = pool_gradient(F.max_pool2d, field, kernel_size=2)
    true = torch.autograd.grad((F.max_pool2d(leaf, 2) * weights).sum(), leaf)[0]
    assert not torch.allclose(gradient, true)
