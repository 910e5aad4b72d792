"""A probe: one fixed set of samples, its contents, and its way to a device."""

import torch

from netdyn._utils.random import Contents
from netdyn.probes.probe import Probe


def test_a_probe_moves_as_a_whole():
    probe = Probe({"x": torch.zeros(2, 3), "n": (torch.zeros(2), 5)}, torch.zeros(2, dtype=torch.int64))
    moved = probe.to(torch.device("meta"))
    assert {moved.inputs["x"].device.type, moved.inputs["n"][0].device.type, moved.target.device.type} == {"meta"}
    assert moved.inputs["n"][1] == 5


def test_contents_are_made_once_and_only_when_asked_for():
    probe = Probe(torch.arange(6.0).reshape(3, 2), torch.arange(3))
    assert "contents" not in vars(probe)
    assert torch.equal(probe.contents.digests, Contents.of(probe.inputs).digests)
    assert probe.contents is probe.contents
