"""The metrics in a plain PyTorch loop: no Lightning, no callback.

python examples/custom_loop.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from netdyn import NeuronModes, SampleBasin, WeightBasin
from netdyn.functional import linear_substitution_map, local_fields


def main(epochs: int = 15) -> None:
    """Train on handwritten digits, and print modes and basins during training."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32)
    y = torch.tensor(labels)
    probe_x, probe_y = x[:500], y[:500]

    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    modes = {name: NeuronModes(num_classes=10) for name in local_fields(net, probe_x)}
    in_samples, in_weights = SampleBasin(), WeightBasin()

    print("epoch  accuracy  " + "  ".join(f"OPT[{name}]" for name in modes) + "  sample basin  weight basin")
    for epoch in range(epochs + 1):
        if epoch % 5 == 0:
            # The map belongs to the network as it is now, so the metrics start again.
            fields, pathway = local_fields(net, probe_x), linear_substitution_map(net, probe_x)
            shares = []
            for name, metric in modes.items():
                metric.reset()
                metric.update(fields[name], probe_y, pathway[name])
                shares.append(f"{float(metric.compute()['opt_fraction']):6.2f}")
            for basin in (in_samples, in_weights):
                basin.reset()
                basin.update(net, probe_x, probe_y)
            accuracy = in_samples.result().clean
            print(
                f"{epoch:5d}  {accuracy:8.3f}  {'  '.join(shares)}  {float(in_samples.compute()):12.3f}  "
                f"{float(in_weights.compute()):12.3f}"
            )
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
