"""Data sets are read in a worker process, or in this one: what they hold stays, and what cannot is named."""

import array
import itertools
import multiprocessing
import os
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, get_worker_info

from netdyn import DynamicsWarning
from netdyn.probes import reading
from netdyn.probes.loaders import given_probe, read_probe
from netdyn.probes.reading import WorkerError, read, runs_no_code
from netdyn.probes.unpacking import input_and_target
from netdyn.probes.unrestorable import shared_tensors, warn_of_unrestorable

INDEX = [2, 3, 5, 7, 11]


@pytest.fixture
def here(monkeypatch):
    """A platform without fork: a data set whose loader has no workers is read in this process."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])


@pytest.fixture(autouse=True)
def no_process_left():
    # Other tests may keep processes of theirs for the next one.
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def first_batch(dataset, **options):
    return read(DataLoader(dataset, batch_size=4, **options), [INDEX], 0, next)


class Samples(Dataset):
    """Says in which process a sample was read; ``draw`` makes a number of a state, and usually moves it."""

    def __init__(self, state=None, draw=lambda state: 0.0, n=40):
        self.state, self.draw, self.n = state, draw, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.tensor([float(index), float(self.draw(self.state))]), os.getpid()


# Where ---------------------------------------------------------------------------------------------------------------


def test_a_data_set_is_read_in_another_process():
    inputs, process = first_batch(Samples())
    assert inputs[:, 0].tolist() == INDEX
    assert os.getpid() not in process.tolist()


def test_where_there_is_no_fork_it_is_read_here(here):
    assert set(first_batch(Samples())[1].tolist()) == {os.getpid()}


def test_tensors_alone_are_read_here(monkeypatch):
    monkeypatch.setattr(reading, "_worker_options", lambda loader: pytest.fail("there is no need of a worker"))
    data = TensorDataset(torch.arange(40.0), torch.arange(40))
    for dataset in (data, Subset(data, range(20)), ConcatDataset([data, Subset(data, [1, 2])])):
        assert runs_no_code(DataLoader(dataset))
        assert first_batch(dataset)[1].tolist() == INDEX


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Samples()),
        DataLoader(TensorDataset(torch.zeros(4)), collate_fn=list),
        DataLoader(TensorDataset(torch.zeros(4)), num_workers=1, worker_init_fn=print),
        DataLoader(Subset(Samples(), [1])),
        DataLoader(type("Own", (TensorDataset,), {})(torch.zeros(4))),
    ],
    ids=["own class", "collate function", "worker function", "subset", "own tensors"],
)
def test_code_of_the_users_is_not_taken_for_tensors_alone(loader):
    assert not runs_no_code(loader)


def test_a_data_set_that_holds_cuda_state_is_not_forked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert set(first_batch(Samples())[1].tolist()) == {os.getpid()}


def in_a_daemon(queue):
    queue.put(first_batch(Samples())[1].tolist() == [os.getpid()] * len(INDEX))


def test_in_a_daemonic_process_it_is_read_there():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=in_a_daemon, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=300)
    process.join()


class OnlyHere(Samples):
    """Holds something that belongs to the process that made it."""

    def __init__(self):
        super().__init__()
        self.owner = os.getpid()

    def __getitem__(self, index):
        if os.getpid() != self.owner:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")
        return super().__getitem__(index)


def test_where_a_worker_fails_it_is_read_here():
    assert set(first_batch(OnlyHere())[1].tolist()) == {os.getpid()}


def test_where_a_worker_ends_without_a_word_it_is_read_here():
    class Dying(OnlyHere):
        def __getitem__(self, index):
            if os.getpid() != self.owner:
                os._exit(3)
            return Samples.__getitem__(self, index)

    assert set(first_batch(Dying())[1].tolist()) == {os.getpid()}


def test_a_data_set_that_times_out_itself_is_not_taken_for_a_worker_that_gives_nothing():
    class Far(OnlyHere):
        def __getitem__(self, index):
            if os.getpid() != self.owner:
                raise ConnectionError("The connection timed out.")
            return Samples.__getitem__(self, index)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(first_batch(Far())[1].tolist()) == {os.getpid()}


def test_a_worker_that_waits_for_a_lock_of_another_thread_is_given_up(monkeypatch):
    """A fork copies a lock that is held, and nobody in the worker lets go of it."""
    monkeypatch.setattr(reading, "PATIENCE", 1)
    lock, held, stop = threading.Lock(), threading.Event(), threading.Event()
    owner = os.getpid()

    def hold():
        with lock:
            held.set()
            stop.wait()

    class Locked(Samples):
        def __getitem__(self, index):
            if os.getpid() == owner:
                stop.set()
            with lock:
                return super().__getitem__(index)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.warns(UserWarning, match="^A worker process that should read the probe gave nothing for 1 seconds"):
        assert set(first_batch(Locked())[1].tolist()) == {owner}
    thread.join()


# As training reads it ------------------------------------------------------------------------------------------------


class Closed(Dataset):
    """Opens only in a worker."""

    file = None

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.file[index], index % 3


def opened(worker):
    get_worker_info().dataset.file = torch.arange(40.0)[:, None]


def test_a_data_set_that_opens_in_a_worker_is_opened_there():
    data = Closed()
    inputs, _ = first_batch(data, num_workers=2, worker_init_fn=opened)
    assert inputs[:, 0].tolist() == INDEX
    assert data.file is None


def test_a_worker_function_is_not_called_where_training_does_not_call_it():
    with pytest.raises(TypeError, match=r"^The data set raised TypeError: 'NoneType' object is not subscriptable"):
        first_batch(Closed(), worker_init_fn=opened)


def test_the_failure_in_a_worker_counts_where_training_has_workers():
    class Torn(Closed):
        def __getitem__(self, index):
            raise OSError("no such file" if get_worker_info() else "closed")

    text = r"^The data set raised OSError: no such file \(in a worker process\)\. Pass "
    with pytest.raises(WorkerError, match=text):
        first_batch(Torn(), num_workers=1)
    with pytest.raises(RuntimeError, match=r"^The data set raised OSError: closed"):
        first_batch(Torn())


class Random(Samples):
    """Draws from all three global generators."""

    def __getitem__(self, index):
        return torch.rand(1) + float(np.random.rand()), index % 3  # noqa: NPY002


def test_a_worker_draws_what_this_process_would_draw(monkeypatch):
    there = first_batch(Random())
    many = first_batch(Random(), num_workers=2, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    own = first_batch(Random())
    assert torch.equal(there[0], own[0])
    assert torch.equal(many[0], own[0])


def pairs(samples):
    return {"x": [x for x, _ in samples], "n": len(samples), "text": "as it is"}


def test_a_batch_of_any_kind_comes_as_the_collate_function_made_it():
    batch = first_batch(Samples(), collate_fn=pairs)
    assert (batch["n"], batch["text"], type(batch["x"])) == (len(INDEX), "as it is", list)
    assert [int(x[0]) for x in batch["x"]] == INDEX


def test_a_part_of_a_large_tensor_comes_alone():
    whole = torch.zeros(1 << 20)

    class Views(Samples):
        def __getitem__(self, index):
            return whole[index : index + 2]

    batch = first_batch(Views(), collate_fn=list)
    assert all(view.untyped_storage().nbytes() < 1 << 10 for view in batch)


def test_more_tensors_than_a_process_may_have_files_open():
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most[1]))
    try:
        loader = DataLoader(Samples(n=2000), 4, collate_fn=list)
        assert len(read(loader, [list(range(1000))], 0, next)) == 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


class Stream(IterableDataset):
    def __init__(self):
        self.passes = itertools.count()

    def __iter__(self):
        next(self.passes)
        return iter([(torch.tensor([float(i)]), i) for i in range(100)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_given_as_a_probe_is_not_begun(workers):
    data = Stream()
    loader = DataLoader(data, batch_size=8, num_workers=workers, persistent_workers=workers > 0)
    probe = given_probe(loader, 20, 0, lambda batch: batch, input_and_target)
    assert probe.target.tolist() == list(range(20))
    assert next(data.passes) == 0
    assert loader._iterator is None


def test_whole_batches_given_as_a_probe_are_read_in_a_worker():
    class Whole(Samples):
        def __getitem__(self, index):
            return torch.full((4, 1), float(index)), torch.full((4,), int(os.getpid() == owner))

    owner = os.getpid()
    probe = given_probe(
        DataLoader(Whole(), batch_size=None, shuffle=True), 20, 0, lambda batch: batch, input_and_target
    )
    assert len(probe.target) == 20
    assert not probe.target.any()


# Nothing of theirs moves ---------------------------------------------------------------------------------------------


class Slots:
    __slots__ = ("n",)

    def __init__(self):
        self.n = 0

    def __call__(self):
        self.n += 1
        return self.n


class ByClass(Samples):
    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        return super().__getitem__(index)


def counter():
    n = 0

    def count():
        nonlocal n
        n += 1
        return n

    return count


READS = 0


def count_globally(_):
    global READS
    READS += 1
    return READS


def spawning():
    generator = np.random.default_rng(0)
    return Samples(generator, lambda g: g.spawn(1)[0].normal())


def local():
    """A class whose methods count in a variable around them, and draw from a generator there."""
    n, generator = 0, np.random.default_rng(0)

    class Local(Samples):
        def __getitem__(self, index):
            nonlocal n
            n += 1
            return torch.tensor([float(index), generator.random()]), os.getpid()

        def state_around(self):
            return n, generator.bit_generator.state["state"]["state"]

    return Local()


def place_of(cycle):
    """Where an ``itertools.cycle`` stands: asking for it is deprecated since Python 3.12."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return repr(cycle.__reduce__())


MOVING = {
    "slots": (lambda: Samples(Slots(), lambda s: s()), lambda d: d.state.n),
    "count": (lambda: Samples(itertools.count(), next), lambda d: repr(d.state)),
    "cycle": (lambda: Samples(itertools.cycle(range(5)), next), lambda d: place_of(d.state)),
    "spawn": (spawning, lambda d: d.state.bit_generator.seed_seq.n_children_spawned),
    "closure": (lambda: Samples(counter(), lambda c: c()), lambda d: d.state.__closure__[0].cell_contents),
    "class": (ByClass, lambda d: type(d).reads),
    "bytearray": (lambda: Samples(bytearray(1), lambda b: b.append(1) or len(b)), lambda d: len(d.state)),
    "array": (lambda: Samples(array.array("i", [0]), lambda a: a.append(1) or len(a)), lambda d: len(d.state)),
    "sobol": (
        lambda: Samples(torch.quasirandom.SobolEngine(1), lambda s: s.draw(1)),
        lambda d: d.state.num_generated,
    ),
}
NAMED = {
    "generator": (
        lambda: Samples((i for i in range(99)), next),
        lambda d: d.state.gi_frame.f_lasti,
        "`dataset.state` (an iterator that cannot be copied)",
    ),
    "around a method": (
        local,
        lambda d: d.state_around()[0],
        "`dataset` (the variable 'n' around its method '__getitem__')",
    ),
    "global": (
        lambda: Samples(None, count_globally),
        lambda d: READS,
        "`dataset.draw` (the global variable 'READS')",
    ),
}


@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support will be removed from itertools")
@pytest.mark.parametrize(("make", "state"), MOVING.values(), ids=MOVING)
@pytest.mark.parametrize("forks", [True, False], ids=["in a worker", "here"])
def test_what_a_data_set_holds_stays_where_it_was(forks, make, state, monkeypatch, recwarn):
    if not forks:
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    data = make()
    before = state(data)
    inputs, process = first_batch(data)
    assert (process == os.getpid()).all() != forks
    assert inputs[:, 0].tolist() == INDEX
    assert state(data) == before
    assert list(recwarn) == []


@pytest.mark.parametrize(("make", "state", "named"), NAMED.values(), ids=NAMED)
def test_in_a_worker_nothing_moves(make, state, named, recwarn):
    data = make()
    before = state(data)
    first_batch(data)
    assert state(data) == before
    assert list(recwarn) == []


@pytest.mark.parametrize(("make", "state", "named"), NAMED.values(), ids=NAMED)
def test_what_is_read_here_and_cannot_be_put_back_is_named_first(here, make, state, named):
    data = make()
    before = state(data)
    seen = []

    def note(text, *_, **__):
        seen.append((str(text), state(data)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "warn", note)
        first_batch(data)
    ((text, at),) = seen
    assert text.startswith("The probe is read in this process, and netdyn cannot put back: ")
    assert named in text
    assert at == before != state(data)


def test_generators_around_methods_are_put_back(here):
    data = local()
    before = data.state_around()[1]
    with pytest.warns(DynamicsWarning, match="'n' around its method"):
        first_batch(data)
    assert data.state_around()[1] == before


class Plain(Samples):
    """Counts, caches, draws: all of this is put back, so that there is nothing to say."""

    limit = 3

    def __init__(self):
        super().__init__(np.random.default_rng(0), lambda g: g.normal())
        self.reads, self.kept, self.path = 0, {}, ["a", "b"]

    @classmethod
    def default(cls):
        return cls()

    def __getitem__(self, index):
        self.reads += 1
        self.limit = 4
        self.kept[index] = self.reads
        return super().__getitem__(index)


def test_nothing_is_said_of_what_is_put_back(here, recwarn):
    data = Plain()
    first_batch(data)
    assert (data.reads, data.kept, data.limit) == (0, {}, 3)
    assert list(recwarn) == []


class Raises(tuple):
    """Raises wherever it is looked at."""

    def __len__(self):
        raise NotImplementedError

    def __getattribute__(self, name):
        raise NotImplementedError


def test_looking_at_foreign_objects_never_raises(recwarn):
    assert shared_tensors(dataset=Samples(Raises((1, 2)))) == []
    warn_of_unrestorable(dataset=Samples([Raises((1, 2)), Raises()]))
    assert list(recwarn) == []


def test_what_processes_share_is_named_before_a_worker_moves_it(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(range(100)))
    value = multiprocessing.get_context("fork").Value("i", 0)

    def count(state):
        with state.get_lock():
            state.value += 1
        return state.value

    with pytest.warns(DynamicsWarning, match=r"processes share: `dataset.state` \(shared memory\)\. If"):
        first_batch(Samples(value, count))
    with (
        path.open("rb") as file,
        pytest.warns(DynamicsWarning, match=r"`dataset.state` \(the position of an open file"),
    ):
        first_batch(Samples(file, lambda file: file.read(1)[0]))


def test_shared_tensors_are_put_back(recwarn):
    counts = torch.zeros(3).share_memory_()
    first_batch(Samples(counts, lambda c: c.add_(1).sum()))
    assert counts.tolist() == [0, 0, 0]
    assert list(recwarn) == []


def test_what_another_thread_writes_meanwhile_is_kept():
    data = Samples([], lambda state: time.sleep(0.02) or 0.0)
    stop = threading.Event()
    sent = []

    def write():
        while not stop.is_set():
            data.state.append(len(sent))
            sent.append(len(sent))
            time.sleep(1e-3)

    thread = threading.Thread(target=write)
    thread.start()
    first_batch(data)
    stop.set()
    thread.join()
    assert data.state == sent


def test_the_multiprocessing_context_stays_open(monkeypatch):
    """A start method may still be chosen afterwards: none has been fixed by the way."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    first_batch(Samples())
    assert multiprocessing.get_start_method(allow_none=True) == chosen


def test_a_probe_read_in_a_worker_is_the_one_read_here(monkeypatch):
    loader = DataLoader(Random(n=300), 16)
    there = read_probe(loader, 30, 3, lambda batch: batch, input_and_target)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    own = read_probe(loader, 30, 3, lambda batch: batch, input_and_target)
    assert torch.equal(there.inputs, own.inputs)
    assert torch.equal(there.target, own.target)
