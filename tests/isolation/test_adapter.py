"""A module called as people call it, or by a function of the user's: it shares the module's weights."""

import contextlib
import dataclasses
import warnings

import pytest
import torch
from torch import nn

import networks
from netdyn import diagnose
from netdyn.engine.config import MEASURES
from netdyn.functional import local_fields
from netdyn.isolation.adapter import Adapter, call, isolated_network, isolated_task, opened
from networks import fill, samples


def picked(module, batch):
    return module(batch["x"]) * 2


def test_without_a_function_the_module_itself_is_called():
    network = networks.bn_mlp().eval()
    assert torch.equal(Adapter(network)(samples()), network(samples()))


def test_the_function_gets_the_module_and_the_inputs():
    network = networks.bn_mlp().eval()
    assert torch.equal(Adapter(network, picked)({"x": samples()}), 2 * network(samples()))


def test_names_parameters_and_buffers_are_the_modules_own():
    network = networks.bn_mlp().eval()
    adapted = Adapter(network, picked)
    assert dict(adapted.named_parameters()) == dict(network.named_parameters())
    assert dict(adapted.named_buffers()) == dict(network.named_buffers())
    assert list(adapted.state_dict()) == list(network.state_dict())
    assert [name for name, _ in adapted.named_modules()] == [name for name, _ in network.named_modules()]
    assert not adapted.training
    fields, twins = local_fields(adapted, {"x": samples()}), local_fields(network, samples())
    assert list(fields) == list(twins)
    assert all(torch.equal(fields[name], twins[name]) for name in twins)


def test_parameters_that_are_replaced_in_the_adapter_are_replaced_in_the_module():
    network = networks.fill(nn.Linear(6, 4))
    zeros = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    adapted = Adapter(network, lambda module, x: module(x))
    assert not torch.func.functional_call(adapted, zeros, (samples(),)).any()
    assert adapted(samples()).any()


def test_a_context_is_entered_for_each_call():
    entered = []

    @contextlib.contextmanager
    def context():
        entered.append("in")
        yield
        entered.append("out")

    adapted = Adapter(networks.bn_mlp().eval(), context=context)
    adapted(samples())
    adapted(samples())
    assert entered == ["in", "out"] * 2


# How a module is called -----------------------------------------------------------------------------------------------


A, B = torch.arange(6.0).reshape(3, 2), torch.arange(3)


class Takes(nn.Module):
    """Its forward, given as a function of the arguments, notes with what it was called."""

    def __init__(self, forward):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.forward = forward


class PassesOn(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.loss = inner, nn.MSELoss()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def one(batch):
    return "one", batch


def two(first, second):
    return "two", first, second


def optional(ids=None, mask=None, labels=None, **more):
    return "optional", ids, mask, labels, more


def with_option(pair, flat=False, scale=1.0):
    return "option", pair, flat


def by_name(*, image, mask=None):
    return "by name", image, mask


def anything(*args, **kwargs):
    return "anything", args, kwargs


CALLS = {
    "tensor": (one, A, ("one", A)),
    "tensor, two arguments": (optional, A, ("optional", A, None, None, {})),
    "mapping of names": (two, {"second": B, "first": A}, ("two", A, B)),
    "mapping of some names": (optional, {"ids": A, "mask": B}, ("optional", A, B, None, {})),
    "mapping of other names": (one, {"a": A, "b": B}, ("one", {"a": A, "b": B})),
    "mapping of too few names": (two, {"first": A}, "error"),
    "mapping by numbers": (anything, {0: A}, ("anything", ({0: A},), {})),
    "mapping by name alone": (by_name, {"image": A}, ("by name", A, None)),
    "mapping for anything": (anything, {"a": A}, ("anything", (), {"a": A})),
    "sequence": (two, [A, B], ("two", A, B)),
    "sequence of some": (optional, (A, B), ("optional", A, B, None, {})),
    "sequence for one argument": (one, [A, B], ("one", [A, B])),
    "sequence for one argument with options": (with_option, (A, B), ("option", (A, B), False)),
    "sequence of one": (one, [A], ("one", [A])),
    "sequence of too many": (lambda ids=None, mask=None: ("two", ids, mask), [A, B, A], ("two", [A, B, A], None)),
    "sequence for anything": (anything, [A, B], ("anything", (A, B), {})),
    "nested sequence": (two, [[A, B], A], ("two", [A, B], A)),
}


def equal(found, expected):
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        pairs = zip(found, expected, strict=False)
        return type(found) is type(expected) and len(found) == len(expected) and all(equal(a, b) for a, b in pairs)
    return found == expected


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in a wrapper that takes anything"])
@pytest.mark.parametrize(("forward", "inputs", "expected"), CALLS.values(), ids=CALLS)
def test_a_module_is_called_as_its_forward_takes_the_inputs(forward, inputs, expected, wrapped):
    module = PassesOn(Takes(forward)) if wrapped else Takes(forward)
    if expected == "error":
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            call(module, inputs)
    else:
        assert equal(call(module, inputs), expected)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, first, second: torch.Tensor | None = None):
        out = self.inner(first)
        if second is not None:
            out = out + second
        return out


WRAPPERS = {
    "compiled": torch.compile,
    "data parallel": lambda module: nn.DataParallel(module, device_ids=[]),
    "scripted": torch.jit.script,
    "adapted": Adapter,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_module_is_called_as_the_module_itself(wrap):
    module = networks.fill(Sum())
    expected = module(A, B[:, None])
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        wrapped = wrap(module)
        assert torch.equal(call(wrapped, {"second": B[:, None], "first": A}), expected)
        assert torch.equal(call(wrapped, (A, B[:, None])), expected)


@dataclasses.dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


OUTPUTS = {
    "tensor": (A, A),
    "object": (Output(B, A), A),
    "mapping": ({"loss": B, "logits": A}, A),
    "tuple": ((A, B), A),
    "tuple of one": ((A,), A),
}
UNOPENED = [[A, B], {"out": A}, ((A, B), A), (), None, {"logits": None}, Output(B, None)]


@pytest.mark.parametrize(("output", "expected"), OUTPUTS.values(), ids=OUTPUTS)
def test_the_logits_in_an_output_are_found(output, expected):
    assert opened(output) is expected


@pytest.mark.parametrize("output", UNOPENED, ids=range(len(UNOPENED)))
def test_any_other_output_stays_as_it_is(output):
    assert opened(output) is output


def test_the_modules_of_an_adapter_are_those_that_run():
    network = networks.bn_mlp().eval()
    assert list(Adapter(network).modules()) == list(network.modules())


class Guarded(nn.Module):
    """A network that does not follow the autocast around it, and one that does."""

    def __init__(self, follows):
        super().__init__()
        self.net, self.follows = fill(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))), follows

    def forward(self, x):
        with torch.autocast("cpu", enabled=self.follows and torch.is_autocast_enabled("cpu"), dtype=torch.bfloat16):
            return self.net(x)


@pytest.mark.parametrize("follows", [False, True])
def test_autocast_around_a_measurement_is_for_the_network_alone(follows):
    network, x, y = Guarded(follows), samples(80), torch.arange(80) % 3
    options = {"val_inputs": x + 0.1, "val_target": y, "measure": list(MEASURES)}
    plain = diagnose(network, x, y, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = diagnose(network, x, y, **options)
        assert torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        with isolated_network(network) as own:
            assert own(x).dtype == (torch.bfloat16 if follows else torch.float32)
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert (found == plain) != follows
    assert found.coverage.distance == plain.coverage.distance


def test_autocast_reaches_a_part_that_has_a_context_of_its_own():
    network, seen = fill(nn.Sequential(nn.Linear(6, 3))), []

    @contextlib.contextmanager
    def own():
        seen.append(torch.is_autocast_enabled("cpu"))
        yield

    options = {"part": lambda module: Adapter(module, context=own)}
    with torch.autocast("cpu", dtype=torch.bfloat16), isolated_task(network, **options) as (adapted,):
        assert adapted(samples()).dtype == torch.bfloat16
    assert seen == [True]
