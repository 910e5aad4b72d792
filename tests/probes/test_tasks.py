"""The task that targets and outputs fit: classes, numbers or a criterion; and what makes a probe unfit."""

import re

import pytest
import torch
from torch import nn

from netdyn.isolation.isolated import isolated
from netdyn.probes.criteria import Within, right_class, right_probability
from netdyn.probes.tasks import prepare
from networks import CLASSES, Ending, bn_mlp, fill, labels, samples


def prepared(network, target, inputs=None, criterion=None, batch_size=None):
    with isolated(network) as (network,):
        return prepare(network, samples(len(target)) if inputs is None else inputs, target, criterion, batch_size)


def single(end=lambda z: z):
    """One output per sample."""
    return fill(Ending(end, classes=1))


def test_whole_numbers_are_classes():
    found = prepared(bn_mlp(), labels())
    assert (found.criterion, found.num_classes, found.numbers) == (right_class, CLASSES, None)
    assert torch.equal(found.target, labels())


@pytest.mark.parametrize("target", [labels(classes=2), labels(classes=2).float(), labels(classes=2).float()[:, None]])
@pytest.mark.parametrize(
    ("end", "criterion"), [(lambda z: z, right_class), (torch.sigmoid, right_probability)], ids=["logit", "probability"]
)
def test_a_single_output_with_zeros_and_ones_tells_two_classes_apart(end, criterion, target):
    found = prepared(single(end), target)
    assert (found.criterion, found.num_classes, found.numbers) == (criterion, 2, None)
    assert found.target.tolist() == labels(classes=2).tolist()
    assert found.target.dtype == torch.int64


@pytest.mark.parametrize("batch_size", [None, 7])
def test_other_numbers_are_a_regression_whose_target_are_the_outputs_without_noise(batch_size):
    network, numbers = bn_mlp().eval(), samples(80, seed=4, shape=(CLASSES,))
    found = prepared(network, numbers, batch_size=batch_size)
    assert isinstance(found.criterion, Within)
    torch.testing.assert_close(found.criterion.distance, 0.5 * numbers.double().std(dim=0, correction=0))
    with torch.no_grad():
        torch.testing.assert_close(found.target, network(samples()))
    assert found.num_classes == 1
    assert torch.equal(found.numbers, numbers)
    assert found.all_right().all()


def test_a_vector_of_numbers_is_a_column():
    numbers = samples(80, seed=4, shape=())
    assert torch.equal(prepared(single(), numbers).numbers, numbers[:, None])


def any_sample(outputs, target):
    return torch.ones(len(target), dtype=torch.bool)


@pytest.mark.parametrize(
    ("target", "classes"),
    [(labels(), CLASSES), (labels() + 1, 1), (samples(80, shape=()), 1), (samples(80, shape=(2, 3)), 1)],
    ids=["labels", "other whole numbers", "numbers", "boxes"],
)
def test_a_criterion_takes_any_target(target, classes):
    found = prepared(bn_mlp(), target, criterion=any_sample)
    assert (found.criterion, found.num_classes, found.numbers) == (any_sample, classes, None)
    assert torch.equal(found.target, target)


ONE_HOT = "`target` must hold whole class labels (an integer dtype), got rows that sum to 1, of shape [80, 4]. Convert "
REFUSED = {
    "one-hot": (torch.eye(CLASSES)[labels()], TypeError, ONE_HOT + "one-hot or probability targets with "),
    "probabilities": (samples(80, shape=(CLASSES,)).softmax(1), TypeError, ONE_HOT),
    "other shape": (
        samples(80, shape=(2,)),
        TypeError,
        "`target` must hold whole class labels, or one number for each output, got numbers that are not whole, of "
        "dtype torch.float32 and shape [80, 2], for 4 outputs per sample.",
    ),
    "not finite": (samples(80, shape=(CLASSES,)) / 0, ValueError, "`target` must hold finite numbers, got NaN or inf."),
    "too large": (labels(classes=5), ValueError, "`target` must lie in [0, num_classes) = [0, 4), got the label 4."),
    "too few": (
        labels(79),
        ValueError,
        "`target` must have one entry for each of the 80 samples, got shape [79] for float32 [80, 6].",
    ),
    "list": (
        [0] * 80,
        TypeError,
        "`target` must be a tensor with one entry per sample, got list. Convert it with "
        "`torch.as_tensor`, names of classes to numbers first.",
    ),
}


@pytest.mark.parametrize(("target", "kind", "text"), REFUSED.values(), ids=REFUSED)
def test_targets_that_fit_no_task_are_refused(target, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}"):
        prepared(bn_mlp(), target, samples())


def test_a_criterion_needs_one_target_per_sample():
    text = "`target` must have one entry for each of the 80 samples, got shape [3] for float32 [80, 6]."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        prepared(bn_mlp(), torch.zeros(3), samples(), criterion=any_sample)


def test_without_samples_there_is_no_task():
    with pytest.raises(ValueError, match=r"^`inputs` must hold at least one sample, got none\.$"):
        prepared(bn_mlp(), labels(0))


def test_inputs_that_are_not_finite_are_warned_of():
    inputs = samples()
    inputs[3, 2] = torch.nan
    with pytest.warns(UserWarning, match=r"^`inputs` holds NaN or inf\."):
        prepared(bn_mlp(), labels(), inputs)


class Random(nn.Module):
    """Dropout that does not heed eval mode."""

    def __init__(self):
        super().__init__()
        self.inner = bn_mlp()

    def forward(self, x):
        return nn.functional.dropout(self.inner(x), 0.5)


def test_a_network_that_is_random_in_eval_mode_is_warned_of():
    text = (
        "The model is random in eval mode: two identical calls gave different outputs. Its basins are those of the "
        "network and its own noise together. Switch off what is random, such as a functional dropout without "
        "`training=self.training`."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        prepared(Random(), labels())
