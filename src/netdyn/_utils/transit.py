"""Between host and device: what is sent and what is read, and who waits for whom.

A device such as a GPU works through what it is given while the host goes on. Whoever reads a number waits until all
that was given before is done, and the device then waits until it is given more. So what a measurement has to know is
sent ahead, and what it has found is read when everything has been given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

#: Devices that copy from and to the host while both go on.
STREAMED = {"cuda"}
#: Most bytes on their way to devices at a time. They lie in memory that stays in its place, which PyTorch keeps for as
#: long as the process runs.
UNDER_WAY = 64 << 20


class Mark(Protocol):
    """A place among what a device was given."""

    def synchronize(self) -> None:
        """Wait until the device has come so far."""


#: What is on its way, the oldest first: its last byte's mark, and its size.
_sent: deque[tuple[Mark, int]] = deque()


def mark(device: torch.device) -> Mark:
    """The place that a device's work has been given up to."""
    event: Mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))  # type: ignore[attr-defined]
    return event


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; one from the host without waiting for what the device still has to do.

    It goes through memory that stays in its place, since a copy from any other would have to be waited for, and in
    pieces of which ``UNDER_WAY`` bytes are held. Where there are more the host waits until the oldest have arrived,
    while the device has what was given since.
    """
    if device.type not in STREAMED or tensor.device.type != "cpu":
        return tensor.to(device)
    whole = tensor.detach().contiguous()
    made = torch.empty_like(whole, device=device)
    entries = max(UNDER_WAY // 2 // whole.element_size(), 1)
    pieces, places = (torch.split(value.reshape(-1), entries) for value in (whole, made))
    for piece, place in zip(pieces, places, strict=True):
        size = piece.numel() * piece.element_size()
        while _sent and sum(held for _, held in _sent) + size > UNDER_WAY:
            _sent.popleft()[0].synchronize()
        place.copy_(piece.pin_memory() if device.type == "cuda" else piece, non_blocking=True)
        _sent.append((mark(device), size))
    return made


def together(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of some small tensors, read at once: a flat list for each.

    >>> together([torch.tensor(True), torch.tensor([0.5, 2.0])])
    [[1.0], [0.5, 2.0]]
    """
    if not tensors:
        return []
    flat = torch.cat([tensor.detach().reshape(-1).to(tensors[0].device) for tensor in tensors]).tolist()
    numbers = iter(map(float, flat))
    return [[next(numbers) for _ in range(tensor.numel())] for tensor in tensors]


class Coming:
    """A tensor on its way to the host, while the device goes on.

    Example:
        >>> coming = Coming(torch.tensor([1, 2]))
        >>> coming.arrived().tolist()
        [1, 2]
    """

    def __init__(self, tensor: Tensor) -> None:
        streamed = tensor.device.type in STREAMED
        self._value = tensor.detach().to("cpu", non_blocking=streamed)
        self._mark = mark(tensor.device) if streamed else None

    def arrived(self) -> Tensor:
        """The tensor, as soon as it is here."""
        if self._mark is not None:
            self._mark.synchronize()
        return self._value
