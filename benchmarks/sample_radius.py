"""The cost of a sample radius at the same standard error, in forward passes per sample.

The network is an MLP 64-64-64-10 trained on handwritten digits, with the 597 other digits as the probe and the radius
at accuracy 0.5. Nothing is timed; passes are counted. Every method is run with many seeds of its noise. The variance of
log radius over the seeds is its squared standard error, for the given network and samples. A method that is more
precise with one draw per sample could use fewer draws, and a less precise one needs more, in proportion to the
variance. Therefore each cost is multiplied by the ratio of the method's variance to that of netdyn's search with one
ray per sample. n is the number of groups of 20 seeds.

- *Ladder*: the accuracy at 41 noise levels from 0.001 to 10, with one draw per sample and level, interpolated linearly
  in log σ between the two levels around the radius. All 41 levels count, because the ladder does not know in advance
  where the radius is.
- *foolbox*: `L2RepeatedAdditiveGaussianNoiseAttack` with the same levels as its list of epsilons (ε = σ√d), one repeat,
  no check of the sample without noise, and no clipping. With more repeats it finds the σ at which any of several draws
  is lost, which is a different radius. At each level it also makes a second pass, in which it checks its own result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pairs
import torch
from pairs import Options, Row, Target, row
from peers import failed, inside, version
from torch import Tensor, nn

from basins import mlp, on_digits
from netdyn.functional import sample_basin

GROUP = 20
LEVELS = torch.logspace(-3, 1, 41)
#: Samples that passed so far. It is a global because netdyn restores everything that it can reach from the network.
PASSED = 0
WHAT = "sample radius, one ray per sample"


def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A hook that counts samples."""
    global PASSED
    PASSED += len(inputs[0])


def crossing(accuracy: Tensor, wanted: float = 0.5) -> float:
    """Where accuracy first falls below the wanted one, interpolated linearly in log σ from the level before."""
    below = int((accuracy < wanted).nonzero()[0])
    before, after = float(accuracy[below - 1]), float(accuracy[below])
    part = (before - wanted) / (before - after)
    low, high = math.log(LEVELS[below - 1]), math.log(LEVELS[below])
    return math.exp((1 - part) * low + part * high)


def ladder(network: nn.Module, x: Tensor, y: Tensor, seed: int) -> float:
    """The radius from one draw per sample at each level."""
    draw = torch.Generator().manual_seed(seed)
    right = []
    with torch.no_grad():
        for sigma in LEVELS.tolist():
            noise = torch.randn(x.shape, generator=draw).to(x.device)
            right.append((network(x + sigma * noise).argmax(1) == y).double().mean())
    return crossing(torch.stack(right).cpu())


def foolboxs(network: nn.Module, x: Tensor, y: Tensor, seed: int) -> float:
    """The radius from foolbox's attack at each level."""
    import foolbox

    model = foolbox.PyTorchModel(network, bounds=(-1e6, 1e6), device=x.device)
    attack = foolbox.attacks.L2RepeatedAdditiveGaussianNoiseAttack(repeats=1, check_trivial=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        epsilons = [sigma * math.sqrt(x[0].numel()) for sigma in LEVELS.tolist()]
        _, _, lost = attack(model, x, y, epsilons=epsilons)
    return crossing(1 - lost.double().mean(dim=1).cpu())


def netdyns(network: nn.Module, x: Tensor, y: Tensor, seed: int) -> float:
    """The radius of netdyn's search."""
    return sample_basin(network, x, y, accuracy=0.5, seed=seed).radius


def spread(
    find: Callable[[nn.Module, Tensor, Tensor, int], float], network: nn.Module, x: Tensor, y: Tensor, groups: int
) -> tuple[list[float], float]:
    """Variance of log radius over the seeds of each group, and passes per sample of one search."""
    before, hook = PASSED, network.register_forward_pre_hook(count)
    found = torch.tensor([math.log(find(network, x, y, seed)) for seed in range(GROUP * groups)])
    hook.remove()
    return found.reshape(groups, GROUP).var(dim=1).tolist(), (PASSED - before) / len(x) / len(found)


def measure(options: Options) -> list[Row]:
    """Two rows."""
    against = "foolbox `L2RepeatedAdditiveGaussianNoiseAttack`, 41 epsilons"
    missing = inside("foolbox", WHAT, against)
    network, x, y = on_digits(lambda: mlp(64, 64, 64, 10), 200)
    network, x, y = network.to(options.device), x.to(options.device), y.to(options.device)
    groups = options.pick(10, 1)
    own, cost = spread(netdyns, network, x, y, groups)

    def times_fewer(find: Callable[[nn.Module, Tensor, Tensor, int], float], name: str, least: float) -> Row:
        others, passes = spread(find, network, x, y, groups)
        fewer = [passes * b / a / cost for a, b in zip(own, others, strict=True)]
        note = (
            f"{name}: {passes:.4g} passes with one draw per sample, netdyn {cost:.4g}; standard errors of log radius "
            f"{math.sqrt(sum(others) / groups):.3f} and {math.sqrt(sum(own) / groups):.3f}, n groups of {GROUP} seeds."
        )
        return row(
            WHAT,
            name,
            fewer,
            Target(least, at_most=False, unit="× fewer passes"),
            unit="× fewer passes",
            note=note,
        )

    rows = [times_fewer(ladder, "ladder of 41 noise levels", 20)]
    try:
        rows += missing or [times_fewer(foolboxs, f"{against} ({version('foolbox')})", 5)]
    except Exception as error:
        rows += failed("foolbox", WHAT, against, error)
    return rows


if __name__ == "__main__":
    pairs.main(measure, __doc__)
