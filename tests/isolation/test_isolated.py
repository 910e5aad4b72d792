"""A measured model and all generators are left as they were found, whatever its forward does and wherever it fails."""

import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
import pickle
import random
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn

import networks
from netdyn import functional
from netdyn.isolation.isolated import isolated, rng_restored
from netdyn.tracing.activations import REGISTERED
from networks import CLASSES, FEATURES, ZOO, fill, samples

GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def generator_state(generator):
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    if isinstance(generator, random.Random):
        return generator.getstate()
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return repr(bits.state if isinstance(generator, np.random.Generator) else bits.get_state(legacy=False))


def portrait(value, seen=None):
    """The whole state of a module, by identity and by content, as something that can be compared."""
    seen = {} if seen is None else seen
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if id(value) in seen:
        return "again", seen[id(value)]
    seen[id(value)] = len(seen)
    kind, identity = type(value).__name__, id(value)
    if isinstance(value, torch.Tensor):
        content = (tuple(value.shape), str(value.dtype), value.detach().clone().numpy().tobytes())
        graph = (value.requires_grad, value.grad_fn is None)
        return kind, identity, content, graph, portrait(value.grad if value.is_leaf else None, seen)
    if isinstance(value, nn.Module):
        return kind, identity, portrait(value.__dict__, seen)
    if isinstance(value, GENERATORS):
        return kind, identity, generator_state(value)
    if isinstance(value, np.ndarray):
        return kind, identity, value.shape, value.tobytes()
    if isinstance(value, Meter):
        return kind, identity, value.value
    if isinstance(value, MethodType):
        return kind, portrait(value.__self__, seen)
    if isinstance(value, FunctionType):
        return kind, identity, [portrait(cell.cell_contents, seen) for cell in value.__closure__ or ()]
    if isinstance(value, functools.partial):
        return kind, identity, portrait(value.args, seen)
    if isinstance(value, dict):
        return kind, identity, [(key, portrait(entry, seen)) for key, entry in value.items()]
    if isinstance(value, list | tuple | deque):
        return kind, identity, [portrait(entry, seen) for entry in value]
    if isinstance(value, set):
        return kind, identity, sorted(map(repr, value))
    return kind, identity


def global_generators():
    return torch.get_rng_state().tolist(), repr(np.random.get_state(legacy=False)), random.getstate()  # noqa: NPY002


def surroundings():
    """State of the whole process: generators, gradient modes, function modes."""
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.overrides._get_current_function_mode()
    return global_generators(), modes


def hooks(network):
    """How many hooks it has."""
    return sum(len(entry) for m in network.modules() for name, entry in vars(m).items() if name.endswith("hooks"))


def with_gradients(network, inputs):
    """The network in training, after a backward pass, with some modules in eval mode."""
    network.train()
    if any(parameter.requires_grad for parameter in network.parameters()):
        network(inputs).sum().backward()
    for module in list(network.modules())[1::3]:
        module.training = False
    return network


# A forward that changes the state of its module ---------------------------------------------------------------------


class Meter:
    """A plain object."""

    def __init__(self, value=0):
        self.value = value

    def __deepcopy__(self, memo):
        return Meter(self.value)

    def count(self):
        self.value += 1


class Unruly(nn.Module):
    """Changes its own state in every forward."""

    def __init__(self, prepare, misbehave, fails=False):
        super().__init__()
        self.fc = nn.Linear(FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, CLASSES)
        self.misbehave, self.fails = misbehave, fails
        fill(self)
        prepare(self)

    def forward(self, x):
        h = self.norm(self.fc(x))
        self.misbehave(self, h)
        if self.fails:
            raise ArithmeticError("out of luck")
        return self.out(torch.relu(h))


def attribute(**attributes):
    """Prepares by setting attributes, to copies, so that every test has its own."""
    return lambda m: [setattr(m, name, copy.deepcopy(value)) for name, value in attributes.items()]


def buffer(persistent=True):
    return lambda m: m.register_buffer("memory", torch.zeros(8), persistent=persistent)


def closure(m):
    meter = Meter()
    m.count = lambda: meter.count()


def hidden_module(m):
    m.teachers = [nn.BatchNorm1d(8)]


def metric(make):
    return lambda m: setattr(m, "metric", make())


def train_statistics(m, h):
    F.batch_norm(h, m.norm.running_mean, m.norm.running_var, training=True)


UNRULY = {
    "counts": (attribute(calls=0), lambda m, h: setattr(m, "calls", m.calls + 1)),
    "counts in a tensor": (attribute(calls=torch.tensor(0)), lambda m, h: m.calls.add_(1)),
    "new attribute": (attribute(), lambda m, h: setattr(m, "last", h)),
    "replaced attribute": (attribute(last=[1]), lambda m, h: setattr(m, "last", [2])),
    "deleted attribute": (attribute(last=1), lambda m, h: m.__dict__.pop("last", None)),
    "list": (attribute(cache=[1, 2]), lambda m, h: m.cache.append(h)),
    "emptied list": (attribute(cache=[1, 2]), lambda m, h: m.cache.clear()),
    "dict": (attribute(cache={"a": 1}), lambda m, h: m.cache.update(b=h)),
    "order of a dict": (attribute(cache=OrderedDict(a=1, b=2)), lambda m, h: m.cache.move_to_end("a")),
    "defaultdict": (attribute(cache=defaultdict(list)), lambda m, h: m.cache["new"].append(1)),
    "counter": (attribute(cache=Counter("aab")), lambda m, h: m.cache.update("ac")),
    "set": (attribute(cache={1, 2}), lambda m, h: m.cache.add(len(m.cache) + 1)),
    "deque": (attribute(cache=deque([1, 2], maxlen=2)), lambda m, h: m.cache.append(3)),
    "nested": (attribute(cache={"a": [({1},)]}), lambda m, h: m.cache["a"][0][0].add(2)),
    "tensor in a list": (attribute(cache=[torch.zeros(8)]), lambda m, h: m.cache[0].copy_(h[0].detach())),
    "array": (attribute(cache=np.zeros(8)), lambda m, h: m.cache.__iadd__(1)),
    "plain object": (attribute(meter=Meter()), lambda m, h: m.meter.count()),
    "plain objects in a list": (attribute(meters=[Meter(), Meter()]), lambda m, h: m.meters[1].count()),
    "bound method": (lambda m: setattr(m, "count", Meter().count), lambda m, h: m.count()),
    "closure": (closure, lambda m, h: m.count()),
    "partial": (lambda m: setattr(m, "count", functools.partial(Meter.count, Meter())), lambda m, h: m.count()),
    "buffer": (buffer(), lambda m, h: m.memory.add_(1)),
    "buffer that takes a gradient": (buffer(), lambda m, h: m.memory.mul_(0.9).add_(h.mean(0))),
    "buffer that is not saved": (buffer(persistent=False), lambda m, h: m.memory.add_(1)),
    "buffer through its data": (buffer(), lambda m, h: m.memory.data.add_(1)),
    "buffer with other data": (buffer(), lambda m, h: setattr(m.memory, "data", torch.ones(8))),
    "buffer with another shape": (buffer(), lambda m, h: m.memory.resize_(9).fill_(1)),
    "replaced buffer": (buffer(), lambda m, h: setattr(m, "memory", h.detach().mean(0))),
    "buffer set to None": (buffer(), lambda m, h: setattr(m, "memory", None)),
    "new buffer": (attribute(), lambda m, h: m.register_buffer("fresh", torch.ones(2))),
    "replaced parameter": (attribute(), lambda m, h: setattr(m.out, "weight", nn.Parameter(torch.ones(CLASSES, 8)))),
    "frozen parameter": (attribute(), lambda m, h: m.fc.requires_grad_(False)),
    "new module": (attribute(), lambda m, h: m.add_module("more", nn.Linear(2, 2))),
    "hook": (attribute(), lambda m, h: m.out.register_forward_hook(lambda *_: None)),
    "torch generator": (attribute(draw=torch.Generator()), lambda m, h: torch.rand(2, generator=m.draw)),
    "numpy generator": (attribute(draw=np.random.default_rng(0)), lambda m, h: m.draw.random(2)),
    "old numpy generator": (attribute(draw=np.random.RandomState(0)), lambda m, h: m.draw.rand(2)),
    "python generator": (attribute(draw=random.Random(0)), lambda m, h: m.draw.random()),
    "generator in a dict": (attribute(draw={"a": random.Random(0)}), lambda m, h: m.draw["a"].random()),
    "own training flag": (attribute(), lambda m, h: setattr(m, "training", not m.training)),
    "child's training flag": (attribute(), lambda m, h: setattr(m.norm, "training", not m.norm.training)),
    "every training flag": (attribute(), lambda m, h: m.train()),
    "batch statistics": (attribute(), train_statistics),
    "hidden module": (hidden_module, lambda m, h: m.teachers[0](h)),
    "metric": (metric(torchmetrics.MeanMetric), lambda m, h: m.metric.update(h.detach())),
    "metric called": (metric(torchmetrics.MeanMetric), lambda m, h: m.metric(h.detach())),
    "metric with lists": (metric(torchmetrics.CatMetric), lambda m, h: m.metric.update(h.detach()[:, 0])),
}

unruly = pytest.mark.parametrize(("prepare", "misbehave"), UNRULY.values(), ids=UNRULY)


@unruly
def test_the_portrait_notices_what_an_unruly_forward_does(prepare, misbehave):
    network = Unruly(prepare, misbehave)
    network.norm.eval()
    before = portrait(network)
    network(samples())
    assert portrait(network) != before


@unruly
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_what_a_forward_does_to_its_module_is_undone(prepare, misbehave, training):
    network = Unruly(prepare, misbehave).train(training)
    before = portrait(network)
    with isolated(network) as (own,):
        own(samples())
        own(samples())
        assert portrait(network) == before
    assert portrait(network) == before


class MeasuredInPlace(Unruly):
    """What ends with the object must not end with a copy."""

    def __del__(self):
        pass


@unruly
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_it_is_undone_where_the_network_cannot_be_copied(prepare, misbehave, training):
    network = MeasuredInPlace(prepare, misbehave).train(training)
    before = portrait(network)
    with isolated(network) as (own,):
        assert own is network
        network(samples())
        network(samples())
    assert portrait(network) == before


@unruly
@pytest.mark.parametrize("kind", [Unruly, MeasuredInPlace])
def test_it_is_undone_also_when_the_forward_fails(kind, prepare, misbehave):
    network = kind(prepare, misbehave, fails=True)
    before = portrait(network)
    with pytest.raises(ArithmeticError, match="out of luck"), isolated(network) as (own,):
        own(samples())
    assert portrait(network) == before


#: With the flags of training a batch normalisation mixes the samples.
mixing = pytest.mark.filterwarnings("ignore:(Not all of the network can be read|The network mixes):UserWarning")


@mixing
@unruly
def test_it_is_undone_also_where_gradients_are_needed(prepare, misbehave):
    network = Unruly(prepare, misbehave)
    before = portrait(network)
    functional.linear_substitution_map(network, samples())
    assert portrait(network) == before
    copy.deepcopy(network.requires_grad_(True))


@mixing
@unruly
def test_a_second_measurement_gives_the_same(prepare, misbehave):
    network = Unruly(prepare, misbehave)
    first, second = (functional.local_fields(network, samples()) for _ in range(2))
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_is_undone_also_after_an_interrupt():
    network = Unruly(*UNRULY["buffer"])
    before = portrait(network)
    with contextlib.suppress(KeyboardInterrupt), isolated(network) as (own,):
        own(samples())
        raise KeyboardInterrupt
    assert portrait(network) == before


def test_lazy_layers_still_run_afterwards():
    network = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(CLASSES))
    with warnings.catch_warnings(), contextlib.suppress(ValueError):
        warnings.simplefilter("ignore")
        functional.local_fields(network, samples())
    assert network(samples()).shape == (80, CLASSES)


# Modes --------------------------------------------------------------------------------------------------------------


class Merging(nn.Linear):
    """Changes its weight when it changes its mode, as adapters do."""

    calls: ClassVar = []  # on the class, which is not put back

    def train(self, mode=True):
        self.calls.append(mode)
        return super().train(mode)


def test_inside_everything_is_in_eval_mode_and_afterwards_as_it_was():
    network = networks.frozen_bn(networks.bn_mlp())
    flags = [module.training for module in network.modules()]
    assert len(set(flags)) == 2
    with isolated(network) as (own,):
        assert not any(module.training for module in own.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in network.modules()] == flags
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("training", [True, False])
def test_an_overridden_train_is_not_called(training):
    network = fill(nn.Sequential(Merging(FEATURES, 8), nn.ReLU(), Merging(8, CLASSES))).train(training)
    network[2].training = not training
    Merging.calls.clear()
    functional.local_fields(network, samples())
    functional.linear_substitution_map(network, samples())
    assert Merging.calls == []
    assert [network[i].training for i in (0, 2)] == [training, not training]


def test_a_module_under_several_names_keeps_its_mode():
    shared = nn.BatchNorm1d(FEATURES)
    network = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)}).train()
    shared.eval()
    with isolated(network):
        pass
    assert not shared.training
    assert network.training
    assert network["b"].training


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_callers_gradient_mode_comes_back(mode):
    network = networks.bn_mlp()
    with mode():
        outside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with isolated(network):
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (False, False)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == outside


def test_a_cache_built_while_measuring_is_gone_and_does_not_disturb_training():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(FEATURES, FEATURES)
            self.positions = None

        def forward(self, x):
            if self.positions is None:
                self.positions = torch.linspace(0, 1, FEATURES)
            return torch.relu(self.fc(x) * self.positions)

    network = fill(Caching())
    with torch.inference_mode():
        functional.local_fields(network, samples())
    assert network.positions is None
    network(samples()).sum().backward()
    assert network.fc.weight.grad is not None


def test_compiled_modules_run_eagerly_and_no_new_graph_is_made():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(networks.bn_mlp().eval(), backend=backend)
    with isolated(compiled) as (own,):
        inside = own(samples())
    assert graphs == []
    with torch.no_grad():
        torch.testing.assert_close(compiled(samples()), inside)
    assert len(graphs) == 1


# Logging ------------------------------------------------------------------------------------------------------------


class LightningModule(nn.Module):
    """Has the two methods of the class of that name."""

    def __init__(self, seen):
        super().__init__()
        self.note = seen.append

    def log(self, name, value, **options):
        self.note(name)

    def log_dict(self, values, **options):
        self.note(list(values))


class Logging(LightningModule):
    """Calls them in its forward."""

    def __init__(self, seen):
        super().__init__(seen)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        self.log("norm", x.norm(), on_epoch=True)
        self.log_dict({"a": 1.0, "b": 2.0})
        return torch.relu(self.fc(x))


def test_logging_from_a_forward_is_silent_while_measuring_and_only_then():
    seen = []
    network = fill(Logging(seen))
    before = portrait(network)
    functional.local_fields(network, samples())
    assert seen == []
    assert portrait(network) == before
    network(samples())
    assert seen == ["norm", ["a", "b"]]


def test_logging_of_a_child_is_silent_too():
    seen = []
    functional.local_fields(fill(nn.Sequential(Logging(seen), nn.Linear(CLASSES, CLASSES))), samples())
    assert seen == []


def test_a_method_of_that_name_that_is_mathematics_is_left_alone():
    class Logarithm(nn.Module):
        def log(self, x):
            return torch.log(1 + x.abs())

        def forward(self, x):
            return self.log(x)

    network = fill(nn.Sequential(Logarithm(), nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)))
    field = functional.local_fields(network, samples())["1"]
    torch.testing.assert_close(field, network[1](torch.log(1 + samples().abs())).detach())


# Buffers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", [torch.nan, torch.inf, 1.0], ids=str)
def test_a_buffer_that_has_not_changed_is_not_written_to(statistic):
    network = networks.bn_mlp()
    network.bn1.running_mean[0] = statistic
    tensors = [*network.buffers(), *network.parameters()]
    versions = [tensor._version for tensor in tensors]
    with isolated(network) as (own,):
        own(samples())
    assert [tensor._version for tensor in tensors] == versions


def in_inference_mode():
    with torch.inference_mode():
        return torch.zeros(3)


KINDS = {
    "no entry": lambda: torch.zeros(0),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    "expanded NaN": lambda: torch.full((1,), torch.nan).expand(4),
    "strided": lambda: torch.zeros(4, 4)[1:, ::2],
    "made in inference mode": in_inference_mode,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "MKL-DNN": lambda: torch.zeros(3).to_mkldnn(),
    "without storage": lambda: torch.zeros(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore:Sparse (CSR tensor support|invariant checks):UserWarning")
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_model_may_have_a_buffer_of_any_kind(make):
    network = networks.bn_mlp()
    network.register_buffer("extra", make())
    network.spare = make()
    before = network.extra, network.spare
    fields = functional.local_fields(network, samples())
    assert list(fields) == ["bn1", "bn2", "bn3"]
    assert network.extra is before[0]
    assert network.spare is before[1]


def test_a_buffer_is_put_back_whatever_its_size():
    network = Unruly(lambda m: m.register_buffer("memory", torch.zeros(5_000_000)), lambda m, h: m.memory.add_(1))
    functional.local_fields(network, samples())
    assert not network.memory.any()


@pytest.mark.parametrize("function", [functional.local_fields, functional.linear_substitution_map])
def test_a_backward_pass_that_waits_still_works(function):
    network, twin = networks.bn_mlp(), networks.bn_mlp()
    waiting, expected = (n.eval()(samples()).square().sum() for n in (network, twin))
    function(network, samples())
    waiting.backward()
    expected.backward()
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_buffers_that_share_their_memory_are_put_back_together():
    network = Unruly(buffer(), lambda m, h: m.part.add_(1))
    network.register_buffer("part", network.memory[2:5])
    functional.local_fields(network, samples())
    assert torch.equal(network.memory, torch.zeros(8))
    network.part.add_(1)
    assert network.memory.sum() == 3


# Random generators --------------------------------------------------------------------------------------------------


def draw_from_everywhere():
    torch.rand(3)
    np.random.standard_normal()  # noqa: NPY002
    random.gauss(0, 1)


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_generators_are_put_back(fails):
    before = global_generators()
    with contextlib.suppress(ArithmeticError), rng_restored():
        draw_from_everywhere()
        assert global_generators() != before
        if fails:
            raise ArithmeticError
    assert global_generators() == before


@pytest.mark.parametrize(
    "draw", [torch.rand, np.random.rand, lambda n: random.random()], ids=["torch", "numpy", "python"]
)
def test_random_numbers_drawn_in_a_forward_are_given_back(draw):
    network = Unruly(attribute(), lambda m, h: draw(2))
    before = global_generators()
    functional.local_fields(network, samples())
    assert global_generators() == before


def test_dropout_does_not_draw():
    network = fill(nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, CLASSES))).train()
    field = functional.local_fields(network, samples())["0"]
    torch.testing.assert_close(field, network[0](samples()).detach())


# Every public function that takes a model ---------------------------------------------------------------------------


def takes_model(function):
    return inspect.isfunction(function) and next(iter(inspect.signature(function).parameters)) == "model"


FUNCTIONS = {name: getattr(functional, name) for name in functional.__all__ if takes_model(getattr(functional, name))}


def measure(function, network, inputs):
    """Call a public function with the arguments it needs."""
    classes = 2 if list(network.parameters())[-1].shape == (1,) else CLASSES
    target = networks.labels(len(inputs), classes)
    known = {"model": network, "inputs": inputs, "target": target, "val_inputs": inputs.clone(), "val_target": target}
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "layer" in needed:
            # Found in a copy, since the network may count its calls.
            known["layer"] = next(iter(functional.local_fields(copy.deepcopy(network), inputs.clone())))
        return function(**{name: known[name] for name in needed})


every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
every_network = pytest.mark.parametrize(("factory", "inputs"), ZOO.values(), ids=ZOO)


def test_the_functions_that_take_a_model_are_found():
    assert {"local_fields", "linear_substitution_map", "sample_basin", "weight_basin"} <= set(FUNCTIONS)


@every_function
@every_network
def test_a_public_function_leaves_nothing_behind(function, factory, inputs):
    x = inputs(12)
    network = with_gradients(factory(), x)
    twin = copy.deepcopy(network)
    tensors = [*network.parameters(), *network.buffers()]
    before = portrait(network), surroundings(), [t._version for t in tensors], x.clone()
    convolves = any(isinstance(module, nn.Conv2d) for module in network.modules())
    refuses = function is functional.deep_graph_persistence and convolves
    with pytest.raises(ValueError, match="linear layers only") if refuses else contextlib.nullcontext():
        measure(function, network, x)
    assert portrait(network) == before[0]
    assert surroundings() == before[1]
    assert [t._version for t in tensors] == before[2]
    assert torch.equal(x, before[3])
    assert hooks(network) == 0
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(x), twin(x))
        twin = copy.deepcopy(other)


def numbers(result):
    """All numbers of a result, as plain ones."""
    if isinstance(result, Mapping):
        return {name: numbers(value) for name, value in result.items()}
    if dataclasses.is_dataclass(result):
        return {field.name: numbers(getattr(result, field.name)) for field in dataclasses.fields(result)}
    if isinstance(result, tuple | list):
        return [numbers(value) for value in result]
    return result.tolist() if isinstance(result, torch.Tensor) else result


class Overwriting(nn.Module):
    """Shifts its inputs, possibly in place."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift
        self.inner = networks.bn_mlp()

    def forward(self, x):
        return self.inner(self.shift(x))


@every_function
def test_a_network_that_writes_over_its_inputs_changes_neither_them_nor_the_result(function):
    x, expected = samples(12), measure(function, Overwriting(lambda x: x + 1), samples(12))
    result = measure(function, Overwriting(lambda x: x.add_(1)), x)
    assert torch.equal(x, samples(12))
    assert repr(numbers(result)) == repr(numbers(expected))


class Burnt(Exception):
    pass


class Fuse(nn.Module):
    """Fails at its n-th call, counted where no measurement can put it back."""

    def __init__(self, limit):
        super().__init__()
        self.calls = itertools.count()
        self.limit = limit

    def forward(self, x):
        if next(self.calls) == self.limit:
            raise Burnt
        return x


#: How often the functions run the network that do not run it twice or more.
RUNS = {"node_strength": 0, "layer_fluctuation": 0, "deep_graph_persistence": 0, "bn_drift": 1}


@every_function
@pytest.mark.parametrize("limit", [0, 1], ids=["first", "second"])
def test_a_public_function_leaves_nothing_behind_when_the_forward_fails(function, limit):
    layers = [nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), Fuse(limit), nn.Linear(8, FEATURES)]
    network = fill(nn.Sequential(*layers, Unruly(*UNRULY["nested"]))).train()
    network[1].eval()
    before = portrait(network), surroundings()
    with pytest.raises(Burnt) if limit < RUNS.get(function.__name__, 2) else contextlib.nullcontext():
        measure(function, network, samples(12))
    assert (portrait(network), surroundings()) == before
    assert hooks(network) == 0


@every_function
def test_no_gradient_hook_of_the_user_sees_a_measurement(function):
    network, seen = networks.functional_mlp(), []
    for parameter in network.parameters():
        parameter.register_hook(lambda gradient: seen.append(gradient))
        parameter.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter))
    measure(function, network, samples(12))
    assert seen == []


class Cube(torch.autograd.Function):
    """x³, an activation of the user's own."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return 3 * x**2 * gradient


class SameCube(Cube):
    """Inherits everything."""


class Cubes(nn.Module):
    def __init__(self, limit=-1):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(FEATURES, 9), nn.Linear(9, 8), nn.Linear(8, CLASSES)
        self.fuse = Fuse(limit)
        self.cube = Cube.apply

    def forward(self, x):
        x = SameCube.apply(self.second(self.cube(self.first(x))))
        return self.last(self.fuse(x))


@pytest.fixture
def registered():
    for function in (Cube, SameCube):
        functional.register_activation(function)
    yield
    REGISTERED.autograd.difference_update((Cube, SameCube))


@pytest.mark.usefixtures("registered")
@every_function
@pytest.mark.parametrize("limit", [-1, 0, 1, 2], ids=["never", "first", "second", "third"])
def test_registered_functions_are_as_they_were_also_when_the_forward_fails(function, limit):
    before = dict(vars(Cube)), dict(vars(SameCube))
    with contextlib.suppress(Burnt):
        measure(function, fill(Cubes(limit)), samples(12))
    assert (dict(vars(Cube)), dict(vars(SameCube))) == before


@pytest.mark.usefixtures("registered")
@every_function
def test_a_backward_pass_that_waits_is_that_of_the_registered_functions_own(function):
    expected, network = fill(Cubes()), fill(Cubes())
    x = samples(12)
    expected(x).square().sum().backward()
    waiting = network(x).square().sum()
    measure(function, network, x)
    waiting.backward()
    for one, other in zip(network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.usefixtures("registered")
def test_functions_that_inherit_from_each_other_are_read_once_each():
    network, x = fill(Cubes()), samples(12)
    fields = functional.local_fields(network, x)
    assert list(fields) == ["first", "second"]
    with torch.no_grad():
        assert torch.equal(fields["second"], network.second(network.first(x) ** 3))
