"""The noise of one search: the same whether it is kept or made anew, each row made once, within its bound."""

import pytest
import torch
from torch import nn

from netdyn._utils.trees import fingerprints, sample_tensors
from netdyn.basins import supply as room
from netdyn.basins.input_noise import Noise
from netdyn.basins.supply import Supply

NETWORK = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
INPUTS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def supply(rays=3, names=None, inputs=INPUTS):
    cut = sample_tensors(inputs)
    noise = Noise.at(NETWORK, inputs, cut, names, 0)
    return Supply(noise, inputs, fingerprints(inputs, cut), rays)


def asked(count, seed):
    """Rays and samples of some rows, some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, (count,), generator=generator), torch.randint(20, (count,), generator=generator)


def same(rows, others):
    assert len(rows) == len(others)
    for a, b in zip(rows, others, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("names", [None, ["0"]], ids=["inputs", "module"])
def test_noise_kept_is_noise_made_anew(monkeypatch, names):
    kept = supply(names=names)
    monkeypatch.setattr(room, "HELD", kept.bytes - 1)
    fresh = supply(names=names)
    for seed in range(5):
        same(kept.rows(*asked(15, seed)), fresh.rows(*asked(15, seed)))
    assert fresh.made == 5 * 15
    assert fresh.held == 0


def test_each_row_is_made_once():
    noise = supply()
    met = set()
    for seed in range(8):
        rays, index = asked(15, seed)
        noise.rows(rays, index)
        met |= {*zip(rays.tolist(), index.tolist(), strict=True)}
        assert noise.made == len(met)


def test_bytes_are_those_of_all_rays():
    noise = supply(rays=5)
    assert (noise.bytes, noise.held) == (4 * 5 * 20 * 6, 0)
    noise.rows(*asked(1, 0))
    assert noise.held == noise.bytes
    # The module puts out four numbers, and the inputs stay as they are.
    assert supply(rays=5, names=["0"]).bytes == 4 * 5 * 20 * 4


def test_rows_side_by_side_are_not_copied():
    noise, rays = supply(), torch.zeros(20, dtype=torch.int64)
    (whole,) = noise.rows(rays, torch.arange(20))
    (part,) = noise.rows(rays[:7], torch.arange(5, 12))
    assert part.data_ptr() == whole[5:].data_ptr()


def test_tensors_without_noise_have_none():
    inputs = {"ids": torch.arange(20), "image": INPUTS}
    for _ in range(2):
        ids, image = supply(inputs=inputs).rows(*asked(4, 0))
        assert ids is None
        assert image.shape == (4, 6)
