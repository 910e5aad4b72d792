"""The samples are found wherever they are in a tensor, and told from tensors that do not hold them."""

import pytest
import torch
from torch import nn

from netdyn import diagnose
from netdyn.functional import local_fields
from netdyn.tracing.sample_axis import SampleAxis, candidate_axes, choose_axis
from networks import CLASSES, Moved, fill, samples


@pytest.mark.parametrize("number", [1, 2, 3, 7, 80])
@pytest.mark.parametrize("how", ["second", "last", "folded", "folded, fastest", "folded, second"])
def test_samples_are_found_wherever_they_are(how, number):
    network, x = fill(Moved(how)), samples(number)
    (field,) = local_fields(network, x).values()
    with torch.no_grad():
        expected = network.fc(x.reshape(number, 3, 2))
    torch.testing.assert_close(field, expected.reshape(number, -1))


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
    # The mean over the steps of the longest sample depends on who is the longest.
    with pytest.warns(UserWarning, match="outputs depend on the other samples"):
        torch.testing.assert_close(local_fields(network, x)["fc"], expected)
    with pytest.raises(ValueError, match="Layer 'fc' has 25 units in one batch and 30 in another"):
        diagnose(network, x, torch.arange(9) % CLASSES, batch_size=4, measure=["modes"])


# The axes that shapes and values allow


@pytest.mark.parametrize(
    ("two", "three", "axes"),
    [
        ((2, 5), (3, 5), [SampleAxis()]),
        ((5, 2), (5, 3), [SampleAxis(dim=1)]),
        ((5,), (5,), []),
        ((8, 5), (12, 5), [SampleAxis(0, 4), SampleAxis(0, 4, fastest=True)]),
        ((2, 7), (3, 9), [SampleAxis()]),
    ],
    ids=["first", "second", "no samples", "folded", "beside a longest sample"],
)
def test_the_axis_is_the_one_that_grows_with_the_samples(two, three, axes):
    assert candidate_axes(torch.zeros(two), torch.zeros(three)) == axes


@pytest.mark.parametrize(
    ("two", "three", "text"),
    [
        ((2, 5), (3, 5, 1), "its number of dimensions depends on the number of samples"),
        ((2, 2), (3, 3), "more than the samples' axis grows with the number of samples"),
        ((4,), (5,), "more than the samples' axis grows with the number of samples"),
    ],
    ids=["dimensions", "two axes", "not in proportion"],
)
def test_shapes_that_allow_no_axis_are_an_error(two, three, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        candidate_axes(torch.zeros(two), torch.zeros(three))


@pytest.mark.parametrize("true", [SampleAxis(0, 4), SampleAxis(0, 4, fastest=True)], ids=["slow", "fast"])
def test_of_two_axes_the_one_on_which_samples_keep_their_values_is_chosen(true):
    windows = samples(3, shape=(4, 5))
    two, three = ((x.transpose(0, 1) if true.fastest else x).reshape(-1, 5) for x in (windows[:2], windows))
    assert choose_axis(candidate_axes(two, three), two, three) == true


def test_a_single_axis_is_taken_as_it_is_and_of_those_that_cannot_be_compared_the_first():
    assert choose_axis([SampleAxis(1)], samples(2), samples(3)) == SampleAxis(1)
    assert choose_axis([], samples(2), samples(3)) is None
    axes = [SampleAxis(0, 4), SampleAxis(0, 4, fastest=True)]
    assert choose_axis(axes, torch.zeros(8, 5), torch.zeros(12, 6)) == axes[0]


def test_an_axis_is_as_long_as_its_samples_make_it():
    assert SampleAxis(1, 4).holds(torch.zeros(5, 12), 3)
    assert not SampleAxis(1, 4).holds(torch.zeros(5, 11), 3)
    assert not SampleAxis(1, 4).holds(torch.zeros(12), 3)
