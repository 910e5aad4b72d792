"""The samples are found wherever they are in a tensor, and told from tensors that do not hold them."""

import pytest
import torch
from torch import nn

from netdyn import diagnose
from netdyn.functional import local_fields
from netdyn.tracing.sample_axis import SampleAxis, axis_scores, candidate_axes, choose_axis, same_positions
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
    axes = candidate_axes(two, three)
    scores = [axis_scores(axis, two, three).tolist() for axis in axes]
    assert choose_axis(axes, scores) == true


def test_no_axis_is_chosen_if_none_fits():
    assert choose_axis([SampleAxis(), SampleAxis(1)], [(0.0, 0.0), (0.0, 1.0)]) is None
    assert choose_axis([SampleAxis(), SampleAxis(1)], [(1.0, 2.0), (1.0, 1.0)]) == SampleAxis(1)


def test_a_sample_is_displaced_only_if_it_stands_elsewhere():
    rows = samples(6)
    assert same_positions(rows[:3], rows)
    assert not same_positions(rows[:3], rows[[1, 0, 2, 3, 4, 5]])
    # Rounding moves no sample, and one that stands nowhere is a random network's.
    assert same_positions(rows[:3], rows + 1e-6 * samples(6, seed=2))
    assert same_positions(rows[:3], samples(6, seed=2))
    assert same_positions(rows[:3], torch.cat([rows[:3], rows[:3]]))
