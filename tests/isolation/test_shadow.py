"""A network is measured on a copy: whatever its forward moves, the original has not moved, and nobody wrote to it."""

import array
import collections
import enum
import functools
import itertools
import logging
import mmap
import multiprocessing
import queue
import random
import threading
import types
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import networks
from netdyn import DynamicsWarning, diagnose, functional
from netdyn.isolation.isolated import isolated
from networks import CLASSES, FEATURES, fill, labels, samples


class Stateful(nn.Module):
    """Adds to its input what it draws from a state, in eval mode too."""

    def __init__(self, state, draw):
        super().__init__()
        self.net = networks.bn_mlp()
        self.__dict__.update(state=state, draw=draw)

    def forward(self, x):
        return self.net(x + 0.01 * float(self.draw(self.state)))


class Slots:
    __slots__ = ("__hidden", "n")

    def __init__(self):
        self.n = self.__hidden = 0

    def step(self):
        self.n += 1
        self.__hidden += 2
        return self.n + self.__hidden


class Bare:
    """Has no attribute at first."""

    def step(self):
        self.n = getattr(self, "n", 0) + 1
        return self.n


class Counted:
    n = 0

    def step(self):
        type(self).n += 1
        return self.n


class Watched(collections.UserDict):
    """A mapping written in Python."""


class SlottedModule(nn.Module):
    __slots__ = ("n",)

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "n", 0)

    def step(self):
        object.__setattr__(self, "n", self.n + 1)
        return self.n


def closure():
    n = 0

    def step():
        nonlocal n
        n += 1
        return n

    return step


def default():
    def step(seen=[0]):  # noqa: B006
        seen[0] += 1
        return seen[0]

    return step


def grown(container, add):
    def draw(state):
        add(state)
        return len(state)

    return container, draw


def longer(state):
    state.append(1)
    return len(state)


def ring():
    first, second = types.SimpleNamespace(n=0), types.SimpleNamespace()
    first.other, second.other = second, first
    return first


def step_ring(state):
    state.other.other.n += 1
    return state.n


#: A state that a forward moves: how it is made, and what is drawn from it, another number each time.
STATES = {
    "slots": (Slots, Slots.step),
    "an object without attributes": (Bare, Bare.step),
    "a counter on the class": (Counted, Counted.step),
    "a module with slots": (SlottedModule, SlottedModule.step),
    "a namespace": (ring, step_ring),
    "a mapping written in Python": (lambda: Watched(n=0), lambda s: s.update(n=s["n"] + 1) or s["n"]),
    "count": (itertools.count, next),
    "cycle": (lambda: itertools.cycle(range(100)), next),
    "an iterator": (lambda: iter(list(range(10**4))), next),
    "enumerate": (lambda: enumerate(range(10**4)), lambda s: next(s)[0]),
    "a closure": (closure, lambda s: s()),
    "a default": (default, lambda s: s()),
    "a partial function": (lambda: functools.partial(next, itertools.count()), lambda s: s()),
    "a method of a list": (lambda: [1, 2].append, lambda s: s(1) or len(s.__self__)),
    "a generator of NumPy": (lambda: np.random.default_rng(0), lambda s: s.normal()),
    "a generator that spawns": (lambda: np.random.default_rng(0), lambda s: s.spawn(1)[0].normal()),
    "a seed sequence": (lambda: np.random.SeedSequence(0), lambda s: s.spawn(1)[0].generate_state(1)[0]),
    "an old generator of NumPy": (lambda: np.random.RandomState(0), lambda s: s.rand()),
    "a generator of Python": (lambda: random.Random(0), lambda s: s.random()),
    "a generator of PyTorch": (lambda: torch.Generator().manual_seed(0), lambda s: torch.rand((), generator=s)),
    "a Sobol sequence": (lambda: torch.quasirandom.SobolEngine(2, scramble=True, seed=0), lambda s: s.draw(1)[0, 0]),
    "bytes": (lambda: bytearray(b"1"), longer),
    "an array of Python": (lambda: array.array("d", [1.0]), longer),
    "a deque": (lambda: collections.deque([1]), longer),
    "a long list": (lambda: list(range(20_000)), longer),
    "a list in a named tuple": (lambda: collections.namedtuple("Named", "a b")(1, [2]), lambda s: longer(s.b)),
    "a buffer in a list": (lambda: [torch.zeros(2)], lambda s: s[0].add_(1)[0]),
    "a module behind a weak reference": (lambda: weakref.ref(LIVING), lambda s: s().step()),
}


class Living(SlottedModule):
    """Lives as long as these tests."""


LIVING = Living()


@pytest.mark.parametrize(("make", "draw"), STATES.values(), ids=STATES)
def test_a_state_has_not_moved(make, draw):
    LIVING.__init__()
    untouched = make()
    expected = [float(draw(untouched)) for _ in range(3)]
    assert len(set(expected)) == 3, "the state does not move"
    Counted.n = 0
    LIVING.__init__()
    network = fill(Stateful(make(), draw))
    own = network.__dict__["state"]
    with isolated(network) as (shadow,):
        first = shadow(samples())
        assert not torch.equal(shadow(samples()), first)
    assert network.__dict__["state"] is own
    assert [float(draw(own)) for _ in range(3)] == expected


# What cannot be copied -----------------------------------------------------------------------------------------------


def counting():
    for n in itertools.count():  # noqa: UP028
        yield n


class Worker:
    """A thread that fills a queue."""

    def __init__(self):
        self.items, self.ready = collections.deque(), threading.Condition()


#: Objects that may have a state and cannot be copied, and what they are called.
NAMED = {
    "a generator": (counting, "generator"),
    "a queue": (queue.Queue, "Queue"),
    "a simple queue": (queue.SimpleQueue, "SimpleQueue"),
    "an event": (threading.Event, "Event"),
    "a thread": (threading.Thread, "Thread"),
    "what threads have of their own": (threading.local, "_local"),
    "a file": (lambda: open(__file__), "TextIOWrapper"),  # noqa: SIM115
    "a shared value": (lambda: multiprocessing.Value("i", 0), "Synchronized"),
    "shared memory": (lambda: mmap.mmap(-1, 8), "mmap"),
    "an object that a thread works on": (Worker, "Worker"),
    "an iterator over batches": (lambda: iter(torch.utils.data.DataLoader([1, 2])), "_SingleProcessDataLoaderIter"),
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(("make", "kind"), NAMED.values(), ids=NAMED)
def test_what_cannot_be_copied_is_shared_and_named_once(make, kind):
    network = nn.Sequential(networks.bn_mlp())
    network[0].source = [make()]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DynamicsWarning)
        with isolated(network) as (own,):
            assert own[0].source is not network[0].source
            assert own[0].source[0] is network[0].source[0]
    (message,) = [str(warning.message) for warning in said if warning.category is DynamicsWarning]
    assert f"cannot copy 0.source ({kind})" in message
    getattr(network[0].source[0], "close", lambda: None)()


class Colour(enum.Enum):
    RED = 1


MARK = object()
SILENT = {
    "a lock": threading.Lock,
    "a lock that a thread takes twice": threading.RLock,
    "a logger": lambda: logging.getLogger("own"),
    "a member of an enumeration": lambda: Colour.RED,
    "a mark": lambda: MARK,
    "a module of Python": lambda: random,
    "a class": lambda: Slots,
    "a function of PyTorch": lambda: torch.nn.functional.max_pool2d,
    "a distribution": lambda: torch.distributions.Normal(0.0, 1.0),
    "an optimiser": lambda: torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1),
    "a loader": lambda: torch.utils.data.DataLoader([1, 2]),
    "a cached function": lambda: functools.lru_cache(print),
}


@pytest.mark.parametrize("make", SILENT.values(), ids=SILENT)
def test_what_has_no_state_of_the_networks_is_shared_without_a_word(make):
    network = networks.bn_mlp()
    network.source = make()
    with isolated(network) as (own,):
        assert own.source is network.source


def test_a_lock_is_shared_by_an_object_that_is_copied():
    network = networks.bn_mlp()
    network.counter = types.SimpleNamespace(lock=threading.Lock(), n=0)
    with isolated(network) as (own,):
        assert own.counter.lock is network.counter.lock
        own.counter.n += 1
    assert network.counter.n == 0


class Refusing:
    """Whatever it is asked is an error."""

    def _refuse(self, *args):
        raise NotImplementedError

    __getattr__ = __eq__ = __hash__ = __bool__ = __repr__ = __iter__ = __len__ = _refuse
    __reduce_ex__ = __deepcopy__ = __copy__ = __getstate__ = _refuse
    __class__ = property(_refuse)
    __dict__ = property(_refuse)


class RefusingTuple(tuple):
    __len__ = __iter__ = __getitem__ = __eq__ = __hash__ = Refusing._refuse


class RefusingDict(dict):
    __len__ = __iter__ = __getitem__ = keys = items = values = Refusing._refuse


class RefusingKind(type):
    __getattr__ = Refusing._refuse


def of_refusing_kind():
    class Refused(metaclass=RefusingKind):
        def __init__(self):
            self.value = 1

    return Refused()


@pytest.mark.filterwarnings("ignore:netdyn cannot copy:UserWarning")
@pytest.mark.parametrize(
    "make",
    [Refusing, lambda: RefusingTuple((1, [2])), lambda: RefusingDict(a=1), of_refusing_kind],
    ids=["object", "tuple", "dict", "metaclass"],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_looking_at_an_object_that_refuses_is_no_error(make, in_place):
    network = networks.bn_mlp()
    if in_place:
        network.ending = Ending()
    network.__dict__["irregular"] = make()
    assert len(functional.local_fields(network, samples())) == 3


class Ending(nn.Identity):
    ended = 0

    def __del__(self):
        type(self).ended += 1


def test_what_ends_with_a_module_does_not_end_with_a_copy():
    class Counting(Ending):
        ended = 0

    network = networks.bn_mlp()
    network.ending = Counting()
    functional.local_fields(network, samples())
    assert Counting.ended == 0


# What others write meanwhile -----------------------------------------------------------------------------------------

ELSEWHERE: dict[str, nn.Module] = {}


class Interrupted(nn.Module):
    """Another part of the program writes to the network while it is measured."""

    def forward(self, x):
        ELSEWHERE["network"].sent.append(1)
        ELSEWHERE["network"].box["n"] = ELSEWHERE["network"].box.get("n", 0) + 1
        return x


def test_what_others_write_while_it_is_measured_stays():
    network = ELSEWHERE["network"] = nn.Sequential(Interrupted(), *networks.bn_mlp())
    network.sent, network.box = collections.deque(), {}
    functional.local_fields(network, samples())
    assert len(network.sent) == network.box["n"] > 2


@pytest.mark.parametrize("in_place", [False, True])
def test_a_reader_of_a_container_that_nobody_changes_reads_on(in_place):
    network = networks.bn_mlp()
    if in_place:
        network.ending = Ending()
    network.boxes = [collections.deque([1, 2]), {1: 1, 2: 2}, {1, 2}]
    readers = [iter(box) for box in network.boxes]
    assert [next(reader) for reader in readers] == [1, 1, 1]
    functional.local_fields(network, samples())
    assert [next(reader) for reader in readers] == [2, 2, 2]


# Functions and hooks that hold the network ---------------------------------------------------------------------------


def test_a_forward_that_finds_the_network_by_itself_runs_the_copy():
    network = fill(nn.Sequential(nn.Linear(FEATURES, 30), nn.BatchNorm1d(30), nn.Dropout(), nn.Linear(30, CLASSES)))
    network.insert(2, nn.ReLU())
    globals()["NETWORK"] = network

    def helper(x):
        return network(x)

    ways = {
        "closure": lambda _, x: network(x),
        "helper": lambda _, x: helper(x),
        "method": lambda _, x: network.forward(x),
        "global": lambda _, x: NETWORK(x),  # noqa: F821
        "global helper": lambda _, x: run_global(x),
        "partial": functools.partial(lambda net, _, x: net(x), network),
    }
    expected = diagnose(network, samples(), labels(), progress=False).scalars()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for way, forward in ways.items():
        found = diagnose(network, samples(), labels(), forward=forward, progress=False).scalars()
        assert repr(found) == repr(expected), way
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training


def run_global(x):
    return globals_of_this(x)


def globals_of_this(x):
    return NETWORK(x)  # noqa: F821


def test_a_function_is_copied_with_what_it_counts():
    seen = []

    def forward(model, x):
        seen.append(len(x))
        return model(x)

    diagnose(networks.bn_mlp(), samples(), labels(), forward=forward, progress=False, measure=["sample_basin"])
    assert seen == []


def test_a_hook_of_the_networks_own_changes_the_copy_alone():
    network = networks.bn_mlp()
    network.calls = 0

    def hook(module, inputs, output):
        network.calls += 1
        return output * 2

    plain = functional.local_fields(network, samples())["bn2"]
    network[0].register_forward_hook(hook)
    assert not torch.equal(functional.local_fields(network, samples())["bn2"], plain)
    assert network.calls == 0


# Hooks that observe --------------------------------------------------------------------------------------------------


class Notes:
    """Counts, where no copy is made: on disk."""

    def __init__(self, path):
        self.path = str(path)

    def __call__(self, *args):
        with open(self.path, "a") as file:
            file.write("x")

    def method(self, *args):
        self()


def written(path):
    return len(path.read_text()) if path.exists() else 0


def of_wandb(notes):
    hook = functools.partial(lambda notes, *args: notes(), notes)
    hook.func.__module__ = "wandb.integration.torch.wandb_torch"
    return hook


#: How a hook is made of notes, and what is given as `observer_hooks`.
OBSERVERS = {
    "of wandb": (of_wandb, lambda hook: None),
    "given": (lambda notes: notes, lambda hook: [hook]),
    "a method that is given": (lambda notes: notes.method, lambda hook: [hook]),
    "of a package that is given": (lambda notes: notes, lambda hook: [__name__]),
}


@pytest.mark.parametrize(("make", "given"), OBSERVERS.values(), ids=OBSERVERS)
@pytest.mark.parametrize("in_place", [False, True])
def test_hooks_that_observe_do_not_see_a_measurement(make, given, in_place, tmp_path):
    network, path = networks.bn_mlp(), tmp_path / "notes"
    if in_place:
        network.ending = Ending()
    hook = make(Notes(path))
    network[0].register_forward_hook(hook)
    network[1].register_forward_pre_hook(hook)
    diagnose(network, samples(), labels(), observer_hooks=given(hook), progress=False, measure=["modes"])
    assert written(path) == 0
    network(samples())
    assert written(path) == 2, "the hooks are still there"


def test_other_hooks_run(tmp_path):
    network = networks.bn_mlp()
    network[0].register_forward_hook(Notes(tmp_path / "notes"))
    diagnose(network, samples(), labels(), observer_hooks=["wand"], progress=False, measure=["modes"])
    assert written(tmp_path / "notes") > 0


@pytest.mark.parametrize("given", ["wandb", 3, [3]])
def test_observer_hooks_must_be_a_list_of_hooks_or_names(given):
    with pytest.raises(TypeError, match="`observer_hooks` must be a list"):
        diagnose(networks.bn_mlp(), samples(), labels(), observer_hooks=given)


# Parts that are not plain modules ------------------------------------------------------------------------------------


def scripted(network):
    network[2] = torch.jit.script(nn.Sequential(nn.Linear(30, 30), nn.Dropout(), nn.BatchNorm1d(30)))
    return network


def plain():
    return fill(
        nn.Sequential(
            nn.Linear(FEATURES, 30),
            nn.ReLU(),
            nn.Sequential(nn.Linear(30, 30), nn.Dropout(), nn.BatchNorm1d(30)),
            nn.ReLU(),
            nn.Linear(30, CLASSES),
        )
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Not all of the network can be read:UserWarning")
def test_a_scripted_part_keeps_its_modes_and_takes_noise():
    network = plain()
    expected = diagnose(network, samples(), labels(), progress=False, measure=["weight_basin"]).weight_basin
    part = torch.jit.script(network[2])
    network[2] = part
    flags = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = diagnose(network, samples(), labels(), progress=False, measure=["weight_basin"]).weight_basin
    assert repr(found) == repr(expected)
    assert [module.training for module in network.modules()] == flags == [True] * len(flags)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def compiled_method(network):
    compiled = nn.Module()
    compiled.net = network
    compiled.run = torch.compile(compiled.net.forward, backend="eager")
    compiled.forward = lambda x: compiled.run(x)
    return compiled


def fabric(network):
    from lightning.fabric import Fabric

    return Fabric(accelerator="cpu", devices=1).setup(network)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "compiled twice wrapped": lambda network: nn.DataParallel(torch.compile(network, backend="eager")),
    "Fabric": fabric,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_network_is_measured_as_the_one_inside(wrap):
    network = plain()
    expected = diagnose(network, samples(), labels(), progress=False).scalars()
    wrapped = wrap(network)
    assert repr(diagnose(wrapped, samples(), labels(), progress=False).scalars()) == repr(expected)
    assert list(functional.local_fields(wrapped, samples())) == list(functional.local_fields(network, samples()))
    assert all(module.training for module in wrapped.modules())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_part_may_be_wrapped(wrap):
    network = plain()
    expected = diagnose(network, samples(), labels(), progress=False, measure=["modes"]).layers
    whole = nn.Module()
    whole.part = wrap(network)
    whole.forward = lambda x: whole.part(x)
    found = diagnose(whole, samples(), labels(), progress=False, measure=["modes"]).layers
    assert [layer.opt_fraction for layer in found] == [layer.opt_fraction for layer in expected]


def test_fabrics_precision_is_kept():
    from lightning.fabric import Fabric

    network = plain()
    wrapped = Fabric(accelerator="cpu", devices=1, precision="bf16-true").setup(network)
    fields = functional.local_fields(wrapped, samples())
    assert {field.dtype for field in fields.values()} == {torch.bfloat16}


def test_a_compiled_method_of_the_network_runs_the_copy():
    network = plain()
    expected = functional.local_fields(network, samples())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = functional.local_fields(compiled_method(network), samples())
    assert all(torch.equal(a, b) for a, b in zip(found.values(), expected.values(), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# How it is copied ----------------------------------------------------------------------------------------------------


def test_tensors_that_share_memory_do_so_in_the_copy():
    network = nn.LSTM(3, 4)
    network.register_buffer("whole", torch.zeros(6))
    network.register_buffer("part", network.whole[2:4])
    network.tied = network.weight_hh_l0
    with isolated(network) as (own,):
        own.part.add_(1)
        assert own.whole.tolist() == [0, 0, 1, 1, 0, 0]
        assert own.tied is own.weight_hh_l0 is own._flat_weights[1]
        assert own.weight_hh_l0.data_ptr() != network.weight_hh_l0.data_ptr()
    assert not network.whole.any()


def test_large_tensors_that_are_no_state_are_shared():
    network = networks.bn_mlp()
    network.data = torch.zeros(1 << 23)
    network.register_buffer("memory", torch.zeros(1 << 23))
    with isolated(network) as (own,):
        assert own.data is network.data
        assert own.memory.data_ptr() != network.memory.data_ptr()


def test_a_deep_structure_is_copied():
    network, chain = networks.bn_mlp(), None
    for _ in range(20_000):
        chain = [chain]
    network.chain = chain
    with warnings.catch_warnings(), isolated(network) as (own,):
        depth, link = 0, own.chain
        while link:
            depth, link = depth + 1, link[0]
    assert depth == 20_000


def test_no_code_of_the_networks_classes_runs_while_it_is_copied():
    class Speaking(nn.Module):
        def __setattr__(self, name, value):
            said.append(name)
            super().__setattr__(name, value)

        def __getstate__(self):
            said.append("state")
            return self.__dict__

        def __deepcopy__(self, memo):
            said.append("copy")
            return self

    said = []
    network = nn.Sequential(Speaking(), networks.bn_mlp())
    said.clear()
    with isolated(network) as (own,):
        assert type(own[0]) is Speaking
        assert own[0] is not network[0]
        assert said in ([], ["training"])
