"""A survey reports which networks put out probabilities, and which layers mix their samples."""

import re

import pytest
import torch

import networks
from netdyn.functional import local_fields
from netdyn.tracing.fields import discover
from netdyn.tracing.sample_axis import SampleAxis
from netdyn.tracing.survey import survey
from networks import ZOO, Moved, ResidualCNN, fill, samples


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
    assert (found.mixed, found.packed) == (frozenset(), frozenset())


def test_without_samples_there_is_nothing_to_survey():
    with pytest.raises(ValueError, match=r"^`inputs` must hold at least one sample, got none\.$"):
        survey(networks.bn_mlp(), samples(0))
