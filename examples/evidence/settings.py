"""The labelled trainings: what each of them is made to be, on which data, with which network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

#: Networks of a stratum, and of everything else in turn: family, width, depth, optimiser, rate, weight decay.
NETWORKS = (
    ("mlp", 64, 2, "sgd", 0.05, 0.0),
    ("mlp", 128, 2, "adam", 1e-3, 0.0),
    ("mlp", 256, 2, "sgd", 0.02, 0.0),
    ("mlp", 64, 4, "adam", 1e-3, 0.0),
    ("mlp", 128, 3, "sgd", 0.05, 5e-3),
    ("gelu", 128, 2, "adam", 2e-3, 0.1),
    ("norm", 64, 2, "sgd", 0.05, 0.0),
    ("norm", 128, 3, "adam", 1e-3, 0.0),
    ("cnn", 8, 2, "sgd", 0.05, 0.0),
    ("cnn_norm", 12, 2, "adam", 2e-3, 0.0),
    ("residual", 64, 3, "adam", 1e-3, 0.0),
    ("transformer", 32, 1, "adam", 2e-3, 0.0),
)
#: Data of the strata, per data set: number of samples, share of wrong labels, and the even one of two seeds.
STRATA = {
    "digits": ((1000, 0.0, 0), (400, 0.0, 4), (80, 0.0, 6), (300, 0.3, 8), (600, 0.5, 10)),
    "MNIST": ((12000, 0.0, 0), (800, 0.0, 4), (100, 0.0, 6), (1000, 0.2, 8), (600, 0.5, 10)),
}
#: Samples of a training that is to generalise.
ENOUGH = {"digits": 1000, "MNIST": 12000}
#: The other constructions, and the variants that their seeds take in turn.
KINDS = {
    "healthy": ("plain",),
    "untrained": ("rate", "labels", "zeros"),
    "learning": ("0.4", "0.55", "0.7", "0.8"),
    "dead": ("bias", "layer", "rate", "most"),
    "stale": ("momentum", "frozen"),
    "shift": ("bright", "blurred", "rotated"),
    "diverged": ("jump", "adam", "rate", "nan", "ascent", "nan"),
}
#: Trainings of each of these kinds, and of grokking.
EACH, GROKKING = 24, 6
#: Networks for which a construction makes sense: stale statistics need some, dead units a ReLU and no normalisation.
SUITED = {
    "stale": [k for k, (family, *_) in enumerate(NETWORKS) if "norm" in family],
    "dead": [k for k, (family, *_) in enumerate(NETWORKS) if family in ("mlp", "cnn")],
}


@dataclass(frozen=True)
class Setting:
    """One training.

    Attributes:
        kind: What it is made to be: a key of :data:`KINDS`, ``"stratum"`` or ``"grokking"``.
        variant: How; of a stratum its name.
        data: ``"digits"`` or ``"MNIST"``.
        samples: Number of training samples.
        noise: Share of wrong training labels.
        network: Place in :data:`NETWORKS`.
        seed: Seed of everything random; of a stratum, of its data. Its parity decides the half.
        steps: Most optimiser steps.
    """

    kind: str
    variant: str
    data: str
    samples: int
    noise: float
    network: int
    seed: int
    steps: int = 1500

    @property
    def name(self) -> str:
        """A name that no other training has."""
        return f"{self.kind}-{self.variant}-{self.data}-{self.network}-{self.seed}"

    @property
    def half(self) -> str:
        """The half of the trainings that this one belongs to.

        Thresholds are chosen on A, where seeds are even, and judged on B. A stratum is in one half as a whole, since
        its trainings share their data.
        """
        return "A" if self.seed % 2 == 0 else "B"


def settings(mnist: bool, quick: bool = False) -> list[Setting]:
    """All trainings, in an order in which every beginning of the list holds all kinds.

    >>> full = settings(mnist=True)
    >>> len(full), len({s.name for s in full}), len(settings(mnist=False, quick=True))
    (414, 414, 44)
    >>> sum(s.half == "A" for s in full)
    207
    """
    sets = ["digits", "MNIST"] if mnist else ["digits"]
    made = []
    for data in sets:
        for samples, noise, even in STRATA[data]:
            for seed, network in product((even, even + 1), range(len(NETWORKS))):
                made.append(Setting("stratum", f"{samples}/{noise}", data, samples, noise, network, seed))
    for kind, variants in KINDS.items():
        suited = SUITED.get(kind, list(range(len(NETWORKS))))
        for number in range(EACH):
            # Two trainings, an even and an odd seed, of each combination in turn.
            pair = number // 2
            data = sets[pair % len(sets)]
            variant = variants[pair // len(sets) % len(variants)]
            network = suited[(5 * pair + number % 2) % len(suited)]
            made.append(Setting(kind, variant, data, ENOUGH[data], 0.0, network, 100 + number, 600))
    made += [Setting("grokking", "digits", "digits", 200, 0.0, 0, 100 + number, 3000) for number in range(GROKKING)]
    made.sort(key=lambda s: (s.seed * 7919 + s.network * 104729 + len(s.kind) * 1299709) % 1000)
    if not quick:
        return made
    few = [s for s in made if s.kind == "stratum" and s.data == "digits" and s.network in (0, 3, 7)]
    return few + [s for s in made if s.kind not in ("stratum", "grokking") and s.data == "digits" and s.seed < 102]
