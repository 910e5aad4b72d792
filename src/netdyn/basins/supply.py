"""The noise of one search: made when it is first asked for, and kept while there is room for all of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from netdyn._utils.transit import sent
from netdyn._utils.trees import Inputs, consecutive
from netdyn.basins.input_noise import Noise, Rows

#: Most bytes of noise that are kept, on the device where the network runs. 64 MiB are 20 rays of 1,024 MNIST images.
HELD = 64 << 20


class Supply:
    """Noise of the rays of some samples.

    A search comes back to its rays: a few at the top, and all once more for the correction. Where the noise of all of
    them takes no more than ``HELD`` bytes it is kept, each row as it is first asked for; else it is made anew each
    time. Both ways it is the same.

    Args:
        noise: Where it falls, and its seed.
        inputs: All samples, for the shapes.
        prints: Digests of all samples.
        rays: Rays a sample.

    Attributes:
        made: Rows made so far.
        bytes: Size of the noise of all rays, in bytes.
    """

    def __init__(self, noise: Noise, inputs: Inputs, prints: Sequence[bytes], rays: int) -> None:
        self.noise, self.inputs, self.prints = noise, inputs, prints
        self.made, self.bytes = 0, 4 * noise.components(inputs) * rays * len(prints)
        # Kept in the order of their making, so that rows that are asked for together lie together.
        self._kept: Rows = []
        self._place = torch.full((rays * len(prints) if self.bytes <= HELD else 0,), -1)

    @property
    def held(self) -> int:
        """Bytes of noise kept."""
        return sum(4 * kept.numel() for kept in self._kept if kept is not None)

    def rows(self, rays: Tensor, index: Tensor) -> Rows:
        """The noise of some rows: their rays and their samples, int64 on the CPU. It must not be written over."""
        if not len(self._place):
            return self._draw(rays, index)
        number = rays * len(self.prints) + index
        missing = self._place[number] < 0
        if bool(missing.any()):
            # Processes in step with one another may ask for the same row twice.
            new = torch.unique(number[missing])
            self._keep(new, self._draw(new // len(self.prints), new % len(self.prints)))
        part = consecutive(self._place[number])
        return [None if kept is None else _chosen(kept, part) for kept in self._kept]

    def _draw(self, rays: Tensor, index: Tensor) -> Rows:
        self.made += len(index)
        return self.noise.draw(self.inputs, [self.prints[i] for i in index.tolist()], rays.tolist())

    def _keep(self, number: Tensor, drawn: Rows) -> None:
        first, capacity = int((self._place >= 0).sum()), len(self._place)
        last = first + len(number)
        self._place[number] = torch.arange(first, last)
        if len(number) == capacity:
            self._kept = drawn
            return
        if not self._kept:
            self._kept = [None if own is None else own.new_empty(capacity, *own.shape[1:]) for own in drawn]
        for kept, own in zip(self._kept, drawn, strict=True):
            if kept is not None and own is not None:
                kept[first:last] = own


def _chosen(kept: Tensor, part: Tensor | slice) -> Tensor:
    return kept[part] if isinstance(part, slice) else kept.index_select(0, sent(part, kept.device))
