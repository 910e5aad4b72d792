"""The weight radius, against PyHessian's largest eigenvalue.

This is the same comparison with the largest eigenvalue of the Hessian of the loss, from power iteration at PyHessian's
defaults (at most 100 iterations, relative tolerance 0.001). PyHessian gets the same 1,024 samples in one batch, so it
computes the gradient only once; this is its fastest setting. The number of iterations depends on the network.
"""

from __future__ import annotations

import pairs
import torch
from pairs import Options, Row
from peers import failed, inside, version
from torch import nn
from weight_radius import compare
from workload import trained

WHAT, AGAINST = "weight radius", "PyHessian, largest eigenvalue"


def measure(options: Options) -> list[Row]:
    """Two rows."""
    if (missing := inside("pyhessian", WHAT, AGAINST)) is not None:
        return missing
    try:
        from pyhessian import hessian

        network, x, y = trained(options.pick(400, 50), options.device)

        def eigenvalue() -> object:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                cuda = options.device.startswith("cuda")
                found = hessian(network, nn.CrossEntropyLoss(), data=(x, y), cuda=cuda).eigenvalues()
            network.zero_grad()
            return found

        return compare(options, network, x, y, eigenvalue, f"{AGAINST} ({version('pyhessian')})", None)
    except Exception as error:
        return failed("pyhessian", WHAT, AGAINST, error)


if __name__ == "__main__":
    pairs.main(measure, __doc__)
