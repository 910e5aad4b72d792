"""Class tuning and mid-ranks, against SciPy and against a plain sort.

There are 2,000 samples of 2,048 units in float32, and ten classes. Class tuning is 2·AUC − 1 for each class and unit.
SciPy computes it with one `scipy.stats.mannwhitneyu(axis=0)` per class, which ranks all samples again each time and
also gives p-values. Mid-ranks are compared with `scipy.stats.rankdata(axis=0)`, and with the minimum that any ranking
must do: `numpy.argsort` on contiguous rows. Before anything is timed, the results of both sides are checked to be
equal.
"""

from __future__ import annotations

import numpy as np
import pairs
import torch
from pairs import Clock, Options, Row, Target, alternate, ratios, row
from scipy import stats
from workload import CLASSES, generator

from netdyn.functional import class_tuning, midranks


def of_scipy(fields: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class tuning from one Mann–Whitney test per class, ``[classes, units]``."""
    tuning = []
    for k in range(CLASSES):
        inside, outside = fields[labels == k], fields[labels != k]
        statistic = stats.mannwhitneyu(inside, outside, axis=0).statistic
        tuning.append(2 * statistic / (len(inside) * len(outside)) - 1)
    return np.stack(tuning)


def measure(options: Options) -> list[Row]:
    """Three rows."""
    samples, units = options.pick(2000, 60), options.pick(2048, 16)
    fields = torch.randn(samples, units, generator=generator(0)).to(options.device)
    labels = (torch.arange(samples) % CLASSES).to(options.device)
    array, truth = fields.cpu().numpy(), labels.cpu().numpy()
    rows = np.ascontiguousarray(array.T)
    np.testing.assert_allclose(
        class_tuning(fields, labels, CLASSES).cpu().numpy(), of_scipy(array, truth), rtol=0, atol=1e-6
    )
    np.testing.assert_array_equal(midranks(fields).cpu().numpy(), stats.rankdata(array, axis=0))

    clock, turns = Clock(options), options.pick(5 if options.threads == 1 else 3, 2)
    tuning = alternate(
        {
            "netdyn": lambda: class_tuning(fields, labels, CLASSES),
            "scipy": lambda: of_scipy(array, truth),
        },
        turns,
        clock,
    )
    ranks = alternate(
        {
            "netdyn": lambda: midranks(fields),
            "scipy": lambda: stats.rankdata(array, axis=0),
            "sort": lambda: np.argsort(rows, axis=1),
        },
        options.pick(11, 2),
        clock,
    )
    size = f"{samples:,} × {units:,}"
    return [
        row(
            f"class tuning, {CLASSES} classes, {size}",
            "`scipy.stats.mannwhitneyu` per class",
            ratios(tuning["scipy"], tuning["netdyn"]),
            Target(20, at_most=False, unit="× faster"),
            unit="× faster",
            threads=options.threads,
        ),
        row(
            f"mid-ranks, {size}",
            "`scipy.stats.rankdata`",
            ratios(ranks["scipy"], ranks["netdyn"]),
            Target(3, at_most=False, unit="× faster"),
            unit="× faster",
            threads=options.threads,
        ),
        row(
            f"mid-ranks, {size}",
            "`numpy.argsort` of rows, a plain sort",
            ratios(ranks["netdyn"], ranks["sort"]),
            Target(4, unit="× its time"),
            unit="× its time",
            threads=options.threads,
        ),
    ]


if __name__ == "__main__":
    pairs.main(measure, __doc__)
