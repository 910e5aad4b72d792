"""A layer that shows "-" says why, in print and in HTML."""

import pytest
import torch
from torch import nn

from netdyn import diagnose
from netdyn.report.html import html
from netdyn.report.reasons import reasons
from networks import FEATURES, fill, labels, samples

CLASSES = 6


class Network(nn.Module):
    """A backbone whose features reach the head in one way or another."""

    def __init__(self, how, width=24, classes=CLASSES):
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(FEATURES, width), nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                h = torch.relu(self.a(x))
        elif self.how == "own function":
            h = Solved.apply(x, self.a.weight, self.a)
        else:
            h = torch.relu(self.a(x))
        if self.how == "detach":
            h = h.detach()
        if self.how == "constant":
            h = torch.relu(0 * h)
        return self.head(torch.relu(self.b(h)))


class Solved(torch.autograd.Function):
    """What an adjoint solver does: its forward runs layers without gradients."""

    @staticmethod
    def forward(ctx, x, weight, layer):
        return torch.relu(layer(x))

    @staticmethod
    def backward(ctx, gradient):
        return None, None, None


def reported(network):
    return diagnose(network, samples(200), labels(200, network.head.out_features), measure=["modes"], progress=False)


@pytest.mark.parametrize(
    ("how", "layers", "why"),
    [
        ("detach", "a", "no gradient leads from the layer to the outputs"),
        ("no_grad", "a", "the layer runs without gradients, or inside an autograd function"),
        ("own function", "a", "the layer runs without gradients, or inside an autograd function"),
    ],
)
def test_what_is_not_wired_says_why(how, layers, why):
    report = reported(fill(Network(how)))
    (line,) = reasons(report)
    assert line.startswith(f'"-" in {layers}: {why}')
    assert line in str(report).splitlines()
    assert line.replace('"', "&quot;") in html(report).replace("&#x27;", "'")


def test_a_head_of_zeros_leaves_all_layers_unwired():
    network = fill(Network(""))
    nn.init.zeros_(network.head.weight)
    (line,) = reasons(reported(network))
    assert line.startswith('"-" in a, b: no live unit is wired to the outputs: every way is multiplied by zero')


def test_constant_fields_and_what_leads_to_them_are_two_kinds():
    first, second = reasons(reported(fill(Network("constant"))))
    assert first == '"-" in model, b: the local field of every unit is the same for all samples.'
    assert second.startswith('"-" in a: no live unit is wired to the outputs')


def test_few_units_and_few_classes_leave_no_rule():
    (line,) = reasons(reported(fill(Network("", width=10, classes=3))))
    assert line.startswith('"-" in a, b: fewer than 20 live units are too few to tell OPT from NPT')


def test_layers_with_numbers_need_no_reason():
    report = reported(fill(Network("")))
    assert len(report.layers) == 2
    assert reasons(report) == []
