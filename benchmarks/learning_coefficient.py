"""The weight radius, against devinterp's local learning coefficient.

Both explore the neighbourhood of the weights of one network with one set of samples. They measure different quantities:
the radius is the distance at which accuracy falls to a half, and the coefficient shows how degenerate the loss is near
the weights. This benchmark compares only their cost. `estimate_learning_coeff_with_summary` takes 2 chains of 100
draws, with one step of SGLD per draw (step size 1e-4, localization 100), no burn-in, and batches of 512 of the same
1,024 samples. netdyn uses 784-256-256-10 after 400 steps of Adam, with 1,024 of its training samples. Its rays have 128
of them each, and their number is doubled from the default 16 until the 95 % interval, on average over five seeds, is as
narrow as that of 8 rays on all samples, or as ± 5 % of the radius. Intervals cover the choice of the samples too.
"""

from __future__ import annotations

import math

import pairs
import torch
from pairs import Options, Row
from peers import failed, inside, version
from torch import Tensor, nn
from torch.utils.data import DataLoader
from weight_radius import compare
from workload import Batches, joined, trained

WHAT = "weight radius"
AGAINST = "devinterp `estimate_learning_coeff_with_summary`, 2 × 100 draws"
BATCH = 512


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy, in the form that devinterp requires."""
    outputs = model(batch[0])
    return nn.functional.cross_entropy(outputs, batch[1]), {"logits": outputs}


def measure(options: Options) -> list[Row]:
    """Two rows."""
    if (missing := inside("devinterp", WHAT, AGAINST)) is not None:
        return missing
    try:
        from devinterp.optim.sgld import SGLD
        from devinterp.slt.sampler import estimate_learning_coeff_with_summary

        network, x, y = trained(options.pick(400, 50), options.device)
        loader = DataLoader(Batches(x, y), BATCH, shuffle=True, collate_fn=joined)

        def coefficient() -> dict[str, float]:
            return estimate_learning_coeff_with_summary(
                network,
                loader,
                evaluate=loss,
                sampling_method=SGLD,
                optimizer_kwargs={"lr": 1e-4, "localization": 100.0},
                num_chains=2,
                num_draws=options.pick(100, 5),
                device=torch.device(options.device),
                seed=0,
                verbose=False,
            )

        if not math.isfinite(found := coefficient()["llc/mean"]):
            raise ValueError(f"the chains have diverged, the coefficient is {found}")
        return compare(options, network, x, y, coefficient, f"{AGAINST} ({version('devinterp')})", 25)
    except Exception as error:
        return failed("devinterp", WHAT, AGAINST, error)


if __name__ == "__main__":
    pairs.main(measure, __doc__)
