"""A survey reports which networks put out probabilities, and which layers mix their samples."""

import re

import pytest
import torch
from torch import nn

import networks
from netdyn.functional import local_fields
from netdyn.tracing.fields import discover
from netdyn.tracing.sample_axis import SampleAxis
from netdyn.tracing.survey import survey
from networks import CLASSES, FEATURES, ZOO, Moved, ResidualCNN, fill, samples


def test_layers_that_mix_the_samples_are_named_and_left_out():
    said = re.escape("the modules ['model'] mix or sort the samples of a batch, or see only some")
    with (
        pytest.warns(UserWarning, match=said),
        pytest.raises(
            ValueError,
            match=re.escape(
                "The samples cannot be told apart in the inputs of the activations of ['model'], and there are no "
                "others, so there is no local field to read. Name modules in `layers=`, for instance ['fc']."
            ),
        ),
    ):
        local_fields(fill(Moved("mixed")), samples())


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("single logit", "softmax")])
def test_outputs_of_other_networks_are_no_probabilities(name):
    factory, inputs = ZOO[name]
    network = factory().eval()
    with torch.no_grad():
        assert discover(network, inputs()).probabilities is False


def test_a_survey_lists_local_fields_outputs_and_what_a_max_pooling_follows():
    network = networks.residual_cnn().eval()
    with torch.no_grad():
        found = survey(network, networks.images())
    assert tuple(found.found) == ResidualCNN.FIELDS
    assert found.outputs == {name for name, _ in network.named_modules() if name} | {"model"}
    assert found.pooled
    assert found.pooled < set(found.found)
    assert all(found.axes[key] == SampleAxis() for key in found.found.values())
    assert (found.mixed, list(filter(None, found.hidden.values()))) == (frozenset(), [])


def test_without_samples_there_is_nothing_to_survey():
    with pytest.raises(ValueError, match=r"^`inputs` must hold at least one sample, got none\.$"):
        survey(networks.bn_mlp(), samples(0))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.b(torch.fft.irfft(torch.tanh(torch.fft.rfft(torch.relu(self.a(x)))), n=8))


class Mapped(Complex):
    def forward(self, x):
        return self.b(torch.relu(torch.func.vmap(lambda row: self.a(row).sigmoid().clamp(max=0.6))(x) - 0.5))


@pytest.mark.parametrize(
    ("kind", "layers", "said"),
    [
        (Complex, ["a"], "['model'] work on complex numbers"),
        (Mapped, ["model"], "['a', 'model'] run inside a transform of torch.func"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_reason(kind, layers, said):
    with pytest.warns(UserWarning, match=re.escape(said)):
        assert list(local_fields(fill(kind()), samples())) == layers


def test_a_weights_activation_and_a_constants_are_not_named():
    class Weighted(Complex):
        def forward(self, x):
            gain = nn.functional.softplus(self.a.bias) + torch.tanh(self.a(torch.ones(5, FEATURES))).mean(dim=0)
            return self.b(torch.relu(self.a(x)) * gain)

    assert list(local_fields(fill(Weighted()), samples())) == ["a"]


def test_what_is_the_same_for_a_whole_batch_is_named():
    class Pooled(Complex):
        def forward(self, x):
            return self.b(torch.relu(self.a(x)) + torch.tanh(self.a(x).mean(dim=0)))

    with pytest.warns(UserWarning, match="see only some|depend on the other samples") as caught:
        assert list(local_fields(fill(Pooled()), samples())) == ["a"]
    assert len(caught) == 2
