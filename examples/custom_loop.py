"""A plain PyTorch loop, watched in TensorBoard: no Lightning, two lines of netdyn.

python examples/custom_loop.py
tensorboard --logdir runs
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from netdyn import Monitor


def main(epochs: int = 15, folder: str = "runs/custom_loop") -> None:
    """Train on handwritten digits; curves, histograms and figures go to ``folder``."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32)
    y = torch.tensor(labels)
    train, held_out = (x[:1000], y[:1000]), (x[1000:], y[1000:])

    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    monitor = Monitor(train, held_out, loggers=folder, schedule="log")
    step = 0
    for _ in range(epochs):
        for batch in torch.randperm(len(train[0])).split(64):
            if monitor.due(step):
                monitor.measure(net, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(train[0][batch]), train[1][batch]).backward()
            optimizer.step()
            step += 1
    print(monitor.measure(net, step))
    monitor.close(net)


if __name__ == "__main__":
    main()
