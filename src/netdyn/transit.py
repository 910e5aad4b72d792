"""Between host and device: what is sent and what is read, and who waits for whom.

A device such as a GPU works through what it is given while the host goes on. Whoever reads a number waits until all
that was given before is done, and the device then waits until it is given more. So what a measurement has to know is
sent ahead, and what it has found is read when everything has been given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Devices that copy from and to the host while both go on.
STREAMED = {"cuda"}
#: Most bytes that are sent through memory in a fixed place: PyTorch keeps such memory for as long as the process runs.
PINNED = 64 << 20


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; one from the host without waiting for what the device still has to do.

    It goes through memory that stays in its place, since a copy from any other would have to be waited for, as it is
    where there is more than ``PINNED``.
    """
    small = tensor.numel() * tensor.element_size() <= PINNED
    if device.type not in STREAMED or tensor.device.type != "cpu" or not small:
        return tensor.to(device)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


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
        self._event: torch.cuda.Event | None = None
        self._value = tensor.detach().to("cpu", non_blocking=tensor.device.type in STREAMED)
        if tensor.device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))

    def arrived(self) -> Tensor:
        """The tensor, as soon as it is here."""
        if self._event is not None:
            self._event.synchronize()
        return self._value
