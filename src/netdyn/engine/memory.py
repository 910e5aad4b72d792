"""What one evaluation leaves for the next, so that it costs less."""

from __future__ import annotations

from dataclasses import dataclass, field

from netdyn._utils.doubts import Answers
from netdyn.basins.brackets import Brackets


@dataclass
class Memory:
    """What the last evaluation has found.

    Of what is measured only numbers of passes depend on it, and in which of the cells in which it is lost the ray of a
    sample ends that comes back, see :func:`netdyn.basins.sample_basin.begin_sample_basin`.

    Attributes:
        brackets: Where rays were lost in sample space.
        answers: Where the samples were in the network's tensors, see :class:`netdyn._utils.doubts.Doubts`.
        rays_walked: Whether there was a way to go in weight space.
    """

    brackets: Brackets = field(default_factory=Brackets)
    answers: Answers = field(default_factory=dict)
    rays_walked: bool = False
