"""Layers are named after the module whose output the local field is, the same in every call and mode."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from netdyn.functional import linear_substitution_map, local_fields
from netdyn.tracing.names import Origins, clean_name
from networks import CLASSES, FEATURES, ZOO, Own, Repeated, ResidualCNN, Sum, fill, samples


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


ACTS = {"module": nn.SiLU(), "in place": nn.SiLU(inplace=True), "own": Own(F.silu), "own formula": networks.Swish()}


def test_layers_are_named_after_the_module_whose_output_the_field_is():
    assert list(local_fields(networks.bn_mlp(), samples())) == ["bn1", "bn2", "bn3"]


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_sum_is_named_after_the_innermost_module_running(act):
    assert list(local_fields(fill(Sum(act)), samples())) == ["act"]


def test_sums_in_a_residual_network_are_named_after_the_activation_that_reads_them():
    assert tuple(local_fields(networks.residual_cnn(), networks.images())) == ResidualCNN.FIELDS


def test_without_any_submodule_running_the_name_is_model():
    assert list(local_fields(fill(Sum()), samples())) == ["model"]


def test_modules_that_do_nothing_do_not_change_the_name():
    layers = [nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Identity(), nn.ReLU(), nn.Linear(8, CLASSES)]
    assert list(local_fields(fill(nn.Sequential(*layers)), samples())) == ["0"]


def test_layers_that_run_again_are_numbered():
    network = fill(Repeated())
    fields = local_fields(network, samples())
    assert list(fields) == ["fc", "fc:1", "fc:2"]
    h = samples()
    for field in fields.values():
        close(field, network.fc(h).detach())
        h = network.fc(h).relu()


def test_a_shared_activation_module_lends_its_name_to_no_layer():
    assert list(local_fields(networks.shared_mlp(), samples())) == ["0", "2", "4"]


def test_nested_names_are_the_modules_own():
    network = fill(nn.ModuleDict({"encoder": nn.Sequential(nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU()))}))
    network.forward = lambda x: network["encoder"](x)
    assert list(local_fields(network, samples())) == ["encoder.0.0"]


def test_layers_come_in_order_of_execution():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = (nn.Linear(FEATURES, FEATURES) for _ in range(3))

        def forward(self, x):
            return self.last(F.relu(self.middle(F.relu(self.first(x)))))

    assert list(local_fields(fill(Backwards()), samples())) == ["first", "middle"]


@pytest.mark.parametrize(("factory", "inputs"), ZOO.values(), ids=ZOO)
def test_names_are_the_same_in_every_call_and_mode_and_for_every_batch_size(factory, inputs):
    network = factory()
    names = list(local_fields(network, inputs()))
    assert names
    for number in (1, 2, 3, 80):
        assert list(local_fields(network, inputs(number))) == names
    assert list(linear_substitution_map(network, inputs())) == names
    assert list(local_fields(network.eval(), inputs())) == names


def test_a_forward_that_recovers_from_a_failing_module_keeps_its_names():
    class Fragile(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of order")

    class Recovering(Sum):
        def __init__(self):
            super().__init__()
            self.fragile = Fragile()

        def forward(self, x):
            try:
                return self.fragile(x)
            except RuntimeError:
                return super().forward(x)

    network = fill(Recovering())
    fields = local_fields(network, samples())
    assert list(fields) == ["model"]
    close(fields["model"], (network.left(samples()) + network.right(samples())).detach())


def test_compiling_leaves_no_mark_on_names():
    network = networks.bn_mlp()
    compiled = torch.compile(network, backend="eager")
    fields, twins = local_fields(compiled, samples()), local_fields(network, samples())
    assert list(fields) == ["bn1", "bn2", "bn3"]
    assert all(torch.equal(fields[name], twins[name]) for name in twins)


@pytest.mark.parametrize(
    ("name", "clean"), [("_orig_mod.encoder.fc", "encoder.fc"), ("encoder._orig_mod", "encoder"), ("", "")]
)
def test_a_clean_name_has_no_part_that_compiling_adds(name, clean):
    assert clean_name(name) == clean


def test_a_tensor_keeps_the_name_of_its_module_until_it_is_overwritten():
    model = nn.Sequential(nn.Identity(), nn.Identity())
    origins, tensor = Origins(model), torch.zeros(2)
    assert origins.name_of(tensor) == "model"
    for module in model:
        origins.returned(origins.enter(module), [tensor])
        origins.leave()
    assert origins.name_of(tensor) == "0"
    assert origins.name_of(tensor.clone()) == "model"
    tensor.add_(1)
    assert origins.name_of(tensor) == "model"
    origins.enter(model[1])
    assert origins.name_of(tensor) == "1"
