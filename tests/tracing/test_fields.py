"""Local fields as a table per layer, and which layers a list of names and globs chooses."""

import pytest
import torch
from torch import nn

import networks
from netdyn.functional import linear_substitution_map, local_fields
from networks import CLASSES, FEATURES, ZOO, Repeated, fields_by_hooks, fill, samples


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("factory", "inputs"), ZOO.values(), ids=ZOO)
def test_fields_have_one_row_per_sample_and_no_gradient(factory, inputs):
    for field in local_fields(factory(), inputs(7)).values():
        assert field.ndim == 2
        assert len(field) == 7
        assert not field.requires_grad


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [(lambda x: (x, 3), lambda batch: batch[0]), (lambda x: {"x": x, "kind": "probe"}, lambda batch: batch["x"])],
    ids=["sequence", "mapping"],
)
def test_inputs_may_be_a_sequence_or_a_mapping(wrap, unwrap):
    network = networks.bn_mlp()

    class Unwrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, batch):
            return self.inner(unwrap(batch))

    fields, twins = local_fields(Unwrapping(), wrap(samples())), local_fields(network, samples())
    assert list(fields) == [f"inner.{name}" for name in twins]
    assert all(torch.equal(fields[f"inner.{name}"], twins[name]) for name in twins)


# Choosing


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["bn1"], ["bn1"]),
        (["bn3", "bn1"], ["bn1", "bn3"]),
        (["bn*"], ["bn1", "bn2", "bn3"]),
        (["bn[13]"], ["bn1", "bn3"]),
        (["bn?", "bn2"], ["bn1", "bn2", "bn3"]),
        (["*"], ["bn1", "bn2", "bn3"]),
        (["!bn2"], ["bn1", "bn3"]),
        (["!bn[12]"], ["bn3"]),
        (["bn*", "!bn3"], ["bn1", "bn2"]),
        (["!bn3", "bn3", "bn1"], ["bn1"]),
        (["fc1", "bn*", "!fc*", "!bn1"], ["bn2", "bn3"]),
    ],
)
def test_globs_choose_layers_in_order_of_execution(patterns, expected):
    network = networks.bn_mlp()
    everything = local_fields(network, samples())
    for read in (local_fields, linear_substitution_map):
        assert list(read(network, samples(), layers=patterns)) == expected
    fields = local_fields(network, samples(), layers=patterns)
    assert all(torch.equal(fields[name], everything[name]) for name in expected)


@pytest.mark.parametrize(
    ("patterns", "expected"), [(["fc:1"], ["fc:1"]), (["fc:*"], ["fc:1", "fc:2"]), (["!fc:1"], ["fc", "fc:2"])]
)
def test_runs_of_a_layer_can_be_chosen(patterns, expected):
    assert list(local_fields(fill(Repeated()), samples(), layers=patterns)) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"), [(["0", "1"], ["0", "1"]), (["*"], ["0", "1", "2"]), (["*", "!1"], ["0", "2"])]
)
def test_on_a_linear_network_modules_can_be_named(patterns, expected):
    network = networks.linear_network()
    fields = local_fields(network, samples(), layers=patterns)
    assert list(fields) == expected
    hooked = fields_by_hooks(network, samples(), expected)
    assert all(torch.equal(fields[name], hooked[name]) for name in expected)


def test_a_named_module_that_runs_again_is_numbered():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(FEATURES, FEATURES)

        def forward(self, x):
            return self.fc(self.fc(x))

    network = fill(Twice())
    fields = local_fields(network, samples(), layers=["fc"])
    assert list(fields) == ["fc", "fc:1"]
    close(fields["fc:1"], network.fc(network.fc(samples())).detach())


def test_a_module_and_a_local_field_can_be_read_together():
    network = networks.bn_mlp()
    fields = local_fields(network, samples(), layers=["bn2", "fc4"])
    assert list(fields) == ["bn2", "fc4"]
    close(fields["fc4"], network.eval()(samples()).detach())
    pathway = linear_substitution_map(network, samples(), layers=["fc4"])["fc4"]
    close(pathway, torch.eye(CLASSES))


def test_a_name_that_is_both_means_the_local_field():
    network = networks.functional_mlp()
    fields = local_fields(network, samples(), layers=["fc.*"])
    assert list(fields) == ["fc.0", "fc.1", "fc.2"]


# Errors


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("bn9", "`layers` names 'bn9', which matches nothing. The nearest are 'bn3', 'bn2', 'bn1'."),
        ("x*", "`layers` names 'x*', which matches nothing. The nearest are 'bn1', 'bn2', 'bn3', 'fc1', 'act1'."),
        (
            "act2",
            "`layers` names 'act2', which is an activation: a layer has the name of the module whose output the "
            "activation reads. The layers here are ['bn1', 'bn2', 'bn3'].",
        ),
        ("!fc1", "`layers` excludes 'fc1', which matches no layer. The nearest are 'bn1', 'bn2', 'bn3'."),
        ("!*", "`layers` must leave a layer, but ['!*'] exclude all of them."),
    ],
)
def test_a_name_that_matches_nothing_lists_the_nearest(pattern, message):
    for read in (local_fields, linear_substitution_map):
        with pytest.raises(ValueError, match="`layers`") as error:
            read(networks.bn_mlp(), samples(), layers=["bn1", pattern])
        assert str(error.value) == message


def test_a_string_is_not_taken_for_a_list_of_names():
    with pytest.raises(TypeError) as error:
        local_fields(networks.bn_mlp(), samples(), layers="bn1")
    assert str(error.value) == "`layers` must be a list of names or globs, got 'bn1'. Write layers=['bn1']."


def test_the_error_for_a_network_without_activations_names_a_remedy():
    with pytest.raises(ValueError, match="No activation") as error:
        local_fields(networks.linear_network(), samples())
    assert str(error.value) == (
        "No activation function was found, so there is no local field to read. For a linear network, name in `layers=` "
        "the modules whose outputs are to count as local fields, for instance ['0', '1', '2']. For an activation of "
        "your own see `netdyn.functional.register_activation`."
    )


def test_the_error_for_a_single_linear_module_names_a_remedy():
    with pytest.raises(ValueError, match="No activation") as error:
        local_fields(nn.Linear(FEATURES, CLASSES), samples())
    assert str(error.value) == (
        "No activation function was found, so there is no local field to read. The model is a single module: to read "
        "its output, wrap it in `nn.Sequential` and pass `layers=['0']`."
    )
    wrapped = nn.Sequential(fill(nn.Linear(FEATURES, CLASSES)))
    close(local_fields(wrapped, samples(), layers=["0"])["0"], wrapped(samples()).detach())


def test_a_module_that_is_not_called_is_refused_with_the_reason():
    layer = nn.TransformerEncoderLayer(FEATURES, 2, 10, dropout=0.0, batch_first=True)
    network = fill(nn.Sequential(layer, nn.Flatten(), nn.Linear(3 * FEATURES, CLASSES)))
    with pytest.raises(ValueError, match="holds samples") as error:
        local_fields(network, samples(9, shape=(3, FEATURES)), layers=["0.self_attn.out_proj"])
    assert str(error.value).startswith(
        "`layers` names '0.self_attn.out_proj', but no output of ['0.self_attn.out_proj'] holds samples: these modules "
        "are not called (like the parts of torch's attention), or their output is the same for all samples. Name a "
        "module around them. The nearest are "
    )
