"""An evaluator judges a probe batch by batch, counts what passes the network, and divides work among processes."""

import pytest
import torch
import torch.distributed as dist

from netdyn._utils.distributed import Processes
from netdyn._utils.random import Contents
from netdyn.probes.criteria import right_class
from netdyn.probes.evaluator import Evaluator
from networks import CLASSES, bn_mlp, labels, samples

NUMBER = 20


def evaluator(**options):
    return Evaluator(bn_mlp().eval(), samples(NUMBER), labels(NUMBER), right_class, CLASSES, **options)


@pytest.mark.parametrize("batch_size", [None, 1, 7, 20, 99])
def test_all_samples_are_judged_and_counted_once(batch_size):
    found = evaluator(batch_size=batch_size)
    with torch.no_grad():
        right = found.all_right()
        expected = right_class(found.model(found.inputs), found.target)
    assert torch.equal(right, expected)
    assert (found.passed, found.forwards) == (NUMBER, 1.0)


def test_another_model_may_be_judged():
    found = evaluator()
    assert found.all_right(lambda x: torch.eye(CLASSES)[labels(NUMBER)]).all()


def test_batches_are_copies():
    found = evaluator()
    inputs, target = found.batch(slice(0, 5))
    inputs.zero_()
    assert torch.equal(found.inputs, samples(NUMBER))
    assert torch.equal(target, labels(NUMBER)[:5])


def test_contents_are_made_once_and_follow_the_samples():
    found, index = evaluator(), torch.tensor([3, 0, 7])
    assert torch.equal(found.contents.digests, Contents.of(samples(NUMBER)).digests)
    assert found.contents is found.contents
    assert torch.equal(found.only(index).contents.digests, found.contents.digests[index])


def test_labels_are_zero_if_targets_are_not_classes():
    found = Evaluator(bn_mlp(), samples(NUMBER), samples(NUMBER, shape=()), right_class, 1)
    assert found.labels.tolist() == [0] * NUMBER
    assert torch.equal(evaluator().labels, labels(NUMBER))


@pytest.mark.parametrize("index", [[4, 5, 6], [6, 0, 3]], ids=["consecutive", "scattered"])
def test_an_evaluator_of_some_samples_counts_for_itself(index):
    found = evaluator(processes=Processes(0, 2))
    some = found.only(torch.tensor(index))
    assert torch.equal(some.inputs, samples(NUMBER)[index])
    assert torch.equal(some.target, labels(NUMBER)[index])
    some.all_right()
    assert (some.passed, found.passed, some.processes.size) == (3, 0, 1)


def test_a_tensor_with_as_many_rows_as_some_samples_stays_whole():
    table = torch.zeros(3, 2)
    found = Evaluator(bn_mlp(), (samples(NUMBER), table), labels(NUMBER), right_class, CLASSES)
    some = found.only(torch.tensor([0, 1, 2]))
    assert some.by_sample == (True, False)
    assert some.batch(slice(0, 2))[0][1].shape == (3, 2)


def work(own, part):
    return torch.stack([own.all_right().long(), part])


@pytest.mark.parametrize("index", [None, torch.tensor([9, 2, 5, 11, 0])], ids=["all", "some"])
@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_divided_work_is_that_of_one_process(monkeypatch, size, lockstep, index):
    contents = []

    def first_pass(gathered, own):
        contents.append(own)
        gathered[:] = [own] * size

    def second_pass(gathered, own):
        gathered[:] = contents

    with torch.no_grad():
        expected = evaluator().divided(work, index)
        monkeypatch.setattr(dist, "all_gather_object", first_pass)
        for rank in range(size):
            evaluator(processes=Processes(rank, size, lockstep)).divided(work, index)
        monkeypatch.setattr(dist, "all_gather_object", second_pass)
        found = evaluator(processes=Processes(size - 1, size, lockstep))
        assert torch.equal(found.divided(work, index), expected)
    assert found.passed == pytest.approx(NUMBER if index is None else len(index))
