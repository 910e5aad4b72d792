"""Counts of what an evaluation does: passes through a network, calls of functions, kernels of torch."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations that make the host wait for a device's answer.
WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select")

#: Samples of each forward pass so far. On the network itself an evaluation would put them back.
PASSES = []


class Counting(nn.Sequential):
    """A network that notes how many samples pass through it."""

    def forward(self, x):
        PASSES.append(len(x))
        return super().forward(x)


@contextmanager
def counted(monkeypatch, owner, name):
    """The first arguments of every call of a function."""
    calls, original = [], getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(args[0] if args else None)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counting)
        yield calls


class Kernels(TorchDispatchMode):
    """Counts how often each of torch's operations runs."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            name = "nonzero"
        self.calls[name] += 1
        return func(*args, **kwargs or {})

    @property
    def waits(self):
        return sum(self.calls[name] for name in WAITS)
