"""The job of two processes that share the work of `diagnose`, for targets of every kind."""

from __future__ import annotations

import torch
from torch import nn

from netdyn import diagnose
from netdyn._utils.distributed import Processes

KINDS = ("positions", "several labels", "an autoencoder")


def measured(kind: str, together: bool = True) -> dict[str, float]:
    """All scalars; of positions the samples have different numbers of labels, and one has none."""
    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    x = torch.randn(41, 1, 4, 4)
    with torch.no_grad():
        if kind == "positions":
            y = net(x).argmax(1)
            y[torch.arange(16).reshape(4, 4) < (torch.arange(41) % 15)[:, None, None]] = -100
            y[3] = -100
        elif kind == "several labels":
            net, x = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 4)).eval(), torch.randn(41, 5)
            y = (net(x) > 0.01).float()
        else:
            net, y = nn.Sequential(*net[:2], nn.Conv2d(6, 1, 1)).eval(), x
    processes = Processes.world() if together else Processes()
    options = {"accuracy": 0.6, "weight_rays": 3, "accuracy_of": "labels", "max_classes": 10}
    return diagnose(net, x, y, processes=processes, progress=False, **options).scalars()
